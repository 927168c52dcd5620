"""VQAv2's and VizWiz's scorers, and the files for their servers."""

import json
import random

import pytest
from answer_fixtures import last_json, write_answers, write_jsonl

from llava.cli import UserError
from llava.eval import convert_mmvet_for_eval, convert_vizwiz_for_submission, convert_vqav2_for_submission, eval_vqav2
from llava.eval.benchmarks.vizwiz import VIZWIZ_VAL
from llava.eval.benchmarks.vqav2 import VQAV2_VAL, vqa_accuracy
from llava.eval.metrics.judges import vqa as soft_accuracy
from llava.eval.metrics.text_normalize import normalize_vqa


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes, a dog", "yes dog"),
        ("red,blue", "red blue"),
        ("1,000 red-ish", "1000 redish"),  # a comma between digits: every mark is deleted
        ("what?", "what"),
        ("what ?now", "what now"),
        ("Two", "2"),
        ("The coca-cola's", "coca cola's"),  # "'s" stays where it is
        ("dont", "don't"),
        ("3.5.", "3.5"),
    ],
)
def test_vqas_own_normalisation(text, expected):
    assert normalize_vqa(text) == expected


def test_unanimous_references_are_compared_as_they_stand():
    assert vqa_accuracy("two dogs", ["Two dogs"] * 10) == 0
    assert vqa_accuracy("2 dogs", ["Two dogs"] * 9 + ["dogs"]) == 1


def test_vqa_accuracy_agrees_with_a_slow_reading():
    rng = random.Random(1)
    for _ in range(100):
        references = [rng.choice(["yes", "no", "two", "2", "a dog"][: rng.randint(2, 5)]) for _ in range(10)]
        answer = rng.choice(["yes", "no", "2", "dog"])
        differ = len(set(references)) > 1
        wanted = [normalize_vqa(reference) if differ else reference for reference in references]
        scores = []
        for left_out in range(10):
            others = [reference for i, reference in enumerate(wanted) if i != left_out]
            scores.append(min(1, sum(other == answer for other in others) / 3))
        assert vqa_accuracy(answer, references) == pytest.approx(sum(scores) / 10)


def vqa_annotation(question_id, answers, kind="other"):
    given = [{"answer": answer, "answer_id": i} for i, answer in enumerate(answers)]
    return {"question_id": question_id, "answers": given, "answer_type": kind, "question_type": "what"}


def test_vqav2_val(tmp_path, capsys):
    annotations = tmp_path / "v2.json"
    entries = [vqa_annotation(1, ["yes"] * 10, "yes/no"), vqa_annotation(2, ["two"] * 2 + ["3"] * 8, "number")]
    annotations.write_text(json.dumps({"annotations": entries}))
    answers = write_answers(tmp_path / "a.jsonl", {1: "Yes.", 2: "two"})
    assert eval_vqav2.main(["--annotation-file", str(annotations), "--result-file", str(answers)]) == 0
    result = last_json(capsys.readouterr().out)
    assert result["accuracy"] == pytest.approx(100 * (1 + 0.6) / 2)
    assert result["groups"]["answer type"]["number"] == {"accuracy": pytest.approx(60), "count": 1}
    with pytest.raises(UserError, match="1 of 2 questions answered"):
        VQAV2_VAL.score_files(None, annotations, write_answers(tmp_path / "b.jsonl", {1: "yes"}))
    annotations.write_text(json.dumps({"annotations": [entries[0], entries[0]]}))
    with pytest.raises(UserError, match="entry 1: question 1 occurs twice"):
        VQAV2_VAL.score_files(None, annotations, answers)


@pytest.fixture
def vizwiz(tmp_path):
    rows = [{"question_id": i, "image": f"VizWiz_{i}.jpg", "text": "?"} for i in (0, 1)]
    return write_jsonl(tmp_path / "questions.jsonl", rows)


def test_vizwiz_val_is_soft_accuracy_by_answer_type(vizwiz):
    folder = vizwiz.parent
    references = {0: ["unanswerable"] * 10, 1: ["Soup"] * 2 + ["beans"] * 8}
    entries = [
        {"image": f"VizWiz_{i}.jpg", "answers": [{"answer": a} for a in given], "answer_type": f"type{i}"}
        for i, given in references.items()
    ]
    annotations = folder / "val.json"
    annotations.write_text(json.dumps(entries))
    answers = write_answers(folder / "a.jsonl", {0: "Unanswerable", 1: "the soup"})
    result = VIZWIZ_VAL.score_files(vizwiz, annotations, answers)
    assert result["accuracy"] == pytest.approx(100 * (1 + soft_accuracy("soup", references[1])) / 2)
    assert result["groups"]["answer type"]["type1"]["accuracy"] == pytest.approx(60)
    annotations.write_text(json.dumps(entries[:1]))
    with pytest.raises(UserError, match="no annotation of VizWiz_1.jpg"):
        VIZWIZ_VAL.score_files(vizwiz, annotations, answers)
    annotations.write_text(json.dumps([{"image": "VizWiz_0.jpg", "question": "?"}]))
    with pytest.raises(UserError, match="the test split has none"):
        VIZWIZ_VAL.score_files(vizwiz, annotations, answers)


def test_vizwizs_submission_has_every_image_in_order(vizwiz, capsys):
    answers = write_answers(vizwiz.parent / "a.jsonl", {1: "The Soup!", 0: "Unanswerable"})
    upload = vizwiz.parent / "upload" / "x.json"
    argv = ["--annotation-file", str(vizwiz), "--result-upload-file", str(upload), "--result-file"]
    assert convert_vizwiz_for_submission.main([*argv, str(answers)]) == 0
    assert json.loads(upload.read_text()) == [
        {"image": "VizWiz_0.jpg", "answer": "unanswerable"},
        {"image": "VizWiz_1.jpg", "answer": "soup"},
    ]
    upload.unlink()
    assert convert_vizwiz_for_submission.main([*argv, str(write_answers(answers, {1: "x"}))]) == 1
    assert "first missing: '0'" in capsys.readouterr().err
    assert not upload.exists()


def test_vqav2s_submission_covers_the_server_s_questions(tmp_path, capsys):
    for name, ids in (("llava_vqav2_mscoco_test-dev2015", (2, 1)), ("llava_vqav2_mscoco_test2015", (1, 2, 3))):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"question_id": i, "image": "x", "text": "?"} for i in ids])
    split = "llava_vqav2_mscoco_test-dev2015"
    answers = tmp_path / "answers" / split / "run" / "merge.jsonl"
    write_answers(answers, {1: "Two dogs", 2: "Yes."})
    argv = ["--dir", str(tmp_path), "--split", split, "--ckpt", "run"]
    assert convert_vqav2_for_submission.main(argv) == 0
    assert last_json(capsys.readouterr().out)["filled"] == 1
    assert json.loads((tmp_path / "answers_upload" / split / "run.json").read_text()) == [
        {"question_id": 1, "answer": "2 dogs"},
        {"question_id": 2, "answer": "yes"},
        {"question_id": 3, "answer": ""},
    ]
    write_answers(answers, {1: "x"})
    assert convert_vqav2_for_submission.main(argv) == 1
    write_answers(answers, {1: "x", 2: "y"})
    write_jsonl(tmp_path / "llava_vqav2_mscoco_test2015.jsonl", [{"question_id": 1}, {"question_id": 3}])
    assert convert_vqav2_for_submission.main(argv) == 1
    assert "question 2 of" in capsys.readouterr().err


def test_mmvets_file_for_the_grader(tmp_path, capsys):
    questions = write_jsonl(tmp_path / "q.jsonl", [{"question_id": i, "text": "?"} for i in (0, 1, 2)])
    answers = write_answers(tmp_path / "a.jsonl", {2: "c", 0: "Ünd", 1: ""})
    argv = ["--src", str(answers), "--dst", str(tmp_path / "out.json")]
    assert convert_mmvet_for_eval.main([*argv, "--questions", str(questions)]) == 0
    printed = capsys.readouterr().out
    assert "EMPTY: 1 of 3 answers" in printed
    assert list(json.loads((tmp_path / "out.json").read_text()).items()) == [
        ("v1_0", "Ünd"),
        ("v1_1", ""),
        ("v1_2", "c"),
    ]
    write_answers(answers, {0: "a", 1: "b"})
    assert convert_mmvet_for_eval.main(argv) == 0
    assert convert_mmvet_for_eval.main([*argv, "--questions", str(questions)]) == 1
    write_answers(answers, [(0, "a"), (0, "b")])
    assert convert_mmvet_for_eval.main(argv) == 1
    assert "1 duplicate" in capsys.readouterr().err
