"""VisiPruner: training-free pruning of visual tokens in multimodal LLMs.

from llava import load_pretrained_model, prune, PruningConfig
"""

from .model.pruning import PruningConfig, PruningTrace, prune

__all__ = ["PruningConfig", "PruningTrace", "load_pretrained_model", "prune"]


def __getattr__(name: str):
    # the model classes import transformers' CLIP and Llama; configs and scorers need neither
    if name == "load_pretrained_model":
        from .model.builder import load_pretrained_model

        return load_pretrained_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
