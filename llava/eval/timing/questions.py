"""Many questions about one image: how many a second, dense and pruned, with their common prefix read once or each time.

Four measurements in turn tell two gains apart: what reuse gives (with by without it, the same config), and what pruning
gives (pruned by dense, both without reuse).
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llava.mm_utils import get_model_name_from_path
from llava.model.builder import load_pretrained_model
from llava.model.inputs import Turn, inputs_for
from llava.model.pruning import PruningConfig, prune
from llava.model.pruning.methods import NoPruning
from llava.model.pruning.prefix_cache import Reused
from llava.model.pruning.trace import PruningTrace

from . import BenchError
from .described import machine
from .figures import spread
from .rounds import guarded, take_turns
from .shapes import SHAPES, Shape, random_model
from .subject import greedy, pictures_of

REUSE = " with reuse"
SYSTEM_TOKENS, QUESTION_TOKENS = 35, 20


@dataclass(frozen=True)
class Questions:
    """A model with prompts about one image that differ in their questions.

    batches:
        each asks some of the prompts together: `ask(new_tokens)` generates that many tokens of each, greedily
    """

    model: Any
    batches: Sequence[Callable[[int], Any]]
    count: int
    visual_mask: torch.Tensor | None
    tokens: int
    visual_tokens: int


@dataclass(frozen=True)
class Asked:
    """All questions asked once: seconds, what was reused (None: nothing is), and traces (none of an untouched run)."""

    seconds: float
    reused: Reused | None
    traces: list[PruningTrace]


def random_questions(
    shape: Shape,
    layers: int,
    device: torch.device,
    dtype: torch.dtype,
    *,
    count: int,
    batch_size: int,
    images: int,
    prompt_tokens: int,
    seed: int,
) -> Questions:
    """Build a random model and `count` prompts: the same text and image, then random questions of 20 tokens."""
    model = random_model(shape, layers, device, dtype, seed)
    own = min(QUESTION_TOKENS, prompt_tokens - 1)
    before = prompt_tokens - own
    visual = images * shape.visual_tokens
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, shape.vocabulary, (before + count * own,), generator=generator).to(device)
    text = model.get_input_embeddings()(ids)
    seen = torch.randn(visual, text.shape[-1], generator=generator) * model.config.initializer_range
    common = torch.cat((text[:before], seen.to(text)))
    prompts = torch.stack([torch.cat((common, question)) for question in text[before:].split(own)])
    mask = torch.zeros(1, before + visual + own, dtype=torch.bool, device=device)
    mask[:, before : before + visual] = True

    def asking(embeds: torch.Tensor) -> Callable[[int], Any]:
        attention_mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=device)
        return lambda new_tokens: model.generate(
            inputs_embeds=embeds, attention_mask=attention_mask, **greedy(new_tokens, 0)
        )

    batches = [asking(embeds) for embeds in prompts.split(batch_size)]
    return Questions(model, batches, count, mask, prompts.shape[1], visual)


def loaded_questions(
    path: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    count: int,
    batch_size: int,
    images: int,
    seed: int,
    image_file: str | None,
) -> Questions:
    """Load a model and make `count` prompts in its own format about `image_file`, or about noise.

    The image is looked at once, before the clock runs, where the model allows it (`Inputs.see`).
    """
    name = get_model_name_from_path(path)
    tokenizer, model, processor, _ = load_pretrained_model(path, None, name, device=str(device), dtype=dtype)
    inputs = inputs_for(tokenizer, processor, model.config)
    rows = [
        inputs.encode([Turn(f"Question {number} of {count}: what is in the picture?", images=images)])
        for number in range(1, count + 1)
    ]
    with torch.inference_mode():
        seen = inputs.encode_images(model, pictures_of(inputs, images, image_file, seed))
    length = max(inputs.length(row, seen) for row in rows)
    if inputs.limit is not None and length > inputs.limit:
        raise BenchError(f"a prompt is {length} tokens, the model takes {inputs.limit}; ask about fewer images")

    def asking(some: Sequence[list[int]]) -> Callable[[int], Any]:
        return lambda new_tokens: model.generate(
            **inputs.collate(some, [seen] * len(some), model), **greedy(new_tokens, tokenizer.pad_token_id)
        )

    batches = [asking(rows[start : start + batch_size]) for start in range(0, count, batch_size)]
    return Questions(model, batches, count, None, length, sum(image.visual for image in seen))


def ask_all(questions: Questions, config: PruningConfig | None, reuse: bool, room: int, new_tokens: int) -> Asked:
    """Ask all questions and look at the clock; dense without reuse is the untouched model, with reuse the engine."""
    if config is None and not reuse:
        session = nullcontext()
    else:
        settings = {"reuse_prefix": True, "prefix_cache_bytes": room} if reuse else {}
        session = prune(questions.model, config or NoPruning(), questions.visual_mask, **settings)
    with torch.inference_mode(), session as active:
        _wait(questions.model.device)
        start = time.perf_counter()
        for ask in questions.batches:
            ask(new_tokens)
        _wait(questions.model.device)
        seconds = time.perf_counter() - start
        store = None if active is None else active.prefixes
        return Asked(seconds, None if store is None else store.reused, [] if active is None else active.traces)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def measure(
    questions: Questions, configs: Mapping[str, PruningConfig], room: int, new_tokens: int, repeats: int
) -> dict[str, Any]:
    """Ask everything in turn, dense and every config without and with reuse; the first round is not counted."""
    makers = {}
    for name, config in {"dense": None, **configs}.items():
        makers[name] = makers[name + REUSE] = lambda config=config: config

    def run(name: str, config: PruningConfig | None) -> Asked:
        return ask_all(questions, config, name.endswith(REUSE), room, new_tokens)

    take_turns(makers, 1, run, "warming up")
    asked = take_turns(makers, repeats, run)
    return {name: _figures(name, asked, questions.count) for name in ("dense", *configs)}


def bench_questions(
    args: argparse.Namespace,
    configs: Mapping[str, PruningConfig],
    layers: int,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Do what `--questions` asks for; JSON-ready. Raises `ValueError` with one line for what cannot be done."""
    common = {"count": args.questions, "batch_size": args.batch_size, "images": args.images, "seed": args.seed}

    def make() -> Questions:
        if args.shape is None:
            path = os.path.expanduser(args.model_path)
            return loaded_questions(path, device, dtype, image_file=args.image_file, **common)
        text = SYSTEM_TOKENS + QUESTION_TOKENS if args.prompt_tokens is None else args.prompt_tokens
        return random_questions(SHAPES[args.shape], layers, device, dtype, prompt_tokens=text, **common)

    questions = guarded("the model", make)
    room, new_tokens = args.prefix_cache_bytes, args.new_tokens
    what = f"{args.batch_size} prompts at once"
    found = guarded(what, lambda: measure(questions, configs, room, new_tokens, args.repeats))
    for name, config in configs.items():
        found[name]["config"] = config.to_dict()
    settings = {
        "model": args.model_path or args.shape,
        "weights": "random" if args.shape else "loaded",
        "layers": layers,
        "dtype": str(dtype).removeprefix("torch."),
        "questions": args.questions,
        "batch_size": args.batch_size,
        "tokens": questions.tokens,
        "visual_tokens": questions.visual_tokens,
        "new_tokens": new_tokens,
        "repeats": args.repeats,
        "prefix_cache_bytes": room,
        "seed": args.seed,
    }
    return {"questions": found, "settings": settings, "machine": machine(device)}


def questions_heading(settings: Mapping[str, Any], machine: Mapping[str, Any]) -> str:
    """Return the lines above the table."""
    threads = f", {machine['threads']} threads" if machine["device"] == "cpu" else ""
    return (
        f"{settings['model']}, {settings['weights']} weights, {settings['layers']} layers, {settings['dtype']}; "
        f"{machine['name']}{threads}, torch {machine['torch']}, transformers {machine['transformers']}\n"
        f"{settings['questions']} questions about one image, {settings['batch_size']} at once, a prompt: "
        f"{settings['tokens']} tokens, {settings['visual_tokens']} of them visual, {settings['new_tokens']} new ones; "
        f"medians (and ranges) of {settings['repeats']} rounds"
    )


def _figures(name: str, asked: Mapping[str, Sequence[Asked]], count: int) -> dict[str, Any]:
    """Questions a second of one config, and its gains: ratios within a round, median and range over rounds."""
    dense, without, reusing = ([one.seconds for one in asked[key]] for key in ("dense", name, name + REUSE))
    reused = asked[name + REUSE][-1].reused
    alike = [_plan(one) for one in asked[name]] == [_plan(one) for one in asked[name + REUSE]]
    return {
        **spread("questions_per_second", [count / seconds for seconds in without]),
        **spread("questions_per_second_reuse", [count / seconds for seconds in reusing]),
        **spread("gain_reuse", [one / two for one, two in zip(without, reusing, strict=True)]),
        **spread("gain_pruning", [one / two for one, two in zip(dense, without, strict=True)]),
        **spread("gain", [one / two for one, two in zip(dense, reusing, strict=True)]),
        "rows_reused": None if reused is None else round(reused.share, 4),
        "same_decisions": None if name == "dense" else alike,
    }


def _plan(asked: Asked) -> list[list[int]]:
    return [trace.tokens_per_layer for trace in asked.traces]


def print_questions(result: Mapping[str, Any], console: Console) -> None:
    """Print what `measure` found."""
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    headings = ("config", "questions/s", "with reuse", "from reuse", "from pruning", "together", "rows reused")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "config" else "right", no_wrap=True)
    for name, row in result.items():
        rates = [f"{row[key]:.3g}" for key in ("questions_per_second", "questions_per_second_reuse")]
        gains = [
            f"{row[key]:.2f}× ({row[key + '_range'][0]:.2f}–{row[key + '_range'][1]:.2f})"
            for key in ("gain_reuse", "gain_pruning", "gain")
        ]
        share = "none" if row["rows_reused"] is None else f"{100 * row['rows_reused']:.0f}%"
        table.add_row(escape(name), *rates, *gains, share)
    console.print(table)
    for name, row in result.items():
        if row["same_decisions"] is False:
            console.print(f"[bold]{escape(name)}: some prompts were pruned otherwise with reuse (rounding)[/bold]")
