"""The two scales of the L2 threshold: what a threshold, of this model or of another, keeps here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .recording import Watched


def filter_layers(watched: Watched, start: int, layer_threshold: float) -> np.ndarray:
    """Return each prompt's filter layer in the unpruned pass, int [prompts]; the number of layers for none."""
    found = []
    for cosine in watched.cosine:
        below = np.flatnonzero(cosine.min(1) < layer_threshold)
        below = below[below >= start]
        found.append(int(below[0]) if len(below) else len(cosine))
    return np.array(found)


def describe(watched: Watched, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a chosen threshold in both scales: the thresholds that keep as many tokens, and ‖O‖ where prompts filter.

    `output` holds the 5th, 50th and 95th percentile of ‖O‖, `kept` the mean number of tokens of the unpruned pass.
    """
    layers = filter_layers(watched, settings["shallow_mid_layer"], settings["layer_threshold"])
    prompts = [prompt for prompt, layer in enumerate(layers) if layer < len(watched.cosine[prompt])]
    scale = settings.get("tokens_scale", "absolute")
    kept = kept_by(watched, layers, scale, settings["tokens_threshold"])
    norms = [float(watched.output[prompt][layers[prompt]]) for prompt in prompts]
    found = {"kept": kept, "output": [float(value) for value in np.percentile(norms, (5, 50, 95))]}
    for name in ("absolute", "relative"):
        values = watched.in_scale(name).l2
        ordered = np.sort(np.concatenate([values[prompt][layers[prompt]] for prompt in prompts]))[::-1]
        place = min(round(kept * len(prompts)), len(ordered) - 1)
        found[name] = settings["tokens_threshold"] if name == scale else float(f"{ordered[place]:.3g}")
    return found


def kept_by(watched: Watched, layers: np.ndarray, scale: str, threshold: float) -> float:
    """Return the mean number of tokens that a threshold keeps at the prompts' filter layers."""
    values = watched.in_scale(scale).l2
    counts = [
        int((values[prompt][layer] > threshold).sum())
        for prompt, layer in enumerate(layers)
        if layer < len(values[prompt])
    ]
    return float(np.mean(counts))


def transfer(watched: Watched, settings: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return what another model's threshold would keep here in either scale, beside this model's own.

    other: the record of that model's calibration. `better` is the scale whose count lies nearer, by ratio.
    """
    layers = filter_layers(watched, settings["shallow_mid_layer"], settings["layer_threshold"])
    own = describe(watched, settings)["kept"]
    found = {name: kept_by(watched, layers, name, other["scale"][name]) for name in ("absolute", "relative")}
    off = {name: abs(np.log((kept + 0.5) / (own + 0.5))) for name, kept in found.items()}
    return {
        "from": other["model"],
        "own_kept": own,
        **{f"{name}_kept": kept for name, kept in found.items()},
        "better": min(off, key=off.__getitem__) if off["absolute"] != off["relative"] else "neither",
    }
