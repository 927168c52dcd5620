"""The common result of every scorer: a dict that is its own JSON line, and its table for people."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llava.eval.metrics.answer_files import Coverage, format_table

Groups = dict[str, dict[str, dict[str, Any]]]
"""Kind of group → name of group → its figures, "count" among them: {"category": {"ocr": {"accuracy": 50.0, …}}}."""


class Scores(dict[str, Any]):
    """What a scorer returns: a flat dict with the same keys from every scorer.

    - "benchmark": the benchmark's name; "figure": the key of the score that people quote;
    - one key a score: percent, unless the scorer says otherwise; "accuracy" is always among them;
    - "groups": figures by category, type, split, … (`Groups`);
    - the counts of `Coverage.to_dict` ("questions", "answered", "missing", …, "partial"), and
    - "empty": how many of the scored answers hold no text.
    """

    @classmethod
    def of(
        cls,
        benchmark: str,
        figure: str,
        values: Mapping[str, Any],
        groups: Groups,
        coverage: Coverage,
        empty: int,
    ) -> Scores:
        """Put the parts together; `values` holds `figure` and "accuracy", and whatever else the benchmark reports."""
        return cls(benchmark=benchmark, figure=figure, **values, groups=groups, **coverage.to_dict(), empty=empty)

    @property
    def quoted(self) -> float:
        """The score that people quote."""
        return self[self["figure"]]


def accuracy_of(values: Sequence[float]) -> dict[str, Any]:
    """`{"accuracy", "count"}`, in percent, of values in [0, 1] (or bools); of at least one."""
    return {"accuracy": 100 * sum(values) / len(values), "count": len(values)}


def group_accuracies(judged: Iterable[tuple[str, str, float]]) -> Groups:
    """Accuracy by group from (kind, name, value in [0, 1]) triples; kinds as they come, names in order."""
    collected: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for kind, name, value in judged:
        collected[kind][name].append(value)
    return {
        kind: {name: accuracy_of(values) for name, values in sorted(names.items())} for kind, names in collected.items()
    }


def render_scores(scores: Scores, title: str, named: Mapping[str, str] | None = None) -> str:
    """A scorer's table: first the scores in `named` (key → label), then the accuracy of every group.

    Args:
        scores: the result, whose groups hold "accuracy" and "count".
        title: heads the first column.
        named: default: "accuracy" alone.

    """
    rows: list[tuple] = [(label, scores["answered"], scores[key]) for key, label in (named or DEFAULT_ROW).items()]
    for kind, names in scores["groups"].items():
        rows += [(f"{kind}: {name}", entry["count"], entry["accuracy"]) for name, entry in names.items()]
    return format_table((title, "questions", "%"), rows)


DEFAULT_ROW = {"accuracy": "accuracy"}
