"""A plain, slow implementation of VisiPruner (arXiv 2510.17205), which the engine is tested against.

It shares nothing with `llava.model.pruning` but the names of the settings: one prompt at a time, full [H, T, T]
attention probabilities, explicit column masks, explicit contribution vectors. It reads the weights of an fp32
`LlamaForCausalLM` and never calls its forward. Layers and positions count from 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Result:
    """What a pruned prefill computed; S tokens survive, positions are those of the original prompt."""

    logits_last: Tensor  # [vocab]
    last_hidden: Tensor  # [S, D], after the final norm
    surviving: list[int]
    tokens_per_layer: list[int]
    filter_layer: int | None
    kept: list[int]  # [] when nothing was kept or nothing was selected
    exit_layer: int | None
    kv_positions: list[list[int]]  # per layer, as the prefill left them; `decode` does not extend these
    cosine: dict[int, Tensor]  # probed layer -> [visual tokens of that layer]
    l2: dict[int, Tensor]
    votes: list[int]  # layers that voted for the exit
    keys: list[Tensor]  # per layer [H_kv, kept, d], rotated; `decode` appends
    values: list[Tensor]


@dataclass(frozen=True)
class _Attention:
    output: Tensor  # [T, H*d], heads concatenated, before o_proj
    probabilities: Tensor  # [H, T, T]
    keys: Tensor  # [H_kv, T, d]
    values: Tensor  # [H_kv, T, d]


def linear(module, x: Tensor) -> Tensor:
    """Apply the weights of an `nn.Linear` to x [..., in]."""
    return F.linear(x, module.weight, module.bias)


def rms_norm(module, x: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm of x [T, D] with the module's weight [D]."""
    return module.weight * x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + eps)


def rotate(x: Tensor, positions: list[int], theta: float) -> Tensor:
    """Rotary embedding of x [H, T, d]: component i pairs with i + d/2, angle position * theta^(-2i/d)."""
    half = x.shape[-1] // 2
    frequency = theta ** (-torch.arange(half, dtype=torch.float32) / half)
    angle = torch.tensor(positions, dtype=torch.float32)[:, None] * frequency  # [T, d/2]
    first, second = x[..., :half], x[..., half:]
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def project(model, layer: int, x: Tensor, positions: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated queries [H, T, d], rotated keys [H_kv, T, d] and values [H_kv, T, d] of normed x [T, D]."""
    if model.config.rope_parameters.get("rope_type", "default") != "default":
        raise ValueError("the reference knows rope_type 'default' only; use such a config")
    theta = model.config.rope_parameters["rope_theta"]
    attention = model.model.layers[layer].self_attn
    d = attention.head_dim
    q, k, v = (
        linear(module, x).reshape(len(positions), -1, d).transpose(0, 1)
        for module in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    return rotate(q, positions, theta), rotate(k, positions, theta), v


def per_query_head(model, kv: Tensor) -> Tensor:
    """Repeat grouped keys or values [H_kv, T, d] so that every query head has its own, [H, T, d]."""
    heads = model.config.num_attention_heads
    return torch.stack([kv[h * kv.shape[0] // heads] for h in range(heads)])


def is_shallow(config, layer: int) -> bool:
    """Whether this layer belongs to the shallow stage."""
    return "shallow" in config.mode and layer < config.shallow_mid_layer


def row_rule(config, layer: int, row_is_visual: bool) -> str:
    """How a text or visual row treats the visual columns: dense, remove, zero, half or merge."""
    if not is_shallow(config, layer):
        return "dense"
    if layer == 0:
        return config.first_layer_visual if row_is_visual else config.first_layer
    return config.shallow_visual if row_is_visual else config.shallow_text


def attention_probabilities(
    scores: Tensor, visual: list[bool], config, layer: int, allowed: Tensor | None = None, sinks: Tensor | None = None
) -> Tensor:
    """Probabilities [H, T, T] from scaled scores [H, T, T] under the layer's rules.

    allowed: bool [T, T], which columns a row sees at all; None: itself and those before it. sinks: [H, 1, 1], scores of
    a column more, which takes part in the softmax and is left out.
    """
    tokens = len(visual)
    visual_columns = [j for j in range(tokens) if visual[j]]
    rules = [row_rule(config, layer, visual[i]) for i in range(tokens)]

    allowed = torch.ones(tokens, tokens).tril().bool() if allowed is None else allowed.clone()
    sees = allowed.clone()
    for i in range(tokens):
        if rules[i] == "remove":
            allowed[i, visual_columns] = False
            if not allowed[i].any():
                allowed[i, i] = True
    scores = scores.masked_fill(~allowed, float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks.expand(-1, tokens, -1)], -1)
    probabilities = scores.softmax(-1)[..., :tokens]

    for i in range(tokens):
        if rules[i] == "zero":
            probabilities[:, i, visual_columns] = 0
        elif rules[i] == "half":
            probabilities[:, i, visual_columns[: len(visual_columns) // 2]] = 0
        elif rules[i] == "merge":
            seen = [j for j in visual_columns if j <= i or sees[i, j]]
            if seen:
                sink = visual_columns[config.sink_token]
                mass = probabilities[:, i, seen].sum(-1)
                probabilities[:, i, seen] = 0
                probabilities[:, i, sink if sink in seen else seen[-1]] = mass
    return probabilities


def attend(model, layer: int, x: Tensor, positions: list[int], visual: list[bool], config) -> _Attention:
    """Self-attention of normed x [T, D], everything kept that the probes and the cache need."""
    q, k, v = project(model, layer, x, positions)
    scores = q @ per_query_head(model, k).transpose(1, 2) / q.shape[-1] ** 0.5
    probabilities = attention_probabilities(scores, visual, config, layer)
    output = probabilities @ per_query_head(model, v)
    return _Attention(output.transpose(0, 1).reshape(len(positions), -1), probabilities, k, v)


def influence(model, attention: _Attention, visual: list[bool]) -> tuple[Tensor, Tensor]:
    """Cosine and L2 [V] of every visual token's contribution to the last token."""
    columns = [j for j in range(len(visual)) if visual[j]]
    weights = attention.probabilities[:, -1, columns]  # [H, V]
    values = per_query_head(model, attention.values)[:, columns]  # [H, V, d]
    contribution = (weights[..., None] * values).transpose(0, 1).reshape(len(columns), -1)  # [V, H*d]
    output = attention.output[-1].expand_as(contribution)
    return F.cosine_similarity(output, output - contribution, dim=-1), contribution.norm(dim=-1)


def finish_layer(model, layer: int, x: Tensor, attention_output: Tensor) -> Tensor:
    """Output projection, residual and gated MLP: x [T, D] and heads [T, H*d] to [T, D]."""
    block = model.model.layers[layer]
    x = x + linear(block.self_attn.o_proj, attention_output)
    normed = rms_norm(block.post_attention_layernorm, x, model.config.rms_norm_eps)
    return x + linear(
        block.mlp.down_proj, F.silu(linear(block.mlp.gate_proj, normed)) * linear(block.mlp.up_proj, normed)
    )


def exit_reached(history: list[bool], config) -> bool:
    """Whether the newest of the layers' votes (oldest first) completes `exit_patience` of them."""
    if not history[-1]:
        return False
    count = 0
    for vote in history:
        count = count + 1 if vote else (0 if config.exit_votes == "consecutive" else count)
    return count == config.exit_patience


def cached(config, layer: int, positions: list[int], visual: list[bool], sink: int | None) -> list[int]:
    """Indices into `positions` of the tokens whose keys and values this layer keeps for decoding."""
    everything = list(range(len(positions)))
    if config.kv == "all" or not is_shallow(config, layer):
        return everything
    return [i for i in everything if not visual[i] or (layer == 0 and positions[i] == sink)]


@torch.no_grad()
def prefill(model, embeds: Tensor, visual: Tensor, config, own=None) -> Result:
    """Read one prompt.

    Args:
        model: an fp32 `LlamaForCausalLM` on the CPU.
        embeds: input embeddings [T, D].
        visual: bool [T]; a visual last token counts as text, since it is what is read.
        config: a `VisiPruner`, its preset applied.
        own: runs the model's own layers, whatever they are made of (`OwnLayers` in layer_reading.py); None: Llama's.

    Raises:
        ValueError: mode has "shallow" and the prompt has visual tokens, but not as many as `sink_token` asks for.

    """
    layers, eps = len(model.model.layers), getattr(model.config, "rms_norm_eps", None)
    positions = list(range(len(embeds)))
    is_visual = [bool(flag) for flag in visual[:-1]] + [False]
    image = [p for p in positions if is_visual[p]]
    if "shallow" in config.mode and image and config.sink_token >= len(image):
        raise ValueError(f"sink_token {config.sink_token}, but the prompt has {len(image)} visual tokens; lower it")
    sink = image[config.sink_token] if image and config.sink_token < len(image) else None
    middle, deep = "middle" in config.mode, "deep" in config.mode

    x, remaining = embeds, image  # `remaining`: the visual positions that the coming layer runs with
    filter_layer, exit_layer, kept, history = None, None, [], []
    tokens_per_layer, kv_positions, keys, values, cosine, l2, votes = [], [], [], [], {}, {}, []
    for layer in range(layers):
        if deep and not middle and layer >= config.mid_deep_layer:
            remaining = []
        stay = [i for i, p in enumerate(positions) if not is_visual[p] or p in remaining]
        x, positions = x[stay], [positions[i] for i in stay]
        present = [is_visual[p] for p in positions]
        if image and not remaining and exit_layer is None:
            exit_layer = layer
        tokens_per_layer.append(len(positions))

        if own is None:
            normed = rms_norm(model.model.layers[layer].input_layernorm, x, eps)
            attention = attend(model, layer, normed, positions, present, config)
            x = finish_layer(model, layer, x, attention.output)
        else:
            x, attention = own.read(layer, x, positions, present, config)

        in_cache = cached(config, layer, positions, present, sink)
        if own is not None:
            in_cache = [i for i in in_cache if own.sees(layer, len(embeds), positions[i])]
        kv_positions.append([positions[i] for i in in_cache])
        keys.append(attention.keys[:, in_cache])
        values.append(attention.values[:, in_cache])

        searching = middle and filter_layer is None and layer >= config.shallow_mid_layer + config.probe_offset
        watching = middle and deep and filter_layer is not None
        if remaining and (searching or watching):
            cosine[layer], l2[layer] = influence(model, attention, present)
            if config.tokens_scale == "relative":
                l2[layer] = l2[layer] / attention.output[-1].norm()
            if searching and (cosine[layer] < config.layer_threshold).any():
                filter_layer = layer
                kept = [p for p, length in zip(remaining, l2[layer], strict=True) if length > config.tokens_threshold]
                remaining = kept
            elif watching:
                history.append(bool((cosine[layer] >= config.exit_threshold).all()))
                if history[-1]:
                    votes.append(layer)
                if exit_reached(history, config):
                    remaining = []

    last_hidden = rms_norm(model.model.norm, x, eps) if own is None else model.model.norm(x)
    return Result(
        logits_last=linear(model.lm_head, last_hidden[-1]) if own is None else own.logits(last_hidden[-1]),
        last_hidden=last_hidden,
        surviving=positions,
        tokens_per_layer=tokens_per_layer,
        filter_layer=filter_layer,
        kept=kept,
        exit_layer=exit_layer,
        kv_positions=kv_positions,
        cosine=cosine,
        l2=l2,
        votes=votes,
        keys=keys,
        values=values,
    )


@torch.no_grad()
def decode(model, result: Result, token_id: int, position: int) -> Tensor:
    """Feed one token at `position` to the kept keys and values, which grow by it; returns logits [vocab]."""
    eps = model.config.rms_norm_eps
    x = model.model.embed_tokens.weight[token_id][None]  # [1, D]
    for layer in range(len(model.model.layers)):
        q, k, v = project(model, layer, rms_norm(model.model.layers[layer].input_layernorm, x, eps), [position])
        result.keys[layer] = torch.cat([result.keys[layer], k], dim=1)
        result.values[layer] = torch.cat([result.values[layer], v], dim=1)
        scores = q @ per_query_head(model, result.keys[layer]).transpose(1, 2) / q.shape[-1] ** 0.5  # [H, 1, S + 1]
        output = scores.softmax(-1) @ per_query_head(model, result.values[layer])
        x = finish_layer(model, layer, x, output.transpose(0, 1).reshape(1, -1))
    return linear(model.lm_head, rms_norm(model.model.norm, x, eps)[0])
