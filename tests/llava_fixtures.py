"""Small random LLaVA models for tests: in memory, as transformers' own class, and on disk in the original layout."""

from __future__ import annotations

import json
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, LlamaConfig
from transformers import LlavaConfig as HFLlavaConfig
from transformers import LlavaForConditionalGeneration as HFLlava

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.language_model.configuration_llava import LlavaConfig
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM

IMAGE_SIZE, PATCHES, WIDTH, VOCABULARY = 28, 4, 32, 320
TOWER = "model.vision_tower.vision_tower."
LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAVA = {
    "mm_vision_tower": "vision_tower",
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "mm_hidden_size": 16,
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
    "image_aspect_ratio": "pad",
    "tokenizer_model_max_length": 128,
}


def vision_config(image_size: int = IMAGE_SIZE, patch_size: int = 14) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=image_size,
        patch_size=patch_size,
        projection_dim=16,
    )


def make_model(seed: int = 0, vision: CLIPVisionConfig | None = None, **changes) -> LlavaLlamaForCausalLM:
    torch.manual_seed(seed)
    model = LlavaLlamaForCausalLM(LlavaConfig(**LLAMA | LLAVA | changes), vision or vision_config()).eval()
    with torch.no_grad():  # the usual start, zero biases and a small tower, would hide what a test looks for
        for parameter in [*model.model.vision_tower.parameters(), *model.model.mm_projector.parameters()]:
            parameter.normal_(0, 0.3)
    return model


def make_hf_twin(model: LlavaLlamaForCausalLM) -> HFLlava:
    """Return transformers' LLaVA with the same weights; its image token is the last id of the vocabulary."""
    config = HFLlavaConfig(
        vision_config=vision_config(),
        text_config=LlamaConfig(**LLAMA),
        image_token_id=VOCABULARY - 1,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    twin = HFLlava(config).eval()
    parts = {TOWER: "model.vision_tower.", "model.mm_projector.0.": "model.multi_modal_projector.linear_1."}
    parts |= {"model.mm_projector.2.": "model.multi_modal_projector.linear_2.", "lm_head.": "lm_head."}
    parts |= {"model.": "model.language_model."}
    state = {}
    for name, tensor in model.state_dict().items():
        ours, theirs = next((ours, theirs) for ours, theirs in parts.items() if name.startswith(ours))
        state[theirs + name.removeprefix(ours)] = tensor
    twin.load_state_dict(state)
    return twin


def hf_inputs(input_ids: torch.Tensor, attention_mask: torch.Tensor, images: torch.Tensor | None) -> dict:
    """Write the prompts as transformers takes them: an image token per patch, left padded."""
    rows = []
    for ids, keep in zip(input_ids, attention_mask.bool(), strict=True):
        repeats = torch.where(ids[keep] == IMAGE_TOKEN_INDEX, PATCHES, 1)
        rows.append(ids[keep].masked_fill(ids[keep] == IMAGE_TOKEN_INDEX, VOCABULARY - 1).repeat_interleave(repeats))
    ids, mask = pad_left(rows)
    return {"input_ids": ids, "attention_mask": mask} | ({} if images is None else {"pixel_values": images})


def pad_left(rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    length = max(map(len, rows))
    ids = torch.stack([torch.cat([row.new_zeros(length - len(row)), row]) for row in rows])
    mask = torch.stack([(torch.arange(length) >= length - len(row)).long() for row in rows])
    return ids, mask


def prompts(
    *layout: str, seed: int = 0, size: int = IMAGE_SIZE
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Make a batch from sketches ("t" a random token, "i" an image); returns ids, mask and pixels or None."""
    generator = torch.Generator().manual_seed(seed)
    text = [torch.randint(3, VOCABULARY - 1, (len(sketch),), generator=generator) for sketch in layout]
    image = [torch.tensor([kind == "i" for kind in sketch]) for sketch in layout]
    rows = [row.masked_fill(marker, IMAGE_TOKEN_INDEX) for row, marker in zip(text, image, strict=True)]
    count = sum(int(marker.sum()) for marker in image)
    pixels = torch.randn(count, 3, size, size, generator=generator) if count else None
    return *pad_left(rows), pixels


def write_checkpoint(
    folder: Path,
    model: LlavaLlamaForCausalLM,
    kind: str = "safetensors",
    shards: int = 1,
    model_type: str = "llava",
    tower_inside: bool = False,
    edit=None,
) -> Path:
    """Write LLaVA's original layout; `edit` may change the state dict, `kind` is "safetensors" or "bin"."""
    folder.mkdir(parents=True, exist_ok=True)
    config = LLAMA | LLAVA | {"model_type": model_type, "architectures": ["LlavaLlamaForCausalLM"]}
    config |= {key: getattr(model.config, key) for key in ("mm_projector_type", "tie_word_embeddings")}
    write_json(folder / "config.json", config | {"torch_dtype": "float16", "max_length": 4096, "rope_scaling": None})
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    tower = {name.removeprefix(TOWER): state.pop(name) for name in list(state) if name.startswith(TOWER)}
    if tower_inside:
        state |= {f"{TOWER}vision_model.{name.removeprefix('vision_model.')}": t for name, t in tower.items()}
    if edit is not None:
        edit(state)
    write_weights(folder, state, kind, shards)
    write_tower(folder / "vision_tower", {} if tower_inside else tower, vision=model.get_vision_tower().config)
    write_tokenizer(folder)
    return folder


def write_weights(folder: Path, state: dict[str, torch.Tensor], kind: str = "safetensors", shards: int = 1) -> None:
    stem = "model" if kind == "safetensors" else "pytorch_model"
    write = save_file if kind == "safetensors" else torch.save
    if shards == 1:
        write(state, folder / f"{stem}.{kind}")
        return
    index = {}
    for shard in range(shards):
        name = f"{stem}-{shard + 1:05}-of-{shards:05}.{kind}"
        part = {key: state[key] for key in list(state)[shard::shards]}
        write(part, folder / name)
        index |= dict.fromkeys(part, name)
    write_json(folder / f"{stem}.{kind}.index.json", {"metadata": {}, "weight_map": index})


def write_tower(
    folder: Path, state: dict[str, torch.Tensor], prefix: str = "", vision: CLIPVisionConfig | None = None
) -> None:
    folder.mkdir(exist_ok=True)
    vision = vision or vision_config()
    write_json(folder / "config.json", vision.to_dict())
    if state:
        write_weights(folder, {prefix + name.removeprefix("vision_model."): t for name, t in state.items()})
    side = vision.image_size
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    processor.save_pretrained(folder)


def write_tokenizer(folder: Path, **settings) -> None:
    """Train a sentencepiece BPE as Llama's is: byte fallback, no normalisation, a dummy prefix."""
    text = ["USER: What is the colour of the small circle?", "ASSISTANT: blue", "a red square on the left", "no, 42"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text * 4),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=3,
    )
    (folder / "tokenizer.vocab").unlink()
    defaults = {"tokenizer_class": "LlamaTokenizer", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    write_json(folder / "tokenizer_config.json", defaults | {"legacy": False, "padding_side": "right"} | settings)


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")
