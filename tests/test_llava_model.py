"""The LLaVA model against transformers' own, and the rules of images in prompts."""

import pytest
import torch
from llava_fixtures import IMAGE_SIZE, PATCHES, WIDTH, hf_inputs, make_hf_twin, make_model, prompts
from PIL import Image
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from llava.constants import IMAGE_TOKEN_INDEX

MIXED = ("ttitt", "tttttttt", "titttitt", "itt")


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def twin(model):
    return make_hf_twin(model)


@pytest.mark.parametrize("layout", [("ttitttt",), ("ttttt",), ("titti",), MIXED])
@torch.no_grad()
def test_logits_equal_transformers(model, twin, layout):
    ids, mask, images = prompts(*layout)
    ours = model(ids, attention_mask=mask, images=images).logits
    theirs = hf_inputs(ids, mask, images)
    expected = twin(**theirs, position_ids=(theirs["attention_mask"].cumsum(-1) - 1).clamp(min=0)).logits
    real = theirs["attention_mask"].bool()
    assert ours.shape == expected.shape
    torch.testing.assert_close(ours[real], expected[real], atol=1e-4, rtol=0)


@torch.no_grad()
def test_batch_equals_one_by_one_and_shapes_of_images_do_not_matter(model):
    ids, mask, images = prompts(*MIXED)
    together = model(ids, attention_mask=mask, images=list(images)).logits[:, -1]
    used = 0
    for row, (sample, keep) in enumerate(zip(ids, mask.bool(), strict=True)):
        count = int((sample == IMAGE_TOKEN_INDEX).sum())
        alone = model(sample[keep][None], images=images[None, used : used + count] if count else None).logits[:, -1]
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=0)
        used += count


@torch.no_grad()
def test_padding_side_and_precomputed_features_give_the_same_prompt(model):
    ids, mask, images = prompts(*MIXED)
    prompt = model.prepare_prompt(ids, mask, images)
    right = [torch.cat([row[keep], row[~keep]]) for row, keep in zip(ids, mask.bool(), strict=True)]
    features = list(model.encode_images(images))
    assert features[0].shape == (PATCHES, WIDTH)
    other = model.prepare_prompt(torch.stack(right), mask.flip(1), image_features=features)
    for field in ("inputs_embeds", "attention_mask", "position_ids", "visual_mask"):
        torch.testing.assert_close(getattr(prompt, field), getattr(other, field), atol=1e-6, rtol=0)
    assert prompt.visual_mask.dtype == torch.bool and prompt.visual_mask.sum() == PATCHES * len(images)
    assert torch.equal(prompt.inputs_embeds[prompt.visual_mask], torch.cat(features))
    lengths = [len(sketch) + (PATCHES - 1) * sketch.count("i") for sketch in MIXED]
    assert prompt.attention_mask.sum(1).tolist() == lengths
    assert prompt.position_ids[:, -1].tolist() == [length - 1 for length in lengths]


def test_features_may_have_different_lengths(model):
    ids, mask, _ = prompts("titt", "itit")
    features = [torch.randn(count, WIDTH) for count in (3, 1, 5)]
    prompt = model.prepare_prompt(ids, mask, image_features=features)
    assert prompt.attention_mask.sum(1).tolist() == [6, 8]
    assert torch.equal(prompt.inputs_embeds[prompt.visual_mask], torch.cat(features))


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}])
@pytest.mark.parametrize("layout", [("tittt",), ("ttt",), ("ttitt", "tttttttt", "titttt", "itt")])
def test_generate_equals_transformers(model, twin, layout, options):
    ids, mask, images = prompts(*layout)
    options = options | {"max_new_tokens": 6, "do_sample": False}
    ours = model.generate(ids, images=images, attention_mask=mask, **options)
    theirs = hf_inputs(ids, mask, images)
    expected = twin.generate(**theirs, pad_token_id=0, **options)[:, theirs["input_ids"].shape[1] :]
    assert ours.tolist() == expected.tolist()


@pytest.mark.parametrize("beams", [1, 3])
def test_generated_batch_equals_one_by_one_with_several_images_a_sample(model, beams):
    # not against transformers: the beams of 5.17 mix up the images of a sample that has two
    ids, mask, images = prompts(*MIXED)
    options = {"num_beams": beams, "max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    together = model.generate(ids, images=images, attention_mask=mask, **options).tolist()
    used = 0
    for row, (sample, keep) in enumerate(zip(ids, mask.bool(), strict=True)):
        count = int((sample == IMAGE_TOKEN_INDEX).sum())
        pixels = images[used : used + count] if count else None
        assert model.generate(sample[keep][None], images=pixels, **options)[0].tolist() == together[row]
        used += count


def test_sampling_is_reproducible_and_returns_new_tokens_only(model):
    ids, mask, images = prompts(*MIXED)
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(model.generate(ids, images, attention_mask=mask, do_sample=True, temperature=2.0, max_new_tokens=8))
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    assert runs[0].shape[0] == len(MIXED) and runs[0].shape[1] <= 8


def test_visual_mask_reaches_the_decoder_at_prefill_only_and_expanded_over_beams(model, monkeypatch):
    ids, mask, images = prompts("tit", "ttttt")
    seen = []
    original = type(model.model).forward

    def record(self, *args, visual_mask=None, **kwargs):
        seen.append(visual_mask)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(type(model.model), "forward", record)
    model.generate(input_ids=ids, images=images, attention_mask=mask, num_beams=2, max_new_tokens=3, do_sample=False)
    expected = model.prepare_prompt(ids, mask, images).visual_mask.repeat_interleave(2, dim=0)
    assert torch.equal(seen[0], expected)
    assert len(seen) > 1 and all(later is None for later in seen[1:])


def test_streamer_and_stopping_criteria(model):
    class Collect(BaseStreamer):
        def __init__(self):
            self.tokens = []

        def put(self, value):
            self.tokens += value.flatten().tolist()

        def end(self):
            self.tokens.append("end")

    class AfterTwo(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.full((len(input_ids),), input_ids.shape[1] >= 2)

    ids, mask, images = prompts("tittt")
    streamer = Collect()
    out = model.generate(
        ids, images, streamer=streamer, stopping_criteria=[AfterTwo()], do_sample=False, max_new_tokens=9
    )
    assert out.shape == (1, 2)
    assert streamer.tokens == [*out[0].tolist(), "end"]


@pytest.mark.parametrize("given", [0, 1, 3])
def test_marker_count_must_equal_image_count(model, given):
    ids, mask, images = prompts("tit", "itt")
    images = images.repeat(2, 1, 1, 1)[:given] if given else None
    with pytest.raises(ValueError, match=f"2 <image> markers, but {given} images"):
        model.generate(ids, images=images, attention_mask=mask)
    with pytest.raises(ValueError, match=f"2 <image> markers, but {given} images"):
        model(ids, attention_mask=mask, images=images)
    with pytest.raises(ValueError, match=f"2 <image> markers, but {given} images"):
        model.prepare_prompt(ids, mask, image_features=[torch.zeros(1, WIDTH)] * given)


def test_inputs_that_cannot_work_are_refused(model):
    ids, mask, images = prompts("tit")
    cases = [
        (lambda: model.prepare_prompt(ids, mask, images, [images]), "both given"),
        (lambda: model.prepare_prompt(ids, mask, torch.zeros(1, 3, 14, 14)), rf"3, {IMAGE_SIZE}, {IMAGE_SIZE}"),
        (lambda: model.prepare_prompt(ids, mask, [torch.zeros(28, 28)]), r"\[28, 28\]"),
        (lambda: model.prepare_prompt(ids, mask, image_features=[torch.zeros(4, WIDTH + 1)]), f"{WIDTH}"),
        (lambda: model.prepare_prompt(torch.full((1, 130), 5)), "130 tokens with its images, the model takes 128"),
        (lambda: model.prepare_prompt(torch.tensor([[5, 9999]])), "9999"),
        (lambda: model.prepare_prompt(torch.tensor([[5], [6]]), torch.tensor([[1], [0]])), "sample 1 .* empty"),
        (lambda: model.prepare_prompt(torch.tensor([5, 6])), r"expected \[B, L\]"),
        (lambda: model.generate(images=images), "needs inputs"),
        (lambda: model.generate(ids, images, position_ids=ids), "position_ids"),
        (lambda: model(inputs_embeds=torch.zeros(1, 2, WIDTH), images=images), "without input_ids"),
        (
            lambda: model(ids, images=images, labels=ids[:, 1:]),
            r"labels and input_ids .* \[1, 2\] and \[1, 3\]",
        ),
        (lambda: model.generate(ids, images, assistant_model=model), "assistant_model: a draft model reads token ids"),
        (
            lambda: model(ids, past_key_values=model(ids, images=images).past_key_values),
            "images must come with the first tokens of a prompt",
        ),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()


@torch.no_grad()
def test_class_token_is_kept_on_request_and_linear_projector_is_one_matrix():
    model = make_model(mm_vision_select_feature="cls_patch", mm_projector_type="linear")
    images = torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE)
    features = model.encode_images(images)
    assert features.shape == (2, PATCHES + 1, WIDTH)
    assert model.get_vision_tower().num_tokens == PATCHES + 1
    states = model.get_vision_tower().vision_tower(images, output_hidden_states=True).hidden_states
    torch.testing.assert_close(features, model.model.mm_projector(states[-2]))
    assert isinstance(model.model.mm_projector, torch.nn.Linear)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mm_projector_type": "ldpnet"}, "mm_projector_type 'ldpnet'"),
        ({"mm_vision_select_feature": "cls"}, "mm_vision_select_feature 'cls'"),
        ({"mm_vision_select_layer": -5}, "mm_vision_select_layer -5"),
    ],
)
def test_unknown_parts_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        make_model(**change)


def test_generate_with_a_pruning_config_equals_a_session(model):
    from llava import prune

    config = {"mode": ["shallow", "middle", "deep"], "shallow_mid_layer": 1, "layer_threshold": 1.0}
    config |= {"tokens_threshold": 0.5}
    ids, mask, images = prompts(*MIXED)
    options = {"attention_mask": mask, "do_sample": False, "max_new_tokens": 4}
    with prune(model, config) as session:
        inside = model.generate(ids, images, **options)
    assert len(session.traces) == len(MIXED)
    assert torch.equal(model.generate(ids, images, pruning_config=config, **options), inside)
    assert "forward" not in vars(model.model)


def test_pictures_instead_of_tensors_are_refused():
    model = make_model()
    ids, mask, _ = prompts("tit")
    with pytest.raises(ValueError, match="images of type Image: expected tensors, as process_images makes them"):
        model.generate(ids, attention_mask=mask, images=[Image.new("RGB", (28, 28))])


@torch.no_grad()
def test_asking_for_hidden_states_leaves_the_features_of_later_images_alone():
    model = make_model()
    ids, mask, images = prompts("titt")
    before = model.encode_images(images)
    model(ids, attention_mask=mask, images=images, output_hidden_states=True)
    assert torch.equal(model.encode_images(images), before)
