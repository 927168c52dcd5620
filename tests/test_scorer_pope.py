"""POPE's scorer against hand-computed cases and an independent reading of the official rule."""

import random

import pytest
from answer_fixtures import last_json, write_answers, write_jsonl

from llava.cli import UserError
from llava.eval import eval_pope
from llava.eval.benchmarks.pope import METRICS, POPE, SPLITS, metrics, parse_yes_no
from llava.eval.benchmarks.prompts import SHORT


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("Yes", True),
        ("No", False),
        ("no, there is none", False),
        ("No.", False),
        ("There is not a dog. Yes", False),  # of the first sentence only
        ("Yes. No", True),
        ("NO", True),  # not one of the words of the rule
        ("none", True),
        ("perhaps", True),
        ("", True),
        ("I do,not", True),  # commas are deleted, not turned into spaces
        ("\nNo", True),  # words are cut at spaces only
    ],
)
def test_the_official_reading_of_an_answer(text, yes):
    assert parse_yes_no(text) is yes


def test_metrics_of_a_small_case():
    # 3 said yes of 5, of which 2 rightly; 4 are yes.
    judged = [(True, True), (True, True), (True, False), (False, True), (False, True)]
    assert metrics(judged) == {
        "accuracy": 40,
        "precision": pytest.approx(200 / 3),
        "recall": 50,
        "f1": pytest.approx(400 / 7),
        "yes_ratio": 60,
        "count": 5,
    }


def test_metrics_without_a_yes_are_zero():
    assert metrics([(False, False)] * 3)["f1"] == 0
    assert metrics([(False, False)] * 3)["accuracy"] == 100


@pytest.fixture
def pope(tmp_path):
    """Three splits of four questions; `write(texts)` scores them. Labels: yes, no, yes, no."""
    questions, objects = [], ("dog", "cat", "cup", "hat")
    for base, split in enumerate(SPLITS):
        labels = []
        for number, thing in enumerate(objects):
            image, asked = f"COCO_{number % 2}.jpg", f"Is there a {thing} in the image?"
            row = {"question_id": base * 100 + number, "image": image, "text": f"{asked}\n{SHORT}", "category": split}
            questions.append(row)
            label = "yes" if number % 2 == 0 else "no"
            labels.append({"question_id": number + 1, "image": image, "text": asked, "label": label})
        write_jsonl(tmp_path / "coco" / f"coco_pope_{split}.json", labels)
    question_file = write_jsonl(tmp_path / "questions.jsonl", questions)

    def run(texts, **options):
        return POPE.score_files(question_file, tmp_path / "coco", write_answers(tmp_path / "a.jsonl", texts), **options)

    run.questions, run.folder, run.ids = question_file, tmp_path, [row["question_id"] for row in questions]
    return run


def test_splits_and_their_mean(pope):
    texts = dict.fromkeys(pope.ids, "yes") | {0: "Yes", 1: "No", 2: "Yes", 3: "No"}
    result = pope(texts)
    assert result["groups"]["split"]["adversarial"]["accuracy"] == 100
    assert result["groups"]["split"]["popular"] == {
        "accuracy": 50,
        "precision": 50,
        "recall": 100,
        "f1": pytest.approx(200 / 3),
        "yes_ratio": 100,
        "count": 4,
    }
    assert result["f1"] == result.quoted == pytest.approx((100 + 2 * 200 / 3) / 3)
    assert result["accuracy"] == pytest.approx(200 / 3)


def test_agrees_with_a_reading_that_counts_by_hand(pope):
    rng = random.Random(0)
    for _ in range(20):
        texts = {i: rng.choice(["Yes", "No", "no idea", "It is not. Yes", "maybe"]) for i in pope.ids}
        result = pope(texts)
        for base, split in enumerate(SPLITS):
            counts = {"tp": 0, "fp": 0, "tn": 0, "fn": 0}
            for number in range(4):
                first = texts[base * 100 + number].split(".")[0]
                said = not any(word in ("No", "not", "no") for word in first.split(" "))
                counts[("t" if said == (number % 2 == 0) else "f") + ("p" if said else "n")] += 1
            entry = result["groups"]["split"][split]
            assert entry["accuracy"] == pytest.approx(25 * (counts["tp"] + counts["tn"]))
            assert entry["yes_ratio"] == pytest.approx(25 * (counts["tp"] + counts["fp"]))
            if counts["tp"]:
                precision = counts["tp"] / (counts["tp"] + counts["fp"])
                recall = counts["tp"] / (counts["tp"] + counts["fn"])
                assert entry["f1"] == pytest.approx(200 * precision * recall / (precision + recall))


def test_the_order_of_labels_and_answers_does_not_matter(pope):
    texts = {i: "Yes" if n % 3 else "No" for n, i in enumerate(pope.ids)}
    before = pope(texts)
    path = pope.folder / "coco" / "coco_pope_random.json"
    path.write_text("\n".join(reversed(path.read_text().strip().split("\n"))))
    assert pope(dict(reversed(texts.items()))) == before


def test_the_first_releases_spelling_is_the_same_question(pope):
    path = pope.folder / "coco" / "coco_pope_random.json"
    path.write_text(path.read_text().replace("cup in the image", "cup in the imange"))
    assert pope(dict.fromkeys(pope.ids, "Yes"))["recall"] == 100


def test_labels_of_another_release_are_refused(pope):
    path = pope.folder / "coco" / "coco_pope_random.json"
    text = path.read_text()
    path.write_text(text.replace("a hat", "a bat"))
    with pytest.raises(UserError, match="no .or no second. 'Is there a hat.*one release"):
        pope(dict.fromkeys(pope.ids, "Yes"))
    path.write_text(text + text.split("\n")[0].replace("a dog", "a ram") + "\n")
    with pytest.raises(UserError, match="1 random labels have no question"):
        pope(dict.fromkeys(pope.ids, "Yes"))


def test_command_line_tells_empty_answers_and_writes_the_scores(pope, capsys):
    answers = write_answers(pope.folder / "a.jsonl", dict.fromkeys(pope.ids, ""))
    output = pope.folder / "new" / "scores.json"
    argv = ["--annotation-dir", str(pope.folder / "coco"), "--question-file", str(pope.questions)]
    assert eval_pope.main([*argv, "--result-file", str(answers), "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "EMPTY: 12 of 12 answers hold no text" in printed
    assert last_json(printed) == last_json(output.read_text().replace("\n", "")) == pope(dict.fromkeys(pope.ids, ""))
    assert all(metric in last_json(printed) for metric in METRICS)
