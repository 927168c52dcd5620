"""The tables of `llava.eval.report`: Markdown, CSV and the terminal's."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llava.eval.results.formats import beside_dense, bytes_text, count_text

Row = Mapping[str, Any]
HEADINGS = ("FLOPs, visual tokens", "FLOPs, all tokens", "KV", "tokens a layer", "visual kept", "prefill", "decode")


def _groups(rows: Sequence[Row]) -> Iterator[tuple[str, str, list[Row], list[str]]]:
    """Model, benchmark, their rows and the names of all scores that some of them has."""
    for model, benchmark in dict.fromkeys((row["model"], row["benchmark"]) for row in rows):
        members = [row for row in rows if (row["model"], row["benchmark"]) == (model, benchmark)]
        yield model, benchmark, members, list(dict.fromkeys(name for row in members for name in row["scores"]))


def _cells(row: Row, scores: Sequence[str]) -> list[str]:
    marks = "*" if row["notes"] else ""
    return [
        row["run"] + marks,
        *(f"{row['scores'][name]:.1f}" if name in row["scores"] else "–" for name in scores),
        f"{row['questions']:,}",
        beside_dense(count_text(row["flops"]), 1 - row["flops_saved"]),
        beside_dense(count_text(row["flops_all_tokens"]), 1 - row["flops_all_tokens_saved"]),
        beside_dense(bytes_text(row["kv_bytes"]), 1 - row["kv_bytes_saved"]),
        f"{row['tokens_per_layer']:.1f}",
        f"{row['kept_tokens']:.1f}",
        f"{row['prefill_ms']:.1f} ms",
        f"{row['decode_ms']:.1f} ms",
    ]


def _headings(scores: Sequence[str]) -> list[str]:
    return ["run", *(f"{name} (%)" if name == "accuracy" else name for name in scores), "questions", *HEADINGS]


def _notes(rows: Sequence[Row]) -> list[str]:
    return [f"{row['run']}: {'; '.join(row['notes'])}" for row in rows if row["notes"]]


def markdown_text(rows: Sequence[Row], pictures: Mapping[str, Sequence[str]]) -> str:
    """The report: a section a model with its `pictures` (file names), in it a table a benchmark."""
    lines = ["# Report", ""]
    lines += ["Means a question. Percentages in brackets: change against the same prompts dense."]
    lines += ["Milliseconds: each run on its own, so that they compare only on one machine at rest."]
    for model, files in pictures.items():
        lines += ["", f"## {_plain(model)}"]
        for name, benchmark, members, scores in _groups(rows):
            if name == model:
                headings = [*_headings(scores), "config"]
                lines += ["", f"### {_plain(benchmark)}", "", _line(headings)]
                lines += [_line(["---", *["---:"] * (len(headings) - 2), "---"])]
                lines += [_line([*_cells(row, scores), row["config"]]) for row in members]
                lines += [f"\n\\* {_plain(note)}" for note in _notes(members)]
        for file in files:
            lines += ["", f"![{_plain(file.removesuffix('.png'))}]({file})"]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_plain(cell) for cell in cells) + " |"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, also in a table."""
    return "".join("\\" + letter if letter in "\\|*`<[" else letter for letter in text)


def csv_text(rows: Sequence[Row]) -> str:
    """All figures of all runs, a line a run; scores in columns of their own, notes in one."""
    scores = list(dict.fromkeys(name for row in rows for name in row["scores"]))
    flat = [
        {key: value for key, value in row.items() if key not in ("scores", "notes")}
        | {f"score_{name}": row["scores"].get(name, "") for name in scores}
        | {"notes": "; ".join(row["notes"])}
        for row in rows
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def print_rows(rows: Sequence[Row]) -> None:
    """Print the tables for people; the configs are in the files."""
    console = Console(width=max(150, Console().width), highlight=False)
    for model, benchmark, members, scores in _groups(rows):
        table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
        first, *others = _headings(scores)
        table.add_column(first, no_wrap=True)
        for heading in others:
            table.add_column(heading, justify="right")
        for row in members:
            table.add_row(*map(escape, _cells(row, scores)))
        console.print(f"\n[bold]{escape(benchmark)}[/bold], {escape(model)}")
        console.print(table)
        for note in _notes(members):
            console.print(f"* {escape(note)}", soft_wrap=True)
