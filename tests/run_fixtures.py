"""Artificial runs of the loader: answers files with real traces, and run files."""

from __future__ import annotations

import json
from pathlib import Path

from loader_fixtures import write_jsonl

from llava.eval.runner.costs import Costs
from llava.eval.runner.runfile import fingerprint, write_run_file
from llava.model.pruning import PruningTrace
from llava.model.pruning.flops import DecoderShape
from llava.model.pruning.method import AttentionRule

LAYERS, TEXT, VISUAL = 4, 10, 20
RANDOM = {"method": "random", "layer": 1, "keep": 5, "seed": 0}


def metadata(kept: int | None = None, exit_layer: int | None = None) -> dict:
    """One answer's metadata: dense, or with `kept` visual tokens after layer 1 and none from `exit_layer` on."""
    visual = [VISUAL if layer < 2 or kept is None else kept for layer in range(LAYERS)]
    visual = [0 if exit_layer is not None and layer >= exit_layer else n for layer, n in enumerate(visual)]
    tokens = [TEXT + n for n in visual]
    trace = PruningTrace(
        shape=DecoderShape(layers=LAYERS, hidden=8, mlp=16, heads=2, kv_heads=2, head_dim=4),
        itemsize=2,
        tokens_per_layer=tokens,
        visual_per_layer=visual,
        rules=[AttentionRule()] * LAYERS,
        filter_layer=None if kept is None else 1,
        kept=list(range(kept or 0)),
        influence=[],
        exit_layer=exit_layer,
        kv_tokens_per_layer=tokens,
        probes=[],
    )
    times = {"prefill": 2.0 if kept is None else 1.0, "decode": 0.5, "vision": 0.25}
    return trace.summary() | {"generated_tokens": 2, "milliseconds": times, "batch": 4}


def write_run(
    path: Path,
    question_file: Path,
    texts: dict[tuple[str, str], str],
    config: dict | None = None,
    traces: list[dict] | None = None,
    **changes: object,
) -> Path:
    """X.jsonl at `path` and its run file; `texts` are the answers by (question id, prompt).

    `changes` replace the run file's keys; those of "settings" are merged into it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    traces = traces or [metadata(None if config is None else 5)] * len(texts)
    rows = [
        {"question_id": question, "prompt": prompt, "text": text, "answer_id": f"{n}", "model_id": "m", "metadata": one}
        for n, (((question, prompt), text), one) in enumerate(zip(texts.items(), traces, strict=True))
    ]
    write_jsonl(path, rows)
    totals = Costs()
    for one in traces:
        totals.add(one)
    settings = {
        "model": "small:0123",
        "model_base": None,
        "pruning_config": config,
        "question_file": fingerprint(question_file)[:16],
        "chunk": [0, 1],
        "dtype": "float32",
    }
    record = {
        "state": "finished",
        "question_file": str(question_file),
        "limit": None,
        "device_name": "a CPU",
        "batch_size": 4,
        "settings": settings | changes.pop("settings", {}),
        "totals": totals.to_dict(),
        "skipped": [],
    }
    write_run_file(path.with_name(path.stem + ".run.json"), record | changes)
    return path


class GqaMade:
    """A made-up GQA: `images` images with four questions each, all answered "red"."""

    def __init__(self, root: Path, images: int = 10):
        self.folder = root / "gqa_made"
        (self.folder / "data").mkdir(parents=True)
        self.keys = [(f"{image}{n}", f"Colour {n}?\nShort.") for image in range(images) for n in range(4)]
        rows = [{"question_id": key, "image": f"{key[:-1]}.png", "text": text} for key, text in self.keys]
        self.questions = write_jsonl(self.folder / "questions.jsonl", rows)
        self.annotations = self.folder / "data" / "testdev_balanced_questions.json"
        self.annotations.write_text(json.dumps({key: {"answer": "red", "isBalanced": True} for key, _ in self.keys}))

    def answers(self, wrong: set[int] = frozenset(), text: str = "blue") -> dict[tuple[str, str], str]:
        """All answers; those numbered in `wrong` are `text`."""
        return {key: text if n in wrong else "Red." for n, key in enumerate(self.keys)}

    def run(self, path: Path, wrong: set[int] = frozenset(), config: dict | None = None, **changes: object) -> Path:
        return write_run(path, self.questions, self.answers(wrong), config, **changes)
