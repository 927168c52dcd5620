"""`llava.eval.compare`: counts, intervals and costs of two runs, and which runs it refuses."""

import json
import math
from types import SimpleNamespace

import pytest
from loader_fixtures import write_jsonl
from run_fixtures import RANDOM, GqaMade, metadata, write_run

from llava.eval.benchmarks import find_benchmark, question_set
from llava.eval.compare import main
from llava.eval.metrics.answer_files import read_jsonl
from llava.eval.model_vqa_loader import eval_model
from llava.eval.results.comparison import compare
from llava.eval.results.reporting import make_report
from llava.eval.runner.run import Run, find_runs
from llava.tiny.accuracy import CHECKPOINT
from llava.tiny.benchmarks import write_benchmarks

BROKEN, FIXED, BOTH_WRONG = {0, 5, 6, 21, 30}, {2, 9, 33}, {11, 12}


@pytest.fixture
def gqa(tmp_path):
    return GqaMade(tmp_path)


@pytest.fixture
def pair(gqa, tmp_path):
    a = gqa.run(tmp_path / "runs" / "dense.jsonl", FIXED | BOTH_WRONG)
    b = gqa.run(tmp_path / "runs" / "pruned.jsonl", BROKEN | BOTH_WRONG, RANDOM)
    return a, b


def result_of(capsys, *arguments) -> dict:
    assert main([str(word) for word in arguments]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_fixed_broken_scores_agreement_and_costs_are_those_that_were_made(pair, capsys):
    result = result_of(capsys, *pair)
    assert (result["fixed"], result["broken"], result["questions"]) == (3, 5, 40)
    accuracy = result["scores"]["accuracy"]
    assert accuracy["a"] == pytest.approx(100 * 35 / 40) and accuracy["b"] == pytest.approx(100 * 33 / 40)
    assert accuracy["difference"] == pytest.approx(-5) and accuracy["interval"][0] < -5 < accuracy["interval"][1]
    assert result["p"] == pytest.approx(2 * sum(math.comb(8, k) for k in range(4)) / 2**8)
    assert (result["agreement"]["equal"], result["agreement"]["percent"]) == (32, 80)
    assert result["clusters"] == {"by": "image", "count": 10}
    dense, pruned = metadata(), metadata(5)
    assert result["costs"]["flops"]["a"] == dense["flops"]
    assert result["costs"]["kv_bytes"]["ratio"] == pruned["kv_bytes"] / dense["kv_bytes"]
    assert result["costs"]["prefill_ms"] == {"a": 2.0, "b": 1.0, "ratio": 0.5}
    assert not result["partial"] and not result["notes"]


def test_swapping_the_runs_mirrors_everything(pair):
    a, b = map(Run.read, pair)
    there, back = compare(a, b), compare(b, a)
    low, high = there["scores"]["accuracy"]["interval"]
    assert back["scores"]["accuracy"]["interval"] == pytest.approx([-high, -low])
    assert back["scores"]["accuracy"]["difference"] == pytest.approx(-there["scores"]["accuracy"]["difference"])
    assert (back["fixed"], back["broken"], back["p"]) == (there["broken"], there["fixed"], there["p"])
    assert back["agreement"] == there["agreement"]
    assert back["costs"]["flops"]["ratio"] == pytest.approx(1 / there["costs"]["flops"]["ratio"])


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_benchmarks(folder, questions=40, seed=5)
    return folder


QUESTIONS = {
    "gqa": "gqa_mini/llava_gqa_testdev_balanced.jsonl",
    "mme": "mme_mini/llava_mme.jsonl",
    "textvqa": "textvqa_mini/llava_textvqa_val_v051_ocr.jsonl",
}


def test_soft_scores_count_as_fixed_when_they_rise(mini, tmp_path):
    questions = mini / QUESTIONS["textvqa"]
    annotations = json.loads((mini / "textvqa_mini" / "TextVQA_0.5.1_val.json").read_text())
    for entry in annotations["data"]:
        entry["answers"] = ["stop"] * 2 + ["go"] * 8
    own = tmp_path / "annotations.json"
    own.write_text(json.dumps(annotations))
    keys = [(row["question_id"], row["text"]) for _, row in read_jsonl(questions, "questions")]
    a = Run.read(write_run(tmp_path / "a.jsonl", questions, dict.fromkeys(keys, "stop")))
    b = Run.read(write_run(tmp_path / "b.jsonl", questions, dict.fromkeys(keys, "go")))
    result = compare(a, b, references=own, resamples=10)
    assert (result["fixed"], result["broken"], result["agreement"]["equal"]) == (40, 0, 0)
    assert 0 < result["scores"]["accuracy"]["a"] < result["scores"]["accuracy"]["b"] == 100


def test_examples_show_what_changed(pair, capsys, gqa):
    result = result_of(capsys, *pair, "--examples", "2")
    assert [example["change"] for example in result["examples"]] == ["broken", "broken", "fixed", "fixed"]
    first = result["examples"][0]
    assert (first["question_id"], first["prompt"]) == gqa.keys[0]
    assert (first["a"], first["b"]) == ({"text": "Red.", "score": 1}, {"text": "blue", "score": 0})


def test_the_table_for_people_has_the_figures(pair, capsys):
    assert main([*map(str, pair), "--examples", "1"]) == 0
    table = capsys.readouterr().out
    for words in ("3 fixed, 5 broken", "32 of 40", "87.50", "82.50", "-5.00", "random, layer 1, keep 5", "0.50×"):
        assert words in table, words
    assert "…" not in table


def test_without_references_agreement_and_costs_remain(pair, gqa, capsys):
    gqa.annotations.unlink()
    result = result_of(capsys, *pair)
    assert "scores" not in result and "fixed" not in result
    assert result["agreement"]["equal"] == 32 and result["costs"]["flops"]["ratio"] < 1
    assert "no scores: references of gqa not found" in result["notes"][0]
    assert main([*map(str, pair), "--benchmark", "gqa"]) == 1
    assert "references of gqa not found" in capsys.readouterr().err


def test_references_and_benchmark_can_be_named(pair, gqa, tmp_path, capsys):
    moved = tmp_path / "elsewhere.json"
    gqa.annotations.rename(moved)
    gqa.questions.unlink()  # then images are unknown, and GQA's question ids are all different
    result = result_of(capsys, *pair, "--references", moved, "--benchmark", "gqa")
    assert result["fixed"] == 3 and result["clusters"] == {"by": "question id", "count": 40}


def test_unbalanced_questions_are_left_out_of_the_score_and_told(pair, gqa):
    annotations = json.loads(gqa.annotations.read_text())
    annotations[gqa.keys[0][0]]["isBalanced"] = False
    gqa.annotations.write_text(json.dumps(annotations))
    result = compare(*map(Run.read, pair))
    assert (result["scored"], result["broken"], result["questions"]) == (39, 4, 40)
    assert "1 questions are not in" in result["notes"][0]


def test_other_models_and_machines_are_allowed_and_said(gqa, pair, tmp_path):
    other = gqa.run(tmp_path / "other.jsonl", settings={"model": "large:4567", "dtype": "float16"}, batch_size=8)
    notes = " | ".join(compare(Run.read(pair[0]), Run.read(other))["notes"])
    assert "the models differ: small:0123 and large:4567" in notes
    assert "dtype differs: float32 and float16" in notes and "batch_size differs: 4 and 8" in notes


def test_partial_runs_are_compared_only_when_allowed(gqa, pair, tmp_path, capsys):
    answers = dict(list(gqa.answers(BROKEN).items())[:20])
    short = write_run(tmp_path / "short.jsonl", gqa.questions, answers, RANDOM, state="interrupted")
    assert main([str(pair[0]), str(short)]) == 1
    assert "interrupted" in capsys.readouterr().err
    limited = write_run(tmp_path / "limited.jsonl", gqa.questions, answers, RANDOM, limit=20)
    assert main([str(pair[0]), str(limited)]) == 1
    assert "20 questions are answered in both runs, 20 only in A" in capsys.readouterr().err
    for run in (short, limited):
        result = result_of(capsys, pair[0], run, "--allow-partial")
        assert result["partial"] and result["questions"] == 20 and result["broken"] == len(BROKEN & set(range(20)))
    same = result_of(capsys, limited, limited)
    assert same["partial"] and "--limit" in same["notes"][0]


def test_chunks_of_one_run_are_put_together(gqa, pair, tmp_path):
    answers = list(gqa.answers(BROKEN | BOTH_WRONG).items())
    folder = tmp_path / "visipruner"
    for n, part in enumerate((answers[:23], answers[23:])):
        write_run(folder / f"2_{n}.jsonl", gqa.questions, dict(part), RANDOM, settings={"chunk": [n, 2]})
    whole, chunked = Run.read(pair[1]), Run.read(folder)
    assert (chunked.name, chunked.problem) == ("visipruner", None)
    assert list(chunked.answers) == list(whole.answers)
    assert chunked.costs == whole.costs
    assert Run.read(folder / "2_1.jsonl").problem == "1 of 2 chunks are there"


def no_run_file(gqa, folder):
    path = gqa.run(folder / "x.jsonl").with_name("y.jsonl")
    path.write_text("")
    return path


def no_run(gqa, folder):
    return gqa.run(folder / "x.jsonl").with_name("y.jsonl")


def broken_run_file(gqa, folder):
    path = gqa.run(folder / "x.jsonl")
    path.with_name("x.run.json").write_text("{")
    return path


def no_answers_file(gqa, folder):
    path = gqa.run(folder / "x.jsonl")
    path.unlink()
    return path


def two_runs(gqa, folder):
    gqa.run(folder / "x.jsonl")
    return gqa.run(folder / "y.jsonl").parent


def empty_folder(gqa, folder):
    folder.mkdir()
    return folder


def twice(gqa, folder):
    path = gqa.run(folder / "x.jsonl")
    path.write_text(path.read_text() * 2)
    return path


def no_traces(gqa, folder):
    path = gqa.run(folder / "x.jsonl")
    path.write_text(path.read_text().replace('"metadata"', '"meta"'))
    return path


def no_prompts(gqa, folder):
    path = gqa.run(folder / "x.jsonl")
    path.write_text(path.read_text().replace('"prompt"', '"question"'))
    return path


def other_questions(gqa, folder):
    other = GqaMade(folder, images=3)
    return other.run(folder / "x.jsonl")


def other_keys(gqa, folder):
    return write_run(folder / "x.jsonl", gqa.questions, {("77", "Why?"): "red"})


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (no_run_file, "y.run.json is missing"),
        (no_run, "y.jsonl is not there"),
        (broken_run_file, "x.run.json is not a run file"),
        (no_answers_file, "answers file not found"),
        (two_runs, "holds 2 runs; name one of them"),
        (empty_folder, "holds no run"),
        (twice, "x.jsonl:41 answers the question of"),
        (no_traces, "x.jsonl:1 has no trace in its metadata"),
        (no_prompts, 'x.jsonl:1: key "prompt" is missing'),
        (other_questions, "different question files"),
        (other_keys, "no answered question in common"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(gqa, pair, tmp_path, capsys, made, message):
    assert main([str(pair[0]), str(made(gqa, tmp_path / "bad"))]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error


def test_an_unknown_benchmark_is_one_line(pair, capsys):
    assert main([*map(str, pair), "--benchmark", "gpa"]) == 1
    assert "did you mean gqa?" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--examples", "-1"], ["--resamples", "0"], ["--example", "1"]])
def test_wrong_arguments_are_status_2(pair, words):
    with pytest.raises(SystemExit, match="2"):
        main([*map(str, pair), *words])


def test_a_real_pair_of_runs_of_the_small_model(mini, tmp_path, capsys):
    records = {}
    for name, config in (("dense", None), ("pruned", f"{CHECKPOINT}/pruning.json")):
        records[name] = eval_model(
            SimpleNamespace(
                model_path=CHECKPOINT,
                question_file=str(mini / QUESTIONS["gqa"]),
                image_folder=str(mini / "gqa_mini" / "data" / "images"),
                answers_file=str(tmp_path / f"{name}.jsonl"),
                pruning_config=config,
                batch_size=8,
                max_new_tokens=6,
                limit=24,
                device="cpu",
            )
        )
    result = result_of(capsys, tmp_path / "dense.jsonl", tmp_path / "pruned.jsonl")
    assert result["questions"] == 24 and result["partial"] and "--limit" in result["notes"][0]
    asked = (mini / QUESTIONS["gqa"]).read_text(encoding="utf-8").splitlines()[:24]
    assert result["clusters"] == {"by": "image", "count": len({json.loads(line)["image"] for line in asked})}
    for letter, name in (("a", "dense"), ("b", "pruned")):
        totals = records[name]["totals"]
        assert result["costs"]["flops"][letter] == pytest.approx(totals["flops"] / 24)
        assert result["costs"]["prefill_ms"][letter] == pytest.approx(totals["milliseconds"]["prefill"] / 24, rel=1e-3)
        score = find_benchmark("gqa_mini").score(mini / "gqa_mini", tmp_path / f"{name}.jsonl", partial=True)
        assert result["scores"]["accuracy"][letter] == pytest.approx(score["accuracy"])
    assert result["costs"]["flops"]["ratio"] < 0.9 > result["costs"]["kv_bytes"]["ratio"]


def test_questions_of_ones_own_are_judged_as_the_run_file_or_the_options_say(tmp_path, capsys):
    rows = [{"question_id": n, "image": "x.png", "text": f"What is {n}?"} for n in range(6)]
    (tmp_path / "mine").mkdir()
    questions = write_jsonl(tmp_path / "mine" / "q.jsonl", rows)
    references = write_jsonl(tmp_path / "mine" / "r.jsonl", [{"question_id": n, "answer": f"{n}"} for n in range(6)])
    given = {"benchmark": question_set(questions, references=references, judge="exact").spec}
    keys = [(str(row["question_id"]), row["text"]) for row in rows]
    a = write_run(tmp_path / "a.jsonl", questions, {key: key[0] for key in keys}, **given)
    b = write_run(tmp_path / "b.jsonl", questions, dict.fromkeys(keys, "3"), RANDOM, **given)
    result = result_of(capsys, a, b)
    assert (result["broken"], result["fixed"], result["clusters"]["count"]) == (5, 0, 1)
    older = write_run(tmp_path / "older.jsonl", questions, dict.fromkeys(keys, "3"))
    assert "no scores: " in result_of(capsys, older, b)["notes"][-1]
    assert result_of(capsys, older, a, "--references", references, "--judge", "exact")["fixed"] == 5
    own = question_set(questions, references=references, judge=lambda text, answers: float(text == "3"))
    assert json.dumps(own.spec) and compare(Run.read(a), Run.read(b), own)["fixed"] == 5
    code = {"benchmark": f"{tmp_path}/missing.py:MINE", "scores": {"figure": "accuracy", "accuracy": 12.5}}
    coded = write_run(tmp_path / "coded.jsonl", questions, dict.fromkeys(keys, "3"), **code)
    report = make_report(find_runs([a, coded])[0], tmp_path / "report")  # runs no code that a run file names
    assert {row["run"]: row["scores"]["accuracy"] for row in report["rows"]} == {"a": 100, "coded": 12.5}
