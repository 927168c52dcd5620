"""Answers files and small benchmarks for the tests of scoring."""

import json
import random

LETTERS = "ABC"


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_answers(path, texts, prompt="?"):
    """An answers file from question id → text (or a list of pairs, for doubled ids)."""
    pairs = texts.items() if isinstance(texts, dict) else texts
    return write_jsonl(path, [{"question_id": i, "prompt": prompt, "text": text, "metadata": {}} for i, text in pairs])


def last_json(output):
    return json.loads(output.rstrip("\n").split("\n")[-1])


def write_table(path, columns, rows):
    path.write_text("".join("\t".join(map(str, line)) + "\n" for line in [columns, *rows]))


def _gqa(folder):
    rows = [{"question_id": str(n), "image": f"{n // 3}.jpg", "text": "What?"} for n in range(20)]
    types = [{"structural": kind, "semantic": "attr"} for kind in ("query", "verify", "choose")]
    entries = {str(n): {"answer": ("red", "blue")[n % 2], "types": types[n % 3], "isBalanced": True} for n in range(20)}
    (folder / "data").mkdir()
    (folder / "data" / "testdev_balanced_questions.json").write_text(json.dumps(entries))
    return rows, ["Red.", "blue", "yes"]


def _mme(folder):
    rows = []
    for task in ("existence", "code_reasoning"):
        release = folder / "MME_Benchmark_release_version" / task
        release.mkdir(parents=True)
        for n in range(5):
            asked = [f"{thing} {n}? Please answer yes or no." for thing in ("Dog", "Cat")]
            (release / f"{n}.txt").write_text(f"{asked[0]}\tYes\n{asked[1]}\tNo\n")
            rows += [{"question_id": f"{task}/{n}.png", "image": f"{task}/{n}.png", "text": text} for text in asked]
    return rows, ["Yes", "no.", "maybe"]


def _textvqa(folder):
    entries = [
        {"image_id": f"{n // 2}", "question": f"What {n}?", "answers": ["two"] * (n % 5) + ["red"] * (10 - n % 5)}
        for n in range(20)
    ]
    (folder / "TextVQA_0.5.1_val.json").write_text(json.dumps({"data": entries}))
    return [
        {"question_id": one["image_id"], "image": "x.jpg", "text": f"{one['question']}\nAnswer."} for one in entries
    ], ["2", "Red", "the red."]


def _pope(folder):
    rows, labels = [], {}
    for n in range(24):
        split = ("adversarial", "popular", "random")[n % 3]
        question = {"image": f"{n // 6}.jpg", "text": f"Is there a thing {n}?"}
        labels.setdefault(split, []).append(question | {"label": "yes" if n % 5 < 2 else "no"})
        rows.append({"question_id": n, "category": split, **question})
    for split, some in labels.items():
        write_jsonl(folder / "coco" / f"coco_pope_{split}.json", some)
    return rows, ["yes", "No.", "There is not", "perhaps"]


def _scienceqa(folder):
    numbers = [str(n) for n in range(3, 30)]
    problems = {n: {"choices": ["x", "y", "z"], "answer": int(n) % 3, "image": "image.png"} for n in numbers}
    (folder / "problems.json").write_text(json.dumps(problems))
    (folder / "pid_splits.json").write_text(json.dumps({"test": numbers}))
    words = [*LETTERS, "The answer is B.", "none"]
    return [{"question_id": n, "image": f"{n}/image.png", "text": "Which?"} for n in numbers], words


def _mmbench(folder):
    rows = [(n + turn * 1_000_000, f"q{n}", "x", "y", "z", LETTERS[n % 3]) for turn in range(2) for n in range(12)]
    write_table(folder / "mmbench_dev_20230712.tsv", ("index", "question", "A", "B", "C", "answer"), rows)
    return [{"question_id": row[0], "image": f"{row[0]}.jpg", "text": row[1]} for row in rows], ["A", "B.", "x", "(C)"]


def _mmstar(folder):
    rows = [(n, LETTERS[n % 3], f"kind {n % 2}", "finer") for n in range(18)]
    write_table(folder / "mmstar_val.tsv", ("index", "answer", "category", "l2_category"), rows)
    return [{"question_id": row[0], "image": f"{row[0]}.jpg", "text": "Which?"} for row in rows], ["A", "B", "C"]


def _vqav2(folder):
    entries = [
        {"question_id": n, "answers": [{"answer": word} for word in ["two"] * (n % 5) + ["red"] * (10 - n % 5)]}
        for n in range(20)
    ]
    (folder / "v2_mscoco_val2014_annotations.json").write_text(json.dumps({"annotations": entries}))
    return [{"question_id": n, "image": f"{n}.jpg", "text": "What?"} for n in range(20)], ["2", "Red", "the red."]


def _vizwiz(folder):
    entries = [
        {"image": f"{n}.jpg", "answers": [{"answer": word} for word in ["cat"] * (n % 5) + ["dog"] * (10 - n % 5)]}
        for n in range(20)
    ]
    (folder / "val.json").write_text(json.dumps(entries))
    return [{"question_id": f"q{n}", "image": f"{n}.jpg", "text": "What?"} for n in range(20)], ["cat", "Dog", "cow"]


SMALL = {
    "gqa": _gqa,
    "mme": _mme,
    "textvqa": _textvqa,
    "pope": _pope,
    "scienceqa": _scienceqa,
    "mmbench": _mmbench,
    "mmstar": _mmstar,
    "vqav2_val": _vqav2,
    "vizwiz_val": _vizwiz,
}
"""Benchmark → a function that writes small references into a folder and returns (question rows, words to answer)."""


def small(benchmark, data_dir):
    """Write a small set of a benchmark below `data_dir`; returns its folder and rows of random answers to it."""
    folder = benchmark.at(data_dir)
    folder.mkdir(parents=True)
    rows, words = SMALL[benchmark.name](folder)
    write_jsonl(folder / benchmark.questions, rows)
    draw = random.Random(1)
    return folder, [
        {"question_id": row["question_id"], "prompt": row["text"], "text": draw.choice(words), "metadata": {}}
        for row in rows
    ]
