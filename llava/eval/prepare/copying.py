"""Fill a benchmark's folder from a source: copy files, convert published rows."""

from __future__ import annotations

from collections import defaultdict

from tqdm import tqdm

from llava.cli import UserError
from llava.eval.benchmarks import Benchmark
from llava.eval.prepare.layout import Layout
from llava.eval.prepare.rows import choose, parquet_rows, table_columns, table_rows
from llava.eval.prepare.sources import Source, find


def copy_files(benchmark: Benchmark, source: Source, layout: Layout) -> None:
    """Copy the benchmark's question and reference files that the source has; those in place stay.

    A file is known by its name; of several, the one whose folders agree best with the layout is taken.
    """
    wanted = [need.path for need in benchmark.needs if need.path != benchmark.images]
    if benchmark.derived is not None:
        wanted.append(benchmark.derived[0])
    for relative in dict.fromkeys(wanted):
        name = find(source, f"{benchmark.folder}/{relative}")
        if name is not None and not _is_place(source, name, layout, relative) and not layout.keeps(relative):
            _copy(source, name, layout, relative)
    for name in source.files if benchmark.extra_file is not None else ():
        relative = benchmark.extra_file(name)
        if relative is not None and not _is_place(source, name, layout, relative):
            _copy(source, name, layout, relative)


def copy_images(benchmark: Benchmark, source: Source, layout: Layout) -> None:
    """Copy the images that the question file names and the source has; those in place with the right size stay.

    An image is found by the end of its path, else (its first folder and) its name.
    """
    by_name: dict[str, list[str]] = defaultdict(list)
    for name in source.files:
        by_name[name.rsplit("/", 1)[-1]].append(name)
    wanted = dict.fromkeys(row["image"] for row in layout.rows(benchmark.questions) if row.get("image"))
    found = [(image, name) for image in wanted if (name := _pick(by_name[image.rsplit("/", 1)[-1]], image))]
    for image, name in tqdm(found, desc=f"{benchmark.name} images", unit="image", disable=not found):
        relative = f"{benchmark.images}/{image}"
        if not _is_place(source, name, layout, relative):
            _copy(source, name, layout, relative)


def _copy(source: Source, name: str, layout: Layout, relative: str) -> None:
    with source.files[name].open() as file:
        layout.copy(relative, file, source.files[name].size)


def _is_place(source: Source, name: str, layout: Layout, relative: str) -> bool:
    path, target = source.files[name].path, layout.path(relative)
    return path is not None and target.exists() and target.samefile(path)


def _pick(names: list[str], image: str) -> str | None:
    ends = [name for name in names if f"/{name}".endswith(f"/{image}")]
    if not ends and "/" in image:
        first = image.split("/")[0]
        ends = [name for name in names if first in name.split("/")[:-1]]
    return min(ends, key=len, default=None)


def convert(benchmark: Benchmark, source: Source, layout: Layout) -> None:
    """Convert the published rows of a benchmark that the source has (parquet files, TSV tables) into its folder.

    Raises `UserError`: parquet files or tables inside an archive; files that cannot be read; rows that do not fit.
    """
    for conversion in benchmark.conversions:
        names = choose(list(source.files), *conversion.patterns.split())
        paths = [source.files[name].path for name in names]
        if None in paths:
            raise UserError(f"{source.label} holds {names[0]}: unpack the archive and give the folder")
        if not paths:
            continue
        if paths[0].suffix.lower() != ".tsv":
            rows = parquet_rows(paths, conversion.columns.split(), conversion.optional.split())
            conversion.write(rows, layout)
            continue
        inside = paths[0].resolve().is_relative_to(layout.folder.resolve())
        is_own = inside and "image" not in table_columns(paths[0])  # written by an earlier call, without images
        if not (is_own and layout.path(benchmark.questions).is_file()):
            conversion.write(table_rows(paths[0], tuple(conversion.columns.split())), layout)


def derive_questions(benchmark: Benchmark, layout: Layout) -> None:
    """Write the question file from a published file in another form, where that is there and the question file not."""
    if benchmark.derived is None:
        return
    published, write = benchmark.derived
    if layout.path(published).is_file() and not layout.path(benchmark.questions).is_file():
        try:
            write(layout)
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise UserError(f"{layout.path(published)} does not have the form it should have: {error!r}") from None
