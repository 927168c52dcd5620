"""Files as the benchmarks' authors and LLaVA publish them: picked out of archives and folders into the layout."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from tqdm import tqdm

from llava.eval import eval_mme
from llava.eval.benchmarks import Benchmark
from llava.eval.benchmarks import mme as mme_files
from llava.eval.benchmarks import scienceqa as scienceqa_files
from llava.eval.benchmarks import vizwiz as vizwiz_files
from llava.eval.benchmarks import vqav2 as vqav2_files
from llava.eval.prepare.answers_letter import scienceqa_questions
from llava.eval.prepare.layout import Layout, PrepareError
from llava.eval.prepare.sources import Source, find
from llava.eval.runner import prompts

VQAV2_VAL_QUESTIONS = "v2_OpenEnded_mscoco_val2014_questions.json"
# What a benchmark's question file is made of where it is not published in the loader's form.
_RAW = {"scienceqa": (scienceqa_files.LLAVA_QUESTIONS,), "vqav2_val": (VQAV2_VAL_QUESTIONS,)}
_TASKS = frozenset(task for names in eval_mme.TASKS.values() for task in names)


def copy_files(benchmark: Benchmark, source: Source, layout: Layout) -> None:
    """Copy the benchmark's question and reference files that the source has; those in place stay.

    A file is known by its name; of several, the one whose folders agree best with the layout is taken.
    """
    wanted = [need.path for need in benchmark.needs if need.path != benchmark.images]
    for relative in (*wanted, *_RAW.get(benchmark.name, ())):
        name = find(source, f"{benchmark.folder}/{relative}")
        if name is not None and not _is_place(source, name, layout, relative) and not layout.keeps(relative):
            with source.open(name) as file:
                layout.copy(relative, file, source.size(name))
    if benchmark.images == mme_files.RELEASE:
        _copy_mme_references(source, layout)


def _is_place(source: Source, name: str, layout: Layout, relative: str) -> bool:
    path, target = source.path(name), layout.path(relative)
    return path is not None and target.exists() and target.samefile(path)


def _copy_mme_references(source: Source, layout: Layout) -> None:
    for name in source.names:
        parts = name.split("/")
        tasks = [k for k, part in enumerate(parts[:-1]) if part in _TASKS]
        if name.endswith(".txt") and tasks:
            relative = f"{mme_files.RELEASE}/{'/'.join(parts[tasks[-1] :])}"
            if not _is_place(source, name, layout, relative):
                with source.open(name) as file:
                    layout.copy(relative, file, source.size(name))


def copy_images(benchmark: Benchmark, source: Source, layout: Layout) -> None:
    """Copy the images that the question file names and the source has; those in place with the right size stay.

    An image is found by the end of its path, else (its first folder and) its name.
    """
    by_name: dict[str, list[str]] = defaultdict(list)
    for name in source.names:
        by_name[name.rsplit("/", 1)[-1]].append(name)
    wanted = dict.fromkeys(row["image"] for row in layout.rows(benchmark.questions) if row.get("image"))
    found = [(image, name) for image in wanted if (name := _pick(by_name[image.rsplit("/", 1)[-1]], image))]
    for image, name in tqdm(found, desc=f"{benchmark.name} images", unit="image", disable=not found):
        relative = f"{benchmark.images}/{image}"
        if not _is_place(source, name, layout, relative):
            with source.open(name) as file:
                layout.copy(relative, file, source.size(name))


def _pick(names: list[str], image: str) -> str | None:
    ends = [name for name in names if f"/{name}".endswith(f"/{image}")]
    if not ends and "/" in image:
        first = image.split("/")[0]
        ends = [name for name in names if first in name.split("/")[:-1]]
    return min(ends, key=len, default=None)


def derive_questions(benchmark: Benchmark, layout: Layout) -> None:
    """Write the question file from published files in another form, where these are there."""
    makers: dict[str, tuple[str, Callable[[Layout], None]]] = {
        "scienceqa": (scienceqa_files.LLAVA_QUESTIONS, scienceqa_questions),
        "vqav2_val": (VQAV2_VAL_QUESTIONS, _vqav2_val),
        "vizwiz_val": (vizwiz_files.VAL_REFERENCES, _vizwiz_val),
    }
    if benchmark.name in makers:
        raw, make = makers[benchmark.name]
        if layout.path(raw).is_file() and not layout.path(benchmark.questions).is_file():
            try:
                make(layout)
            except (KeyError, TypeError, IndexError, AttributeError) as error:
                raise PrepareError(f"{layout.path(raw)} has not the form it should have: {error!r}") from None


def _vqav2_val(layout: Layout) -> None:
    with layout.lines(vqav2_files.VAL) as write:
        for item in layout.json(VQAV2_VAL_QUESTIONS)["questions"]:
            image = f"COCO_val2014_{item['image_id']:012d}.jpg"
            text = prompts.short_answer(item["question"])
            write({"question_id": item["question_id"], "image": image, "text": text, "category": "default"})


def _vizwiz_val(layout: Layout) -> None:
    with layout.lines(vizwiz_files.VAL) as write:
        for number, item in enumerate(layout.json(vizwiz_files.VAL_REFERENCES)):
            text = prompts.vizwiz(item["question"])
            write({"question_id": number, "image": item["image"], "text": text, "category": "default"})
