"""A random Qwen2.5-VL and prompts about a video: real positions and frames, random features in the encoder's place."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

from llava.model.pruning.flops import DecoderShape

from .options import PROMPT_TOKENS, BenchOptions
from .shapes import Shape, random_weights, text_split
from .workload import Workload, greedy

SIDE = 8
"""Rows and columns of visual tokens of two frames of 224 × 224 pixels."""
IMAGE, VIDEO, START, END = -1, -2, -3, -4
"""Special ids, counted from the vocabulary's end."""


def video_workload(shape: Shape, options: BenchOptions, device: torch.device, dtype: torch.dtype) -> Workload:
    """Build the model and its prompts: text, one video of `options.frames` frames, text.

    A token is a patch of two frames, which repeat the first ones and change a little, as a still camera's do.
    """
    layers = options.num_layers or shape.decoder.layers
    model = random_weights(lambda: _model(shape.decoder, shape.vocabulary, layers), device, dtype, options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    pairs, batch = -(-options.frames // 2), options.batch_size
    count = options.prompt_tokens or PROMPT_TOKENS
    before, after = text_split(count)
    video, start, end = (shape.vocabulary + one for one in (VIDEO, START, END))
    text = torch.randint(2, end, (batch, count), generator=generator)
    visual = pairs * SIDE**2
    frame = torch.tensor([[start], [end]]).expand(2, batch)[..., None]
    ids = torch.cat((text[:, : before - 1], frame[0], torch.full((batch, visual), video), frame[1]), 1)
    ids = torch.cat((ids, text[:, count - after + 1 :]), 1).to(device)
    first = torch.randn(batch, 1, SIDE**2, shape.decoder.hidden, generator=generator)
    change = torch.randn(batch, pairs, SIDE**2, shape.decoder.hidden, generator=generator)
    features = (model.config.text_config.initializer_range * (first + change / 2)).flatten(1, 2).to(device, dtype)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": 2 * (ids == video).int(),
        "video_grid_thw": torch.tensor([[pairs, 2 * SIDE, 2 * SIDE]] * batch, device=device),
    }

    def ask(new_tokens: int) -> Any:
        seen = {"video": BaseModelOutputWithPooling(pooler_output=list(features))}
        return model.generate(**inputs, mm_encoder_outputs=seen, **greedy(new_tokens, 0))

    return Workload(model, [ask], [(ids.shape[1], visual)] * batch, None, True)


def _model(decoder: DecoderShape, vocabulary: int, layers: int) -> PreTrainedModel:
    """Return the model with the published decoder's dimensions and a vision tower that never runs."""
    eighth = decoder.head_dim // 8
    sections = [eighth, 3 * eighth // 2, 3 * eighth // 2]  # the published 16, 24, 24 of a head of 128
    text = {
        "vocab_size": vocabulary,
        "hidden_size": decoder.hidden,
        "intermediate_size": decoder.mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": decoder.heads,
        "num_key_value_heads": decoder.kv_heads,
        "max_position_embeddings": 128000,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections},
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": None,
    }
    tower = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": decoder.hidden}
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    ids = {name: vocabulary + one for name, one in zip(names, (IMAGE, VIDEO, START, END), strict=True)}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=tower, tie_word_embeddings=False, **ids)
    config._attn_implementation = "sdpa"
    return Qwen2_5_VLForConditionalGeneration(config)
