"""The benchmarks, one file each; `BENCHMARKS` has all of them by name."""

from __future__ import annotations

from pathlib import Path

from llava.eval.benchmarks.benchmark import Benchmark, Needed
from llava.eval.benchmarks.gqa import GQA
from llava.eval.benchmarks.mini import GQA_MINI, MME_MINI, TEXTVQA_MINI
from llava.eval.benchmarks.mmbench import MMBENCH
from llava.eval.benchmarks.mme import MME
from llava.eval.benchmarks.mmstar import MMSTAR
from llava.eval.benchmarks.mmvet import MMVET
from llava.eval.benchmarks.pope import POPE
from llava.eval.benchmarks.scienceqa import SCIENCEQA
from llava.eval.benchmarks.textvqa import TEXTVQA
from llava.eval.benchmarks.vizwiz import VIZWIZ, VIZWIZ_VAL
from llava.eval.benchmarks.vqav2 import VQAV2, VQAV2_VAL

__all__ = ["BENCHMARKS", "Benchmark", "Needed", "find_benchmark", "find_benchmarks"]

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        *(GQA, MME, TEXTVQA, POPE, SCIENCEQA, MMBENCH, MMSTAR, MMVET),
        *(VQAV2, VQAV2_VAL, VIZWIZ, VIZWIZ_VAL, GQA_MINI, MME_MINI, TEXTVQA_MINI),
    )
}


def find_benchmark(name: str) -> Benchmark:
    """The benchmark of a name ("gqa"), of a folder ("MME", "mm-vet"), or of a folder's first part ("gqa_tune").

    A folder that is only named like a benchmark holds its file formats, with any number of questions.

    Raises:
        ValueError: no benchmark has the name.

    """
    wanted = name.lower()
    for benchmark in BENCHMARKS.values():
        if wanted in (benchmark.name, benchmark.folder.lower()):
            return benchmark
    for kind in sorted(BENCHMARKS, key=len, reverse=True):
        if wanted.startswith(f"{kind}_") and Path(name).name == name:
            return BENCHMARKS[kind].in_folder(name)
    raise ValueError(f"benchmark {name!r} is not known; known are {', '.join(BENCHMARKS)}")


def find_benchmarks(names: str) -> list[Benchmark]:
    """The benchmarks of a list with commas, each once, in its order; `ValueError` as in `find_benchmark`."""
    found = [find_benchmark(name.strip()) for name in names.split(",") if name.strip()]
    if not found:
        raise ValueError(f"no benchmark named; known are {', '.join(BENCHMARKS)}")
    return list(dict.fromkeys(found))
