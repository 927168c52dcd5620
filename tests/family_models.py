"""A small random model of every family, and left-padded batches for it: what the family tests and the matrix run on.

A prompt is spelled as a word: t text, i image, j larger image, v video. `Batch` writes the placeholders and makes the
pixels that each family's processor would, so that no processor has to be loaded. A new family is one `Case`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import torch
import transformers as hf

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.language_model.configuration_llava import LlavaConfig
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from llava.model.pruning import PruningSession, prune
from llava.model.pruning.families import family_of

START, END, IMAGE, VIDEO, VOCABULARY = 93, 94, 95, 96, 97
LAYERS = 6


@dataclass(frozen=True)
class Case:
    """One family: how to make its model, the tokens and pixels of its media, and the media it reads.

    layout:
        `placeholders` one id a visual token; `markers` one id an image (original LLaVA); `bare` embeddings and a mask
    plain:
        whether tests/reference.py knows the decoder's projections
    media:
        makes the pixels of a letter; returns its visual tokens, or those of each run that has a frame, and the inputs
    frame:
        text tokens before and after each image or video
    """

    make: Callable[[], torch.nn.Module]
    media: Callable[[torch.nn.Module, str, torch.Generator], tuple[int | list[int], dict]]
    prompts: tuple[str, ...] = ("tttittt", "ttittjttt", "ttttt", "jttt")
    plain: bool = True
    frame: tuple[int, ...] = ()
    layout: Literal["placeholders", "markers", "bare"] = "placeholders"

    @cached_property
    def model(self) -> torch.nn.Module:
        """The model, its attention peaked enough that single tokens matter."""
        torch.manual_seed(0)
        model = self.make().eval().requires_grad_(False)
        for name, parameter in model.named_parameters():
            if name.endswith(("q_norm.weight", "k_norm.weight")):
                torch.nn.init.constant_(parameter, 1.6)
            if parameter.ndim < 2 or name.endswith(("norm.weight", "cls_token", "position_embeddings")):
                continue
            gain = 1.5 if "language_model" in name or name.startswith("model.layers") else 1.0
            gain = 0.5 if "lm_head" in name else gain
            std = 1.0 if "embed_tokens" in name else gain * parameter[0].numel() ** -0.5
            torch.nn.init.normal_(parameter, std=std)
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
                count, inputs = case.media(case.model, letter, generator)
                for run in [count] if isinstance(count, int) else count:
                    ids += [*case.frame[:1], *[VIDEO if letter == "v" else IMAGE] * run, *case.frame[1:]]
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
        if "qwen" in case.model.config.model_type and case.layout == "placeholders":
            self.inputs["mm_token_type_ids"] = (self.ids == IMAGE).int() + 2 * (self.ids == VIDEO).int()

    def positions(self, case: Case) -> torch.Tensor:
        """Positions of the untouched model: int64 [B, T], or [3, B, T] from its own M-RoPE."""
        if "mm_token_type_ids" in self.inputs:
            named = {k: v for k, v in self.inputs.items() if "pixel" not in k}
            return case.model.model.get_rope_index(**named)[0]
        return (self.attention_mask.cumsum(-1) - 1).clamp_min(0)


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


def llama():
    return hf.LlamaConfig(**fields())


def clip():
    return hf.CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, image_size=16, patch_size=4
    )


def llava():
    return hf.LlavaForConditionalGeneration(
        hf.LlavaConfig(vision_config=clip(), text_config=llama(), image_token_index=IMAGE)
    )


def llava_media(model, letter, generator):
    images = 1 + (letter == "j")
    return 16 * images, {"pixel_values": torch.randn(images, 3, 16, 16, generator=generator)}


def llava_original(image_size=16, **settings):
    """LLaVA's own layout; MobileVLM-V2 is the same with another projector."""
    vision = hf.CLIPVisionConfig(**{**clip().to_dict(), "image_size": image_size})
    settings = {"mm_projector_type": "mlp2x_gelu", "mm_vision_tower": "clip", **settings}
    return LlavaLlamaForCausalLM(LlavaConfig(**fields(), **settings), vision)


def markers_media(model, letter, generator):
    images, side = 1 + (letter == "j"), model.get_vision_tower().config.image_size
    return model.visual_tokens_per_image * images, {"images": torch.randn(images, 3, side, side, generator=generator)}


def bare_media(model, letter, generator):
    count = 7 if letter == "i" else 16
    return count, {"features": torch.randn(count, 48, generator=generator)}


def llava_next(text):
    pinpoints = [[16, 32], [32, 16]]
    config = hf.LlavaNextConfig(
        vision_config=clip(), text_config=text, image_token_index=IMAGE, image_grid_pinpoints=pinpoints
    )
    return hf.LlavaNextForConditionalGeneration(config)


def llava_next_media(model, letter, generator):
    """Thumbnail and two tiles side by side or one above the other, unpadded, a newline after each row."""
    height, width = (16, 24) if letter == "i" else (32, 16)
    pixels = torch.randn(1, 3, 3, 16, 16, generator=generator)
    rows, columns = height // 4, width // 4
    return 16 + rows * (columns + 1), {"pixel_values": pixels, "image_sizes": torch.tensor([[height, width]])}


def llava_onevision():
    vision = hf.SiglipVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4
    )
    config = hf.LlavaOnevisionConfig(
        vision_config=vision,
        text_config=hf.Qwen2Config(**fields()),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        image_grid_pinpoints=[[16, 32], [32, 16]],
        tie_word_embeddings=False,
    )
    return hf.LlavaOnevisionForConditionalGeneration(config)


def llava_onevision_media(model, letter, generator):
    """Images as LLaVA-NeXT's; three frames of a video, each pooled to 2×2 tokens, and one newline after them."""
    if letter == "v":
        return 3 * 4 + 1, {"pixel_values_videos": torch.randn(1, 3, 3, 16, 16, generator=generator)}
    return llava_next_media(model, letter, generator)


def internvl(text):
    vision = hf.InternVLVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=2,
    )
    return hf.InternVLForConditionalGeneration(
        hf.InternVLConfig(vision_config=vision, text_config=text, image_token_id=IMAGE, tie_word_embeddings=False)
    )


def internvl_media(model, letter, generator):
    tiles = 1 if letter == "i" else 3
    return 16 * tiles, {"pixel_values": torch.randn(tiles, 3, 16, 16, generator=generator)}


QWEN = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]}
PATCHES = {"patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}


def qwen2_vl():
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 48, "num_heads": 2, "mlp_ratio": 2, **PATCHES}
    return hf.Qwen2VLForConditionalGeneration(
        hf.Qwen2VLConfig(text_config=fields(rope_parameters=ROPE), vision_config=vision, **QWEN)
    )


def qwen2_5_vl():
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 48, "num_heads": 2, **PATCHES}
    vision |= {"window_size": 16, "fullatt_block_indexes": [1], "tokens_per_second": 4}
    return hf.Qwen2_5_VLForConditionalGeneration(
        hf.Qwen2_5_VLConfig(text_config=fields(rope_parameters=ROPE), vision_config=vision, **QWEN)
    )


def qwen_media(model, letter, generator):
    grid = {"i": (1, 8, 6), "j": (1, 4, 14), "v": (3, 4, 6)}[letter]
    patches = grid[0] * grid[1] * grid[2]
    pixels = torch.randn(patches, 3 * 2 * 4 * 4, generator=generator)
    names = ("pixel_values_videos", "video_grid_thw") if letter == "v" else ("pixel_values", "image_grid_thw")
    return patches // 4, dict(zip(names, (pixels, torch.tensor([grid])), strict=True))


def qwen3_vl(moe=False):
    vision = {"depth": 3, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 48, "num_heads": 2, **PATCHES}
    vision |= {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 16}
    rope = {**ROPE, "mrope_section": [2, 2, 2], "mrope_interleaved": True}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "mlp_only_layers": [1]}
    text = fields(rope_parameters=rope, head_dim=12, **(experts if moe else {}))
    config = (hf.Qwen3VLMoeConfig if moe else hf.Qwen3VLConfig)(text_config=text, vision_config=vision, **QWEN)
    return (hf.Qwen3VLMoeForConditionalGeneration if moe else hf.Qwen3VLForConditionalGeneration)(config)


def qwen3_media(model, letter, generator):
    """As Qwen2-VL's; time stamps are text between the frames of a video."""
    count, inputs = qwen_media(model, letter, generator)
    return [count // 3] * 3 if letter == "v" else count, inputs


VIDEOS = ("tttittt", "ttittjttt", "ttttt", "ttvttjttt", "vtvtit")
CASES = {
    "llava original": Case(llava_original, markers_media, layout="markers"),
    "mobilevlm": Case(
        lambda: llava_original(48, mm_projector_type="ldpnetv2"),
        markers_media,
        ("ttitt", "titttit", "ttttt", "itt"),
        layout="markers",
    ),
    "llava": Case(llava, llava_media),
    "llava_next": Case(lambda: llava_next(llama()), llava_next_media),
    "llava_next mistral": Case(lambda: llava_next(hf.MistralConfig(**fields(sliding_window=None))), llava_next_media),
    "llava_onevision": Case(llava_onevision, llava_onevision_media, VIDEOS),
    "internvl qwen2": Case(lambda: internvl(hf.Qwen2Config(**fields())), internvl_media, frame=(START, END)),
    "internvl qwen3": Case(lambda: internvl(hf.Qwen3Config(**fields(head_dim=12))), internvl_media, plain=False),
    "internvl llama": Case(lambda: internvl(llama()), internvl_media),
    "qwen2_vl": Case(qwen2_vl, qwen_media, VIDEOS, frame=(START, END)),
    "qwen2_5_vl": Case(qwen2_5_vl, qwen_media, VIDEOS, frame=(START, END)),
    "qwen3_vl": Case(qwen3_vl, qwen3_media, VIDEOS, frame=(START, END), plain=False),
    "bare llama": Case(lambda: hf.LlamaForCausalLM(llama()), bare_media, layout="bare"),
    "bare qwen3": Case(
        lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**fields(head_dim=12))), bare_media, plain=False, layout="bare"
    ),
}


@lru_cache(maxsize=64)
def batch_of(name: str, *words: str) -> Batch:
    """The words, or the case's own mixed batch: one image, several, text only, no text before the image, a video."""
    return Batch(CASES[name], *(words or CASES[name].prompts))
