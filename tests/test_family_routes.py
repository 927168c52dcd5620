"""Every route into a model: a prompt with visual tokens is pruned or refused, never silently dense."""

import inspect

import pytest
import torch
import transformers as hf
from family_case import IMAGE, VIDEO, Batch
from family_models import CASES, batch_of, clip, llama, llava_media

from llava.model.pruning import prune

DROP = {"mode": ["deep"], "mid_deep_layer": 3}
LAYOUT = {kind: [n for n, case in CASES.items() if case.layout == kind] for kind in ("placeholders", "markers", "bare")}
VIDEOS = [name for name, case in CASES.items() if any("v" in word for word in case.prompts)]


@pytest.fixture(autouse=True)
def nothing_left_behind():
    yield
    for case in CASES.values():
        if "model" in vars(case):
            assert "forward" not in vars(case.decoder)
            assert not getattr(case.model.model, "_forward_pre_hooks", None)


def refused(name, batch, message, call):
    with CASES[name].prune(DROP, batch), pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", LAYOUT["placeholders"])
def test_images_without_placeholders(name):
    """Pixels to forward and to generate, and features that were computed before."""
    model, batch = CASES[name].model, batch_of(name)
    wrong = {**batch.inputs, "input_ids": torch.where(batch.visual, 5, batch.ids)}
    refused(name, batch, f"no placeholder .*{IMAGE}", lambda: model(**wrong))
    refused(name, batch, f"no placeholder .*{IMAGE}", lambda: model.model(**wrong))
    refused(name, batch, f"no placeholder .*{IMAGE}", lambda: model.generate(**wrong, max_new_tokens=2))
    encode = model.base_model.get_image_features
    given = {key: batch.inputs[key] for key in inspect.signature(encode).parameters if key in batch.inputs}
    features = {"image": encode(**given, return_dict=True)}
    ids = {"input_ids": wrong["input_ids"], "attention_mask": batch.attention_mask}
    refused(name, batch, "no placeholder", lambda: model(**ids, mm_encoder_outputs=features))


@pytest.mark.parametrize("name", VIDEOS)
def test_videos_without_placeholders(name):
    model, batch = CASES[name].model, Batch(CASES[name], "ttvtt")
    wrong = {**batch.inputs, "input_ids": torch.where(batch.visual, 5, batch.ids)}
    refused(name, batch, f"no placeholder .*{VIDEO}", lambda: model(**wrong))
    refused(name, batch, f"no placeholder .*{VIDEO}", lambda: model.generate(**wrong, max_new_tokens=2))


@pytest.mark.parametrize("name", VIDEOS)
def test_video_frames_are_visual_with_and_without_images(name):
    case, batch = CASES[name], Batch(CASES[name], "ttvtt", "ivttt", "vvtt", "ttt")
    with case.prune(DROP, batch) as session:
        case.model(**batch.inputs)
    assert (batch.ids == VIDEO).sum() > 0
    for row, trace in enumerate(session.traces):
        text, visual = batch.lengths[row] - int(batch.visual[row].sum()), int(batch.visual[row].sum())
        assert trace.tokens_per_layer == [text + visual] * 3 + [text] * 3


@pytest.mark.parametrize("name", LAYOUT["placeholders"] + LAYOUT["markers"])
def test_embeddings_that_do_not_tell_their_visual_tokens(name):
    """Embeddings alone, and for placeholders together with pixels, which transformers would match by value."""
    case, batch = CASES[name], batch_of(name)
    embeds = case.model.get_input_embeddings()(batch.ids)
    inputs = {"inputs_embeds": embeds, "attention_mask": batch.attention_mask}
    case.model.model.rope_deltas = None  # Qwen2-VL's survive a call, with its batch
    refused(name, batch, "no visual mask reached the decoder", lambda: case.model(**inputs))
    if case.layout == "markers":
        refused(name, batch, "generate makes inputs_embeds", lambda: case.model.generate(**inputs, max_new_tokens=2))
        return
    if "inputs_embeds" in inspect.signature(case.model.prepare_inputs_for_generation).parameters:  # not Gemma 3
        refused(name, batch, "no visual mask reached", lambda: case.model.generate(**inputs, max_new_tokens=2))
    with_pixels = {key: value for key, value in batch.inputs.items() if key != "input_ids"} | inputs
    if "mm_token_type_ids" not in with_pixels:  # Qwen2-VL itself asks for ids
        refused(name, batch, "no visual mask reached", lambda: case.model(**with_pixels))


@pytest.mark.parametrize("name", LAYOUT["placeholders"] + LAYOUT["markers"])
def test_embeddings_with_the_callers_mask_are_pruned(name):
    case, batch = CASES[name], batch_of(name)
    embeds = case.model.get_input_embeddings()(batch.ids)
    with prune(case.model, DROP, batch.visual) as session:
        case.model(inputs_embeds=embeds, attention_mask=batch.attention_mask, position_ids=batch.positions(case))
    assert [trace.visual_tokens for trace in session.traces] == batch.visual.sum(1).tolist()
    assert all(trace.visual_per_layer[3:] == [0] * 3 for trace in session.traces)


@pytest.mark.parametrize("name", LAYOUT["markers"])
def test_images_of_llava_without_markers(name):
    case, batch = CASES[name], batch_of(name)
    ids = {"input_ids": torch.full((1, 5), 7)}
    features = list(case.model.encode_images(batch.inputs["images"]))
    for media in ({"images": batch.inputs["images"]}, {"image_features": features}):
        refused(name, batch, "0 <image> markers", lambda media=media: case.model(**ids, **media))
        refused(name, batch, "0 <image> markers", lambda media=media: case.model.generate(**ids, **media))


@pytest.mark.parametrize("name", LAYOUT["bare"])
def test_a_bare_decoder_needs_a_mask_of_its_prompts(name):
    case, batch = CASES[name], batch_of(name)
    with pytest.raises(ValueError, match="does not know which tokens are visual"):
        prune(case.model, DROP)
    other = batch_of(name, "ittt")
    refused(name, other, "visual_mask is for prompts of shape", lambda: case.model(**batch.inputs))


@pytest.mark.parametrize("name", LAYOUT["placeholders"] + LAYOUT["markers"])
def test_an_image_after_a_pruned_prompt_is_refused(name):
    case, batch = CASES[name], batch_of(name, "ttitt")
    message = "must come with the first tokens" if case.layout == "markers" else "an image in the middle of a pruned"
    with case.prune(DROP, batch):
        output = case.model(**batch.inputs)
        with pytest.raises(ValueError, match=message):
            case.model(**{**batch.inputs, "attention_mask": None}, past_key_values=output.past_key_values)


def test_a_model_without_a_page_is_pruned_as_its_decoder_is():
    """`prune` finds the decoder and the placeholders of any model; the decoder alone takes a mask."""
    torch.manual_seed(0)
    config = hf.VipLlavaConfig(
        vision_config=clip(), text_config=llama(), image_token_index=IMAGE, vision_feature_layers=[-2, -3]
    )
    model = hf.VipLlavaForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = None
    inputs = {"input_ids": torch.tensor([[5, 6, *[IMAGE] * 16, 7, 8]])}
    inputs["pixel_values"] = llava_media(model, "i", torch.Generator().manual_seed(0))[1]["pixel_values"]
    mask = inputs["input_ids"] == IMAGE
    expected = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    with prune(model.model.language_model, {"mode": []}, mask):
        assert model.generate(**inputs, max_new_tokens=4, do_sample=False).tolist() == expected.tolist()
    answers = []
    for session in (prune(model.model.language_model, DROP, mask), prune(model, DROP)):
        with session:
            answers.append(model.generate(**inputs, max_new_tokens=4, do_sample=False).tolist())
        assert session.traces[0].tokens_per_layer == [20] * 3 + [4] * 3
    assert answers[0] == answers[1]
