"""Faults in long runs: kills, full disks, broken images and files, out-of-memory."""

import json
import os
import resource
import struct
import subprocess
import sys
import zlib

import pytest
import torch
from loader_fixtures import CONFIG, Bench, comparable, questions, write_images, write_jsonl, write_model

from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM

PRUNED = json.dumps(CONFIG)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    root = tmp_path_factory.mktemp("loader")
    return write_model(root / "llava-random"), write_images(root / "images")


@pytest.fixture
def bench(tmp_path, shared):
    return Bench(tmp_path, *shared)


def many(count):
    """`count` different questions."""
    asked = questions()
    return [asked[n % 10] | {"text": f"{asked[n % 10]['text']} {n}"} for n in range(count)]


KILLING = """
import os, random, signal, sys, time
from pathlib import Path
from llava.eval import model_vqa_loader
from llava.model import loaded

arguments, part, kills = sys.argv[3:], Path(sys.argv[1]), int(sys.argv[2])
model = []
load = loaded.load_pretrained_model
def once(*words, **options):
    if not model:
        model.append(load(*words, **options))
    return model[0]
loaded.load_pretrained_model = once
model_vqa_loader.main([*arguments, "--limit", "1"])  # loads the model, which every fork below then has
sys.stdout.flush()  # or a fork that flushes writes what the parent has written once more

def size():
    return part.stat().st_size if part.exists() else 0

moments = random.Random(7)
torn = 0
done = [0]
for _ in range(kills):
    child = os.fork()
    if child == 0:
        os._exit(model_vqa_loader.main(arguments))
    # Somewhere in the work still ahead: at a random size of the file, or before the first answer of this process.
    enough = size() + moments.randrange(0, 9000)
    while size() < enough and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(moments.uniform(0, 0.002))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the run was done before it was killed"
    content = part.read_bytes() if part.exists() else b""
    torn += bool(content) and not content.endswith(b"\\n")
    done.append(content.count(b"\\n"))
assert done == sorted(done), "answers were lost"
print("stops", len(set(done)), torn, flush=True)
sys.exit(model_vqa_loader.main(arguments))
"""


def test_twenty_kills_lose_and_change_nothing(bench):
    write_jsonl(bench.question_file, many(240))
    assert bench.run(pruning_config=PRUNED, batch_size=2) == 0
    whole = comparable(bench.rows())
    bench.answers = bench.root / "killed" / "answers.jsonl"
    command = [sys.executable, "-c", KILLING, str(bench.part), "20"]
    done = subprocess.run(
        [*command, *bench.arguments(pruning_config=PRUNED, batch_size=2)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    [stops] = [int(line.split()[1]) for line in done.stdout.split("\n") if line.startswith("stops ")]
    assert stops > 10, "most kills came after new answers"
    assert comparable(bench.rows()) == whole
    assert bench.record()["state"] == "finished" and bench.record()["totals"]["questions"] == 240


def test_a_full_disk_stops_with_a_clear_message_and_the_run_goes_on_with_room(bench, capsys):
    write_jsonl(bench.question_file, many(60))
    assert bench.run(pruning_config=PRUNED) == 0
    whole = comparable(bench.rows())
    bench.answers = bench.root / "full" / "answers.jsonl"
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    capsys.readouterr()
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # no file may grow beyond it; Python ignores the signal
    try:
        assert bench.run(pruning_config=PRUNED) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    [error] = [line for line in capsys.readouterr().err.split("\n") if "error" in line]
    assert f"error: {bench.part} cannot be written: File too large" in error and "continues from there" in error
    kept = bench.part.read_bytes()
    assert kept.endswith(b"\n") and 0 < kept.count(b"\n") < 60
    assert bench.record()["state"] == "interrupted"
    assert bench.run(pruning_config=PRUNED) == 0
    assert comparable(bench.rows()) == whole
    assert "half-written" not in capsys.readouterr().err, "only whole lines were left"


@pytest.mark.parametrize("garbage", [b"\0" * 99, b"\0" * 99 + b"\n", b'{"question_id": "a.p', b"[1]\n", b"\xff\xfe\n"])
def test_a_garbled_last_line_is_cut_off(bench, capsys, garbage):
    assert bench.run(limit=5) == 0
    before = bench.answers.read_bytes()
    bench.answers.write_bytes(before + garbage)
    assert bench.run(limit=5) == 0
    assert bench.answers.read_bytes() == before
    assert "half-written" in capsys.readouterr().err


def write_bomb(path, side=30_000):
    """A grey PNG of `side` × `side` pixels, one bit each: some hundred kilobytes."""
    squeeze = zlib.compressobj(9)
    row = b"\0" + b"\xaa" * (side // 8)
    data = b"".join(squeeze.compress(row * 1000) for _ in range(side // 1000)) + squeeze.flush()

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))


def test_broken_and_monstrous_images_are_named_or_skipped(bench, capsys):
    bench.images = write_images(bench.root / "images")
    whole = (bench.images / "a.png").read_bytes()
    broken = {
        "zero.png": b"",
        "truncated.png": whole[: len(whole) // 2],
        "text.png": b"not an image",
        "bomb.png": None,
        "large.png": None,
    }
    for name, content in broken.items():
        if content is None:
            write_bomb(bench.images / name, side=30_000 if name == "bomb.png" else 12_000)
        else:
            (bench.images / name).write_bytes(content)
    rows = many(10)
    for row, name in zip(rows[1::2], broken, strict=True):
        row["image"] = name
    write_jsonl(bench.question_file, rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert bench.run("--skip-bad") == 0
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    assert grown < 400_000, "kilobytes; decoded it is 900 MB or more"
    assert [row["prompt"] for row in bench.rows()] == [row["text"] for row in rows[::2]]
    skipped = {one["where"].rpartition(":")[2]: one["reason"] for one in bench.record()["skipped"]}
    assert all(f"/{name}'" in skipped[str(2 * line)] for line, name in enumerate(broken, start=1))
    assert "megapixels" in skipped["8"] and "12000×12000 pixels, the limit is 90 megapixels" in skipped["10"]
    capsys.readouterr()
    write_jsonl(bench.question_file, [rows[7]])
    assert bench.run("--overwrite") == 1
    error = capsys.readouterr().err.split("\n")[-2]
    assert error.startswith(f"error: {bench.question_file}:1: image ") and "megapixels" in error


def crowded(monkeypatch, most, method="generate"):
    """A device on which more than `most` prompts (or images) at once do not fit; returns the sizes asked for."""
    real, sizes = getattr(LlavaLlamaForCausalLM, method), []

    def checked(self, first, *arguments, **options):
        sizes.append(len(first))
        if len(first) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(self, first, *arguments, **options)

    if method == "generate":
        monkeypatch.setattr(LlavaLlamaForCausalLM, method, lambda self, inputs, **more: checked(self, inputs, **more))
    else:
        monkeypatch.setattr(LlavaLlamaForCausalLM, method, checked)
    return sizes


@pytest.mark.parametrize("pruning", [None, PRUNED])
def test_out_of_memory_halves_the_batch_and_changes_no_answer(bench, monkeypatch, capsys, pruning):
    assert bench.run(pruning_config=pruning, batch_size=8) == 0
    whole = comparable(bench.rows())
    bench.answers = bench.root / "crowded.jsonl"
    sizes = crowded(monkeypatch, 3)
    capsys.readouterr()
    assert bench.run(pruning_config=pruning, batch_size=8) == 0
    assert sizes == [1, 8, 4, 2, 2, 2, 2, 2], "warm-up; halved twice; and not tried again at more"
    assert comparable(bench.rows()) == whole
    lines = [line for line in capsys.readouterr().err.split("\n") if "out of memory" in line]
    assert len(lines) == 2 and "8 prompts" in lines[0] and "continuing with 4" in lines[0]
    assert [(one["from"], one["to"]) for one in bench.record()["out_of_memory"]] == [(8, 4), (4, 2)]


def test_too_many_images_for_the_tower_are_looked_at_in_turn_and_it_is_said(bench, monkeypatch, capsys):
    assert bench.run(batch_size=8) == 0
    whole = comparable(bench.rows())
    bench.answers = bench.root / "crowded.jsonl"
    sizes = crowded(monkeypatch, 1, "encode_images")
    assert bench.run(batch_size=8) == 0
    assert sizes == [1, 3, 1, 1, 1, 1] and comparable(bench.rows()) == whole, "three at once are not tried again"
    [halved] = bench.record()["out_of_memory"]
    assert (halved["what"], halved["from"], halved["to"]) == ("images", 3, 1) and halved["where"].startswith(
        str(bench.images)
    )
    assert "warning: out of memory with 3 images at once" in capsys.readouterr().err


def test_a_question_that_does_not_fit_alone_is_named(bench, monkeypatch, capsys):
    crowded(monkeypatch, 0)
    assert bench.run(batch_size=2, limit=2) == 1
    error = capsys.readouterr().err.split("\n")[-2]
    assert error.startswith(f"error: {bench.question_file}:1: question_id 'a.png' alone does not fit")
    crowded(monkeypatch, 0, "encode_images")
    assert bench.run(batch_size=2, limit=2) == 1
    assert f"error: {bench.images}/a.png alone does not fit" in capsys.readouterr().err
    assert bench.rows() == [] if bench.answers.exists() else True
