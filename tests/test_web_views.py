"""What the page of `llava-web` draws: states of tokens, influence, words, plans, and the gallery of a run."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from family_checkpoints import write_family
from PIL import Image
from scene_fixtures import PATH, QUESTION
from test_web_server import FASTV, runs  # noqa: F401 - a fixture
from video_fixtures import moving_square, write_video
from web_fixtures import question, rows_of, serving

from llava.analysis.prompts import Subject
from llava.cli import UserError
from llava.serve.web.gallery import PER_PAGE
from llava.serve.web.inspection import LEFT, MERGED, NEVER, READ, SINK, UNREAD, token_states
from llava.tiny.accuracy import CHECKPOINT

PYRAMID = {"method": "pyramiddrop", "layers": [3, 6, 9], "ratios": [0.5, 0.25, 0.125]}


@pytest.fixture(scope="module")
def server(runs):  # noqa: F811
    _, out = runs
    with serving(run=str(out / "fastv.jsonl"), against=str(out / "dense.jsonl")) as made:
        yield made


@pytest.fixture(scope="module")
def inspected(server):
    answer = server.http.post("/api/inspect", json={"messages": question(QUESTION, PATH)})
    assert answer.status_code == 200
    return answer.json()


def test_states_follow_the_trace(inspected):
    """Layer by layer, from the numbers that entered it and the cuts before it."""
    trace, visual, states = (inspected[key] for key in ("trace", "visual", "states"))
    assert [[one in (READ, MERGED, SINK, UNREAD) for one in row].count(True) for row in states] == trace[
        "visual_per_layer"
    ]
    assert states[0][0] == SINK and set(states[0][1:]) == {MERGED} and set(states[1]) == {UNREAD}
    kept = {visual[place] for place, one in enumerate(states[-1]) if one == READ}
    assert kept == set(trace["kept"]) and set(states[-1]) == {READ, LEFT}


@pytest.mark.parametrize("text", ["dense", "half", "merge", "remove", "zero"])
def test_states_of_made_up_traces(text):
    rules = [{"text": text, "visual": "dense", "sink": 2}] * 3
    trace = {"tokens_per_layer": [9, 9, 9], "rules": rules, "cuts": [[-1, [3, 4, 6, 7]], [1, [4]]]}
    states = token_states(trace, [3, 4, 5, 6, 7])
    first = {
        "dense": [READ] * 4, "half": [UNREAD, UNREAD, READ, READ], "merge": [MERGED, MERGED, SINK, MERGED],
        "remove": [UNREAD] * 4, "zero": [UNREAD] * 4,
    }[text]  # fmt: skip
    assert states[0] == [first[0], first[1], NEVER, first[2], first[3]] and states[1] == states[0]
    read = [LEFT if one in (READ, MERGED, SINK) else NEVER for one in states[0]]
    alone = {"dense": READ, "half": READ, "merge": SINK}.get(text, UNREAD)
    assert states[2] == [read[0], alone, NEVER, read[3], read[4]]


def test_influence_and_panels_are_those_of_the_analysis(server, inspected):
    from llava.analysis.influence import influence_map

    subject = Subject(server.service.loaded)
    prompt = subject.prompt(PATH, QUESTION)
    found = influence_map(subject.model, prompt.inputs, server.service.config)[0]
    for name in ("cosine", "l2", "attention"):
        measured = np.array(inspected["influence"][name], float)
        np.testing.assert_allclose(measured, getattr(found, name).values, rtol=2e-4, atol=1e-6)
    assert inspected["visual"] == found.cosine.labels["token"]
    assert inspected["curves"]["cosine"] == pytest.approx(np.nanmin(found.cosine.values, 1).tolist(), rel=2e-4)
    [panel], [expected] = inspected["panels"], prompt.view.panels
    assert panel["cells"] == expected.cells.tolist() and tuple(panel["box"]) == expected.box


@pytest.mark.parametrize(
    "config", [PYRAMID, None, {"method": "divprune", "share": 0.25}, {"method": "visionzip"}, "none"]
)
def test_every_kind_of_method_can_be_inspected(server, config):
    asked = {"messages": question(QUESTION, PATH), "pruning_config": config}
    answer = server.http.post("/api/inspect", json=asked)
    if answer.status_code == 400:  # what the model cannot run is refused alike by both
        assert server.http.post("/v1/chat/completions", json=asked).json() == answer.json()
        return
    found = answer.json()
    given = server.ask(question(QUESTION, PATH), pruning_config=config).pruning["trace"]
    assert all(found["trace"][key] == given[key] for key in ("tokens_per_layer", "flops_all_tokens", "kv_bytes"))
    present = [[one < LEFT for one in row].count(True) for row in found["states"]]
    assert present == found["trace"]["visual_per_layer"]
    assert [sum(one is not None for one in row) for row in found["influence"]["l2"]] == present


def test_words_are_those_of_the_analysis(server, inspected):
    from llava.analysis.lens import logit_lens

    position = inspected["visual"][20]
    answer = server.http.post("/api/words", json={"messages": question(QUESTION, PATH), "position": position}).json()
    subject = Subject(server.service.loaded)
    words = logit_lens(subject.model, subject.prompt(PATH, QUESTION).inputs, [position], top=4)[0]
    texts = words.text(subject.tokenizer).values[:, 0].tolist()
    assert [[word for word, _ in layer] for layer in answer["lens"]] == texts
    assert len(answer["value"]) == 12 and all(len(heads) == 4 for heads in answer["value"])
    beyond = server.http.post("/api/words", json={"messages": question(QUESTION, PATH), "position": 4000})
    assert beyond.status_code == 400 and "outside of the prompt" in beyond.json()["error"]["message"]


def planned(server, inspected, **body):
    answer = server.http.post("/api/plan", json={"trace": inspected["trace"], "visual": inspected["visual"], **body})
    assert answer.status_code == 200, answer.text
    return answer.json()["config"]


def test_a_forced_token_stays_or_goes(server, inspected):
    visual, kept = inspected["visual"], inspected["trace"]["kept"]
    stay, go = [visual[0], visual[-1]], kept[:2]
    config = planned(server, inspected, stay=stay, go=go)
    trace = server.ask(question(QUESTION, PATH), pruning_config=config, trace="full").pruning["trace"]
    cuts = dict(map(tuple, ((layer, tuple(keep)) for layer, keep in trace["cuts"])))
    assert set(cuts[-1]) == set(visual) - set(go)
    assert set(cuts[inspected["trace"]["filter_layer"]]) == set(kept) - set(go) | set(stay)
    assert trace["rules"] == inspected["trace"]["rules"]
    same = server.ask(question(QUESTION, PATH), pruning_config=planned(server, inspected), trace="full")
    assert same.pruning["trace"]["kv_tokens_per_layer"] == inspected["trace"]["kv_tokens_per_layer"]


@pytest.mark.parametrize("control", ["random", "downsampled"])
def test_a_control_has_as_many_tokens_in_every_layer(server, inspected, control):
    config = planned(server, inspected, control=control, seed=3)
    trace = server.ask(question(QUESTION, PATH), pruning_config=config).pruning["trace"]
    assert trace["tokens_per_layer"] == inspected["trace"]["tokens_per_layer"]
    assert trace["flops"] == inspected["trace"]["flops"] and set(trace["kept"]) != set(inspected["trace"]["kept"])
    if control == "downsampled":
        gaps = np.diff(sorted(trace["kept"]))
        assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"stay": [3]}, "no visual token"),
        ({"trace": {}}, "cannot be replayed"),
        ({"trace": {"tokens_per_layer": 5}}, ""),
    ],
)
def test_a_plan_of_nonsense_is_refused(server, inspected, body, message):
    given = {"trace": inspected["trace"], "visual": inspected["visual"], **body}
    answer = server.http.post("/api/plan", json=given)
    assert answer.status_code == 400 and message in answer.json()["error"]["message"]


def test_the_gallery_shows_broken_answers_first_and_filters(server, runs):  # noqa: F811
    folder, out = runs
    pruned, dense = (rows_of(out / f"{name}.jsonl") for name in ("fastv", "dense"))
    [file] = folder.rglob("testdev_balanced_questions.json")
    right = {key: one["answer"] for key, one in json.loads(file.read_text()).items()}
    kinds = []
    for a, b in zip(pruned, dense, strict=True):
        hits = [one["text"].lower().rstrip(".") == right[one["question_id"]] for one in (a, b)]
        kinds.append(
            "same" if a["text"] == b["text"] else "changed" if hits[0] == hits[1] else "broken" if hits[1] else "fixed"
        )
    about = server.http.get("/api/about").json()["gallery"]
    assert about["kinds"] == {
        kind: kinds.count(kind) for kind in ("broken", "fixed", "changed", "same") if kind in kinds
    }
    listed = server.http.get("/api/gallery").json()
    assert listed["total"] == len(pruned) and len(listed["rows"]) == min(PER_PAGE, len(pruned))
    order = [row["kind"] for row in listed["rows"]]
    assert order == sorted(order, key=["broken", "fixed", "changed", "same"].index)
    count = server.http.get(
        "/api/gallery", params={"kind": "same", "layer": FASTV["k"] - 1, "low": 1, "high": 999}
    ).json()
    assert count["total"] == kinds.count("same")
    assert server.http.get("/api/gallery", params={"high": 1}).json()["rows"] == []
    assert server.http.get("/api/gallery", params={"page": "x"}).status_code == 400


def test_an_entry_opens_with_its_trace_and_the_model_does_not_run(server, runs, monkeypatch):  # noqa: F811
    _, out = runs

    def run(*arguments, **more):
        raise AssertionError("the model ran")

    monkeypatch.setattr(type(server.service.loaded.model), "forward", run)
    monkeypatch.setattr(server.service.loaded.inputs, "encode_images", run)
    row = server.http.get("/api/gallery").json()["rows"][0]
    entry = server.http.get(f"/api/gallery/{row['number']}").json()
    [line] = [
        one
        for one in rows_of(out / "fastv.jsonl")
        if one["prompt"] == row["prompt"] and str(one["question_id"]) == row["question_id"]
    ]
    kept = {entry["layout"]["visual"][n] for n, one in enumerate(entry["run"]["states"][-1]) if one == READ}
    assert entry["run"]["trace"]["kept"] == line["metadata"]["kept"] == sorted(kept)
    assert entry["other"]["trace"]["filter_layer"] is None and len(entry["other"]["states"]) == 12
    picture = server.http.get(f"/api/gallery/{row['number']}/image/0")
    assert Image.open(io.BytesIO(picture.content)).size == tuple(entry["layout"]["sizes"][0])
    assert server.http.get("/api/gallery/999").status_code == 404
    assert server.http.get(f"/api/gallery/{row['number']}/image/7").status_code == 404


def test_wrong_runs_are_said_before_the_model_loads(monkeypatch):
    monkeypatch.setattr(
        "llava.model.loaded.LoadedModel.from_path", lambda *options: pytest.fail("the model was loaded")
    )
    with pytest.raises(UserError, match="is not there"), serving(run="nothing.jsonl"):
        pass
    with pytest.raises(UserError, match="give --run, too"), serving(against=f"{CHECKPOINT}/x.jsonl"):
        pass


@pytest.mark.parametrize("family", ["qwen2_vl", "internvl", "llava_next"])
def test_tiles_and_grids_of_other_families(family, tmp_path):
    """Two pictures of other shapes: every visual token has its place, its state, and its position in the prompt."""
    folder = write_family(tmp_path / family, family)
    pictures = [Image.new("RGB", size, colour) for size, colour in (((64, 32), "red"), ((30, 50), "blue"))]
    asked = {"messages": question("What is it?", *pictures)}
    config = {"method": "random", "layer": 0, "keep": 5}
    with serving(model_path=str(folder), pruning_config=json.dumps(config), max_new_tokens=2) as made:
        found = made.http.post("/api/inspect", json=asked).json()
        trace = made.ask(asked["messages"]).pruning["trace"]
        again = made.ask(asked["messages"], stream=False, pruning_config="none").pruning
        words = made.http.post("/api/words", json={**asked, "position": found["visual"][0]}).json()
    cells = [token for panel in found["panels"] for row in panel["cells"] for token in row]
    newlines = 0 if family != "llava_next" else len(found["visual"]) - len(cells)
    assert (
        sorted(cells) == sorted(set(cells)) and len(cells) + newlines == len(found["visual"]) == trace["visual_tokens"]
    )
    assert {panel["image"] for panel in found["panels"]} == {0, 1} and found["sizes"] == [[64, 32], [30, 50]]
    assert set(trace["kept"]) <= set(found["visual"]) and again["prefix_reuse"]["prompts"] == 1
    kept = {found["visual"][place] for place, one in enumerate(found["states"][-1]) if one == READ}
    assert kept == set(trace["kept"]) and len(words["lens"]) == len(found["states"])


def test_a_video_is_a_strip_of_frames(tmp_path):
    """Qwen2-VL reads two frames together; every visual token has its frame, and the frames come back as pictures."""
    folder = write_family(tmp_path / "qwen2_vl", "qwen2_vl")
    clip = write_video(tmp_path / "clip.mp4", moving_square(1, frames=8, height=32, width=48))
    url = "data:video/mp4;base64," + base64.b64encode(clip.read_bytes()).decode()
    messages = question("What moves?")
    messages[0]["content"].insert(0, {"type": "video_url", "video_url": {"url": url}})
    playlist = "data:video/mp4;base64," + base64.b64encode(b"#EXTM3U\nfile:///etc/passwd").decode()
    with serving(model_path=str(folder), pruning_config='{"method": "random", "layer": 0, "keep": 6}') as made:
        found = made.http.post("/api/inspect", json={"messages": messages}).json()
        trace = made.ask(messages, max_tokens=2).pruning["trace"]
        messages[0]["content"][0]["video_url"]["url"] = playlist
        refused = made.http.post("/v1/chat/completions", json={"messages": messages})
    assert refused.status_code == 400 and "is no MP4" in refused.json()["error"]["message"]
    cells = sorted(token for panel in found["panels"] for row in panel["cells"] for token in row)
    assert cells == list(range(trace["visual_tokens"])) and set(trace["kept"]) <= set(found["visual"])
    assert len(found["frames"]) == 8 and [panel["image"] for panel in found["panels"]] == [0, 2, 4, 6]
    assert found["sizes"] == [[48, 32]] * 8 and found["frames"][0].startswith("data:image/jpeg;base64,")


def test_a_model_without_videos_says_so(server):
    messages = question("What moves?")
    messages[0]["content"].insert(0, {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}})
    answer = server.http.post("/v1/chat/completions", json={"messages": messages})
    assert answer.status_code == 400 and "takes no videos" in answer.json()["error"]["message"]
