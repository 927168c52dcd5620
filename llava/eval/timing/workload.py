"""The workload of a bench: a model, batches of prompts, one greedy `generate` per batch, alike for every config."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from llava.cli import UserError
from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.images import read_image
from llava.model.inputs import Inputs, Turn
from llava.model.loaded import LoadedModel
from llava.model.pruning import PruningConfig, prune
from llava.model.pruning.families import family_of, shape_of
from llava.model.pruning.flops import DecoderShape
from llava.model.pruning.graphs import LayerGraphs

from .options import PROMPT_TOKENS, QUESTION_TOKENS, SYSTEM_TOKENS, BenchOptions
from .shapes import Shape, random_model, text_split

QUESTION = "What is in the picture?"
NOISE_SIZE = (480, 640)
"""Height and width of a random image for a loaded model: a photograph of COCO's."""
Ask = Callable[[int], Any]


@dataclass(frozen=True)
class Workload:
    """A model in eval mode with its prompts.

    batches:
        one function per batch: `ask(new_tokens)` generates that many tokens per prompt, greedily, after the model has
        looked at the images, if any
    sizes:
        (tokens, visual tokens) of every prompt
    visual_mask:
        bool [1 or B, T] for a model that reads embeddings, else None
    random:
        whether the weights are random, so that they may be changed
    graphs:
        recorded layers for pruned runs (`--cuda-graphs`), or None
    """

    model: Any
    batches: Sequence[Ask]
    sizes: list[tuple[int, int]]
    visual_mask: torch.Tensor | None
    random: bool
    graphs: LayerGraphs | None = None

    def ask(self, new_tokens: int) -> None:
        """Generate from every batch."""
        for ask in self.batches:
            ask(new_tokens)

    def pruned(self, config: PruningConfig | None, prefix_cache: int | None = None) -> Any:
        """Return the context to call `ask` in: a pruning session; for None, nothing."""
        if config is None:
            return nullcontext()
        graphs = self.graphs or False
        return prune(self.model, config, self.visual_mask, cuda_graphs=graphs, prefix_cache=prefix_cache)

    @property
    def decoder(self) -> Any:
        """The decoder stack."""
        return family_of(self.model).decoder(self.model)

    @property
    def shape(self) -> DecoderShape:
        """Dimensions of the decoder."""
        return shape_of(self.model)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all parameters."""
        return sum(parameter.nbytes for parameter in self.model.parameters())


def random_workload(shape: Shape, options: BenchOptions, device: torch.device, dtype: torch.dtype) -> Workload:
    """Build a random model and its prompts; images stand together behind the system sentence (`text_split`).

    With `options.vision` the tower looks at noise in every run; else visual tokens are random embeddings. With
    `options.questions_per_image` the prompts share text and image, and end in a question of their own.
    """
    model = random_model(shape, options.num_layers or shape.decoder.layers, device, dtype, options.seed, options.vision)
    visual = options.images * shape.visual_tokens
    generator = torch.Generator().manual_seed(options.seed)
    if options.vision:
        inputs, tokens = _vision_inputs(model, shape, options, generator)
        return Workload(model, [_asking(model, inputs)], [(tokens, visual)] * options.batch_size, None, True)
    prompts, before = _prompts(model, shape.vocabulary, visual, options, generator)
    mask = torch.zeros(1, prompts.shape[1], dtype=torch.bool, device=device)
    mask[:, before : before + visual] = True
    batches = [_asking(model, {"inputs_embeds": part}) for part in prompts.split(options.batch_size)]
    return Workload(model, batches, [(prompts.shape[1], visual)] * len(prompts), mask, True)


def _prompts(model, vocabulary: int, visual: int, options: BenchOptions, generator) -> tuple[torch.Tensor, int]:
    """Return random prompts [N, T, D], and how many text tokens precede the images; questions share all but the end."""
    shared = options.questions_per_image
    rows = shared or options.batch_size
    count = options.prompt_tokens or (SYSTEM_TOKENS + QUESTION_TOKENS if shared else PROMPT_TOKENS)
    before = count - min(QUESTION_TOKENS, count - 1) if shared else text_split(count)[0]
    ids = torch.randint(2, vocabulary, (rows, count), generator=generator)
    if shared:
        ids[:, :before] = ids[:1, :before]
    text = model.get_input_embeddings()(ids.to(model.device))
    noise = torch.randn(1 if shared else rows, visual, text.shape[-1], generator=generator)
    seen = (model.config.initializer_range * noise).to(text).expand(rows, -1, -1)
    return torch.cat((text[:, :before], seen, text[:, before:]), 1), before


def _vision_inputs(model, shape: Shape, options: BenchOptions, generator) -> tuple[dict[str, torch.Tensor], int]:
    if model.visual_tokens_per_image != shape.visual_tokens:
        raise RuntimeError(f"an image has {model.visual_tokens_per_image} tokens, expected {shape.visual_tokens}")
    count, batch, device = options.prompt_tokens or PROMPT_TOKENS, options.batch_size, model.device
    before, _ = text_split(count)
    ids = torch.randint(2, shape.vocabulary, (batch, count), generator=generator).to(device)
    markers = torch.full((batch, options.images), IMAGE_TOKEN_INDEX, device=device)
    side = shape.clip["image_size"]
    pixels = torch.randn(batch * options.images, 3, side, side, generator=generator).to(device, model.dtype)
    inputs = {"inputs": torch.cat((ids[:, :before], markers, ids[:, before:]), 1), "images": pixels}
    return inputs, count + options.images * shape.visual_tokens


def _asking(model, inputs: dict[str, torch.Tensor]) -> Ask:
    rows = next(iter(inputs.values()))
    mask = torch.ones(rows.shape[:2], dtype=torch.long, device=rows.device)
    return lambda new_tokens: model.generate(**inputs, attention_mask=mask, **greedy(new_tokens, 0))


def loaded_workload(options: BenchOptions, dtype: torch.dtype) -> Workload:
    """Load a model and ask it, in its own prompt format, about `options.image_file` or about noise.

    With `options.questions_per_image` all prompts share the images, which are encoded once, before the clock runs.
    Raises `UserError` for fewer text tokens than the format has, and for prompts that the model cannot take.
    """
    loaded = LoadedModel.from_path(options, dtype)
    model, inputs, batch, images = loaded.model, loaded.inputs, options.batch_size, options.images
    count = options.questions_per_image
    generator = np.random.default_rng(options.seed)
    pictures = [
        inputs.prepare(_image(options.image_file, generator)) for _ in range(images if count else batch * images)
    ]

    def encoded() -> list[list]:
        seen = inputs.encode_images(model, pictures)
        return [seen[start : start + images] for start in range(0, len(seen), images)]

    with torch.inference_mode():
        shared = encoded()
    if count:
        rows = [
            inputs.encode([Turn(f"Question {number} of {count}: what is in the picture?", images=images)])
            for number in range(1, count + 1)
        ]
    else:
        rows = [_row(inputs, images, options.prompt_tokens)] * batch
    shown = shared * len(rows) if count else shared
    sizes = [
        (inputs.length(row, some), sum(image.visual for image in some)) for row, some in zip(rows, shown, strict=True)
    ]
    longest = max(tokens for tokens, _ in sizes) + options.new_tokens
    if inputs.limit is not None and longest > inputs.limit:
        raise UserError(f"prompt and new tokens are {longest} tokens, the model takes {inputs.limit}; ask for fewer")

    def asker(some: Sequence[Sequence[int]]) -> Ask:
        def ask(new_tokens: int) -> Any:
            seen = shared * len(some) if count else encoded()
            return model.generate(
                **inputs.collate(some, seen, model), **greedy(new_tokens, inputs.tokenizer.pad_token_id)
            )

        return ask

    batches = [asker(rows[start : start + batch]) for start in range(0, len(rows), batch)]
    return Workload(model, batches, sizes, None, False)


def greedy(new_tokens: int, pad_id: int | None) -> dict[str, Any]:
    """Return the arguments of `generate` for exactly so many tokens."""
    sampling = dict.fromkeys(("temperature", "top_p", "top_k"))
    lengths = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
    return sampling | lengths | {"do_sample": False, "num_beams": 1, "pad_token_id": pad_id, "use_cache": True}


def _image(path: str | None, generator: np.random.Generator) -> Image.Image:
    if path is not None:
        return read_image(Path(path))
    return Image.fromarray(generator.integers(0, 256, (*NOISE_SIZE, 3), dtype=np.uint8))


def _row(inputs: Inputs, images: int, prompt_tokens: int | None) -> Sequence[int]:
    """Return a prompt's ids, one marker per image, with `prompt_tokens` tokens beside the markers."""
    if prompt_tokens is None:
        return inputs.encode([Turn(QUESTION, images=images)])
    empty = len(inputs.encode([Turn("", images=images)])) - images
    if prompt_tokens < empty:
        raise UserError(f"--prompt-tokens {prompt_tokens}: the model's prompt format alone has {empty} text tokens")
    words, row = [], []
    while len(row) - images < prompt_tokens:
        row = inputs.encode([Turn(" ".join(words), images=images)])
        words.append("and")
    return row
