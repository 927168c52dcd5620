"""The end of a run: measure, export into LLaVA's layout, write the model card from the run's results."""

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from llava.cli import ModelOptions
from llava.files import write_json
from llava.model.loaded import LoadedModel
from llava.tiny import accuracy
from llava.tiny.export import export
from llava.tiny.pieces import PieceTokenizer
from llava.train.tiny import evaluation
from llava.train.tiny.card import model_card
from llava.train.tiny.decoder import DENSE, Plan
from llava.train.tiny.evaluation import Answered, Example
from llava.train.tiny.modules import export_states
from llava.train.tiny.run import Trainer

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
    """Draw one small chart per kind with the mean behind it; vertical lines mark the start of a stage."""
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


_FIRST = 2_000
_TURNS = 3
_KEPT = 5


def plans(layers: int) -> dict[str, Plan]:
    """Return the plans that the report compares, for a decoder of `layers` layers.

    `paper`: shallow layers merged and skipped, five tokens after the filter layer, nothing from two thirds on.
    """
    shallow, deep, quarter = layers // 3, layers * 2 // 3, layers // 4
    first, last = frozenset(range(shallow)), frozenset(range(deep, layers))
    return {
        "dense": DENSE,
        "image-blind": Plan(blind=frozenset(range(layers))),
        "first quarter masked": Plan(blind=frozenset(range(quarter))),
        "last quarter masked": Plan(blind=frozenset(range(layers - quarter, layers))),
        "paper": Plan((first | last) - {0}, True, first, shallow, _KEPT),
        "paper, none kept": Plan((first | last) - {0}, True, first, shallow, 0),
    }


def _summary(answered: Sequence[Answered]) -> dict:
    return {"mean": evaluation.mean(answered), "kinds": evaluation.by_kind(answered), "questions": len(answered)}


def measure(trainer: Trainer, scenes: int) -> dict:
    """Return accuracies by plan and kind, on unseen pairs of colour and shape, and by turn of a conversation.

    The scenes are others than those of the learning curve. Shows a bar on standard error.
    """
    examples: list[Example] = evaluation.draw_examples(scenes, _FIRST)
    precision = trainer.settings.autocast
    report: dict = {"scenes": scenes}
    compared = plans(len(trainer.model.layers))
    for name, plan in tqdm(compared.items(), desc=f"{trainer.recipe}: measuring", unit="plan"):
        answered = evaluation.answer_all(trainer.model, examples, plan, precision=precision)
        report[name] = _summary(answered)
        if name == "dense":
            unseen = evaluation.on_unseen_pairs(answered)
            report["unseen pairs"] = _summary(unseen) if unseen else None
    talked = evaluation.answer_all(trainer.model, examples, turns=_TURNS, precision=precision)
    report["turns"] = [evaluation.share(a for a in talked if a.turn == n) for n in range(_TURNS)]
    return report


FOLDERS = {"pruning-aware": "llava-tiny", "plain": "llava-tiny-plain"}


def greedy_accuracy(folder: Path, device: str, scenes: int) -> dict:
    """Load a checkpoint as every command does and let it answer by greedy decoding."""
    loaded = LoadedModel.from_path(ModelOptions(model_path=str(folder), device=device, dtype="float32"))
    return accuracy.summarize(accuracy.measure(loaded, scenes)) | {"scenes": scenes}


def publish(trainer: Trainer, out: Path) -> Path:
    """Write OUT/llava-tiny or OUT/llava-tiny-plain with its card, and OUT/<recipe>.json with what was measured.

    Files of the same names are replaced, others left alone. Returns the folder.
    """
    folder, settings = out / FOLDERS[trainer.recipe], trainer.settings
    architecture = trainer.architecture
    export(*export_states(trainer.model), PieceTokenizer(architecture.context), folder, architecture)
    report = measure(trainer, settings.reported)
    report["greedy"] = greedy_accuracy(folder, settings.device, settings.greedy)
    write_json(out / f"{trainer.recipe}.json", report)
    (folder / "README.md").write_text(model_card(trainer, report), encoding="utf-8")
    return folder
