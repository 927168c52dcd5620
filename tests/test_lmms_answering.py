"""The lmms-eval plug-in's core on every family: nothing depends on the batch, everything equals plain computation."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from family_checkpoints import FAMILIES, write_family
from loader_fixtures import CONFIG, Bench, questions, write_images, write_model
from PIL import Image

from llava import PruningConfig, load_pretrained_model, prune
from llava.eval.lmms_eval import answering
from llava.eval.lmms_eval.answering import RequestAnswerer
from llava.eval.lmms_eval.requests import Conversation, Request, RequestError, decoding_of, of_text
from llava.eval.lmms_eval.steering import UntilCriteria, cut
from llava.model.inputs import ProcessedImage, Turn, inputs_for

PRUNED = PruningConfig.from_dict(CONFIG | {"layer_threshold": 0.99, "tokens_threshold": 0.3})
GREEDY = decoding_of({"max_new_tokens": 6})
CONTINUATIONS = (" blue", " a red square on the left", " 42", " no")


@pytest.fixture(scope="module", params=["original", *FAMILIES])
def loaded(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    path = write_model(root / "m") if request.param == "original" else write_family(root / "m", request.param)
    tokenizer, model, processor, _ = load_pretrained_model(path, None, "m", device="cpu")
    return model, inputs_for(tokenizer, processor, model.config)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = write_model(tmp_path_factory.mktemp("original") / "m")
    tokenizer, model, processor, _ = load_pretrained_model(path, None, "m", device="cpu")
    return path, model, inputs_for(tokenizer, processor, model.config)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images") / "images")


def asked(images, wanted=GREEDY):
    """Ten questions about images of three sizes, every third in text alone."""
    return [
        Request(
            f"task/test/{i}",
            (i,),
            lambda i=i, row=row: of_text(row["text"], [] if i % 3 == 1 else [Image.open(images / row["image"])]),
            wanted,
        )
        for i, row in enumerate(questions())
    ]


def asked_likelihoods(images):
    return [dataclasses.replace(request, wanted=text) for request in asked(images)[:3] for text in CONTINUATIONS]


def prompt_of(model, inputs, request):
    """The request's row and what the model makes of its images."""
    conversation = request.read()
    seen = inputs.encode_images(model, [inputs.prepare(image) for image in conversation.media])
    return inputs.encode(conversation.turns), seen


def widths(inputs, monkeypatch):
    """A list that gets the number of new tokens of every answer that is decoded from now on."""
    written, decode = [], inputs.decode
    monkeypatch.setattr(inputs, "decode", lambda tokens: written.extend(map(len, tokens)) or decode(tokens))
    return written


@pytest.mark.parametrize("config", [None, PRUNED], ids=["dense", "pruned"])
def test_answers_in_batches_are_those_of_single_requests(loaded, images, config):
    model, inputs = loaded
    requests = asked(images)
    together = RequestAnswerer(model, inputs, config, batch_size=4)
    answers = together.generate(requests)
    assert answers == [RequestAnswerer(model, inputs, config).generate([request])[0] for request in requests]
    assert len(set(answers)) > 3 and together.costs.questions == (len(requests) if config else 0)


@pytest.mark.parametrize("config", [None, PRUNED], ids=["dense", "pruned"])
def test_answers_are_those_of_the_loader(original, images, tmp_path, config):
    path, model, inputs = original
    bench = Bench(tmp_path, path, images)
    changes = {} if config is None else {"pruning_config": json.dumps(config.to_dict())}
    assert bench.run(**changes) == 0
    requests = [
        Request(str(i), (i,), lambda row=row: of_text(row["text"], [Image.open(images / row["image"])]), GREEDY)
        for i, row in enumerate(questions())
    ]
    assert RequestAnswerer(model, inputs, config, 4).generate(requests) == [row["text"] for row in bench.rows()]


def are_refused(model, inputs, requests):
    """Whether likelihoods are refused, as Janus's `generate` drops logits processors: never a silent 0."""
    if model.config.model_type != "janus":
        return False
    with pytest.raises(RequestError, match="JanusForConditionalGeneration.generate takes no logits processor"):
        RequestAnswerer(model, inputs, None, batch_size=8).likelihoods(requests)
    return True


def test_dense_likelihoods_are_those_of_one_forward_over_the_whole_text(loaded, images):
    model, inputs = loaded
    requests = asked_likelihoods(images)
    if are_refused(model, inputs, requests):
        return
    found = RequestAnswerer(model, inputs, None, batch_size=8).likelihoods(requests)
    for request, value in zip(requests, found, strict=True):
        row, seen = prompt_of(model, inputs, request)
        text = inputs.prompt(request.read().turns)
        full = inputs.tokenize(text + (request.wanted.lstrip() if text.endswith("\n") else request.wanted))
        new = len(full) - len(row)
        batch = inputs.collate([full], [seen], model)
        batch = {"input_ids" if name == "inputs" else name: tensor for name, tensor in batch.items()}
        with torch.inference_mode():
            logits = model(**batch).logits[0, -new - 1 : -1].float()
        tokens = torch.tensor(full[-new:])
        expected = logits.log_softmax(-1)[torch.arange(new), tokens].sum()
        assert value.tokens == new and value.logprob == pytest.approx(float(expected), abs=1e-3)
        assert value.greedy == bool((logits.argmax(-1) == tokens).all())


def test_pruning_nothing_leaves_likelihoods_as_they_are(loaded, images):
    model, inputs = loaded
    if are_refused(model, inputs, asked_likelihoods(images)):
        return
    requests = asked_likelihoods(images)
    nothing = PruningConfig.from_dict({"mode": []})
    dense, same = (RequestAnswerer(model, inputs, config, 4).likelihoods(requests) for config in (None, nothing))
    assert [a.greedy for a in dense] == [b.greedy for b in same]
    assert [a.logprob for a in dense] == pytest.approx([b.logprob for b in same], abs=1e-4)


def test_pruned_likelihoods_are_what_pruned_generation_saw(loaded, images, monkeypatch):
    """The greedy answer is greedy, and its value is the sum over the steps that wrote it."""
    model, inputs = loaded
    if are_refused(model, inputs, asked_likelihoods(images)):
        return
    requests, rows, expected = asked(images), [], []
    for request in requests:
        row, seen = prompt_of(model, inputs, request)
        arguments = dict(GREEDY.arguments) | {"return_dict_in_generate": True, "output_logits": True}
        with torch.inference_mode(), prune(model, PRUNED):
            batch = inputs.collate([row], [seen], model)
            output = model.generate(**batch, **arguments, pad_token_id=0)
        new = inputs.new_tokens(output.sequences, batch)[0]
        logits = torch.stack(output.logits)[:, 0].float()
        rows.append(new.tolist())
        expected.append(float(logits.log_softmax(-1).gather(1, new[: len(logits), None]).sum()))
    answers = {str(i): row for i, row in enumerate(rows)}
    monkeypatch.setattr(RequestAnswerer, "_continuation", lambda self, prompt, text: answers[text])
    requests = [dataclasses.replace(request, wanted=str(i)) for i, request in enumerate(requests)]
    found = RequestAnswerer(model, inputs, PRUNED, batch_size=4).likelihoods(requests)
    assert [value.logprob for value in found] == pytest.approx(expected, abs=1e-3)
    assert all(value.greedy for value in found)
    dense = RequestAnswerer(model, inputs, None, batch_size=4).likelihoods(requests)
    assert max(abs(a.logprob - b.logprob) for a, b in zip(found, dense, strict=True)) > 0.01  # pruning was at work


def test_pruned_likelihoods_do_not_depend_on_the_batch(loaded, images):
    model, inputs = loaded
    if are_refused(model, inputs, asked_likelihoods(images)):
        return
    requests = asked_likelihoods(images)
    together = RequestAnswerer(model, inputs, PRUNED, batch_size=7).likelihoods(requests)
    alone = [RequestAnswerer(model, inputs, PRUNED).likelihoods([request])[0] for request in requests]
    assert [a.logprob for a in together] == pytest.approx([b.logprob for b in alone], abs=1e-4)
    assert [(a.tokens, a.greedy) for a in together] == [(b.tokens, b.greedy) for b in alone]


def test_requests_of_different_settings_are_answered_as_if_alone(original, images, monkeypatch):
    _, model, inputs = original
    kinds = [GREEDY, decoding_of({"max_new_tokens": 2}), decoding_of({"max_new_tokens": 6, "num_beams": 3})]
    requests = [dataclasses.replace(request, wanted=kinds[i % 3]) for i, request in enumerate(asked(images))]
    asker = RequestAnswerer(model, inputs, PRUNED, batch_size=3)
    answers = asker.generate(requests)
    assert len(set(answers)) > 3
    assert answers == [RequestAnswerer(model, inputs, PRUNED).generate([request])[0] for request in requests]
    assert asker.costs.questions == len(requests)
    written = widths(inputs, monkeypatch)
    asker.generate(requests)
    assert sorted(written) == [2] * 3 + [6] * 7


def test_an_answer_ends_before_its_stop_string_and_is_not_written_further(original, images, monkeypatch):
    _, model, inputs = original
    long = decoding_of({"max_new_tokens": 24})
    [whole] = RequestAnswerer(model, inputs).generate([dataclasses.replace(asked(images)[0], wanted=long)])
    word = whole[len(whole) // 3 : len(whole) // 3 + 2]
    until = dataclasses.replace(long, until=(word, "never"))
    written = widths(inputs, monkeypatch)
    [short] = RequestAnswerer(model, inputs).generate([dataclasses.replace(asked(images)[0], wanted=until)])
    assert short == cut(whole, [word]).strip() != whole
    assert written[0] < 24


def test_stop_strings_of_one_sample_do_not_stop_another_and_the_prompt_does_not_count(original):
    _, _, inputs = original
    tokenizer = inputs.tokenizer
    prompt, yes, no = (tokenizer(text, add_special_tokens=False).input_ids for text in ("blue blue", "blue", "left"))
    width = min(len(yes), len(no))
    stop = UntilCriteria(["blue"], tokenizer)
    for step in range(1, max(len(yes), len(no)) + 1):
        rows = [prompt + (row + [0] * 9)[:step] for row in (yes, no)]
        found = stop(torch.tensor(rows), None).tolist()
        assert not found[1] and found[0] == (step >= len(yes)), step
    assert width > 0


def test_a_prompt_that_requests_share_is_read_once(original, images):
    _, model, inputs = original
    reads = []

    def read():
        reads.append(1)
        return of_text("What is it?", [Image.open(images / "a.png")])

    requests = [Request("t/test/0", ("t", 0), read, text) for text in CONTINUATIONS]
    assert len(RequestAnswerer(model, inputs, PRUNED, 4).likelihoods(requests)) == 4
    assert len(reads) == 1


@pytest.mark.parametrize("config", [None, PRUNED], ids=["dense", "pruned"])
@pytest.mark.parametrize("ask", ["generate", "likelihoods"])
def test_what_requests_about_an_image_share_is_read_once_and_changes_nothing(loaded, images, monkeypatch, config, ask):
    model, inputs = loaded
    requests = asked(images) if ask == "generate" else asked_likelihoods(images)
    if ask == "likelihoods" and are_refused(model, inputs, requests):
        return
    looked, see = [], inputs.encode_images
    monkeypatch.setattr(
        inputs, "encode_images", lambda model, pictures: looked.extend(pictures) or see(model, pictures)
    )
    sharing = RequestAnswerer(model, inputs, config, batch_size=2)
    found = getattr(sharing, ask)(requests)
    shown = {row["image"] for i, row in enumerate(questions()) if i % 3 != 1 and i < (10 if ask == "generate" else 3)}
    assert len(looked) == len(shown)
    alone = RequestAnswerer(model, inputs, config, batch_size=2, prefix_cache=None)
    expected = getattr(alone, ask)(requests)
    if ask == "generate":
        assert found == expected
    else:
        assert [a.logprob for a in found] == pytest.approx([b.logprob for b in expected], abs=1e-4)
    assert alone.reused.prompts == 0 and sharing.costs == alone.costs
    if model.config.model_type == "qwen3_5":  # recurrent layers keep no state per token
        assert sharing.reused.prompts == 0
    else:
        assert sharing.reused.found >= 4 and sharing.reused.share > 0.1


def test_no_more_than_a_windows_images_are_held(original, images, monkeypatch):
    """Requests are read as they are answered, not all before the first."""
    _, model, inputs = original
    monkeypatch.setattr(answering, "WINDOW", 2)
    events = []
    requests = [
        dataclasses.replace(request, read=lambda read=request.read: events.append("read") or read())
        for request in asked(images)
    ]
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda *ids, **kwargs: events.append("answer") or generate(*ids, **kwargs))
    RequestAnswerer(model, inputs, None, batch_size=2).generate(requests)
    assert events.index("answer") == 4 and events.count("read") == 10


class TestErrors:
    """Whatever goes wrong names the request, and nothing is answered in its place."""

    def test_a_question_that_cannot_be_read(self, original, images):
        _, model, inputs = original
        requests = asked(images)
        requests[3] = dataclasses.replace(requests[3], read=lambda: of_text("?", ["missing.png"]))
        with pytest.raises(RequestError, match=r"^task/test/3: ValueError: image 'missing.png': no s") as caught:
            RequestAnswerer(model, inputs, None, 4).generate(requests)
        assert isinstance(caught.value.__cause__, ValueError)

    def test_a_prompt_that_is_too_long(self, original, images, monkeypatch):
        _, model, inputs = original
        monkeypatch.setattr(inputs, "limit", 300)
        requests = [*asked(images)[:2], Request("task/test/long", 1, lambda: of_text("blue " * 200, []), GREEDY)]
        with pytest.raises(RequestError, match=r"^task/test/long: the prompt has \d+ tokens, the model takes 300$"):
            RequestAnswerer(model, inputs, None, 4).generate(requests)

    def test_a_model_that_fails_names_its_batch(self, original, images, monkeypatch):
        _, model, inputs = original

        def fail(*ids, **kwargs):
            raise torch.OutOfMemoryError("out of memory")

        monkeypatch.setattr(model, "generate", fail)
        with pytest.raises(RequestError, match="^task/test/0, task/test/2: OutOfMemoryError: out of memory"):
            requests = asked(images)
            RequestAnswerer(model, inputs, PRUNED, 2).generate([requests[2], requests[0]])
        with prune(model, PRUNED):  # and the model is whole again
            pass

    def test_an_empty_continuation(self, original, images):
        _, model, inputs = original
        with pytest.raises(RequestError, match=r"^task/test/0: ValueError: the continuation '' is empty"):
            RequestAnswerer(model, inputs).likelihoods([dataclasses.replace(asked(images)[0], wanted="")])

    def test_pruning_that_did_not_happen(self, original, images, monkeypatch):
        _, model, inputs = original
        answered = model.generate(torch.tensor([[1, 5]]), max_new_tokens=1)
        monkeypatch.setattr(model, "generate", lambda *ids, **kwargs: answered)
        with pytest.raises(RequestError, match="1 prompts with 1 beams left 0 traces"):
            RequestAnswerer(model, inputs, PRUNED).generate(asked(images)[:1])

    def test_a_question_that_holds_an_image_marker(self, original):
        _, model, inputs = original
        request = Request("t/test/0", 0, lambda: Conversation([Turn("What is <image>?")], []), GREEDY)
        with pytest.raises(RequestError, match="^t/test/0: ValueError: the text holds <image>"):
            RequestAnswerer(model, inputs).generate([request])

    def test_a_batch_of_none(self, original):
        with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
            RequestAnswerer(original[1], original[2], None, 0)


def prompt(length, *images):
    return answering.Prompt("", [0] * length, images, (len(images), length))


class TestBatches:
    def test_without_common_images_batches_are_of_similar_lengths(self):
        batches, shares = answering.arrange([prompt(9, 1), prompt(2, 2), prompt(8, 3), prompt(3), prompt(1, 4)], 2)
        assert batches == [[3, 4], [1, 2], [0]] and not shares

    def test_requests_about_an_image_follow_each_other(self):
        prompts = [prompt(9, 1), prompt(2, 2), prompt(8, 3), prompt(3, 1), prompt(1, 2), prompt(7, 1)]
        assert answering.arrange(prompts, 2) == ([[3, 5], [0, 4], [1, 2]], True)

    def test_an_image_shown_twice_in_one_question_is_not_shared(self):
        assert answering.arrange([prompt(1, 1, 1), prompt(1, 2)], 1) == ([[1], [0]], False)

    @pytest.mark.parametrize(
        "other",
        [
            ProcessedImage({"pixels": np.ones((4, 1), np.float32)}, []),
            ProcessedImage({"pixels": np.ones((2, 2), np.int32).view(np.float32)}, []),
            ProcessedImage({"pixels": np.ones((2, 2), np.float32)}, [7]),
            ProcessedImage({"pixel": np.ones((2, 2), np.float32)}, []),
            ProcessedImage({"pixels": np.ones((2, 2), np.float32), "sizes": np.ones(1)}, []),
        ],
    )
    def test_images_that_differ_in_anything_are_two(self, other):
        one, same = (ProcessedImage({"pixels": np.ones((2, 2), np.float32)}, []) for _ in range(2))
        assert answering.content_key(one) == answering.content_key(same) != answering.content_key(other)
