"""The ten experiments of VisiPruner's analysis (arXiv 2510.17205): runs, figure and the paper's finding of each.

An experiment is a function from a `Setup` to cells; a cell is one run of a benchmark: what is varied, and a pruning
config. A new one is such a function here, under `@experiment(…)`, which names its figure.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .experiment_figures import Row, bars, exit_histogram, lines, threshold_maps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DENSE = "dense"
STAGES = {"shallow": (0, 8), "middle": (8, 15), "deep": (26, 32)}
"""The paper's windows of LLaVA-1.5-7B's 32 layers, from 0, end excluded (Tables 1 to 3: 1–8, 9–15 and 27–32)."""


@dataclass(frozen=True)
class Cell:
    """One run: the varied values (columns of the CSV) and the pruning config; None is the dense model."""

    varied: Mapping[str, Any]
    config: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Setup:
    """The inputs from which an experiment makes its cells for one model; layers count from 0.

    layers:
        number of decoder layers
    visual_tokens:
        the fewest of any prompt that has an image
    windows:
        the layers of each stage: `shallow`, `middle`, `deep`
    layer:
        the layer after which tokens are selected or disturbed
    keep:
        how many visual tokens a selection keeps, or a disturbance takes
    step:
        a sweep visits every `step`-th layer
    config:
        a `visipruner` config, for `exits` and `grid`
    grid:
        key of that config → values
    """

    layers: int
    visual_tokens: int
    windows: Mapping[str, tuple[int, ...]]
    layer: int
    keep: int
    step: int
    config: Mapping[str, Any]
    grid: Mapping[str, tuple[float, ...]]

    def sweep(self, start: int, stop: int) -> list[int]:
        """Return every `step`-th layer from `start`, and always the last one before `stop`."""
        layers = list(range(start, stop, self.step))
        return layers if not layers or layers[-1] == stop - 1 else [*layers, stop - 1]


@dataclass(frozen=True)
class Experiment:
    """One experiment of the paper.

    source, finding:
        where the paper has it, and what it found on LLaVA-1.5-7B
    cells:
        makes the runs; the first one is dense
    draw:
        makes the figure of the CSV's rows
    table:
        makes the CSV's rows from (rows of the cells, totals of their runs), where that is not one row per cell
    """

    name: str
    title: str
    source: str
    finding: str
    cells: Callable[[Setup], list[Cell]]
    draw: Callable[[Sequence[Row]], Figure]
    table: Callable[[Sequence[Row], Sequence[Mapping[str, Any]]], list[Row]] | None = None


EXPERIMENTS: dict[str, Experiment] = {}
"""All experiments by name, in the order of this file."""


def experiment(name: str, title: str, **about: Any) -> Callable[[Callable[[Setup], list[Cell]]], Experiment]:
    """Decorator: register a function that makes cells as an `Experiment` in `EXPERIMENTS`."""

    def made(cells: Callable[[Setup], list[Cell]]) -> Experiment:
        return EXPERIMENTS.setdefault(name, Experiment(name, title, cells=cells, **about))

    return made


def scaled(layer: int, layers: int) -> int:
    """Return layer boundary `layer` of the paper's 32 layers in a decoder of `layers` layers, at least 1."""
    from llava.model.pruning.method import scaled_boundary  # torch: not while the command line is read

    return scaled_boundary(layer, layers)


def default_windows(layers: int) -> dict[str, tuple[int, ...]]:
    """Scale the paper's stages to a decoder of `layers` layers; each has at least one layer."""
    windows = {}
    for name, (start, stop) in STAGES.items():
        first, end = (scaled(layer, layers) if layer else 0 for layer in (start, stop))
        first = min(first, layers - 1)
        windows[name] = tuple(range(first, max(first + 1, min(layers, end))))
    return windows


def layers_text(layers: Sequence[int]) -> str:
    """Write layers as `0-3`, `5` or `2 4`; `none` for none."""
    if not layers:
        return "none"
    contiguous = list(layers) == list(range(layers[0], layers[-1] + 1))
    return f"{layers[0]}-{layers[-1]}" if contiguous and len(layers) > 1 else " ".join(map(str, layers))


def mask(layers: Sequence[int], **settings: Any) -> dict[str, Any]:
    """Return the config under which text does not read the image in `layers`; `settings` are other keys of `mask`."""
    return {"method": "mask", "layers": list(layers), **settings}


def masking_windows(layers: int, sweep: Callable[[int, int], Sequence[int]] = range) -> list[tuple[str, int, range]]:
    """Return (window, k, masked layers): the first k layers, those from k on, and pairs; k as `sweep` says."""
    windows = [("first", k, range(k)) for k in sorted({*sweep(1, layers), layers})]
    windows += [("last", k, range(k, layers)) for k in sweep(1, layers)]
    return windows + [("pair", k, range(k, k + 2)) for k in sweep(0, layers - 1)]


@experiment(
    "windows",
    "Masking text→visual attention from the shallow and from the deep end",
    source="Fig. 3, 9",
    finding="Masked in layers 1–7 the model loses little once attention is merged (57.2, merged 61.5 of 62.0 on GQA); "
    "masked in 9–15 it falls to 51.7, in 27–32 it stays at 61.8: fusion happens in the middle.",
    draw=lines(
        "window",
        {"first": "layers 0 to k−1 masked", "last": "layers k to the last masked", "pair": "layers k and k+1 masked"},
    ),
)
def windows(setup: Setup) -> list[Cell]:
    """Mask the first k layers, the layers from k on, and every pair of layers."""
    dense = Cell({"window": DENSE, "k": 0, "masked": layers_text([])})
    return [dense] + [
        Cell({"window": name, "k": k, "masked": layers_text(layers)}, mask(layers))
        for name, k, layers in masking_windows(setup.layers, setup.sweep)
    ]


ATTENDED_TOKENS = {
    "top 10%": {"attended": "top", "share": 0.1},
    "bottom 10%": {"attended": "bottom", "share": 0.1},
    "bottom 90%": {"attended": "bottom", "share": 0.9},
    "random 50%": {"attended": "random", "share": 0.5},
    "all": {},
}


@experiment(
    "attended",
    "Masking the most and the least attended visual tokens",
    source="Tables 1, 7",
    finding="GQA, the 10% most attended masked: layers 1–2 no change, 9–15 61.95 → 54.09; the 10% least attended in "
    "9–15 61.93.",
    draw=bars("layers", "tokens"),
)
def attended(setup: Setup) -> list[Cell]:
    """Mask each group of tokens in each stage, ranked by the last prompt token's attention in the masked layer."""
    dense = Cell({"layers": DENSE, "masked": layers_text([]), "tokens": "none"})
    return [dense] + [
        Cell({"layers": stage, "masked": layers_text(window), "tokens": tokens}, mask(window, **settings))
        for stage, window in setup.windows.items()
        for tokens, settings in ATTENDED_TOKENS.items()
    ]


MASKED_ROWS = {
    "cross": {"text": "remove", "visual": "dense"},
    "cross and self": {"text": "remove", "visual": "remove"},
    "self": {"text": "dense", "visual": "remove"},
}


@experiment(
    "self-attention",
    "Masking cross attention and visual self-attention, with and without merging",
    source="Table 3",
    finding="GQA, layers 1–7: cross attention masked 57.2, merged 61.5; visual self-attention masked as well 54.6, "
    "merged 60.8; dense 62.0.",
    draw=bars("layers", lambda row: f"{row['rows']}{', merged' if row['merged'] else ''}"),
)
def self_attention(setup: Setup) -> list[Cell]:
    """Mask the rows of one kind, or of both, in each stage; merging takes place in the stage's first layer."""
    cells = [Cell({"layers": DENSE, "masked": layers_text([]), "rows": "none", "merged": False})]
    for stage, window in setup.windows.items():
        for rows, rules in MASKED_ROWS.items():
            for merged in (False, True) if rules["text"] == "remove" else (False,):
                varied = {"layers": stage, "masked": layers_text(window), "rows": rows, "merged": merged}
                cells.append(Cell(varied, mask(window, **rules, merge_layers=list(window[:1]) if merged else [])))
    return cells


MERGE_TARGETS = (0, 127 / 575, 287 / 575, 1)
"""Where the paper's targets 1, 128, 288 and 576 lie among 576 visual tokens."""


@experiment(
    "merging",
    "The token that attention is merged into",
    source="Table 9",
    finding="GQA, layers 1–2, into visual token 1, 128, 288, 576: 61.98, 61.83, 61.76, 61.55; not merged 57.41.",
    draw=bars("target"),
)
def merging(setup: Setup) -> list[Cell]:
    """In the first layers (2 of 32), merge into one of four tokens, or mask without merging."""
    layers = list(range(scaled(2, setup.layers)))
    targets = dict.fromkeys(round(place * (setup.visual_tokens - 1)) for place in MERGE_TARGETS)
    return [
        Cell({"target": DENSE, "masked": layers_text([])}),
        Cell({"target": "not merged", "masked": layers_text(layers)}, mask(layers)),
        *(
            Cell(
                {"target": f"token {token}", "masked": layers_text(layers)},
                mask(layers, merge_layers=layers, sink_token=token),
            )
            for token in targets
        ),
    ]


@experiment(
    "decoding",
    "Visual keys and values removed while decoding",
    source="Tables 2, 10",
    finding="MM-Vet: layers 1–8 33.8, 9–15 28.3, 26–32 31.1, all 26.1, none 31.2: the middle layers' cache is read. "
    "Answers of one token cannot change: the prefill chooses it.",
    draw=bars("layers"),
)
def decoding(setup: Setup) -> list[Cell]:
    """Remove the visual keys and values of each stage, and of all layers, after a dense prefill."""
    stages = {**setup.windows, "all": tuple(range(setup.layers))}
    return [Cell({"layers": DENSE, "removed": layers_text([])})] + [
        Cell({"layers": stage, "removed": layers_text(window)}, mask(window, text="dense", kv="none"))
        for stage, window in stages.items()
    ]


@experiment(
    "discarding",
    "Discarding the image from a layer on, and skipping one layer",
    source="Section 5.1",
    finding="GQA: all visual tokens dropped from layer 20 on 59.13, from 26 on 61.91; only layer 20 skipped 61.66, "
    "only 26 skipped 61.40; dense 62.0.",
    draw=lines(
        "how", {"discard": "no visual token from layer k on", "skip": "text does not read the image in layer k"}
    ),
)
def discarding(setup: Setup) -> list[Cell]:
    """Discard from, and skip in, every layer of the sweep; discarded from layer 0 on, the model sees no image."""
    sweep = setup.sweep(0, setup.layers)
    return [
        Cell({"how": DENSE, "k": 0}),
        *(Cell({"how": "discard", "k": k}, {"method": "vtw", "k": k}) for k in sweep),
        *(Cell({"how": "skip", "k": k}, mask([k])) for k in sweep),
    ]


@experiment(
    "selection",
    "Selection rules at one layer",
    source="Table 4",
    finding="Layer 16, 10 tokens, POPE / GQA / TextVQA / MM-Vet: last-token attention 85.9 / 60.3 / 57.1 / 25.4, text "
    "85.9 / 58.0 / 55.6 / 23.8, visual 85.9 / 55.2 / 52.0 / 20.9, influence 86.1 / 61.3 / 57.8 / 31.9.",
    draw=bars("rule"),
)
def selection(setup: Setup) -> list[Cell]:
    """Keep the same number of tokens by each rule and at random; keep none."""
    after = {"layer": setup.layer, "keep": setup.keep}
    cells = [Cell({"rule": DENSE, "layer": setup.layer, "keep": setup.visual_tokens})]
    for rank in ("last", "text", "visual", "influence"):
        cells.append(Cell({"rule": rank, **after}, {"method": "attention_topk", **after, "rank": rank}))
    cells.append(Cell({"rule": "random", **after}, {"method": "random", **after}))
    return [*cells, Cell({"rule": "none kept", **after, "keep": 0}, {"method": "random", **after, "keep": 0})]


DISTURBED_TOKENS = {
    "most influential": {"rank": "influence", "end": "top"},
    "least influential": {"rank": "influence", "end": "bottom"},
    "random": {"rank": "random"},
}


@experiment(
    "critical",
    "Critical tokens replaced by noise, and removed",
    source="Section 4",
    finding="Fusion runs through few critical tokens, which influence finds and attention weight does not.",
    draw=bars("tokens", "how"),
)
def critical(setup: Setup) -> list[Cell]:
    """Replace by noise, or remove, the same number of tokens of each group."""
    after = {"layer": setup.layer, "count": setup.keep}
    return [Cell({"tokens": DENSE, "how": "none", "layer": setup.layer, "count": 0})] + [
        Cell({"tokens": tokens, "how": how, **after}, {"method": "disturb", **after, "how": how, **settings})
        for tokens, settings in DISTURBED_TOKENS.items()
        for how in ("noise", "remove")
    ]


def _exit_table(rows: Sequence[Row], totals: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Make one row per layer: prompts that filtered after it, and that ran it as their first layer without image."""
    pruned = totals[1]
    return [
        {
            "layer": layer,
            "filtered": pruned["filter_layers"].get(layer, 0),
            "exited": pruned["exit_layers"].get(layer, 0),
            "questions": pruned["questions"],
        }
        for layer in (*map(str, range(len(pruned["tokens_per_layer_mean"]))), "none")
    ]


@experiment(
    "exits",
    "Filter layer and vision exit layer",
    source="Section 5",
    finding="On average 10.3 of 576 visual tokens are kept and vision ends at layer 23.9 (counted from 1).",
    draw=exit_histogram,
    table=_exit_table,
)
def exits(setup: Setup) -> list[Cell]:
    """Run the config once, beside dense."""
    return [Cell({"run": DENSE}), Cell({"run": "config"}, setup.config)]


DEFAULT_GRID = {
    "layer_threshold": (0.990, 0.993, 0.995, 0.997, 0.999),
    "tokens_threshold": (0.1, 0.15, 0.2, 0.25, 0.3),
}


@experiment(
    "grid",
    "A grid over thresholds",
    source="Thresholds of section 4",
    finding="The published thresholds are 0.995 and 0.2 for LLaVA-1.5-7B.",
    draw=threshold_maps,
)
def grid(setup: Setup) -> list[Cell]:
    """Set every combination of the grid's values in the config."""
    points = [dict(zip(setup.grid, values, strict=True)) for values in itertools.product(*setup.grid.values())]
    return [Cell({"cell": DENSE} | dict.fromkeys(setup.grid))] + [
        Cell({"cell": "pruned"} | point, {**setup.config, **point}) for point in points
    ]
