"""A calibration's report: the claim in words, the trials as a table and a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from llava.eval.results.formats import config_text


def sentence(record: Mapping[str, Any]) -> str:
    """Return the claim in one sentence."""
    claim, target = record["claim"], record["agreement"]
    low, high = (100 * end for end in claim["interval"])
    verdict = "reaches" if claim["agreement"] >= target else "MISSES"
    return (
        f"{claim['equal']} of {claim['questions']} held-out answers equal dense: {100 * claim['agreement']:.2f}% "
        f"(95% interval {low:.2f} to {high:.2f}), which {verdict} the wanted {100 * target:g}%; "
        f"prefill FLOPs {100 * claim['flops']:.1f}% of dense (all tokens), {100 * claim['visual_flops']:.1f}% "
        f"(visual), KV {100 * claim['kv']:.1f}%"
    )


def markdown(record: Mapping[str, Any], trials: Sequence[Mapping[str, Any]]) -> str:
    """Return the report."""
    claim, scale = record["claim"], record["scale"]
    low = 100 * claim["interval"][0]
    lines = [
        f"# Calibration of {record['model']}",
        "",
        f"{sentence(record)}.",
        "",
        f"Clopper–Pearson: whatever the true agreement on such questions is, an interval made like this holds it in at "
        f"least 95 of 100 cases; here nothing above {low:.2f}% is shown. The held-out questions took no part in the "
        "choice and share no image with those that did. Questions on one image are counted as independent.",
        "",
        "```json",
        json.dumps(record["config"], indent=1),
        "```",
        "",
        f"Chosen without labels on {record['asked']} questions, of which {record['allowed']} may differ from dense; "
        f"of {record['samples']} the influence was written down. {len(trials)} configs were asked for real.",
        "",
        "![Trade-off](tradeoff.png)",
        *_beside(record),
        "",
        "## The scale of the L2 threshold",
        "",
        f"‖O‖ where prompts filter: {scale['output'][1]:.3g} (5th to 95th percentile {scale['output'][0]:.3g} to "
        f"{scale['output'][2]:.3g}). {scale['kept']:.1f} tokens on average are kept by ‖c‖ > {scale['absolute']:g}, "
        f"and by ‖c‖ / ‖O‖ > {scale['relative']:g}.",
    ]
    for other in record["transfer"]:
        lines += [
            "",
            f"The threshold of {other['from']} would keep {other['absolute_kept']:.1f} tokens here in the absolute "
            f"scale and {other['relative_kept']:.1f} in the relative one; this model's own keeps "
            f"{other['own_kept']:.1f}. "
            f"Nearer: {other['better']}.",
        ]
    if not record["transfer"]:
        lines += [
            "",
            "Whether the relative scale transfers better is shown by `--compare` with another model's record.",
        ]
    lines += [
        "",
        "## Trials",
        "",
        "| config | asked | as dense | passed | FLOPs (% of dense) |",
        "|---|---|---|---|---|",
    ]
    for row in trials:
        cells = (config_text(row["config"]), row["asked"], row["equal"], row["passed"], f"{100 * row['flops']:.1f}")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", "A config that did not pass was stopped early: its FLOPs are those of the questions asked."]
    return "\n".join(lines) + "\n"


def _beside(record: Mapping[str, Any]) -> list[str]:
    """The calibrated config and others on the same held-out questions; nothing without others."""
    if not record["beside"]:
        return []
    lines = [
        "",
        "## Beside other configs, on the held-out questions",
        "",
        "| config | as dense | 95% interval | FLOPs (% of dense, all tokens) | visual | KV |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in {"calibrated": record["claim"], **record["beside"]}.items():
        low, high = (100 * end for end in one["interval"])
        costs = " | ".join(f"{100 * one[key]:.1f}" for key in ("flops", "visual_flops", "kv"))
        lines.append(f"| {name} | {100 * one['agreement']:.2f}% | {low:.2f}–{high:.2f} | {costs} |")
    return lines


def draw(record: Mapping[str, Any], trials: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw agreement against FLOPs: every trial, and the chosen config on the held-out questions with its interval."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for passed, look in ((True, {"color": "C0", "label": "kept the answers"}),
                         (False, {"color": "0.6", "label": "did not (stopped early)"})):  # fmt: skip
        some = [row for row in trials if row["passed"] is passed]
        axes.plot(
            [100 * row["flops"] for row in some],
            [100 * row["equal"] / row["asked"] for row in some],
            linestyle="",
            marker="o",
            markersize=5,
            alpha=0.7,
            **look,
        )
    claim = record["claim"]
    share, (low, high) = 100 * claim["agreement"], (100 * end for end in claim["interval"])
    axes.errorbar(
        [100 * claim["flops"]], [share], [[share - low], [high - share]], fmt="*", markersize=14, color="C3", capsize=4,
        label="chosen, on held-out questions (95%)",
    )  # fmt: skip
    for name, one in record["beside"].items():
        place = (100 * one["flops"], 100 * one["agreement"])
        axes.plot(*place, marker="D", markersize=6, color="C1", linestyle="")
        axes.annotate(name, place, xytext=(6, -3), textcoords="offset points", fontsize=8)
    axes.axhline(100 * record["agreement"], color="0.4", linestyle="--", linewidth=1, label="wanted")
    axes.set(xlabel="prefill FLOPs, all tokens (% of dense)", ylabel="same answer as dense (%)")
    axes.set_title(f"{record['model']}: {len(trials)} configs on {record['asked']} questions", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False)
    return figure


def write(out: Path, record: Mapping[str, Any], trials: Sequence[Mapping[str, Any]]) -> None:
    """Write `calibration.json`, `report.md` and `tradeoff.png`."""
    (out / "calibration.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (out / "report.md").write_text(markdown(record, trials), encoding="utf-8")
    draw(record, trials).savefig(out / "tradeoff.png", dpi=110)
