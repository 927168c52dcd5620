"""Mini benchmarks: the real ones' files, reproducible, balanced, held out, right answers scored as right."""

import json
from collections import Counter
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_tiny_questions import solve

from llava.eval.benchmarks import BENCHMARKS
from llava.tiny.benchmarks import main, write_benchmarks
from llava.tiny.questions import SHORT_ANSWER, YES_OR_NO
from llava.tiny.scenes import render
from llava.tiny.worlds import UNSEEN_PAIRS, is_evaluation_sign, picture_seeds

QUESTIONS = 60
GQA = Path("gqa_mini/llava_gqa_testdev_balanced.jsonl")
MME = Path("mme_mini/llava_mme.jsonl")
TEXTVQA = Path("textvqa_mini/llava_textvqa_val_v051_ocr.jsonl")
IMAGES = {
    GQA: Path("gqa_mini/data/images"),
    MME: Path("mme_mini/MME_Benchmark_release_version"),
    TEXTVQA: Path("textvqa_mini/train_images"),
}


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("eval")
    assert write_benchmarks(out, QUESTIONS) == {"gqa_mini": 60, "mme_mini": 60, "textvqa_mini": 60}
    return out


@pytest.fixture(scope="module")
def gqa(written):
    return json.loads((written / "gqa_mini/data/testdev_balanced_questions.json").read_text(encoding="utf-8"))


def answers_file(path, rows, texts):
    lines = [
        json.dumps({"question_id": row["question_id"], "prompt": row["text"], "text": text})
        for row, text in zip(rows, texts, strict=True)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def mme_answers(written):
    for row in read_lines(written / MME):
        text = (written / IMAGES[MME] / row["image"]).with_suffix(".txt").read_text(encoding="utf-8")
        known = dict(line.split("\t") for line in text.splitlines())
        yield known[row["text"].removesuffix(SHORT_ANSWER) + YES_OR_NO]


@pytest.mark.parametrize("path", [GQA, MME, TEXTVQA])
def test_question_files_have_llavas_keys_and_adjacent_images(written, path):
    rows = read_lines(written / path)
    assert len(rows) == QUESTIONS
    for row in rows:
        assert list(row) == ["question_id", "image", "text", "category"]
        assert row["text"].count("\n") == 1 and row["text"].endswith(SHORT_ANSWER)
        with Image.open(written / IMAGES[path] / row["image"]) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (168, 168))
    images = [image for image, _ in groupby(row["image"] for row in rows)]
    assert len(images) == len(set(images))
    on_disk = {str(p.relative_to(written / IMAGES[path])) for p in (written / IMAGES[path]).rglob("*.png")}
    assert on_disk == set(images)


def test_same_arguments_same_bytes_other_seed_other_pictures(written, tmp_path):
    write_benchmarks(tmp_path / "same", QUESTIONS)
    write_benchmarks(tmp_path / "other", QUESTIONS, seed=1)
    assert contents(tmp_path / "same") == contents(written)
    first, other = ({v for k, v in contents(d).items() if k.endswith(".png")} for d in (written, tmp_path / "other"))
    assert not first & other


def test_gqa_answers_follow_from_the_redrawn_pictures(written, gqa):
    rows = read_lines(written / GQA)
    assert [row["question_id"] for row in rows] == list(gqa)
    images = [image for image, _ in groupby(row["image"] for row in rows)]
    for image, seed in zip(images, picture_seeds("benchmark", 0, 0), strict=False):
        pixels, scene = render(np.random.default_rng(seed))
        assert np.array_equal(np.asarray(Image.open(written / IMAGES[GQA] / image)), pixels)
        for row in (r for r in rows if r["image"] == image):
            known = gqa[row["question_id"]]
            assert known["imageId"] + ".png" == image and row["text"] == known["question"] + SHORT_ANSWER
            assert known["answer"] == solve(known["question"], scene).lower()


def test_mme_answers_follow_from_the_redrawn_pictures(written):
    rows = read_lines(written / MME)
    seeds = iter(picture_seeds("benchmark", 0, 1))
    for image, group in groupby(zip(rows, mme_answers(written), strict=True), key=lambda pair: pair[0]["image"]):
        pixels = np.asarray(Image.open(written / IMAGES[MME] / image))
        signs = 1.0 if image.startswith("OCR") else 0.6
        redrawn = (render(np.random.default_rng(seed), sign_probability=signs) for seed in seeds)
        scene = next(scene for drawn, scene in redrawn if np.array_equal(drawn, pixels))
        for row, answer in group:
            assert row["question_id"] == image == row["image"] and image.split("/")[0] == row["category"]
            assert answer == solve(row["text"].removesuffix(SHORT_ANSWER), scene)


def test_textvqa_answers_follow_from_the_redrawn_pictures(written):
    data = json.loads((written / "textvqa_mini/TextVQA_0.5.1_val.json").read_text(encoding="utf-8"))["data"]
    for row, known in zip(read_lines(written / TEXTVQA), data, strict=True):
        assert row["question_id"] == known["image_id"] and row["text"] == known["question"] + SHORT_ANSWER
        seed = int(known["image_id"], 16)
        assert seed in picture_seeds("benchmark", 0, 2)
        _, scene = render(np.random.default_rng(seed), sign_probability=1.0, card_probability=1.0)
        assert known["answers"] == [solve(known["question"], scene)] * 10


def test_yes_and_no_are_balanced(written, gqa):
    by_type = {}
    for known in gqa.values():
        if known["answer"] in ("yes", "no"):
            by_type.setdefault(known["types"]["detailed"], Counter())[known["answer"]] += 1
    assert set(by_type) == {"existAttr", "relVerify"}
    assert all(abs(c["yes"] - c["no"]) <= 1 for c in by_type.values())
    pairs = [list(mme_answers(written))[i : i + 2] for i in range(0, QUESTIONS, 2)]
    assert all(pair == ["Yes", "No"] for pair in pairs)
    assert Counter(row["category"] for row in read_lines(written / MME)) == dict.fromkeys(
        ("existence", "count", "position", "color", "OCR"), QUESTIONS // 5
    )


def test_every_gqa_type_occurs_and_questions_differ(written, gqa):
    assert {known["types"]["structural"] for known in gqa.values()} == {"query", "verify", "choose"}
    assert len({known["types"]["detailed"] for known in gqa.values()}) == 9
    asked = [(row["image"], row["text"]) for row in read_lines(written / GQA)]
    assert len(set(asked)) == len(asked)


def test_the_scorers_give_right_answers_full_marks(written, gqa, tmp_path):
    def score(name, answers):
        return BENCHMARKS[name].score(BENCHMARKS[name].at(written), answers)

    rows = read_lines(written / GQA)
    right = answers_file(tmp_path / "gqa", rows, [gqa[row["question_id"]]["answer"].capitalize() for row in rows])
    assert score("gqa_mini", right)["accuracy"] == 100
    right = answers_file(tmp_path / "mme", read_lines(written / MME), list(mme_answers(written)))
    assert score("mme_mini", right)["perception"] == 5 * 200
    annotations = written / "textvqa_mini/TextVQA_0.5.1_val.json"
    texts = [known["answers"][0] for known in json.loads(annotations.read_text(encoding="utf-8"))["data"]]
    right = answers_file(tmp_path / "textvqa", read_lines(written / TEXTVQA), texts)
    assert score("textvqa_mini", right)["accuracy"] == pytest.approx(100)


def test_rewriting_removes_old_pictures_and_keeps_foreign_files(tmp_path, capsys):
    main(["--out", str(tmp_path), "--questions", "40"])
    answers = tmp_path / "gqa_mini" / "answers" / "run.jsonl"
    answers.parent.mkdir()
    answers.write_text("{}\n", encoding="utf-8")
    main(["--out", str(tmp_path), "--questions", "15", "--split", "tune"])
    assert "mme_mini: 20 questions" in capsys.readouterr().out
    assert answers.read_text(encoding="utf-8") == "{}\n"
    assert len(list((tmp_path / "gqa_mini/data/images").iterdir())) == 4
    assert [len(read_lines(tmp_path / path)) for path in (GQA, MME, TEXTVQA)] == [15, 20, 15]


@pytest.mark.parametrize("bad", [["--questions", "0"], ["--seed", "100"], ["--per-image", "0"]])
def test_bad_arguments_are_refused_before_anything_is_written(bad, tmp_path):
    with pytest.raises(SystemExit) as left:
        main(["--out", str(tmp_path / "eval"), *bad])
    assert left.value.code == 2
    assert not (tmp_path / "eval").exists()


def test_the_sets_have_many_pictures_all_types_and_no_sign_of_training(tmp_path):
    write_benchmarks(tmp_path, 100)
    known = json.loads((tmp_path / "gqa_mini/data/testdev_balanced_questions.json").read_text(encoding="utf-8"))
    assert len({row["imageId"] for row in known.values()}) == 25  # so that 1000 questions have 250
    for row, expected in zip(read_lines(tmp_path / GQA), known.values(), strict=True):
        assert row["text"] == expected["question"] + SHORT_ANSWER
    assert len({row["types"]["detailed"] for row in known.values()}) == 9
    assert any(pair in expected["question"] for expected in known.values() for pair in map(" ".join, UNSEEN_PAIRS))
    data = json.loads((tmp_path / "textvqa_mini/TextVQA_0.5.1_val.json").read_text(encoding="utf-8"))["data"]
    signs = {row["answers"][0] for row in data if "sign" in row["question"]}
    assert len(signs) > 30 and all(map(is_evaluation_sign, signs))
    said = [row["text"].split('"')[1] for row in read_lines(tmp_path / MME) if row["category"] == "OCR"]
    pairs = list(zip(said[::2], said[1::2], strict=True))
    assert all(is_evaluation_sign(right) and right != wrong for right, wrong in pairs)
    assert sum(sum(a != b for a, b in zip(*pair, strict=True)) == 1 for pair in pairs) >= 4


def test_tuning_sets_show_what_training_shows(tmp_path):
    write_benchmarks(tmp_path, 40, split="tune")
    data = json.loads((tmp_path / "textvqa_mini/TextVQA_0.5.1_val.json").read_text(encoding="utf-8"))["data"]
    assert not any(is_evaluation_sign(row["answers"][0]) for row in data if "sign" in row["question"])
