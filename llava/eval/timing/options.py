"""The options of `llava.eval.bench`; neither torch nor transformers is imported here."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any, Literal

from llava.cli import ModelOptions, OutputOptions, UserError, number, option

VIDEO_SHAPES = ("qwen2.5-vl-3b", "qwen2.5-vl-7b")
SHAPE_NAMES = (
    "llava-1.5-7b",
    "llava-1.5-13b",
    "qwen2-vl-7b",
    *VIDEO_SHAPES,
    "internvl2.5-8b",
    "mobilevlm-v2-3b",
    "qwen3-vl-8b",
    "internvl3.5-8b",
    "tiny",
)
PROMPT_TOKENS = 64
SYSTEM_TOKENS, QUESTION_TOKENS = 35, 20
COUNT = number(int, 1)


@dataclass(frozen=True)
class ForcedPlan:
    """Where VisiPruner is made to decide: the filter layer, tokens kept, first layer without visual tokens."""

    layer: int
    keep: int
    exit_layer: int | None = None

    @classmethod
    def parse(cls, text: str) -> ForcedPlan:
        """Read LAYER:KEEP or LAYER:KEEP:EXIT; an exit needs a layer for the vote after the filter layer."""
        try:
            parts = [int(part) for part in text.split(":")]
        except ValueError:
            parts = []
        if len(parts) not in (2, 3) or parts[0] < 0 or parts[1] < 1 or (parts[2:] and parts[2] < parts[0] + 2):
            raise argparse.ArgumentTypeError(
                f"expected LAYER:KEEP[:EXIT] with KEEP ≥ 1 and EXIT ≥ LAYER + 2, got {text!r}"
            )
        return cls(*parts)

    def __str__(self) -> str:
        exit_layer = "" if self.exit_layer is None else f":{self.exit_layer}"
        return f"{self.layer}:{self.keep}{exit_layer}"


@dataclass(kw_only=True)
class BenchOptions(ModelOptions, OutputOptions):
    """Options of the bench: a loaded model, or a published model's shape with random weights."""

    model_path: str | None = option(None, help="a checkpoint folder or hub name; this or --shape is needed")
    shape: str | None = option(None, help="random weights with a published model's dimensions", choices=SHAPE_NAMES)
    num_layers: int | None = option(None, help="layers of a --shape (default: the model's)", type=COUNT)
    vision: bool = option(False, help="with --shape: a random CLIP tower runs too; else visual tokens are random")
    pruning_config: list[str] = option(
        [],
        help="JSON or a .json file, with a name or not; may be given again. Dense always runs",
        metavar="[NAME=]CONFIG",
        repeated=True,
    )
    force_plan: Any = option(
        None,
        help="choose VisiPruner's thresholds on these prompts so that LAYER is the filter layer, about KEEP visual "
        "tokens stay, and EXIT is the first layer without any",
        metavar="LAYER:KEEP[:EXIT]",
        type=ForcedPlan.parse,
        aliases=["--fire"],
    )
    batch_size: int = option(1, help="prompts per batch (default 1)", type=COUNT)
    images: int = option(1, help="images per prompt (default 1)", type=COUNT)
    frames: int | None = option(
        None,
        help=f"in place of images, a video of so many frames of 224 × 224 pixels (--shape {', '.join(VIDEO_SHAPES)})",
        type=COUNT,
    )
    image_file: str | None = option(None, help="with --model-path: the image to show (default: noise)")
    prompt_tokens: int | None = option(
        None,
        help=f"text tokens per prompt (default {PROMPT_TOKENS}; of a loaded model, its format and a short question)",
        type=COUNT,
    )
    questions_per_image: int | None = option(
        None,
        help="instead: answer so many questions about one image, --batch-size at a time; questions per second with and "
        f"without the prefix cache (--shape: {QUESTION_TOKENS} tokens per question)",
        type=COUNT,
        aliases=["--questions"],
    )
    prefix_cache: int = option(
        2 << 30,
        help="with --questions-per-image: bytes of the prefix cache (default 2 GiB)",
        metavar="BYTES",
        type=number(int, 0),
        aliases=["--prefix-cache-bytes"],
    )
    train: bool = option(
        False,
        help="instead: time training steps (forward and backward): padded as Trainer pads, packed, and packed under "
        "each config",
    )
    lengths: Literal["equal", "mix"] = option(
        "mix", help="with --train: prompts of one length, or of LLaVA-1.5's mixture (default)"
    )
    cuda_graphs: bool = option(
        False,
        help="pruned runs replay recorded layers where one prompt's few tokens are left (--batch-size 1, CUDA)",
    )
    new_tokens: int = option(16, help="tokens generated per prompt (default 16)", type=COUNT)
    rounds: int = option(5, help="rounds after the warm-up (default 5)", type=COUNT, aliases=["--repeats"])
    seed: int = option(0, help="seed of random weights and prompts (default 0)", type=number(int, 0))

    @property
    def model(self) -> str:
        """What is timed, in a word."""
        return self.model_path or str(self.shape)

    def check(self) -> None:
        """Raise `UserError` for options that exclude each other."""
        if (self.model_path is None) == (self.shape is None):
            raise UserError("give either --model-path (a checkpoint) or --shape (random weights)")
        foreign = ("num_layers", "vision") if self.shape is None else ("image_file", "model_base", "conv_mode")
        foreign += () if self.shape is None else ("load_8bit", "load_4bit", "min_pixels", "max_pixels")
        for name in foreign:
            if getattr(self, name) not in (None, False):
                what = "--shape; a loaded model is as it is" if self.shape is None else "--model-path"
                raise UserError(f"--{name.replace('_', '-')} is for {what}")
        if self.frames is not None:
            for name in ("vision", "questions_per_image", "model_path", "cuda_graphs"):
                if getattr(self, name):
                    raise UserError(f"--frames is for --shape; --{name.replace('_', '-')} does not go with it")
            if self.shape not in VIDEO_SHAPES:
                raise UserError(f"--frames: --shape {self.shape} shows no video; {', '.join(VIDEO_SHAPES)} do")
        if self.shape is not None and self.prompt_tokens == 1:
            raise UserError("--prompt-tokens must be at least 2, got 1")
        if self.train:
            for name in ("force_plan", "vision", "cuda_graphs", "questions_per_image", "image_file", "prompt_tokens"):
                if getattr(self, name):
                    raise UserError(f"--{name.replace('_', '-')} does not go with --train")
        if self.questions_per_image is not None:
            for name in ("force_plan", "vision", "cuda_graphs"):
                if getattr(self, name):
                    raise UserError(f"--{name.replace('_', '-')} does not go with --questions-per-image")
