"""Methods that read the image encoder against slow readings of it: CLIP, SigLIP, InternVL and Qwen towers."""

import family_models
import numpy as np
import pytest
import torch
import transformers as hf
from family_models import CASES, Case, batch_of, fields

from llava.model.pruning import PruningConfig, prune
from llava.model.pruning.methods.prumerge import outliers, spaced
from llava.model.pruning.methods.vispruner import unlike


def siglip():
    vision = hf.SiglipVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, image_size=16, patch_size=4
    )
    config = hf.LlavaConfig(
        vision_config=vision,
        text_config=hf.LlamaConfig(**fields()),
        image_token_index=family_models.IMAGE,
        vision_feature_select_strategy="full",
        vision_feature_layer=-2,
    )
    return hf.LlavaForConditionalGeneration(config)


MORE = CASES | {"siglip": Case(siglip, family_models.llava_media)}
TOWERS = ("llava original", "llava", "siglip", "internvl llama", "qwen2_vl", "qwen2_5_vl")


class Seen:
    """One image: attention that its visual tokens receive, by layer and kind of rows, features and visual tokens."""

    def __init__(self, weights, features, tokens, members, class_token, width):
        self.weights, self.features, self.tokens = weights, features, tokens
        self.members, self.class_token, self.width = members, class_token, width

    def attention(self, layer: int, everyone: bool = False) -> list[float]:
        """Mean over heads of the class token's row, or over all rows."""
        mean = self.weights[layer].mean(0)
        row = mean[0] if self.class_token and not everyone else mean.mean(0)
        row = row[1:] if self.class_token else row
        return [float(torch.stack([row[patch] for patch in own]).mean()) for own in self.members]


def seen(name) -> list[Seen]:
    """The images of the case's prompt with two images of different size, read slowly, in eager attention."""
    model, batch = MORE[name].model, Batch_of(name)
    if name.startswith("qwen"):
        return qwen(model, batch.inputs)
    tower = model.get_vision_tower().vision_tower if name == "llava original" else model.model.vision_tower
    pixels = batch.inputs.get("images", batch.inputs.get("pixel_values"))
    before = tower.config._attn_implementation
    tower.set_attn_implementation("eager")
    output = tower(pixels, output_attentions=True, output_hidden_states=True)
    tower.set_attn_implementation(before)
    features = output.hidden_states[-1 if name.startswith("internvl") else -2]
    images = []
    if name == "llava original":
        tokens = model.model.mm_projector(features[:, 1:])
    else:
        tokens = model.model.get_image_features(
            pixels,
            vision_feature_layer=model.config.vision_feature_layer,
            vision_feature_select_strategy=model.config.vision_feature_select_strategy,
        ).pooler_output
    for number in range(len(pixels)):
        members = [[patch] for patch in range(16)]
        if name.startswith("internvl"):  # 8 × 8 patches, squares of four make a token
            members = [
                [(2 * a + i) * 8 + 2 * b + j for i in (0, 1) for j in (0, 1)] for a in range(4) for b in range(4)
            ]
        weights = [layer[number] for layer in output.attentions]
        images.append(Seen(weights, features[number], tokens[number], members, name != "siglip", 4))
    return images


def qwen(model, inputs) -> list[Seen]:
    """Every block's attention from its own input, image by image, windows by windows."""
    visual, calls, merged = model.model.visual, [], []
    hooks = [
        block.attn.register_forward_pre_hook(lambda m, args, kwargs: calls.append((m, args, kwargs)), with_kwargs=True)
        for block in visual.blocks
    ]
    hooks.append(visual.merger.register_forward_hook(lambda m, args, output: merged.append(output)))
    grids = inputs["image_grid_thw"]
    pooled = visual(inputs["pixel_values"], grid_thw=grids).pooler_output
    for hook in hooks:
        hook.remove()
    order = [int((merged[0] == row).all(-1).nonzero()[0]) for row in pooled]  # where a token was before it was put back
    layers = []
    for attention, args, kwargs in calls:
        x = args[0] if args else kwargs["hidden_states"]
        q, k, _ = attention.qkv(x).view(len(x), 3, attention.num_heads, -1).unbind(1)
        cos, sin = kwargs["position_embeddings"]

        def turn(part, cos=cos, sin=sin):
            half = part.shape[-1] // 2
            return part * cos[:, None] + torch.cat((-part[..., half:], part[..., :half]), -1) * sin[:, None]

        q, k = turn(q).transpose(0, 1), turn(k).transpose(0, 1)
        weights, ends = torch.zeros(len(q), len(x), len(x)), kwargs["cu_seqlens"].tolist()
        for a, b in zip(ends, ends[1:], strict=False):
            scores = q[:, a:b] @ k[:, a:b].transpose(1, 2) / q.shape[-1] ** 0.5
            weights[:, a:b, a:b] = scores.softmax(-1)
        layers.append(weights)
    images, start = [], 0
    for frames, height, width in grids.tolist():
        count = frames * height * width // 4
        members = [[4 * place + part for part in range(4)] for place in order[start : start + count]]
        images.append(Seen(layers, None, pooled[start : start + count], members, False, width // 2))
        start += count
    return images


def best(scores, count):
    return sorted(range(len(scores)), key=lambda i: -scores[i])[:count]


def cosines(vectors):
    return [[float(torch.cosine_similarity(a, b, dim=0)) for b in vectors] for a in vectors]


def vispruner(image, count, layer, important=0.5):
    attention = image.attention(layer)
    order = best(attention, len(attention))
    first, rest = order[: int(count * important)], order[int(count * important) :]
    vectors = image.tokens if image.features is None else image.features[-len(attention) :]
    if len(image.members[0]) > 1:
        vectors = image.tokens
    alike = cosines(vectors)
    while len(rest) > count - len(first):
        a, b = rest[0::2], rest[1::2]
        a = sorted(a, key=lambda i: -max(alike[i][j] for j in b))
        rest = a[min(8, len(rest) - (count - len(first))) :] + b
    return first + rest


def holov(image, count, layer, crops=16, alpha=0.09):
    attention, alike = image.attention(layer), cosines(image.tokens)
    n = len(attention)
    runs, start = [], 0
    for number in range(min(crops, n)):
        end = start + n // crops + (number < n % crops)
        runs.append(list(range(start, end)))
        start = end
    scores = []
    for run in runs:
        if len(run) == 1:
            scores.append(attention[run[0]])
            continue
        rows = [[0 if i == j else alike[i][j] for j in run] for i in run]
        means = [sum(row) / (len(run) - 1) for row in rows]
        spread = [sum((v - m) ** 2 for v in row) / (len(run) - 1) for row, m in zip(rows, means, strict=True)]
        strong = [1e3 * attention[i] for i in run]
        scale = (sum(strong) / len(run)) / (sum(spread) / len(run) + 1e-6)
        scores.append(sum(s + alpha * v * scale for s, v in zip(strong, spread, strict=True)) / len(run))
    weights = [score / (sum(scores) + 1e-6) for score in scores]
    given = [int(weight * count) for weight in weights]
    for number in best(weights, count - sum(given)):
        given[number] += 1
    kept = [run[i] for run, g in zip(runs, given, strict=True) for i in best([attention[j] for j in run], g)]
    rest = [i for i in best(attention, n) if i not in kept]
    return kept + rest[: count - len(kept)]


def scope(image, count, layer, alpha=1.0):
    attention = image.attention(layer)
    vectors = image.tokens if len(image.members[0]) > 1 else image.features[-len(attention) :]
    alike, kept = cosines(vectors), []
    every = range(len(attention))
    for _ in range(count):
        covered = [max([0.0, *(alike[i][j] for j in kept)]) for i in every]
        gains = {
            j: sum(max(0.0, alike[i][j] - covered[i]) for i in every) * attention[j] ** alpha
            for j in every
            if j not in kept
        }
        kept.append(max(gains, key=gains.__getitem__))
    return kept


def hiprune(image, count, layer, alpha, middle):
    anchors = best(image.attention(middle, everyone=True), min(round(count * alpha / 5), count // 5))
    last = image.attention(layer, everyone=True)
    kept = set()
    for anchor in anchors:
        for step in (0, -1, 1, -image.width, image.width):
            kept.add(min(max(anchor + step, 0), len(last) - 1))
    rest = [i for i in best(last, len(last)) if i not in kept]
    return [*kept, *rest[: count - len(kept)]]


READERS = {
    "vispruner": ({"share": 0.4}, lambda image, n, layer, layers: vispruner(image, n, layer)),
    "holov": ({"share": 0.4, "crops": 5, "alpha": 0.5}, lambda image, n, layer, _: holov(image, n, layer, 5, 0.5)),
    "scope": ({"share": 0.4, "alpha": 0.5}, lambda image, n, layer, layers: scope(image, n, layer, 0.5)),
    "hiprune": (
        {"share": 0.5, "alpha": 0.9, "depth": 0.5},
        lambda image, n, layer, layers: hiprune(image, n, layer, 0.9, max(1, round(0.5 * layers)) - 1),
    ),
}


def Batch_of(name):
    return family_models.Batch(MORE[name], "ttittjttt") if name == "siglip" else batch_of(name, "ttittjttt")


@pytest.fixture(scope="module")
def read():
    """The images of a tower, read once."""
    known = {}
    with torch.no_grad():
        yield lambda name: known.setdefault(name, None) or known.__setitem__(name, seen(name)) or known[name]


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("method", READERS)
@torch.no_grad()
def test_kept_tokens_are_those_of_the_plain_reading(read, method, name):
    settings, reader = READERS[method]
    batch, images = Batch_of(name), read(name)
    with MORE[name].prune({"method": method, **settings}, batch) as session:
        MORE[name].model(**batch.inputs)
    (trace,) = session.traces
    visual = batch.visual[0].nonzero()[:, 0].tolist()
    sizes = [len(image.tokens) for image in images]
    exact = [settings["share"] * size for size in sizes]
    counts = [int(value) for value in exact]
    for number in sorted(range(len(sizes)), key=lambda i: counts[i] - exact[i])[: round(sum(exact)) - sum(counts)]:
        counts[number] += 1
    layers = len(images[0].weights)
    layer = layers - 1 if name.startswith(("internvl", "qwen")) else layers - 2
    expected, start = [], 0
    for image, count, size in zip(images, counts, sizes, strict=True):
        expected += [visual[start + i] for i in reader(image, count, layer, layers)]
        start += size
    assert trace.cuts == [(-1, sorted(expected))]


@torch.no_grad()
@pytest.mark.parametrize("settings", [{"keep": 6}, {"keep": 6, "positions": "compact"}, {}])
def test_prumerge_merges_as_its_plain_reading(settings):
    """Logits of the untouched model on features mixed by hand."""
    model, batch = CASES["llava original"].model, batch_of("llava original", "ttitt")
    tower = model.get_vision_tower().vision_tower
    output = tower(batch.inputs["images"], output_hidden_states=True)
    features, layer = output.hidden_states[-2][0], tower.encoder.layers[-1]
    normed = layer.layer_norm1(features)
    query, keys = layer.self_attn.q_proj(normed), layer.self_attn.k_proj(normed)
    attention = (query[0] @ keys.T / query.shape[1] ** 0.5).softmax(-1)[1:]
    if "keep" in settings:
        order = best(attention.tolist(), 2)
        rest = [i for i in range(16) if i not in order]
        kept = order + [rest[2], rest[7], rest[11]]
    else:
        kept = outliers(attention.numpy()).tolist()
    rows = []
    for patch in kept:
        alike = [float(torch.cosine_similarity(key, keys[1 + patch], dim=0)) for key in keys[1:]]
        near = best([-2 if i == patch else value for i, value in enumerate(alike)], 5)
        rows.append((patch, features[1 + patch] + sum(attention[i] * features[1 + i] for i in near)))
    left = [i for i in range(16) if i not in kept]
    rows.append((left[-1], sum(attention[i] * features[1 + i] for i in left)))
    compact = settings.get("positions") == "compact"
    rows = rows if compact else sorted(rows, key=lambda row: row[0])
    embeds = [*model.model.embed_tokens(batch.ids[0, :2]), *(model.model.mm_projector(x[None])[0] for _, x in rows)]
    embeds += [*model.model.embed_tokens(batch.ids[0, -2:])]
    places = [0, 1, *(2 + place for place, _ in rows), 18, 19]
    positions = torch.arange(len(places)) if compact else torch.tensor(places)
    expected = model(inputs_embeds=torch.stack(embeds)[None], position_ids=positions[None]).logits[0, -1]
    with prune(model, {"method": "prumerge", "neighbours": 5, **settings}) as session:
        logits = model(**batch.inputs).logits[0, -1]
    assert session.traces[0].tokens_per_layer == [len(places)] * 6
    assert (logits - expected).abs().max() < 1e-4


def test_prumerge_takes_outliers_and_patches_between_them():
    """Three of 40 patches lie above Q3 + 1.5 IQR: the step is 13 // 3 = 4, and the last patch is never taken."""
    attention = np.linspace(1, 2, 40).astype(np.float32)
    attention[[5, 8, 21]] = 9, 8, 7
    assert outliers(attention).tolist() == [5, 8, 21, 0, 4, 12, 16, 20, 24, 28, 32, 36]
    assert outliers(np.ones(10, np.float32)).tolist() == [0]
    assert spaced(attention, 5).tolist()[:2] == [5, 8] and len(set(spaced(attention, 40).tolist())) == 40


def test_vispruner_thins_by_rounds_of_eight():
    """With one token like another it goes first; the number asked for is what is left."""
    similarity = np.eye(7, dtype=np.float32)
    similarity[2, 5] = similarity[5, 2] = 0.9
    assert unlike(np.arange(7), similarity, 6).tolist() == [0, 4, 6, 1, 3, 5]
    assert len(unlike(np.arange(7), similarity, 2)) == 2 and not len(unlike(np.arange(7), similarity, 0))


def test_methods_that_mix_features_refuse_towers_whose_tokens_mix_patches():
    for method in ("prumerge", "visionzip"):
        message = (
            f"'{method}' needs an image encoder with a class token and one visual token per patch, which this Qwen2VL"
        )
        with pytest.raises(ValueError, match=message):
            prune(CASES["qwen2_vl"].model, {"method": method})
        with pytest.raises(ValueError, match="one visual token per patch, which this InternVL"):
            prune(CASES["internvl llama"].model, {"method": method})
    with pytest.raises(ValueError, match="decides by measurement how many tokens stay"):
        PruningConfig.from_dict({"method": "prumerge"}).countable(576)


def patchify(video):
    """[frames, 3, H, W] → Qwen's patches: squares of 2 × 2 patches of 4 × 4 pixels of two frames, row after row."""
    rows = []
    for t in range(0, len(video), 2):
        for a in range(0, video.shape[2], 8):
            for b in range(0, video.shape[3], 8):
                for i in (0, 4):
                    for j in (0, 4):
                        rows.append(video[t : t + 2, :, a + i : a + i + 4, b + j : b + j + 4].transpose(0, 1).flatten())
    return torch.stack(rows)


@pytest.mark.parametrize("name", ["llava original", "llava", "siglip", "internvl llama", "qwen2_vl", "qwen2_5_vl"])
@torch.no_grad()
def test_downsample_shows_the_tokens_of_the_smaller_picture(name):
    """One image of 4 × 4 tokens (Qwen 4 × 3) at 2 × 2, by the model's own encoder."""
    model = MORE[name].model
    batch = family_models.Batch(MORE[name], "ttitt")
    with MORE[name].prune({"method": "downsample", "keep": 5}, batch) as session:
        if name.startswith("qwen"):
            picture = torch.randn(2, 3, 32, 24, generator=torch.Generator().manual_seed(3))
            batch.inputs["pixel_values"] = patchify(picture)
        entered = model(**batch.inputs, output_hidden_states=True).hidden_states[0][0]
    (trace,) = session.traces
    count, wide = (12, 3) if name.startswith("qwen") else (16, 4)
    assert trace.visual_tokens == count and trace.visual_per_layer == [4] * 6
    first = batch.visual[0].nonzero()[0].item()
    rows, columns = (1, 3), (0, 2) if wide == 3 else (1, 3)
    assert trace.cuts == [(-1, [first + wide * row + column for row in rows for column in columns])]
    if name.startswith("qwen"):
        small = torch.nn.functional.interpolate(picture, (16, 16), mode="bicubic", antialias=True)
        expected = model.model.visual(patchify(small), grid_thw=torch.tensor([[1, 4, 4]])).pooler_output
    else:
        pixels = batch.inputs.get("images", batch.inputs.get("pixel_values"))
        small = torch.nn.functional.interpolate(pixels, (8, 8), mode="bicubic", antialias=True)
        if name.startswith("internvl"):
            expected = model.model.get_image_features(
                small, vision_feature_layer=-1, vision_feature_select_strategy="default"
            ).pooler_output[0]
        else:
            original = name == "llava original"
            tower = model.get_vision_tower().vision_tower if original else model.model.vision_tower
            states = tower(small, output_hidden_states=True, interpolate_pos_encoding=True).hidden_states[-2]
            project = model.model.mm_projector if original else model.model.multi_modal_projector
            expected = project(states[:, int(name != "siglip") :])[0]
    assert (entered[first : first + 4] - expected).abs().max() < 1e-5


def hooks_of(model):
    return [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]


def test_the_encoder_attends_as_before_when_a_session_ends_and_when_it_fails(monkeypatch):
    model, batch = CASES["llava"].model, batch_of("llava", "ttitt")
    config = model.model.vision_tower.config
    before, hooks = config._attn_implementation, hooks_of(model)
    with pytest.raises(RuntimeError, match="in the layer"), prune(model, {"method": "hiprune", "keep": 3}):
        model(**batch.inputs)

        def fail(*args):
            raise RuntimeError("in the layer")

        monkeypatch.setattr(model.model.vision_tower.encoder.layers[1].mlp, "forward", fail)
        model(**batch.inputs)
    assert config._attn_implementation == before
    assert hooks_of(model) == hooks
