"""Is the loader slower than a plain loop around transformers' `generate`? Both ask the same questions in turn, dense.

    python -m llava.eval.throughput --model-path playground/checkpoints/llava-tiny --benchmark textvqa_mini

The plain loop takes the questions in the order of their file, reads and preprocesses their images, and calls `generate`
on padded batches of the same size. The loader does everything that a run does, its files included. Loader and loop take
turns, round after round, and the speed-up is the median over rounds of the loop's time by the loader's. The model is
loaded before.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from llava.eval.benchmarks import find_benchmark
from llava.eval.model_vqa_loader import Parser, number
from llava.eval.runner.batches import read_image, turns_of
from llava.eval.runner.evaluator import Evaluator
from llava.eval.runner.jobs import Job, make_job
from llava.eval.runner.questions import Question
from llava.eval.runner.running import Loaded, Loader
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.inputs import ConventionInputs, left_padded


def plain_answers(loaded: Loaded, questions: Sequence[Question], size: int, max_new_tokens: int) -> list[str]:
    """Answer greedily, batch by batch, as a script around transformers would."""
    encode = _encode_convention if isinstance(loaded.inputs, ConventionInputs) else _encode_processor
    texts: list[str] = []
    for start in range(0, len(questions), size):
        asked = questions[start : start + size]
        prompts = [loaded.inputs.prompt(turns_of(question)) for question in asked]
        images = [read_image(question.path) for question in asked if question.path is not None]
        batch, width = encode(loaded, prompts, images)
        with torch.inference_mode():
            output = loaded.model.generate(
                **batch, do_sample=False, temperature=None, top_p=None, top_k=None, max_new_tokens=max_new_tokens
            )
        new = output[:, width:]
        texts += [text.strip() for text in loaded.inputs.tokenizer.batch_decode(new, skip_special_tokens=True)]
    return texts


def _encode_convention(loaded: Loaded, prompts: list[str], images: list[Any]) -> tuple[dict[str, Any], int]:
    """Encode as LLaVA's scripts do; the output of such a model begins with the new tokens."""
    inputs, model = loaded.inputs, loaded.model
    ids, mask = left_padded(
        [tokenizer_image_token(prompt, inputs.tokenizer) for prompt in prompts], inputs.tokenizer.pad_token_id
    )
    batch = {"inputs": ids.to(model.device), "attention_mask": mask.to(model.device)}
    if images:
        pixels = process_images(images, inputs.image_processor, model.config)
        batch["images"] = [image.to(model.device, model.dtype) for image in pixels]
    return batch, 0


def _encode_processor(loaded: Loaded, prompts: list[str], images: list[Any]) -> tuple[dict[str, Any], int]:
    processor = loaded.inputs.processor
    processor.tokenizer.padding_side = "left"
    begun = str(processor.tokenizer.bos_token or "\0")
    made = processor(
        images=images or None,
        text=prompts,
        padding=True,
        return_tensors="pt",
        add_special_tokens=not prompts[0].startswith(begun),
    )
    batch = made.to(loaded.model.device, loaded.model.dtype)
    return dict(batch), batch["input_ids"].shape[1]


def loader_answers(job: Job, loaded: Loaded, folder: Path) -> tuple[list[str], dict[str, float]]:
    """Answer as a run does; the answers, and the shares of the run's time."""
    evaluator = Evaluator(job.args, "llava.eval.throughput")
    evaluator.__dict__["loaded"] = loaded
    run = evaluator.run(replace(job.plan, answers_file=folder / "answers.jsonl"))
    return [answer.text for answer in run.answers.values()], run.record["time_shares"]


def measure(job: Job, loaded: Loaded, rounds: int) -> dict[str, Any]:
    """Time both in turn; the first round warms up and is not counted."""
    questions, size, longest = job.plan.selected, job.args.batch_size, job.args.max_new_tokens
    seconds: dict[str, list[float]] = {"loader": [], "plain": []}
    texts: dict[str, list[str]] = {}
    shares: dict[str, float] = {}
    for count in tqdm(range(rounds + 1), unit="round"):
        for name in ("loader", "plain") if count % 2 else ("plain", "loader"):
            with TemporaryDirectory() as folder:
                start = time.perf_counter()
                if name == "loader":
                    texts[name], shares = loader_answers(job, loaded, Path(folder))
                else:
                    texts[name] = plain_answers(loaded, questions, size, longest)
                if loaded.model.device.type == "cuda":
                    torch.cuda.synchronize()
                if count:
                    seconds[name].append(time.perf_counter() - start)
    ratios = [plain / loader for plain, loader in zip(seconds["plain"], seconds["loader"], strict=True)]
    same = sum(one == other for one, other in zip(texts["loader"], texts["plain"], strict=True))
    return {
        "questions": len(questions),
        "batch_size": size,
        "questions_per_second": {name: round(len(questions) / statistics.median(s), 3) for name, s in seconds.items()},
        "seconds": {name: [round(value, 4) for value in values] for name, values in seconds.items()},
        "speedup": round(statistics.median(ratios), 4),
        "speedup_range": [round(min(ratios), 4), round(max(ratios), 4)],
        "same_answers": same,
        "time_shares": shares,
        "device": str(loaded.model.device),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
    }


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(
        prog="python -m llava.eval.throughput",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model-path", required=True, help="checkpoint folder or hub name; docs/models.md lists the known models")
    add("--benchmark", required=True, help="whose questions are asked, e.g. textvqa or gqa_mini")
    add("--data-dir", default="playground/data/eval", help="folder of the benchmarks (default playground/data/eval)")
    add("--limit", type=number(int, 1), default=64, help="ask this many questions from the file's start (default 64)")
    add("--batch-size", type=number(int, 1), default=8, help="questions a batch, of both (default 8)")
    add("--max_new_tokens", type=number(int, 1), default=16, help="longest answer in tokens (default 16)")
    add("--rounds", type=number(int, 1), default=5, help="rounds that count (default 5)")
    add("--workers", type=number(int, 0), help="processes that prepare the loader's inputs (default: as in a run)")
    add("--device", default="auto")
    add("--dtype", default="auto")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    args = build_parser().parse_args(argv)
    settings = {key: value for key, value in vars(args).items() if key not in ("benchmark", "data_dir", "rounds")}
    try:
        with TemporaryDirectory() as out:
            job = make_job(find_benchmark(args.benchmark), args.data_dir, out, "answers", settings)
            found = measure(job, Loader()(job.args, job.plan), args.rounds)
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("", "questions a second", "seconds, median of rounds"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, label in (("loader", "this loader"), ("plain", "plain generate loop")):
        median = statistics.median(found["seconds"][name])
        table.add_row(label, f"{found['questions_per_second'][name]:.2f}", f"{median:.3f}")
    console = Console(highlight=False)
    console.print(table)
    low, high = found["speedup_range"]
    console.print(f"loader {found['speedup']:.2f}× as fast (rounds {low:.2f} to {high:.2f}), {found['device']}")
    console.print(f"same answers: {found['same_answers']} of {found['questions']}")
    shares = ", ".join(f"{stage} {100 * part:.0f}%" for stage, part in found["time_shares"].items())
    console.print(f"the loader's time: {shares}")
    print(json.dumps(found, separators=(",", ":")))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
