"""A small random InternVL, written as published: InternLM2's, Qwen2's or Llama's names, tokenizer files and configs."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers as hf
from llava_fixtures import VOCABULARY, write_json, write_tokenizer, write_weights
from sentencepiece import sentencepiece_model_pb2
from tokenizers import ByteLevelBPETokenizer

SIDE, TOKENS = 28, 4  # pixels of a tile's side, visual tokens of a tile
ADDED = ("<|plugin|>", "<|im_end|>", "<|im_start|>", "<img>", "</img>", "<IMG_CONTEXT>", "<box>", "</box>")
HEADS, KV_HEADS, HEAD_DIM, TRAINED = 6, 2, 8, 512
TEXT = {
    "hidden_size": HEADS * HEAD_DIM,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": TRAINED,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
VISION |= {"image_size": SIDE, "patch_size": 7, "norm_type": "layer_norm", "layer_norm_eps": 1e-6}
ROPE = {"rope_type": "dynamic", "rope_theta": 1e6, "factor": 2.0}
DECODERS = {
    "InternLM2ForCausalLM": ("internlm2", hf.LlamaConfig, {"attention_bias": False}),
    "InternLM2ForCausalLM, biases": ("internlm2", hf.LlamaConfig, {"attention_bias": True}),
    "Qwen2ForCausalLM": ("qwen2", hf.Qwen2Config, {}),
    "LlamaForCausalLM": ("llama", hf.LlamaConfig, {}),
}
LENGTH = VOCABULARY + len(ADDED) - 2  # the model's vocabulary: two added tokens have ids that sentencepiece left unused


def make_model(decoder: str = "InternLM2ForCausalLM", qk_norm: bool = False) -> hf.InternVLForConditionalGeneration:
    """The model as transformers makes it; every weight random, so that none can be exchanged for another."""
    _, config_class, extra = DECODERS[decoder]
    torch.manual_seed(0)
    text = config_class(vocab_size=LENGTH, rope_parameters=ROPE, tie_word_embeddings=False, **TEXT, **extra)
    vision = {**VISION, "norm_type": "rms_norm" if qk_norm else "layer_norm"}
    vision = hf.InternVLVisionConfig(attention_bias=not qk_norm, use_qk_norm=qk_norm, **vision)
    config = hf.InternVLConfig(
        text_config=text, vision_config=vision, image_token_id=added_ids()["<IMG_CONTEXT>"], tie_word_embeddings=False
    )
    model = hf.InternVLForConditionalGeneration(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or "position" in name or "cls_token" in name:
            parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.3)
        else:
            parameter.normal_(0.0, 1.0 if "embed_tokens" in name else 1.3 * parameter[0].numel() ** -0.5)
    return model


def added_ids() -> dict[str, int]:
    return {token: VOCABULARY - 2 + index for index, token in enumerate(ADDED)}


def original_weights(model: hf.InternVLForConditionalGeneration, internlm2: bool) -> dict[str, torch.Tensor]:
    """Put the weights under their published names, queries, keys and values fused."""
    ours, state = model.state_dict(), {}

    def put(name, tensor):
        state[name] = tensor.detach().clone()

    tower, projector, text = "model.vision_tower.", "model.multi_modal_projector.", "model.language_model."
    put("vision_model.embeddings.class_embedding", ours[f"{tower}embeddings.cls_token"])
    put("vision_model.embeddings.position_embedding", ours[f"{tower}embeddings.position_embeddings"])
    for kind in ("weight", "bias"):
        put(
            f"vision_model.embeddings.patch_embedding.{kind}",
            ours[f"{tower}embeddings.patch_embeddings.projection.{kind}"],
        )
        for index, name in {0: "layer_norm", 1: "linear_1", 3: "linear_2"}.items():
            put(f"mlp1.{index}.{kind}", ours[f"{projector}{name}.{kind}"])
    for layer in range(model.config.vision_config.num_hidden_layers):
        old, new = f"{tower}encoder.layer.{layer}.", f"vision_model.encoder.layers.{layer}."
        put(f"{new}ls1", ours[f"{old}lambda_1"])
        put(f"{new}ls2", ours[f"{old}lambda_2"])
        for kind in ("weight", "bias"):
            if f"{old}attention.q_proj.{kind}" in ours:
                fused = [ours[f"{old}attention.{part}_proj.{kind}"] for part in "qkv"]
                put(f"{new}attn.qkv.{kind}", torch.cat(fused))
            for mine, theirs in {
                "attention.projection_layer": "attn.proj",
                "attention.q_norm": "attn.q_norm",
                "attention.k_norm": "attn.k_norm",
                "layernorm_before": "norm1",
                "layernorm_after": "norm2",
                "mlp.fc1": "mlp.fc1",
                "mlp.fc2": "mlp.fc2",
            }.items():
                if f"{old}{mine}.{kind}" in ours:
                    put(f"{new}{theirs}.{kind}", ours[f"{old}{mine}.{kind}"])
    if not internlm2:
        for name in ours:
            if name.startswith(text):
                put(f"language_model.model.{name.removeprefix(text)}", ours[name])
        put("language_model.lm_head.weight", ours["lm_head.weight"])
        return state
    put("language_model.output.weight", ours["lm_head.weight"])
    put("language_model.model.tok_embeddings.weight", ours[f"{text}embed_tokens.weight"])
    put("language_model.model.norm.weight", ours[f"{text}norm.weight"])
    for layer in range(model.config.text_config.num_hidden_layers):
        old, new = f"{text}layers.{layer}.", f"language_model.model.layers.{layer}."
        put(f"{new}attention_norm.weight", ours[f"{old}input_layernorm.weight"])
        put(f"{new}ffn_norm.weight", ours[f"{old}post_attention_layernorm.weight"])
        for number, part in {1: "gate", 2: "down", 3: "up"}.items():
            put(f"{new}feed_forward.w{number}.weight", ours[f"{old}mlp.{part}_proj.weight"])
        for kind in ("weight", "bias"):
            if f"{old}self_attn.o_proj.{kind}" not in ours:
                continue
            put(f"{new}attention.wo.{kind}", ours[f"{old}self_attn.o_proj.{kind}"])
            q, k, v = (ours[f"{old}self_attn.{part}_proj.{kind}"].split(HEAD_DIM) for part in "qkv")
            group = HEADS // KV_HEADS
            rows = [[*q[group * head : group * (head + 1)], k[head], v[head]] for head in range(KV_HEADS)]
            put(f"{new}attention.wqkv.{kind}", torch.cat([row for rows_of_head in rows for row in rows_of_head]))
    return state


def write_original(folder: Path, decoder: str = "InternLM2ForCausalLM", shards=1, edit=None, model=None, **changes):
    """Write the published layout; `edit` may change the weights, `changes` are keys of config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    model = model or make_model(decoder)
    kind, _, extra = DECODERS[decoder]
    vision = model.config.vision_config
    config = {
        "architectures": ["InternVLChatModel"],
        "auto_map": {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"},
        "model_type": "internvl_chat",
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": SIDE,
        "llm_config": {
            "architectures": [decoder.split(",")[0]],
            "auto_map": {"AutoConfig": "configuration_internlm2.InternLM2Config"},
            "model_type": kind,
            "attn_implementation": "eager",
            "max_length": 20,
            "vocab_size": LENGTH,
            "rope_scaling": {"factor": 2.0, "type": "dynamic"},
            "rope_theta": 1000000,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 2,
            "torch_dtype": "bfloat16",
            **TEXT,
            **({"bias": extra["attention_bias"]} if extra else {}),
        },
        "max_dynamic_patch": 12,
        "min_dynamic_patch": 1,
        "pad2square": False,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internvl2_5",
        "torch_dtype": "bfloat16",
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "use_thumbnail": True,
        "vision_config": {
            "architectures": ["InternVisionModel"],
            "model_type": "intern_vit_6b",
            "dropout": 0.0,
            "drop_path_rate": 0.1,
            "hidden_act": "gelu",
            "num_channels": 3,
            **VISION,
            "norm_type": vision.norm_type,
            "qk_normalization": vision.use_qk_norm,
            "qkv_bias": vision.attention_bias,
            "use_flash_attn": True,
        },
    }
    write_json(folder / "config.json", config | changes)
    write_json(folder / "generation_config.json", {"eos_token_id": 7})
    weights = original_weights(model, kind == "internlm2")
    if edit is not None:
        edit(weights)
    write_weights(folder, weights, shards=shards)
    if kind == "qwen2":
        write_qwen2_tokenizer(folder)
    else:
        write_internlm2_tokenizer(folder)
    return folder


def write_internlm2_tokenizer(folder: Path, dummy_prefix: bool = False, **settings) -> None:
    """Write `tokenizer.model`, its last two pieces unused, and the settings that name InternLM2's remote class."""
    tokens = {"<unk>": 0, "<s>": 1, "</s>": 2} | added_ids()
    defaults = {
        "tokenizer_class": "InternLM2Tokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
        "added_tokens_decoder": added_tokens(tokens),
        "additional_special_tokens": list(ADDED),
        "pad_token": "</s>",
        "chat_template": "{{ bos_token }}another one",
        "model_max_length": 8192,
    }
    write_tokenizer(folder, **defaults | settings)
    path = folder / "tokenizer.model"
    proto = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
    proto.normalizer_spec.add_dummy_prefix = dummy_prefix
    for index in (1, 2):  # rare letters, left to the bytes: their ids are what the added tokens take
        proto.pieces[-index].piece = f"[UNUSED_TOKEN_{index}]"
    path.write_bytes(proto.SerializeToString())


def write_qwen2_tokenizer(folder: Path) -> None:
    """Train a byte-level BPE, and give the added tokens the ids that InternLM2's have here."""
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(["What is the colour of the small circle?\nblue"] * 4, vocab_size=VOCABULARY - 3)
    trained.save_model(str(folder))
    vocabulary = json.loads((folder / "vocab.json").read_text())
    filler = {f"unused{index}": index for index in range(len(vocabulary), VOCABULARY - 3)}
    write_json(folder / "vocab.json", vocabulary | filler)
    tokens = {"<|endoftext|>": VOCABULARY - 3} | added_ids()
    write_json(folder / "added_tokens.json", tokens)
    settings = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    settings |= {"added_tokens_decoder": added_tokens(tokens), "add_bos_token": False, "chat_template": "another one"}
    write_json(folder / "tokenizer_config.json", settings)


def added_tokens(tokens: dict[str, int]) -> dict[str, dict]:
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {str(index): {"content": token, **plain} for token, index in tokens.items()}
