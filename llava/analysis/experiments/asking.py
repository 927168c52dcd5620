"""Asking cells: each is a run of the evaluation loader, scored by the benchmark's own scorer and held against dense."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.eval.benchmarks import Benchmark
from llava.eval.metrics.answer_files import parse_answer, read_jsonl
from llava.eval.metrics.intervals import share_interval
from llava.eval.runner.jobs import do, make_job
from llava.eval.runner.ranks import Ranks
from llava.eval.runner.running import Loader
from llava.model.pruning import PruningConfig

from .plan import DENSE, Row

Texts = dict[tuple[str, str], str]


@dataclass(frozen=True)
class Asked:
    """What one config came to: the answers by question, the totals of its run, and the benchmark's score."""

    answers_file: Path
    texts: Texts
    totals: Mapping[str, Any]
    score: float | None
    accuracy: float | None


class Asker:
    """Asks one benchmark under many configs; the model is loaded once, and only where an answer is missing.

    Answers lie in `out/answers/BENCHMARK/NAME.jsonl`, in a folder of their own for each `limit`; the name tells the
    config, so that experiments share the runs that they have in common.
    """

    def __init__(self, benchmark: Benchmark, data_dir: str | Path, out: Path, settings: dict[str, Any], command: str):
        self.benchmark, self.data_dir, self.settings, self.command = benchmark, data_dir, settings, command
        limit = settings.get("limit")
        self.out = out / ("answers" if limit is None else f"answers-first-{limit}")
        self.identity: dict[str, Any] = {}
        self._loader = Loader()
        self._asked: dict[str, Asked] = {}

    def ask(self, config: Mapping[str, Any] | None) -> Asked:
        """Answer the benchmark under a config, None for the untouched model; what is answered already is not asked."""
        name = name_of(config)
        if name not in self._asked:
            settings = self.settings | {"pruning_config": None if config is None else json.dumps(config)}
            job = make_job(self.benchmark, self.data_dir, self.out, name, settings)
            self.identity = {key: value for key, value in job.plan.settings.items() if key != "pruning_config"}
            result = do(job, self.command, self._loader, Ranks())
            scores, answers = result.scores, job.plan.answers_file
            self._asked[name] = Asked(
                answers,
                _texts(answers),
                result.record["totals"],
                None if scores is None else scores.quoted,
                None if scores is None else scores["accuracy"],
            )
        return self._asked[name]

    def measures(self, config: Mapping[str, Any] | None) -> Row:
        """Return the columns that every experiment has: score, agreement with dense, cost.

        Shares are percent of the same prompts dense; `flops_share` and `kv_share` count all tokens,
        `visual_flops_share` visual ones. A mask drops nothing and saves next to nothing.
        """
        asked, dense = self.ask(config), self.ask(None)
        equal = sum(text.strip() == dense.texts[key].strip() for key, text in asked.texts.items())
        count, totals = len(asked.texts), asked.totals
        low, high = share_interval(equal, count)
        return {
            "score": _rounded(asked.score),
            "accuracy": _rounded(asked.accuracy),
            "questions": count,
            "agreement": _rounded(100 * equal / count),
            "agreement_low": _rounded(low),
            "agreement_high": _rounded(high),
            "flops_share": _percent(totals, "flops_all_tokens"),
            "visual_flops_share": _percent(totals, "flops"),
            "kv_share": _percent(totals, "kv_bytes"),
            "tokens_a_layer": totals["tokens_mean"],
            "visual_kept": totals["kept_tokens_mean"],
            "answers": str(asked.answers_file.relative_to(self.out.parent)),
        }

    def fewest_visual_tokens(self) -> int:
        """Return the visual tokens of the prompt with the fewest, of those that have any; `ValueError` for none."""
        rows = read_jsonl(self.ask(None).answers_file, "answers file")
        counts = [row["metadata"]["visual_tokens"] for _, row in rows]
        if not any(counts):
            raise ValueError(f"no prompt of {self.benchmark.title} has visual tokens: there is nothing to mask")
        return min(count for count in counts if count)


def name_of(config: Mapping[str, Any] | None) -> str:
    """Return the name of a config's answers: `dense`, or the method and a digest of all its settings."""
    if config is None:
        return DENSE
    settings = PruningConfig.from_dict(config).to_dict()
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    return f"{settings['method']}-{digest}"


def _texts(path: Path) -> Texts:
    answers = (parse_answer(row, where) for where, row in read_jsonl(path, "answers file"))
    return {(answer.question_id, answer.prompt or ""): answer.text for answer in answers}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _percent(totals: Mapping[str, Any], name: str) -> float:
    dense = totals[f"dense_{name}"]
    return round(100 * totals[name] / dense, 3) if dense else 100.0
