"""The prefix cache changes nothing: the same decisions, logits and tokens in every family, under every method."""

import dataclasses
from functools import lru_cache

import pytest
import torch
from family_case import Batch, pad_left
from family_models import CASES
from method_examples import EXAMPLES
from reuse_fixtures import decisions

from llava.model.pruning import PruningConfig, prune
from llava.model.pruning.methods.visipruner import PRESETS

NEW = 2
METHODS = {name: example for name, example in EXAMPLES.items() if name != "visipruner"} | {
    f"visipruner {preset}": EXAMPLES["visipruner"] | {"preset": preset} for preset in PRESETS
}
MORE = {
    "visipruner half": EXAMPLES["visipruner"] | {"preset": "released", "first_layer": "half"},
    "visipruner late sink": EXAMPLES["visipruner"] | {"sink_token": 5},
    "dense": {"method": "none"},
    "schedule frozen": {"method": "schedule", "frozen": True, "read": [0, 2, 3], "system": "zero"},
    "schedule that keeps all": {"method": "schedule", "enter": 2, "rank": "influence", "keep": {"4": 4}},
    "mask attended": {"method": "mask", "layers": [1, 3], "attended": "top", "share": 0.3},
    "attention_topk visual": {"method": "attention_topk", "layer": 2, "keep": 4, "rank": "visual"},
    "noise": {"method": "disturb", "layer": 2, "count": 4},
    "pyramiddrop compact": {"method": "pyramiddrop", "positions": "compact"},
    "divprune compact": {"method": "fastv", "before": {"method": "divprune", "share": 0.6, "positions": "compact"}},
}
HYBRID = ("qwen3_5", "lfm2_vl")


def reads_encoder(method: str) -> bool:
    """Whether a method reads the image encoder: those do it alike, and most families refuse (tests/test_matrix.py)."""
    return bool(PruningConfig.from_dict(METHODS[method]).reads_vision)


PREFIX = ("paligemma", "paligemma2")  # whose prefix depends on the question
PATCHWISE = ("llava original", "llava")  # a CLIP tower whose patches are the visual tokens, for methods that read it
MATRIX = [
    (name, config)
    for name in CASES
    if name not in (*HYBRID, *PREFIX)
    for config in METHODS
    if not PruningConfig.from_dict(METHODS[config]).no_reuse
    if not reads_encoder(config) or (config in ("visionzip", "vispruner") and name in PATCHWISE)
]
SOME = ("llava original", "llava_next", "internvl qwen3")


@lru_cache(maxsize=64)
def beginning(name: str, word: str) -> Batch:
    """The prompt that a word spells, alone; what questions are put after."""
    return Batch(CASES[name], word)


@lru_cache(maxsize=64)
def seen(name: str, word: str) -> list:
    """Features of a word's images, looked at once: a tower that sees a batch rounds otherwise."""
    return list(CASES[name].model.encode_images(beginning(name, word).inputs["images"]))


def questions(*lengths: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, 90, (length,), generator=generator).tolist() for length in lengths]


def asked(name: str, word: str, *texts: list[int], pixels: bool = False) -> dict:
    """Keywords of `generate` for the questions about what a word spells, as one left-padded batch."""
    case, start = CASES[name], beginning(name, word)
    media = {key: value for key, value in start.inputs.items() if "pixel" in key or key[:6] in ("image_", "video_")}
    inputs = {key: torch.cat([value] * len(texts)) for key, value in media.items()}
    if case.layout == "bare":
        embed = case.model.get_input_embeddings()
        rows = [torch.cat((start.inputs["inputs_embeds"][0], embed(torch.tensor(text)))) for text in texts]
        return {"inputs_embeds": torch.stack(rows), "attention_mask": torch.ones(len(texts), len(rows[0])).long()}
    ids = start.inputs["input_ids"][0].tolist()
    if case.layout == "markers" and pixels:
        inputs["images"] = torch.cat([start.inputs["images"]] * len(texts))
    elif case.layout == "markers":
        inputs["image_features"] = [*seen(name, word)] * len(texts)
    inputs |= zip(("input_ids", "attention_mask"), pad_left([ids + text for text in texts]), strict=True)
    if case.token_types is not None:
        inputs["token_type_ids"] = case.token_types(inputs["input_ids"])
    if "mm_token_type_ids" in start.inputs:
        kinds = start.inputs["mm_token_type_ids"][0].tolist()
        inputs["mm_token_type_ids"] = pad_left([kinds + [0] * len(text) for text in texts])[0]
    return inputs


def session_of(name: str, config, word: str, length: int, **reuse):
    """A session; a bare decoder gets the mask of prompts with questions of one length."""
    mask = None
    if CASES[name].layout == "bare":
        visual = beginning(name, word).visual
        mask = torch.cat((visual, torch.zeros(1, length, dtype=torch.bool)), 1)
    return prune(CASES[name].model, config, mask, **reuse)


def answers(name, config, word, batches, **reuse):
    """Ask batch after batch in one session: (session, tokens and logits of each batch)."""
    found = []
    with session_of(name, config, word, len(batches[0][0]), **reuse) as session:
        for batch in batches:
            output = CASES[name].model.generate(
                **asked(name, word, *batch, pixels=any(stage.reads_vision for stage in session.config.stages)),
                max_new_tokens=NEW,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
            found.append((output.sequences[:, -NEW:], torch.stack(output.logits)))
        return session, found, session.prefix_cache and dataclasses.replace(session.prefix_cache.reused)


def agree(name, config, word, batches, **reuse):
    plain, expected, _ = answers(name, config, word, batches)
    session, found, reused = answers(name, config, word, batches, prefix_cache=True, **reuse)
    assert [decisions(trace) for trace in session.traces] == [decisions(trace) for trace in plain.traces]
    for (tokens, logits), (their_tokens, their_logits) in zip(found, expected, strict=True):
        assert (logits - their_logits).abs().max() < 1e-4
        assert tokens.tolist() == their_tokens.tolist()
    return session, reused


def batches_for(name):
    """A question alone, another, and three of different lengths at once (of one length for a bare decoder)."""
    first, second, *three = questions(4, 4, *((4, 4, 4) if CASES[name].layout == "bare" else (5, 3, 4)))
    return [[first], [second], three]


@pytest.mark.parametrize(("name", "method"), MATRIX)
def test_reuse_does_not_show(name, method):
    _, reused = agree(name, METHODS[method], "ttti", batches_for(name))
    assert reused.prompts == 5 and reused.run < reused.rows
    if CASES[name].layout != "placeholders" and not reads_encoder(method):
        assert reused.found == 4
    assert reused.found >= 3  # a tower inside the prefill may round one image of a batch otherwise than it alone


@pytest.mark.parametrize("word", ["i", "ttti", "tittj"])
@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("variant", MORE)
def test_reuse_does_not_show_where_rows_of_the_prefix_matter(name, variant, word):
    """Text between images, none before them; methods that read, move or rewrite rows of the prefix."""
    _, reused = agree(name, MORE[variant], word, batches_for(name))
    assert reused.found >= 3


@pytest.mark.parametrize("name", ["qwen2_vl", "llava_onevision"])
@pytest.mark.parametrize("method", ["visipruner paper", "none"])
def test_videos_are_prefixes_too(name, method):
    agree(name, METHODS[method], "tvtit", batches_for(name))


@pytest.mark.parametrize("name", ["llava original", "internvl llama"])
def test_text_before_a_sink_in_the_second_image(name):
    """Text between the images merges into the last visual token it sees, text after them into the sink."""
    agree(name, EXAMPLES["visipruner"] | {"sink_token": 17}, "tittj", batches_for(name))


@pytest.mark.parametrize("name", HYBRID)
def test_recurrent_layers_keep_no_prefix(name):
    with pytest.warns(UserWarning, match="prefix cache is not used: the recurrent layers of .* keep no state"):
        assert CASES[name].prune(METHODS["fastv"], beginning(name, "ttitt"), prefix_cache=True).prefix_cache is None


@pytest.mark.parametrize("name", PREFIX)
def test_a_prefix_that_depends_on_the_question_is_not_reused(name):
    with pytest.warns(UserWarning, match="reads image and question as one prefix"):
        session = CASES[name].prune({"mode": []}, beginning(name, "itt"), prefix_cache=True)
    assert session.prefix_cache is None
