"""The benchmark shell scripts: variables become the arguments of llava.eval.run, and nothing else happens in them."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llava.cli import parse
from llava.eval.benchmarks import BENCHMARKS
from llava.eval.run import Options
from llava.model.pruning import PruningConfig

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts" / "v1_5" / "visiPruner_eval"
NAMES = sorted(path.stem for path in SCRIPTS.glob("*.sh") if path.stem != "common")

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")

# Stands in for PYTHON: notes its arguments, and makes the folder that the benchmark writer would.
FAKE_PYTHON = f"""#!{sys.executable}
import json, os, sys
from pathlib import Path
with open(os.environ["CALLS"], "a") as log:
    print(json.dumps(sys.argv[1:]), file=log)
if sys.argv[2] == "llava.tiny.benchmarks":
    Path(sys.argv[4], "gqa_mini").mkdir(parents=True)
elif "STATUS" in os.environ:
    print("out of memory", file=sys.stderr)
    sys.exit(int(os.environ["STATUS"]))
"""


class Workbench:
    """Runs the scripts in a clean environment with a fake interpreter."""

    def __init__(self, root):
        self.root = root
        self.python = root / "python"
        self.python.write_text(FAKE_PYTHON)
        self.python.chmod(0o755)

    def run(self, name, *arguments, **variables):
        keep = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
        given = {"PYTHON": self.python, "CALLS": self.root / "calls"} | variables
        environment = keep | {key: str(value) for key, value in given.items() if value is not None}
        command = ["bash", str(SCRIPTS / f"{name}.sh"), *arguments]
        return subprocess.run(command, env=environment, cwd=self.root, capture_output=True, text=True, timeout=100)

    def calls(self):
        path = self.root / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def asked(self, name="gqa", **variables):
        """What llava.eval.run makes of the arguments that a script gives it."""
        assert self.run(name, **variables).returncode == 0
        words = self.calls()[-1]
        return parse(Options, words[words.index("llava.eval.run") + 1 :], prog="run", description=None)


@pytest.fixture
def bench(tmp_path):
    return Workbench(tmp_path)


def test_every_benchmark_of_the_paper_has_its_script():
    assert set(NAMES) == {name for name in BENCHMARKS if not name.endswith(("_mini", "_val"))}


@pytest.mark.parametrize("name", [*NAMES, "common"])
def test_syntax(name):
    done = subprocess.run(["bash", "-n", str(SCRIPTS / f"{name}.sh")], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", NAMES)
def test_a_script_runs_its_benchmark_with_the_papers_settings(bench, name):
    args = bench.asked(name)
    assert (args.benchmark, args.model_path) == (name, "liuhaotian/llava-v1.5-7b")
    assert (args.out, args.name, args.batch_size) == ("runs/llava-v1.5-7b", "visipruner", 8)
    config = PruningConfig.of(args.pruning_config)
    assert [config.resolved(layers).shallow_mid_layer for layers in (28, 32, 40)] == [5, 6, 8]
    assert bench.calls() == [["-m", "llava.eval.run", *bench.calls()[0][2:]]]


def test_help_names_every_variable_that_is_read(bench):
    done = bench.run("gqa", "--help")
    assert done.returncode == 0 and bench.calls() == []
    for word in ("TINY", "DENSE", "PRUNING_CONFIG", "MODEL_PATH", "MODEL_BASE", "CKPT", "EXPERIMENT", "DATA_DIR"):
        assert word in done.stdout
    for word in ("SPLIT", "OUT", "CONV_MODE", "BATCH_SIZE", "DEVICE", "DTYPE", "LIMIT", "OVERWRITE", "PYTHON"):
        assert word in done.stdout
    assert bench.run("gqa", "--batch-size", "4").returncode == 2


def test_variables_become_arguments(bench):
    given = {"MODEL_PATH": "a/b/", "MODEL_BASE": "c", "DATA_DIR": "d", "SPLIT": "e", "EXPERIMENT": "f"}
    given |= {"CONV_MODE": "v1", "BATCH_SIZE": 3, "DEVICE": "cpu", "DTYPE": "bfloat16", "LIMIT": 7, "OVERWRITE": 1}
    args = bench.asked(PRUNING_CONFIG='{"mode":[]}', **given)
    assert (args.model_path, args.model_base, args.data_dir, args.split) == ("a/b", "c", "d", "e")
    assert (args.name, args.out, args.conv_mode, args.batch_size) == ("f", "runs/b", "v1", 3)
    assert (args.device, args.dtype, args.limit, args.overwrite) == ("cpu", "bfloat16", 7, True)
    assert args.pruning_config == '{"mode":[]}'
    assert bench.asked(CKPT="x").out == "runs/x"
    assert bench.asked(OUT="y", CKPT="x").out == "y"


def test_dense_passes_no_pruning_and_has_a_name_of_its_own(bench):
    args = bench.asked(DENSE=1, PRUNING_CONFIG="ignored.json")
    assert (args.pruning_config, args.name) == (None, "dense")


@pytest.mark.parametrize(
    ("gpus", "device", "processes"),
    [(None, None, 1), ("", None, 1), ("-1", None, 1), ("2", None, 1), ("0,3,5", None, 3), ("0,3", "cpu", 1)],
)
def test_one_process_for_each_gpu(bench, gpus, device, processes):
    bench.asked(CUDA_VISIBLE_DEVICES=gpus, DEVICE=device)
    [words] = bench.calls()
    assert ("accelerate.commands.launch" in words) == (processes > 1)
    if processes > 1:
        assert words[words.index("--num_processes") + 1] == str(processes)


def test_tiny_is_the_small_model_on_a_benchmark_written_once(bench):
    for _ in range(2):  # the second folder could not be made again
        args = bench.asked(TINY=1, DATA_DIR=bench.root / "data")
    assert [words[1] for words in bench.calls()] == ["llava.tiny.benchmarks", "llava.eval.run", "llava.eval.run"]
    assert (args.benchmark, args.model_path) == ("gqa_mini", "playground/checkpoints/llava-tiny")
    assert args.pruning_config == "playground/checkpoints/llava-tiny/pruning.json"
    done = bench.run("pope", TINY=1)
    assert done.returncode == 1 and "no small pope" in done.stderr


def test_a_failure_is_the_scripts_and_a_missing_interpreter_is_named(bench):
    done = bench.run("gqa", STATUS=1)
    assert done.returncode == 1 and "out of memory" in done.stderr
    done = bench.run("gqa", PYTHON="/no/such/python")
    assert done.returncode == 1 and "PYTHON=/no/such/python is not an executable" in done.stderr


def test_for_real_on_the_small_model(bench):
    given = {"TINY": 1, "DATA_DIR": bench.root / "data", "OUT": bench.root / "out", "LIMIT": 3, "DEVICE": "cpu"}
    done = bench.run("gqa", PYTHON=sys.executable, OMP_NUM_THREADS=1, HF_HUB_OFFLINE=1, **given)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.rstrip("\n").split("\n")[-1])["benchmarks"]["gqa_mini"]
    assert (found["partial"], found["scores"]["answered"]) == (True, 3)
    assert found["answers"] == str(bench.root / "out" / "gqa_mini" / "visipruner.jsonl")


def test_missing_data_says_what_to_put_where(bench):
    given = {"MODEL_PATH": ROOT / "playground/checkpoints/llava-tiny", "DATA_DIR": bench.root}
    done = bench.run("textvqa", PYTHON=sys.executable, HF_HUB_OFFLINE=1, **given)
    assert done.returncode == 1
    assert f"{bench.root}/textvqa/train_images" in done.stderr and "train_val_images.zip" in done.stderr


def test_the_programs_take_the_options_that_other_scripts_give_them(capsys):
    asked = 0
    for script in [*(ROOT / "scripts").glob("*.sh"), *(ROOT / "scripts" / "tiny").glob("*.sh")]:
        commands = script.read_text(encoding="utf-8").replace("\\\n", " ")
        for module, options in re.findall(r'^"\$PYTHON" -m (llava[\w.]+)(.*)$', commands, re.MULTILINE):
            program = importlib.import_module(module)
            program = program if hasattr(program, "main") else importlib.import_module(f"{module}.__main__")
            with pytest.raises(SystemExit):
                program.main(["--help"])
            known = re.findall(r"--[a-z-]+", capsys.readouterr().out)
            given = re.findall(r"(?<=\s)--[a-z-]+", options)
            asked += len(given)
            assert set(given) <= set(known), f"{script.name}: {module}"
    assert asked > 20
