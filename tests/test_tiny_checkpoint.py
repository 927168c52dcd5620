"""The shipped checkpoints: complete, small, of one vocabulary; held-out accuracy, pruned and over several turns.

FLOORS belongs to the weights that ship; a test that fails shows what it measured.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from llava import PruningConfig, prune
from llava.cli import ModelOptions
from llava.model.inputs import Turn
from llava.model.loaded import LoadedModel
from llava.tiny.accuracy import CHECKPOINT, LONGEST_ANSWER, answer
from llava.tiny.pieces import PieceTokenizer, train_pieces
from llava.tiny.questions import GQA_KINDS, MME_KINDS, TEXT_KINDS, prompt_text, questions_about
from llava.tiny.scenes import render
from llava.tiny.worlds import TEST

FOLDER = Path(__file__).parents[1] / CHECKPOINT
CHECKPOINTS = {"llava-tiny": FOLDER, "llava-tiny-plain": FOLDER.with_name("llava-tiny-plain")}
GROUPS = {"gqa": GQA_KINDS, "mme": MME_KINDS, "text": TEXT_KINDS}
# least share of the questions about SCENES answered right, by group of kinds, a few questions below what was measured
FLOORS = {
    "llava-tiny": {"gqa": 0.94, "mme": 0.96, "text": 0.95},
    "llava-tiny-plain": {"gqa": 0.94, "mme": 0.96, "text": 0.95},
}
NONE = PruningConfig.from_dict({"method": "none"})
SCENES = TEST[4000:4012]
PRUNED_LOSS = 0.02  # of the share right, that pruning.json may cost
TURN_LOSS = 0.05  # that the third turn may cost against the same question asked alone
NONE_LOSS = 0.03  # that keeping no visual token must cost, else the tokens kept are not what answers


def asked(number):
    """The picture and the questions of a scene, in an order that mixes kinds."""
    rng = np.random.default_rng(number)
    pixels, scene = render(rng)
    questions = list(questions_about(scene, rng))
    return pixels, [questions[n] for n in rng.permutation(len(questions))]


ASKED = [asked(number) for number in SCENES]


def load(folder):
    return LoadedModel.from_path(ModelOptions(model_path=str(folder), device="cpu"))


def right(loaded, config=NONE):
    """(kind, whether it was answered right) of every question, asked alone; questions of a picture share its prefix."""
    rows = []
    with prune(loaded.model, config, prefix_cache=0):
        for pixels, questions in ASKED:
            texts = answer(loaded, pixels, questions)
            rows += [(q.kind, text == q.answer) for q, text in zip(questions, texts, strict=True)]
    return rows


def share(rows):
    return np.mean([correct for _, correct in rows])


@pytest.fixture(scope="module")
def loaded():
    return load(FOLDER)


@pytest.fixture(scope="module")
def dense(loaded):
    return right(loaded)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_folder_is_complete_and_of_the_vocabulary_that_the_code_trains(name, tmp_path):
    folder = CHECKPOINTS[name]
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {"README.md", "config.json", "model.safetensors", "vision_tower/model.safetensors"} <= files
    assert "tokenizer.json" not in files  # it would be read instead of tokenizer.model
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    wanted = {"model_type": "llava_llama", "mm_vision_tower": "vision_tower", "mm_vision_select_layer": -2}
    assert wanted.items() <= config.items()
    assert (folder / "tokenizer.model").read_bytes() == train_pieces()
    assert config["vocab_size"] == len(PieceTokenizer(config["max_position_embeddings"]))


def test_all_checkpoints_together_take_at_most_60_mb():
    sizes = [path.stat().st_size for folder in CHECKPOINTS.values() for path in folder.rglob("*") if path.is_file()]
    assert sum(sizes) <= 60e6 and max(sizes) <= 16e6


def test_a_picture_of_the_right_size_passes_the_processor_exactly():
    pixels, _ = ASKED[0]
    processor = CLIPImageProcessorPil.from_pretrained(FOLDER / "vision_tower")
    got = processor(pixels, return_tensors="pt").pixel_values[0]
    expected = (torch.from_numpy(pixels).permute(2, 0, 1).float() - 118) / 64
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_held_out_questions_are_answered(name, dense):
    rows = dense if name == "llava-tiny" else right(load(CHECKPOINTS[name]))
    assert len(rows) > 120
    found = {group: share([row for row in rows if row[0] in kinds]) for group, kinds in GROUPS.items()}
    assert all(found[group] >= floor for group, floor in FLOORS[name].items()), found


def test_pruning_json_costs_little_and_its_tokens_are_needed(loaded, dense):
    config = PruningConfig.from_json(FOLDER / "pruning.json")
    pruned = share(right(loaded, config))
    assert pruned >= share(dense) - PRUNED_LOSS
    none = PruningConfig.from_dict(config.to_dict() | {"layer_threshold": 1.0, "tokens_threshold": 1e9})
    assert share(right(loaded, none)) <= pruned - NONE_LOSS


def test_the_third_answer_of_a_conversation_is_as_good_as_the_first(loaded, dense):
    """Every third question after two others with their true answers, against the same question asked alone."""
    model, inputs, alone = loaded.model, loaded.inputs, iter(dense)
    first, third = [], []
    for pixels, questions in ASKED:
        turns = [Turn(prompt_text(q), answer=q.answer) for q in questions]
        conversations = [
            [replace(turns[n], images=1), turns[n + 1], replace(turns[n + 2], answer=None)]
            for n in range(0, len(turns) - 2, 3)
        ]
        wanted = [q.answer for q in questions[2::3]]
        with torch.inference_mode():
            seen = inputs.encode_images(model, [inputs.prepare(Image.fromarray(pixels))])
            rows = [inputs.encode(conversation) for conversation in conversations]
            batch = inputs.collate(rows, [seen] * len(rows), model)
            output = model.generate(**batch, do_sample=False, max_new_tokens=LONGEST_ANSWER)
        third += [text == w for text, w in zip(inputs.decode(inputs.new_tokens(output, batch)), wanted, strict=True)]
        first += [correct for _, correct in [next(alone) for _ in questions][2::3]]
    assert len(third) == len(first) > 40
    assert np.mean(third) >= np.mean(first) - TURN_LOSS
