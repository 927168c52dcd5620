"""Time the runner and a plain loop around transformers' `generate` in turn (`throughput`)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tqdm import tqdm

from llava.cli import UserError
from llava.eval.runner.batches import turns_of
from llava.eval.runner.evaluator import Evaluator
from llava.eval.runner.questions import Question
from llava.eval.runner.session import Plan
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.images import read_image
from llava.model.inputs import ConventionInputs, left_padded
from llava.model.loaded import LoadedModel


def plain_answers(loaded: LoadedModel, questions: Sequence[Question], size: int, max_new_tokens: int) -> list[str]:
    """Answer greedily, in batches of `size`, as a script around transformers would."""
    encode = _encode_convention if isinstance(loaded.inputs, ConventionInputs) else _encode_processor
    sampling = dict.fromkeys(("temperature", "top_p", "top_k"))
    texts: list[str] = []
    for start in range(0, len(questions), size):
        asked = questions[start : start + size]
        if shows_video := next((question for question in asked if question.videos), None):
            raise UserError(f"{shows_video.where}: the plain loop shows no videos")
        prompts = [loaded.inputs.prompt(turns_of(question)) for question in asked]
        images = [read_image(path) for question in asked for path in question.paths]
        batch, width = encode(loaded, prompts, images)
        with torch.inference_mode():
            output = loaded.model.generate(**batch, **sampling, do_sample=False, max_new_tokens=max_new_tokens)
        texts += [text.strip() for text in loaded.tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)]
    return texts


def _encode_convention(loaded: LoadedModel, prompts: list[str], images: list[Any]) -> tuple[dict[str, Any], int]:
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


def _encode_processor(loaded: LoadedModel, prompts: list[str], images: list[Any]) -> tuple[dict[str, Any], int]:
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


def measure(evaluator: Evaluator, plan: Plan, rounds: int) -> dict[str, Any]:
    """Time both in turn; the first round warms up and is not counted. Files of the runs go to a temporary folder."""
    loaded, questions, size = evaluator.loaded, plan.selected, plan.options.batch_size
    seconds: dict[str, list[float]] = {"loader": [], "plain": []}
    texts: dict[str, list[str]] = {}
    shares: dict[str, float] = {}
    for number in tqdm(range(rounds + 1), unit="round"):
        for name in ("loader", "plain") if number % 2 else ("plain", "loader"):
            with TemporaryDirectory() as folder:
                start = time.perf_counter()
                if name == "loader":
                    run = evaluator.run(replace(plan, answers_file=Path(folder) / "answers.jsonl"))
                    texts[name], shares = [one.text for one in run.answers.values()], run.record["time_shares"]
                else:
                    texts[name] = plain_answers(loaded, questions, size, plan.options.max_new_tokens)
                if loaded.model.device.type == "cuda":
                    torch.cuda.synchronize()
                if number:
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
