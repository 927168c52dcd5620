"""The pointing loss: objects that a question concerns, rows, and the loss."""

import math

import numpy as np
import pytest
import torch
from training_fixtures import SMALL, settings

from llava.tiny.questions import ask
from llava.tiny.scenes import Scene, SceneObject, render
from llava.tiny.worlds import TRAINING
from llava.train.tiny.batches import Batches
from llava.train.tiny.decoder import DENSE, Plan
from llava.train.tiny.labels import dense_labels, owners
from llava.train.tiny.losses import training_loss
from llava.train.tiny.packing import IGNORED, characters, encode, vocabulary_size
from llava.train.tiny.pointing import (
    HEADS,
    THINGS,
    Pointers,
    concerned,
    looks,
    pointing_layers,
    pointing_loss,
    verdict_loss,
)
from llava.train.tiny.run import Trainer
from llava.train.tiny.stages import STAGES


@pytest.fixture
def scene():
    rng = np.random.default_rng(3)
    return render(rng, 1.0, 1.0, TRAINING)[1]


def test_a_question_concerns_what_its_descriptions_fit():
    objects = (
        SceneObject("red", "circle", "small", 20.0, 20.0, 10.0),
        SceneObject("blue", "circle", "large", 60.0, 20.0, 16.0),
        SceneObject("red", "square", "large", 20.0, 90.0, 16.0),
    )
    bare = Scene(objects, None, None)
    full = Scene(objects, "K7B", 4, (120.0, 60.0), (120.0, 120.0))
    asked = {
        "What color is the square?": [2],
        "How many circles are there?": [0, 1],
        "How many red objects are there?": [0, 2],
        "Is there a blue square?": [],
        "What color is the circle to the left of the red square?": [0, 1, 2],
        "What shape is the red object above the blue circle?": [0, 1, 2],
        "Is the blue circle above the red square?": [1, 2],
        "Is the square red? Please answer yes or no.": [2],
    }
    for text, places in asked.items():
        assert concerned(text, bare) == [1 + place for place in places], text
        assert concerned(text, full) == [5 + place for place in places], text
    assert concerned("What is written on the sign?", full) == [1, 2, 3] and concerned("... the sign?", bare) == []
    assert concerned("What digit is on the card?", full) == [4] and concerned("... the card?", bare) == []


def test_heads_look_at_different_things_where_a_question_names_two():
    objects = (
        SceneObject("red", "circle", "small", 20.0, 20.0, 10.0),
        SceneObject("blue", "circle", "large", 90.0, 20.0, 16.0),
        SceneObject("red", "square", "large", 60.0, 90.0, 16.0),
    )
    bare = Scene(objects, None, None)
    full = Scene(objects, "K7B", 4, (120.0, 60.0), (120.0, 120.0))
    asked = {
        "What color is the square?": ([[2], [2], [2]], [[2], [2], [2]]),
        "What color is the circle to the left of the red square?": (
            [[0, 1], [2], [0, 1, 2]],
            [[0], [2], [0, 1, 2]],
        ),
        "What shape is the red object above the red square?": ([[0], [2], [0, 2]], [[0], [2], [0, 2]]),
        "Is the blue circle to the left of the red square?": ([[1], [2], [1, 2]], [[1], [2], [1, 2]]),
        "Is there a blue square?": ([[], [], []], [[], [], []]),
    }
    for text, layers in asked.items():
        for scene, first in ((bare, 1), (full, 5)):
            expected = tuple([[first + place for place in places] for places in layer] for layer in layers)
            assert looks(text, scene) == expected, text
    assert looks("What is written on the sign?", full) == ([[1], [2], [3]], [[1], [2], [3]])
    assert looks("What digit is on the card?", full) == ([[4]] * HEADS, [[4]] * HEADS)
    assert concerned("What is written on the sign?", full) == [1, 2, 3]


def test_owners_are_numbered_as_the_labels_show_them(scene):
    owned, labels = owners(scene), dense_labels(scene)
    assert owned.shape == (12, 12) and owned.max() < THINGS
    assert np.array_equal(owned > 0, labels[0] > 0)
    for place in (1, 2, 3):
        assert np.array_equal(owned == place, labels[4] == place)
    card = labels[0] == labels[0][owned == 4].max()
    assert np.array_equal(owned == 4, card)
    for n, o in enumerate(scene.objects):
        assert owned[int(o.y) // 14, int(o.x) // 14] == 5 + n


def test_every_question_type_points_at_something_in_most_scenes(scene):
    rng = np.random.default_rng(0)
    for kind in ("attr_color", "position", "rel_shape", "verify_rel", "mme_count", "mme_text", "text", "hw_digit"):
        found = [q for q in (ask(kind, scene, rng, yes=True, world=TRAINING) for _ in range(60)) if q]
        assert all(concerned(q.text, scene) for q in found if " 0 " not in q.text), kind


def test_rows_are_last_prompt_tokens_the_signs_next_characters_and_quoted_ones():
    batch = Batches(0, 3, 10, 16, (("turns", 1.0),))[0]
    p, pointers = batch.packed, batch.pointers
    ends = {(b, k, int(e)) for b in range(10) for k in range(p.ends.shape[1]) for e in p.ends[b, k]}
    rows = [tuple(row) for row in pointers.rows.tolist()]
    later = [n for n, row in enumerate(rows) if row not in ends]
    assert len(later) < len(rows) and (pointers.wanted.sum(1) > 0).all()
    answers = quotes = 0
    for n in later:
        b, k, s = rows[n]
        places = pointers.wanted[n].nonzero().flatten().tolist()
        if p.targets[b, k, s] != IGNORED:  # an answer token, said one character after the sign's first
            answers += 1
            assert places in ([2], [3], [2, 3])
        else:
            quotes += 1
            before = "".join(characters(p.ids[b, k, : s + 1].tolist())).rpartition('"')
            if before[0].endswith("say"):
                assert places == list(range(places[0], len(before[2]) + 1)) and len(before[2]) <= 3
            else:
                assert places == [1, 2, 3] and len(before[2]) == 1
    assert answers and quotes


def test_the_loss_is_zero_on_the_things_and_grows_away_from_them():
    owners_of = torch.tensor([[0, 1, 1, 2, 0, 3]])
    rows, wanted = torch.tensor([[0, 0, 1]]), torch.zeros(1, THINGS, dtype=torch.bool)
    wanted[0, [1, 2]] = True
    apart = torch.zeros(1, 2, HEADS, THINGS, dtype=torch.bool)
    apart[0, 0, 0, 1], apart[0, 0, 1, 2] = True, True
    pointers = Pointers(owners_of, rows, wanted, apart, torch.tensor([IGNORED]))

    def loss(*weights, **options):
        attention = torch.zeros(2, 1, 1, 3, len(weights))
        attention[:, 0, 0, 1] = torch.tensor(weights)
        return pointing_loss([attention], pointers, **options).item()

    assert loss(0, 0.1, 0.2, 0.3, 0, 0) == pytest.approx(0, abs=2e-3)
    assert loss(0, 0.3, 0.3, 0.2, 0, 0) == pytest.approx(-(math.log(1.5) + math.log(0.5)) / 2, abs=2e-3)
    assert loss(0.4, 0.1, 0.2, 0.3, 0, 0) == pytest.approx(math.log(1 / 0.6), abs=2e-3)
    assert loss(0, 0, 0, 0, 1, 0) > 8
    # of the chosen tokens only the second thing is there
    assert loss(0.5, 0.5, chosen=torch.tensor([[0, 3]])) == pytest.approx(math.log(2), abs=2e-3)
    assert loss(0.5, 0.5, chosen=torch.tensor([[0, 4]])) == 0
    none = Pointers(owners_of, rows[:0], wanted[:0], apart[:0], pointers.verdicts[:0])
    assert pointing_loss([torch.ones(2, 1, 1, 3, 6)], none).item() == 0
    # the first head should look at the first thing, the second at the second, the third nowhere
    looked = torch.zeros(4, 1, 1, 3, 6)
    looked[0, 0, 0, 1, 1], looked[1, 0, 0, 1, 3] = 1, 1
    assert pointing_loss([looked], pointers, heads=("apart", "apart")).item() == pytest.approx(0, abs=1e-3)
    looked[[0, 1]] = looked[[1, 0]]
    assert pointing_loss([looked], pointers, heads=("apart", "apart")).item() > 5
    assert pointing_loss([looked], pointers).item() == pytest.approx(0, abs=1e-3)
    # every head should look at both: two of four look at one each, two nowhere
    alike = pointing_loss([looked], pointers, heads=("alike", "apart")).item()
    assert alike > 3
    looked[:, 0, 0, 1, [1, 3]] = 0.5
    assert pointing_loss([looked], pointers, heads=("alike", "apart")).item() == pytest.approx(0, abs=1e-3)


def test_quoted_characters_tell_whether_they_are_the_signs():
    batch = Batches(0, 4, 10, 16, (("hard", 1.0),))[0]
    p, pointers = batch.packed, batch.pointers
    told = pointers.verdicts != IGNORED
    yes, no = encode("Yes")[0], encode("No")[0]
    assert set(pointers.verdicts[told].tolist()) == {yes, no}
    heard = 0
    for (b, k, s), verdict in zip(pointers.rows[told].tolist(), pointers.verdicts[told].tolist(), strict=True):
        ids = p.ids[b, k].tolist()
        asked, _, rest = "".join(characters(ids)).partition('"')
        quoted, _, rest = rest.partition('"')
        place = characters(ids[: s + 1])[::-1].index('"') - 1
        assert asked.endswith("say") and quoted[place] == characters(ids[s : s + 1])[0] != "-"
        answer = rest.partition("ASSISTANT:")[2][:2]
        if verdict == no or len(quoted.strip("-")) == 1:
            assert answer == {yes: "Ye", no: "No"}[verdict]
            heard += 1
    assert heard > 20


def test_the_verdicts_loss_is_small_where_the_quoted_characters_say_so():
    batch = Batches(0, 4, 4, 16, (("hard", 1.0),))[0]
    p, pointers = batch.packed, batch.pointers
    told = pointers.verdicts != IGNORED
    head = torch.nn.Linear(2, vocabulary_size(), bias=False)
    torch.nn.init.constant_(head.weight, -9.0)
    head.weight.data[encode("Yes")[0]] = torch.tensor([9.0, 0.0])
    head.weight.data[encode("No")[0]] = torch.tensor([0.0, 9.0])
    hidden = torch.full((*p.ids.shape, 2), float("nan"))
    b, k, s = pointers.rows[told].unbind(1)
    right = torch.nn.functional.one_hot((pointers.verdicts[told] == encode("No")[0]).long(), 2).float()
    hidden[b, k, s] = right
    assert verdict_loss(hidden, head, pointers).item() == pytest.approx(0, abs=1e-3)
    hidden[b, k, s] = 1 - right
    assert verdict_loss(hidden, head, pointers).item() == pytest.approx(9, abs=1e-3)
    assert verdict_loss(hidden, head, Batches(0, 4, 4, 16, (("simple", 1.0),))[0].pointers).item() == 0


def test_it_draws_attention_and_is_no_part_of_the_loss_at_weight_zero():
    trainer = Trainer(settings(images=3), None, SMALL)
    trainer.start_stage(1)
    batch = trainer.batches(3)[0]
    plain, shown = training_loss(trainer.model, batch, DENSE, None)
    both, shown_too = training_loss(trainer.model, batch, DENSE, None, 0.3)
    assert torch.equal(shown, shown_too) and both > plain
    hidden: list[torch.Tensor] = []
    p = batch.packed
    trainer.model(trainer.model.tower(batch.pictures)[: len(p.ids)], p.ids, p.ends, p.turns, watched=hidden)
    assert [tuple(w.shape[:3]) for w in hidden] == [(2, 3, p.ids.shape[1])] * 2
    blind = frozenset(pointing_layers(SMALL.layers))
    assert torch.equal(
        training_loss(trainer.model, batch, Plan(blind=blind), None)[0],
        training_loss(trainer.model, batch, Plan(blind=blind), None, 0.3)[0],
    )
    before = pointing_loss(hidden, batch.pointers, heads=("apart", "apart")).item()
    for step in range(40):
        trainer.train_step(batch, 2, step)
    hidden.clear()
    trainer.model(trainer.model.tower(batch.pictures)[: len(p.ids)], p.ids, p.ends, p.turns, watched=hidden)
    assert pointing_loss(hidden, batch.pointers, heads=("apart", "apart")).item() < 0.8 * before


def test_only_stages_that_ask_point():
    assert [stage.pointing > 0 for stage in STAGES] == [bool(stage.styles) for stage in STAGES]
    assert [stage.heads[1] == "apart" for stage in STAGES] == [False, False, True, True, True]
    assert [stage.verdicts > 0 for stage in STAGES] == [False, False, False, False, True]
