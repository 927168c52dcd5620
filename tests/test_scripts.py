"""The benchmark shell scripts: refusals before any model is loaded, chunking, merge and score around a fake loader."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts" / "v1_5" / "visiPruner_eval"
NAMES = ("gqa", "mme", "textvqa")
SHORT = "\nAnswer the question using a single word or phrase."

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")

# Stands in for PYTHON: as the loader it answers with the question's reference and notes its arguments and GPU, as the
# benchmark writer it copies TINY_SOURCE; other modules are passed on.
FAKE_PYTHON = f"""#!{sys.executable}
import json, os, shutil, sys, time
from pathlib import Path
if sys.argv[2] == "llava.tiny.benchmarks":
    shutil.copytree(os.environ["TINY_SOURCE"], Path(sys.argv[4]) / "gqa_mini")
    sys.exit()
if sys.argv[2] != "llava.eval.model_vqa_loader":
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
args = dict(zip(sys.argv[3::2], sys.argv[4::2]))
chunk, chunks = int(args["--chunk-idx"]), int(args["--num-chunks"])
with open(os.environ["CALLS"], "a") as log:
    print(json.dumps([sys.argv[3:], os.environ.get("CUDA_VISIBLE_DEVICES"), os.getpid()]), file=log)
if "HANG" in os.environ:
    time.sleep(60)
if os.environ.get("BREAK_CHUNK") == str(chunk):
    sys.exit("out of memory")
questions = [json.loads(line) for line in Path(args["--question-file"]).read_text().splitlines()]
size = -(-len(questions) // chunks)
questions = questions[: int(args.get("--limit", len(questions)))][size * chunk : size * (chunk + 1)]
lines = [{{"question_id": q["question_id"], "prompt": q["text"], "text": q["reference"]}} for q in questions]
Path(args["--answers-file"]).write_text("".join(json.dumps(line) + "\\n" for line in lines))
"""


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_benchmark(root, name):
    """Four questions with right references, laid out like the real benchmark."""
    folder = root / {"gqa": "gqa", "mme": "MME", "textvqa": "textvqa"}[name]
    if name == "gqa":
        (folder / "data" / "images").mkdir(parents=True)
        (folder / "data" / "images" / "n1.jpg").touch()
        rows = [{"question_id": str(i), "text": "Red?" + SHORT, "reference": "Yes."} for i in range(4)]
        write_jsonl(folder / "llava_gqa_testdev_balanced.jsonl", rows)
        known = {str(i): {"answer": "yes", "isBalanced": True} for i in range(4)}
        (folder / "data" / "testdev_balanced_questions.json").write_text(json.dumps(known))
    elif name == "mme":
        release = folder / "MME_Benchmark_release_version" / "existence"
        release.mkdir(parents=True)
        rows = []
        for image in ("0001", "0002"):
            asked = {"A dog? Please answer yes or no.": "Yes", "A cat? Please answer yes or no.": "No"}
            (release / f"{image}.txt").write_text("".join(f"{q}\t{a}\n" for q, a in asked.items()))
            rows += [
                {"question_id": f"existence/{image}.png", "text": q + SHORT, "reference": a} for q, a in asked.items()
            ]
        write_jsonl(folder / "llava_mme.jsonl", rows)
    else:
        (folder / "train_images").mkdir(parents=True)
        (folder / "train_images" / "7.jpg").touch()
        asked = ["Brand?", "Model?", "Year?", "City?"]
        rows = [{"question_id": "7", "text": q + SHORT, "reference": "nokia"} for q in asked]
        write_jsonl(folder / "llava_textvqa_val_v051_ocr.jsonl", rows)
        data = [{"image_id": "7", "question": q, "answers": ["nokia"] * 10} for q in asked]
        (folder / "TextVQA_0.5.1_val.json").write_text(json.dumps({"data": data}))
    return folder


class Workbench:
    """Runs the scripts in a clean environment, with data, a model folder and a fake loader below `root`."""

    def __init__(self, root):
        self.root, self.data = root, root / "data"
        self.data.mkdir()
        (root / "model").mkdir()
        (root / "model" / "config.json").write_text("{}")
        python = root / "python"
        python.write_text(FAKE_PYTHON)
        python.chmod(0o755)

    def command(self, name, *arguments, **variables):
        """The arguments of subprocess for one script."""
        keep = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
        defaults = {
            "PYTHON": self.root / "python",
            "DATA_DIR": self.data,
            "MODEL_PATH": self.root / "model",
            "CALLS": self.root / "calls",
        }
        environment = keep | {key: str(value) for key, value in (defaults | variables).items() if value is not None}
        return {"args": ["bash", str(SCRIPTS / f"{name}.sh"), *arguments], "env": environment, "cwd": self.root}

    def run(self, name, *arguments, **variables):
        command = self.command(name, *arguments, **variables)
        return subprocess.run(**command, capture_output=True, text=True, timeout=60)

    def log(self):
        path = self.root / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def calls(self):
        """(arguments as a dict, CUDA_VISIBLE_DEVICES) of every call of the loader, by chunk."""
        parsed = [(dict(zip(a[::2], [*a[1::2], None], strict=False)), gpu) for a, gpu, _ in self.log()]
        return sorted(parsed, key=lambda call: call[0]["--chunk-idx"])

    def pids(self):
        return [pid for _, _, pid in self.log()]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def bench(tmp_path):
    return Workbench(tmp_path)


@pytest.mark.parametrize("name", [*NAMES, "common"])
def test_syntax(name):
    done = subprocess.run(["bash", "-n", str(SCRIPTS / f"{name}.sh")], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", NAMES)
def test_help_names_every_setting(bench, name):
    done = bench.run(name, "--help")
    assert done.returncode == 0
    for word in ("TINY", "DENSE", "PRUNING_CONFIG", "MODEL_PATH", "CKPT", "SPLIT", "DATA_DIR", "BATCH_SIZE", "PYTHON"):
        assert word in done.stdout
    assert bench.run(name, "--batch-size", "4").returncode == 2


@pytest.mark.parametrize("name", NAMES)
def test_missing_data_says_what_to_put_where(bench, name):
    done = bench.run(name)
    assert done.returncode == 1
    assert f"file {bench.data}/" in done.stderr and f"folder {bench.data}/" in done.stderr
    assert "eval.zip" in done.stderr
    assert bench.calls() == []


def test_an_empty_image_folder_is_missing(bench):
    folder = write_benchmark(bench.data, "textvqa")
    (folder / "train_images" / "7.jpg").unlink()
    done = bench.run("textvqa")
    assert done.returncode == 1
    assert f"folder {folder}/train_images" in done.stderr and "train_val_images.zip" in done.stderr
    assert bench.calls() == []


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"MODEL_PATH": "/no/such/model"}, "folder /no/such/model"),
        ({"MODEL_PATH": "nobody/nothing", "HF_HUB_OFFLINE": 1, "HF_HOME": "/no/cache"}, "hub's nobody/nothing"),
        ({"PRUNING_CONFIG": "no/such.json"}, "file no/such.json"),
        ({"PYTHON": "/no/such/python"}, "PYTHON=/no/such/python is not an executable"),
    ],
)
def test_a_missing_model_config_or_interpreter_stops_before_the_loader(bench, variables, message):
    write_benchmark(bench.data, "gqa")
    done = bench.run("gqa", **variables)
    assert done.returncode == 1
    assert message in done.stderr
    assert bench.calls() == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("gpus", [None, "0,3,5"])
def test_runs_merges_and_scores(bench, name, gpus):
    folder = write_benchmark(bench.data, name)
    done = bench.run(name, CUDA_VISIBLE_DEVICES=gpus)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.rstrip("\n").split("\n")[-1])["accuracy"] == 100
    calls = bench.calls()
    assert [gpu for _, gpu in calls] == ([None] if gpus is None else ["0", "3", "5"])
    assert {call["--num-chunks"] for call, _ in calls} == {str(len(calls))}
    assert json.loads(calls[0][0]["--pruning-config"])["shallow_mid_layer"] == 6
    assert calls[0][0]["--model-path"] == str(bench.root / "model")
    questions = [json.loads(line) for line in next(folder.glob("*.jsonl")).read_text().splitlines()]
    merged = [json.loads(line) for line in next(folder.rglob("merge.jsonl")).read_text().splitlines()]
    assert [(m["question_id"], m["prompt"]) for m in merged] == [(q["question_id"], q["text"]) for q in questions]


@pytest.mark.parametrize("gpus", ["", "-1", "2"])
def test_cpu_or_one_gpu_is_one_chunk(bench, gpus):
    write_benchmark(bench.data, "gqa")
    assert bench.run("gqa", CUDA_VISIBLE_DEVICES=gpus).returncode == 0
    [(call, seen)] = bench.calls()
    assert (call["--num-chunks"], seen) == ("1", gpus)


@pytest.mark.parametrize("gpus", [None, "0,1"])
def test_a_failing_chunk_fails_the_script_and_nothing_is_scored(bench, gpus):
    folder = write_benchmark(bench.data, "gqa")
    done = bench.run("gqa", CUDA_VISIBLE_DEVICES=gpus, BREAK_CHUNK=0)
    assert done.returncode == 1
    assert "out of memory" in done.stderr and "start the script again" in done.stderr
    assert not list(folder.rglob("merge.jsonl"))
    assert bench.run("gqa", CUDA_VISIBLE_DEVICES=gpus).returncode == 0


def test_dense_passes_no_pruning_and_keeps_its_answers_apart(bench):
    folder = write_benchmark(bench.data, "gqa")
    assert bench.run("gqa", DENSE=1).returncode == 0
    assert bench.run("gqa").returncode == 0
    calls = [call for call, _ in bench.calls()]
    assert ["--pruning-config" in call for call in calls] == [False, True]
    assert len(list(folder.rglob("merge.jsonl"))) == 2


def test_answers_of_other_settings_are_not_resumed(bench):
    write_benchmark(bench.data, "gqa")
    assert bench.run("gqa").returncode == 0
    done = bench.run("gqa", PRUNING_CONFIG='{"mode":[]}')
    assert done.returncode == 1 and "other settings" in done.stderr
    assert bench.run("gqa", PRUNING_CONFIG='{"mode":[]}', EXPERIMENT="none").returncode == 0
    assert bench.run("gqa", PRUNING_CONFIG='{"mode":[]}', OVERWRITE=1).returncode == 0
    assert len(bench.calls()) == 3


def test_a_limited_run_is_scored_as_partial(bench):
    write_benchmark(bench.data, "gqa")
    done = bench.run("gqa", LIMIT=3)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.rstrip("\n").split("\n")[-1])
    assert (result["partial"], result["answered"], result["missing"]) == (True, 3, 1)


def test_tiny_writes_its_benchmark_on_demand_once(bench):
    source = write_benchmark(bench.root, "gqa")
    config = bench.root / "pruning.json"
    config.write_text('{"mode":[]}')
    settings = {"TINY": 1, "TINY_SOURCE": source, "PRUNING_CONFIG": config}
    for _ in range(2):  # the copy into an existing folder would fail
        done = bench.run("gqa", **settings)
        assert done.returncode == 0, done.stderr
    assert [call["--pruning-config"] for call, _ in bench.calls()] == [str(config)] * 2
    assert list((bench.data / "gqa_mini" / "answers").rglob("merge.jsonl"))


def test_stopping_the_script_stops_its_chunks(bench):
    write_benchmark(bench.data, "gqa")
    command = bench.command("gqa", CUDA_VISIBLE_DEVICES="0,1", HANG=1)
    with subprocess.Popen(**command, stdout=subprocess.DEVNULL) as script:
        deadline = time.monotonic() + 20
        while len(bench.calls()) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(bench.calls()) == 2
        script.terminate()
        assert script.wait(timeout=10) == 130
    while any(map(alive, bench.pids())) and time.monotonic() < deadline + 10:
        time.sleep(0.05)
    assert not any(map(alive, bench.pids()))
