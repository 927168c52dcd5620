"""Training: it learns, repeats itself to the bit, survives a kill, and its two recipes share their start."""

import json

import numpy as np
import pytest
import torch
from training_fixtures import SMALL, same_weights, settings, trained

import llava.train.tiny.__main__ as command
from llava.train.tiny import run, train
from llava.train.tiny.batches import Batch, Batches, fitting_workers, load
from llava.train.tiny.decoder import DENSE
from llava.train.tiny.labels import LABELS, UNKNOWN
from llava.train.tiny.losses import label_loss, training_loss
from llava.train.tiny.muon import Muon, orthogonalize
from llava.train.tiny.plan import EVALUATIONS, default_settings, read_plan, write_plan
from llava.train.tiny.publish import write_curve
from llava.train.tiny.run import Trainer, read_state, seconds_per_step, steps_within, write_state
from llava.train.tiny.stages import STAGES, choose_tokens, draw_plan


@pytest.fixture(scope="module")
def shared():
    return trained()


def test_the_same_seed_gives_the_same_weights_and_curve_and_another_seed_others(shared):
    again, other = trained(), trained(seed=1)
    assert same_weights(shared, again) and shared.curve == again.curve
    assert not same_weights(shared, other)


@pytest.mark.parametrize(
    ("recipe", "stop"), [(None, 1), (None, 2), (None, 3), (None, 5), ("pruning-aware", 1), ("pruning-aware", 3)]
)
def test_a_run_that_was_killed_continues_to_the_same_weights_and_curve(shared, tmp_path, recipe, stop):
    start = shared.state_dict() if recipe else None
    whole = trained(recipe, start)
    killed = Trainer(settings(), recipe, SMALL)
    if recipe:
        killed.load_state_dict(start)
    for _, _ in zip(range(stop), killed.run(workers=0), strict=False):
        write_state(tmp_path / "state.pt", killed.state_dict())
    state = read_state(tmp_path / "state.pt")
    assert state["stage"] * 2 + state["step"] == stop + (6 if recipe else 0)
    continued = trained(recipe, state)
    assert same_weights(whole, continued) and whole.curve == continued.curve


def test_a_save_that_fails_leaves_the_old_state(tmp_path, monkeypatch):
    write_state(tmp_path / "state.pt", {"step": 1})

    def broken(value, file):
        file.write(b"half a file")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(OSError, match="disk full"):
        write_state(tmp_path / "state.pt", {"step": 2})
    assert read_state(tmp_path / "state.pt") == {"step": 1}
    assert read_state(tmp_path / "none.pt") is None


def test_the_recipes_start_from_one_state_and_differ_in_pruning_alone(shared, monkeypatch):
    state = shared.state_dict()
    plain, aware = trained("plain", state), trained("pruning-aware", state)
    assert not same_weights(plain, aware)
    monkeypatch.setattr(run, "draw_plan", lambda rng, layers, glance: DENSE)
    assert same_weights(plain, trained("pruning-aware", state))


def test_the_tower_learns_its_labels_and_the_decoder_its_answers():
    trainer = Trainer(settings(steps=(60, 60, 1, 1, 1), images=4, tower_images=8), None, SMALL)
    batches = {stage: trainer.batches(stage)[0] for stage in (0, 1)}
    for stage, falls in ((0, 0.7), (1, 0.6)):
        trainer.start_stage(stage)
        losses = [trainer.train_step(batches[stage], stage, step).item() for step in range(60)]
        assert losses[-1] < falls * losses[0], STAGES[stage].name


def test_a_run_whose_loss_is_no_number_ends_with_a_message(shared):
    trainer = Trainer(settings(), None, SMALL)
    trainer.load_state_dict(shared.state_dict() | {"stage": 1, "step": 1, "loss": torch.tensor(float("nan"))})
    with pytest.raises(RuntimeError, match="loss is nan after"):
        list(trainer.run(workers=0))


def test_batches_depend_on_seed_stage_and_number_alone():
    batches = Batches(3, 2, 2, 4, STAGES[2].styles)
    alone = batches[5]
    for workers in (0, 2):
        drawn = list(load(batches, 4, 7, workers, pin=False))
        assert len(drawn) == 3
        assert torch.equal(drawn[1].pictures, alone.pictures)
        assert torch.equal(drawn[1].packed.ids, alone.packed.ids)
        assert torch.equal(drawn[1].labels, alone.labels)
    for other in (Batches(4, 2, 2, 4, STAGES[2].styles)[5], Batches(3, 3, 2, 4, STAGES[2].styles)[5], batches[6]):
        assert not torch.equal(other.pictures[:2], alone.pictures[:2])


def test_painted_pictures_teach_the_tower_alone_and_nothing_of_colours():
    images = 4
    batch = Batches(3, 4, images, 4, (("hard", 1.0),), painted=3)[0]
    assert len(batch.pictures) == len(batch.labels) == images + 3 and len(batch.packed.ids) == images
    assert (batch.labels[:images] >= 0).all() and (batch.labels[images:, 1] == UNKNOWN).any()
    trainer = Trainer(settings(), "plain", SMALL)
    assert all(trainer.batches(stage).painted > 0 for stage in range(len(STAGES)))
    loss, answers = training_loss(trainer.model, batch, DENSE, None)
    without = Batch(batch.pictures[:images], batch.labels[:images], batch.packed)
    assert answers.item() == pytest.approx(training_loss(trainer.model, without, DENSE, None)[1].item(), rel=1e-5)
    loss.backward()
    painted = batch.labels[images:]
    logits = torch.randn(3, painted[0, 0].numel(), sum(LABELS.values()), requires_grad=True)
    label_loss(logits, painted).backward()
    shape, color = logits.grad.split(list(LABELS.values()), -1)[:2]
    unknown = (painted[:, 1] == UNKNOWN).flatten(1)
    assert (color[unknown] == 0).all() and (color[~unknown] != 0).any() and (shape[unknown] != 0).any()


def test_workers_are_as_many_as_shared_memory_holds():
    batches = Batches(0, 2, 256, 24)
    assert fitting_workers(batches, 0, 0) == 0 and fitting_workers(batches, 16, 0) == 1
    assert fitting_workers(batches, 16, 64 << 20) == 1 and fitting_workers(batches, 16, 64 << 30) == 16
    assert 1 < fitting_workers(batches, 16, 1 << 30) < 16


def test_minutes_become_steps():
    plan = settings(steps=())
    trainer = Trainer(settings(), None, SMALL)
    assert seconds_per_step(trainer, 0, workers=0) > 0
    short, long = (steps_within(plan, "pruning-aware", minutes, 0, SMALL) for minutes in (0.01, 60))
    assert len(short) == len(long) == len(STAGES)
    assert all(a < b for a, b in zip(short, long, strict=True)) and min(short) >= 10


def test_the_command_makes_its_plan_from_minutes(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "_WARM", {"cpu": 0})
    monkeypatch.setattr(run, "_TIMED", {"cpu": 1})
    monkeypatch.setattr(train, "default_settings", lambda *given: settings(steps=(), images=1, questions=1))
    trained_parts = []
    monkeypatch.setattr(train, "train_part", lambda *given: trained_parts.append(given))
    monkeypatch.setattr(train, "train_recipe", lambda *given: trained_parts.append(given))
    command.main(["--out", str(tmp_path), "--minutes", "2", "--device", "cpu", "--workers", "0"])
    plan = read_plan(tmp_path)
    assert len(plan.steps) == len(STAGES) and min(plan.steps) >= 10
    assert [given[2] for given in trained_parts] == [None, "pruning-aware"]
    assert all(given[0] == plan for given in trained_parts)


def test_learning_rates_rise_and_fall():
    for stage in STAGES:
        rates = [stage.rate(step, 1000) for step in range(1000)]
        assert min(rates) > 0 and max(rates) <= 1
        assert rates[-1] == pytest.approx(stage.final, abs=0.01)
        assert not stage.warmup or rates[0] < 0.1


def test_the_curriculum_takes_objects_patches_first():
    labels = torch.zeros(2, 7, 12, 12, dtype=torch.int8)
    labels[0, 0, 3, 4:8], labels[1, 0, 11] = 2, 5
    chosen = choose_tokens(labels, 12, np.random.default_rng(0))
    assert chosen.shape == (2, 12) and (chosen.diff() > 0).all()
    assert set(range(40, 44)) <= set(chosen[0].tolist())
    assert chosen[1].tolist() == list(range(132, 144))


def test_plans_cover_what_the_method_does_to_twelve_layers():
    rng = np.random.default_rng(0)
    plans = [draw_plan(rng, 12) for _ in range(600)]
    assert 0.25 < sum(plan == DENSE for plan in plans) / 600 < 0.45
    filtered = [plan for plan in plans if plan.filter_layer is not None]
    assert {plan.filter_layer for plan in filtered} == {4, 5, 6} and min(plan.kept for plan in filtered) >= 4
    for plan in plans:
        assert plan.merged <= (0 not in plan.blind)
        assert all(layer not in plan.blind for layer in (4, 5, 6, 7))
        assert plan == DENSE or (plan.blind and not plan.glance)


def test_glancing_plans_read_nothing_where_they_choose():
    plans = [draw_plan(np.random.default_rng(seed), 12, glance=1.0) for seed in range(600)]
    filtered = [plan for plan in plans if plan.kept <= 144 and plan.filter_layer is not None]
    assert len(filtered) > 200 and all(plan.glance for plan in filtered)
    whole = [plan for plan in plans if plan.glance and plan.kept > 144]
    assert {plan.filter_layer for plan in whole} == {4} and {bool(plan.blind) for plan in whole} == {True, False}
    assert 0.1 < sum(plan == DENSE for plan in plans) / 600 < 0.25
    assert {plan.filter_layer for plan in filtered} == {4, 5, 6} and {plan.merged for plan in filtered} == {True, False}


def test_muon_moves_each_stacked_part_by_an_orthogonal_step():
    torch.manual_seed(0)
    square = orthogonalize(torch.randn(3, 16, 40)).float()
    values = torch.linalg.svdvals(square)
    assert values.min() > 0.3 and values.max() < 1.4
    stacked = torch.nn.Parameter(torch.zeros(48, 16))
    parts = [torch.nn.Parameter(torch.zeros(16, 16)) for _ in range(3)]
    gradient = torch.randn(48, 16) * torch.tensor([1.0, 10.0, 0.1]).repeat_interleave(16)[:, None]
    stacked.grad = gradient.clone()
    for part, g in zip(parts, gradient.chunk(3), strict=True):
        part.grad = g.clone()
    Muon([{"params": [stacked], "parts": 3}], lr=0.1).step()
    Muon([{"params": parts}], lr=0.1).step()
    torch.testing.assert_close(stacked, torch.cat(parts).detach(), rtol=0, atol=1e-3)


def test_the_curve_is_written_as_table_and_picture(shared, tmp_path):
    write_curve(tmp_path / "shared", [])
    assert not list(tmp_path.iterdir())
    write_curve(tmp_path / "pruning-aware", shared.curve)
    lines = (tmp_path / "pruning-aware.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("step,stage,loss,mean,attr_color") and len(lines) == 1 + len(shared.curve)
    assert (tmp_path / "pruning-aware.png").read_bytes().startswith(b"\x89PNG")


def test_plans_are_kept_and_foreign_files_are_named(tmp_path):
    plan = settings((5, 6, 7, 8, 9))
    write_plan(tmp_path, plan)
    assert read_plan(tmp_path) == plan and read_plan(tmp_path / "none") is None
    (tmp_path / "plan.json").write_text(json.dumps({"seed": 1}), encoding="utf-8")
    with pytest.raises(ValueError, match="plan.json is not the plan"):
        read_plan(tmp_path)
    cpu = default_settings(3, torch.device("cpu"), threads=1, images=None)
    assert (cpu.seed, cpu.images, cpu.steps) == (3, 10, ()) and EVALUATIONS > 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--steps", "1,2,3"], f"{len(STAGES)} positive numbers"),
        (["--steps", "1,2,3,4,5,0"], f"{len(STAGES)} positive numbers"),
        (["--minutes", "0"], "--minutes: expected a number ≥ 0.1"),
        (["--recipe", "other"], "invalid choice"),
        (["--device", "warp"], "unknown"),
    ],
)
def test_bad_arguments_are_one_line_before_anything_is_written(given, message, tmp_path, capsys):
    try:
        status = command.main(["--out", str(tmp_path / "out"), *given])
    except SystemExit as left:
        status = left.code
    assert status in (1, 2) and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_with_a_run_needs_resume_and_other_folders_are_left_alone(tmp_path, capsys):
    write_plan(tmp_path / "run", settings())
    write_plan(tmp_path / "old", settings((1, 2)))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x", encoding="utf-8")
    for name, words, message in [
        ("run", [], "--resume continues it"),
        ("old", ["--resume"], "old is a run of 2 stages, training has 5 now"),
        ("mine", ["--resume"], "not empty and holds no run"),
    ]:
        assert command.main(["--out", str(tmp_path / name), "--device", "cpu", *words]) == 1
        assert message in capsys.readouterr().err
