"""The benchmarks, one file each: `BENCHMARKS` has all by name, `question_set` makes one of a user's own questions."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from llava.cli import UserError
from llava.eval.benchmarks.base import Benchmark, References
from llava.eval.benchmarks.gqa import GQA
from llava.eval.benchmarks.mmbench import MMBENCH
from llava.eval.benchmarks.mme import MME
from llava.eval.benchmarks.mmstar import MMSTAR
from llava.eval.benchmarks.mmvet import MMVET
from llava.eval.benchmarks.pope import POPE
from llava.eval.benchmarks.question_sets import load_benchmark, question_set
from llava.eval.benchmarks.scienceqa import SCIENCEQA
from llava.eval.benchmarks.textvqa import TEXTVQA
from llava.eval.benchmarks.vizwiz import VIZWIZ, VIZWIZ_VAL
from llava.eval.benchmarks.vqav2 import VQAV2, VQAV2_VAL

__all__ = ["BENCHMARKS", "Benchmark", "References", "benchmark_of", "find_benchmark", "find_benchmarks", "question_set"]


def _mini(real: Benchmark) -> Benchmark:
    """The same formats with the small model's questions, written by llava.tiny."""
    mini = real.in_folder(f"{real.name}_mini")
    source = dict.fromkeys(("questions_from", "images_from", "references_from"), "python -m llava.tiny.benchmarks")
    return replace(mini, title=f"{real.title} mini", conversions=(), **source)


_REAL = (GQA, MME, TEXTVQA, POPE, SCIENCEQA, MMBENCH, MMSTAR, MMVET, VQAV2, VQAV2_VAL, VIZWIZ, VIZWIZ_VAL)
_MINI = (_mini(GQA), replace(_mini(MME), unit="of 1000"), _mini(TEXTVQA))
BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in (*_REAL, *_MINI)}


def find_benchmark(spec: str | Mapping[str, Any]) -> Benchmark:
    """The benchmark of a name ("gqa"), a folder ("MME", "mm-vet", "gqa_tune"), or a file ("my/file.py:MY_BENCHMARK").

    A folder named after a benchmark (`gqa_tune`) has its file formats, with any number of questions. A mapping has the
    arguments of `question_set`, so that `find_benchmark(benchmark.spec)` returns the same benchmark.

    Raises `UserError`: no benchmark has the name; the one that is meant is suggested.
    """
    if not isinstance(spec, str):
        return question_set(**spec)
    if ":" in spec:
        return load_benchmark(spec)
    wanted = spec.lower()
    for benchmark in BENCHMARKS.values():
        if wanted in (benchmark.name, benchmark.folder.lower()):
            return benchmark
    for kind in sorted(BENCHMARKS, key=len, reverse=True):
        if wanted.startswith(f"{kind}_") and Path(spec).name == spec:
            return replace(BENCHMARKS[kind].in_folder(spec), hint=_suggestion(wanted, cutoff=0.9))
    hint = _suggestion(wanted)
    raise UserError(f"benchmark {spec!r} is not known{hint}; known are {', '.join(BENCHMARKS)}, or path/file.py:NAME")


def _suggestion(wanted: str, cutoff: float = 0.6) -> str:
    near = difflib.get_close_matches(wanted, BENCHMARKS, n=1, cutoff=cutoff)
    return f" (did you mean {near[0]}?)" if near else ""


def find_benchmarks(names: str) -> list[Benchmark]:
    """The benchmarks of a list with commas, each once, in its order; `UserError` as in `find_benchmark`."""
    found = [find_benchmark(name.strip()) for name in names.split(",") if name.strip()]
    if not found:
        raise UserError(f"no benchmark named; known are {', '.join(BENCHMARKS)}")
    return list(dict.fromkeys(found))


def benchmark_of(question_file: str | Path, kind: str | None = None) -> Benchmark:
    """The benchmark, with references, whose format a question file has, in that file's folder.

    It is found by the folder, whose name begins with the benchmark's (`gqa`, `gqa_mini`, `MME`), or by `kind`, a
    benchmark's name or file.

    Raises `UserError`: the folder is none of a benchmark that can be scored.
    """
    file = Path(question_file).expanduser().resolve()
    scored = [benchmark for benchmark in BENCHMARKS.values() if benchmark.judge is not None]
    if kind is None:
        folder = file.parent.name.lower()
        named = [one for one in scored if folder.startswith((one.name, one.kind))]
        if not named:
            known = ", ".join(dict.fromkeys(one.kind for one in scored))
            raise UserError(f"{question_file} is in no known benchmark's folder; known: {known}")
        found = max(named, key=lambda one: (one.questions == file.name, len(one.name) * folder.startswith(one.name)))
    else:
        found = next((one for one in scored if kind in (one.name, one.kind)), None) or find_benchmark(kind)
    return replace(found, folder=str(file.parent), questions=file.name)
