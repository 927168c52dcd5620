"""What a bench runs: a model, a batch of prompts for it, and one greedy `generate`, the same for every config."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from llava.constants import IMAGE_TOKEN_INDEX
from llava.eval.runner.batches import read_image
from llava.mm_utils import get_model_name_from_path
from llava.model.builder import load_pretrained_model
from llava.model.inputs import Inputs, ProcessedImage, Turn, inputs_for
from llava.model.pruning import PruningConfig, prune
from llava.model.pruning.families import family_of
from llava.model.pruning.flops import DecoderShape
from llava.model.pruning.graphs import LayerGraphs

from . import BenchError
from .shapes import Shape, random_model, text_split

QUESTION = "What is in the picture?"
NOISE_SIZE = (480, 640)
"""Height and width of a random image for a loaded model, as photographs of COCO have them."""


@dataclass(frozen=True)
class Subject:
    """A model with the prompts that it is asked.

    model:
        in eval mode
    ask:
        `ask(new_tokens)` generates that many tokens of every prompt, greedily; looks at the images first, if any
    sizes:
        (tokens, visual tokens) of every prompt
    visual_mask:
        bool [B, T] for a model that reads embeddings, else None
    random:
        whether the weights are random, so that they may be changed
    graphs:
        recorded layers for pruned runs (`--cuda-graphs`), or None
    """

    model: Any
    ask: Callable[[int], Any]
    sizes: list[tuple[int, int]]
    visual_mask: torch.Tensor | None
    random: bool
    graphs: LayerGraphs | None = None

    def pruned(self, config: PruningConfig | None) -> Any:
        """Return the context that `ask` runs in: a pruning session, or for None none at all."""
        if config is None:
            return nullcontext()
        return prune(self.model, config, self.visual_mask, cuda_graphs=self.graphs or False)

    @property
    def decoder(self) -> Any:
        """The decoder stack."""
        return family_of(self.model).decoder(self.model)

    @property
    def shape(self) -> DecoderShape:
        """Dimensions of the decoder."""
        return DecoderShape.of(self.decoder.config)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all parameters."""
        return sum(parameter.nbytes for parameter in self.model.parameters())


def random_subject(
    shape: Shape,
    layers: int,
    device: torch.device,
    dtype: torch.dtype,
    *,
    batch_size: int,
    images: int,
    prompt_tokens: int,
    seed: int,
    vision: bool,
) -> Subject:
    """Build a random model and `batch_size` prompts of `prompt_tokens` text tokens and `images` images.

    The images stand together after the system sentence (`text_split`). With `vision` they are noise that the tower
    looks at in every run, else their tokens are random embeddings and no tower exists.
    """
    model = random_model(shape, layers, device, dtype, seed, vision)
    before, after = text_split(prompt_tokens)
    visual = images * shape.visual_tokens
    sizes = [(prompt_tokens + visual, visual)] * batch_size
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, shape.vocabulary, (batch_size, prompt_tokens), generator=generator).to(device)
    if vision:
        if model.visual_tokens_per_image != shape.visual_tokens:
            raise RuntimeError(f"an image has {model.visual_tokens_per_image} tokens, expected {shape.visual_tokens}")
        markers = torch.full((batch_size, images), IMAGE_TOKEN_INDEX, device=device)
        side = shape.clip["image_size"]
        pixels = torch.randn(batch_size * images, 3, side, side, generator=generator).to(device, dtype)
        inputs = {"inputs": torch.cat((ids[:, :before], markers, ids[:, before:]), 1), "images": pixels}
        mask = None
    else:
        text = model.get_input_embeddings()(ids)
        scale = model.config.initializer_range
        seen = (scale * torch.randn(batch_size, visual, text.shape[-1], generator=generator)).to(text)
        inputs = {"inputs_embeds": torch.cat((text[:, :before], seen, text[:, before:]), 1)}
        mask = torch.zeros(batch_size, prompt_tokens + visual, dtype=torch.bool, device=device)
        mask[:, before : before + visual] = True
    rows = inputs.get("inputs", mask)
    inputs["attention_mask"] = torch.ones(rows.shape, dtype=torch.long, device=device)

    def ask(new_tokens: int) -> Any:
        return model.generate(**inputs, **greedy(new_tokens, 0))

    return Subject(model, ask, sizes, mask, True)


def loaded_subject(
    path: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    batch_size: int,
    images: int,
    prompt_tokens: int | None,
    new_tokens: int,
    seed: int,
    image_file: str | None,
) -> Subject:
    """Load a model and ask it, in its own prompt format, about `image_file` or about noise.

    prompt_tokens: text tokens of a prompt, the template's included; None for those of a short question.
    Raises `BenchError` for fewer than the template has, and for prompts that the model cannot take.
    """
    name = get_model_name_from_path(path)
    tokenizer, model, processor, _ = load_pretrained_model(path, None, name, device=str(device), dtype=dtype)
    inputs = inputs_for(tokenizer, processor, model.config)
    row = _row(inputs, images, prompt_tokens)
    pictures = pictures_of(inputs, batch_size * images, image_file, seed)

    def look() -> list[list]:
        seen = inputs.encode_images(model, pictures)
        return [seen[start : start + images] for start in range(0, len(seen), images)]

    def ask(new_tokens: int) -> Any:
        batch = inputs.collate([row] * batch_size, look(), model)
        return model.generate(**batch, **greedy(new_tokens, tokenizer.pad_token_id))

    with torch.inference_mode():
        sizes = [(inputs.length(row, shown), sum(image.visual for image in shown)) for shown in look()]
    longest = max(tokens for tokens, _ in sizes) + new_tokens
    if inputs.limit is not None and longest > inputs.limit:
        raise BenchError(f"prompt and new tokens are {longest} tokens, the model takes {inputs.limit}; ask for fewer")
    return Subject(model, ask, sizes, None, False)


def greedy(new_tokens: int, pad_id: int | None) -> dict[str, Any]:
    """Keywords of `generate` for exactly so many tokens."""
    return {
        "do_sample": False,
        "temperature": None,
        "top_p": None,
        "top_k": None,
        "num_beams": 1,
        "max_new_tokens": new_tokens,
        "min_new_tokens": new_tokens,
        "pad_token_id": pad_id,
        "use_cache": True,
    }


def pictures_of(inputs: Inputs, count: int, image_file: str | None, seed: int) -> list[ProcessedImage]:
    """Prepare `count` times an image, or for None as many of noise."""
    generator = np.random.default_rng(seed)
    return [inputs.prepare(_image(image_file, generator)) for _ in range(count)]


def _image(path: str | None, generator: np.random.Generator) -> Image.Image:
    if path is not None:
        return read_image(Path(path))
    return Image.fromarray(generator.integers(0, 256, (*NOISE_SIZE, 3), dtype=np.uint8))


def _row(inputs: Inputs, images: int, prompt_tokens: int | None) -> Sequence[int]:
    """Return a prompt's ids, one marker an image, with `prompt_tokens` tokens beside the markers."""
    if prompt_tokens is None:
        return inputs.encode([Turn(QUESTION, images=images)])
    empty = len(inputs.encode([Turn("", images=images)])) - images
    if prompt_tokens < empty:
        raise BenchError(f"--prompt-tokens {prompt_tokens}: the model's prompt format alone has {empty} text tokens")
    words, row = [], []
    while len(row) - images < prompt_tokens:
        row = inputs.encode([Turn(" ".join(words), images=images)])
        words.append("and")
    return row
