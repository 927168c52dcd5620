"""Merging chunk answers: question order, exactly one answer per question, nothing lost from a line."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.cli import UserError
from llava.eval import merge as merge_module
from llava.eval.merge import merge
from llava.eval.metrics.answer_files import match


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def answer(question_id, prompt, text="yes"):
    return {"question_id": question_id, "prompt": prompt, "text": text, "metadata": {"kept": [1, 2]}}


# One id for two questions, as MME and TextVQA have it; and one question asked twice.
QUESTIONS = [("a", "one?"), ("a", "two?"), ("b", "one?"), ("b", "one?"), (7, "é\u2028?")]


@pytest.fixture
def questions(tmp_path):
    return write_jsonl(tmp_path / "questions.jsonl", [{"question_id": i, "text": t} for i, t in QUESTIONS])


def test_answers_come_out_whole_and_in_question_order(tmp_path, questions):
    rows = [answer(i, t, f"answer {n}") for n, (i, t) in enumerate(QUESTIONS)]
    chunks = [
        write_jsonl(tmp_path / "2_0.jsonl", rows[3:] + rows[1:2]),
        write_jsonl(tmp_path / "2_1.jsonl", rows[:1] + rows[2:3]),
    ]
    result = merge(questions, chunks, tmp_path / "new" / "merge.jsonl")
    merged = [json.loads(line) for line in (tmp_path / "new" / "merge.jsonl").read_text().split("\n")[:-1]]
    assert [(row["question_id"], row["prompt"]) for row in merged] == QUESTIONS
    assert sorted(row["text"] for row in merged) == sorted(row["text"] for row in rows)
    assert all(row["metadata"] == {"kept": [1, 2]} for row in merged)
    assert result["answered"] == 5 and not result["partial"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:-1], "4 of 5 questions answered, 1 missing.*first missing: \\('7'"),
        (lambda rows: [*rows, rows[0]], "1 duplicate answers.*1_0.jsonl:6"),
        (lambda rows: [*rows, answer("c", "one?")], "1 answers to unknown questions.*1_0.jsonl:6"),
        (lambda rows: [*rows[1:], {"question_id": "a", "text": "yes"}], 'key "prompt" is missing'),
    ],
)
def test_missing_twice_answered_and_unknown_questions_leave_no_output(tmp_path, questions, change, message):
    rows = change([answer(i, t) for i, t in QUESTIONS])
    chunk = write_jsonl(tmp_path / "1_0.jsonl", rows)
    with pytest.raises(UserError, match=message):
        merge(questions, [chunk], tmp_path / "merge.jsonl")
    assert not (tmp_path / "merge.jsonl").exists()


def test_partial_leaves_unanswered_questions_out(tmp_path, questions):
    chunk = write_jsonl(tmp_path / "1_0.jsonl", [answer(7, "é\u2028?"), answer("a", "two?")])
    assert merge(questions, [chunk], tmp_path / "merge.jsonl", partial=True)["missing"] == 3
    merged = [json.loads(line)["question_id"] for line in (tmp_path / "merge.jsonl").read_text().split("\n")[:-1]]
    assert merged == ["a", 7]


def test_an_output_that_cannot_be_written_is_one_line(tmp_path, questions, capsys):
    chunk = write_jsonl(tmp_path / "1_0.jsonl", [answer(i, t) for i, t in QUESTIONS])
    assert merge_module.main(["--questions", str(questions), "--output", str(chunk / "m.jsonl"), str(chunk)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {chunk}/m.jsonl cannot be written: ") and error.count("\n") == 1


def test_a_half_written_line_is_named(tmp_path, questions, capsys):
    chunk = tmp_path / "1_0.jsonl"
    chunk.write_text(json.dumps(answer("a", "one?")) + '\n{"question_id": "a", "pro')
    assert merge_module.main(["--questions", str(questions), "--output", str(tmp_path / "m"), str(chunk)]) == 1
    error = capsys.readouterr().err
    assert "1_0.jsonl is not valid JSON at line 2" in error and "run what wrote it again" in error


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from("abcd"), min_size=1), st.lists(st.sampled_from("abcdxy")))
def test_match_counts_every_question_and_every_answer_once(expected, given_keys):
    answers = [(key, str(i)) for i, key in enumerate(given_keys)]
    if not set(expected) & set(given_keys):
        with pytest.raises(UserError, match="nothing to score"):
            match(expected, answers, partial=True)
        return
    used, coverage = match(expected, answers, partial=True)
    assert coverage.answered + coverage.missing == coverage.expected == len(expected)
    assert len(used) + coverage.duplicates + coverage.unknown == len(given_keys)
    for key in "abcd":
        assert sum(given_keys[i] == key for i in used) == min(expected.count(key), given_keys.count(key))
    if not coverage.complete:
        with pytest.raises(UserError, match="--partial"):
            match(expected, answers)
