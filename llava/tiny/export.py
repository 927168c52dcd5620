"""Write the small model as a checkpoint in LLaVA's original on-disk layout, its vision tower beside it.

The folder gets config.json, model.safetensors, generation_config.json, the tokenizer and `vision_tower/`. Other files
in it (the model card, pruning.json) are left alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save as to_bytes
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from llava.files import write_json
from llava.tiny.pieces import BOS, EOS, PAD, PieceTokenizer
from llava.tiny.scenes import IMAGE_SIZE

State = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Architecture:
    """Sizes of the shipped model.

    The tower's last layer adds nothing: LLaVA's select layer -2 then reads the last trained one.
    """

    vocab_size: int = 672
    hidden_size: int = 192
    layers: int = 12
    heads: int = 4
    mlp_size: int = 512
    context: int = 512
    vision_hidden_size: int = 128
    vision_layers: int = 5
    vision_heads: int = 4
    vision_mlp_size: int = 512
    image_size: int = IMAGE_SIZE
    patch_size: int = 14
    pixel_mean: float = 118 / 255
    pixel_std: float = 64 / 255

    def vision_config(self) -> CLIPVisionConfig:
        """Return the tower's configuration for transformers."""
        return CLIPVisionConfig(
            hidden_size=self.vision_hidden_size,
            intermediate_size=self.vision_mlp_size,
            num_hidden_layers=self.vision_layers,
            num_attention_heads=self.vision_heads,
            image_size=self.image_size,
            patch_size=self.patch_size,
            hidden_act="quick_gelu",
            projection_dim=self.vision_hidden_size,
        )

    def language_config(self) -> LlamaConfig:
        """Return the decoder's configuration for transformers."""
        return LlamaConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.mlp_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            rms_norm_eps=1e-5,
            max_position_embeddings=self.context,
            tie_word_embeddings=False,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
        )


def _check(name: str, given: State, expected: Mapping[str, torch.Size]) -> None:
    common = sorted(expected.keys() & given.keys())
    shapes = [(k, list(given[k].shape), list(expected[k])) for k in common]
    problems = {
        "missing": sorted(expected.keys() - given.keys()),
        "unexpected": sorted(given.keys() - expected.keys()),
        "of another shape": [f"{k} {found} instead of {wanted}" for k, found, wanted in shapes if found != wanted],
    }
    wrong = [f"{len(names)} {problem}: {', '.join(names[:4])}" for problem, names in problems.items() if names]
    if wrong:
        raise ValueError(f"weights of the {name} do not fit the architecture; {'; '.join(wrong)}")


def _shapes(architecture: Architecture) -> tuple[dict[str, torch.Size], dict[str, torch.Size], dict[str, torch.Size]]:
    with torch.device("meta"):
        vision = CLIPVisionModel(architecture.vision_config()).state_dict()
        language = LlamaForCausalLM(architecture.language_config()).state_dict()
        projector = torch.nn.Sequential(
            torch.nn.Linear(architecture.vision_hidden_size, architecture.hidden_size),
            torch.nn.GELU(),
            torch.nn.Linear(architecture.hidden_size, architecture.hidden_size),
        ).state_dict()
    return tuple({k: v.shape for k, v in state.items()} for state in (vision, projector, language))


def _save(path: Path, state: State, dtype: torch.dtype) -> None:
    tensors = {k: v.detach().to(dtype).contiguous().clone() for k, v in state.items()}
    path.write_bytes(to_bytes(tensors, metadata={"format": "pt"}))


def _llava_config(a: Architecture, dtype: torch.dtype) -> dict:
    return {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        "torch_dtype": str(dtype).removeprefix("torch."),
        "vocab_size": a.vocab_size,
        "hidden_size": a.hidden_size,
        "intermediate_size": a.mlp_size,
        "num_hidden_layers": a.layers,
        "num_attention_heads": a.heads,
        "num_key_value_heads": a.heads,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "max_position_embeddings": a.context,
        "tokenizer_model_max_length": a.context,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "initializer_range": 0.02,
        "use_cache": True,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "image_aspect_ratio": "pad",
        "mm_vision_tower": "vision_tower",
        "mm_hidden_size": a.vision_hidden_size,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "use_mm_proj": True,
    }


def _write_vision_tower(folder: Path, vision: State, a: Architecture, dtype: torch.dtype) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["CLIPVisionModel"],
        "model_type": "clip_vision_model",
        "torch_dtype": str(dtype).removeprefix("torch."),
        "hidden_size": a.vision_hidden_size,
        "intermediate_size": a.vision_mlp_size,
        "num_hidden_layers": a.vision_layers,
        "num_attention_heads": a.vision_heads,
        "num_channels": 3,
        "image_size": a.image_size,
        "patch_size": a.patch_size,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-05,
        "attention_dropout": 0.0,
        "projection_dim": a.vision_hidden_size,
    }
    write_json(folder / "config.json", config, indent=2)
    size = a.image_size
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [a.pixel_mean] * 3,
        "image_std": [a.pixel_std] * 3,
    }
    write_json(folder / "preprocessor_config.json", processor, indent=2)
    _save(folder / "model.safetensors", {f"vision_model.{k}": v for k, v in vision.items()}, dtype)


def export(
    vision: State,
    projector: State,
    language: State,
    tokenizer: PieceTokenizer,
    out: Path,
    architecture: Architecture = Architecture(),  # noqa: B008 - frozen
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write a checkpoint folder.

    Args:
        vision: state dict of transformers' CLIPVisionModel, names with or without a leading `vision_model.`.
        projector: `0.weight` [D, V], `0.bias` [D], `2.weight` [D, D], `2.bias` [D].
        language: state dict of transformers' LlamaForCausalLM.
        tokenizer: its length must be the architecture's vocabulary.
        out: folder to write; made if absent, files of the same name are replaced.
        architecture: sizes that the tensors must have.
        dtype: on disk.

    Raises:
        ValueError: naming missing, unexpected and mis-shaped tensors, or a tokenizer of another length; before writing.

    """
    vision = {k.removeprefix("vision_model."): v for k, v in vision.items()}
    vision.pop("embeddings.position_ids", None)
    shapes = _shapes(architecture)
    for name, given, expected in zip(
        ("vision tower", "projector", "language model"), (vision, projector, language), shapes, strict=True
    ):
        _check(name, given, expected)
    if len(tokenizer) != architecture.vocab_size:
        raise ValueError(f"the tokenizer has {len(tokenizer)} pieces, the embedding {architecture.vocab_size} rows")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "config.json", _llava_config(architecture, dtype), indent=2)
    generation = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS, "do_sample": False}
    write_json(out / "generation_config.json", generation, indent=2)
    _save(
        out / "model.safetensors", {**language, **{f"model.mm_projector.{k}": v for k, v in projector.items()}}, dtype
    )
    tokenizer.save_pretrained(out)
    _write_vision_tower(out / "vision_tower", vision, architecture, dtype)
