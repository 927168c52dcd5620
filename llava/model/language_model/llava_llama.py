"""LLaVA on Llama: transformers' `LlamaForCausalLM`, a vision tower, a projector, and images in `forward`/`generate`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from transformers import CLIPVisionConfig, LlamaForCausalLM, LlamaModel, LlamaPreTrainedModel

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.language_model.configuration_llava import LlavaConfig
from llava.model.llava_arch import LlavaMetaForCausalLM, splice_labels
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.multimodal_projector.builder import build_vision_projector
from llava.model.pruning.session import is_pruned, prune


class LlavaLlamaModel(LlamaModel):
    """The decoder, with `vision_tower` and `mm_projector` beside its layers (None without a `vision_config`)."""

    config_class = LlavaConfig
    _no_split_modules = ["LlamaDecoderLayer", "CLIPEncoderLayer", "CLIPVisionEmbeddings", "LDPNetV2Projector"]

    def __init__(self, config: LlavaConfig, vision_config: CLIPVisionConfig | None = None):
        if vision_config is not None and config.mm_hidden_size is None:
            config.mm_hidden_size = vision_config.hidden_size
        super().__init__(config)
        self.vision_tower = None if vision_config is None else CLIPVisionTower(config, vision_config)
        self.mm_projector = None if vision_config is None else build_vision_projector(config)
        if "unpad" in config.mm_patch_merge_type:
            self.image_newline = nn.Parameter(torch.randn(config.hidden_size) * config.hidden_size**-0.5)

    def forward(
        self,
        *args: Any,
        visual_mask: torch.Tensor | None = None,
        token_labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the decoder.

        `visual_mask` (bool `[B, T]`) and `token_labels` (`[B, T]`) are for a pruning session, which replaces this.
        """
        return super().forward(*args, **kwargs)


class LlavaLlamaForCausalLM(LlavaMetaForCausalLM, LlamaForCausalLM):
    """The model. Images: pixels `[N, 3, S, S]` (or a list) or projected features, one per marker, in batch order."""

    config_class = LlavaConfig
    _no_split_modules = LlavaLlamaModel._no_split_modules

    def __init__(self, config: LlavaConfig, vision_config: CLIPVisionConfig | None = None):
        # LlamaForCausalLM's own __init__ would build (and for a 7B allocate) a plain LlamaModel first
        LlamaPreTrainedModel.__init__(self, config)
        self.model = LlavaLlamaModel(config, vision_config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        images: torch.Tensor | Sequence[torch.Tensor] | None = None,
        image_sizes: Sequence[tuple[int, int]] | None = None,
        image_features: Sequence[torch.Tensor] | None = None,
        visual_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run `LlamaForCausalLM.forward`, after splicing the images of a prompt in.

        `input_ids` `[B, L]` may hold markers when nothing is cached; the logits then are `[B, T, vocab]` over the
        spliced, left-padded prompt (`prepare_prompt`). `image_sizes`, (width, height) of each image, are needed
        for AnyRes alone. `labels` `[B, L]`, one per id of `input_ids`, -100 where none counts, are spliced alike:
        visual tokens and a prompt's first token have none. Raises `ValueError` as `prepare_prompt` does.
        """
        cached = past_key_values is not None and past_key_values.get_seq_length() > 0
        given = images is not None or image_features is not None
        fresh = input_ids is not None and (not cached or input_ids.shape[1] > 1)  # a step of `generate` has no markers
        if input_ids is not None and (given or (fresh and bool((input_ids == IMAGE_TOKEN_INDEX).any()))):
            if cached or position_ids is not None:
                raise ValueError("images must come with the first tokens of a prompt, without a cache or position_ids")
            prompt = self.prepare_prompt(input_ids, attention_mask, images, image_features, image_sizes)
            if labels is not None:
                labels = kwargs["token_labels"] = splice_labels(labels, input_ids, attention_mask, prompt)
            input_ids, inputs_embeds = None, prompt.inputs_embeds
            attention_mask, position_ids = prompt.attention_mask, prompt.position_ids
            visual_mask = prompt.visual_mask
        elif given:
            raise ValueError("images were given without input_ids: the markers say where they belong")
        elif input_ids is not None and not cached and visual_mask is None:
            visual_mask = torch.zeros_like(input_ids, dtype=torch.bool)
            if self.training and torch.is_grad_enabled() and self.model.mm_projector is not None:
                # other devices, whose batches have images, wait for the projector's gradients
                idle = sum(
                    parameter.sum() for parameter in self.model.mm_projector.parameters() if parameter.requires_grad
                )
                input_ids, inputs_embeds = None, self.get_input_embeddings()(input_ids) + 0 * idle
        if visual_mask is not None:
            kwargs["visual_mask"] = visual_mask
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        images: torch.Tensor | Sequence[torch.Tensor] | None = None,
        image_sizes: Sequence[tuple[int, int]] | None = None,
        *,
        image_features: Sequence[torch.Tensor] | None = None,
        pruning_config: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Answer a batch of prompts; returns the new tokens only (the prompt goes in as embeddings), `[B, n]`.

        `inputs` (or `input_ids=`): int64 `[B, L]` with markers; `image_features`: list of projected `[V_i, D]`
        (`encode_images`), instead of `images`; `image_sizes` as in `forward`. With a `pruning_config` the call runs
        inside `prune(self, pruning_config)`; without one, outside `prune`, a model that was trained with a schedule
        (`config.visual_schedule`) runs with that, and dense with "none". Transformers' own models take none: wrap their
        call in `prune`. Everything else goes to transformers' `generate`: greedy, sampling, beams, prompt lookup, …
        Raises `ValueError` as `prepare_prompt` does, and for an `assistant_model`.
        """
        inputs = kwargs.pop("input_ids", inputs)
        for key in ("inputs_embeds", "position_ids"):
            if kwargs.pop(key, None) is not None:
                raise ValueError(f"generate makes {key} from the token ids: give inputs, with images, instead")
        if kwargs.get("assistant_model") is not None:
            raise ValueError(
                "assistant_model: a draft model reads token ids, and this layout's prompts are embeddings; "
                "use prompt_lookup_num_tokens, or the checkpoint in transformers' layout (-hf)"
            )
        if inputs is None:
            raise ValueError("generate needs inputs: token ids [B, L], with one image marker per image")
        if pruning_config is None and not is_pruned(self.model):
            pruning_config = self.config.visual_schedule
        with nullcontext() if pruning_config in (None, "none") else self._pruned(pruning_config):
            # inside, because a method may watch the vision tower
            prompt = self.prepare_prompt(
                inputs, kwargs.pop("attention_mask", None), images, image_features, image_sizes
            )
            return super().generate(
                inputs_embeds=prompt.inputs_embeds,
                attention_mask=prompt.attention_mask,
                position_ids=prompt.position_ids,
                visual_mask=prompt.visual_mask,
                **kwargs,
            )

    def _pruned(self, pruning_config: Any) -> Any:
        return prune(self, pruning_config)

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        inputs_embeds: torch.Tensor | None = None,
        visual_mask: torch.Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Add `visual_mask` (expanded over beams by `generate`) to the first step, and to that one only."""
        prepared = super().prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        if is_first_iteration and visual_mask is not None:
            # on the cache of an earlier turn, only the new tokens are left of the embeddings
            prepared["visual_mask"] = visual_mask[:, -prepared["inputs_embeds"].shape[1] :]
        return prepared
