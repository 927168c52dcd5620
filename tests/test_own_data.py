"""A user's own questions: the commands of docs/your-own-data.md, the judges, and errors."""

import importlib
import json
import re
import shlex
from pathlib import Path

import pytest
from answer_fixtures import last_json, write_answers, write_jsonl
from PIL import Image

from llava.cli import UserError
from llava.eval.benchmarks import find_benchmark, question_set
from llava.eval.metrics.answer_files import read_answers
from llava.eval.metrics.judges import JUDGES

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "your-own-data.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)(?: (\S+))?\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The page's files, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for _, name, text in BLOCKS:
        if name:
            Path(name).write_text(text, encoding="utf-8")
    Path("images").mkdir()
    for color in ("red", "blue"):
        Image.new("RGB", (32, 32), color).save(f"images/{color}.png")
    Path("playground").symlink_to(ROOT / "playground")
    return tmp_path


def test_the_page_followed_to_the_letter(folder, capsys):
    commands = [line for kind, _, text in BLOCKS if kind == "bash" for line in text.replace("\\\n", "").splitlines()]
    assert len(commands) == 4
    for line in commands:
        _, _, module, *words = shlex.split(line)
        assert importlib.import_module(module).main(words) == 0, line
    assert last_json(capsys.readouterr().out)["benchmark"] == "colors"
    scores = json.loads(Path("runs/mine/questions/pruned.run.json").read_text())["scores"]
    assert (scores["questions"], scores["groups"]["category"]["color"]["count"]) == (3, 2)
    run = "runs/mine/colors/dense.jsonl"  # compare and report find MY_BENCHMARK through the run file
    assert importlib.import_module("llava.eval.compare").main([run, run]) == 0
    assert last_json(capsys.readouterr().out)["benchmark"] == "colors"


def test_a_set_is_scored_by_question_and_found_again(folder):
    own = question_set("questions.jsonl", "images", "answers.jsonl", "exact")
    answers = write_answers(folder / "a.jsonl", {"1": "Red.", "2": "azure", "3": "yes"})
    scores = own.score(own.at("anywhere"), answers)
    assert (own.name, scores["benchmark"], scores["accuracy"]) == ("questions", "questions", pytest.approx(200 / 3))
    assert scores["groups"]["category"]["yes or no"] == {"accuracy": 0, "count": 1}
    again = find_benchmark(json.loads(json.dumps(own.spec)))
    worth = again.question_scores(read_answers(answers), folder / "questions.jsonl", again.references_at(folder))
    assert [*worth.values()] == [1, 1, 0]
    mine = find_benchmark("my_data.py:MY_BENCHMARK")
    assert find_benchmark(mine.spec).score(mine.at("."), answers)["accuracy"] == pytest.approx(200 / 3)
    assert own.missing(own.at(".")) == []
    own.rehearse(own.at("."))


def test_without_references_questions_are_asked_and_not_scored(folder):
    own = question_set("questions.jsonl", "images", name="part")
    own.rehearse(own.at("."))
    assert own.judge is own.figure is None
    with pytest.raises(UserError, match="part has no references to score with"):
        own.score(own.at("."), folder / "a.jsonl")


@pytest.mark.parametrize(
    ("rows", "judge", "message"),
    [
        ([("1", "x"), ("2", "x")], "exact", "r.jsonl lacks 1 of 3 questions; the first is '3'"),
        (
            [("1", "x"), ("2", "x"), ("3", "x"), ("4", "x")],
            "exact",
            "r.jsonl:4: question_id 4 is not in .*questions.jsonl",
        ),
        ([("1", "x"), ("1", "x")], "exact", "r.jsonl:2: question_id 1 occurs twice"),
        ([("1", "x")], "vqa", "r.jsonl:1: the judge vqa needs at least 4 answers .*, found x"),
        ([("1", "red")], "yes_no", "r.jsonl:1: the judge yes_no needs yes or no as the answer, found red"),
        ([("1", "red")], "choice", "r.jsonl:1: the judge choice needs a letter, found red"),
        ([("1", [])], "exact", "r.jsonl:1: an answer should be text or a number"),
        ([("1", None)], "exact", "r.jsonl:1: an answer should be text or a number"),
    ],
)
def test_references_that_do_not_fit_are_one_line_before_anything_is_asked(folder, rows, judge, message):
    references = [{"question_id": i, "answers" if isinstance(a, list) else "answer": a} for i, a in rows]
    own = question_set("questions.jsonl", "images", write_jsonl(folder / "r.jsonl", references), judge)
    with pytest.raises(UserError, match=message):
        own.rehearse(own.at("."))


def test_a_judge_of_ones_own_must_stay_between_0_and_1(folder):
    own = question_set("questions.jsonl", "images", "answers.jsonl", lambda text, answers: 2)
    with pytest.raises(UserError, match="the judge gave 2 for the answer 'A'; expected a number from 0 to 1"):
        own.rehearse(own.at("."))


def test_wrong_words_are_refused_with_what_is_known(folder):
    with pytest.raises(UserError, match="judge 'exactly' is not known; known are exact, vqa"):
        question_set("q", references="r", judge="exactly")
    with pytest.raises(UserError, match="references without a judge"):
        question_set("q", references="r")
    with pytest.raises(UserError, match="a judge without references"):
        question_set("q", judge="exact")
    with pytest.raises(UserError, match="holds no benchmark 'MINE'.*found MY_BENCHMARK"):
        find_benchmark("my_data.py:MINE")
    with pytest.raises(UserError, match="nowhere.py is not a file"):
        find_benchmark("nowhere.py:X")
    with pytest.raises(UserError, match="cannot be imported: No module named 'no_such"):
        find_benchmark("no_such.module:X")
    with pytest.raises(UserError, match="questions cannot run; missing: .*gone.jsonl .from: the path that was given"):
        question_set("questions.jsonl", "images", "gone.jsonl", "exact").require(folder)


@pytest.mark.parametrize(
    ("judge", "text", "references", "worth"),
    [
        ("exact", " Red. ", ["red"], 1),
        ("exact", "a red", ["red"], 0),
        ("exact", "two", ["2", "Two"], 1),
        ("contains", "It is a Fire  Truck!", ["fire truck"], 1),
        ("contains", "truck", ["fire truck"], 0),
        ("yes_no", "It is: Yes", ["yes"], 1),
        ("yes_no", "No, yes", ["no"], 1),
        ("yes_no", "not sure, I know", ["no"], 0),
        ("choice", "B", ["B"], 1),
        ("choice", "(B)", ["b"], 1),
        ("choice", "B. Vermont", ["B"], 1),
        ("choice", "**B**", ["B"], 1),
        ("choice", "The answer is B.", ["B"], 1),
        ("choice", "A dog", ["A"], 0),  # a word, no letter
        ("choice", "option A or option B", ["A"], 0),
        ("vqa", "the two", ["2"] * 2 + ["3"] * 8, 0.6),
        ("vqa", "2", ["2"] * 4, 1),
        ("anls", "Hello  world", ["hello world"], 1),
        ("anls", "hella", ["hello", "x"], 0.8),
        ("anls", "he", ["hell"], 0),  # 0.5 is not above the threshold
        ("anls", "", [""], 1),
    ],
)
def test_judges(judge, text, references, worth):
    assert JUDGES[judge](text, references) == pytest.approx(worth)
