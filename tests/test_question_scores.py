"""The scores of single answers: their mean is what each benchmark's scorer says."""

import json
import random

import pytest
from llava_fixtures import write_json
from loader_fixtures import write_jsonl

from llava.cli import UserError
from llava.eval.benchmarks import BENCHMARKS, benchmark_of
from llava.eval.metrics.answer_files import read_answers

LETTERS = "ABC"


def pope(folder):
    rows, labels = [], {}
    for n in range(24):
        split = ("adversarial", "popular", "random")[n % 3]
        question = {"image": f"{n // 6}.jpg", "text": f"Is there a thing {n}?"}
        labels.setdefault(split, []).append(question | {"label": "yes" if n % 5 < 2 else "no"})
        rows.append({"question_id": n, "category": split, **question})
    (folder / "coco").mkdir()
    for split, some in labels.items():
        write_jsonl(folder / "coco" / f"coco_pope_{split}.json", some)
    return rows, ["yes", "No.", "There is not", "perhaps"]


def scienceqa(folder):
    numbers = [str(n) for n in range(3, 30)]
    problems = {n: {"choices": ["x", "y", "z"], "answer": int(n) % 3, "image": "image.png"} for n in numbers}
    write_json(folder / "problems.json", problems)
    write_json(folder / "pid_splits.json", {"test": numbers})
    return [{"question_id": n, "image": f"{n}/image.png", "text": "Which?"} for n in numbers], [
        *LETTERS,
        "The answer is B.",
        "none",
    ]


def table(path, columns, rows):
    path.write_text("".join("\t".join(map(str, line)) + "\n" for line in [columns, *rows]))


def mmbench(folder):
    rows = [(n + turn * 1_000_000, f"q{n}", "x", "y", "z", LETTERS[n % 3]) for turn in range(2) for n in range(12)]
    table(folder / "mmbench_dev_20230712.tsv", ("index", "question", "A", "B", "C", "answer"), rows)
    return [{"question_id": row[0], "image": f"{row[0]}.jpg", "text": row[1]} for row in rows], ["A", "B.", "x", "(C)"]


def mmstar(folder):
    rows = [(n, LETTERS[n % 3], f"kind {n % 2}", "finer") for n in range(18)]
    table(folder / "mmstar_val.tsv", ("index", "answer", "category", "l2_category"), rows)
    return [{"question_id": row[0], "image": f"{row[0]}.jpg", "text": "Which?"} for row in rows], ["A", "B", "C"]


def vqav2(folder):
    entries = [
        {"question_id": n, "answers": [{"answer": word} for word in ["two"] * (n % 5) + ["red"] * (10 - n % 5)]}
        for n in range(20)
    ]
    write_json(folder / "v2_mscoco_val2014_annotations.json", {"annotations": entries})
    return [{"question_id": n, "image": f"{n}.jpg", "text": "What?"} for n in range(20)], ["2", "Red", "the red."]


def vizwiz(folder):
    entries = [
        {"image": f"{n}.jpg", "answers": [{"answer": word} for word in ["cat"] * (n % 5) + ["dog"] * (10 - n % 5)]}
        for n in range(20)
    ]
    write_json(folder / "val.json", entries)
    return [{"question_id": f"q{n}", "image": f"{n}.jpg", "text": "What?"} for n in range(20)], ["cat", "Dog", "cow"]


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (pope, "pope"),
        (scienceqa, "scienceqa"),
        (mmbench, "mmbench"),
        (mmstar, "mmstar"),
        (vqav2, "vqav2_val"),
        (vizwiz, "vizwiz_val"),
    ],
)
def test_the_mean_score_is_the_scorers_accuracy(tmp_path, make, name):
    benchmark = BENCHMARKS[name]
    folder = tmp_path / benchmark.folder
    folder.mkdir()
    rows, words = make(folder)
    questions = write_jsonl(folder / benchmark.questions, rows)
    draw = random.Random(1)
    answers = [
        {"question_id": row["question_id"], "prompt": row["text"], "text": draw.choice(words), "metadata": {}}
        for row in rows
    ]
    file = write_jsonl(tmp_path / "answers.jsonl", answers)
    found = benchmark_of(questions)
    assert found.kind == benchmark.kind
    scores = found.question_scores(read_answers(file), questions, found.references_at(folder))
    expected = benchmark.score(folder, file, False)["accuracy"]
    assert 0 < expected < 100
    assert 100 * sum(scores.values()) / len(scores) == pytest.approx(expected)
    assert set(scores) <= {(str(row["question_id"]), row["text"]) for row in rows}


def test_answers_to_unknown_questions_have_no_score(tmp_path):
    (tmp_path / "data").mkdir()
    annotations = tmp_path / "data" / "testdev_balanced_questions.json"
    annotations.write_text(json.dumps({"1": {"answer": "red"}}))
    rows = [{"question_id": n, "prompt": "Colour?", "text": "Red."} for n in ("1", "2")]
    answers = read_answers(write_jsonl(tmp_path / "answers.jsonl", rows))
    scores = BENCHMARKS["gqa"].question_scores(answers, tmp_path / "q.jsonl", annotations)
    assert scores == {("1", "Colour?"): 1}


def test_unknown_benchmarks_are_refused_with_the_known_ones(tmp_path):
    with pytest.raises(UserError, match="no known benchmark's folder; known: gqa, mme"):
        benchmark_of(tmp_path / "nothing" / "q.jsonl")
    with pytest.raises(UserError, match="benchmark 'coco' is not known"):
        benchmark_of(tmp_path / "gqa" / "q.jsonl", "coco")
