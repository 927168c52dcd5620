"""Answers a benchmark's questions with a model, dense or pruned, and writes LLaVA's answers file (`--help` teaches)."""

from __future__ import annotations

import argparse
import copy
import math
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from llava.conversation import conv_templates
from llava.eval.runner.answers import AnswersFile, unanswered
from llava.eval.runner.plan import make_plan
from llava.eval.runner.runfile import check_settings, read_run_file, run_file_of
from llava.eval.runner.running import Loader, Run, describe
from llava.model.pruning.prefix_cache import CACHE_BYTES

UNDERSCORED = ("top_p", "num_beams", "max_new_tokens")

EPILOG = """
examples:
  the small model, pruned as its pruning.json says
    python -m llava.tiny.benchmarks
    python -m llava.eval.model_vqa_loader --model-path playground/checkpoints/llava-tiny \\
        --question-file playground/data/eval/gqa_mini/llava_gqa_testdev_balanced.jsonl \\
        --image-folder playground/data/eval/gqa_mini/data/images --answers-file runs/gqa_mini.jsonl \\
        --pruning-config playground/checkpoints/llava-tiny/pruning.json --batch-size 8
  LLaVA-1.5-7B with the paper's settings, the second of four chunks
    python -m llava.eval.model_vqa_loader --model-path liuhaotian/llava-v1.5-7b --question-file Q.jsonl \\
        --image-folder IMAGES --answers-file answers/4_1.jsonl --num-chunks 4 --chunk-idx 1 --batch-size 8 \\
        --pruning-config '{"mode":["shallow","middle","deep"],"shallow_mid_layer":6,
                           "layer_threshold":0.995,"tokens_threshold":0.2}'

Each answer's "metadata" holds its prompt's trace: tokens per layer, kept positions, filter and exit layer, FLOPs, KV
bytes, milliseconds. X.run.json beside X.jsonl holds settings, versions, device and the totals. An interrupted run,
killed or not, goes on where it stopped when the same command is given again. Exit status: 0, 1 after one line on
stderr, 2 for a wrong command line.
"""


class Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line, without the list of all options before it."""

    def error(self, message: str) -> NoReturn:
        """Leave with exit status 2."""
        self.exit(2, f"error: {message} (--help explains the options)\n")


def build_parser() -> argparse.ArgumentParser:
    """The command line: LLaVA's flags, then this project's."""
    parser = Parser(
        prog="python -m llava.eval.model_vqa_loader",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--image-folder", required=True, help="folder that the questions' image paths are relative to")
    add("--question-file", required=True, help="JSONL with question_id, text and image; without image: text alone")
    add("--answers-file", required=True, help="JSONL to write or to continue")
    add("--num-chunks", type=number(int, 1), default=1, help="cut the questions into this many parts (default 1)")
    add("--chunk-idx", type=number(int, 0), default=0, help="which part to ask, from 0")
    add_model_options(parser)
    add("--max_new_tokens", type=number(int, 1), default=128, help="longest answer in tokens (default 128)")
    add("--batch-size", type=number(int, 1), default=1, help="questions a batch (default 1)")
    add_asking_options(parser)
    return parser


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """The options that say which model is asked, pruned how, on what."""
    add = parser.add_argument
    add("--model-path", required=True, help="checkpoint folder or hub name; docs/models.md lists the known models")
    add("--model-base", help="base model of a projector-only checkpoint")
    add("--pruning-config", help="JSON or a path to a .json; without it the model runs dense")
    add("--device", default="auto", help="auto (default: CUDA, MPS, CPU in this order), cpu, cuda, cuda:1, mps")
    add("--dtype", default="auto", help="float32, float16, bfloat16; auto (default) is float32 on CPU, else float16")
    add(
        "--conv-mode",
        choices=list(conv_templates),
        help="prompt format of LLaVA's original layout (default vicuna_v1); other models have their own chat template",
    )


def add_asking_options(parser: argparse.ArgumentParser) -> None:
    """The options that say how questions are asked, which, and what becomes of earlier answers."""
    add = parser.add_argument
    add("--temperature", type=number(float, 0), default=0.0, help="0 (default) is greedy; above, answers are sampled")
    add("--top_p", type=number(float, 0, 1), help="sample from this much of the probability")
    add("--num_beams", type=number(int, 1), default=1, help="beams of beam search (default 1: none)")
    add("--limit", type=number(int, 0), help="ask only this many questions from the start of the file, then chunk")
    add("--seed", type=number(int, 0), default=0, help="for sampling; question i draws from seed + i at batch size 1")
    add("--skip-bad", action="store_true", help="leave out and count questions whose image is missing or unreadable")
    add("--workers", type=number(int, 0), help="processes that prepare inputs (default: at most 4, on CPU none)")
    add(
        "--reuse-prefix",
        action=argparse.BooleanOptionalAction,
        help="read what questions about one image have in common once; default where questions share images",
    )
    add(
        "--prefix-cache-bytes",
        type=number(int, 0),
        default=CACHE_BYTES,
        metavar="BYTES",
        help=f"memory for it, the least recently used leaves first (default {CACHE_BYTES}, {CACHE_BYTES >> 30} GiB)",
    )
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="continue an existing answers file (the default)")
    existing.add_argument("--overwrite", action="store_true", help="start the answers file anew")


def number(kind: type, low: float, high: float = math.inf) -> Callable[[str], Any]:
    """Return an argparse type: a finite number from `low` to `high`."""

    def parse(text: str) -> Any:
        value = kind(text)
        if not low <= value <= high or value == math.inf:
            raise ValueError
        return value

    parse.__name__ = f"{kind.__name__} ≥ {low}" + (f" and ≤ {high}" if high != math.inf else "")
    return parse


def eval_model(args: argparse.Namespace) -> dict[str, Any]:
    """Ask the questions, as LLaVA's function of this name does; attributes that `args` lacks have their defaults.

    Returns the run file's record. Raises `ValueError` (one line) for bad input, and what loading and running raises.
    """
    needed = ("model_path", "image_folder", "question_file", "answers_file")
    given = [word for name in needed for word in ("--" + name.replace("_", "-"), str(getattr(args, name)))]
    args = build_parser().parse_args(given, copy.copy(args))
    plan = make_plan(args)
    run_file = run_file_of(plan.answers_file)
    with AnswersFile(plan.answers_file, anew=args.overwrite) as answers:
        earlier = None
        if answers.rows:
            earlier = read_run_file(run_file)
            check_settings(plan.answers_file, earlier, plan.settings)
        if answers.repaired:
            print(f"warning: cut off a half-written or garbled last line of {answers.path}", file=sys.stderr)
        todo = unanswered(plan.answers_file, answers.rows, plan.known, plan.selected)
        run = Run(args, command_of(args), plan, answers.rows, earlier)
        if todo:
            run.ask(todo, answers, Loader()(args, plan))
            answers.sort({question.key: question.index for question in plan.known})
        elif args.overwrite:
            answers.clear()
        run.write("finished")
    return run.record


def command_of(args: argparse.Namespace) -> str:
    """The command line that gives `args`, settings at their default left out."""
    words = ["python", "-m", "llava.eval.model_vqa_loader"]
    parser = build_parser()
    for name, value in vars(args).items():
        flag = "--" + (name if name in UNDERSCORED else name.replace("_", "-"))
        if value is True:
            words.append(flag)
        elif value is False and parser.get_default(name) is None:
            words.append(flag.replace("--", "--no-", 1))
        elif value != parser.get_default(name):
            words += [flag, str(value)]
    return shlex.join(words)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    args = build_parser().parse_args(argv)
    try:
        print(describe(eval_model(args)))
    except KeyboardInterrupt:
        print("interrupted; the same command (without --overwrite) goes on from here", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
