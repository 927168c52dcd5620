"""The benchmarks as data: names, folders, prompts, and the rehearsal of their scoring."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llava.cli import UserError
from llava.eval import score
from llava.eval.benchmarks import (
    BENCHMARKS,
    find_benchmark,
    find_benchmarks,
    mmbench,
    mme,
    mmstar,
    scienceqa,
    textvqa,
    vizwiz,
)
from llava.eval.benchmarks.prompts import LETTER, SHORT, short_answer
from llava.eval.metrics.answer_files import read_answers
from llava.tiny.benchmarks import write_benchmarks

GOLDEN = json.loads((Path(__file__).parent / "golden" / "prompts" / "benchmarks.json").read_text())
TEXT_OF = {
    "gqa": short_answer,
    "mme": mme.prompt,
    "textvqa": textvqa.prompt,
    "pope": short_answer,
    "scienceqa": scienceqa.prompt,
    "mmbench": mmbench.prompt,
    "mmstar": mmstar.prompt,
    "mmvet": lambda question: question,
    "vqav2": short_answer,
    "vizwiz": vizwiz.prompt,
}


@pytest.mark.parametrize("name", TEXT_OF)
def test_the_text_of_a_question_is_exactly_the_recorded_one(name):
    golden = GOLDEN[name]
    assert TEXT_OF[name](**golden["asked"]) == golden["text"]
    assert golden["text"].endswith(BENCHMARKS[name].suffix)


def test_every_real_benchmark_has_a_recorded_prompt():
    families = {name.removesuffix("_val").removesuffix("_mini") for name in BENCHMARKS}
    assert families == set(GOLDEN) == set(TEXT_OF)


def test_parts_of_a_prompt_that_may_be_absent():
    assert scienceqa.prompt("Q?", ["x", "y"], "") == f"Q?\nA. x\nB. y\n{LETTER}"
    assert mmbench.prompt("Q?", {"A": "x"}, None) == f"Q?\nA. x\n{LETTER}"
    assert textvqa.prompt("q", []) == f"Q\nReference OCR token: \n{SHORT}"
    assert mme.prompt("Is it? Please answer yes or no.") == mme.prompt("Is it?")


@pytest.mark.parametrize("benchmark", BENCHMARKS.values(), ids=list(BENCHMARKS))
def test_a_benchmark_is_whole(benchmark):
    assert BENCHMARKS[benchmark.name] is benchmark
    assert (benchmark.judge is None) == (benchmark.figure is None) == (benchmark.references is None)
    assert benchmark.judge or benchmark.submit
    assert find_benchmark(benchmark.spec) is benchmark
    needed = [need.path for need in benchmark.needs]
    assert {benchmark.questions, benchmark.images} <= set(needed)
    assert len(set(needed)) == len(needed)
    for path in needed:
        assert not Path(path).is_absolute()
        assert ".." not in Path(path).parts
    assert all(need.where for need in benchmark.needs)
    assert benchmark.max_new_tokens > 0


def test_benchmarks_that_share_a_folder_do_not_share_files():
    asked = [(benchmark.folder, benchmark.questions) for benchmark in BENCHMARKS.values()]
    assert len(set(asked)) == len(asked)


def test_benchmarks_are_found_by_name_by_folder_and_by_a_folder_named_after_one():
    assert find_benchmark("MME") is find_benchmark("mme") is BENCHMARKS["mme"]
    assert find_benchmark("mm-vet").name == "mmvet"
    assert find_benchmark("gqa_mini") is BENCHMARKS["gqa_mini"]
    assert find_benchmark("vqav2_val") is BENCHMARKS["vqav2_val"]
    own = find_benchmark("textvqa_Tune")
    assert (own.folder, own.questions, own.counts) == ("textvqa_Tune", BENCHMARKS["textvqa"].questions, ())
    for name in ("", "gq", "gqa/x", "gqa_x/../../y", "tune_gqa"):
        with pytest.raises(ValueError, match="is not known.*known are gqa, mme"):
            find_benchmark(name)
    assert [b.name for b in find_benchmarks("pope, gqa,pope")] == ["pope", "gqa"]
    with pytest.raises(ValueError, match="no benchmark named"):
        find_benchmarks(" , ")


@pytest.fixture(scope="module")
def minis(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval")
    write_benchmarks(folder, questions=10)
    return folder


@pytest.mark.parametrize("name", ["gqa_mini", "mme_mini", "textvqa_mini"])
def test_a_mini_benchmark_needs_nothing_more_and_is_scored(minis, name):
    benchmark = BENCHMARKS[name]
    folder = benchmark.at(minis)
    assert benchmark.missing(folder) == []
    benchmark.rehearse(folder)
    answers = folder.parent / f"{name}.jsonl"
    questions = [json.loads(line) for line in (folder / benchmark.questions).read_text().splitlines()]
    assert all(question["text"].endswith(benchmark.suffix) for question in questions)
    rows = [{"question_id": q["question_id"], "prompt": q["text"], "text": ""} for q in questions]
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores = benchmark.score(folder, answers, False)
    assert scores["benchmark"] == name.removesuffix("_mini")
    assert scores.quoted == scores[benchmark.figure]
    assert (scores["accuracy"], scores["empty"], scores["answered"]) == (0, len(questions), len(questions))
    assert json.loads(json.dumps(scores)) == scores
    assert len(read_answers(answers)) == scores["questions"]


def test_what_is_missing_is_listed_by_use(minis, tmp_path):
    gqa = BENCHMARKS["gqa"]
    assert [need.use for need in gqa.missing(tmp_path)] == ["run", "run", "score"]
    assert [need.path for need in gqa.missing(tmp_path, "score")] == ["data/testdev_balanced_questions.json"]
    (tmp_path / "data" / "images").mkdir(parents=True)  # an empty folder is as good as none
    assert gqa.images in [need.path for need in gqa.missing(tmp_path, "run")]
    (tmp_path / "data" / "images" / "1.jpg").write_text("")
    assert [need.path for need in gqa.missing(tmp_path, "run")] == [gqa.questions]


def test_the_rehearsal_finds_references_of_other_questions(minis, tmp_path):
    gqa = BENCHMARKS["gqa_mini"].in_folder("gqa_other")
    source, folder = minis / "gqa_mini", tmp_path / "gqa_other"
    (folder / "data").mkdir(parents=True)
    (folder / gqa.questions).write_text((source / gqa.questions).read_text())
    references = json.loads((source / "data" / "testdev_balanced_questions.json").read_text())
    references.pop(next(iter(references)))
    (folder / "data" / "testdev_balanced_questions.json").write_text(json.dumps(references))
    with pytest.raises(UserError, match="1 answers to unknown questions"):
        gqa.rehearse(folder)


def test_scoring_imports_no_heavy_package():
    code = "import sys, llava.eval.score, llava.eval.merge, llava.eval.prepare.__main__, llava.eval.eval_gqa as one\n"
    code += "assert not {'torch', 'transformers', 'pyarrow', 'scipy', 'numpy', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["gqa_min", "textvqa_mni"])
def test_a_folder_named_nearly_like_a_benchmark_is_suggested_it(tmp_path, name):
    benchmark = find_benchmark(name)
    meant = name[:-3] + "mini" if name.endswith(("min", "mni")) else name
    with pytest.raises(UserError, match=f"cannot run .did you mean {meant}..; missing: "):
        benchmark.require(benchmark.at(tmp_path))
    with pytest.raises(UserError, match=f"not found .did you mean {meant}"):
        score.work(score.Options(benchmark=name, answers=tmp_path / "answers.jsonl", data_dir=tmp_path))
