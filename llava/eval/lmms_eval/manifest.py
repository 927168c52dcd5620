"""What lmms-eval finds through the entry-point group `lmms_eval.models`: the model `visipruner` and its two classes."""

from __future__ import annotations

from lmms_eval.models.registry_v2 import ModelManifest

MODELS = "llava.eval.lmms_eval.models"

manifest = ModelManifest(
    model_id="visipruner",
    chat_class_path=f"{MODELS}.VisiPrunerChat",
    simple_class_path=f"{MODELS}.VisiPrunerSimple",
)
