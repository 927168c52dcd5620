"""InternVL's original layout: loaded weight by weight as published, and refused by name where it is damaged."""

import json
import warnings

import pytest
import torch
from conftest import FULL
from internvl_fixtures import DECODERS, SIDE, TOKENS, added_ids, make_model, write_original
from internvl_reading import Reading
from llava_fixtures import write_json
from PIL import Image
from safetensors.torch import load_file, save_file

from llava import PruningConfig, prune
from llava.model.internvl.model import load_internvl_original

TURN_END, CONTEXT = added_ids()["<|im_end|>"], added_ids()["<IMG_CONTEXT>"]


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    return write_original(tmp_path_factory.mktemp("checkpoint") / "InternVL2_5-small", model=model)


@pytest.fixture(scope="module")
def loaded(folder):
    return load(folder)


def load(folder, dtype=torch.float32):
    return load_internvl_original(folder, dtype=dtype, device_map={"": "cpu"}, attn_implementation="sdpa")


def edit_part(folder, part, **changes):
    """Change keys of a part of config.json; returns the whole."""
    config = json.loads((folder / "config.json").read_text())
    config[part] |= changes
    write_json(folder / "config.json", config)
    return config


def inputs(tiles=2, text=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 300, (1, text + tiles * TOKENS), generator=generator)
    ids[0, 3 : 3 + tiles * TOKENS] = CONTEXT
    return {"input_ids": ids, "pixel_values": torch.randn(tiles, 3, SIDE, SIDE, generator=generator)}


def ask(question="What is it?", image=(90, 40)):
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}], Image.new(
        "RGB", image
    )


@torch.no_grad()
def assert_equal_logits(ours, model):
    torch.testing.assert_close(ours(**inputs()).logits, model(**inputs()).logits, atol=0, rtol=0)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_gives_the_same_model(tmp_path, decoder, qk_norm, shards):
    model = make_model(decoder, qk_norm)
    ours, processor = load(write_original(tmp_path / "m", decoder, shards, model=model))
    assert_equal_logits(ours, model)
    assert not ours.training and ours.dtype == torch.float32 and ours.config._attn_implementation == "sdpa"
    assert type(ours.model.language_model) is type(model.model.language_model)
    assert ours.config.image_token_id == CONTEXT
    ends = {7, TURN_END, processor.tokenizer.eos_token_id}  # generation_config.json, the conversation, the tokenizer
    assert ours.generation_config.eos_token_id == sorted(ends)
    assert ours.generation_config.pad_token_id == processor.tokenizer.pad_token_id is not None


@pytest.mark.parametrize("length", [2, 64, 65, 192])
@pytest.mark.parametrize("decoder", [name for name in DECODERS if "InternLM2" in name])
@torch.no_grad()
def test_decoder_is_internlm2_read_from_its_own_weights_up_to_and_beyond_the_trained_length(tmp_path, decoder, length):
    folder = write_original(tmp_path / "m", decoder)
    config = edit_part(folder, "llm_config", max_position_embeddings=64)
    reading = Reading(load_file(folder / "model.safetensors"), config)
    ids = torch.randint(5, 300, (1, length), generator=torch.Generator().manual_seed(length))
    embeds = reading.w["language_model.model.tok_embeddings.weight"][ids[0]]
    ours = load(folder)[0]
    for _ in range(2):  # a long prompt leaves nothing behind for a short one
        torch.testing.assert_close(ours(input_ids=ids).logits[0], reading.logits(embeds), atol=1e-4, rtol=1e-4)
        ids, embeds = ids[:, :5], embeds[:5]


@pytest.mark.parametrize("qk_norm", [False, True])
@torch.no_grad()
def test_visual_tokens_are_those_read_from_the_original_weights(tmp_path, qk_norm):
    folder = write_original(tmp_path / "m", model=make_model(qk_norm=qk_norm))
    reading = Reading(load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text()))
    pixels = inputs(tiles=3)["pixel_values"]
    features = load(folder)[0].get_image_features(pixels).pooler_output
    assert features.shape[:2] == (3, TOKENS)
    for ours, tile in zip(features, pixels, strict=True):
        torch.testing.assert_close(ours, reading.image(tile), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_another_selected_layer_is_the_tower_without_the_layers_after_it(model, tmp_path):
    ours = load(write_original(tmp_path / "m", model=model, select_layer=-2))[0]
    pixels = inputs()["pixel_values"]
    features = ours.get_image_features(pixels).pooler_output
    del ours.model.vision_tower.encoder.layer[-1]
    expected = ours.get_image_features(pixels, vision_feature_layer=-1).pooler_output
    torch.testing.assert_close(features, expected, atol=0, rtol=0)


def test_weights_do_not_change_with_their_files(model, tmp_path):
    folder = write_original(tmp_path / "m", model=model)
    ours = load(folder)[0]
    with open(folder / "model.safetensors", "r+b") as file:
        file.seek(-4000, 2)
        file.write(b"\x55" * 4000)
    assert_equal_logits(ours, model)


def test_dtype_is_the_one_asked_for(folder, model):
    ours = load(folder, torch.bfloat16)[0]
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(ours.lm_head.weight, model.lm_head.weight.bfloat16(), atol=0, rtol=0)


def test_a_head_that_the_files_lack_is_the_embedding_where_the_config_ties_them(model, tmp_path):
    def edit(weights):
        weights.pop("language_model.output.weight")

    folder = write_original(tmp_path / "m", model=model, edit=edit)
    with pytest.raises(ValueError, match="1 weights are missing: language_model.output.weight"):
        load(folder)
    config = edit_part(folder, "llm_config", tie_word_embeddings=True)
    ours = load(folder)[0]
    assert ours.lm_head.weight is ours.get_input_embeddings().weight
    write_original(tmp_path / "m", model=model, llm_config=config["llm_config"])
    assert_equal_logits(load(tmp_path / "m")[0], model)  # a head in the files is used, whatever the config says


WQKV = "language_model.model.layers.1.attention.wqkv.weight"


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda w: w.pop(WQKV), f"1 weights are missing: {WQKV}$"),
        (lambda w: w.pop("mlp1.3.bias"), "1 weights are missing: mlp1.3.bias$"),
        (
            lambda w: [w.pop(k) for k in list(w) if ".layers.2.ls" in k],
            "2 weights are missing: vision_model.*ls1, .*ls2$",
        ),
        (lambda w: w.update({"vision_model.head.weight": torch.ones(2)}), "unexpected: vision_model.head.weight$"),
        (lambda w: w.update({"lm_head.weight": torch.ones(2)}), "1 weights are unexpected: lm_head.weight$"),
        (
            lambda w: w.update({WQKV: torch.ones(80, 47)}),
            r"wrong shape: .*wqkv.weight \[80, 47\] instead of \[80, 48\]$",
        ),
        (
            lambda w: w.update({WQKV: torch.ones(48, 48)}),
            r"wrong shape: .*wqkv.weight \[48, 48\] instead of \[80, 48\]$",
        ),
        (
            lambda w: w.update({"vision_model.encoder.layers.0.attn.qkv.bias": torch.ones(95)}),
            r"wrong shape: .*attn.qkv.bias \[95\] instead of \[96\]$",
        ),
        (lambda w: w.update({"mlp1.0.bias": torch.ones(128, dtype=torch.int8)}), r"not floating point: mlp1.0.bias"),
    ],
)
def test_wrong_weights_are_named_as_the_files_spell_them(model, tmp_path, shards, edit, message):
    with pytest.raises(ValueError, match=message) as caught:
        load(write_original(tmp_path / "m", shards=shards, edit=edit, model=model))
    assert "\n" not in str(caught.value)


def test_damaged_shards_are_named(model, tmp_path):
    folder = write_original(tmp_path / "m", shards=3, model=model)
    shard = folder / "model-00002-of-00003.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=rf"^{shard} is not a readable weight file: [^\n]+$"):
        load(folder)
    shard.unlink()
    with pytest.raises(ValueError, match=f"^{folder}: 1 shards are missing: {shard.name}$"):
        load(folder)
    save_file({"one": torch.ones(1)}, shard)
    with pytest.raises(ValueError, match="weights of model.safetensors.index.json are not in its shards: "):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ps_version": "v1"}, "ps_version 'v1': only 'v2' is supported"),
        ({"template": "internlm2-chat"}, "template 'internlm2-chat': only 'internvl2_5' is supported"),
        ({"pad2square": True}, "pad2square True: only False"),
        ({"use_llm_lora": 16}, "use_llm_lora 16: only 0"),
        ({"force_image_size": 56}, "force_image_size 56: only 28"),
        ({"llm_config": {"architectures": ["Phi3ForCausalLM"]}}, "decoder 'Phi3ForCausalLM' .* one of InternLM2For"),
        ({"llm_config": {"architectures": ["Qwen2ForCausalLM"]}}, "no vocab_size, hidden_size, .* in llm_config"),
        ({"vision_config": None}, "no llm_config or vision_config"),
    ],
)
def test_what_cannot_be_computed_alike_is_refused_before_weights_are_read(model, tmp_path, changes, message):
    folder = write_original(tmp_path / "m", model=model, **changes)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_query_norms_of_another_epsilon_are_refused(tmp_path):
    folder = write_original(tmp_path / "m", model=make_model(qk_norm=True))
    edit_part(folder, "vision_config", layer_norm_eps=1e-5)
    with pytest.raises(ValueError, match="layer_norm_eps 1e-05: only 1e-06 is supported"):
        load(folder)


@pytest.mark.parametrize("decoder", ["InternLM2ForCausalLM", "Qwen2ForCausalLM"])
def test_messages_to_an_answer_alone_and_in_a_batch_without_a_warning(tmp_path, capfd, decoder):
    folder = write_original(tmp_path / "m", decoder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)  # numpy's for older versions of transformers; not shown
        model, processor = load(folder)
        asked = [ask(), ask("the red one or a blue one?", (30, 30))]
        texts = [processor.apply_chat_template(message, add_generation_prompt=True) for message, _ in asked]
        batch = processor(text=texts, images=[[image] for _, image in asked], padding=True, return_tensors="pt")
        together = model.generate(**batch, do_sample=False, max_new_tokens=5)
        for row, text, (_, image) in zip(together, texts, asked, strict=True):
            alone = processor(text=[text], images=[image], return_tensors="pt")
            answer = model.generate(**alone, do_sample=False, max_new_tokens=5)[0, alone["input_ids"].shape[1] :]
            new = row[batch["input_ids"].shape[1] :]
            assert new[: len(answer)].tolist() == answer.tolist()
            assert set(new[len(answer) :].tolist()) <= {processor.tokenizer.pad_token_id}
    assert "[transformers]" not in capfd.readouterr().err


@torch.no_grad()
def test_pruning_reads_the_model_as_any_other(loaded):
    model, processor = loaded
    message, image = ask()
    text = processor.apply_chat_template(message, add_generation_prompt=True)
    prompt = processor(text=[text], images=[image], return_tensors="pt")
    visual = TOKENS * len(prompt["pixel_values"])
    dense = model(**prompt).logits
    with prune(model, PruningConfig.from_json('{"mode": []}')):
        torch.testing.assert_close(model(**prompt).logits, dense, atol=1e-5, rtol=1e-5)
    changes = {"shallow_mid_layer": 1, "layer_threshold": 0.99995, "tokens_threshold": 0.05}
    with prune(model, PruningConfig.from_json(json.dumps(FULL | changes))) as session:
        assert not torch.equal(model(**prompt).logits[:, -1], dense[:, -1])
    trace = session.traces[-1]
    assert trace.tokens_per_layer[0] == prompt["input_ids"].shape[1]
    assert trace.filter_layer is not None and 0 < len(trace.kept) < visual
    assert set(prompt["input_ids"][0, trace.kept].tolist()) == {CONTEXT}
