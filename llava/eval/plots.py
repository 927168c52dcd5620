"""Pictures of runs: tokens by layer, and accuracy against FLOPs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

MARKERS = "osD^vPX*"


def summary_picture(rows: Mapping[str, Mapping[str, Any]], path: Path, title: str) -> None:
    """Draw the suite's summary: mean tokens that enter each layer, and mean accuracy against prefill FLOPs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for number, (name, row) in enumerate(rows.items()):
        tokens = row["tokens_per_layer"]
        style = {"color": f"C{number}", "marker": MARKERS[number % len(MARKERS)], "markersize": 5}
        left.plot(range(len(tokens)), tokens, label=name, linewidth=2, **style)
        accuracy = sum(row["accuracy"].values()) / len(row["accuracy"])
        share = 100 * row["flops_all_tokens"] / row["dense_flops_all_tokens"]
        right.plot([share], [accuracy], linestyle="", label=name, **(style | {"markersize": 9}))
        right.annotate(
            name, (share, accuracy), xytext=(8, (5, -12)[number % 2]), textcoords="offset points", fontsize=9
        )
    left.set(xlabel="decoder layer", ylabel="tokens entering the layer (mean)", title="tokens kept per layer")
    left.set_ylim(bottom=0)
    left.set_xticks(range(len(next(iter(rows.values()))["tokens_per_layer"])))
    left.legend(frameon=False)
    right.set(xlabel="prefill FLOPs, all tokens (% of dense)", ylabel="accuracy, mean of benchmarks (%)")
    right.set(title="accuracy against cost")
    right.margins(0.18)
    low, high = right.get_ylim()
    right.set_ylim(min(low, high - 12), high)  # a tenth of a point is no difference: do not draw it as one
    right.set_xlim(0, 115)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
