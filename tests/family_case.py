"""`Case`: a small random model of one family and its media; `Batch`: prompts for it, spelled as words.

A prompt is spelled as a word: t text, i image, j larger image, v video. `Batch` writes the placeholders and makes the
pixels that each family's processor would, so that no processor has to be loaded.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.pruning import PruningSession, prune
from llava.model.pruning.families import family_of

START, END, IMAGE, VIDEO, VOCABULARY = 93, 94, 95, 96, 97
LAYERS = 6
VIDEOS = ("tttittt", "ttittjttt", "ttttt", "ttvttjttt", "vtvtit")
"""Prompts of a family that reads videos."""


@dataclass(frozen=True)
class Case:
    """One family: how to make its model, the tokens and pixels of its media, and the media it reads.

    media:
        of a model and a letter, its number of visual tokens, or their ids where text is among them; and the pixels, of
        which those of a batch are joined along the first axis
    layout:
        `placeholders` one id a visual token; `markers` one id an image (original LLaVA); `bare` embeddings and a mask
    plain:
        whether tests/reference.py knows the decoder's projections
    token_types:
        makes the processor's `token_type_ids` of ids [B, T]; None where it has none
    frame:
        text tokens before and after each image or video
    rounding:
        how far the untouched model is from itself where padding lies elsewhere, relative
    """

    make: Callable[[], torch.nn.Module]
    media: Callable[[torch.nn.Module, str, torch.Generator], tuple[int | list[int], dict]]
    prompts: tuple[str, ...] = ("tttittt", "ttittjttt", "ttttt", "jttt")
    plain: bool = True
    frame: tuple[int, ...] = ()
    layout: Literal["placeholders", "markers", "bare"] = "placeholders"
    token_types: Callable[[torch.Tensor], torch.Tensor] | None = None
    rounding: float = 1e-5

    @cached_property
    def model(self) -> torch.nn.Module:
        """The model, its attention peaked enough that single tokens matter."""
        torch.manual_seed(0)
        model = peaked(self.make())
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = 0
        return model

    @property
    def decoder(self) -> torch.nn.Module:
        """The decoder stack."""
        return family_of(self.model).decoder(self.model)

    def prune(self, config, batch: Batch, **options) -> PruningSession:
        """Open a session for the prompts of one batch."""
        return prune(self.model, config, batch.visual if self.layout == "bare" else None, **options)


class Batch:
    """`words` as a left-padded batch; a word alone gives the ids and pixels that it has among others.

    ids, attention_mask, visual:
        [B, T] as the decoder sees the prompts, placeholders at visual tokens
    inputs:
        keywords of the model's `forward` and `generate`
    """

    def __init__(self, case: Case, *words: str):
        rows, marked, media = [], [], {}
        for word in words:
            generator = torch.Generator().manual_seed(sum(map(ord, word)))
            ids: list[int] = []
            marks: list[int] = []
            for letter in word:
                if letter == "t":
                    ids.append(int(torch.randint(5, 90, (), generator=generator)))
                    marks.append(ids[-1])
                    continue
                tokens, inputs = case.media(case.model, letter, generator)
                if isinstance(tokens, int):
                    tokens = [VIDEO if letter == "v" else IMAGE] * tokens
                ids += [*case.frame[:1], *tokens, *case.frame[1:]]
                marks += [IMAGE_TOKEN_INDEX] * len(inputs.get("images", ()))
                for name, value in inputs.items():
                    media.setdefault(name, []).append(value)
            rows.append(ids)
            marked.append(marks)
        self.words, self.lengths = words, [len(ids) for ids in rows]
        self.ids, self.attention_mask = pad_left(rows)
        self.visual = (self.ids == IMAGE) | (self.ids == VIDEO)
        self.inputs = {"input_ids": self.ids, "attention_mask": self.attention_mask}
        self.inputs |= {name: torch.cat(values) for name, values in media.items()}
        if case.layout == "markers":
            self.inputs |= dict(zip(("input_ids", "attention_mask"), pad_left(marked), strict=True))
        if case.layout == "bare":
            embeds = case.model.get_input_embeddings()(self.inputs.pop("input_ids"))
            embeds[self.visual] = self.inputs.pop("features", embeds[:0, 0])
            self.inputs["inputs_embeds"] = embeds
        if case.token_types is not None:
            self.inputs["token_type_ids"] = case.token_types(self.ids)
        if hasattr(case.model.base_model, "get_rope_index"):
            self.inputs["mm_token_type_ids"] = (self.ids == IMAGE).int() + 2 * (self.ids == VIDEO).int()

    def positions(self, case: Case) -> torch.Tensor:
        """Positions of the untouched model: int64 [B, T], or [3, B, T] from its own M-RoPE."""
        if "mm_token_type_ids" in self.inputs:
            named = {k: v for k, v in self.inputs.items() if "pixel" not in k}
            return case.model.model.get_rope_index(**named)[0]
        if case.model.config.model_type == "paligemma":  # counts from 1, padding included
            return torch.arange(1, self.ids.shape[1] + 1).expand(self.ids.shape)
        return (self.attention_mask.cumsum(-1) - 1).clamp_min(0)


def peaked(model: torch.nn.Module) -> torch.nn.Module:
    """A model with random weights, its decoder's attention peaked enough that single tokens matter."""
    model.eval().requires_grad_(False)
    attending = {id(parameter) for parameter in family_of(model).decoder(model).layers.parameters()}
    for name, parameter in model.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            torch.nn.init.constant_(parameter, 1.6 if parameter.any() else 0.6)  # some scale by 1 + weight
        if parameter.ndim < 2 or name.endswith(("norm.weight", "cls_token", "position_embeddings")):
            continue
        gain = 1.5 if id(parameter) in attending and "linear_attn" not in name else 0.5 if "lm_head" in name else 1.0
        std = 1.0 if "embed_tokens" in name else gain * parameter[0].numel() ** -0.5
        torch.nn.init.normal_(parameter, std=std)
    return model


def angles_of(decoder, layer, hidden, positions):
    """(cos, sin) of positions as a layer takes them."""
    kinds = (
        [decoder.config.layer_types[layer]]
        if "layer_type" in inspect.signature(decoder.rotary_emb.forward).parameters
        else []
    )
    return decoder.rotary_emb(hidden, positions, *kinds)


def pad_left(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids as [B, T] with zeros before the shorter ones, and their attention mask."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    return ids, torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])


def fields(**kwargs) -> dict:
    """Fields that the text configs share."""
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": None,
        **kwargs,
    }
