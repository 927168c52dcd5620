"""The training scripts: LLaVA-1.5's settings, which variables and further options change, and nothing else."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llava.model.images import check_image
from llava.model.pruning import PruningConfig
from llava.train.arguments import parse_arguments
from llava.train.data import parse, read_samples
from llava.train.tiny import files

SCRIPTS = Path(__file__).parents[1] / "scripts"
# Stands in for PYTHON: notes its arguments.
FAKE = f"""#!{sys.executable}
import json, os, sys
with open(os.environ["CALLS"], "a") as log:
    print(json.dumps(sys.argv[1:]), file=log)
"""
STAGES = {
    "pretrain": {
        "learning_rate": 1e-3,
        "tune_mm_mlp_adapter": True,
        "version": "plain",
        "image_aspect_ratio": "square",
    },
    "finetune": {"learning_rate": 2e-5, "version": "v1", "group_by_modality_length": True, "lora_enable": None},
    "finetune_lora": {"learning_rate": 2e-4, "mm_projector_lr": 2e-5, "lora_r": 128, "lora_alpha": 256},
    "finetune_qlora": {"bits": 4, "lora_enable": True, "image_aspect_ratio": "pad"},
    "finetune_task": {"learning_rate": 2e-5, "pretrain_mm_mlp_adapter": None, "vision_tower": None},
    "finetune_task_lora": {"lora_enable": True, "model_name_or_path": "liuhaotian/llava-v1.5-7b"},
}

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def calls(tmp_path, script, *more, **variables):
    python = tmp_path / "python"
    python.write_text(FAKE)
    python.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "PYTHON": str(python), "CALLS": str(tmp_path / "calls")} | variables
    subprocess.run(["bash", str(SCRIPTS / script), *more], env=environment, check=True, timeout=60)
    return [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_has_llavas_settings(tmp_path, stage):
    *_, words = calls(tmp_path, f"v1_5/{stage}.sh", "--max_steps", "7", OUT="out here")
    assert words[:2] == ["-m", "llava.train.train"]
    # half precision is for the machine that trains
    model, data, training = parse_arguments([*words[2:], "--bf16", "False"])
    found = vars(training) | vars(data) | vars(model)
    expected = {
        "max_steps": 7,
        "output_dir": "out here",
        "num_train_epochs": 1,
        "warmup_steps": 0.03,
        "weight_decay": 0,
    }
    expected |= {"mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2, "model_max_length": 2048}
    expected |= {"gradient_checkpointing": True, "per_device_train_batch_size": 32 if stage == "pretrain" else 16}
    assert {key: found[key] for key in expected | STAGES[stage]} == expected | STAGES[stage]


def test_two_gpus_are_started_by_torchrun(tmp_path):
    *_, words = calls(tmp_path, "v1_5/finetune.sh", GPUS="2")
    assert words[:5] == ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m"]


def test_deepspeeds_files_are_json_of_their_stage():
    stages = {"zero2": 2, "zero3": 3, "zero3_offload": 3}
    found = {name: json.loads((SCRIPTS / f"{name}.json").read_text())["zero_optimization"] for name in stages}
    assert {name: content["stage"] for name, content in found.items()} == stages
    assert all(found[name]["stage3_gather_16bit_weights_on_model_save"] for name in ("zero3", "zero3_offload"))


def test_smollm2_goes_from_captions_to_questions(tmp_path):
    out = str(tmp_path / "run")
    prepare, files, pretrain, lora, accuracy = calls(tmp_path, "smollm2/train.sh", OUT=out, STEPS="5")
    assert prepare == ["scripts/smollm2/prepare.py", "--out", out]
    assert files[:4] == ["-m", "llava.train.tiny.files", "--out", f"{out}/data"]
    for words, expected in [
        (pretrain, {"tune_mm_mlp_adapter": True, "version": "mpt", "max_steps": 200}),
        (lora, {"lora_enable": True, "pretrain_mm_mlp_adapter": f"{out}/pretrain/mm_projector.bin", "max_steps": 5}),
    ]:
        model, _, training = parse_arguments([*words[2:], "--bf16", "False"])
        found = vars(training) | vars(model)
        assert {key: found[key] for key in expected} == expected
    assert accuracy[:2] == ["-m", "llava.tiny.accuracy"]


def test_scenes_become_data_that_can_be_trained_on(tmp_path):
    files.work(files.Options(out=tmp_path, pictures=4, questions=3))
    for name, turns in (("captions", [4, 4, 4, 4]), ("questions", [4, 3, 3, 4])):
        samples = read_samples(tmp_path / f"{name}.json")
        parsed = [parse(sample, name, tmp_path / "images") for sample in samples]
        assert [len(sample.turns) for sample in parsed] == turns
        assert all(check_image(path) == (168, 168) for sample in parsed for path in sample.images)


def test_the_comparison_runs_methods_that_the_small_model_has(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS / "tiny"))
    import trained

    for config in trained.CONFIGS.values():
        if config is not None:
            PruningConfig.of(config if config[0] == "{" else SCRIPTS.parent / config).check_layers(12)
    assert trained.MEASURED.keys() == trained.RUNS.keys()
