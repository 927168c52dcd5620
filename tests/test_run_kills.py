"""`llava.eval.run`, killed for real at twenty random moments: nothing is lost, doubled or changed."""

import os
import subprocess
import sys

from loader_fixtures import read_jsonl

from llava.tiny.accuracy import CHECKPOINT
from llava.tiny.benchmarks import write_benchmarks

KILLING = """
import os, random, signal, sys, time
from pathlib import Path
from llava.eval import run
from llava.model import loaded

out, kills, arguments = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
folder = out / "killed" / "gqa_mini"
model = []
load = loaded.load_pretrained_model
def once(*words, **options):
    if not model:
        model.append(load(*words, **options))
    return model[0]
loaded.load_pretrained_model = once
assert run.main([*arguments, "--out", str(out / "whole")]) == 0  # loads the model, which every fork below then has
arguments += ["--out", str(out / "killed")]

def answered():
    found = 0
    for path in [folder / "pruned.jsonl", *folder.glob("pruned.parts/*.jsonl")]:
        try:
            found += path.read_bytes().count(b"\\n")
        except FileNotFoundError:
            pass
    return found

moments = random.Random(7)
done = []
for _ in range(kills):
    more = moments.randrange(0, 4)  # answers that this run may give; with none it is killed somewhere before the first
    enough = answered() + more
    child = os.fork()
    if child == 0:
        os._exit(run.main(arguments))
    while answered() < enough:
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "the run was done before it was killed"
        time.sleep(moments.uniform(0, 0.002))
    if not more:
        time.sleep(moments.uniform(0, 0.1))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the run was done before it was killed"
    done.append(answered())
assert done == sorted(done), "answers were lost"
print("stops:", *sorted(set(done)))
sys.exit(run.main(arguments))
"""


def test_twenty_kills_of_a_run_lose_and_change_nothing(tmp_path):
    write_benchmarks(tmp_path / "data", questions=100, seed=5)
    given = ["--benchmark", "gqa_mini", "--model-path", CHECKPOINT, "--data-dir", str(tmp_path / "data")]
    given += ["--device", "cpu", "--batch-size", "2", "--max_new_tokens", "4"]
    given += ["--pruning-config", f"{CHECKPOINT}/pruning.json"]
    done = subprocess.run(
        [sys.executable, "-c", KILLING, str(tmp_path), "20", *given],
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    [stops] = [line.split()[1:] for line in done.stdout.split("\n") if line.startswith("stops:")]
    assert len(stops) > 7, "most kills came after new answers"
    killed, whole = (tmp_path / name / "gqa_mini" for name in ("killed", "whole"))
    assert (killed / "pruned.jsonl").read_bytes() == (whole / "pruned.jsonl").read_bytes()
    assert len(read_jsonl(killed / "pruned.jsonl")) == 100 == len(read_jsonl(killed / "pruned.times.jsonl"))
    assert not (killed / "pruned.parts").exists()
