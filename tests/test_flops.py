"""FLOPs and cache bytes: the figures printed in the papers, and the trace's own counts."""

import pytest
import torch
from conftest import FULL, MIXED, Prompts
from family_case import LAYERS, angles_of
from family_models import CASES, batch_of
from torch.utils.flop_counter import FlopCounterMode

from llava.eval import flops
from llava.model.pruning import prune
from llava.model.pruning.families import shape_of
from llava.model.pruning.flops import DecoderShape
from llava.model.pruning.method import AttentionRule
from llava.model.pruning.trace import PruningTrace

LLAVA_7B = DecoderShape(layers=32, hidden=4096, mlp=11008, heads=32, kv_heads=32, head_dim=128)
LLAVA_13B = DecoderShape(layers=40, hidden=5120, mlp=13824, heads=40, kv_heads=40, head_dim=128)
MOBILEVLM_3B = DecoderShape(layers=32, hidden=2560, mlp=6912, heads=32, kv_heads=32, head_dim=80)
QWEN2_VL_7B = DecoderShape(layers=28, hidden=3584, mlp=18944, heads=28, kv_heads=4, head_dim=128)
INTERNVL2_5_8B = DecoderShape(layers=32, hidden=4096, mlp=14336, heads=32, kv_heads=8, head_dim=128)


def trace(shape: DecoderShape, visual: list[int], text: int = 0) -> PruningTrace:
    tokens = [n + text for n in visual]
    return PruningTrace(shape, 2, tokens, visual, [AttentionRule()] * len(visual), None, [], [], None, tokens, [])


@pytest.mark.parametrize(
    ("shape", "visual", "printed"),
    [
        (LLAVA_7B, [576] * 32, 3.817),
        (LLAVA_13B, [576] * 40, 7.444),
        (MOBILEVLM_3B, [144] * 32, 0.369),
        (QWEN2_VL_7B, [1413] * 28, 9.621),
        (INTERNVL2_5_8B, [1492] * 32, 10.997),
        (INTERNVL2_5_8B, [1493] * 32, 11.0045),
        (LLAVA_7B, [576] * 8 + [288] * 8 + [144] * 8 + [72] * 8, 1.777),
        (LLAVA_7B, [192] * 32, 1.253),
        (LLAVA_7B, [128] * 32, 0.833),
        (LLAVA_7B, [64] * 32, 0.416),
    ],
)
def test_traces_count_what_the_papers_print(shape, visual, printed):
    assert trace(shape, visual).flops() / 1e12 == pytest.approx(printed, abs=5e-4)
    assert trace(shape, visual).dense_flops() == shape.layers * shape.layer_flops(visual[0])


def test_the_token_counts_of_the_printed_totals_are_the_only_ones():
    """9.62T arises at 1413 visual tokens alone, 11.00T at 1492 and 1493, with grouped projections as they are."""
    for shape, printed, counts in ((QWEN2_VL_7B, 9.62, [1413]), (INTERNVL2_5_8B, 11.00, [1492, 1493])):
        totals = {count: shape.layers * shape.layer_flops(count) / 1e12 for count in range(1, 3000)}
        assert [count for count, total in totals.items() if round(total, 2) == printed] == counts


def test_the_table_of_published_models_rounds_to_what_the_paper_prints(capsys):
    for row in flops.rows():
        cells = dict(zip(flops.HEADINGS, row, strict=True))
        assert f"{float(cells['FLOPs'].rstrip('T')):.2f}T" == cells["printed"]
    assert flops.main(["--model", "Qwen2-VL-7B", "--visual-tokens", "1000"]) == 0
    (row,) = capsys.readouterr().out.splitlines()[2:]
    cached = f"{28 * 1000 * 2 * 512 * 2 / 1e6:.1f} MB"
    assert f"{28 * QWEN2_VL_7B.layer_flops(1000) / 1e12:.3f}T" in row and cached in row
    assert flops.main(["--model", "Qwen2-VL"]) == 1
    assert "did you mean 'Qwen2-VL-7B'" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("qwen3_5", "lfm2_vl")])
def test_every_familys_projections_and_cache_are_counted_as_they_are(name):
    """Per token: the weights of all matrices of its layers; per cached token: the numbers that its layers hold."""
    case, batch = CASES[name], batch_of(name, "t" * 12)
    decoder, shape = case.decoder, shape_of(case.model)
    config, one = decoder.config, torch.zeros(1, 1, 48)
    before = config._attn_implementation, getattr(config, "_experts_implementation", None)
    config._attn_implementation = config._experts_implementation = "eager"
    with FlopCounterMode(display=False) as counter:
        for index, layer in enumerate(decoder.layers):
            layer(one, attention_mask=None, position_embeddings=angles_of(decoder, index, one, batch.ids[:, :1]))
    config._attn_implementation, config._experts_implementation = before
    assert counter.get_total_flops() == 2 * shape.layers * shape.layer_flops(1)  # of one token, which reads itself
    assert shape.layers * shape.layer_flops(1) == pytest.approx(sum(shape.layer_flops(1, 1, i) for i in range(LAYERS)))
    with case.prune({"mode": []}, batch) as session:
        cache = case.model(**batch.inputs).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert session.traces[0].kv_bytes == session.traces[0].dense_kv_bytes == held


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


def test_a_trace_prints_tokens_flops_and_kv_together(llama):
    prompts = Prompts("tt" + "v" * 8 + "tt")
    with prune(llama, {"method": "vtw", "k": 3}, prompts.visual) as session:
        llama(**prompts.inputs)
    text = str(session.traces[0])
    assert "8 visual tokens, 4.0 per layer (8.0 with text)" in text and "50.0% of dense, of all tokens" in text
    assert text.endswith(f"KV {session.traces[0].kv_bytes / 1e6:.4g} MB, 66.7% of dense")
