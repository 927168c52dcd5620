"""`llava-web` as a port: answers of `llava.eval.run` through OpenAI's client, batches, limits, clients that vanish."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import torch
from llava_fixtures import make_model, write_checkpoint
from PIL import Image
from scene_fixtures import PATH, QUESTION
from web_fixtures import question, rows_of, serving

from llava.eval import run
from llava.model.inputs import Turn
from llava.serve.chat import Sampling
from llava.serve.web.batch import Done, Failed, Job, Progress
from llava.serve.web.command import Options, access_token
from llava.serve.web.service import Call
from llava.tiny.accuracy import CHECKPOINT
from llava.tiny.benchmarks import write_benchmarks

FASTV = {"method": "fastv", "k": 2, "r": 0.75}


@pytest.fixture(scope="module")
def server():
    with serving(max_images=2, max_megapixels=1.0, max_megabytes=1.0) as made:
        yield made


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    """A server whose model talks until the limit: random weights, no end token, a long context."""
    folder = write_checkpoint(tmp_path_factory.mktemp("model") / "talker", make_model())
    config = json.loads((folder / "config.json").read_text())
    config |= {"eos_token_id": None, "tokenizer_model_max_length": 4096, "max_position_embeddings": 4096}
    (folder / "config.json").write_text(json.dumps(config))
    with serving(model_path=str(folder), pruning_config="none", max_new_tokens=3000, max_queue=2) as made:
        yield made


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Benchmark questions, and their answers by `llava.eval.run`, pruned and dense."""
    folder, out = tmp_path_factory.mktemp("eval"), tmp_path_factory.mktemp("runs")
    write_benchmarks(folder, questions=24, seed=5)
    given = ["--benchmark", "gqa_mini", "--model-path", CHECKPOINT, "--data-dir", str(folder), "--out", str(out)]
    given += ["--device", "cpu", "--max-new-tokens", "8", "--rounds", "0"]
    assert run.main([*given, "--config", f"fastv={json.dumps(FASTV)}", "--name", "paper"]) == 0
    return folder / "gqa_mini", out / "gqa_mini"


@pytest.mark.parametrize(("name", "config"), [("dense", "none"), ("fastv", FASTV)])
def test_concurrent_answers_are_those_of_eval_run(server, runs, name, config):
    folder, out = runs
    [file] = folder.glob("*.jsonl")
    images = {(row["question_id"], row["text"]): row["image"] for row in rows_of(file)}
    [data] = (path for path in folder.rglob("images") if path.is_dir())
    rows = rows_of(out / f"{name}.jsonl")

    def ask(row):
        image = data / images[row["question_id"], row["prompt"]]
        return server.ask(question(row["prompt"], image), max_tokens=8, pruning_config=config)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, rows))
    assert [one.choices[0].message.content for one in answers] == [row["text"] for row in rows]
    assert max(one.pruning["batch"] for one in answers) > 1  # batched as they arrive
    for one, row in zip(answers, rows, strict=True):
        trace = one.pruning["trace"]
        assert trace["tokens_per_layer"] == row["metadata"]["tokens_per_layer"]
        assert trace["kept"] == row["metadata"]["kept"]
        assert one.usage.prompt_tokens == trace["prompt_tokens"]


def test_a_stream_is_the_whole_answer_and_an_image_is_read_once(server):
    whole = server.ask(question(QUESTION, PATH), logprobs=True, top_logprobs=3)
    chunks = list(
        server.ask(
            question(QUESTION, PATH), stream=True, stream_options={"include_usage": True}, logprobs=True, top_logprobs=3
        )
    )
    pieces = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(one.delta.content or "" for one in pieces) == whole.choices[0].message.content == "NUT"
    assert [one.finish_reason for one in pieces][-1] == "stop" and chunks[-1].usage == whole.usage
    streamed = [token for one in pieces if one.logprobs for token in one.logprobs.content]
    first = whole.choices[0].logprobs.content
    assert [one.token for one in streamed] == [one.token for one in first] and len(
        first
    ) == whole.usage.completion_tokens
    assert max(abs(a.logprob - b.logprob) for a, b in zip(streamed, first, strict=True)) < 1e-3
    [reuse] = [chunk.pruning["prefix_reuse"] for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason]
    assert reuse["found"] == 1 and reuse["run"] < reuse["rows"] / 2
    fresh = server.ask(question(QUESTION, PATH), prefix_cache=False)
    assert fresh.pruning["prefix_reuse"] is None and fresh.choices[0].message.content == "NUT"


def test_log_probabilities_are_those_of_the_untouched_model(server):
    answer = server.ask(question(QUESTION, PATH), logprobs=True, top_logprobs=2, pruning_config="none")
    loaded, picture = server.service.loaded, list(server.service.store._pictures.values())[-1]
    row = loaded.inputs.encode([Turn(QUESTION, 1)])
    with torch.no_grad():
        features = loaded.inputs.encode_images(loaded.model, [picture.processed])
        batch = loaded.inputs.collate([row], [features], loaded.model)
        given = {"input_ids" if key == "inputs" else key: value for key, value in batch.items()}
        expected = loaded.model(**given).logits[0, -1].float().log_softmax(-1)
    first = answer.choices[0].logprobs.content[0]
    assert first.logprob == pytest.approx(float(expected.max()), abs=1e-4)
    assert [one.logprob for one in first.top_logprobs] == pytest.approx(expected.topk(2).values.tolist(), abs=1e-4)


def test_what_a_request_may_say_about_sampling(server):
    seeded = [server.ask(question("Hi", PATH), temperature=2.0, seed=7, max_tokens=6) for _ in range(2)]
    assert seeded[0].choices[0].message.content == seeded[1].choices[0].message.content
    one = server.ask(question(QUESTION, PATH), max_tokens=1)
    assert one.choices[0].finish_reason == "length" and one.usage.completion_tokens == 1
    cut = server.ask(question(QUESTION, PATH), stop=["UT"])
    assert cut.choices[0].message.content == "N" and cut.choices[0].finish_reason == "stop"
    said = [*question(QUESTION, PATH), {"role": "assistant", "content": "NUT"}, {"role": "user", "content": QUESTION}]
    assert server.ask([{"role": "system", "content": "Be brief."}, *said]).usage.prompt_tokens > 200


WIDE = Image.new("1", (1001, 1000))
REFUSED = [
    ({"messages": []}, 400, "messages"),
    ({"messages": question("   ")}, 400, "question 1 is empty"),
    ({"messages": question("a <image> b")}, 400, "<image>"),
    ({"messages": [{"role": "assistant", "content": "a"}]}, 400, "alternate"),
    ({"messages": question("?", PATH, PATH, PATH)}, 400, "3 images, the limit is 2"),
    ({"messages": question("?", WIDE)}, 400, "the limit is 1 megapixels"),
    ({"messages": question("?", b"\0" * 1_000_002)}, 400, "limit of 1 MB"),
    ({"messages": question("?", b"no image")}, 400, "is not an image"),
    ({"messages": question("?", "data:image/png;base64,?")}, 400, "not valid base64"),
    ({"messages": question("?", str(PATH))}, 400, "an image is a data: or http(s) URL"),
    ({"messages": question("?", PATH.as_uri())}, 400, "an image is a data: or http(s) URL"),
    ({"messages": question("?", "http://127.0.0.1:1/a.png")}, 400, "--image-urls"),
    ({"messages": question("word " * 600)}, 400, "the model takes 512"),
    ({"messages": question("x" * 200_000)}, 400, "the model takes 512"),
    ({"messages": question("?"), "model": "gpt"}, 404, "no model 'gpt'"),
    ({"messages": question("?"), "temperature": "hot"}, 400, "temperature"),
    ({"messages": question("?"), "n": 2}, 400, "n:"),
    ({"messages": question("?"), "pruning_config": {"method": "fastv", "k": 99}}, 400, "12 layers"),
    ({"messages": question("?"), "pruning_config": {"method": f"{__file__}:Evil"}}, 400, "unknown method"),
    ({"messages": question("?"), "pruning_config": {"method": "none", "before": {"method": "os:x"}}}, 400, "unknown"),
    ({"messages": question("?"), "pruning_config": str(PATH)}, 400, "pruning_config"),
]


@pytest.mark.parametrize(("body", "status", "message"), REFUSED, ids=[message for *_, message in REFUSED])
def test_a_bad_request_is_one_sentence(server, body, status, message):
    answer = server.http.post("/v1/chat/completions", json=body)
    error = answer.json()["error"]
    assert answer.status_code == status and message in error["message"] and "\n" not in error["message"]
    assert error["type"] == "invalid_request_error"


def test_openai_clients_know_the_errors(server):
    with pytest.raises(openai.BadRequestError, match="the model takes 512") as caught:
        server.ask(question("word " * 600))
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        server.openai.models.retrieve("gpt")
    assert [one.id for one in server.openai.models.list()] == [server.served.name]
    assert server.http.get("/v1/nothing").json()["error"]["type"] == "invalid_request_error"
    assert server.http.get("/health").json()["status"] == "ok"
    assert server.metric('llava_requests_total{path="/v1/chat/completions",status="200"}') > 0


def wait_for(happened, seconds=20):
    until = time.monotonic() + seconds
    while not happened() and time.monotonic() < until:
        time.sleep(0.01)
    assert happened()


def test_a_client_that_goes_away_frees_its_place(talker):
    """One leaves while its answer is written, one while it waits; a third has the model for itself."""
    stream = talker.ask(question("Talk.", Image.new("RGB", (30, 30))), stream=True)
    next(iter(stream))
    stream.close()
    held = threading.Event()
    talker.service.submit(Call(lambda: held.wait(20), lambda event: None, threading.Event()))
    with pytest.raises(openai.APITimeoutError):
        talker.openai.with_options(timeout=0.3).chat.completions.create(model="talker", messages=question("Wait."))
    wait_for(lambda: not talker.service.waiting)
    held.set()
    begun = time.monotonic()
    assert talker.ask(question("Me."), max_tokens=2).pruning["batch"] == 1
    assert time.monotonic() - begun < 5 and talker.metric("llava_cancelled_total") == 2


def test_a_full_queue_refuses(talker):
    held = threading.Event()
    calls = [Call(lambda: held.wait(20), lambda event: None, threading.Event()) for _ in range(3)]
    talker.service.submit(calls[0])
    wait_for(lambda: not talker.service.waiting)
    for call in calls[1:]:
        talker.service.submit(call)
    with pytest.raises(openai.InternalServerError, match="2 requests are waiting") as caught:
        talker.ask(question("Me."))
    assert caught.value.status_code == 503
    held.set()
    wait_for(lambda: not talker.service.waiting)


def test_a_prompt_is_stopped_between_layers_and_out_of_memory_halves_the_batch(talker, monkeypatch):
    service = talker.service
    events = []

    def job(text="Hi.", **more):
        return Job(service.encode([Turn(text)]), (), None, Sampling(max_new_tokens=2), events.append, **more)

    stopped = job(progress=True)
    stopped.tell = lambda event: events.append(event) or (event.layer == 1 and stopped.cancelled.set())
    service.submit(stopped)
    wait_for(lambda: not service.waiting)
    generate, sizes = service.loaded.model.generate, []

    def small(*arguments, **more):
        sizes.append(len(next(value for key, value in more.items() if key == "attention_mask")))
        if sizes[-1] > 1:
            raise torch.OutOfMemoryError("too large")
        return generate(*arguments, **more)

    held = threading.Event()
    service.submit(Call(lambda: held.wait(20), lambda event: None, threading.Event()))
    wait_for(lambda: not service.waiting)
    monkeypatch.setattr(service.loaded.model, "generate", small)
    for _ in range(2):
        service.submit(job())
    held.set()
    wait_for(lambda: sum(isinstance(one, Done) for one in events) == 2)
    assert sizes == [2, 1, 1] and not any(isinstance(one, Failed) for one in events)
    assert service.layers > 2 and max(one.layer for one in events if isinstance(one, Progress)) == 1


def test_other_addresses_need_a_token():
    with pytest.raises(ValueError, match="--host 0.0.0.0 is reached from other machines"):
        access_token(Options(host="0.0.0.0"))
    assert access_token(Options()) is None and len(access_token(Options(host="::", token="auto"))) > 20
