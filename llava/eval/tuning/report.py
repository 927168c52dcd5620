"""A calibration's report: held-out agreement in words, trials as a table and a plot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.eval.results.formats import config_text
from llava.eval.results.plots import PlotOptions, new_figure, tidy
from llava.eval.results.table import Column, Table
from llava.files import write_json


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


def markdown(record: Mapping[str, Any], trials: Sequence[Mapping[str, Any]], plot: str) -> str:
    """Return the report."""
    scale, low = record["scale"], 100 * record["claim"]["interval"][0]
    parts = [
        f"# Calibration of {record['model']}",
        f"{sentence(record)}.",
        f"Clopper–Pearson: whatever the true agreement on such questions is, 95 of 100 such intervals or more hold it; "
        f"here nothing above {low:.2f}% is shown. The held-out questions took no part in the choice and share "
        "no image with those that did. Questions on one image are counted as independent.",
        f"```json\n{json.dumps(record['config'], indent=1)}\n```",
        f"Chosen without labels on {record['asked']} questions, of which {record['allowed']} may differ from dense; "
        f"of {record['samples']} the influence was recorded. {len(trials)} configs were asked for real.",
        f"![Trade-off]({plot})",
        *_beside(record),
        "## The scale of the L2 threshold",
        f"‖O‖ where prompts filter: {scale['output'][1]:.3g} (5th to 95th percentile {scale['output'][0]:.3g} to "
        f"{scale['output'][2]:.3g}). {scale['kept']:.1f} tokens on average are kept by ‖c‖ > {scale['absolute']:g}, "
        f"and by ‖c‖ / ‖O‖ > {scale['relative']:g}.",
    ]
    for other in record["transfer"]:
        parts.append(
            f"The threshold of {other['from']} would keep {other['absolute_kept']:.1f} tokens here in the absolute "
            f"scale and {other['relative_kept']:.1f} in the relative one; this model's own keeps "
            f"{other['own_kept']:.1f}. Closer: {other['better']}."
        )
    if not record["transfer"]:
        parts.append("Whether the relative scale transfers better is shown by `--compare` with another model's record.")
    columns = ["config", "asked", Column("equal", "as dense"), "passed", Column("flops", "FLOPs (% of dense)", ".1f")]
    rows = [row | {"config": config_text(row["config"]), "flops": 100 * row["flops"]} for row in trials]
    parts += [
        "## Trials",
        Table(columns, rows).markdown(),
        "A config that did not pass was stopped early: its FLOPs are those of the questions asked.",
    ]
    return "\n\n".join(parts) + "\n"


def _beside(record: Mapping[str, Any]) -> list[str]:
    """The calibrated config and others on the same held-out questions; nothing without others."""
    if not record["beside"]:
        return []
    costs = {"flops": "FLOPs (% of dense, all tokens)", "visual_flops": "visual", "kv": "KV"}
    table = Table(
        ["config", Column("agreement", "as dense"), Column("interval", "95% interval")]
        + [Column(key, heading, ".1f") for key, heading in costs.items()]
    )
    for name, one in {"calibrated": record["claim"], **record["beside"]}.items():
        low, high = (100 * end for end in one["interval"])
        shown = {"agreement": f"{100 * one['agreement']:.2f}%", "interval": f"{low:.2f}–{high:.2f}"}
        table.add(config=name, **shown, **{key: 100 * one[key] for key in costs})
    return ["## Beside other configs, on the held-out questions", table.markdown()]


def draw(record: Mapping[str, Any], trials: Sequence[Mapping[str, Any]]) -> Any:
    """Draw agreement against FLOPs: every trial, and the chosen config on the held-out questions with its interval."""
    figure, [[axes]] = new_figure((7, 4.2), 1, 1)
    for passed, color, label in ((True, "C0", "kept the answers"), (False, "0.6", "did not (stopped early)")):
        some = [row for row in trials if row["passed"] is passed]
        shares = [100 * row["flops"] for row in some], [100 * row["equal"] / row["asked"] for row in some]
        axes.plot(*shares, color=color, label=label, linestyle="", marker="o", markersize=5, alpha=0.7)
    claim = record["claim"]
    share, (low, high) = 100 * claim["agreement"], (100 * end for end in claim["interval"])
    chosen = {"fmt": "*", "markersize": 14, "color": "C3", "capsize": 4, "label": "chosen, on held-out questions (95%)"}
    axes.errorbar([100 * claim["flops"]], [share], [[share - low], [high - share]], **chosen)
    for name, one in record["beside"].items():
        place = (100 * one["flops"], 100 * one["agreement"])
        axes.plot(*place, marker="D", markersize=6, color="C1", linestyle="")
        axes.annotate(name, place, xytext=(6, -3), textcoords="offset points", fontsize=8)
    axes.axhline(100 * record["agreement"], color="0.4", linestyle="--", linewidth=1, label="wanted")
    axes.set(xlabel="prefill FLOPs, all tokens (% of dense)", ylabel="same answer as dense (%)")
    axes.set_title(f"{record['model']}: {len(trials)} configs on {record['asked']} questions", fontsize=10)
    tidy(axes)
    axes.legend(fontsize=8, frameon=False)
    return figure


def write(
    out: Path, record: Mapping[str, Any], trials: Sequence[Mapping[str, Any]], plots: PlotOptions | None = None
) -> None:
    """Write `calibration.json`, `report.md` and the trade-off plot."""
    plot = (plots or PlotOptions()).save(draw(record, trials), out / "tradeoff")
    write_json(out / "calibration.json", record, indent=1)
    (out / "report.md").write_text(markdown(record, trials, plot.name), encoding="utf-8")
