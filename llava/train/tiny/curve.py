"""The learning curve as a table and as a picture: held-out accuracy of every kind of question by step."""

from collections.abc import Sequence
from pathlib import Path

Row = dict[str, float | str]
_ABOUT = ("step", "stage", "loss", "mean")
_COLUMNS = 4


def write_curve(path: Path, rows: Sequence[Row]) -> None:
    """Write PATH.csv and PATH.png; nothing before the first evaluation."""
    if not rows:
        return
    lines = [",".join(rows[0])]
    lines += [",".join(v if isinstance(v, str) else f"{v:.6g}" for v in row.values()) for row in rows]
    path.with_name(path.name + ".csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    draw_curve(path.with_name(path.name + ".png"), rows)


def draw_curve(path: Path, rows: Sequence[Row]) -> None:
    """Draw one small chart a kind with the mean behind it; vertical lines where a stage begins."""
    from matplotlib.figure import Figure

    kinds = [key for key in rows[0] if key not in _ABOUT]
    height = -(-len(kinds) // _COLUMNS)
    figure = Figure(figsize=(3 * _COLUMNS, 1.7 * height), layout="constrained")
    charts = figure.subplots(height, _COLUMNS, sharex=True, sharey=True, squeeze=False).flatten()
    steps = [row["step"] for row in rows]
    begins = [b["step"] for a, b in zip(rows, rows[1:], strict=False) if a["stage"] != b["stage"]]
    for chart, kind in zip(charts, kinds, strict=False):
        chart.plot(steps, [row["mean"] for row in rows], color="0.75", label="mean of all kinds")
        chart.plot(steps, [row[kind] for row in rows], color="C0")
        for step in begins:
            chart.axvline(step, color="0.9", zorder=0)
        chart.set_title(f"{kind} {rows[-1][kind]:.2f}", fontsize=9)
        chart.set_ylim(0, 1.02)
    for chart in charts[len(kinds) :]:
        chart.set_axis_off()
    figure.supxlabel(f"steps (grey: mean of all kinds, {rows[-1]['mean']:.3f} at the end)", fontsize=9)
    figure.savefig(path, dpi=110)
