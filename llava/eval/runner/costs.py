"""Costs of a run's prompts: sums over all answers' metadata, means per question, shares of dense.

All measurements are in the answers, so they survive an interruption. A share of dense is: prefill FLOPs of the decoder
(multiply-adds, `PruningTrace.flops`) or KV bytes, summed over questions, divided by the dense sum of the same prompts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

SUMMED = ("prompt_tokens", "visual_tokens", "generated_tokens", "flops", "dense_flops", "flops_all_tokens")
SUMMED += ("dense_flops_all_tokens", "kv_bytes", "dense_kv_bytes")
STAGES = ("prefill", "decode", "vision")


@dataclass
class Costs:
    """Running sums; `add` takes the `metadata` of one answer, or `PruningTrace.summary()`.

    `sums`: sums of the keys `SUMMED`; `milliseconds`: sums of the `STAGES`; `kept`: visual tokens left by filter layers
    (all of a prompt without one). The histograms count questions per layer, None for no such layer.
    """

    questions: int = 0
    kept: int = 0
    frames: int = 0
    kept_in_frames: int = 0
    sums: Counter = field(default_factory=Counter)
    milliseconds: Counter = field(default_factory=Counter)
    filter_layers: Counter = field(default_factory=Counter)
    exit_layers: Counter = field(default_factory=Counter)
    tokens_per_layer: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, metadata: Iterable[Mapping[str, Any]]) -> Costs:
        """Sum over answers' metadata, or traces' summaries."""
        costs = cls()
        for one in metadata:
            costs.add(one)
        return costs

    def add(self, metadata: Mapping[str, Any]) -> None:
        """Count one answer, whose times may be missing.

        Raises `KeyError` or `TypeError`, and counts nothing, for metadata of another origin.
        """
        metadata = {"generated_tokens": 0, "milliseconds": {}} | dict(metadata)
        counted = {name: metadata[name] + 0 for name in SUMMED}
        spent = {stage: metadata["milliseconds"].get(stage, 0) + 0 for stage in STAGES}
        layers = [tokens + 0 for tokens in metadata["tokens_per_layer"]]
        if self.questions and len(layers) != len(self.tokens_per_layer):
            raise KeyError("tokens_per_layer")
        filter_layer, exit_layer, kept = (metadata[name] for name in ("filter_layer", "exit_layer", "kept_tokens"))
        self.questions += 1
        self.kept += metadata["visual_tokens"] if kept is None else kept
        if "kept_per_frame" in metadata:  # a prompt with a video, pruned
            self.frames += len(metadata["kept_per_frame"])
            self.kept_in_frames += sum(metadata["kept_per_frame"])
        self.sums.update(counted)
        self.milliseconds.update(spent)
        self.filter_layers[filter_layer] += 1
        self.exit_layers[exit_layer] += 1
        self.tokens_per_layer = [
            old + new for old, new in zip(self.tokens_per_layer or [0] * len(layers), layers, strict=True)
        ]

    def mean(self, name: str) -> float:
        """The mean per question of one of `SUMMED`."""
        return self.sums[name] / max(self.questions, 1)

    def share(self, name: str) -> float:
        """The share of dense of "flops" (visual tokens), "flops_all_tokens" or "kv_bytes"; 1 where dense has none."""
        dense = self.sums[f"dense_{name}"]
        return self.sums[name] / dense if dense else 1.0

    @property
    def flops_share(self) -> float:
        """Prefill FLOPs over all tokens as a share of dense; its inverse bounds the speed-up."""
        return self.share("flops_all_tokens")

    @property
    def visual_flops_share(self) -> float:
        """Prefill FLOPs over visual tokens as a share of dense, as papers quote."""
        return self.share("flops")

    @property
    def kv_share(self) -> float:
        """KV bytes after prefill as a share of dense."""
        return self.share("kv_bytes")

    @property
    def mean_kept(self) -> float:
        """Visual tokens kept by the filter layer (all without one), averaged over questions."""
        return self.kept / max(self.questions, 1)

    @property
    def mean_kept_per_frame(self) -> float | None:
        """Visual tokens kept of a frame, averaged over the frames (and images) of prompts with videos; None without."""
        return self.kept_in_frames / self.frames if self.frames else None

    @property
    def mean_tokens_per_layer(self) -> list[float]:
        """Tokens that enter each layer, averaged over questions."""
        return [tokens / max(self.questions, 1) for tokens in self.tokens_per_layer]

    @property
    def mean_tokens(self) -> float:
        """Tokens that enter a layer, averaged over questions and layers."""
        return sum(self.mean_tokens_per_layer) / max(len(self.tokens_per_layer), 1)

    def mean_ms(self, stage: str) -> float:
        """Milliseconds per question of one of `STAGES`, as measured in each batch and divided by its prompts."""
        return self.milliseconds[stage] / max(self.questions, 1)

    def per_question(self) -> dict[str, float]:
        """All figures per question, JSON-ready: means, shares of dense, milliseconds."""
        return {
            **{name: self.mean(name) for name in SUMMED},
            "flops_share": self.flops_share,
            "visual_flops_share": self.visual_flops_share,
            "kv_share": self.kv_share,
            "tokens_per_layer": self.mean_tokens,
            "kept_tokens": self.mean_kept,
            **{f"{stage}_ms": self.mean_ms(stage) for stage in STAGES},
        }

    def to_dict(self) -> dict[str, Any]:
        """The "totals" of a run file, JSON-ready: sums over questions, and means rounded to three digits."""
        mean_layers = [round(tokens, 3) for tokens in self.mean_tokens_per_layer]
        return {
            "questions": self.questions,
            **{name: self.sums[name] for name in SUMMED},
            "flops_saved": round(1 - self.visual_flops_share, 4),
            "milliseconds": {stage: round(self.milliseconds[stage], 3) for stage in STAGES},
            "kept_tokens_mean": round(self.mean_kept, 3),
            "tokens_per_layer_mean": mean_layers,
            "tokens_mean": round(sum(mean_layers) / max(len(mean_layers), 1), 3),
            "filter_layers": _histogram(self.filter_layers),
            "exit_layers": _histogram(self.exit_layers),
            **({"kept_per_frame_mean": round(self.mean_kept_per_frame, 3)} if self.frames else {}),
        }


def _histogram(layers: Counter) -> dict[str, int]:
    ordered = sorted(layers.items(), key=lambda item: (item[0] is None, item[0] or 0))
    return {"none" if layer is None else str(layer): count for layer, count in ordered}
