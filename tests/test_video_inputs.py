"""Videos as model inputs: prompts, pixels and features are those of the processor called with everything together."""

import inspect
import pickle

import numpy as np
import pytest
import torch
from family_checkpoints import write_family
from PIL import Image
from video_fixtures import moving_square

from llava import load_pretrained_model, prune
from llava.model.inputs import Turn, inputs_for
from llava.model.inputs.processor import ENCODED
from llava.model.videos import Video

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision", "internvl")
AS_IMAGES = ("internvl",)
"""Families that are shown a video as images, with text between them."""
CONVERSATIONS = (
    ([Turn("What moves?", videos=1)], "v"),
    ([Turn("Which is it?", images=1, videos=2)], "iww"),
    ([Turn("And here?", videos=1, answer="red"), Turn("Now?", images=1)], "vi"),
    ([Turn("Is it red?")], ""),
)


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request, tmp_path_factory):
    folder = write_family(tmp_path_factory.mktemp(request.param) / "model", request.param)
    return load_pretrained_model(str(folder), None, "model", device="cpu")


def media(one_length):
    """An image, and videos of six and five frames; LLaVA-OneVision's processor takes equal ones alone."""
    clips = [moving_square(seed, frames) for seed, frames in ((1, 6), (2, 6 if one_length else 5))]
    videos = [Video(clip, tuple(range(0, 2 * len(clip), 2)), 2 * len(clip), 8.0) for clip in clips]
    return {"i": Image.fromarray(moving_square(3)[0]), "v": videos[0], "w": videos[1]}


def about(video):
    return {"total_num_frames": video.total, "fps": video.fps, "frames_indices": list(video.indices)}


def test_a_batch_is_what_the_processor_makes_of_it(loaded):
    tokenizer, model, processor, _ = loaded
    as_images = model.config.model_type in AS_IMAGES
    one_length = model.config.model_type in ("llava_onevision", *AS_IMAGES)
    shown_as = media(one_length)
    inputs = pickle.loads(pickle.dumps(inputs_for(tokenizer, processor, model.config)))
    assert inputs.video_marker == processor.tokenizer.convert_tokens_to_ids(processor.video_token)
    rows = [inputs.encode(turns) for turns, _ in CONVERSATIONS]
    seen = [
        inputs.encode_images(model, [inputs.prepare(shown_as[name]) for name in shown]) for _, shown in CONVERSATIONS
    ]
    batch = inputs.collate(rows, seen, model)
    names = [name for _, shown in CONVERSATIONS for name in shown]
    videos = [shown_as[name] for name in names if name != "i"]
    expected = processor(
        text=[inputs.prompt(turns) for turns, _ in CONVERSATIONS],
        images=[shown_as["i"]] * names.count("i"),
        videos=[video.frames for video in videos],
        video_metadata=[about(video) for video in videos],
        do_sample_frames=False,
        padding=True,
        return_tensors="pt",
    )
    features = batch.pop(ENCODED)
    names = {"image": "pixel_values"} | ({} if as_images else {"video": "pixel_values_videos"})
    pixels = {kind: expected.pop(name) for kind, name in names.items()}
    assert set(batch) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(batch[name], value.to(batch[name].dtype), atol=0, rtol=0)
    assert set(features) == set(names)
    for kind, key in names.items():
        encode = getattr(model.base_model, f"get_{kind}_features")
        more = {name: value for name, value in expected.items() if name in inspect.signature(encode).parameters}
        made = encode(**{key: pixels[kind]}, **more, return_dict=True).pooler_output
        torch.testing.assert_close(features[kind].pooler_output, made if isinstance(made, torch.Tensor) else list(made))
    assert [inputs.length(row, shown) for row, shown in zip(rows, seen, strict=True)] == (
        expected["attention_mask"].sum(-1).tolist()
    )
    markers = torch.tensor([model.config.image_token_id, inputs.video_marker])
    visual = torch.isin(expected["input_ids"], markers)
    assert [sum(one.visual for one in shown) for shown in seen] == visual.sum(-1).tolist()
    arguments = {"do_sample": False, "max_new_tokens": 4, "temperature": None, "top_p": None, "top_k": None}
    own = inputs.new_tokens(model.generate(**inputs.collate(rows, seen, model), **arguments), batch)
    given = dict(expected) | {names[kind]: value for kind, value in pixels.items()}
    raw = model.generate(**given, **arguments)
    assert own.tolist() == raw[:, expected["input_ids"].shape[1] :].tolist()
    for arrays in (given, inputs.collate(rows, seen, model)):
        with prune(model, {"method": "none"}) as session:
            pruned = inputs.new_tokens(model.generate(**arrays, **arguments), batch)
        assert pruned.tolist() == own.tolist()
        if as_images:
            assert not any(trace.frames for trace in session.traces)
            continue
        frames = [[frame[:2] for frame in trace.frames] for trace in session.traces]
        patches = 6 if one_length else 3
        assert frames[0] == [(0, number) for number in range(patches)]
        assert frames[1] == [(0, 0), *((medium, number) for medium in (1, 2) for number in range(patches))]
        assert frames[2] == [*((0, number) for number in range(patches)), (1, 0)] and frames[3] == []


def test_videos_of_different_lengths_answer_as_each_alone(loaded):
    tokenizer, model, processor, _ = loaded
    inputs = inputs_for(tokenizer, processor, model.config)
    shown_as = media(one_length=False)
    rows = [inputs.encode([Turn(f"What moves, {name}?", videos=1)]) for name in "vw"]
    seen = [inputs.encode_images(model, [inputs.prepare(shown_as[name])]) for name in "vw"]
    arguments = {"do_sample": False, "max_new_tokens": 3, "temperature": None, "top_p": None, "top_k": None}
    config = {"method": "random", "layer": 2, "keep": 5}

    def ask(*which):
        batch = inputs.collate([rows[n] for n in which], [seen[n] for n in which], model)
        with prune(model, config) as session:
            tokens = inputs.new_tokens(model.generate(**batch, **arguments), batch)
        return tokens.tolist(), [(trace.frames, trace.kept_per_frame()) for trace in session.traces]

    together, traces = ask(0, 1)
    for n in (0, 1):
        assert ask(n) == ([together[n]], [traces[n]])
    if model.config.model_type in AS_IMAGES:
        return
    frames, kept = traces[1]
    assert len(frames) == (5 if model.config.model_type == "llava_onevision" else 3)
    assert sum(kept) <= 5 and sum(frame.tokens for frame in frames) >= seen[1][0].visual - 1


def test_a_model_without_videos_says_so(tmp_path):
    folder = write_family(tmp_path / "model", "llava_next")
    tokenizer, model, processor, _ = load_pretrained_model(str(folder), None, "model", device="cpu")
    inputs = inputs_for(tokenizer, processor, model.config)
    assert inputs.video_marker is None
    with pytest.raises(ValueError, match="takes no videos"):
        inputs.encode([Turn("What moves?", videos=1)])


def test_time_reaches_the_positions_of_qwen2_5_vl_in_full_precision(tmp_path):
    """Half precision would round the seconds between frames."""
    folder = write_family(tmp_path / "model", "qwen2_5_vl")
    tokenizer, model, processor, _ = load_pretrained_model(
        str(folder), None, "model", device="cpu", dtype=torch.bfloat16
    )
    inputs = inputs_for(tokenizer, processor, model.config)
    video = Video(moving_square(1), (0, 7, 14, 21, 28, 35), 36, 23.976)
    [seen] = inputs.encode_images(model, [inputs.prepare(video)])
    batch = inputs.collate([inputs.encode([Turn("?", videos=1)])], [[seen]], model)
    assert batch["second_per_grid_ts"].dtype == torch.float32
    np.testing.assert_allclose(batch["second_per_grid_ts"].numpy(), 2 / (6 / 36 * 23.976), rtol=1e-6)
