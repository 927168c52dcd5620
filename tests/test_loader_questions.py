"""Question files: every mistake in them, or in the command, is reported before a model is loaded."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loader_fixtures import CONFIG, Bench, forbid_loading, questions, write_images, write_jsonl, write_model

from llava.cli import UserError
from llava.eval.runner.questions import get_chunk, read_questions, require_images, split_list


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    root = tmp_path_factory.mktemp("loader")
    return write_model(root / "llava-random"), write_images(root / "images")


@pytest.fixture
def bench(tmp_path, shared, monkeypatch):
    forbid_loading(monkeypatch)
    return Bench(tmp_path, *shared)


@given(st.lists(st.integers(), max_size=40), st.integers(1, 12))
def test_chunks_cover_the_questions_in_order(items, chunks):
    parts = split_list(items, chunks)
    assert len(parts) == chunks
    assert [item for part in parts for item in part] == items
    size = -(-len(items) // chunks)
    assert all(len(part) == size for part in parts[: len(items) // max(size, 1)])
    assert [get_chunk(items, chunks, k) for k in range(chunks)] == parts


def test_a_chunk_that_is_not_there(bench, capsys):
    assert bench.run(num_chunks=2, chunk_idx=2) == 1
    assert "--chunk-idx 2 of --num-chunks 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question_id": 1,', "not valid JSON at line 3"),
        ("[1, 2]", ":3: expected a JSON object, found list"),
        ({"image": "a.png", "text": "x"}, ':3: key "question_id" is missing'),
        ({"question_id": 1, "image": "a.png"}, ':3: key "text" is missing'),
        ({"question_id": 1, "image": "a.png", "text": 5}, ':3: key "text" should be str'),
        ({"question_id": 1, "image": 5, "text": "x"}, ':3: key "image" should be str'),
        ({"question_id": 1, "image": None, "text": "x"}, ':3: key "image" should be str'),
        ({"question_id": 1, "image": "a.png", "text": "<image>\nx"}, ":3: the text contains <image>"),
        (questions()[1], ":3: question_id 'a.png' was asked with the same text in line 2"),
        ({"question_id": 1, "image": "/etc/hostname", "text": "x"}, ":3: image '/etc/hostname' must be a path inside"),
        ({"question_id": 1, "image": "sub/../../x.png", "text": "x"}, ":3: image 'sub/../../x.png' must be"),
        ({"question_id": 1, "image": "", "text": "x"}, ":3: image '' must be"),
        ({"question_id": 1, "image": ["a.png", 5], "text": "x"}, ':3: key "image" should hold image paths, found int'),
        ({"question_id": 1, "image": "a.png", "text": "what \ud83d?"}, r""":3: key "text" holds '\ud83d' alone"""),
    ],
)
def test_a_wrong_line_is_named(bench, capsys, line, message):
    write_jsonl(bench.question_file, [*questions()[:2], line, *questions()[3:]])
    for skip in ((), ("--skip-bad",)):
        assert bench.run(*skip) == 1
        error = capsys.readouterr().err
        assert message in error and str(bench.question_file) in error
        assert error.count("\n") == 1
    assert not bench.answers.exists()


def test_a_link_out_of_the_image_folder_is_refused_but_one_within_is_not(tmp_path):
    images = write_images(tmp_path / "images")
    (tmp_path / "secret.png").write_bytes((images / "a.png").read_bytes())
    (images / "out.png").symlink_to(tmp_path / "secret.png")
    (images / "in.png").symlink_to(images / "a.png")
    (tmp_path / "linked").symlink_to(images)
    inside = write_jsonl(tmp_path / "in.jsonl", [{"question_id": 1, "image": "in.png", "text": "x"}])
    [question] = read_questions(inside, tmp_path / "linked")
    assert require_images([question], False) == ([question], [])
    outside = write_jsonl(tmp_path / "out.jsonl", [{"question_id": 1, "image": "out.png", "text": "x"}])
    with pytest.raises(UserError, match="out.jsonl:1: image 'out.png' is a symbolic link out of .*--follow-symlinks"):
        read_questions(outside, images)
    [question] = read_questions(outside, images, follow_symlinks=True)
    assert require_images([question], False) == ([question], [])


def test_a_missing_image_file_is_bad_and_a_question_without_an_image_is_not(tmp_path):
    rows = [{"question_id": i, "text": "x"} | image for i, image in enumerate([{}, {"images": ["no"]}])]
    asked = read_questions(write_jsonl(tmp_path / "q.jsonl", rows), tmp_path)
    assert (asked[0].image, asked[0].path) == (None, None)
    good, bad = require_images(asked, True)
    assert good == asked[:1] and [skipped.question for skipped in bad] == asked[1:]
    with pytest.raises(UserError, match="q.jsonl:2: image not found: .*no"):
        require_images(asked, False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pruning_config": json.dumps(CONFIG | {"layer_treshold": 0.9})}, "did you mean 'layer_threshold'?"),
        ({"pruning_config": json.dumps(CONFIG | {"shallow_mid_layer": 3})}, "shallow_mid_layer"),
        ({"pruning_config": "nowhere.json"}, "'nowhere.json' cannot be read"),
        ({"pruning_config": "{"}, "is not JSON"),
        ({"question_file": "nowhere.jsonl"}, "nowhere.jsonl (from: the path"),
        ({"image_folder": "nowhere"}, "/nowhere (from: the path"),
        ({"model_path": "/nowhere/at/all"}, "no such folder"),
        ({"device": "abacus"}, "abacus"),
        ({"conv_mode": "v99"}, "v99"),
        ({"dtype": "float7"}, "float7"),
    ],
)
def test_a_wrong_setting_is_refused_before_the_model_loads(bench, capsys, changes, message):
    assert bench.run(**changes) == 1
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not bench.answers.exists()


def test_answers_never_replace_the_questions(bench, capsys):
    content = bench.question_file.read_bytes()
    assert bench.run("--overwrite", answers_file=bench.question_file) == 1
    assert "are both" in capsys.readouterr().err
    assert bench.question_file.read_bytes() == content


@pytest.mark.parametrize(
    "changes", [{"batch_size": 0}, {"temperature": -1}, {"top_p": 1.5}, {"prefix_cache": "-1"}, {"limit": "all"}]
)
def test_argparse_refuses_with_status_2_in_one_line(bench, capsys, changes):
    with pytest.raises(SystemExit) as stopped:
        bench.run(**changes)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: argument --") and error.count("\n") == 1


def test_help_teaches(bench, capsys):
    with pytest.raises(SystemExit) as stopped:
        bench.run("--help")
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for word in ("examples:", "--pruning-config", "--top-p", "--skip-bad", "run.json", "llava.tiny.benchmarks"):
        assert word in text
