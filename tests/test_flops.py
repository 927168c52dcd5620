"""FLOPs and cache bytes: the figures printed in the papers, and the trace's own counts."""

import pytest
import torch
from conftest import FULL, MIXED, Prompts

from llava.model.pruning import prune
from llava.model.pruning.flops import DecoderShape
from llava.model.pruning.policy import AttentionRule
from llava.model.pruning.trace import PruningTrace

LLAVA_7B = DecoderShape(layers=32, hidden=4096, mlp=11008, heads=32, kv_heads=32, head_dim=128)
LLAVA_13B = DecoderShape(layers=40, hidden=5120, mlp=13824, heads=40, kv_heads=40, head_dim=128)
MOBILEVLM_3B = DecoderShape(layers=32, hidden=2560, mlp=6912, heads=32, kv_heads=32, head_dim=80)


def trace(shape: DecoderShape, visual: list[int], text: int = 0) -> PruningTrace:
    tokens = [n + text for n in visual]
    return PruningTrace(shape, 2, tokens, visual, [AttentionRule()] * len(visual), None, [], [], None, tokens, [])


@pytest.mark.parametrize(
    ("shape", "visual", "printed"),
    [
        (LLAVA_7B, [576] * 32, 3.817),
        (LLAVA_13B, [576] * 40, 7.444),
        (MOBILEVLM_3B, [144] * 32, 0.369),
        (LLAVA_7B, [576] * 8 + [288] * 8 + [144] * 8 + [72] * 8, 1.777),
        (LLAVA_7B, [192] * 32, 1.253),
        (LLAVA_7B, [128] * 32, 0.833),
        (LLAVA_7B, [64] * 32, 0.416),
    ],
)
def test_traces_count_what_the_papers_print(shape, visual, printed):
    assert trace(shape, visual).flops() / 1e12 == pytest.approx(printed, abs=5e-4)
    assert trace(shape, visual).dense_flops() == shape.layers * shape.layer_flops(visual[0])


@pytest.mark.parametrize(("full", "printed"), [(15, 1.767), (12, 1.424)])
def test_visipruner_counts_full_layers_without_visual_attention_then_the_mean_of_kept_tokens(full, printed):
    """15 layers of 576 tokens without the n² term, then on average 10.3 until layer 23.9."""
    total = full * LLAVA_7B.layer_flops(576, pairs=0) + (23.9 - full) * LLAVA_7B.layer_flops(10.3, pairs=0)
    assert total / 1e12 == pytest.approx(printed, abs=2e-3)


def test_fastv_convention_per_layer():
    """FastV prints 4nd² + 2n²d + 2ndm; with a gated MLP the field's formula has one more ndm."""
    n, d, m = 612, 4096, 11008
    assert LLAVA_7B.layer_flops(n) - n * d * m == 4 * n * d**2 + 2 * n**2 * d + 2 * n * d * m


def test_grouped_query_attention_shrinks_key_and_value_projections():
    full = DecoderShape(28, 3584, 18944, 28, 28, 128)
    grouped = DecoderShape(28, 3584, 18944, 28, 4, 128)
    assert full.layer_flops(10) - grouped.layer_flops(10) == 10 * 2 * 3584 * 24 * 128
    assert full.kv_bytes(10, 2) == 7 * grouped.kv_bytes(10, 2) == 10 * 2 * 28 * 128 * 2


def test_the_shape_is_read_from_a_config(llama):
    shape = DecoderShape.of(llama.config)
    assert shape == DecoderShape(layers=6, hidden=48, mlp=64, heads=4, kv_heads=2, head_dim=12)


@torch.no_grad()
def test_a_real_trace_counts_its_own_layers(llama):
    prompts = Prompts(MIXED[3])
    with prune(llama, FULL, prompts.visual) as session:
        llama(**prompts.inputs)
    found, shape = session.traces[0], DecoderShape.of(llama.config)
    shallow = shape.layer_flops(15, pairs=15 * 15) + shape.layer_flops(15, pairs=0)
    middle = sum(shape.layer_flops(n) for n in found.visual_per_layer[2:])
    assert found.flops() == shallow + middle
    assert found.kv_bytes == sum(found.kv_tokens_per_layer) * 2 * 2 * 12 * 4
    assert found.dense_kv_bytes == 6 * 18 * 2 * 2 * 12 * 4
    assert found.summary()["flops"] == found.to_dict()["flops"] == found.flops()
