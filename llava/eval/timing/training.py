"""Training steps timed in turn: padded as transformers' Trainer pads, packed, and packed under each config.

A step is the forward and backward pass of all weights, without the optimizer, which costs all alike. On a CPU its
seconds are processor time, summed over threads, which other programs on the machine do not stretch. Prompts are random
embeddings: an image behind the system sentence, then turns of question and answer, whose labels count. `equal`: all
prompts are as long as the mix is on average. `mix`: lengths of LLaVA-1.5's 665K mixture. Its composition is published
(arXiv 2310.03744, appendix); turns per sample and tokens per turn are estimates. A batch shows images or is text
alone, as LLaVA's `group_by_modality_length` makes them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from llava.cli import UserError
from llava.eval.results.formats import bytes_text
from llava.eval.results.table import Column, Table
from llava.model.loaded import LoadedModel
from llava.model.pruning import PruningConfig, prune
from llava.model.pruning.families import family_of
from llava.model.pruning.flops import DecoderShape
from llava.model.pruning.methods import NoPruning

from .figures import spread
from .memory import CudaPeak, cpu_peak
from .options import SYSTEM_TOKENS, BenchOptions
from .rounds import memory_for
from .shapes import SHAPES, random_model
from .tables import machine, ratio

PADDED, PACKED = "padded", "packed"


class Part(NamedTuple):
    """A part of the mixture: thousands of samples, turns of each, tokens of a question and of an answer."""

    thousands: int
    turns: int
    question: int
    answer: int


IMAGES = {
    "conversation": Part(57, 5, 20, 45),
    "detail": Part(23, 1, 25, 120),
    "reasoning": Part(77, 1, 25, 140),
    "vqav2": Part(83, 5, 22, 3),
    "gqa": Part(72, 10, 22, 3),
    "okvqa": Part(9, 1, 25, 3),
    "ocrvqa": Part(80, 5, 22, 8),
    "aokvqa": Part(66, 1, 60, 2),
    "textcaps": Part(22, 1, 80, 15),
    "refcoco": Part(48, 5, 30, 15),
    "visual genome": Part(86, 8, 35, 12),
}
TEXT = {"sharegpt": Part(40, 4, 60, 250)}
SPREAD = 0.5
"""Standard deviation of the logarithm of a sample's length, around its part's."""
LONGEST = 2048


@dataclass(frozen=True)
class Batch:
    """Right-padded inputs of a step with labels, which tokens are visual (bool [B, T]), and tokens per prompt."""

    inputs: dict[str, torch.Tensor]
    visual: torch.Tensor
    lengths: tuple[int, ...]

    @property
    def padding(self) -> float:
        """Share of the batch that is padding."""
        return 1 - sum(self.lengths) / self.visual.numel()


def draw(options: BenchOptions, visual: int, generator: np.random.Generator) -> list[tuple[int, list[tuple[int, int]]]]:
    """Return a batch: per prompt its visual tokens, and the tokens of question and answer of each turn."""
    shown = generator.random() < sum(p.thousands for p in IMAGES.values()) / 665 or options.lengths == "equal"
    parts = list((IMAGES if shown else TEXT).values())
    weights = np.array([part.thousands for part in parts], float)
    weights /= weights.sum()
    prompts = []
    for number in generator.choice(len(parts), options.batch_size, p=weights):
        part, scale = parts[number], float(np.exp(generator.normal(0, SPREAD)))
        if options.lengths == "equal":
            mean = [(w * p.turns * p.question, w * p.turns * p.answer) for w, p in zip(weights, parts, strict=True)]
            turns = [tuple(round(sum(side)) for side in zip(*mean, strict=True))]
        else:
            turns = [(max(1, round(part.question * scale)), max(1, round(part.answer * scale)))] * part.turns
        prompts.append((visual if shown else 0, turns))
    return prompts


def build(prompts: list[tuple[int, list[tuple[int, int]]]], model, vocabulary: int, seed: int) -> Batch:
    """Make a drawn batch of random embeddings and labels; prompts are cut at `LONGEST` tokens."""
    kinds = []
    for visual, turns in prompts:
        kind = "s" * SYSTEM_TOKENS + "v" * visual + "".join("q" * question + "a" * answer for question, answer in turns)
        kinds.append(kind[:LONGEST])
    width, lengths = max(map(len, kinds)), tuple(map(len, kinds))
    letters = np.array([list(kind.ljust(width)) for kind in kinds])
    generator = torch.Generator().manual_seed(seed)
    hidden = model.get_input_embeddings().weight.shape[1]
    embeds = 0.02 * torch.randn(len(kinds), width, hidden, generator=generator)
    labels = torch.randint(2, vocabulary, letters.shape, generator=generator)
    labels[torch.from_numpy(letters != "a")] = -100
    inputs = {
        "inputs_embeds": embeds.to(model.device, model.dtype).requires_grad_(True),
        "attention_mask": torch.from_numpy(letters != " ").long().to(model.device),
        "labels": labels.to(model.device),
    }
    return Batch(inputs, torch.from_numpy(letters == "v").to(model.device), lengths)


@dataclass(frozen=True)
class Step:
    """One step: its seconds, and its multiply-adds forward (decoder over all tokens, and head)."""

    seconds: float
    flops: float


def take_step(model, batch: Batch, config: PruningConfig | None) -> Step:
    """Run and time one step; None is the untouched model."""
    model.zero_grad(set_to_none=True)
    shape = DecoderShape.of(family_of(model).decoder(model).config)
    row = shape.hidden * model.get_output_embeddings().weight.shape[0]
    clock = time.perf_counter if model.device.type == "cuda" else time.process_time
    started = clock()
    with nullcontext() if config is None else prune(model, config, batch.visual) as session:
        output = model(**batch.inputs, use_cache=False)
        output.loss.backward()
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    seconds = clock() - started
    if config is None:
        rows, width = batch.visual.shape
        return Step(seconds, rows * (shape.layers * shape.layer_flops(width) + width * row))
    return Step(seconds, sum(trace.flops("all") for trace in session.traces) + output.logits.shape[1] * row)


def bench(options: BenchOptions, configs: Mapping[str, PruningConfig], device: torch.device, dtype) -> dict[str, Any]:
    """Time the steps; JSON-ready. Every round is a batch that all take in turn, forwards and backwards."""
    with memory_for("the model and its gradients"):
        if options.shape is None:
            model = LoadedModel.from_path(options, dtype).model
            visual = getattr(model, "visual_tokens_per_image", None)
            if visual is None:
                raise UserError("--train takes a --shape, or a checkpoint in LLaVA's layout")
        else:
            shape = SHAPES[options.shape]
            layers = options.num_layers or shape.decoder.layers
            model, visual = random_model(shape, layers, device, dtype, options.seed), shape.visual_tokens
    decoder = family_of(model).decoder(model)
    for part in (decoder.layers, decoder.norm, model.get_output_embeddings()):
        part.requires_grad_(True)
    model.train()
    ways = {PADDED: None, PACKED: NoPruning(), **configs}
    generator = np.random.default_rng(options.seed)
    vocabulary = model.get_output_embeddings().weight.shape[0]
    drawn = [draw(options, options.images * visual, generator) for _ in range(options.rounds)]
    batches = [build(one, model, vocabulary, options.seed + number) for number, one in enumerate(drawn)]
    steps: dict[str, list[Step]] = {name: [] for name in ways}
    peaks: dict[str, int | None] = {}
    with tqdm(total=(options.rounds + 1) * len(ways), unit="step", desc="training steps") as bar:
        for number, batch in enumerate([batches[0], *batches]):
            for name in list(ways) if number % 2 else list(ways)[::-1]:
                with memory_for(f"a step {name!r} with batch size {options.batch_size}"):
                    if number:
                        steps[name].append(take_step(model, batch, ways[name]))
                    else:  # the warm-up
                        peaks[name] = _peak(model, batch, ways[name])
                bar.update()
    rows = {name: _row(steps[PADDED], steps[PACKED], steps[name], peaks[name]) for name in ways}
    for name, config in configs.items():
        rows[name]["config"] = config.to_dict()
    settings = {name: getattr(options, name) for name in ("model", "batch_size", "images", "lengths", "rounds", "seed")}
    settings |= {"layers": len(decoder.layers), "dtype": str(dtype).removeprefix("torch.")}
    settings |= {"tokens": [batch.lengths for batch in batches]}
    settings |= {"padding": round(statistics.mean(batch.padding for batch in batches), 4)}
    return {"training": rows, "settings": settings, "machine": machine(device)}


def _peak(model, batch: Batch, config: PruningConfig | None) -> int | None:
    model.zero_grad(set_to_none=True)  # gradients count, those of the step before do not
    if model.device.type == "cpu":
        return cpu_peak(lambda: take_step(model, batch, config)).whole
    with CudaPeak(model.device) as memory:
        take_step(model, batch, config)
    return memory.bytes


def _row(padded: list[Step], packed: list[Step], own: list[Step], peak: int | None) -> dict[str, Any]:
    """Return one way's figures: medians over rounds of seconds, speed-ups, and of what FLOPs promise of these."""
    row = spread("seconds", [step.seconds for step in own]) | {"peak_bytes": peak}
    for beside, others in ((PADDED, padded), (PACKED, packed)):
        gains = [other.seconds / step.seconds for other, step in zip(others, own, strict=True)]
        promises = [other.flops / step.flops for other, step in zip(others, own, strict=True)]
        reached = [gain / promise for gain, promise in zip(gains, promises, strict=True)]
        row |= spread(f"speedup_over_{beside}", gains) | spread(f"promised_over_{beside}", promises)
        row |= spread(f"reached_over_{beside}", reached)
    return row


def show(result: Mapping[str, Any]) -> None:
    """Print the figures."""
    about, where = result["settings"], result["machine"]
    clock = "processor seconds" if where["device"] == "cpu" else "seconds"
    print(
        f"{about['model']}, {about['layers']} layers, {about['dtype']}; {where['name']}, {where['threads']} threads, "
        f"torch {where['torch']}\nbatch {about['batch_size']}, lengths: {about['lengths']}, padding "
        f"{100 * about['padding']:.0f}%; {clock} of forward and backward, medians (and ranges) of {about['rounds']} "
        "rounds\n"
    )
    table = Table(["step", "seconds", Column("peak_bytes", "peak memory", bytes_text)])
    for beside in (PADDED, PACKED):
        table.columns += [Column(f"{beside} / step"), Column(f"promised {beside}", "promised")]
        table.columns += [Column(f"reached {beside}", "reached")]
    for name, row in result["training"].items():
        shown = {"step": name, "seconds": f"{row['seconds']:.3g}", "peak_bytes": row["peak_bytes"]}
        for beside in (PADDED, PACKED):
            shown[f"{beside} / step"] = ratio(row, f"speedup_over_{beside}")
            shown[f"promised {beside}"] = f"{row[f'promised_over_{beside}']:.2f}×"
            shown[f"reached {beside}"] = f"{100 * row[f'reached_over_{beside}']:.0f}%"
        table.rows.append(shown)
    table.print()
