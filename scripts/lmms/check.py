"""Holds lmms-eval with the plug-in against this repository's own loader and scorers, on the same questions.

    python scripts/lmms/check.py [--questions 60]

Runs in an environment with lmms-eval (`bash scripts/test_lmms_eval.sh` makes one). Dense and pruned: every answer and
the accuracy on gqa_mini, yes or no by likelihood on mme_mini; then the response cache, `--force_simple`, two processes,
and lmms-eval's own OpenAI backend against `llava-web`. Writes under runs/lmms. Exit status 0 when all is equal, 1 with
the difference otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.eval.benchmarks import BENCHMARKS
from llava.eval.timing.server_load import ServerProcess
from llava.tiny.benchmarks import write_benchmarks

MODEL = "playground/checkpoints/llava-tiny"
RUNS = Path("runs/lmms")
TASKS = Path("scripts/lmms")
GQA, MME = "visipruner_gqa_mini", "visipruner_mme_mini_choice"
BATCH = "8"


class Different(Exception):
    """What is not as it should be, in one line."""


def run(*command: str | Path) -> str:
    """Run a command without network; return what it printed, raise `Different` with its end when it fails."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(RUNS / "home")}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise Different(f"{' '.join(map(str, command))} failed:\n{done.stdout[-4000:]}")
    return done.stdout


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_data(questions: int) -> tuple[Path, Path]:
    """Write gqa_mini and mme_mini, and their questions with reference answers for the tasks; return the two folders."""
    write_benchmarks(RUNS / "eval", questions)
    gqa, mme = RUNS / "eval/gqa_mini", RUNS / "eval/mme_mini"
    known = json.loads((gqa / "data/testdev_balanced_questions.json").read_text())
    rows = [
        task_row(gqa / "data/images" / row["image"], row["text"], known[row["question_id"]]["answer"])
        for row in rows_of(gqa / "llava_gqa_testdev_balanced.jsonl")
    ]
    write(RUNS / "gqa_mini.jsonl", rows)
    rows = []
    for row in rows_of(mme / "llava_mme.jsonl"):
        image = mme / "MME_Benchmark_release_version" / row["image"]
        lines = image.with_suffix(".txt").read_text().splitlines()
        label = next(line.split("\t")[1] for line in lines if line.startswith(row["text"].splitlines()[0]))
        rows.append(task_row(image, row["text"], label))
    write(RUNS / "mme_mini.jsonl", rows)
    return gqa, mme


def task_row(image: Path, text: str, answer: str) -> dict[str, str]:
    """A row of a task's data."""
    return {"image": str(image), "text": text, "answer": answer}


def write(path: Path, rows: list[dict[str, str]]) -> None:
    """Write rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def own(benchmark: Path, questions: str, images: str, name: str, pruning: str | None) -> list[str]:
    """Answers of this repository's loader, in order; its answers file is `RUNS / f"{name}.jsonl"`."""
    answers = RUNS / f"{name}.jsonl"
    config = ["--pruning-config", pruning] if pruning else []
    run(
        *("-m", "llava.eval.model_vqa_loader", "--model-path", MODEL, "--question-file", benchmark / questions),
        *("--image-folder", benchmark / images, "--answers-file", answers, "--max_new_tokens", "16"),
        *("--batch-size", BATCH, "--device", "cpu", "--overwrite", *config),
    )
    return [row["text"] for row in rows_of(answers)]


@dataclass(frozen=True)
class Outcome:
    """What lmms-eval made of a task: its score in percent, and its samples by document."""

    score: float
    samples: list[dict[str, Any]]
    log: str

    @property
    def answers(self) -> list[str]:
        """The answers, in the order of the documents."""
        return [sample["filtered_resps"] for sample in self.samples]


def harness(
    task: str,
    name: str,
    pruning: str | None,
    *more: str,
    launch: Sequence[str] = (),
    backend: tuple[str, str] | None = None,
) -> Outcome:
    """Run lmms-eval on `task`; results go to `RUNS / "out" / name`.

    `backend`: name and arguments of another model of lmms-eval in place of the plug-in's.
    """
    out = RUNS / "out" / name
    shutil.rmtree(out, ignore_errors=True)
    arguments = f"pretrained={MODEL},dtype=float32,device=cpu" + (f",pruning={pruning}" if pruning else "")
    model, arguments = backend or ("visipruner", arguments)
    log = run(
        *(*launch, "-m", "lmms_eval", "--model", model, "--model_args", arguments, "--tasks", task),
        *("--include_path", TASKS, "--batch_size", BATCH, "--output_path", out, "--log_samples", *more),
    )
    results, samples = sorted(out.rglob("*_results.json")), sorted(out.rglob(f"*_samples_{task}.jsonl"))
    if not results or not samples:  # the exit status of lmms-eval is 0 even then
        raise Different(f"lmms-eval wrote no results for {name}:\n{log[-4000:]}")
    scores = json.loads(results[0].read_text())["results"][task]
    score = scores["accuracy,none"] if task == GQA else 100 * scores["acc,none"]
    return Outcome(score, sorted(rows_of(samples[0]), key=lambda sample: sample["doc_id"]), log)


def same(what: str, found: Any, wanted: Any) -> None:
    """Print that two things are equal; raise `Different` if they are not."""
    if isinstance(found, float):
        found, wanted = round(found, 6), round(wanted, 6)
    if found != wanted:
        raise Different(f"{what}: lmms-eval has {str(found)[:500]}, expected {str(wanted)[:500]}")
    print(f"equal: {what}" + (f", {found}" if isinstance(found, float) else ""), flush=True)


def check(questions: int) -> None:
    """Run all comparisons; raise `Different` at the first that fails."""
    gqa, mme = write_data(questions)
    labels = [row["answer"] for row in rows_of(RUNS / "mme_mini.jsonl")]
    pruning = json.dumps(json.loads(Path(MODEL, "pruning.json").read_text()))
    two = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")  # accelerate launch is for GPUs
    found = {}
    for name, config in {"dense": None, "pruned": pruning}.items():
        wanted = own(gqa, "llava_gqa_testdev_balanced.jsonl", "data/images", f"gqa_{name}", config)
        score = BENCHMARKS["gqa"].score(gqa, RUNS / f"gqa_{name}.jsonl")
        found[name] = outcome = harness(GQA, f"gqa_{name}", config, "--use_cache", str(RUNS / "cache"))
        same(f"gqa_mini, {name}: every answer", outcome.answers, wanted)
        same(f"gqa_mini, {name}: accuracy", outcome.score, score["accuracy"])

        yes_no = own(mme, "llava_mme.jsonl", "MME_Benchmark_release_version", f"mme_{name}", config)
        right = [answer == label for answer, label in zip(yes_no, labels, strict=True)]
        choice = harness(MME, f"mme_{name}", config, "--force_simple")
        same(f"mme_mini, {name}: yes or no by likelihood", [sample["acc"] == 1 for sample in choice.samples], right)
        same(f"mme_mini, {name}: accuracy", choice.score, 100 * sum(right) / len(right))
    again = harness(GQA, "gqa_cached", pruning, "--use_cache", str(RUNS / "cache"))
    same("response cache: answers of the same config", again.answers, found["pruned"].answers)
    if f"{questions} hits" not in again.log:
        raise Different(f"the response cache was not used:\n{again.log[-2000:]}")
    simple = harness(GQA, "gqa_simple", pruning, "--force_simple")
    same("--force_simple: every answer", simple.answers, found["pruned"].answers)
    both = harness(GQA, "gqa_two", pruning, launch=two)
    if "Running on rank 1" not in both.log:
        raise Different(f"two processes: there was no second one:\n{both.log[-2000:]}")
    same("two processes: every answer", both.answers, found["pruned"].answers)
    same("two processes: accuracy", both.score, found["pruned"].score)
    check_port(found["pruned"].answers, pruning)


def check_port(wanted: list[str], pruning: str) -> None:
    """Ask the questions of gqa_mini by lmms-eval's OpenAI backend; `wanted` are their answers."""
    words = ["--model-path", MODEL, "--device", "cpu", "--pruning-config", pruning]
    with ServerProcess(words) as server:
        arguments = (
            f"model_version={Path(MODEL).name},base_url={server.url}/v1,api_key=none,timeout=120,num_concurrent=8"
        )
        asked = harness(GQA, "gqa_port", None, backend=("openai", arguments))
        errors = server.errors
    same("lmms-eval's OpenAI backend through llava-web: every answer", asked.answers, wanted)
    same("llava-web: lines in its log", errors.count("\n"), 0)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=60, help="questions of each benchmark (default 60)")
    args = parser.parse_args(argv)
    try:
        check(args.questions)
    except Different as error:
        print(f"check: {error}", file=sys.stderr)
        return 1
    print("lmms-eval and this repository's evaluation agree")
    return 0


if __name__ == "__main__":
    sys.exit(main())
