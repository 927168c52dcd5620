"""Generation: from prepared prompts to new tokens and traces; the one place that calls a model's `generate`."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from llava.model.inputs import ImageFeatures, Inputs, ProcessedImage
from llava.model.pruning import PruningConfig, PruningTrace, prune
from llava.model.pruning.families import shape_of
from llava.model.pruning.flops import DecoderShape
from llava.model.pruning.method import AttentionRule, PromptState
from llava.model.pruning.methods import NoPruning
from llava.model.pruning.prefix_cache import PrefixCache, Reused


class Generator:
    """Context manager: a loaded model, pruned by `config`, or left untouched without one.

    With `prefix_cache` (bytes, or a cache that outlives the block) a common prefix is computed once; dense then runs in
    the pruning engine, too. `images` holds encoded images by any key of the caller, who removes those that no later
    prompt shows.
    """

    def __init__(
        self,
        model: Any,
        inputs: Inputs,
        config: PruningConfig | None = None,
        prefix_cache: int | PrefixCache | None = None,
    ):
        self.model, self.inputs, self.config, self.prefix_cache = model, inputs, config, prefix_cache
        self.images: dict[Hashable, ImageFeatures] = {}
        self._session = None
        self._shape = shape_of(model)

    def __enter__(self) -> Generator:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            if self.config is not None or self.prefix_cache is not None:
                config = NoPruning() if self.config is None else self.config
                self._session = stack.enter_context(prune(self.model, config, prefix_cache=self.prefix_cache))
            self._exit = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._exit.close()

    @property
    def reused(self) -> Reused | None:
        """Statistics of the prefix cache; None without one."""
        cache = None if self._session is None else self._session.prefix_cache
        return None if cache is None else cache.reused

    @property
    def policies(self) -> list[PromptState]:
        """The method's `PromptState` per prompt (and beam) of the last batch; empty if dense."""
        return [] if self._session is None else list(self._session.policies)

    def forget(self, counts: bool = False) -> None:
        """Empty the prefix cache; with `counts`, also reset its statistics."""
        cache = None if self._session is None else self._session.prefix_cache
        if cache is not None:
            cache.clear()
            cache.reused = Reused() if counts else cache.reused

    def encode_images(self, pictures: Mapping[Hashable, ProcessedImage]) -> None:
        """Encode those of `pictures` that `images` does not hold yet."""
        new = {key: picture for key, picture in pictures.items() if key not in self.images}
        self.images |= zip(new, self.inputs.encode_images(self.model, list(new.values())), strict=True)

    def too_long(self, row: Sequence[int], shown: Sequence[ImageFeatures]) -> str | None:
        """Return a message if the prompt is longer than the model's context, else None."""
        length, limit = self.inputs.length(row, shown), self.inputs.limit
        if limit is None or length <= limit:
            return None
        return f"the prompt has {length} tokens{' with its image' if shown else ''}, the model takes {limit}"

    def generate(
        self, rows: Sequence[Sequence[int]], shown: Sequence[Sequence[ImageFeatures]], **arguments: Any
    ) -> tuple[torch.Tensor, list[PruningTrace]]:
        """Generate from a batch of prompts.

        Args:
            rows: token ids of each prompt, one marker per image (`Inputs.encode`).
            shown: what the vision part made of each prompt's images.
            arguments: of the model's `generate`; "num_beams" is 1 by default.

        Returns:
            New tokens, int64 [B, n], and the prefill's trace of each prompt.

        """
        if self._session is not None:
            self._session.traces.clear()
        batch = self.inputs.collate(rows, shown, self.model)
        given = {"use_cache": True, "pad_token_id": self.inputs.tokenizer.pad_token_id} | arguments
        tokens = self.inputs.new_tokens(self.model.generate(**batch, **given), batch)
        return tokens, self.traces(rows, shown, arguments.get("num_beams", 1))

    def traces(
        self, rows: Sequence[Sequence[int]], shown: Sequence[Sequence[ImageFeatures]], beams: int = 1
    ) -> list[PruningTrace]:
        """The newest prefill's trace of each prompt; beams prefill a prompt several times, alike."""
        if self._session is None:
            sizes = [
                (self.inputs.length(row, images), sum(image.visual for image in images))
                for row, images in zip(rows, shown, strict=True)
            ]
            return [dense_trace(self._shape, self.model.dtype.itemsize, *size) for size in sizes]
        traces = list(self._session.traces)
        if len(traces) != beams * len(rows):
            raise RuntimeError(f"{len(rows)} prompts with {beams} beams left {len(traces)} traces")
        return traces[::beams]


def dense_trace(shape: DecoderShape, itemsize: int, tokens: int, visual: int) -> PruningTrace:
    """Return the dense trace of a prompt with `tokens` tokens, `visual` of them visual."""
    layers = shape.layers
    return PruningTrace(
        shape=shape,
        itemsize=itemsize,
        tokens_per_layer=[tokens] * layers,
        visual_per_layer=[visual] * layers,
        rules=[AttentionRule()] * layers,
        filter_layer=None,
        kept=[],
        influence=[],
        exit_layer=None,
        kv_tokens_per_layer=shape.held(tokens),
        probes=[],
    )
