"""`PruningTrace`: the engine's decisions for one prompt, the source of FLOPs, reports and plots."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from .flops import DecoderShape
from .grid import Frame
from .method import AttentionRule


@dataclass(frozen=True)
class ProbeRecord:
    """One measurement: the layer, and the extreme values over the visual tokens that the layer ran with."""

    layer: int
    min_cosine: float
    max_l2: float


@dataclass(frozen=True)
class PruningTrace:
    """The decisions of one prompt's prefill. Layers count from 0; positions count the prompt's tokens from 0.

    tokens_per_layer, visual_per_layer:
        all tokens, and the visual ones among them, that enter each layer
    rules:
        how each layer attended
    filter_layer:
        the layer after which only `kept` remained, or None
    kept, influence:
        positions of the chosen visual tokens, and their L2 influence where the filter layer was measured
    exit_layer:
        first layer after the last that reads visual tokens, or None (also for a prompt that had none)
    kv_tokens_per_layer:
        tokens whose keys and values each layer holds after the prefill
    probes:
        every measurement of influence, in order
    cuts:
        every choice that was made: after which layer (−1: before the decoder), and the positions of the visual tokens
        that remained
    frozen_per_layer:
        visual tokens that do not run each layer, but whose keys and values it makes; empty where no layer has any
    given:
        tokens of the prompt and the visual ones among them, before anything was pruned; None: as in layer 0
    frames:
        images and frames in order (`grid.Frame`), of a prompt with a video of several frames and where the method read
        them
    """

    shape: DecoderShape
    itemsize: int
    tokens_per_layer: list[int]
    visual_per_layer: list[int]
    rules: list[AttentionRule]
    filter_layer: int | None
    kept: list[int]
    influence: list[float]
    exit_layer: int | None
    kv_tokens_per_layer: list[int]
    probes: list[ProbeRecord]
    cuts: list[tuple[int, list[int]]] = dataclasses.field(default_factory=list)
    given: tuple[int, int] | None = None
    frozen_per_layer: list[int] = dataclasses.field(default_factory=list)
    frames: list[Frame] = dataclasses.field(default_factory=list)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt as it was given, visual ones included."""
        return self.tokens_per_layer[0] if self.given is None else self.given[0]

    @property
    def visual_tokens(self) -> int:
        """Visual tokens of the prompt as it was given."""
        return self.visual_per_layer[0] if self.given is None else self.given[1]

    @property
    def frozen(self) -> list[int]:
        """`frozen_per_layer`, zeros where it is empty."""
        return self.frozen_per_layer or [0] * len(self.tokens_per_layer)

    def remaining(self, layer: int | None = None) -> list[int] | None:
        """Return the positions of the visual tokens that enter `layer`; None where all given ones do.

        Without a layer: of those that the last choice left, an exit from vision aside.
        """
        made = [positions for after, positions in self.cuts if layer is None or after < layer]
        if layer is None:
            made = [positions for positions in made if positions]
        return made[-1] if made else None

    def kept_per_frame(self, layer: int | None = None) -> list[int]:
        """Return how many visual tokens of each of `frames` are among those of `remaining(layer)`."""
        left = self.remaining(layer)
        if left is None:
            return [frame.tokens for frame in self.frames]
        return [sum(frame.start <= place < frame.start + frame.tokens for place in left) for frame in self.frames]

    def flops(self, count: Literal["visual", "all"] = "visual") -> float:
        """Multiply-adds of the prefill as it ran.

        `visual` is the field's convention (visual tokens only, see `flops`); `all` counts every token.
        """
        total = 0.0
        layers = (self.tokens_per_layer, self.visual_per_layer, self.frozen, self.rules)
        for layer, (tokens, visual, frozen, rule) in enumerate(zip(*layers, strict=True)):
            text = tokens - visual
            skipped = rule.text == rule.visual == "remove"
            total += self.shape.kv_flops(frozen, layer)
            if count == "visual":
                total += self.shape.layer_flops(visual, 0 if skipped else None, layer)
            else:
                pairs = (text if skipped else tokens) * (tokens + frozen)
                total += self.shape.layer_flops(tokens, pairs, layer)
        return total

    def dense_flops(self, count: Literal["visual", "all"] = "visual") -> float:
        """Multiply-adds of the same prompt with nothing pruned."""
        tokens = self.visual_tokens if count == "visual" else self.prompt_tokens
        return self.shape.layers * self.shape.layer_flops(tokens)

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values held after the prefill, padding of the batch not counted."""
        return self.shape.kv_bytes(self.kv_tokens_per_layer, self.itemsize)

    @property
    def dense_kv_bytes(self) -> int:
        """Bytes of keys and values of the same prompt with nothing pruned."""
        return self.shape.kv_bytes(self.shape.held(self.prompt_tokens), self.itemsize)

    def summary(self) -> dict[str, Any]:
        """Return the trace in a dozen numbers, JSON-ready: what an answers file keeps of every question.

        `cuts` are there where filter and exit layer do not tell the whole plan; tokens per frame, as given and as the
        last choice left them, where there are `frames`.
        """
        plan = [] if self.filter_layer is None else [(self.filter_layer, self.kept)]
        if self.exit_layer is not None and (self.kept or self.filter_layer is None):
            plan.append((self.exit_layer - 1, []))
        more = {} if self.cuts in ([], plan) else {"cuts": self.cuts}
        if self.frames:
            counts = [frame.tokens for frame in self.frames]
            more |= {"frame_tokens": counts, "kept_per_frame": self.kept_per_frame()}
        return {
            "prompt_tokens": self.prompt_tokens,
            "visual_tokens": self.visual_tokens,
            "filter_layer": self.filter_layer,
            "kept_tokens": None if self.filter_layer is None else len(self.kept),
            "kept": self.kept,
            "exit_layer": self.exit_layer,
            "mean_tokens_per_layer": round(sum(self.tokens_per_layer) / len(self.tokens_per_layer), 2),
            "tokens_per_layer": self.tokens_per_layer,
            "flops": self.flops(),
            "dense_flops": self.dense_flops(),
            "flops_all_tokens": self.flops("all"),
            "dense_flops_all_tokens": self.dense_flops("all"),
            "kv_bytes": self.kv_bytes,
            "dense_kv_bytes": self.dense_kv_bytes,
            **more,
        }

    def __str__(self) -> str:
        """Tokens per layer, FLOPs and KV together, since each is called "64 tokens" somewhere."""
        layers, dense = len(self.tokens_per_layer), self.dense_flops()
        flops = "" if not dense else f" · FLOPs of visual tokens {self.flops() / 1e9:.4g}G, {self.flops() / dense:.1%}"
        return (
            f"{self.visual_tokens} visual tokens, {sum(self.visual_per_layer) / layers:.1f} per layer "
            f"({sum(self.tokens_per_layer) / layers:.1f} with text){flops} of dense, of all tokens "
            f"{self.flops('all') / self.dense_flops('all'):.1%} · KV {self.kv_bytes / 1e6:.4g} MB, "
            f"{self.kv_bytes / self.dense_kv_bytes:.1%} of dense"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything, JSON-ready, with the totals beside the decisions."""
        return dataclasses.asdict(self) | self.summary()
