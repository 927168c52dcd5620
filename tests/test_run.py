"""`llava.eval.run`: all benchmarks of a command checked first, asked by one process or many, and scored."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from loader_fixtures import forbid_loading, read_jsonl, write_jsonl

import llava.model.loaded
from llava.cli import UserError
from llava.eval import model_vqa_loader, run
from llava.eval.benchmarks import find_benchmark
from llava.eval.runner import answers_file as parts
from llava.eval.runner import session
from llava.eval.runner.batches import IMAGE_GROUPS, group, share
from llava.eval.runner.distributed import RankError, Ranks
from llava.eval.runner.questions import Question
from llava.eval.runner.run import Run
from llava.tiny.accuracy import CHECKPOINT
from llava.tiny.benchmarks import write_benchmarks

PRUNED = f"{CHECKPOINT}/pruning.json"
TWO = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--num_processes", "2")
TWO += ("--mixed_precision", "no", "--dynamo_backend", "no")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval")
    write_benchmarks(folder, questions=40, seed=5)
    return folder


def arguments(data, out, *more, benchmark="gqa_mini"):
    given = ["--benchmark", benchmark, "--model-path", CHECKPOINT, "--data-dir", str(data), "--out", str(out)]
    return [*given, "--device", "cpu", "--batch-size", "4", "--max_new_tokens", "4", *more]


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """A finished run by one process: its folder."""
    out = tmp_path_factory.mktemp("alone")
    assert run.main(arguments(data, out, "--pruning-config", PRUNED, benchmark="gqa_mini,mme_mini")) == 0
    return out


def launch(*words, **environment):
    return subprocess.run(
        [sys.executable, *words],
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=100,
    )


def last_json(output):
    return json.loads(output.rstrip("\n").split("\n")[-1])


def test_benchmarks_are_asked_scored_and_reported_and_not_asked_again(data, alone, monkeypatch, capsys):
    forbid_loading(monkeypatch)
    before = (alone / "gqa_mini" / "pruned.jsonl").read_bytes()
    words = arguments(data, alone, "--pruning-config", PRUNED, benchmark="gqa_mini,mme_mini")
    assert run.main(words) == 0
    assert (alone / "gqa_mini" / "pruned.jsonl").read_bytes() == before
    output = capsys.readouterr().out
    assert "GQA mini" in output and "MME mini" in output
    found = last_json(output)["benchmarks"]
    assert found["gqa_mini"]["scores"]["questions"] == 40 and not found["gqa_mini"]["partial"]
    assert found["mme_mini"]["totals"]["milliseconds"]["prefill"] > 0
    assert sum(found["gqa_mini"]["time_shares"].values()) == pytest.approx(1, abs=0.01)
    record = json.loads((alone / "gqa_mini" / "pruned.run.json").read_text())
    assert record["state"] == "finished" and record["settings"]["chunk"] == [0, 1]
    assert record["scores"]["accuracy"] == found["gqa_mini"]["scores"]["accuracy"]
    assert not list(alone.rglob("*.parts"))


def test_the_model_is_loaded_once_for_all_benchmarks(data, tmp_path, monkeypatch):
    loaded = []
    load = llava.model.loaded.load_pretrained_model
    monkeypatch.setattr(llava.model.loaded, "load_pretrained_model", lambda *a, **k: loaded.append(1) or load(*a, **k))
    assert run.main(arguments(data, tmp_path, "--limit", "4", benchmark="gqa_mini,mme_mini,textvqa_mini")) == 0
    assert loaded == [1]


def test_answers_are_in_question_order_and_times_beside_them(data, alone):
    asked = read_jsonl(data / "gqa_mini" / "llava_gqa_testdev_balanced.jsonl")
    answers = read_jsonl(alone / "gqa_mini" / "pruned.jsonl")
    times = read_jsonl(alone / "gqa_mini" / "pruned.times.jsonl")
    keys = [(row["question_id"], row["text"]) for row in asked]
    assert [(row["question_id"], row["prompt"]) for row in answers] == keys
    assert [(row["question_id"], row["prompt"]) for row in times] == keys
    assert not any(name in row["metadata"] for row in answers for name in parts.MEASURED)
    assert all(row["milliseconds"]["prefill"] > 0 and row["batch"] == 4 for row in times)


def test_two_processes_give_the_same_bytes(data, alone, tmp_path):
    done = launch(*TWO, "-m", "llava.eval.run", *arguments(data, tmp_path, "--pruning-config", PRUNED))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "gqa_mini" / "pruned.jsonl").read_bytes() == (alone / "gqa_mini" / "pruned.jsonl").read_bytes()
    record = json.loads((tmp_path / "gqa_mini" / "pruned.run.json").read_text())
    assert [rank["questions"] for rank in record["ranks"]] == [20, 20]
    assert record["totals"]["questions"] == 40 and record["state"] == "finished"
    assert last_json(done.stdout)["benchmarks"]["gqa_mini"]["scores"] == record["scores"]


BREAKING = """
import sys
from llava.cli import UserError
from llava.eval import model_vqa_loader, run
from llava.eval.runner import session
keep = session.Session._keep
def broken(self, batch, *more):
    if self.ranks.index == 1 and self.about["questions"] >= 8:
        raise ValueError("the disk is on fire")
    return keep(self, batch, *more)
session.Session._keep = broken
sys.exit(run.main())
"""


def test_a_failed_rank_ends_the_run_with_its_reason_and_one_process_resumes_both_shares(data, alone, tmp_path):
    script = tmp_path / "breaking.py"
    script.write_text(BREAKING)
    words = arguments(data, tmp_path / "out", "--pruning-config", PRUNED)
    done = launch(*TWO, str(script), *words)
    assert done.returncode == 1
    assert "error: the disk is on fire (rank 1 of 2)" in done.stderr
    assert "rank 0 of 2 stops: rank 1 of 2 failed: the disk is on fire" in done.stderr
    shares = {path.name: read_jsonl(path) for path in (tmp_path / "out" / "gqa_mini" / "pruned.parts").iterdir()}
    # how far rank 0 came by then, if it answered at all, is a matter of timing
    assert set(shares) <= {"0.jsonl", "1.jsonl"} and len(shares["1.jsonl"]) == 8
    record = tmp_path / "out" / "gqa_mini" / "pruned.run.json"
    assert json.loads(record.read_text())["state"] == "interrupted"
    assert run.main(words) == 0
    sessions = json.loads(record.read_text())["sessions"]
    assert sessions[-1]["questions"] == 40 - sum(map(len, shares.values()))
    whole = (tmp_path / "out" / "gqa_mini" / "pruned.jsonl").read_bytes()
    assert whole == (alone / "gqa_mini" / "pruned.jsonl").read_bytes()


def test_a_rank_that_fails_after_the_first_is_done_leaves_the_run_interrupted(data, tmp_path, monkeypatch, capsys):
    def gather(self, name, value):
        raise RankError("rank 1 of 2 failed: the disk is on fire")

    monkeypatch.setattr(Ranks, "gather", gather)
    assert run.main(arguments(data, tmp_path, "--pruning-config", PRUNED)) == 1
    assert "stops: rank 1 of 2 failed: the disk is on fire" in capsys.readouterr().err
    record = json.loads((tmp_path / "gqa_mini" / "pruned.run.json").read_text())
    assert record["state"] == "interrupted" and record["totals"]["questions"] == 40


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_answers_and_parts_together_resume_to_the_same_bytes(data, alone, tmp_path, part):
    """Interrupted while parts were put together: some answers in the file, others in parts, one line torn."""
    folder = shutil.copytree(alone / "gqa_mini", tmp_path / "gqa_mini")
    answers = folder / "pruned.jsonl"
    whole = answers.read_bytes()
    lines = whole.splitlines(keepends=True)
    cut = int(part * len(lines))
    (folder / "pruned.parts").mkdir()
    (folder / "pruned.parts" / "0.jsonl").write_bytes(b"".join(lines[cut - 2 : cut + 3])[:-20])
    (folder / "pruned.parts" / "6.jsonl").write_bytes(b"")
    answers.write_bytes(b"".join(lines[:cut]))
    assert run.main(arguments(data, tmp_path, "--pruning-config", PRUNED)) == 0
    assert answers.read_bytes() == whole
    assert not (folder / "pruned.parts").exists()


def test_other_settings_are_refused_and_overwritten_on_request(data, alone, tmp_path, monkeypatch, capsys):
    shutil.copytree(alone / "gqa_mini", tmp_path / "gqa_mini")
    words = arguments(data, tmp_path, "--name", "pruned", "--limit", "4")
    with monkeypatch.context() as patch:
        forbid_loading(patch)
        assert run.main(words) == 1
        error = capsys.readouterr().err
        assert "pruning_config:" in error and "--overwrite" in error and "--name" in error
        own = json.loads(Path(PRUNED).read_text())
        other = own | {"exit_threshold": 0.9}
        assert run.main(arguments(data, tmp_path, "--pruning-config", json.dumps(other))) == 1
        error = capsys.readouterr().err
        changed = f"exit_threshold: {own['exit_threshold']}, now 0.9"
        assert f"other settings (pruning_config: {changed});" in error, "and none that is the same"
        assert run.main(arguments(data, tmp_path, "--name", "pruned", benchmark="mme_mini,gqa_mini")) == 1
        assert "gqa_mini/pruned.jsonl was made with other settings" in capsys.readouterr().err, "not after mme_mini"
    assert run.main([*words, "--overwrite"]) == 0
    assert len(read_jsonl(tmp_path / "gqa_mini" / "pruned.jsonl")) == 4
    assert last_json(capsys.readouterr().out)["benchmarks"]["gqa_mini"]["partial"]


def test_a_run_that_is_killed_before_its_first_answer_has_a_run_file(data, tmp_path, monkeypatch):
    def killed(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "group", killed)
    assert run.main(arguments(data, tmp_path, "--pruning-config", PRUNED)) == 130
    record = json.loads((tmp_path / "gqa_mini" / "pruned.run.json").read_text())
    wanted = json.loads(Path(PRUNED).read_text())
    assert wanted.items() <= record["settings"]["pruning_config"].items()
    assert record["state"] == "running" and record["totals"]["questions"] == 0


def test_a_folder_that_cannot_be_written_to_is_refused_before_the_model_loads(data, tmp_path, monkeypatch, capsys):
    forbid_loading(monkeypatch)
    (tmp_path / "file").touch()
    assert run.main(arguments(data, tmp_path / "file")) == 1
    error = capsys.readouterr().err.split("\n")[-2]
    assert error.startswith(f"error: the folder {tmp_path}/file/gqa_mini cannot be made: ") and "--out" in error
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write where nobody else may
    assert run.main(arguments(data, tmp_path / "out")) == 1
    assert "cannot be written to" in capsys.readouterr().err


def test_a_full_temporary_folder_is_named(data, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("llava.eval.benchmarks.base.TemporaryDirectory", full)
    with pytest.raises(UserError, match="^GQA mini cannot be rehearsed in the temporary folder .*: No space left"):
        find_benchmark("gqa_mini").rehearse(data / "gqa_mini")


def test_files_of_all_benchmarks_are_checked_before_anything_is_asked(data, tmp_path, monkeypatch, capsys):
    forbid_loading(monkeypatch)
    folder = shutil.copytree(data, tmp_path / "data")
    (folder / "textvqa_mini" / "TextVQA_0.5.1_val.json").unlink()
    assert run.main(arguments(folder, tmp_path / "out", benchmark="gqa_mini,textvqa_mini")) == 1
    error = capsys.readouterr().err
    assert "TextVQA_0.5.1_val.json" in error and "llava.tiny.benchmarks" in error and error.count("\n") == 1
    references = folder / "gqa_mini" / "data" / "testdev_balanced_questions.json"
    known = json.loads(references.read_text())
    references.write_text(json.dumps(dict(list(known.items())[:-1])))
    assert run.main(arguments(folder, tmp_path / "out")) == 1
    assert not list((tmp_path / "out").rglob("*.jsonl"))


def test_an_unreadable_image_stops_the_run_or_is_left_out_and_the_score_is_partial(data, tmp_path, capsys):
    folder = shutil.copytree(data, tmp_path / "data")
    asked = read_jsonl(folder / "gqa_mini" / "llava_gqa_testdev_balanced.jsonl")
    (folder / "gqa_mini" / "data" / "images" / asked[-1]["image"]).write_bytes(b"")
    words = arguments(folder, tmp_path / "out")
    assert run.main(words) == 1
    assert "is not an image" in capsys.readouterr().err
    assert run.main([*words, "--skip-bad"]) == 0
    found = last_json(capsys.readouterr().out)["benchmarks"]["gqa_mini"]
    bad = sum(row["image"] == asked[-1]["image"] for row in asked)
    assert found["partial"] and found["totals"]["skipped"] == bad
    assert found["scores"]["answered"] == 40 - bad > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--benchmark", "gqa_mini,abacus"], "'abacus' is not known"),
        (["--benchmark", "gqa_mini,mme_mini", "--split", "x"], "--split x is for a single benchmark"),
        (["--split", "nowhere"], "nowhere.jsonl"),
        (["--pruning-config", "nowhere.json"], "'nowhere.json' cannot be read"),
        (["--data-dir", "nowhere"], "cannot run; missing:"),
        (["--benchmark", "gqa_minni"], "gqa_minni (GQA) cannot run (did you mean gqa_mini?); missing:"),
    ],
)
def test_mistakes_are_one_line(data, tmp_path, monkeypatch, capsys, changes, message):
    forbid_loading(monkeypatch)
    assert run.main([*arguments(data, tmp_path), *changes]) == 1
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1


def made(count, size):
    questions = [Question(index, f"q:{index}", index, "x" * (index * 7 % 50)) for index in range(count)]
    return questions, group(questions, set(questions), size)


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [1, 40, 5000])
def test_shares_are_whole_units_even_and_all_there_is(count, ranks):
    questions, groups = made(count, 4)
    shares = [share(groups, index, ranks) for index in range(ranks)]
    assert [one for mine in shares for one in mine] == groups
    units = [{one.image_group for one in mine} for mine in shares]
    assert sum(map(len, units)) == len(set().union(*units))
    sizes = [len(mine) for mine in shares]
    largest = max(sum(one.image_group == unit for one in groups) for unit in {one.image_group for one in groups})
    assert max(sizes) - min(sizes) <= 2 * largest
    assert len({one.image_group for one in groups}) <= max(IMAGE_GROUPS * 2, len(groups) // 8 + 1)


def test_batches_of_a_resumed_run_are_those_of_the_whole_run():
    questions, groups = made(100, 4)
    asked = {questions[5], questions[50], questions[51]}
    assert group(questions, asked, 4) == [one for one in groups if asked & set(one.questions)]


REFERENCES, QUESTIONS = "data/testdev_balanced_questions.json", "llava_gqa_testdev_balanced.jsonl"


def spoil(path, content=None):
    """Put `content` (default: garbage) in the place of a file."""
    path.write_bytes(b"\0broken" if content is None else content)


BREAKING_INPUTS = {
    "references": lambda gqa, model, out: spoil(gqa / REFERENCES),
    "references of other questions": lambda gqa, model, out: spoil(gqa / REFERENCES, b'{"1": {"answer": "no"}}'),
    "questions": lambda gqa, model, out: spoil(gqa / QUESTIONS),
    "questions that are not UTF-8": lambda gqa, model, out: spoil(gqa / QUESTIONS, b'{"text": "caf\xe9"}\n'),
    "half of a character": lambda gqa, model, out: spoil(
        gqa / QUESTIONS, b'{"question_id": 1, "image": "a.png", "text": "what \\ud83d"}\n'
    ),
    "images": lambda gqa, model, out: [spoil(path) for path in (gqa / "data" / "images").iterdir()],
    "no images": lambda gqa, model, out: shutil.rmtree(gqa / "data" / "images"),
    "config": lambda gqa, model, out: spoil(model / "pruning.json", b'{"method":"fastv","k":99,"r":0.5}'),
    "model folder": lambda gqa, model, out: (model / "config.json").unlink(),
    "weights": lambda gqa, model, out: [path.unlink() for path in model.glob("*.safetensors*")],
    "output folder": lambda gqa, model, out: out.touch(),
}
# the loader scores nothing
LOADER_DOES_NOT_READ = ("references", "references of other questions")


@pytest.mark.parametrize("command", ["run", "side by side", "loader"])
@pytest.mark.parametrize("broken", BREAKING_INPUTS)
def test_every_broken_input_is_one_line_before_weights_are_read(data, tmp_path, monkeypatch, capsys, command, broken):
    if command == "loader" and broken in LOADER_DOES_NOT_READ:
        return
    forbid_loading(monkeypatch)
    gqa = shutil.copytree(data, tmp_path / "data") / "gqa_mini"
    model = shutil.copytree(CHECKPOINT, tmp_path / "llava-tiny")
    out = tmp_path / "out"
    BREAKING_INPUTS[broken](gqa, model, out)
    config = f"{model}/pruning.json"
    if command == "loader":
        files = ["--question-file", gqa / QUESTIONS, "--image-folder", gqa / "data" / "images"]
        words = [*files, "--model-path", model, "--answers-file", out / "a.jsonl", "--pruning-config", config]
        status = model_vqa_loader.main([str(word) for word in words])
    else:
        pruned = ["--pruning-config", config] if command == "run" else ["--config", f"pruned={config}"]
        status = run.main([*arguments(gqa.parent, out), "--model-path", str(model), *pruned])
    error = capsys.readouterr().err
    assert status == 1 and error.startswith("error: ") and error.count("\n") == 1, error
    assert not out.is_dir()


def test_neither_help_nor_a_wrong_option_imports_torch():
    code = """
import sys
from llava.eval import model_vqa_loader, run, suite
for module in (run, suite, model_vqa_loader):
    for words in (["--help"], ["--wrong"]):
        try:
            module.main(words)
        except SystemExit as stopped:
            assert stopped.code == (0 if words == ["--help"] else 2)
assert not {"torch", "transformers"} & set(sys.modules), "imported too early"
"""
    done = launch("-c", code)
    assert done.returncode == 0, done.stderr
    assert "did you mean" in launch("-m", "llava.eval.run", "--model-path", "x", "--batchsize", "4").stderr


def test_times_are_those_of_the_answers_and_an_old_times_file_does_not_come_back(data, tmp_path, capsys):
    words = arguments(data, tmp_path, "--limit", "8")
    assert run.main(words) == 0
    before = read_jsonl(tmp_path / "gqa_mini" / "dense.times.jsonl")
    assert run.main([*words, "--batch-size", "2"]) == 0
    error = capsys.readouterr().err
    assert "all 8 questions are answered, nothing is asked; times are those of" in error and "batch size 4" in error
    assert read_jsonl(tmp_path / "gqa_mini" / "dense.times.jsonl") == before
    (tmp_path / "gqa_mini" / "dense.jsonl").unlink()
    assert run.main([*words, "--batch-size", "2"]) == 0
    after = read_jsonl(tmp_path / "gqa_mini" / "dense.times.jsonl")
    assert {row["batch"] for row in after} == {2} and {row["batch"] for row in before} == {4}
    assert not {row["milliseconds"]["prefill"] for row in after} & {row["milliseconds"]["prefill"] for row in before}


def test_a_smaller_limit_leaves_a_finished_run_as_it_is(data, alone, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(alone / "gqa_mini", tmp_path / "gqa_mini")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    forbid_loading(monkeypatch)
    assert run.main(arguments(data, tmp_path, "--pruning-config", PRUNED, "--limit", "5")) == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert not last_json(capsys.readouterr().out)["benchmarks"]["gqa_mini"]["partial"]


def test_a_smaller_limit_does_not_finish_an_interrupted_run(data, tmp_path):
    words = arguments(data, tmp_path)
    assert run.main([*words, "--limit", "8"]) == 0
    record = tmp_path / "gqa_mini" / "dense.run.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"state": "interrupted", "limit": None}))
    assert run.main([*words, "--limit", "5"]) == 0
    found = json.loads(record.read_text())
    assert (found["state"], found["limit"]) == ("interrupted", None)


def test_a_run_can_be_read_from_anywhere(data, tmp_path, monkeypatch):
    monkeypatch.chdir(data.parent)
    words = arguments(data.name, "out", "--limit", "4")
    words[words.index(CHECKPOINT)] = str(Path(__file__).parents[1] / CHECKPOINT)
    assert run.main(words) == 0
    monkeypatch.chdir(tmp_path)
    made = Run.read(data.parent / "out" / "gqa_mini" / "dense.jsonl")
    assert made.partial and len(made.answers) == 4
    assert Path(made.record["question_file"]).is_file() and Path(made.record["image_folder"]).is_dir()
    assert made.record["benchmark"] == "gqa_mini"


def test_a_users_own_questions_are_asked_scored_and_resumed(data, tmp_path, monkeypatch, capsys):
    gqa = data / "gqa_mini"
    known = json.loads((gqa / REFERENCES).read_text())
    rows = [{"question_id": key, "answer": value["answer"]} for key, value in known.items()]
    references = write_jsonl(tmp_path / "answers.jsonl", rows)
    own = ["--questions", str(gqa / QUESTIONS), "--images", str(gqa / "data" / "images")]
    own += ["--references", str(references), "--judge", "exact"]
    words = [*arguments(data, tmp_path)[2:], *own]
    assert run.main(words) == 0
    [(name, found)] = last_json(capsys.readouterr().out)["benchmarks"].items()
    assert found["scores"]["answered"] == 40 and found["scores"]["accuracy"] > 80
    forbid_loading(monkeypatch)
    assert run.main(words) == 0
    assert find_benchmark(Run.read(tmp_path / name).record["benchmark"]).judge is not None


def test_what_is_asked_is_named_once(data, tmp_path, capsys):
    assert run.main([*arguments(data, tmp_path), "--questions", "q.jsonl"]) == 1
    assert run.main(arguments(data, tmp_path)[2:]) == 1
    assert capsys.readouterr().err.count("give --benchmark or --questions") == 2
    assert run.main([*arguments(data, tmp_path), "--judge", "exact"]) == 1
    assert "--judge go with --questions" in capsys.readouterr().err
