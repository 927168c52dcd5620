"""Videos through question files and the chat: any batch, several turns, images beside them, and what is refused."""

import io
import json
import re

import numpy as np
import pytest
from family_checkpoints import write_family
from loader_fixtures import Bench, comparable, forbid_loading, write_jsonl, write_model
from PIL import Image
from video_fixtures import moving_square, write_video

from llava import PruningConfig, prune
from llava.cli import ModelOptions, VideoOptions
from llava.eval.lmms_eval.answering import RequestAnswerer
from llava.eval.lmms_eval.arguments import rule_of
from llava.eval.lmms_eval.requests import Request, decoding_of, of_messages, of_text
from llava.eval.runner import batches
from llava.model.inputs import Turn
from llava.model.loaded import LoadedModel
from llava.model.videos import read_video
from llava.serve import cli_pruning
from llava.serve.chat import Chat, Sampling

ATTENTION = {"method": "attention_topk", "layer": 2, "keep": 8}


@pytest.fixture(scope="module", params=["qwen2_5_vl", "llava_onevision", "qwen3_vl"])
def family(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    for seed, frames in enumerate((12, 7, 12)):
        write_video(root / "media" / f"{seed}.mp4", moving_square(seed, frames))
    (root / "media" / "empty.mp4").touch()
    Image.fromarray(moving_square(5)[0]).save(root / "media" / "a.png")
    return write_family(root / "model", request.param), root / "media"


@pytest.fixture
def bench(tmp_path, family):
    """Videos alone, with an image, two of them, an image alone and text; two questions about one video."""
    bench = Bench(tmp_path, *family)
    shown = [{"video": "0.mp4"}, {"videos": ["1.mp4", "0.mp4"], "image": "a.png"}, {"image": "a.png"}, {}]
    shown += [{"video": "0.mp4"}, {"video": "1.mp4"}]
    rows = [{"question_id": n, "text": f"What moves, {n}?"} | one for n, one in enumerate(shown)]
    write_jsonl(bench.question_file, rows)
    return bench


def test_answers_and_traces_do_not_depend_on_the_batch(bench):
    def ask(**flags):
        assert bench.run("--overwrite", frames=6, pruning_config=json.dumps(ATTENTION), **flags) == 0
        return comparable(bench.rows())

    alone = ask(batch_size=1, prefix_cache="off")
    assert ask(batch_size=4) == alone
    assert ask(batch_size=3, workers=1, prefix_cache="off") == alone
    video, mixed, image, text = (row["metadata"] for row in alone[:4])
    assert len(video["frame_tokens"]) in (3, 6)  # Qwen's tokens show two frames each
    assert sum(video["kept_per_frame"]) <= 8 < sum(video["frame_tokens"])
    assert len(mixed["frame_tokens"]) == 1 + 2 * len(video["frame_tokens"])
    assert "frame_tokens" not in image and "frame_tokens" not in text


def test_the_run_file_says_which_frames_and_another_rule_is_another_run(bench, capsys):
    assert bench.run(frames=4) == 0
    record = bench.record()
    assert record["settings"]["video"] == {"frames": 4, "fps": None, "decoder": "PyAV"} and record["versions"]["av"]
    assert bench.run(fps=2) == 1
    assert "video: frames: 4, now 768; video: fps: null, now 2.0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"video": "none.mp4"}, "jsonl:1: video not found"),
        ({"video": "empty.mp4"}, "jsonl:1: video .* is empty"),
        ({"video": "a.png", "image": "a.png"}, "jsonl:1: a.png is a video here and an image in another place"),
        ({"video": "../0.mp4"}, "jsonl:1: video '../0.mp4' must be a path inside the image folder"),
        ({"videos": [3]}, 'jsonl:1: key "videos" should hold video paths, found int'),
    ],
)
def test_bad_videos_are_refused_with_file_and_line_before_the_model_loads(
    tmp_path, family, capsys, monkeypatch, row, message
):
    forbid_loading(monkeypatch)
    bench = Bench(tmp_path, *family)
    write_jsonl(bench.question_file, [{"question_id": 1, "text": "What moves?"} | row])
    assert bench.run() == 1
    assert re.search(message, capsys.readouterr().err)


def test_a_video_that_fails_while_it_is_read_is_named_or_left_out(bench, capsys, monkeypatch):
    def read(path, rule):
        if path.name == "1.mp4":
            raise ValueError(f"video '{path}' is damaged: it ends after 3 of 7 frames")
        return read_video(path, rule)

    monkeypatch.setattr(batches, "read_video", read)
    assert bench.run() == 1
    assert re.search("jsonl:6: video .*1.mp4' is damaged: it ends after 3 of 7 frames", capsys.readouterr().err)
    assert bench.run("--skip-bad") == 0
    assert [row["question_id"] for row in bench.rows()] == [0, 2, 3, 4]


def test_models_without_videos_refuse_them_before_they_load(tmp_path, family, capsys, monkeypatch):
    forbid_loading(monkeypatch)
    bench = Bench(tmp_path, write_model(tmp_path / "model"), family[1])
    write_jsonl(bench.question_file, [{"question_id": 1, "text": "What moves?", "video": "0.mp4"}])
    assert bench.run() == 1
    assert "jsonl:1: a model of type 'llava' takes no videos" in capsys.readouterr().err
    assert cli_pruning.main(["--model-path", str(bench.model), "--video", str(family[1] / "0.mp4"), "-p", "?"]) == 1
    assert "--video: a model of type 'llava' takes no videos" in capsys.readouterr().err


def test_a_chat_about_a_video_and_an_image_asks_what_one_would_write_by_hand(family):
    loaded = LoadedModel.from_path(ModelOptions(model_path=str(family[0]), device="cpu"))
    chat = Chat(loaded, PruningConfig.of(ATTENTION), Sampling(max_new_tokens=4))
    video = read_video(family[1] / "0.mp4", VideoOptions(frames=6))
    assert chat.see(video, "0.mp4").source is video
    image = Image.open(family[1] / "a.png").convert("RGB")
    chat.see(image, "a.png")
    first, second = chat.ask("What moves?"), chat.ask("Why?")
    inputs, model = loaded.inputs, loaded.model
    turns = [Turn("What moves?", 1, inputs.clean(first.text), videos=1), Turn("Why?")]
    seen = inputs.encode_images(model, [inputs.prepare(image), inputs.prepare(video)])
    batch = inputs.collate([inputs.encode(turns)], [seen], model)
    with prune(model, ATTENTION) as session:
        output = model.generate(**batch, do_sample=False, max_new_tokens=4, temperature=None, top_p=None, top_k=None)
    assert [second.text] == inputs.decode(inputs.new_tokens(output, batch))
    assert second.trace.kept == session.traces[0].kept and second.trace.frames == session.traces[0].frames
    assert first.trace.frames[0].medium == 0 and {frame.medium for frame in first.trace.frames} == {0, 1}


def test_requests_of_lmms_eval_answer_as_the_loader_does(bench, family):
    """The same questions as chat messages and as a simple task's visuals."""
    assert bench.run(frames=6, pruning_config=json.dumps(ATTENTION)) == 0
    expected = [row["text"] for row in bench.rows()]
    loaded = LoadedModel.from_path(ModelOptions(model_path=str(family[0]), device="cpu"))
    answerer = RequestAnswerer(loaded.model, loaded.inputs, PruningConfig.of(ATTENTION), batch_size=2)
    asked = [json.loads(line) for line in bench.question_file.read_text().splitlines()]
    rule, wanted = rule_of("6", None), decoding_of({"max_new_tokens": 6})

    def shown(row, kind):
        names = row.get(f"{kind}s", [row[kind]] if kind in row else [])
        return [str(family[1] / name) for name in names]

    def messages(row):
        media = [{"type": kind, "url": path} for kind in ("image", "video") for path in shown(row, kind)]
        return of_messages([{"role": "user", "content": [*media, {"type": "text", "text": row["text"]}]}], rule)

    def visuals(row):
        return of_text(row["text"], [*shown(row, "video"), *shown(row, "image")], rule)

    for read in (messages, visuals):
        requests = [Request(str(n), (n,), lambda row=row: read(row), wanted) for n, row in enumerate(asked)]  # noqa: B023
        assert answerer.generate(requests) == expected


def test_the_chats_command_line_shows_a_video_and_what_is_kept_of_its_frames(family, tmp_path, capsys, monkeypatch):
    lines = ["What moves?", "/trace", "/video", "/video none.mp4", f"/trace {tmp_path / 'strip.png'}"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
    arguments = ["--model-path", str(family[0]), "--video", str(family[1] / "0.mp4"), "--frames", "6"]
    assert cli_pruning.main([*arguments, "--max-new-tokens", "3", "--pruning-config", json.dumps(ATTENTION)]) == 0
    notes = capsys.readouterr().err
    assert re.search(r"kept per frame: (\d+ ){2,5}\d+ of \d+ each", notes)
    assert "frame from 0: row, column" in notes and re.search(r"\d: \d+, \d+", notes)
    assert re.search(r"video \S+0.mp4 \(6 frames, 32×24 pixels, \d+ visual tokens\)", notes)
    assert "video 'none.mp4': no such file" in notes
    with Image.open(tmp_path / "strip.png") as strip:
        pixels = np.asarray(strip.convert("RGB")).astype(int)
    coloured = np.ptp(pixels, axis=-1) > 40
    assert 0.005 < coloured.mean() < 0.6  # kept cells and their frames; the rest is grey
