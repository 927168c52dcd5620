"""`prepare` and `check`: convert downloaded benchmarks into the folders that loader and scorers read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from llava.eval.benchmarks import Benchmark
from llava.eval.prepare.checking import State, check
from llava.eval.prepare.copying import convert, copy_files, copy_images, derive_questions
from llava.eval.prepare.layout import Layout
from llava.eval.prepare.sources import Source, open_source

__all__ = ["Layout", "State", "check", "prepare"]


def prepare(
    benchmark: Benchmark, sources: Iterable[str | Path], out: str | Path, overwrite: bool = False
) -> tuple[State, Layout]:
    """Fill a benchmark's folder from what was downloaded, then check it.

    Question and reference files come first, then conversions, then images, so the order of sources does not matter.
    Existing files are kept (images: if the size is right), so an interrupted call continues.

    Args:
        benchmark: one of `llava.eval.benchmarks.BENCHMARKS`.
        sources: zip archives, folders or single files: LLaVA's eval.zip, the authors' files, snapshots of the hub.
        out: the data folder, which gets the benchmark's own folder.
        overwrite: replace question and reference files that are there.

    Returns:
        What the folder holds now, and the layout with the numbers of files written and kept.

    Raises:
        UserError: a source that cannot be used.

    """
    sources = [Path(source).expanduser() for source in sources]
    layout = Layout(benchmark.at(out), overwrite)

    def each(step: Callable[[Benchmark, Source, Layout], None]) -> None:
        for path in sources:
            with open_source(path) as source:
                step(benchmark, source, layout)

    each(copy_files)
    each(convert)
    derive_questions(benchmark, layout)
    each(copy_images)
    return check(benchmark, Path(out)), layout
