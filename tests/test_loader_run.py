"""The evaluation loader end to end on a small random checkpoint: answers, metadata, totals, batches, bad questions."""

import argparse
import json
import logging
import shutil
import warnings

import pytest
import torch
from loader_fixtures import (
    CONFIG,
    IMAGES,
    Bench,
    comparable,
    forbid_loading,
    prompt_of,
    questions,
    read_jsonl,
    write_images,
    write_jsonl,
    write_model,
)
from PIL import Image
from transformers.utils.logging import warning_once

from llava import PruningConfig, __version__, load_pretrained_model, prune
from llava.eval.model_vqa_loader import eval_model
from llava.eval.runner.answering import Answerer
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.inputs import ConventionInputs
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM

PRUNED = json.dumps(CONFIG)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    root = tmp_path_factory.mktemp("loader")
    return write_model(root / "llava-random"), write_images(root / "images")


@pytest.fixture
def bench(tmp_path, shared):
    return Bench(tmp_path, *shared)


@pytest.fixture(scope="module")
def loaded(shared):
    return load_pretrained_model(shared[0], None, "llava-random", device="cpu")[:3]


def ask(loaded, images, row, config=None, **arguments):
    """One question straight through the model: text, and the trace's summary when pruned."""
    tokenizer, model, processor = loaded
    prompt = prompt_of(row["text"])
    ids = tokenizer_image_token(prompt, tokenizer, return_tensors="pt")[None]
    pixels = process_images([Image.open(images / row["image"])], processor, model.config)
    arguments = {"max_new_tokens": 6, "do_sample": False, "temperature": None, "top_p": None} | arguments
    if config is None:
        return tokenizer.decode(model.generate(ids, images=pixels, **arguments)[0], skip_special_tokens=True), None
    with prune(model, config) as session:
        output = model.generate(ids, images=pixels, **arguments)
    return tokenizer.decode(output[0], skip_special_tokens=True), session.traces[0].summary()


@pytest.mark.parametrize("pruning", [None, PRUNED])
def test_answers_are_those_of_the_model_asked_one_by_one(bench, loaded, pruning):
    assert bench.run(pruning_config=pruning) == 0
    rows = bench.rows()
    asked = [(row["question_id"], row["text"]) for row in questions()]
    assert [(row["question_id"], row["prompt"]) for row in rows] == asked
    assert {row["model_id"] for row in rows} == {"llava-random"}
    assert len({row["answer_id"] for row in rows}) == len(rows)
    config = pruning and PruningConfig.from_json(pruning)
    for row, question in zip(rows, questions(), strict=True):
        text, summary = ask(loaded, bench.images, question, config)
        assert row["text"] == text.strip()
        if pruning:
            assert row["metadata"] | summary == row["metadata"]


def test_pruning_happens_and_is_counted(bench):
    assert bench.run(pruning_config=PRUNED) == 0
    found = [row["metadata"] for row in bench.rows()]
    assert len({tuple(m["tokens_per_layer"]) for m in found}) > 1
    assert any(0 < m["kept_tokens"] < m["visual_tokens"] for m in found if m["kept_tokens"] is not None)
    totals = bench.record()["totals"]
    assert totals["questions"] == 10 and totals["skipped"] == 0
    for name in ("flops", "dense_flops", "kv_bytes", "dense_kv_bytes", "generated_tokens"):
        assert totals[name] == pytest.approx(sum(m[name] for m in found))
    for stage in ("prefill", "decode", "vision"):
        spent = sum(row["milliseconds"][stage] for row in bench.times())
        assert totals["milliseconds"][stage] == pytest.approx(spent, rel=1e-3)
        assert totals["milliseconds"][stage] > 0
    assert totals["tokens_per_layer_mean"] == pytest.approx(
        [sum(layer) / 10 for layer in zip(*(m["tokens_per_layer"] for m in found), strict=True)], abs=1e-3
    )
    assert sum(totals["filter_layers"].values()) == sum(totals["exit_layers"].values()) == 10
    assert totals["flops"] < totals["dense_flops"] and totals["kv_bytes"] < totals["dense_kv_bytes"]


def test_a_dense_run_reports_what_mode_none_reports(bench):
    assert bench.run() == 0
    dense = bench.rows()
    assert bench.record()["settings"]["pruning_config"] is None
    bench.answers = bench.root / "none.jsonl"
    assert bench.run(pruning_config='{"mode":[]}') == 0
    assert comparable(dense) == comparable(bench.rows())


def test_batches_are_formed_by_prompt_length_and_answers_keep_the_order(bench, monkeypatch):
    """Of an image among its own questions; images by their shortest one."""
    rows = [row | {"image": f"{place}.png", "question_id": place} for place, row in enumerate(questions())]
    for row in rows:
        shutil.copy(bench.images / "c.png", bench.root / row["image"])
    write_jsonl(bench.question_file, rows)
    bench.images = bench.root
    widths = []
    collate = ConventionInputs.collate

    def noted(self, rows, *more):
        widths.append([len(row) for row in rows])
        return collate(self, rows, *more)

    monkeypatch.setattr(ConventionInputs, "collate", noted)
    assert bench.run(batch_size=4) == 0
    widths = sum(widths[1:], [])  # the first is the untimed warm-up
    assert len(widths) == 10 and widths == sorted(widths) and len(set(widths)) > 2
    assert [row["prompt"] for row in bench.rows()] == [row["text"] for row in questions()]


@pytest.mark.parametrize("pruning", [None, PRUNED])
@pytest.mark.parametrize("beams", [1, 2])
def test_answers_do_not_depend_on_the_batch_size_or_workers(bench, pruning, beams):
    seen = []
    for size, workers in ((1, 0), (4, 0), (7, 2)):
        bench.answers = bench.root / f"{size}.jsonl"
        assert bench.run(pruning_config=pruning, batch_size=size, workers=workers, num_beams=beams) == 0
        seen.append(comparable(bench.rows()))
    assert seen[0] == seen[1] == seen[2]


def test_sampling_repeats_with_its_seed(bench):
    texts = []
    for name, seed in (("x", 3), ("y", 3), ("z", 4)):
        bench.answers = bench.root / f"{name}.jsonl"
        assert bench.run(temperature=1.5, top_p=0.95, seed=seed) == 0
        texts.append([row["text"] for row in bench.rows()])
    assert texts[0] == texts[1] != texts[2]


def test_chunks_are_llavas_and_make_up_the_whole(bench):
    assert bench.run() == 0
    whole, parts = comparable(bench.rows()), []
    sizes = []
    for chunk in range(4):
        bench.answers = bench.root / f"4_{chunk}.jsonl"
        assert bench.run(num_chunks=4, chunk_idx=chunk) == 0
        sizes.append(len(bench.rows()))
        parts += comparable(bench.rows())
    assert sizes == [3, 3, 3, 1] and parts == whole
    bench.answers = bench.root / "empty.jsonl"
    assert bench.run(num_chunks=6, chunk_idx=5) == 0
    assert bench.rows() == [] and bench.record()["totals"]["questions"] == 0


def test_the_tower_sees_an_image_once_in_an_image_group(bench, monkeypatch):
    seen = []
    encode = LlavaLlamaForCausalLM.encode_images
    monkeypatch.setattr(
        LlavaLlamaForCausalLM, "encode_images", lambda self, x, *more: seen.append(len(x)) or encode(self, x, *more)
    )
    monkeypatch.setattr("llava.eval.runner.batches.IMAGE_GROUPS", 1)  # all five batches are one image group
    held, answer = [], Answerer.answer

    def watched(self, batch):
        result = answer(self, batch)
        held.append(len(self._images))
        return result

    monkeypatch.setattr(Answerer, "answer", watched)
    assert bench.run(batch_size=2) == 0
    assert seen[0] == 1, "the untimed warm-up"
    assert sum(seen[1:]) == len(set(IMAGES)) == 3
    assert len(held) == 5 and max(held) > 0 and held[-1] == 0, "features leave with the last batch that shows them"


def test_greedy_decoding_is_silent_about_the_checkpoints_sampling_settings(bench, caplog, monkeypatch):
    warning_once.cache_clear()  # what another test has seen already counts too
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert bench.run() == 0
    assert not [warning for warning in caught if issubclass(warning.category, UserWarning)]
    assert not [record.message for record in caplog.records if record.name.startswith("transformers")]


def test_eval_model_takes_llavas_arguments(bench):
    """A caller of LLaVA's function has no attributes for the flags that were added here."""
    given = {"model_path": str(bench.model), "model_base": None, "image_folder": str(bench.images)}
    given |= {
        "conv_mode": "vicuna_v1",
        "question_file": str(bench.question_file),
        "answers_file": str(bench.answers),
        "num_chunks": 2,
    }
    given |= {"chunk_idx": 1, "temperature": 0, "top_p": None, "num_beams": 1, "max_new_tokens": 6}
    record = eval_model(argparse.Namespace(**given))
    assert record == bench.record() and record["totals"]["questions"] == len(bench.rows()) == 5
    assert bench.run(num_chunks=2, chunk_idx=1, batch_size=1) == 0  # the same settings, so there is nothing to do
    assert len(bench.record()["sessions"]) == 1


def test_the_run_file_says_what_made_the_answers(bench, capsys):
    assert bench.run(pruning_config=PRUNED, limit=3) == 0
    record = bench.record()
    assert record["state"] == "finished" and record["limit"] == 3
    assert record["settings"]["pruning_config"] == PruningConfig.from_json(PRUNED).to_dict()
    assert record["settings"]["dtype"] == "float32" and record["device"] == "cpu" and record["batch_size"] == 4
    assert (record["versions"]["torch"], record["versions"]["llava"]) == (torch.__version__, __version__)
    assert "--limit 3" in record["command"]
    assert [session["questions"] for session in record["sessions"]] == [3]
    assert capsys.readouterr().out.startswith("3 answers in ")
    assert not list(bench.answers.parent.glob("*.tmp"))


def test_bad_questions_stop_or_are_skipped_and_counted(bench, capsys):
    rows = questions()
    rows[4]["image"] = "nowhere.png"
    rows[6]["image"] = "broken.png"
    bench.images = write_images(bench.root / "images")
    (bench.images / "broken.png").write_bytes((bench.images / "a.png").read_bytes()[:900])
    write_jsonl(bench.question_file, rows)
    for line, reason in ((5, "image not found"), (7, "is damaged")):
        assert bench.run() == 1
        [error] = [text for text in capsys.readouterr().err.split("\n") if text.startswith("error:")]
        assert f"{bench.question_file}:{line}: " in error and reason in error and "--skip-bad" in error
        if line == 7:  # what was answered by then is kept
            assert 0 < len(read_jsonl(bench.part)) < 10 and bench.record()["state"] == "interrupted"
            assert rows[6]["text"] not in [row["prompt"] for row in read_jsonl(bench.part)]
        rows[line - 1] = questions()[line - 1]
        write_jsonl(bench.question_file, rows)
    rows[4]["image"], rows[6]["image"] = "nowhere.png", "broken.png"
    write_jsonl(bench.question_file, rows)
    assert bench.run("--skip-bad", "--overwrite") == 0
    asked = [row["text"] for i, row in enumerate(questions()) if i not in (4, 6)]
    assert [row["prompt"] for row in bench.rows()] == asked
    record = bench.record()
    assert record["totals"]["skipped"] == 2 and record["totals"]["questions"] == 8
    assert sorted(int(bad["where"].rpartition(":")[2]) for bad in record["skipped"]) == [5, 7]


@pytest.mark.parametrize("pruning", [None, PRUNED])
@pytest.mark.parametrize("first", [0, 1])
def test_questions_without_an_image_run_dense_among_the_others(bench, loaded, pruning, first):
    rows = questions()
    for row in rows[first::2]:
        del row["image"]
    write_jsonl(bench.question_file, rows)
    assert bench.run(pruning_config=pruning) == 0
    tokenizer, model, _ = loaded
    for row, answered in zip(rows, bench.rows(), strict=True):
        trace = answered["metadata"]
        assert trace["visual_tokens"] == (4 if "image" in row else 0)
        if "image" not in row:
            assert set(trace["tokens_per_layer"]) == {trace["prompt_tokens"]}
            ids = tokenizer(prompt_of(row["text"]).replace("<image>\n", ""), return_tensors="pt").input_ids
            output = model.generate(ids, max_new_tokens=6, do_sample=False, temperature=None, top_p=None)
            assert answered["text"] == tokenizer.decode(output[0], skip_special_tokens=True).strip()


@pytest.mark.parametrize(("words", "loads"), [(1200, False), (1010, True)], ids=["alone", "with its image"])
def test_a_prompt_that_the_model_cannot_take_is_bad_too(bench, monkeypatch, capsys, words, loads):
    """One whose text alone is too long is found before the model loads."""
    rows = questions()
    rows[2]["text"] = "blue " * words
    write_jsonl(bench.question_file, rows)
    with monkeypatch.context() as patch:
        if not loads:
            forbid_loading(patch)
        assert bench.run() == 1
    assert "questions.jsonl:3: the prompt has" in capsys.readouterr().err
    assert bench.run("--skip-bad") == 0
    assert sorted(row["prompt"] for row in bench.rows()) == sorted(row["text"] for row in rows[:2] + rows[3:])


@pytest.mark.parametrize("key", ["image", "images"])
def test_a_question_with_several_images_shows_them_in_order(bench, loaded, key):
    rows = [row for row in questions() if row["image"] == "a.png"][:3]
    for row, images in zip(rows, (["a.png", "c.png"], ["c.png", "a.png"], ["a.png"]), strict=True):
        del row["image"]
        row[key] = images
    write_jsonl(bench.question_file, rows)
    assert bench.run() == 0
    tokenizer, model, processor = loaded
    for row, answered in zip(rows, bench.rows(), strict=True):
        prompt = prompt_of(row["text"]).replace("<image>\n", "<image>\n" * len(row[key]))
        ids = tokenizer_image_token(prompt, tokenizer, return_tensors="pt")[None]
        pictures = [Image.open(bench.images / name).convert("RGB") for name in row[key]]
        pixels = process_images(pictures, processor, model.config)
        output = model.generate(ids, images=pixels, max_new_tokens=6, do_sample=False, temperature=None, top_p=None)
        assert answered["text"] == tokenizer.decode(output[0], skip_special_tokens=True).strip()
        assert answered["metadata"]["visual_tokens"] == 4 * len(row[key])
