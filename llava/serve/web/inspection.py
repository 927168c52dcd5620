"""What the page draws of one prompt: where its tokens lie, what became of each, its influence, its words."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image

from llava.analysis.heads import value_output
from llava.analysis.influence import map_of
from llava.analysis.lens import Words, logit_lens
from llava.analysis.recording import read
from llava.analysis.views import WHOLE, view_of
from llava.model.inputs import ImageFeatures, Inputs
from llava.model.loaded import LoadedModel
from llava.model.pruning import PruningConfig, prune
from llava.model.pruning.influence import Influence
from llava.model.pruning.record import recorder

from .pictures import Picture

READ, MERGED, SINK, UNREAD, LEFT, NEVER = range(6)
"""States of a visual token in a layer: text rows read it · its attention moves to the sink · it is that sink · text
rows do not read it there · it has left · it has left, and no text row ever read it."""


def token_states(trace: Mapping[str, Any], visual: Sequence[int]) -> list[list[int]]:
    """Return the state of each visual token in each layer, [L][V] of the constants above.

    trace: `PruningTrace.to_dict()` or an answers file's metadata, which has no attention rules: layers count as dense;
    visual: positions of the prompt's visual tokens.
    """
    layers = len(trace["tokens_per_layer"])
    rules = trace.get("rules") or [{"text": "dense", "sink": 0}] * layers
    cuts = {int(layer): set(keep) for layer, keep in cuts_of(trace)}
    present, read_before = np.ones(len(visual), bool), np.zeros(len(visual), bool)
    states = []
    for layer in range(layers):
        keep = cuts.get(layer - 1)
        if keep is not None:
            present &= np.isin(visual, list(keep))
        places = np.flatnonzero(present)
        row = np.where(read_before, LEFT, NEVER)
        text = rules[layer]["text"]
        row[places] = {"dense": READ, "half": READ, "merge": MERGED}.get(text, UNREAD)
        if text == "half":
            row[places[: len(places) // 2]] = UNREAD
        if text == "merge" and len(places):
            row[places[min(rules[layer]["sink"], len(places) - 1)]] = SINK
        read_before |= np.isin(row, (READ, SINK, MERGED))
        states.append(row.tolist())
    return states


def cuts_of(trace: Mapping[str, Any]) -> list[tuple[int, Sequence[int]]]:
    """Return a trace's cuts, from filter and exit layer where it does not list them (see `PruningTrace.summary`)."""
    if trace.get("cuts"):
        return trace["cuts"]
    cuts = [] if trace["filter_layer"] is None else [(trace["filter_layer"], trace["kept"])]
    return cuts if trace["exit_layer"] is None else [*cuts, (trace["exit_layer"] - 1, [])]


def visual_positions(inputs: Inputs, row: Sequence[int], features: Sequence[ImageFeatures]) -> list[int]:
    """Return the prompt positions of all visual tokens of a row."""
    positions, place, following = [], 0, iter(features)
    markers = {inputs.marker, inputs.video_marker} - {None}
    for token in row:
        if token not in markers:
            place += 1
            continue
        image = next(following)
        ids = getattr(getattr(image.content, "picture", None), "ids", None)
        inside = [n for n, one in enumerate(ids) if one in markers] if ids else None
        if inside is None or len(inside) != image.visual:
            inside = range(image.first, image.first + image.visual)
        positions += [place + n for n in inside]
        place += image.tokens
    return positions


def layout(
    loaded: LoadedModel,
    images: Sequence[Image.Image],
    row: Sequence[int],
    features: Sequence[ImageFeatures],
    grid: np.ndarray | None = None,
) -> dict[str, Any]:
    """Return where a prompt's visual tokens are: `visual` positions, `panels` over its pictures, and their `sizes`.

    Panels have `cells` (numbers of visual tokens, rows of a grid), `box` (shares of the picture), `image`, `thumbnail`.
    A family without a known grid has none, and a `note`. `grid`: of a prompt with videos, as `PromptState.grid`; the
    frames are the pictures then, -1 in a cell is no token.
    """
    made: dict[str, Any] = {"visual": visual_positions(loaded.inputs, row, features), "panels": [], "note": None}
    made["sizes"] = [image.size for image in images]
    if grid is not None:
        return made | {"panels": frame_panels(grid, made["visual"], len(images))}
    try:
        panels = view_of(loaded.model, loaded.inputs, images, features).panels
    except ValueError as error:
        return made | {"note": str(error)}
    shown = [
        {"cells": one.cells.tolist(), "box": one.box, "image": one.image, "thumbnail": one.thumbnail} for one in panels
    ]
    return made | {"panels": shown}


def frame_panels(grid: np.ndarray, visual: Sequence[int], pictures: int) -> list[dict[str, Any]]:
    """Return a panel per frame of videos (and image) from int [T, 4]: image or video, frame, row, column.

    Where a family reads frames in groups, as many pictures as a group has stand for it; the first one is drawn.
    """
    places = grid[list(visual)]
    groups = sorted({(int(media), int(frame)) for media, frame in places[:, :2] if media >= 0 and frame >= 0})
    every = max(pictures // max(len(groups), 1), 1)
    panels = []
    for number, (media, frame) in enumerate(groups):
        inside = np.flatnonzero((places[:, 0] == media) & (places[:, 1] == frame) & (places[:, 2] >= 0))
        cells = np.full(places[inside, 2:].max(0) + 1, -1)
        cells[places[inside, 2], places[inside, 3]] = inside
        image = min(number * every, pictures - 1)
        panels.append({"cells": cells.tolist(), "box": WHOLE, "image": image, "thumbnail": False})
    return panels


@torch.inference_mode()
def inspect(
    loaded: LoadedModel, row: Sequence[int], pictures: Sequence[Picture], config: PruningConfig
) -> dict[str, Any]:
    """Read one prompt under a config and measure every layer; JSON-ready.

    `states` as `token_states`; `influence`: {cosine, l2, attention}, each [L][V] with None where a token had left;
    `curves`: the smallest cosine and the largest L2 of each layer; `trace` in full; and what `layout` returns.
    `frames`: of a prompt with videos, small pictures (data: URLs) of its frames and images; None for images alone.

    Raises:
        ValueError: a prompt without an image, and what `prune` refuses.

    """
    if not pictures:
        raise ValueError("this prompt has no image, so that there is nothing to draw")
    with prune(loaded.model, recorder(Influence(), config)) as session:
        features = features_of(loaded, pictures, again=any(stage.reads_vision for stage in config.stages))
        read(loaded.model, loaded.inputs.collate([list(row)], [features], loaded.model), use_cache=True)
        recorded, trace = session.policies[0].memory["recorded"], session.traces[0]
        grid = session.policies[0].grid if any(one.is_video for one in pictures) else None
    shown = [image for one in pictures for image in one.shown]
    made = layout(loaded, shown, row, features, grid)
    made["frames"] = None if grid is None else [thumbnail_url(image) for image in shown]
    found = map_of(recorded, trace)
    places = np.searchsorted(made["visual"], recorded.visual)
    influence = {}
    for name in ("cosine", "l2", "attention"):
        whole = np.full((len(trace.tokens_per_layer), len(made["visual"])), np.nan)
        whole[:, places] = getattr(found, name).values
        influence[name] = whole
    curves = {"cosine": _extreme(influence["cosine"], np.nanmin), "l2": _extreme(influence["l2"], np.nanmax)}
    full = trace.to_dict()
    return made | {
        "states": token_states(full, made["visual"]),
        "influence": {name: [_numbers(one) for one in rows] for name, rows in influence.items()},
        "curves": {name: _numbers(one) for name, one in curves.items()},
        "trace": full,
    }


def thumbnail_url(image: Image.Image, side: int = 448) -> str:
    """Return a small JPEG of an image as a data: URL; pages cannot take frames out of every video."""
    small, file = image.copy(), BytesIO()
    small.thumbnail((side, side))
    small.save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def features_of(loaded: LoadedModel, pictures: Sequence[Picture], again: bool = False) -> list[ImageFeatures]:
    """Return the pictures' features, encoded where that has not been done yet, or `again`."""
    new = [one for one in pictures if again or one.features is None]
    if new:
        encoded = loaded.inputs.encode_images(loaded.model, [one.processed for one in new])
        for picture, features in zip(new, encoded, strict=True):
            picture.features = features
    return [one.features for one in pictures]


@torch.inference_mode()
def words(
    loaded: LoadedModel, row: Sequence[int], pictures: Sequence[Picture], position: int, top: int = 4
) -> dict[str, Any]:
    """Return the words of one token by layer, nothing pruned: `lens` of its states, `value` of what it would write.

    `lens`: [L][top] pairs (word, probability); `value`: [L][H] pairs, the first word of every head; None with a `note`
    for a model whose heads cannot be read so. Raises `ValueError` for a position that the prompt does not have.
    """
    features = features_of(loaded, pictures)
    inputs = loaded.inputs.collate([list(row)], [features], loaded.model)
    length = loaded.inputs.length(row, features)
    if not 0 <= position < length:
        raise ValueError(f"position {position} is outside of the prompt, which has {length} tokens")
    lens = _pairs(logit_lens(loaded.model, inputs, [position], top=top)[0], loaded.tokenizer)
    made: dict[str, Any] = {"position": position, "lens": [layer[0] for layer in lens], "value": None, "note": None}
    try:
        heads = _pairs(value_output(loaded.model, inputs, position, top=1)[0], loaded.tokenizer)
    except (AttributeError, ValueError) as error:
        return made | {"note": f"the value–output words of this model cannot be read: {error}"}
    return made | {"value": [[head[0] for head in layer] for layer in heads]}


def _pairs(found: Words, tokenizer: Any) -> list[list[list[tuple[str, float]]]]:
    texts, shares = found.text(tokenizer).values, found.probabilities.values
    return [
        [
            [(str(text), round(float(share), 5)) for text, share in zip(*ranked, strict=True)]
            for ranked in zip(*pair, strict=True)
        ]
        for pair in zip(texts, shares, strict=True)
    ]


def _extreme(values: np.ndarray, choose: Any) -> np.ndarray:
    return np.array([np.nan if np.isnan(row).all() else choose(row) for row in values])


def _numbers(values: np.ndarray) -> list[float | None]:
    return [float(f"{value:.5g}") if np.isfinite(value) else None for value in values.tolist()]
