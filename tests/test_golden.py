"""The `released` preset reproduces what the published code computed (tests/golden)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from llava.model.pruning import prune

GOLDEN = Path(__file__).parent / "golden"
RUNS = sorted(path.stem for path in (GOLDEN / "results").glob("*.json"))


@pytest.fixture(scope="module")
def model():
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=12,
        num_attention_heads=4,
        num_key_value_heads=4,
        rms_norm_eps=1e-5,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
    )
    llama = LlamaForCausalLM(config).eval()
    weights = {name: tensor.float() for name, tensor in load_file(GOLDEN / "weights/weights_w1.safetensors").items()}
    llama.load_state_dict(weights)
    return llama


@pytest.mark.parametrize("run", RUNS)
@torch.no_grad()
def test_released_preset_reproduces_the_recorded_run(model, run):
    record = json.loads((GOLDEN / "results" / f"{run}.json").read_text())
    arrays = np.load(GOLDEN / "results" / f"{run}.npz")
    embeds = torch.from_numpy(np.load(GOLDEN / record["inputs"]).astype(np.float32))[None]
    visual = torch.zeros(1, record["sequence_length"], dtype=torch.bool)
    visual[:, record["text_before"] : record["text_before"] + record["visual_tokens"]] = True
    config = {"preset": "released", **record["pruning_config"]}
    if run.endswith("13b"):
        config["first_layer"] = "half"

    with prune(model, config, visual) as session:
        output = model(inputs_embeds=embeds, use_cache=True, output_hidden_states=True)
        trace = session.traces[0]
        cache, decoded = output.past_key_values, []
        token = output.logits[0, -1].argmax()
        tokens = [int(token)]
        for _ in range(len(record["decoded_token_ids"])):
            step = model(input_ids=token.view(1, 1), past_key_values=cache)
            decoded.append(step.logits[0, -1])
            token = step.logits[0, -1].argmax()
            tokens.append(int(token))

    assert trace.tokens_per_layer == record["per_layer_input_length"]
    assert trace.kv_tokens_per_layer == record["kv_lengths_after_prefill"]
    assert [layer.keys.shape[-2] for layer in cache.layers] == record["kv_lengths_after_6_decode_steps"]
    assert trace.filter_layer == record["selection_layer"]
    assert trace.kept == (record["selected_visual_indices_absolute"] or [])
    assert trace.exit_layer == record["exit_layer"]
    assert tokens == [*record["decoded_token_ids"], record["next_token_after_last_decode_step"]]
    assert np.abs(output.logits[0, -1].numpy() - arrays["prefill_logits_last"]).max() < 1e-4
    assert np.abs(torch.stack(decoded).numpy() - arrays["decode_logits"]).max() < 1e-4
    if "prefill_last_hidden" in arrays:
        assert np.abs(output.hidden_states[-1][0].numpy() - arrays["prefill_last_hidden"]).max() < 1e-4
    checks = {check["layer"]: check["min_cosine"] for check in record["middle_checks"] + record["deep_checks"]}
    assert [probe.layer for probe in trace.probes] == sorted(checks)
    for probe in trace.probes:
        assert abs(probe.min_cosine - checks[probe.layer]) < 1e-4
    if trace.kept:
        chosen = arrays["selection_l2"][np.array(trace.kept) - record["text_before"]]
        assert np.abs(np.array(trace.influence) - chosen).max() < 1e-4
