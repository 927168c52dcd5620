"""TextVQA's scorer against hand-computed cases of the official rules."""

import json

import pytest

from llava.cli import UserError
from llava.eval.benchmarks.textvqa import TEXTVQA, question_of_prompt
from llava.eval.metrics.judges import vqa as soft_accuracy
from llava.eval.metrics.text_normalize import normalize_answer


def score(annotations, answers, partial=False):
    return TEXTVQA.score_files(annotations, annotations, answers, partial)


SHORT = "\nAnswer the question using a single word or phrase."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Dog", "dog"),
        ("a an the", ""),
        ("theater", "theater"),
        ("dont", "don't"),
        ("don't", "don't"),
        ("wouldnt've", "wouldn't've"),
        ("wouldn'tve", "wouldn't've"),
        ("Im", "im"),  # the table has "Im", but words are looked up in lower case
        ("twas", "'twas"),
        ("somebody'd", "somebodyd"),
        ("coca cola's", "coca cola 's"),
        ("hes", "he's"),
        ("he's", "he 's"),
        ("three", "3"),
        ("None", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("twenty-one", "twenty 1"),
        ("3.5", "3.5"),
        ("5.", "5"),
        (".5", ".5"),
        ("st. john", "st john"),
        ("u.s.a.", "usa"),
        ("1,000", "1000"),
        ("yes, sir", "yes sir"),
        ("what?now", "whatnow"),
        ("t-shirt", "t shirt"),
        ("red - blue-green", "red bluegreen"),  # one "-" beside a space: every "-" is deleted, none becomes a space
        ("(stop)", "stop"),
        ("10:30", "10:30"),
        ("50%", "50%"),
        ("two\nlines\there", "2 lines here"),
        ("  spaced   out ", "spaced out"),
        ("!", ""),
        ("." * 40, "." * 8),  # at most 32 periods are deleted
    ],
)
def test_normalisation_follows_the_official_rules(text, expected):
    assert normalize_answer(text) == expected


@pytest.mark.parametrize(
    ("matches", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0), (10, 1.0)]
)
def test_each_annotator_is_left_out_in_turn(matches, expected):
    # k matches: for k annotators k-1 others agree, for 10-k all k do; e.g. k=2: (2·1/3 + 8·2/3) / 10 = 0.6.
    references = ["Nokia"] * matches + [f"other{i}" for i in range(10 - matches)]
    assert soft_accuracy("nokia", references) == pytest.approx(expected)


def test_answers_and_references_are_both_normalised():
    assert soft_accuracy("The Nokia.", ["nokia"] * 4 + ["x"] * 6) == 1.0
    assert soft_accuracy("2", ["Two"] * 2 + ["two!", "2"] + ["x"] * 6) == 1.0


@pytest.mark.parametrize(
    "prompt",
    [
        "What Brand is it?" + SHORT,
        "What Brand is it?\nReference OCR token: NOKIA, 3310" + SHORT,
        "Reference OCR token: NOKIA, 3310\nWhat Brand is it?" + SHORT,
        "OCR tokens: NOKIA, 3310. Question: What Brand is it? Short answer:",
    ],
)
def test_the_question_is_found_in_every_prompt_shape(prompt):
    assert question_of_prompt(prompt) == "what brand is it?"


@pytest.mark.parametrize("prompt", ["What brand?", "a\nb\nc", "a\nb\nc\nReference OCR token: d", "OCR tokens: a. b"])
def test_other_prompt_shapes_are_refused(prompt):
    with pytest.raises(UserError, match="shapes"):
        question_of_prompt(prompt)


@pytest.fixture
def files(tmp_path):
    """Two questions of one image and one of another; `write` puts answers to them into a file."""
    data = [
        {"question_id": 34602, "image_id": "0054", "question": "What brand?", "answers": ["nokia"] * 10},
        {"question_id": 34603, "image_id": "0054", "question": "What model?", "answers": ["3310"] * 2 + ["n"] * 8},
        {"question_id": 34604, "image_id": "0099", "question": "What brand?", "answers": ["dakota"] * 10},
    ]
    annotations = tmp_path / "val.json"
    annotations.write_text(json.dumps({"data": data}))

    def write(*rows):
        path = tmp_path / "answers.jsonl"
        lines = [json.dumps({"question_id": i, "prompt": q + SHORT, "text": t, "metadata": {}}) for i, q, t in rows]
        path.write_text("\n".join(lines) + "\n")
        return annotations, path

    return write


ALL = (("0054", "What brand?", "Nokia"), ("0054", "what MODEL?", "3310"), ("0099", "What brand?", "nokia"))


def test_accuracy_is_the_mean_over_questions(files):
    result = score(*files(*ALL))
    assert result["accuracy"] == pytest.approx(100 * (1 + 0.6 + 0) / 3)
    assert result["answered"] == 3
    assert not result["partial"]


def test_textvqas_own_question_id_is_accepted(files):
    rows = [(i, question, text) for i, (_, question, text) in zip((34602, 34603, 34604), ALL, strict=True)]
    assert score(*files(*rows)) == score(*files(*ALL))


def test_an_annotation_without_ten_answers_is_refused(files, tmp_path):
    _, answers = files(*ALL)
    short = tmp_path / "short.json"
    short.write_text(json.dumps({"data": [{"image_id": "1", "question": "q", "answers": ["a"] * 9}]}))
    with pytest.raises(UserError, match="entry 0.*10 strings, found 9"):
        score(short, answers)
