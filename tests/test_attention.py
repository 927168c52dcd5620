"""The CUDA kernels' call paths, run on CPU through stand-ins with their documented arguments, and the SDPA fallback."""

import pytest
import torch
import torch.nn.functional as F
from conftest import FULL, MIXED, Prompts

from llava.model.pruning import kernels, prune, session
from llava.model.pruning.attention import decode
from llava.model.pruning.influence import Influence
from llava.model.pruning.packed import Segments
from llava.model.pruning.packing import pack, unpack
from llava.model.pruning.probes import LayerStates, run
from llava.model.pruning.softmax import Softmax


def attend_by_bounds(query, key, value, cu_q, cu_k, causal, scale):
    """Variable-length attention from its definition: rows cu[i]:cu[i+1] read keys cu[i]:cu[i+1]."""
    out = torch.empty_like(query)
    for a, b, c, d in zip(cu_q[:-1], cu_q[1:], cu_k[:-1], cu_k[1:], strict=True):
        scores = torch.einsum("qhd,khd->hqk", query[a:b], key[c:d]) * scale
        if causal:
            scores = scores.masked_fill(torch.ones(scores.shape[1:]).triu(1).bool(), float("-inf"))
        out[a:b] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value[c:d])
    return out


def repeat(query, states):
    return states.repeat_interleave(query.shape[1] // states.shape[1], 1)


def varlen_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
    assert query.shape[1] == key.shape[1]
    return attend_by_bounds(query, key, value, cu_seq_q, cu_seq_k, is_causal, query.shape[-1] ** -0.5)


def varlen_2_13(
    query,
    key,
    value,
    cu_seq_q,
    cu_seq_k,
    max_q,
    max_k,
    *,
    return_aux=None,
    scale=None,
    window_size=(-1, -1),
    enable_gqa=False,
):
    assert enable_gqa or query.shape[1] == key.shape[1]
    assert (cu_seq_q.dtype, max_q) == (torch.int32, int(cu_seq_q.diff().max()))
    key, value = repeat(query, key), repeat(query, value)
    return attend_by_bounds(query, key, value, cu_seq_q, cu_seq_k, window_size == (-1, 0), scale)


def flash_attn_varlen_func(q, k, v, cu_q, cu_k, max_q, max_k, softmax_scale=None, causal=False):
    return attend_by_bounds(q, repeat(q, k), repeat(q, v), cu_q, cu_k, causal, softmax_scale)


KERNELS = {
    "torch 2.10": lambda *a: kernels.varlen(varlen_2_10, *a),
    "torch 2.13": lambda *a: kernels.varlen(varlen_2_13, *a),
    "flash-attn": lambda *a: kernels.flash(flash_attn_varlen_func, *a),
}


def test_the_installed_torch_offers_the_arguments_we_pass():
    from torch.nn.attention.varlen import varlen_attn

    accepted = kernels._parameters(varlen_attn)
    assert {"cu_seq_q", "cu_seq_k", "max_q", "max_k"} <= accepted
    assert "window_size" in accepted or "is_causal" in accepted


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("causal", [True, False])
def test_kernels_agree_with_sdpa_by_segment(name, causal):
    torch.manual_seed(0)
    segments = Segments((3, 0, 5), (3, 0, 5)) if causal else Segments((3, 1, 4), (2, 1, 6))
    query = torch.randn(1, 4, sum(segments.queries), 8)
    key, value = torch.randn(2, 1, 2, sum(segments.keys), 8)
    expected = kernels.by_segment(query, key, value, segments, causal, 0.3)
    assert (KERNELS[name](query, key, value, segments, causal, 0.3) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("preset", ["paper", "released"])
def test_a_pruned_prefill_is_the_same_through_every_kernel(llama, monkeypatch, name, preset):
    prompts = Prompts(*MIXED)
    config = {**FULL, "preset": preset}
    with prune(llama, config, prompts.visual) as plain:
        expected = llama(**prompts.inputs).logits
    monkeypatch.setattr("llava.model.pruning.attention.choose", lambda *_: KERNELS[name])
    with prune(llama, config, prompts.visual) as through:
        output = llama(**prompts.inputs).logits
    assert [t.tokens_per_layer for t in through.traces] == [t.tokens_per_layer for t in plain.traces]
    assert (output - expected).abs().max() < 1e-4


def test_backends_that_cannot_run_say_why(llama):
    mask = torch.zeros(1, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="needs CUDA and fp16 or bf16, got cpu"):
        session.prune(llama, {"mode": []}, mask, backend="varlen")
    with pytest.raises(ValueError, match="one of auto, sdpa, varlen, flash_attn"):
        session.prune(llama, {"mode": []}, mask, backend="triton")


@pytest.mark.parametrize(
    ("dtype", "head_dim", "capability", "flash"),
    [
        (torch.bfloat16, 128, (9, 0), True),
        (torch.float16, 48, (8, 0), True),
        (torch.float32, 128, (9, 0), False),
        (torch.bfloat16, 12, (9, 0), False),
        (torch.float16, 512, (9, 0), False),
        (torch.float16, 128, (7, 5), False),
    ],
)
def test_cuda_takes_the_flash_kernel_where_it_runs(monkeypatch, dtype, head_dim, capability, flash):
    monkeypatch.setattr(kernels, "_capability", lambda device: capability)
    cuda = torch.device("cuda")
    assert (kernels.choose("auto", cuda, dtype, head_dim) is not kernels.by_segment) == flash
    assert kernels.choose("sdpa", cuda, dtype, head_dim) is kernels.by_segment
    if not flash:
        with pytest.raises(ValueError, match="use 'auto' or 'sdpa'"):
            kernels.choose("varlen", cuda, dtype, head_dim)


@pytest.mark.parametrize("new", [1, 3])
def test_decoding_attends_to_shared_heads_without_repeating_them(new):
    torch.manual_seed(0)
    query, (key, value) = torch.randn(2, 6, new, 8), torch.randn(2, 2, 2, 5, 8)
    mask = torch.rand(2, 1, new, 5) > 0.3
    mask[..., 0] = True
    full = (states.repeat_interleave(3, 1) for states in (key, value))
    expected = F.scaled_dot_product_attention(query, *full, attn_mask=mask, scale=0.4).transpose(1, 2)
    assert (decode(query, key, value, mask, Softmax(0.4)) - expected).abs().max() < 1e-6


def test_packing_and_unpacking_keep_tokens_and_positions():
    prompts = Prompts(*MIXED)
    seen = {}

    def rotary(hidden, positions):
        seen["positions"] = positions
        return torch.zeros(1, hidden.shape[1], 2), torch.zeros(1, hidden.shape[1], 2)

    rows = torch.arange(3)[:, None, None] * 100 + prompts.position_ids
    tokens, following = pack(prompts.embeds, prompts.attention_mask, rows, prompts.visual, rotary)
    assert seen["positions"].shape == (3, 1, sum(map(len, MIXED)))
    assert seen["positions"][1, 0].tolist() == [100 + i for kind in MIXED for i in range(len(kind))]
    assert following.tolist() == [200 + len(kind) for kind in MIXED]
    assert torch.equal(unpack(tokens.hidden, tokens.lengths), prompts.embeds)
    assert tokens.visual_counts == [kind.count("v") for kind in MIXED]


@pytest.mark.parametrize("rows", [[0, 1, 3], [1, 3], [3], [0]])
def test_influence_in_a_batch_is_influence_spelled_out(rows):
    torch.manual_seed(0)
    prompts = Prompts(*MIXED)
    empty = torch.zeros(1, 0)
    tokens, _ = pack(prompts.embeds, prompts.attention_mask, None, prompts.visual, lambda *_: (empty, empty))
    total = sum(tokens.lengths)
    query, (key, value) = torch.randn(1, 4, total, 6), torch.randn(2, 1, 2, total, 6)
    found = run(LayerStates(tokens, query, key, value, Softmax(0.5)), dict.fromkeys(rows, Influence()))
    assert list(found) == rows
    for b in rows:
        start, end = tokens.spans[b]
        places = [place for place in range(start, end) if tokens.visual[place]]
        keys, values = (states[0, :, start:end].repeat_interleave(2, 0) for states in (key, value))
        weights = (torch.einsum("hd,hkd->hk", query[0, :, end - 1], keys) * 0.5).softmax(-1)
        parts = (weights[..., None] * values).transpose(0, 1).flatten(1)  # [tokens, heads · d]
        output = parts.sum(0)
        spelled = {
            "cosine": torch.stack([F.cosine_similarity(output, output - parts[p - start], dim=0) for p in places]),
            "l2": torch.stack([parts[p - start].norm() for p in places]),
            "attention": weights.mean(0)[[p - start for p in places]],
        }
        for name, expected in spelled.items():
            assert abs(getattr(found[b], name) - expected.numpy()).max() < 1e-5
