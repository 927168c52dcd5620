"""Answer a question file with a model, dense or pruned, and write LLaVA's answers file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.cli import GenerationOptions, ModelOptions, command_of, number, option, part_of, run_command

if TYPE_CHECKING:
    from llava.eval.runner.distributed import Ranks
    from llava.eval.runner.run import Run

PROG = "python -m llava.eval.model_vqa_loader"
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
bytes. X.times.jsonl beside X.jsonl holds its milliseconds, X.run.json settings, versions, device and the totals. While
a run goes on its answers lie in X.parts. An interrupted run, killed or not, continues where it stopped when the same
command is given again. Exit status: 0, 1 after one line on stderr, 2 for a wrong command line.
"""


@dataclass(kw_only=True)
class Options(ModelOptions, GenerationOptions):
    """LLaVA's flags."""

    image_folder: str = option(help="folder that the questions' image paths are relative to")
    question_file: str = option(help="JSONL with question_id, text and image (or images); without it: text alone")
    answers_file: str = option(help="JSONL to write or to continue")
    num_chunks: int = option(1, help="cut the questions into this many parts (default 1)", type=number(int, 1))
    chunk_idx: int = option(0, help="index of the part to answer, from 0", type=number(int, 0))
    max_new_tokens: int = option(128, help="longest answer in tokens (default 128)", type=number(int, 1))
    batch_size: int = option(1, help="questions per batch (default 1)", type=number(int, 1))


def eval_model(args: Any) -> dict[str, Any]:
    """Ask the questions, as LLaVA's function of this name does; attributes that `args` lacks have their defaults.

    Returns the run file's record. Raises `UserError` (one line) for bad input, and what loading and running raises.
    """
    return answer(part_of(Options, args)).record


def answer(options: Options, ranks: Ranks | None = None) -> Run | None:
    """Ask the questions; the run is rank 0's, None elsewhere. Raises as `eval_model` does."""
    from llava.eval.benchmarks import question_set
    from llava.eval.runner.evaluator import Evaluator
    from llava.model.preflight import config_of

    questions = question_set(options.question_file, options.image_folder)
    evaluator = Evaluator(options, command_of(PROG, options), ranks)
    plan = evaluator.plan(
        questions,
        questions.at(""),
        Path(options.answers_file),
        config_of(options),
        chunk=(options.chunk_idx, options.num_chunks),
    )
    return evaluator.run(plan)


def describe(run: Run) -> str:
    """The run in one line for people."""
    costs, reused = run.costs, run.record.get("prefix_reuse")
    again = f", {100 * reused['share']:.0f}% of the last session's tokens reused" if reused else ""
    return (
        f"{costs.questions} answers in {run.answers_file}, {run.skipped} skipped; "
        f"{costs.mean_tokens:.1f} of {costs.mean('prompt_tokens'):.1f} tokens per layer, "
        f"FLOPs saved {100 * (1 - costs.visual_flops_share):.1f}%, "
        f"per question: prefill {costs.mean_ms('prefill'):.1f} ms, decode {costs.mean_ms('decode'):.1f} ms{again}"
    )


def work(options: Options) -> int:
    """Run the command; returns the exit status."""
    from llava.eval.runner.distributed import together

    def ask(ranks: Ranks) -> None:
        run = answer(options, ranks)
        if run is not None:
            print(describe(run))

    return together(options.device, ask)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return run_command(Options, work, argv, prog=PROG, description=__doc__, epilog=EPILOG)


if __name__ == "__main__":
    raise SystemExit(main())
