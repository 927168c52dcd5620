"""Training: LLaVA's three kinds of run learn, go on after a kill with the same losses, and load as LLaVA's files."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from family_checkpoints import write_family
from llava_fixtures import prompts
from training_runs import command, edited, losses, run, turns, write_world

from llava import load_pretrained_model
from llava.cli import UserError
from llava.train.data import ModalityGroups
from llava.train.trainer import LlavaTrainer

pytest.importorskip("peft")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def pretrained(world):
    """The first stage: a projector between a vision tower and a language model."""
    out = world / "llava-pretrain"
    settings = {"model_name_or_path": world / "vicuna", "vision_tower": world / "llava" / "vision_tower"}
    settings |= {"version": "plain", "data_path": world / "captions.json", "tune_mm_mlp_adapter": True}
    curve = run(world, out, **settings, learning_rate=0.03, max_steps=30)
    assert curve[-1] < 0.75 * curve[0]
    return out


def interrupted(monkeypatch, world, out, at, **options):
    """Run until step `at` has begun, leaving a half-written checkpoint behind."""
    step = LlavaTrainer.training_step

    def stopping(self, *args, **kwargs):
        if self.state.global_step == at:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(LlavaTrainer, "training_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(world, out, **options)
    (out / "checkpoint-9").mkdir()


def load(folder, base=None):
    return load_pretrained_model(folder, base, None, device="cpu")[1]


@torch.no_grad()
def logits(model):
    ids, mask, images = prompts("titt", "ttt")
    return model(input_ids=ids, attention_mask=mask, images=images).logits


def test_a_projector_is_what_llavas_builder_reads(world, pretrained):
    weights = torch.load(pretrained / "mm_projector.bin", weights_only=True)
    assert sorted(weights) == [f"model.mm_projector.{n}.{kind}" for n in (0, 2) for kind in ("bias", "weight")]
    config = json.loads((pretrained / "config.json").read_text())
    expected = {"model_type": "llava_llama", "mm_projector_type": "mlp2x_gelu", "mm_hidden_size": 16}
    expected |= {"tune_mm_mlp_adapter": True, "use_mm_proj": True, "tokenizer_padding_side": "right"}
    expected |= {"tokenizer_model_max_length": 256, "rope_theta": 10000.0, "mm_vision_select_layer": -2}
    assert expected.items() <= config.items()
    model = load(pretrained, world / "vicuna")
    torch.testing.assert_close(model.model.mm_projector[0].weight, weights["model.mm_projector.0.weight"])


def test_lora_goes_on_after_a_stop_with_the_same_losses(world, pretrained, tmp_path, monkeypatch):
    settings = {"model_name_or_path": world / "vicuna", "vision_tower": world / "llava" / "vision_tower"}
    settings |= {"pretrain_mm_mlp_adapter": pretrained / "mm_projector.bin", "version": "v1", "lora_enable": True}
    settings |= {"lora_r": 8, "lora_alpha": 16, "mm_projector_lr": 1e-3, "group_by_modality_length": True}
    settings |= {"gradient_checkpointing": True, "max_steps": 16, "learning_rate": 0.02}
    whole = run(world, tmp_path / "whole", **settings)
    assert whole[-1] < 0.6 * whole[0]
    interrupted(monkeypatch, world, tmp_path / "lora", at=7, **settings)
    assert run(world, tmp_path / "lora", **settings) == whole
    names = {path.name for path in (tmp_path / "lora").iterdir()}
    assert {"config.json", "adapter_config.json", "adapter_model.safetensors", "non_lora_trainables.bin"} <= names
    assert {"checkpoint-5", "checkpoint-16"} <= names and "checkpoint-9" not in names
    rest = torch.load(tmp_path / "lora" / "non_lora_trainables.bin", weights_only=True)
    assert sorted(rest)[0] == "base_model.model.model.mm_projector.0.bias"
    again, same = load(tmp_path / "lora"), load(tmp_path / "whole", world / "vicuna")
    torch.testing.assert_close(logits(again), logits(same))


def test_a_full_run_is_killed_continued_and_whole(world, tmp_path):
    settings = {"gradient_accumulation_steps": 2, "learning_rate": 3e-3, "pruning_config": '{"method":"fastv","k":1}'}
    settings |= {"pruned_steps": 0.5, "save_steps": 3, "max_steps": 10}
    whole = run(world, tmp_path / "whole", **settings)
    assert whole[-1] < 0.7 * whole[0]
    words = command(world, tmp_path / "full", **settings, logging_strategy="steps")
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # as here: sums round alike
    process = subprocess.Popen(
        [sys.executable, "-m", "llava.train.train", *words], stderr=subprocess.DEVNULL, env=one_thread
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "full" / "checkpoint-3" / "trainer_state.json").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert run(world, tmp_path / "full", **settings) == whole
    model = load(tmp_path / "full")
    torch.testing.assert_close(logits(model), logits(load(tmp_path / "whole")))
    before = load(world / "llava").state_dict()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert "lm_head.weight" in moved and "model.layers.0.mlp.up_proj.weight" in moved
    assert not any("vision_tower" in name for name in moved)


def test_an_error_names_the_sample_before_any_weight_is_read(world, monkeypatch):
    monkeypatch.setattr("llava.model.parts.Parts.read_weights", lambda *args: pytest.fail("weights were read"))
    cases = [
        (lambda s: s.update(image="gone.png"), "questions.json.*gone.png.*no such file"),
        (lambda s: s.pop("image"), "sample 0 .id 's0'.: 1 <image> markers for 0 images"),
        (lambda s: s.update(conversations=turns("a", "b", "c")), "there are 3 turns"),
        (lambda s: s["conversations"][1].update({"from": "human"}), "turn 2 is from 'human'"),
        (lambda s: s["conversations"][1].update(value="red </s> blue"), "holds the special token </s>"),
        (lambda s: s["conversations"][1].update(value=" "), "answer 1 is empty"),
        (
            lambda s: s["conversations"][0].update(value="<image>" + "small circle? " * 40),
            "tokens with its images, --model_max",
        ),
    ]
    for number, (change, message) in enumerate(cases):
        path = edited(world, f"{number}-questions.json", change)
        with pytest.raises(UserError, match=message):
            run(world, world / "never", data_path=path)


def test_padded_and_packed_steps_have_the_same_losses(world, tmp_path):
    packed, padded = (run(world, tmp_path / str(on), packed=on, max_steps=4) for on in (True, False))
    assert packed == pytest.approx(padded, rel=1e-4)
    assert losses(tmp_path / "True")[0] == packed[0]


@pytest.mark.parametrize("family", ["qwen2_vl", "internvl", "llava_next"])
def test_models_with_a_chat_template_train_a_lora(world, tmp_path, family):
    base = write_family(tmp_path / "base", family)
    settings = {"model_name_or_path": base, "learning_rate": 0.02, "model_max_length": 512, "max_steps": 6}
    curve = run(world, tmp_path / "lora", **settings)
    assert curve[-1] < 0.9 * curve[0]
    tuned, before = load(tmp_path / "lora").state_dict(), load(base).state_dict()
    moved = {name for name, tensor in tuned.items() if not torch.equal(tensor, before[name])}
    assert moved and all(".layers." in name and "vis" not in name for name in moved)


def test_the_merged_model_is_the_lora(world, pretrained, tmp_path):
    sys.path.insert(0, str(ROOT / "scripts"))
    import merge_lora_weights

    options = merge_lora_weights.Options(
        model_path=str(pretrained), model_base=str(world / "vicuna"), save_model_path=tmp_path / "whole", device="cpu"
    )
    merge_lora_weights.work(options)
    torch.testing.assert_close(logits(load(tmp_path / "whole")), logits(load(pretrained, world / "vicuna")))


def llavas_groups(lengths, batch, world):
    """LLaVA's rule with the permutations left out: megabatches by length, dealt into chunks of about equal sums."""
    chunks = []
    for size in range(0, len(lengths), batch * world):
        part = sorted(range(size, min(size + batch * world, len(lengths))), key=lambda i: lengths[i], reverse=True)
        if len(part) % world:
            chunks.append([part[i::world] for i in range(world)])
            continue
        dealt, sums = [[] for _ in range(world)], [0] * world
        for index in part:
            least = sums.index(min(sums))
            dealt[least].append(index)
            sums[least] += lengths[index]
            if len(dealt[least]) == len(part) / world:
                sums[least] = float("inf")
        chunks.append(dealt)
    return [index for megabatch in chunks for chunk in megabatch for index in chunk]


def test_groups_are_llavas(monkeypatch):
    monkeypatch.setattr(torch, "randperm", lambda n, generator: torch.arange(n))
    lengths = [7, 3, 9, 1, 5, 5, 8, 2, 6, 4, 3]
    assert list(ModalityGroups(lengths, 2, 2, 0)) == llavas_groups(lengths, 2, 2)
    mixed = [n if i % 3 else -n for i, n in enumerate(lengths)]
    shown, text = ([i for i, n in enumerate(mixed) if (n > 0) is kind] for kind in (True, False))
    order = list(ModalityGroups(mixed, 2, 1, 0))
    assert sorted(order) == list(range(11))
    batches = [order[i : i + 2] for i in range(0, 11, 2)]
    assert all(set(batch) <= set(shown) or set(batch) <= set(text) for batch in batches[:-1])
    assert order[-1:] == sorted({shown[-1]} if len(shown) % 2 else {text[-1]})[-1:] or len(shown) % 2 == 0


def test_a_steps_method_is_drawn_by_its_number():
    drawn = SimpleNamespace(
        config="method", args=SimpleNamespace(seed=3), model_options=SimpleNamespace(pruned_steps=0.9)
    )
    steps = [LlavaTrainer.step_config(drawn, step) == "method" for step in range(1000)]
    assert 860 < sum(steps) < 940
    assert steps == [LlavaTrainer.step_config(drawn, step) == "method" for step in range(1000)]
