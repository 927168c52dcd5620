"""A report over runs: labels, figures, and the files with tables and plots."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from llava.cli import UserError
from llava.eval.metrics.intervals import Clusters
from llava.eval.results.formats import bytes_text, config_text, count_text
from llava.eval.results.judging import judge_of
from llava.eval.results.plots import Drawn, Panels, PlotOptions, accuracy_plot, decisions_plot, tokens_plot
from llava.eval.results.table import Column, Table, csv_text, plain
from llava.eval.runner.costs import STAGES
from llava.eval.runner.run import Run

Row = dict[str, Any]
SHARES = ("flops", "flops_all_tokens", "kv_bytes")


@dataclass(frozen=True)
class Labelled:
    """A run with its label in a report, unique among the runs of one model and benchmark."""

    run: Run
    model: str
    benchmark: str
    name: str


def make_report(
    runs: Sequence[Run],
    out: Path,
    data_dir: str | Path | None = None,
    plots: PlotOptions | None = None,
    left_out: Sequence[str] = (),
    progress: bool = False,
) -> dict[str, Any]:
    """Write the report of `runs` to the folder `out`.

    Args:
        runs: the runs; those without any answer, or without traces, are left out.
        out: folder for report.md, report.csv and the plots; what it has of them is replaced.
        data_dir: folder of the benchmarks, where references are looked for; default: beside each run's question file.
        plots: format and resolution of the plots.
        left_out: lines about runs that could not be read, for the report.
        progress: show a progress bar.

    Returns:
        "files" written, "rows" (one dict per run, means per question) and "left_out" (one line per run).

    Raises:
        UserError: no run has an answer and traces.

    """
    left_out = [*left_out, *(f"{run.answers_file} has no answer yet" for run in runs if not run.answers)]
    rows: list[Row] = []
    panels: dict[str, dict[str, list[Drawn]]] = {}
    first: dict[tuple[str, str], Labelled] = {}
    for one in tqdm(label_runs([run for run in runs if run.answers]), unit="run", disable=not progress):
        try:
            row = make_row(one, data_dir)
        except UserError as error:
            left_out.append(str(error))
            continue
        other = first.setdefault((one.model, one.benchmark), one)
        if one.run.answers.keys() != other.run.answers.keys():
            row["notes"].append(f"other questions than {other.name}: their scores do not compare")
        rows.append(row)
        title = f"{row['benchmark']} ({row['questions']} questions)"
        panels.setdefault(row["model"], {}).setdefault(title, []).append(drawn(one.run, row))
    if not rows:
        raise UserError("no run to report: " + "; ".join(left_out))
    out.mkdir(parents=True, exist_ok=True)
    pictures = {model: _draw(found, out, model, plots or PlotOptions()) for model, found in panels.items()}
    (out / "report.md").write_text(_markdown(rows, pictures, left_out), encoding="utf-8")
    (out / "report.csv").write_text(_csv(rows), encoding="utf-8")
    files = [out / "report.md", out / "report.csv", *(file for files in pictures.values() for file in files)]
    return {"files": [str(file) for file in files], "rows": rows, "left_out": left_out}


def _benchmark(run: Run) -> str:
    """The name that the run file gives to questions of the user's own, else the question file's folder."""
    given = run.record.get("benchmark")
    own = given.get("name", "questions") if isinstance(given, Mapping) else None
    return own or run.question_file.resolve().parent.name


def label_runs(runs: Sequence[Run]) -> list[Labelled]:
    """Name the runs, in groups of one model and benchmark, within them dense runs first and then by name.

    The benchmark is the question file's folder or, of questions of one's own, their name; numbered where another
    question file has it too; the
    model's hash or revision is shown only where two models have one name; a run's name is its answers file's, with as
    many of its folders as distinguish it from others.
    """
    models = _distinct([run.model for run in runs], [re.split("[:@]", run.model)[0] for run in runs])
    files = [(_benchmark(run), run.settings.get("question_file")) for run in runs]
    by_name: dict[str, list[Any]] = {}
    for folder, file in dict.fromkeys(files):
        by_name.setdefault(folder, []).append(file)
    groups: dict[tuple[str, str], list[Run]] = {}
    for run, model, (folder, file) in zip(runs, models, files, strict=True):
        number = by_name[folder].index(file) + 1
        benchmark = folder if number == 1 else f"{folder} ({number})"
        groups.setdefault((model, benchmark), []).append(run)
    return [
        Labelled(run, model, benchmark, name)
        for (model, benchmark), members in groups.items()
        for run, name in sorted(
            zip(members, _names(members), strict=True), key=lambda pair: (pair[0].config is not None, pair[1])
        )
    ]


def _distinct(whole: Sequence[str], short: Sequence[str]) -> list[str]:
    meanings: dict[str, set[str]] = {}
    for long, name in zip(whole, short, strict=True):
        meanings.setdefault(name, set()).add(long)
    return [name if len(meanings[name]) == 1 else long for long, name in zip(whole, short, strict=True)]


def _names(runs: Sequence[Run]) -> list[str]:
    names = [run.name for run in runs]
    folders = [list(run.answers_file.resolve().parent.parts) for run in runs]
    while any(twice := [names.count(name) > 1 for name in names]):
        above = [parts.pop() for parts in folders]
        names = [f"{up}/{name}" if again else name for up, name, again in zip(above, names, twice, strict=True)]
    return names


def make_row(one: Labelled, data_dir: str | Path | None = None) -> Row:
    """The figures of one run, means per question; raises `UserError` for an answer without trace."""
    run, costs = one.run, one.run.costs
    means = costs.per_question()
    notes = [f"unfinished: {run.problem}"] if run.problem else []
    notes += [run.left_out] if run.left_out else []
    scores, problem = _scores(run, data_dir)
    notes += [f"no scores: {problem}"] if problem else []
    return {
        "model": one.model,
        "benchmark": one.benchmark,
        "run": one.name,
        "config": config_text(run.config),
        "dense": run.config is None,
        "questions": costs.questions,
        "scores": scores,
        **{key: means[key] for key in SHARES},
        **{f"{key}_saved": 1 - costs.share(key) for key in SHARES},
        **{key: means[key] for key in ("prompt_tokens", "tokens_per_layer", "kept_tokens", "generated_tokens")},
        **({"kept_per_frame": costs.mean_kept_per_frame} if costs.frames else {}),
        **{f"{stage}_ms": means[f"{stage}_ms"] for stage in STAGES},
        "device": run.record.get("device_name") or run.record.get("device"),
        "batch_size": run.record.get("batch_size"),
        "dtype": run.settings.get("dtype"),
        "answers": str(run.answers_file),
        "notes": notes,
    }


def _scores(run: Run, data_dir: str | Path | None) -> tuple[dict[str, float], str | None]:
    """The quoted scores: of the answers, or else those in the run file; or none, and why."""
    try:
        judge = judge_of(run, data_dir=data_dir)
        scores = judge.scores(run)
    except ValueError as error:
        if run.scores is not None:
            return {name: run.scores[name] for name in dict.fromkeys([run.scores["figure"], "accuracy"])}, None
        return {}, f"{error} (--data-dir names the folder of the benchmarks)"
    drawn = Clusters.by_image(list(scores), images=None)
    return {name: drawn.terms(terms).value for name, terms in judge.benchmark.quoted_terms(scores).items()}, None


def drawn(run: Run, row: Row) -> Drawn:
    """What the plots show of a run."""

    def column(key: str, otherwise: str | int) -> np.ndarray:
        found = ((trace, trace[key]) for trace in run.traces.values())
        return np.array([trace.get(otherwise, otherwise) if value is None else value for trace, value in found])

    return Drawn(
        name=row["run"],
        dense=row["dense"],
        flops_share=100 * run.costs.flops_share,
        accuracy=row["scores"].get("accuracy"),
        tokens=column("tokens_per_layer", -1),
        filter_layers=column("filter_layer", -1),
        exit_layers=column("exit_layer", -1),
        kept=column("kept_tokens", "visual_tokens"),
    )


def _draw(panels: Panels, out: Path, model: str, plots: PlotOptions) -> list[Path]:
    """Draw the model's plots that have data; return their files."""
    slug = re.sub(r"[^\w.-]+", "-", model).strip("-")
    draw = {"accuracy": accuracy_plot, "tokens": tokens_plot, "decisions": decisions_plot}
    files = [make(panels, out / f"{slug}-{what}", model, plots) for what, make in draw.items()]
    return [file for file in files if file is not None]


def tables(rows: Sequence[Row], configs: bool) -> Iterator[tuple[str, str, Table, list[str]]]:
    """Yield model, title, table and notes of each benchmark; a run with notes is marked with a star."""
    for model, benchmark in dict.fromkeys((row["model"], row["benchmark"]) for row in rows):
        members = [row for row in rows if (row["model"], row["benchmark"]) == (model, benchmark)]
        scores = dict.fromkeys(name for row in members for name in row["scores"])
        videos = any("kept_per_frame" in row for row in members)
        columns = [
            Column("name", "run"),
            *(Column(f"score_{name}", f"{name} (%)" if name == "accuracy" else name, ".1f") for name in scores),
            *([Column("questions", "asked", ",")] if len({row["questions"] for row in members}) > 1 else []),
            Column("flops", "FLOPs visual", count_text, "flops_share"),
            Column("flops_all_tokens", "FLOPs all", count_text, "flops_all_tokens_share"),
            Column("kv_bytes", "KV", bytes_text, "kv_bytes_share"),
            Column("tokens_per_layer", "tokens per layer", ".1f"),
            Column("kept_tokens", "kept", ".1f"),
            *([Column("kept_per_frame", "kept per frame", ".1f")] if videos else []),
            *(Column(f"{stage}_ms", f"{stage} ms", ".1f") for stage in ("prefill", "decode")),
            *([Column("config", left=True)] if configs else []),
        ]
        shown = (
            row
            | {"name": row["run"] + ("*" if row["notes"] else "")}
            | {f"score_{name}": value for name, value in row["scores"].items()}
            | {f"{key}_share": 1 - row[f"{key}_saved"] for key in SHARES}
            for row in members
        )
        noted: dict[str, list[str]] = {}
        for row in members:
            for note in row["notes"]:
                noted.setdefault(note, []).append(row["run"])
        notes = [f"{', '.join(names)}: {note}" for note, names in noted.items()]
        questions = max(row["questions"] for row in members)
        yield model, f"{benchmark} ({questions:,} questions)", Table(columns, shown), notes


def _markdown(rows: Sequence[Row], pictures: Mapping[str, Sequence[Path]], left_out: Sequence[str]) -> str:
    """The report: a section per model with its plots, in it a table per benchmark."""
    lines = ["# Report", ""]
    lines += ["Means per question: FLOPs of visual and of all tokens, KV bytes after prefill, with their change from"]
    lines += ["the same prompts dense, and visual tokens kept by the filter layer. Milliseconds are those of each run"]
    lines += ["on its own, so that they compare only on one machine at rest."]
    for model, files in pictures.items():
        lines += ["", f"## {plain(model)}"]
        for name, title, table, notes in tables(rows, configs=True):
            if name == model:
                lines += ["", f"### {plain(title)}", "", table.markdown()]
                lines += [f"\n\\* {plain(note)}" for note in notes]
        for file in files:
            lines += ["", f"![{plain(file.stem)}]({file.name})"]
    if left_out:
        lines += ["", "## Left out", "", *(f"- {plain(line)}" for line in left_out)]
    return "\n".join(lines) + "\n"


def _csv(rows: Sequence[Row]) -> str:
    """All figures of all runs, one line per run; scores in columns of their own, notes in the last."""
    scores = dict.fromkeys(name for row in rows for name in row["scores"])
    return csv_text(
        [
            {key: value for key, value in row.items() if key not in ("scores", "notes")}
            | {f"score_{name}": row["scores"].get(name, "") for name in scores}
            | {"notes": "; ".join(row["notes"])}
            for row in rows
        ]
    )
