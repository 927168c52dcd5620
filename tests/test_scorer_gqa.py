"""GQA's scorer against hand-computed cases of the official rules."""

import json

import pytest

from llava.cli import UserError
from llava.eval.benchmarks.gqa import GQA, normalize


def score(questions, answers, partial=False):
    return GQA.score_files(questions, questions, answers, partial)


def question(answer, structural="query", semantic="attr", detailed="color", **more):
    types = {"structural": structural, "semantic": semantic, "detailed": detailed}
    return {"imageId": "n1", "question": "?", "answer": answer, "isBalanced": True, "types": types} | more


QUESTIONS = {
    "1": question("red"),
    "2": question("yes", "verify", "obj", "existC"),
    "3": question("no", "logical", "obj", "existAnd"),
    "4": question("left", "choose", "rel", "chooseRel"),
}


@pytest.fixture
def write(tmp_path):
    def write_files(questions, rows):
        question_file, answers = tmp_path / "questions.json", tmp_path / "answers.jsonl"
        question_file.write_text(json.dumps(questions))
        answers.write_text("".join(json.dumps({"question_id": i, "prompt": "?", "text": t}) + "\n" for i, t in rows))
        return question_file, answers

    return write_files


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Yes.", "yes"), ("no...", "no"), ("Red", "red"), ("Yes, it is", "yes, it is"), ("Yes. ", "yes. "), (".5", ".5")],
)
def test_prediction_loses_trailing_periods_and_capitals_only(text, expected):
    assert normalize(text) == expected


def test_exact_match_overall_and_by_type(write):
    result = score(*write(QUESTIONS, [("1", "Red."), ("2", "Yes"), ("3", "No, there is none"), ("4", "right")]))
    assert result["accuracy"] == 50
    assert result["groups"]["shape"]["open"] == {"accuracy": 100, "count": 1}
    assert result["groups"]["shape"]["binary"] == {"accuracy": pytest.approx(100 / 3), "count": 3}
    assert result["groups"]["structural"] == {
        "choose": {"accuracy": 0, "count": 1},
        "logical": {"accuracy": 0, "count": 1},
        "query": {"accuracy": 100, "count": 1},
        "verify": {"accuracy": 100, "count": 1},
    }
    assert result["groups"]["semantic"]["obj"] == {"accuracy": 50, "count": 2}
    assert set(result["groups"]["detailed"]) == {"color", "existC", "existAnd", "chooseRel"}


def test_type_counts_add_up_to_the_questions(write):
    result = score(*write(QUESTIONS, [(i, "red") for i in QUESTIONS]))
    for by_name in result["groups"].values():
        assert sum(entry["count"] for entry in by_name.values()) == 4


def test_a_file_without_types_gives_the_overall_accuracy(write):
    result = score(*write({"1": {"answer": "red"}, "2": {"answer": "two"}}, [("1", "red"), ("2", "2")]))
    assert result["accuracy"] == 50
    assert result["groups"] == {}


def test_unbalanced_questions_are_neither_expected_nor_scored(write):
    questions = QUESTIONS | {"5": question("blue", isBalanced=False)}
    assert score(*write(questions, [(i, "red") for i in QUESTIONS]))["accuracy"] == 25


def test_integer_ids_match_the_files_string_ids(write):
    assert score(*write({"7": question("red")}, [(7, "red")]))["accuracy"] == 100


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        ("{", "questions.json is not valid JSON at line 1"),
        ("[]", "expected GQA's object"),
        ('{"1": 3}', "question 1: expected an object"),
        ('{"1": {"types": {}}}', 'question 1: key "answer" is missing'),
    ],
)
def test_malformed_questions_are_one_clear_line(tmp_path, questions, message):
    (tmp_path / "questions.json").write_text(questions)
    with pytest.raises(UserError, match=message):
        score(tmp_path / "questions.json", tmp_path / "answers.jsonl")
