"""Input from lmms-eval: model arguments, generation settings, messages, and argument tuples of requests."""

import json

import pytest
from PIL import Image

from llava import PruningConfig
from llava.eval.lmms_eval import requests as reading
from llava.eval.lmms_eval.arguments import batch_size_of, prefix_cache_of, pruning_of
from llava.eval.lmms_eval.requests import (
    DEFAULT_NEW_TOKENS,
    Likelihood,
    RequestError,
    decoding_of,
    of_messages,
    of_text,
)
from llava.model.inputs import Turn

SETTINGS = {"mode": ["shallow", "middle"], "shallow_mid_layer": 2, "layer_threshold": 0.995, "tokens_threshold": 0.2}
CONFIG = PruningConfig.from_dict(SETTINGS)
PICTURE = Image.new("RGB", (4, 4), "red")
DOCUMENTS = {"t": {"test": [{"q": "What is it?", "a": "blue", "i": PICTURE}, {"q": "Why?", "a": "no", "i": None}]}}


class TestPruning:
    @pytest.mark.parametrize("given", [None, "", "none", "None", "dense", " none "])
    def test_nothing_is_dense(self, given):
        assert pruning_of(given) is None

    @pytest.mark.parametrize("given", [SETTINGS, json.dumps(SETTINGS), f"'{json.dumps(SETTINGS)}'"])
    def test_an_object_or_its_text(self, given):
        assert pruning_of(given) == CONFIG

    def test_a_path_is_refused_with_what_to_write_instead(self, tmp_path):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(SETTINGS, indent=2))
        with pytest.raises(ValueError, match="is a path; lmms-eval would answer from its response cache") as caught:
            pruning_of(str(path))
        advised = str(caught.value).partition("pruning={")[2]
        assert "\n" not in str(caught.value) and " " not in advised
        assert pruning_of("{" + advised) == CONFIG

    def test_a_path_to_nothing_says_so(self):
        with pytest.raises(ValueError, match=r"'missing\.json' cannot be read"):
            pruning_of("missing.json")

    @pytest.mark.parametrize("given", [True, 3, "visipruner"])
    def test_something_else_is_refused(self, given):
        with pytest.raises(ValueError, match="expected a JSON object such as"):
            pruning_of(given)

    def test_mistakes_in_the_object_are_those_of_the_config(self):
        with pytest.raises(ValueError, match="unknown key 'layer_treshold'"):
            pruning_of('{"mode":["middle"],"layer_treshold":0.9}')


@pytest.mark.parametrize("given", ["auto", "0", 0, "-1", "2.5", ""])
def test_a_batch_size_is_a_number_from_1(given):
    assert batch_size_of("8") == batch_size_of(8) == 8
    with pytest.raises(ValueError, match="batch_size must be a number from 1"):
        batch_size_of(given)


def test_the_prefix_cache_in_new_and_older_words():
    default = prefix_cache_of("auto")
    assert default == prefix_cache_of("auto", "true") == 2 << 30
    assert prefix_cache_of("off") is prefix_cache_of("auto", False) is prefix_cache_of("auto", "false", 5) is None
    assert prefix_cache_of("100") == prefix_cache_of("auto", None, "100") == prefix_cache_of(100) == 100


class TestDecoding:
    def test_greedy_by_default(self):
        for given in (None, {}, {"until": None, "temperature": None}):
            how = decoding_of(given)
            assert dict(how.arguments) == {
                "do_sample": False,
                "max_new_tokens": DEFAULT_NEW_TOKENS,
                "num_beams": 1,
                "temperature": None,
                "top_k": None,
                "top_p": None,
            }
            assert how.until == ()

    @pytest.mark.parametrize(
        ("given", "samples"),
        [
            ({"temperature": 0}, False),
            ({"temperature": 0.7}, True),
            ({"temperature": 0.7, "do_sample": False}, False),
            ({"temperature": 0, "do_sample": True}, False),
            ({"do_sample": True}, True),
        ],
    )
    def test_what_samples(self, given, samples):
        arguments = dict(decoding_of(given | {"top_p": 0.9, "top_k": 5}).arguments)
        assert arguments["do_sample"] is samples
        expected = (given.get("temperature", 1.0), 0.9, 5) if samples else (None, None, None)
        assert (arguments["temperature"], arguments["top_p"], arguments["top_k"]) == expected

    def test_lengths_beams_and_stop_strings(self):
        how = decoding_of({"max_new_tokens": 16.0, "num_beams": 3, "until": ["Q:", ""], "repetition_penalty": 1.2})
        arguments = dict(how.arguments)
        assert (arguments["max_new_tokens"], arguments["num_beams"], arguments["repetition_penalty"]) == (16, 3, 1.2)
        assert isinstance(arguments["max_new_tokens"], int) and how.until == ("Q:",)
        assert decoding_of({"until": "\n\n"}).until == ("\n\n",)

    def test_equal_settings_share_batches(self):
        assert decoding_of({"temperature": 0, "max_new_tokens": 9}) == decoding_of({"max_new_tokens": 9})
        assert decoding_of({"image_aspect_ratio": "original"}) == decoding_of({})

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"visual_cot": True}, "has visual_cot; known: do_sample"),
            ({"max_new_tokens": 0}, "max_new_tokens must be a number ≥ 1, got 0"),
            ({"num_beams": "3"}, "num_beams must be a number ≥ 1, got '3'"),
            ({"num_beams": 1.5}, "num_beams must be a whole number, got 1.5"),
            ({"temperature": -1}, "temperature must be a number ≥ 0"),
            ({"until": [1]}, "until must be a string or a list of strings"),
            ({"until": 3}, "until must be a string or a list of strings"),
        ],
    )
    def test_what_cannot_be(self, given, message):
        with pytest.raises(ValueError, match=message):
            decoding_of(given)


def text(value):
    return {"type": "text", "text": value}


def image(value=PICTURE):
    return {"type": "image", "url": value}


def user(*content):
    return {"role": "user", "content": list(content)}


class TestMessages:
    def test_a_question_with_its_images(self):
        found = of_messages([user(image(), image(), text("Which "), text("one?"))])
        assert found.turns == [Turn("Which one?", 2)] and found.media == [PICTURE, PICTURE]

    def test_examples_before_the_question(self):
        examples = [user(image(), text("What?")), {"role": "assistant", "content": "blue"}]
        found = of_messages([*examples, {"role": "user", "content": "And now?"}])
        assert found.turns == [Turn("What?", 1, "blue"), Turn("And now?", 0)] and found.media == [PICTURE]

    def test_a_path_is_opened(self, tmp_path):
        PICTURE.convert("L").save(tmp_path / "a.png")
        assert of_messages([user(image(str(tmp_path / "a.png")))]).media[0].mode == "RGB"

    def test_a_simple_task_has_its_images_first(self):
        assert of_text("Why?", None).turns == [Turn("Why?", 0)]
        assert of_text("Why?", [PICTURE]).turns == [Turn("Why?", 1)]

    @pytest.mark.parametrize(
        ("messages", "message"),
        [
            ([], "does not end with a message of the user"),
            ([user(text("a")), {"role": "assistant", "content": "b"}], "does not end with a message of the user"),
            ([user(text("a")), user(text("b"))], "a message of the user is number 1 of"),
            ([{"role": "system", "content": "Be brief."}, user(text("a"))], "a message of the system is number 0 of"),
            (
                [user(text("a")), {"role": "assistant", "content": [image()]}, user(text("b"))],
                "a message of the assistant with an image is number 1",
            ),
            ([user({"type": "video", "url": "a.mp4"})], "video 'a.mp4': no such file"),
            ([user({"type": "video", "url": PICTURE})], "a video is given as Image: only paths"),
            ([user({"type": "audio", "url": "a.wav"})], "holds 'audio': only text, images and videos"),
            ([user(image(3))], "an image is given as int: only"),
        ],
    )
    def test_what_no_prompt_can_hold(self, messages, message):
        with pytest.raises(ValueError, match=message):
            of_messages(messages)


class TestRequests:
    def test_a_chat_request(self):
        arguments = (
            "ignored",
            lambda row: [user(image(row["i"]), text(row["q"]))],
            {"max_new_tokens": 4},
            0,
            "t",
            "test",
        )
        request = reading.chat_generation(arguments, DOCUMENTS)
        assert request.name == "t/test/0" and request.wanted == decoding_of({"max_new_tokens": 4})
        assert request.read().turns == [Turn("What is it?", 1)]

    def test_a_simple_request(self):
        arguments = ("What is it?", {}, lambda row: [row["i"]], 0, "t", "test")
        request = reading.simple_generation(arguments, DOCUMENTS)
        assert request.read().turns == [Turn("What is it?", 1)] and request.wanted == decoding_of({})

    @pytest.mark.parametrize("continuation", [" blue", lambda row: " " + row["a"]])
    def test_a_likelihood_request(self, continuation):
        arguments = ("What is it?", continuation, lambda row: [row["i"]], 0, "t", "test")
        request = reading.likelihood(arguments, DOCUMENTS)
        assert request.wanted == " blue" and request.read().media == [PICTURE]

    def test_choices_share_a_prompt_and_contexts_do_not(self):
        def key(context, choice):
            return reading.likelihood((context, choice, lambda row: [], 1, "t", "test"), DOCUMENTS).prompt

        assert key("a", " yes") == key("a", " no") != key("b", " yes")

    def test_choices_get_losses_and_targets_log_probabilities(self):
        """lmms-eval chooses the smallest value, but takes the exponential of minus the mean for its perplexity."""
        likely, unlikely = Likelihood(-0.1, 1, True), Likelihood(-3.0, 2, False)
        choice, target = ("a", " yes", None, 0, "t", "test"), ("a", lambda row: "yes", None, 0, "t", "test")
        assert reading.likelihood_result(choice, likely) == (0.1, True)
        assert reading.likelihood_result(choice, unlikely) > reading.likelihood_result(choice, likely)
        assert reading.likelihood_result(target, unlikely) == (-3.0, False)

    def test_settings_that_cannot_be_name_the_request(self):
        arguments = ("", lambda row: [], {"num_beams": 0}, 1, "t", "test")
        with pytest.raises(RequestError, match="^t/test/1: generation_kwargs: num_beams must be"):
            reading.chat_generation(arguments, DOCUMENTS)

    def test_tuples_of_another_length_are_refused(self):
        with pytest.raises(ValueError, match="a request has 2 arguments, 6 are known here: the metric acc_mutual_info"):
            reading.likelihood(("", " yes"), DOCUMENTS)
