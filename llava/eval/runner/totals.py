"""Sums over the metadata of all answers of a run; what was measured survives an interruption because it is in there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SUMMED = ("prompt_tokens", "visual_tokens", "generated_tokens", "flops", "dense_flops", "flops_all_tokens")
SUMMED += ("dense_flops_all_tokens", "kv_bytes", "dense_kv_bytes")
STAGES = ("prefill", "decode", "vision")


@dataclass
class Totals:
    """Running sums; `add` takes the `metadata` of one answer as `llava.eval.runner.answering` writes it."""

    questions: int = 0
    kept: int = 0
    sums: Counter = field(default_factory=Counter)
    milliseconds: Counter = field(default_factory=Counter)
    filter_layers: Counter = field(default_factory=Counter)
    exit_layers: Counter = field(default_factory=Counter)
    tokens_per_layer: list[int] = field(default_factory=list)

    def add(self, metadata: Mapping[str, Any]) -> None:
        """Count one answer, whose times may be missing.

        Raises `KeyError` or `TypeError`, and counts nothing, for metadata of another origin.
        """
        counted = {name: metadata[name] + 0 for name in SUMMED}
        spent = {stage: metadata.get("milliseconds", {}).get(stage, 0) + 0 for stage in STAGES}
        layers = [tokens + 0 for tokens in metadata["tokens_per_layer"]]
        if self.questions and len(layers) != len(self.tokens_per_layer):
            raise KeyError("tokens_per_layer")
        filter_layer, exit_layer, kept = (metadata[name] for name in ("filter_layer", "exit_layer", "kept_tokens"))
        self.questions += 1
        self.kept += metadata["visual_tokens"] if kept is None else kept
        self.sums.update(counted)
        self.milliseconds.update(spent)
        self.filter_layers[filter_layer] += 1
        self.exit_layers[exit_layer] += 1
        self.tokens_per_layer = [
            old + new for old, new in zip(self.tokens_per_layer or [0] * len(layers), layers, strict=True)
        ]

    @property
    def mean_kept(self) -> float:
        """Visual tokens that a filter layer left, averaged over questions; all of them where there was none."""
        return self.kept / self.questions if self.questions else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The totals, JSON-ready.

        FLOPs are multiply-adds of the decoder's prefill (`PruningTrace.flops`: visual tokens, and all tokens), summed
        over questions, as KV bytes are; milliseconds are sums too; layer histograms count questions, "none" included.
        """
        count = max(self.questions, 1)
        flops, dense = self.sums["flops"], self.sums["dense_flops"]
        mean_layers = [round(tokens / count, 3) for tokens in self.tokens_per_layer]
        return {
            "questions": self.questions,
            **{name: self.sums[name] for name in SUMMED},
            "flops_saved": round(1 - flops / dense, 4) if dense else 0.0,
            "milliseconds": {stage: round(self.milliseconds[stage], 3) for stage in STAGES},
            "kept_tokens_mean": round(self.mean_kept, 3),
            "tokens_per_layer_mean": mean_layers,
            "tokens_mean": round(sum(mean_layers) / max(len(mean_layers), 1), 3),
            "filter_layers": _histogram(self.filter_layers),
            "exit_layers": _histogram(self.exit_layers),
        }


def _histogram(layers: Counter) -> dict[str, int]:
    ordered = sorted(layers.items(), key=lambda item: (item[0] is None, item[0] or 0))
    return {"none" if layer is None else str(layer): count for layer, count in ordered}
