"""VisionZip against a slow reference, and the assignment of the image encoder's states to prompts."""

import pytest
import torch
from llava_fixtures import make_hf_twin, make_model, prompts, vision_config

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.pruning import prune

PATCHES = 49
TOWER = vision_config(image_size=28, patch_size=4)
BATCH = ("ttittt", "titit", "ttt", "itt")


@pytest.fixture(scope="module")
def model():
    return make_model(vision=TOWER)


@torch.no_grad()
def zipped(model, pixels, dominant, contextual, class_token):
    """One image [3, S, S] → [(place, visual token [D])]: dominant tokens, then contextual, after the class token."""
    tower = model.get_vision_tower().vision_tower
    tower.set_attn_implementation("eager")
    output = tower(pixels[None], output_hidden_states=True, output_attentions=True)
    tower.set_attn_implementation("sdpa")
    layer = tower.encoder.layers[-2]
    features = output.hidden_states[-2][0]
    weight = output.attentions[-2][0, :, 0].sum(0)  # [1 + P]
    keys = layer.self_attn.k_proj(layer.layer_norm1(output.hidden_states[-3]))[0].view(1 + PATCHES, 2, 8).mean(1)
    keys = keys / keys.norm(dim=1, keepdim=True)
    strong = sorted((weight[1:].topk(dominant - class_token).indices + 1).tolist())
    rest = [i for i in range(1, 1 + PATCHES) if i not in strong]
    targets = rest[:: max(1, len(rest) // contextual)][:contextual]
    groups = {target: [] for target in targets}
    for i in rest:
        if i not in targets:
            groups[max(targets, key=lambda t: float(keys[i] @ keys[t]))].append(i)
    rows = [(i, features[i]) for i in strong]
    for target, members in groups.items():
        joined = sum(features[i] for i in members) / len(members) if members else 0
        rows.append((target, features[target] + joined))
    if class_token:
        rows.insert(0, (next(i for i in rest if i not in targets), features[0]))
    return [(place - 1, model.model.mm_projector(row[None])[0]) for place, row in rows]


def read_by_hand(model, ids, pixels, settings, compact):
    """Logits of the last token of one prompt whose images were zipped, on the untouched model; and its length."""
    embeds, positions, place, images = [], [], 0, iter(pixels if pixels is not None else [])
    for token in ids.tolist():
        if token != IMAGE_TOKEN_INDEX:
            embeds.append(model.model.embed_tokens.weight[token])
            positions.append(place)
            place += 1
            continue
        rows = zipped(model, next(images), **settings)
        rows = rows if compact else sorted(rows, key=lambda row: row[0])
        embeds += [row for _, row in rows]
        positions += [place + where for where, _ in rows]
        place += PATCHES
    if compact:
        positions = list(range(len(embeds)))
    output = model(inputs_embeds=torch.stack(embeds)[None], position_ids=torch.tensor([positions]))
    return output.logits[0, -1], len(embeds)


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("positions", ["original", "compact"])
@torch.no_grad()
def test_visionzip_agrees_with_its_plain_reading(model, positions, class_token):
    settings = {"dominant": 7, "contextual": 4, "class_token": class_token}
    ids, mask, pixels = prompts(*BATCH)
    with prune(model, {"method": "visionzip", "positions": positions, **settings}) as session:
        output = model(input_ids=ids, attention_mask=mask, images=pixels)
    first = 0
    for row, sketch in enumerate(BATCH):
        images = pixels[first : (first := first + sketch.count("i"))]
        own = ids[row][mask[row].bool()]
        logits, length = read_by_hand(model, own, images, settings, positions == "compact")
        assert session.traces[row].tokens_per_layer == [length] * 3
        assert session.traces[row].prompt_tokens == len(sketch) + sketch.count("i") * (PATCHES - 1)
        assert (output.logits[row, -1] - logits).abs().max() < 1e-4


def test_transformers_own_llava_zips_alike():
    model = make_model()
    twin, (ids, mask, pixels) = make_hf_twin(model), prompts("ttittt", "itt")
    from llava_fixtures import hf_inputs

    config = {"method": "fastv", "k": 1, "before": {"method": "visionzip", "dominant": 2, "contextual": 1}}
    with prune(model, config) as ours:
        expected = model(input_ids=ids, attention_mask=mask, images=pixels).logits[:, -1]
    with prune(twin, config) as theirs:
        found = twin(**hf_inputs(ids, mask, pixels)).logits[:, -1]
    assert (found - expected).abs().max() < 1e-4
    assert [trace.cuts for trace in theirs.traces] == [trace.cuts for trace in ours.traces]
    assert [len(trace.cuts) for trace in ours.traces] == [2, 2]


def test_images_encoded_earlier_in_the_session_are_found_in_any_order(model):
    config = {"method": "visionzip", "dominant": 5, "contextual": 2}
    ids, mask, pixels = prompts("titit", "tit")
    with prune(model, config), torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask, images=pixels).logits[:, -1]
    with prune(model, config), torch.no_grad():
        features = torch.cat([model.encode_images(pixels[2:]), model.encode_images(pixels[:2])])[[1, 2, 0]]
        model.encode_images(torch.randn_like(pixels))
        found = model(input_ids=ids, attention_mask=mask, image_features=list(features)).logits[:, -1]
        beams = model.generate(ids, attention_mask=mask, image_features=list(features), num_beams=2, max_new_tokens=2)
    assert torch.equal(found, expected)
    assert beams.shape == (2, 2)


def test_images_that_were_not_encoded_inside_are_refused_and_nothing_outlives_the_session(model):
    config = {"method": "visionzip", "dominant": 5, "contextual": 2}
    ids, mask, pixels = prompts("tit")
    features = list(model.encode_images(pixels))
    hooks = [len(module._forward_hooks) for module in model.modules()]
    with prune(model, config):
        with pytest.raises(ValueError, match="not of an image that it encoded inside"):
            model(input_ids=ids, attention_mask=mask, image_features=features)
        model.encode_images(pixels)
        model(input_ids=ids, attention_mask=mask, image_features=features)
        assert model(input_ids=ids[:, :1], attention_mask=mask[:, :1]).logits.isfinite().all()  # no image at all
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    with prune(model, config), pytest.raises(ValueError, match="not of an image that it encoded inside"):
        model(input_ids=ids, attention_mask=mask, image_features=features)


def test_images_of_the_present_batch_are_held_however_many_and_the_oldest_others_forgotten(model, monkeypatch):
    from llava.model.pruning import vision

    ids, mask, pixels = prompts("titit", "tit")
    config = {"method": "visionzip", "dominant": 5, "contextual": 2}
    with prune(model, config), torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask, images=pixels).logits
    monkeypatch.setattr(vision, "REMEMBERED", 2)
    with prune(model, config), torch.no_grad():
        assert torch.equal(model(input_ids=ids, attention_mask=mask, images=pixels).logits, expected)
        features = list(model.encode_images(pixels))
        model(input_ids=ids[1:], attention_mask=mask[1:], image_features=features[2:])
        model.encode_images(torch.randn_like(pixels[:2]))
        model(input_ids=ids[1:], attention_mask=mask[1:], image_features=features[2:])  # shown last, and so held
        with pytest.raises(ValueError, match="newest 2 are remembered"):
            model(input_ids=ids[:1], attention_mask=mask[:1], image_features=features[:2])


def test_asking_for_more_tokens_than_patches_is_said(model):
    ids, mask, pixels = prompts("tit")
    with prune(model, {"method": "visionzip"}) as session, pytest.warns(UserWarning, match="is 64, but there are 49"):
        model(input_ids=ids, attention_mask=mask, images=pixels)
    assert session.traces[0].tokens_per_layer == [51] * 3


def test_models_without_such_an_encoder_are_refused_before_they_run(llama):
    with pytest.raises(ValueError, match="in this LlamaForCausalLM; 'cdpruner', 'divprune'"):
        prune(llama, {"method": "none", "before": {"method": "visionzip"}}, torch.ones(1, 5, dtype=torch.bool))


def test_the_evaluation_loader_which_encodes_an_image_once_zips_it_for_every_question(tmp_path):
    from loader_fixtures import Bench, write_images, write_model

    bench = Bench(tmp_path, write_model(tmp_path / "llava-small"), write_images(tmp_path / "images"))
    config = '{"method": "fastv", "k": 1, "before": {"method": "visionzip", "dominant": 2, "contextual": 1}}'
    assert bench.run(pruning_config=config, batch_size=3) == 0
    rows = bench.rows()
    assert len(rows) == 10
    for row in rows:
        tokens, visual = row["metadata"]["prompt_tokens"], row["metadata"]["visual_tokens"]
        assert visual == 4
        assert row["metadata"]["tokens_per_layer"] == [tokens - 1, tokens - 2, tokens - 2]
