"""The prefix cache in the loader's batches and answers, the chat, and the bench of many questions."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from loader_fixtures import CONFIG, IMAGES, Bench, comparable, questions, write_images, write_jsonl, write_model
from PIL import Image

from llava import PruningConfig
from llava.cli import ModelOptions
from llava.eval import bench as bench_command
from llava.eval.runner.batches import MOST_GROUP_BATCHES, BatchDataset, by_image, group, shares_images
from llava.eval.runner.questions import Question
from llava.model.loaded import LoadedModel
from llava.serve.chat import Chat, Sampling

PRUNED = json.dumps(CONFIG)


class Lengths:
    """Inputs whose prompts are as long as the question's text."""

    def encode(self, turns):
        return [0] * len(turns[0].question)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    root = tmp_path_factory.mktemp("reuse")
    return write_model(root / "llava-random"), write_images(root / "images")


@pytest.fixture
def bench(tmp_path, shared):
    return Bench(tmp_path, *shared)


@pytest.mark.parametrize("pruning", [None, PRUNED])
@pytest.mark.parametrize("size", [1, 4])
def test_answers_are_those_without_reuse(bench, pruning, size):
    rows = [row | {"text": f"{row['text']} {number}"} for number in range(4) for row in questions()]
    write_jsonl(bench.question_file, rows)
    assert bench.run("--prefix-cache", "off", batch_size=size, pruning_config=pruning) == 0
    expected = comparable(bench.rows())
    assert "prefix_reuse" not in bench.record() and "--prefix-cache off" in bench.record()["command"]
    for name, options in (("default", []), ("one", ["--prefix-cache", "0"])):
        bench.answers = bench.root / f"{name}.jsonl"
        assert bench.run(*options, batch_size=size, pruning_config=pruning) == 0
        assert comparable(bench.rows()) == expected
        reused = bench.record()["prefix_reuse"]
        assert reused["prompts"] == len(rows)
        assert reused["run"] < reused["rows"] or (size == 1 and name == "one")


def test_reuse_is_off_where_no_image_is_asked_about_twice(bench):
    rows = [row for place, row in enumerate(questions()) if row["image"] not in IMAGES[:place]]
    bench.question_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert bench.run() == 0
    assert "prefix_reuse" not in bench.record()


def test_questions_about_an_image_come_together_and_units_are_not_cut_between_them():
    random = np.random.default_rng(0)
    images = [None if number == 0 else Path(f"{number}.png") for number in random.integers(0, 40, 700)]
    asked = [
        Question(place, "", place, "x" * int(random.integers(1, 50)), paths=(path,) if path else ())
        for place, path in enumerate(images)
    ]
    assert sorted(by_image(asked), key=lambda one: one.index) == asked
    for size in (1, 4):
        groups = group(asked, set(asked), size, Lengths())
        ordered = [question for one in groups for question in one.questions]
        assert sorted(one.index for one in ordered) == list(range(700))
        assert shares_images(groups)
        changes = sum(one.path != two.path for one, two in zip(ordered, ordered[1:], strict=False))
        assert changes < 2 * images.count(None) + 2 * 40 + 2 * 700 / (8 * size)
        longest = 0
        for one, two in zip(groups, groups[1:], strict=False):
            longest = longest + 1 if one.image_group == two.image_group else 0
            alike = {question.path for question in one.questions} & {question.path for question in two.questions}
            if one.image_group != two.image_group and alike - {None}:
                assert (
                    longest == 0 and sum(three.image_group == one.image_group for three in groups) >= MOST_GROUP_BATCHES
                )
        some = {asked[7], asked[300]}
        assert group(asked, some, size, Lengths()) == [one for one in groups if some & set(one.questions)]
    assert not shares_images(group(asked[:0], set(), 1, Lengths()))


def test_an_image_is_finished_with_the_last_batch_of_a_unit_that_shows_it():
    random = np.random.default_rng(1)
    asked = [
        Question(place, "", place, "x" * int(random.integers(1, 50)), paths=(Path(f"/nowhere/{number}.png"),))
        for place, number in enumerate(random.integers(0, 60, 600))
    ]
    groups = group(asked, set(asked), 4, Lengths())
    dataset, later = BatchDataset(groups, Lengths()), 0
    for place, one in enumerate(groups):
        batch = dataset[place]
        for path in {question.path for question in one.questions}:
            rest = [two for two in groups[place + 1 :] if two.image_group == one.image_group]
            shown = any(path == question.path for two in rest for question in two.questions)
            assert (path in batch.finished) != shown
            later += shown
    assert later > 20


def test_a_chat_runs_what_is_new_and_forgets_with_its_image(shared):
    loaded = LoadedModel.from_path(ModelOptions(model_path=str(shared[0]), device="cpu"))
    rows: list[int] = []
    loaded.model.model.layers[0].mlp.register_forward_hook(lambda module, args, output: rows.append(args[0].shape[1]))
    picture = Image.open(shared[1] / "a.png").convert("RGB")
    texts = {}
    for room in (None, 1 << 30):
        for pruning_on in (False, True):
            chat = Chat(loaded, PruningConfig.from_dict(CONFIG), Sampling(max_new_tokens=4), pruning_on, room)
            chat.see(picture, "a.png")
            for question in ("What is it?", "Why?"):
                rows.clear()
                reply = chat.ask(question)
                texts.setdefault((pruning_on, question), set()).add(reply.text)
                assert (reply.trace is not None) == pruning_on
                whole = room is None or question == "What is it?"
                assert rows[0] == reply.prompt_tokens if whole else rows[0] < reply.prompt_tokens / 2
            if room is not None:
                chat.pruning_on = not pruning_on  # other states: nothing of what is known holds
                rows.clear()
                assert rows == [] and chat.ask("And?").prompt_tokens == rows[0]
    assert all(len(found) == 1 for found in texts.values())


def test_the_bench_of_many_questions(capsys):
    arguments = ["--shape", "tiny", "--num-layers", "3", "--device", "cpu", "--dtype", "float32", "--new-tokens", "1"]
    arguments += ["--questions", "5", "--batch-size", "2", "--repeats", "1"]
    plan = 'plan={"method":"replay","filter_layer":1,"keep":4}'
    assert bench_command.main([*arguments, "--pruning-config", plan]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["questions"]
    assert list(found) == ["dense", "plan"]
    # the prefix of 35 + 144 tokens once in all of dense's three layers, and five questions of 20
    assert found["dense"]["rows_reused"] == pytest.approx(1 - (179 + 5 * 20) / (5 * 199), abs=1e-4)
    # two layers with all of it, one with the four kept tokens for each question
    ran, whole = 2 * (179 + 5 * 20) + 35 + 5 * 24, 5 * (2 * 199 + 59)
    assert found["plan"]["rows_reused"] == pytest.approx(1 - ran / whole, abs=1e-4)
    assert found["plan"]["same_decisions"] is True
    for row in found.values():
        gains = [row[key] for key in ("gain_reuse", "gain_pruning", "gain")]
        assert gains[0] * gains[1] == pytest.approx(gains[2], rel=1e-2)
    for option in (["--fire", "1:4"], ["--vision"]):
        assert bench_command.main([*arguments, "--pruning-config", plan, *option]) == 1
        assert "does not go with --questions" in capsys.readouterr().err


def test_the_bench_asks_a_loaded_model(capsys):
    arguments = ["--model-path", "playground/checkpoints/llava-tiny", "--device", "cpu", "--questions", "3"]
    with torch.random.fork_rng():
        assert bench_command.main([*arguments, "--new-tokens", "1", "--repeats", "1"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["settings"]["visual_tokens"] == 144 and found["questions"]["dense"]["rows_reused"] > 0.5
