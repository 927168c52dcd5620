"""The methods `mask` and `disturb` against a slow reference: one prompt, full attention weights, loops."""

import pytest
import torch
from conftest import Prompts, random_llama
from methods_reading import read
from reference import finish_layer, linear, per_query_head, project, rms_norm

from llava.model.pruning import PruningConfig, prune
from llava.model.pruning.methods import Disturb, Mask

LAYERS = 6
KINDS = ("ttvvvvvvttt", "tvvvtvvvvvtt", "tttt", "vvvvtt")
PLANS = {
    "cross": {"layers": [1, 2]},
    "cross, after the softmax": {"layers": [0, 3], "text": "zero"},
    "half of it": {"layers": [2], "text": "half"},
    "visual rows too": {"layers": [0, 1], "visual": "remove"},
    "visual rows alone": {"layers": [1, 4], "text": "dense", "visual": "remove"},
    "merged in the first": {"layers": [0, 1, 2], "merge_layers": [0]},
    "merged into another": {"layers": [1, 2], "merge_layers": [1, 2], "sink_token": 3},
    "decoding alone": {"layers": [2, 3, 4], "text": "dense", "kv": "none"},
    "the prompt alone": {"layers": [2, 3, 4], "kv": "all"},
    "most attended": {"layers": [0, 2, 3], "attended": "top", "share": 0.3},
    "least attended, visual rows too": {"layers": [1, 2], "attended": "bottom", "share": 0.6, "visual": "remove"},
}


@pytest.fixture(scope="module")
def llama():
    return random_llama(LAYERS, seed=3)


class Reading:
    """A masked prefill, and decoding after it, by the definition of every key."""

    def __init__(self, model, embeds, visual, plan):
        self.model, self.plan = model, {"text": "remove", "visual": "dense", "merge_layers": [], "sink_token": 0} | plan
        self.visual = [bool(flag) for flag in visual[:-1]] + [False]
        self.cache = []
        x, places = embeds, list(range(len(embeds)))
        for layer in range(LAYERS):
            normed = rms_norm(model.model.layers[layer].input_layernorm, x, model.config.rms_norm_eps)
            q, k, v = project(model, layer, normed, places)
            self.hide(layer, q[:, -1], k)
            weights = torch.stack([self.row(layer, i, q[:, i], k) for i in places], dim=1)  # [H, T, T]
            x = finish_layer(model, layer, x, (weights @ per_query_head(model, v)).transpose(0, 1).flatten(1))
            kept = [j for j in places if not self.visual[j] or self.remembers(layer, j)]
            self.cache.append((k[:, kept], v[:, kept]))
        self.logits = linear(model.lm_head, rms_norm(model.model.norm, x[-1:], model.config.rms_norm_eps))[0]
        self.next = len(embeds)

    def hide(self, layer, query, key):
        """Note which visual tokens the text rows of a layer lose."""
        everything = [j for j, is_visual in enumerate(self.visual) if is_visual]
        self.hidden = everything
        if "attended" in self.plan and everything:
            scores = (query[:, None] @ per_query_head(self.model, key).transpose(1, 2))[:, 0] / query.shape[-1] ** 0.5
            received = scores.softmax(-1).mean(0)
            ordered = sorted(everything, key=lambda j: received[j], reverse=self.plan["attended"] == "top")
            self.hidden = ordered[: round(self.plan["share"] * len(everything))]

    def row(self, layer, i, query, key):
        """Attention weights [H, T] of row i."""
        rule = self.plan["visual"] if self.visual[i] else self.plan["text"]
        if not self.visual[i] and layer in self.plan["merge_layers"]:
            rule = "merge"
        if layer not in self.plan["layers"]:
            rule = "dense"
        images = [j for j in range(i + 1) if self.visual[j]]
        everything = [j for j, is_visual in enumerate(self.visual) if is_visual]
        lost = everything if self.visual[i] else self.hidden
        columns = [j for j in range(i + 1) if rule != "remove" or j not in lost] or [i]
        scores = (query[:, None] @ per_query_head(self.model, key).transpose(1, 2))[:, 0] / query.shape[-1] ** 0.5
        weights = torch.zeros(len(query), len(self.visual))
        weights[:, columns] = scores[:, columns].softmax(-1)
        if rule == "zero":
            weights[:, images] = 0
        if rule == "half":
            weights[:, everything[: len(everything) // 2]] = 0
        if rule == "merge" and images:
            mass = weights[:, images].sum(-1)
            weights[:, images] = 0
            sink = everything[self.plan["sink_token"]]
            weights[:, sink if sink in images else images[-1]] = mass
        return weights

    def remembers(self, layer, j):
        """Whether decoding reads visual token j in this layer."""
        if layer not in self.plan["layers"] or self.plan.get("kv") == "all":
            return True
        if self.plan.get("kv") == "none":
            return False
        if layer in self.plan["merge_layers"]:
            return j == [i for i, is_visual in enumerate(self.visual) if is_visual][self.plan["sink_token"]]
        return self.plan["text"] in ("dense", "half") or j not in self.hidden

    def step(self, token):
        """Logits after one more token."""
        model, eps = self.model, self.model.config.rms_norm_eps
        x = model.model.embed_tokens.weight[token][None]
        for layer in range(LAYERS):
            normed = rms_norm(model.model.layers[layer].input_layernorm, x, eps)
            q, k, v = project(model, layer, normed, [self.next])
            key, value = (torch.cat(pair, 1) for pair in zip(self.cache[layer], (k, v), strict=True))
            self.cache[layer] = (key, value)
            weights = (q @ per_query_head(model, key).transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)
            x = finish_layer(model, layer, x, (weights @ per_query_head(model, value)).transpose(0, 1).flatten(1))
        self.next += 1
        return linear(model.lm_head, rms_norm(model.model.norm, x, eps))[0]


@pytest.mark.parametrize("name", PLANS)
@torch.no_grad()
def test_a_mask_is_what_its_keys_say(llama, name):
    plan, prompts = PLANS[name], Prompts(*KINDS)
    with prune(llama, {"method": "mask"} | plan, prompts.visual) as session:
        output = llama(**prompts.inputs, use_cache=True)
        first = output.logits[:, -1]
        steps = [llama(input_ids=torch.full((4, 1), t), past_key_values=output.past_key_values).logits for t in (7, 11)]
    for row, (kind, trace) in enumerate(zip(KINDS, session.traces, strict=True)):
        alone = prompts.single(row)
        reading = Reading(llama, alone.embeds[0], alone.visual[0], plan)
        assert trace.tokens_per_layer == [len(kind)] * LAYERS
        assert trace.kv_tokens_per_layer == [key.shape[1] for key, _ in reading.cache]
        assert (first[row] - reading.logits).abs().max() < 1e-4
        for token, logits in zip((7, 11), steps, strict=True):
            assert (logits[row, -1] - reading.step(token)).abs().max() < 1e-4


def test_every_plan_but_the_empty_one_changes_something(llama):
    prompts = Prompts(*KINDS)

    def logits(config):
        with prune(llama, config, prompts.visual):
            output = llama(**prompts.inputs, use_cache=True)
            step = llama(input_ids=torch.full((4, 1), 5), past_key_values=output.past_key_values)
        return torch.stack([output.logits[0, -1], step.logits[0, -1]])

    dense = logits({"method": "none"})
    assert torch.equal(logits({"method": "mask", "layers": []}), dense)
    for plan in PLANS.values():
        assert (logits({"method": "mask"} | plan) - dense).abs().max() > 1e-4
    first, later = (logits({"method": "mask"} | PLANS["decoding alone"]) - dense).abs().amax(-1)
    assert first == 0 < later


def test_a_share_of_everything_is_everything_and_random_ones_are_the_same_in_every_layer(llama):
    prompts = Prompts(*KINDS)

    def logits(**plan):
        with prune(llama, {"method": "mask", "layers": [1, 2], **plan}, prompts.visual):
            return llama(**prompts.inputs).logits[:, -1]

    dense = logits(text="dense")
    for attended in ("top", "bottom", "random"):
        assert (logits(attended=attended, share=1.0) - logits()).abs().max() < 1e-5
        assert torch.equal(logits(attended=attended, share=0.0), dense)
    halves = [logits(attended=attended, share=0.5) for attended in ("top", "bottom", "random", "random")]
    assert torch.equal(halves[2], halves[3]) and not torch.equal(halves[0], halves[1])


def test_masking_every_row_from_a_layer_on_is_dropping_the_tokens_there(llama):
    prompts = Prompts(*KINDS)
    answers = []
    for config in ({"method": "mask", "layers": [3, 4, 5]}, {"method": "vtw", "k": 3}):
        with prune(llama, config, prompts.visual):
            answers.append(llama.generate(**prompts.inputs, max_new_tokens=5, do_sample=False))
    assert torch.equal(*answers)


@pytest.mark.parametrize(("rank", "end"), [("influence", "top"), ("influence", "bottom"), ("text", "top")])
@pytest.mark.parametrize("how", ["noise", "remove"])
@torch.no_grad()
def test_disturbed_tokens_are_those_that_the_rank_puts_at_one_end(llama, rank, end, how):
    prompts, count, layer = Prompts(*KINDS), 3, 2
    with prune(llama, {"method": "disturb", "layer": layer, "count": count, "rank": rank, "end": end, "how": how},
               prompts.visual) as session:  # fmt: skip
        logits = llama(**prompts.inputs).logits[:, -1]

    def disturb(at, prompt, probabilities):
        if at != layer:
            return False
        columns = prompt.columns()
        if rank == "influence":
            value = per_query_head(llama, values[layer][-1])
            scores = [(probabilities[:, -1, j, None] * value[:, j]).norm() for j in columns]
        else:
            scores = [probabilities[:, prompt.text_after(), j].mean() for j in columns]
        ordered = sorted(columns, key=lambda j: scores[columns.index(j)], reverse=end == "top")
        chosen = ordered[:count]
        if how == "remove":
            prompt.keep_visual([j for j in columns if j not in chosen])
            return True
        noise = torch.randn(len(columns), prompt.x.shape[1], generator=torch.Generator().manual_seed(0))
        for j in chosen:
            prompt.x[j] = noise[columns.index(j)] * prompt.x[j].square().mean().sqrt()
        return True

    for row, trace in enumerate(session.traces):
        alone = prompts.single(row)
        values = {layer: []}
        hook = llama.model.layers[layer].self_attn.v_proj
        with _recorded(hook, values[layer], llama):
            llama(**alone.inputs)
        reading = read(llama, alone.embeds[0].clone(), alone.visual[0], disturb)
        assert trace.tokens_per_layer == reading.tokens_per_layer
        assert trace.cuts == reading.cuts
        assert (logits[row] - reading.logits).abs().max() < 1e-4


class _recorded:
    """The values [Hkv, T, d] that a projection makes of one prompt, appended to a list."""

    def __init__(self, module, values, model):
        self.module, self.values, self.heads = module, values, model.config.num_key_value_heads

    def __enter__(self):
        def keep(module, args, output):
            self.values.append(output[0].unflatten(-1, (self.heads, -1)).transpose(0, 1))

        self.hook = self.module.register_forward_hook(keep)

    def __exit__(self, *exception):
        self.hook.remove()


def test_random_ranks_and_noise_are_the_seeds(llama):
    prompts = Prompts("ttvvvvvvvvttt", "ttvvvvvvvvtt")

    def kept(**settings):
        config = {"method": "disturb", "layer": 1, "count": 4, "rank": "random", "how": "remove"} | settings
        with prune(llama, config, prompts.visual) as session:
            logits = llama(**prompts.inputs).logits[:, -1]
        return [trace.cuts for trace in session.traces], logits

    places, _ = kept()
    assert places[0] == places[1] and len(places[0][0][1]) == 4
    assert kept()[0] == places != kept(seed=1)[0]
    noise = [kept(how="noise", seed=seed)[1] for seed in (0, 0, 1)]
    assert torch.equal(noise[0], noise[1]) and not torch.equal(noise[0], noise[2])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "mask"}, "needs 'layers'"),
        ({"method": "mask", "layers": 3}, "'layers' must be a list of layers, got int"),
        ({"method": "mask", "layers": [1, 1]}, "names a layer twice"),
        ({"method": "mask", "layers": [-1]}, "'layers' must be an integer ≥ 0"),
        ({"method": "mask", "layers": [1], "merge_layers": [2]}, r"'merge_layers' names \[2\], which 'layers'"),
        ({"method": "mask", "layers": [1], "text": "merge"}, "'text' must be one of"),
        ({"method": "mask", "layers": [1], "kv": "sink"}, "'kv' must be one of"),
        ({"method": "mask", "layers": [1], "attended": "top"}, "'attended' and 'share' together"),
        ({"method": "mask", "layers": [1], "attended": "last", "share": 0.1}, "'attended' must be one of"),
        ({"method": "mask", "layers": [1], "attended": "top", "share": 0.1, "kv": "all"}, "leave 'text' at 'remove'"),
        ({"method": "disturb", "count": 2}, "needs 'layer'"),
        ({"method": "disturb", "layer": 2}, "needs 'count' or 'share'.*neither"),
        ({"method": "disturb", "layer": 2, "count": 1, "share": 0.1}, "both"),
        ({"method": "disturb", "layer": 2, "count": 1, "rank": "attention"}, "'rank' must be one of"),
        ({"method": "disturb", "layer": 2, "count": 1, "how": "zero"}, "'how' must be one of"),
    ],
)
def test_mistakes_are_one_line(settings, message):
    with pytest.raises(ValueError, match=message):
        PruningConfig.from_dict(settings)


@pytest.mark.parametrize("config", [Mask(layers=(2, 6)), Disturb(layer=6, count=1)])
def test_layers_that_are_not_there_are_named(llama, config):
    with pytest.raises(ValueError, match="is 6, but the model has 6 layers"):
        prune(llama, config, Prompts("tvt").visual)
