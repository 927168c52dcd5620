"""Interrupted runs of the evaluation loader: nothing lost, nothing asked twice, nothing mixed."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from loader_fixtures import CONFIG, Bench, comparable, forbid_loading, questions, write_images, write_jsonl, write_model

import llava.model.loaded
from llava.cli import UserError
from llava.eval.runner.answers_file import AnswersFile

PRUNED = json.dumps(CONFIG)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    root = tmp_path_factory.mktemp("loader")
    return write_model(root / "llava-random"), write_images(root / "images")


@pytest.fixture
def bench(tmp_path, shared):
    return Bench(tmp_path, *shared)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, shared):
    """A complete pruned run: its answers file's bytes and its run file's."""
    bench = Bench(tmp_path_factory.mktemp("finished"), *shared)
    assert bench.run(pruning_config=PRUNED) == 0
    return bench.answers.read_bytes(), bench.run_file.read_bytes()


def interrupt(bench, finished, size):
    """Put the first `size` bytes of a finished run's answers where a new run will find them."""
    bench.answers.parent.mkdir(parents=True, exist_ok=True)
    bench.answers.write_bytes(finished[0][:size])
    bench.run_file.write_bytes(finished[1])


@pytest.mark.parametrize("part", [0.0, 0.03, 0.31, 0.5, 0.77, 0.999])
@pytest.mark.parametrize("at_line_end", [False, True])
def test_a_run_cut_anywhere_resumes_to_the_same_answers(bench, finished, capsys, part, at_line_end):
    whole = finished[0]
    size = int(part * len(whole))
    if at_line_end:
        size = whole.rfind(b"\n", 0, size) + 1
    interrupt(bench, finished, size)
    kept = whole[: whole.rfind(b"\n", 0, size) + 1]
    assert bench.run(pruning_config=PRUNED) == 0
    content = bench.answers.read_bytes()
    assert content.startswith(kept)
    assert comparable(bench.rows()) == comparable([json.loads(line) for line in whole.splitlines()])
    assert bench.record()["totals"]["questions"] == 10
    assert ("half-written" in capsys.readouterr().err) == (size > len(kept))


def test_a_last_line_that_lacks_only_its_line_break_is_kept(bench, finished):
    interrupt(bench, finished, len(finished[0]) - 1)
    assert bench.run(pruning_config=PRUNED) == 0
    assert bench.answers.read_bytes() == finished[0]


def test_a_finished_run_is_not_asked_again(bench, finished, monkeypatch):
    interrupt(bench, finished, len(finished[0]))
    forbid_loading(monkeypatch)
    assert bench.run(pruning_config=PRUNED) == 0
    assert bench.answers.read_bytes() == finished[0]
    assert bench.record()["totals"] == json.loads(finished[1])["totals"]


def test_sampled_answers_resume_at_a_batch(bench):
    arguments = {"temperature": 1.2, "seed": 5}
    assert bench.run(**arguments) == 0
    whole = bench.answers.read_bytes()
    bench.answers.write_bytes(b"".join(whole.splitlines(keepends=True)[:4]))
    assert bench.run(**arguments) == 0
    assert comparable(bench.rows()) == comparable([json.loads(line) for line in whole.splitlines()])


def test_a_limit_can_be_raised(bench):
    assert bench.run(pruning_config=PRUNED, limit=3) == 0
    first = bench.answers.read_bytes()
    assert bench.run(pruning_config=PRUNED) == 0
    assert bench.answers.read_bytes().startswith(first) and len(bench.rows()) == 10
    assert [session["questions"] for session in bench.record()["sessions"]] == [3, 7]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"pruning_config": json.dumps(CONFIG | {"tokens_threshold": 0.1})}, "pruning_config"),
        ({"pruning_config": None}, "pruning_config"),
        ({"max_new_tokens": 7}, "max_new_tokens"),
        ({"conv_mode": "llava_v1"}, "conv_mode"),
        ({"temperature": 0.5}, "temperature"),
        ({"num_chunks": 2}, "chunk"),
        ({"dtype": "bfloat16"}, "dtype"),
    ],
)
def test_answers_of_other_settings_are_refused(bench, finished, monkeypatch, capsys, change, name):
    interrupt(bench, finished, len(finished[0]) // 2)
    forbid_loading(monkeypatch)
    before = bench.answers.read_bytes().rpartition(b"\n")[0]
    assert bench.run(**{"pruning_config": PRUNED} | change) == 1
    error = capsys.readouterr().err
    assert f"{name}:" in error and "--overwrite" in error and "--answers-file" in error
    assert bench.answers.read_bytes().startswith(before)


def test_a_changed_question_file_or_model_is_refused(bench, finished, monkeypatch, capsys, tmp_path):
    interrupt(bench, finished, len(finished[0]) // 2)
    forbid_loading(monkeypatch)
    rows = questions()
    rows[9]["text"] = "Where?"
    write_jsonl(bench.question_file, rows)
    assert bench.run(pruning_config=PRUNED) == 1
    assert "question_file:" in capsys.readouterr().err
    write_jsonl(bench.question_file, questions())
    trained_again = write_model(tmp_path / "llava-random")
    config = json.loads((trained_again / "config.json").read_text())
    (trained_again / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-6}))
    assert bench.run(pruning_config=PRUNED, model_path=trained_again) == 1
    assert "model:" in capsys.readouterr().err


def test_answers_without_a_run_file_are_refused_and_overwritten_on_request(bench, finished, monkeypatch, capsys):
    interrupt(bench, finished, len(finished[0]) // 2)
    bench.run_file.unlink()
    with monkeypatch.context() as patch:
        forbid_loading(patch)
        assert bench.run(pruning_config=PRUNED) == 1
    assert "run.json is missing" in capsys.readouterr().err
    assert bench.run("--overwrite", pruning_config=PRUNED) == 0
    assert len(bench.rows()) == 10


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda lines: lines[:2] + [b'{"question_id": 1, "text\n'] + lines[3:], ":3 is not a JSON object"),
        (lambda lines: [*lines[:4], lines[0]], ":5 is a second answer to"),
        (lambda lines: [lines[0].replace(b"What is it?", b"What was it?")], ":1 is an answer to no question"),
        (lambda lines: [json.dumps(json.loads(lines[0]) | {"metadata": {}}).encode() + b"\n"], ":1 has no trace"),
    ],
)
def test_spoilt_answers_are_named_and_left_alone(bench, finished, monkeypatch, capsys, spoil, message):
    interrupt(bench, finished, 0)
    spoilt = b"".join(spoil(finished[0].splitlines(keepends=True)))
    bench.answers.write_bytes(spoilt)
    forbid_loading(monkeypatch)
    assert bench.run(pruning_config=PRUNED) == 1
    assert f"{bench.answers}{message}" in capsys.readouterr().err
    assert bench.answers.read_bytes() == spoilt


def test_a_failed_start_leaves_no_answers_behind(bench, finished, monkeypatch):
    def load(*arguments, **options):
        raise ValueError("no weights")

    monkeypatch.setattr(llava.model.loaded, "load_pretrained_model", load)
    assert bench.run(pruning_config=PRUNED) == 1
    assert not bench.answers.exists()
    interrupt(bench, finished, len(finished[0]))
    assert bench.run("--overwrite", pruning_config=PRUNED) == 1
    assert bench.answers.read_bytes() == finished[0]


def start(bench, **changes):
    command = [sys.executable, "-m", "llava.eval.model_vqa_loader", *bench.arguments(**changes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_killed_for_real_while_answering(bench):
    """Kill -9 with worker processes; while the run lives nobody else may write, right after it anybody may."""
    rows = [row | {"text": f"{row['text']} {n}"} for n in range(300) for row in questions()]
    rows.sort(key=lambda row: row["image"])  # in the order they are asked: the questions about an image together
    write_jsonl(bench.question_file, rows)
    with start(bench, pruning_config=PRUNED, workers=2, batch_size=1) as run:
        deadline = time.monotonic() + 40
        while time.monotonic() < deadline and not (bench.part.exists() and bench.part.stat().st_size > 4000):
            time.sleep(0.02)
        second = subprocess.run(
            [
                sys.executable,
                "-c",
                f"from llava.eval.runner.answers_file import *\nAnswersFile({str(bench.part)!r}).__enter__()",
            ],
            capture_output=True,
            text=True,
        )
        run.send_signal(signal.SIGKILL)
    assert "UserError: another run is writing" in second.stderr
    assert run.returncode == -signal.SIGKILL
    answered = bench.part.read_bytes().count(b"\n")
    assert 0 < answered < len(rows) - 20
    assert bench.record()["state"] == "running"
    assert bench.run(pruning_config=PRUNED, batch_size=1, limit=answered + 7) == 0
    assert [row["prompt"] for row in bench.rows()] == [row["text"] for row in rows[: answered + 7]]
    totals = bench.record()["totals"]
    assert totals["questions"] == answered + 7
    assert totals["milliseconds"]["prefill"] == pytest.approx(
        sum(row["milliseconds"]["prefill"] for row in bench.times()), rel=1e-3
    )


def test_an_answers_file_is_whole_lines_after_every_append(tmp_path):
    path = tmp_path / "new" / "answers.jsonl"
    with AnswersFile(path) as answers:
        answers.append([{"text": "line\u2028separator\n"}, {"text": "b"}])
        assert path.read_bytes().count(b"\n") == 2
    with AnswersFile(path) as answers:
        assert [row["text"] for row in answers.rows] == ["line\u2028separator\n", "b"]
    path.write_bytes(b"not an answer\n{}\n")
    with pytest.raises(UserError, match=":1 is not a JSON object"), AnswersFile(path):
        pass
