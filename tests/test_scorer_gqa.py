"""GQA's scorer against hand-computed cases of the official rules."""

import json

import pytest

from llava.cli import UserError
from llava.eval import eval_gqa
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
    ("ids", "counts"),
    [
        ("12", "2 of 4 questions answered, 2 missing, 0 duplicate answers, 0 answers to unknown"),
        ("12342", "0 missing, 1 duplicate answers, 0 answers to unknown"),
        ("12349", "0 missing, 0 duplicate answers, 1 answers to unknown"),
    ],
)
def test_answers_that_do_not_cover_the_questions_are_refused_unless_partial(write, ids, counts):
    files = write(QUESTIONS, [(i, "red") for i in ids])
    with pytest.raises(UserError, match=counts):
        score(*files)
    result = score(*files, partial=True)
    assert result["partial"]
    assert result["accuracy"] == pytest.approx(100 / min(len(ids), 4))


def test_nothing_answered_is_an_error_even_when_partial(write):
    with pytest.raises(UserError, match="nothing to score"):
        score(*write(QUESTIONS, []), partial=True)


def test_partial_scores_say_so(write, capsys):
    files = [str(path) for path in write(QUESTIONS, [("1", "red")])]
    assert eval_gqa.main(["--questions", files[0], "--answers", files[1], "--partial"]) == 0
    out = capsys.readouterr().out.rstrip("\n").split("\n")
    assert out[0].startswith("PARTIAL: 1 of 4 questions answered")
    assert json.loads(out[-1])["partial"] is True


@pytest.mark.parametrize(
    ("questions", "answers", "message"),
    [
        ("{", "", "questions.json is not valid JSON at line 1"),
        ("[]", "", "expected GQA's object"),
        ('{"1": {"types": {}}}', "", 'question 1: key "answer" is missing'),
        (
            '{"1": {"answer": "a"}}',
            '{"question_id": "1", "text": "a"}\n{"quest',
            "answers.jsonl is not valid JSON at line 2",
        ),
        ('{"1": {"answer": "a"}}', '\n{"question_id": "1"}', 'answers.jsonl:2: key "text" is missing'),
        ('{"1": {"answer": "a"}}', '{"question_id": "1", "text": null}', 'key "text" should be str'),
        ('{"1": {"answer": "a"}}', "3", "answers.jsonl:1: expected a JSON object, found int"),
    ],
)
def test_bad_input_is_one_clear_line_and_status_1(tmp_path, capsys, questions, answers, message):
    (tmp_path / "questions.json").write_text(questions)
    (tmp_path / "answers.jsonl").write_text(answers)
    argv = ["--questions", str(tmp_path / "questions.json"), "--answers", str(tmp_path / "answers.jsonl")]
    assert eval_gqa.main(argv) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1


def test_a_missing_file_is_named(tmp_path, capsys):
    assert eval_gqa.main(["--questions", str(tmp_path / "no.json"), "--answers", "x"]) == 1
    assert f"questions file not found: {tmp_path / 'no.json'}" in capsys.readouterr().err
