"""The common result of every scorer: a dict that is its own JSON line, and its table for people."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llava.eval.metrics.answer_files import Coverage

Groups = dict[str, dict[str, dict[str, Any]]]
"""Kind of group → name of group → its figures, "count" among them: {"category": {"ocr": {"accuracy": 50.0, …}}}."""


class Scores(dict[str, Any]):
    """What a scorer returns: a flat dict with the same keys for every benchmark.

    - "benchmark": its name; "figure": the key of the score that people quote
    - one key per score, in percent unless the benchmark says otherwise; "accuracy" is always among them
    - "groups": figures by category, type, split, … (`Groups`)
    - the counts of `Coverage.to_dict` ("questions", "answered", "missing", …, "partial")
    - "empty": how many of the scored answers hold no text
    """

    @property
    def quoted(self) -> float:
        """The score that people quote."""
        return self[self["figure"]]


def accuracy_of(values: Sequence[float]) -> dict[str, Any]:
    """`{"accuracy", "count"}`, in percent, of at least one value in [0, 1]."""
    return {"accuracy": 100 * sum(values) / len(values), "count": len(values)}


def group_accuracies(judged: Iterable[tuple[str, str, float]]) -> Groups:
    """Accuracy per group from (kind, name, value in [0, 1]); kinds as they come, names sorted."""
    collected: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for kind, name, value in judged:
        collected[kind][name].append(value)
    return {
        kind: {name: accuracy_of(values) for name, values in sorted(names.items())} for kind, names in collected.items()
    }


def render_scores(scores: Scores, title: str, labels: Mapping[str, str]) -> str:
    """A scorer's table: one row for all answers, one per group; below it the scores that are no column.

    Args:
        scores: the result.
        title: heads the first column.
        labels: key of a score → what the table calls it; others are the key with spaces.

    """
    entries = [(f"{kind}: {name}", entry) for kind, names in scores["groups"].items() for name, entry in names.items()]
    columns = list(dict.fromkeys(key for _, entry in entries for key in entry if key != "count")) or ["accuracy"]
    rows = [(labels.get("all", "all"), scores | {"count": scores["answered"]}), *entries]
    cells = [(label, row["count"], *(_cell(row.get(key, "")) for key in columns)) for label, row in rows]

    def name(key: str) -> str:
        return labels.get(key, key.replace("_", " "))

    counts = set(Coverage(0, 0, 0, 0, 0).to_dict()) | {"empty"}
    others = {key: value for key, value in scores.items() if key not in counts | {"benchmark", "figure", "groups"}}
    more = [f"{name(key)}: {_cell(value)}" for key, value in others.items() if key not in columns and value != []]
    return "\n".join([format_table((title, "questions", *map(name, columns)), cells), *more])


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def format_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A plain text table: first column left aligned, the others right aligned."""
    cells = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "  ".join([row[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)]).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
