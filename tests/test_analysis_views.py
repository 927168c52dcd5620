"""Image regions of visual tokens, compared with what the tokens depend on; prompts, answers and their figures."""

import numpy as np
import pytest
import torch
from family_checkpoints import FIRST, write_family
from llava_fixtures import make_model, write_checkpoint, write_json
from matplotlib.figure import Figure
from PIL import Image
from scene_fixtures import PATH, QUESTION, SCENE
from transformers import LlamaConfig, LlamaForCausalLM

from llava.analysis import (
    Subject,
    attention_map,
    find_sinks,
    influence_map,
    logit_lens,
    plot_by_layer,
    plot_influence,
    plot_kept,
    plot_over_picture,
    plot_shares,
    plot_tokens,
    plot_values,
    plot_words,
    remove_sinks,
    value_norms,
    value_output,
    view_of,
)
from llava.analysis.arrays import NamedArray
from llava.analysis.lens import Words, captured
from llava.analysis.recording import read
from llava.model.language_model.configuration_llava import read_json
from llava.model.pruning import PruningConfig
from llava.model.pruning.families import family_of

SHOWN = ("vipllava", "qianfan_ocr", "llava_next_video", "video_llama_3")
TINY = "playground/checkpoints/llava-tiny"
ANYRES = {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad"}
ANYRES |= {"image_grid_pinpoints": [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]}
SIZES = ((64, 64), (96, 48), (40, 88))


@pytest.fixture(
    scope="module",
    params=[*FIRST, *SHOWN, "llava-tiny", "llava-v1.6"],
)
def subject(request, tmp_path_factory, pytestconfig):
    if request.param == "llava-tiny":
        return Subject.load(pytestconfig.rootpath / TINY, device="cpu")
    folder = tmp_path_factory.mktemp(request.param) / "llava-model"
    if request.param == "llava-v1.6":
        write_checkpoint(folder, make_model(seed=5, **ANYRES), tower_inside=True)
        limit = {"tokenizer_model_max_length": 256}
        write_json(folder / "config.json", read_json(folder / "config.json") | ANYRES | limit)
    else:
        write_family(folder, request.param)
    return Subject.load(folder, device="cpu")


@pytest.fixture(scope="module")
def tiny(pytestconfig):
    subject = Subject.load(pytestconfig.rootpath / TINY, device="cpu")
    return subject, subject.prompt(PATH, QUESTION)


def embeds(subject: Subject, prompt) -> torch.Tensor:
    """The embeddings [T, D] that enter the decoder."""
    decoder, length = family_of(subject.model).decoder(subject.model), len(prompt.words)
    with captured(decoder, [decoder.layers[0].input_layernorm], range(length)) as states:
        read(subject.model, prompt.inputs)
    return states[0][0]


def spotted(size: tuple[int, int], spot: tuple[float, float] | None) -> Image.Image:
    """A grey picture with a white spot, of an eighth of each side, about a point in shares of them."""
    image = np.full((size[1], size[0], 3), 90, np.uint8)
    if spot is not None:
        x, y, w, h = int(spot[0] * size[0]), int(spot[1] * size[1]), size[0] // 8, size[1] // 8
        image[y - h // 2 : y + h // 2 + 1, x - w // 2 : x + w // 2 + 1] = 255
    return Image.fromarray(image)


@pytest.fixture(scope="module")
def local(subject):
    """The subject with an image encoder that does not mix its patches: a token shows what its own patches see."""
    outputs = ("self_attn.out_proj", "attn.proj", "attention.projection_layer")
    with torch.no_grad():
        mixing = [m for name, m in subject.model.named_modules() if "vis" in name and name.endswith(outputs)]
        weights = [(module.weight.clone(), module.weight.zero_())[0] for module in mixing]
        assert weights
        yield subject
        for module, weight in zip(mixing, weights, strict=True):
            module.weight.copy_(weight)


@pytest.mark.parametrize("size", SIZES)
def test_the_token_that_changes_most_lies_where_the_picture_changed(local, size):
    subject = local
    plain = subject.prompt(spotted(size, None), QUESTION)
    visual = [place for place, word in enumerate(plain.words) if not word]
    before = embeds(subject, plain)
    for spot in ((0.3, 0.3), (0.7, 0.3), (0.3, 0.7), (0.55, 0.6)):
        prompt = subject.prompt(spotted(size, spot), QUESTION)
        change = (embeds(subject, prompt) - before).norm(dim=-1)
        mask = family_mask(subject, prompt)
        assert set(np.flatnonzero(mask)) <= set(visual)
        change = change[torch.from_numpy(mask)]
        for thumbnails in {panel.thumbnail for panel in prompt.view.panels}:
            boxes = {}
            for panel in prompt.view.of(0, thumbnails):
                boxes |= panel.boxes()
            token = max(boxes, key=lambda token: change[token])
            left, top, right, bottom = boxes[token]
            x, y = (right - left) / 2 + 1 / 16, (bottom - top) / 2 + 1 / 16  # half a cell and half a spot
            assert abs((left + right) / 2 - spot[0]) <= x, (spot, boxes[token])
            assert abs((top + bottom) / 2 - spot[1]) <= y, (spot, boxes[token])


def family_mask(subject: Subject, prompt) -> np.ndarray:
    """bool [T]: visual tokens, as the pruning engine tells them."""
    found = attention_map(subject.model, prompt.inputs)[0].labels["token"]
    return np.isin(np.arange(len(prompt.words)), found)


def test_every_visual_token_has_one_place_at_most(subject):
    prompt = subject.prompt(spotted((96, 48), None), QUESTION)
    cells = np.concatenate([panel.cells.ravel() for panel in prompt.view.panels])
    count = int(family_mask(subject, prompt).sum())
    assert len(set(cells.tolist())) == len(cells)
    newlines = count - len(cells)
    assert cells.max() < count
    rows = sum(panel.cells.shape[0] for panel in prompt.view.panels if not panel.thumbnail)
    tiled = subject.model.config.model_type in ("llava_next", "llava_onevision") or prompt.view.panels[0].thumbnail
    assert newlines == (rows if tiled else 0)


def test_an_overlay_needs_a_number_for_every_token(tiny):
    subject, prompt = tiny
    shares = attention_map(subject.model, prompt.inputs)[0].mean("head").at(row=0)
    figure = plot_over_picture(shares, prompt.view)
    assert len(figure.axes) == subject.model.config.num_hidden_layers
    drawn = figure.axes[5].images[1]
    np.testing.assert_array_equal(drawn.get_array(), shares.values[5].reshape(12, 12))
    assert drawn.get_extent() == [0, *prompt.view.pictures[0].size, 0]
    with pytest.raises(ValueError, match="143 numbers were given for 144 cells"):
        plot_over_picture(shares.at(token=range(143)), prompt.view)
    with pytest.raises(ValueError, match=r"expected axes \(token,\)"):
        plot_over_picture(shares.sum("token"), prompt.view)
    with pytest.raises(ValueError, match="no panel of picture 1"):
        plot_over_picture(shares, prompt.view, image=1)


def test_an_unknown_grid_is_named(tiny):
    subject, prompt = tiny
    decoder = LlamaForCausalLM(
        LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    with pytest.raises(ValueError, match="how visual tokens of LlamaForCausalLM lie over a picture is not known"):
        view_of(decoder, subject.inputs, [], [])


def test_words_are_found_in_the_prompt(tiny):
    subject, prompt = tiny
    [place] = prompt.find("sign")
    assert prompt.words[place].strip() == "sign"
    assert prompt.find("written on") == list(range(place - 3, place - 1))
    with pytest.raises(ValueError, match="no tokens of the prompt write 'zebra'"):
        prompt.find("zebra")


def test_the_lens_over_decoding_steps_is_what_generation_saw(tiny):
    subject, prompt = tiny
    answer = subject.answer(prompt)
    assert answer.text == SCENE.sign
    written = subject.continued(prompt, answer.ids)
    steps = [-1 - k for k in range(len(answer.ids), -1, -1)]
    words = logit_lens(subject.model, written.inputs, steps, top=1)[0]
    ends = [*answer.ids, subject.tokenizer.eos_token_id]
    assert words.ids.values[-1, :, 0].tolist() == ends
    out = subject.model.generate(
        **prompt.inputs, max_new_tokens=4, do_sample=False, output_scores=True, return_dict_in_generate=True
    )
    for step, scores in enumerate(out.scores):
        assert words.probabilities.values[-1, step, 0] == pytest.approx(float(scores.softmax(-1).max()), abs=1e-5)
    assert "".join(written.words[-3:]).strip() == SCENE.sign


def test_an_answer_can_be_pruned(tiny, pytestconfig):
    subject, prompt = tiny
    answer = subject.answer(prompt, pytestconfig.rootpath / TINY / "pruning.json")
    assert answer.trace.filter_layer is not None
    assert subject.answer(prompt).trace is None


def test_figures_are_made_without_a_display(tiny, pytestconfig):
    subject, prompt = tiny
    model, inputs, tokenizer = subject.model, prompt.inputs, subject.tokenizer
    config = PruningConfig.of(pytestconfig.rootpath / TINY / "pruning.json")
    words, norms = logit_lens(model, inputs, follow=[7])[0], value_norms(model, inputs)[0]
    found = influence_map(model, inputs, config)[0]
    pruned = [token for token, position in enumerate(found.l2.labels["token"]) if position not in found.trace.kept]
    assert np.isnan(found.l2.values[found.trace.filter_layer + 1, pruned]).all()
    sinks = find_sinks(norms, 2, attention=2, norm=2)
    figures = [
        plot_words(words, tokenizer, token=0),
        plot_words(value_output(model, inputs)[0], tokenizer, rank=0),
        plot_by_layer(words.followed.at(token=0), "probability"),
        plot_values(norms, 2, sinks),
        plot_shares(remove_sinks(model, inputs, sinks)),
        plot_influence(found, config),
        plot_over_picture(found.l2, prompt.view),
        plot_tokens(found.trace),
    ]
    assert all(isinstance(figure, Figure) for figure in figures)
    frames = [patch for patch in plot_kept(found, prompt.view).axes[0].patches if not patch.get_fill()]
    assert len(frames) == len(found.trace.kept)
    with pytest.raises(ValueError, match="no layer filtered visual tokens"):
        plot_kept(influence_map(model, inputs)[0], prompt.view)
    with pytest.raises(ValueError, match="a table has two axes"):
        plot_words(words, tokenizer)
    with pytest.raises(ValueError, match="expected axes"):
        plot_by_layer(found.l2.at(layer=0), "l2")


def test_prompts_that_cannot_be_asked_are_refused(tiny):
    subject, _ = tiny
    with pytest.raises(ValueError, match="'nowhere.png': no such file"):
        subject.prompt("nowhere.png", "What?")
    with pytest.raises(ValueError, match="shorten the question"):
        subject.prompt(None, "What? " * 600)
    assert subject.prompt(None, "What?").view.panels == ()


def test_tokens_that_cannot_be_shown_have_their_names(tiny):
    tokenizer = tiny[0].tokenizer
    names = ["<0x07>", "<0xE2>", "▁red", "</s>"]
    ids = NamedArray(np.array(tokenizer.convert_tokens_to_ids(names)), ("top",))
    assert list(Words(ids, ids, ids).text(tokenizer).values) == ["<0x07>", "<0xE2>", "red", "</s>"]
