"""The three mini benchmarks of the small model: the formats of GQA, MME and TextVQA, written by llava.tiny."""

from __future__ import annotations

from dataclasses import replace

from llava.eval.benchmarks.benchmark import Benchmark
from llava.eval.benchmarks.gqa import GQA
from llava.eval.benchmarks.mme import MME
from llava.eval.benchmarks.textvqa import TEXTVQA

_WRITER = "python -m llava.tiny.benchmarks"


def _mini(real: Benchmark) -> Benchmark:
    mini = real.in_folder(f"{real.name}_mini")
    return replace(mini, title=f"{real.title} mini", needs=tuple(replace(n, where=_WRITER) for n in mini.needs))


GQA_MINI = _mini(GQA)
MME_MINI = replace(_mini(MME), unit="of 1000")
TEXTVQA_MINI = _mini(TEXTVQA)
