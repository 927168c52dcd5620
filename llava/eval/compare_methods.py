"""Sets every pruning method to the same FLOPs and asks them the same questions: accuracy side by side (`--help`)."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.eval.model_vqa_loader import Parser, number
from llava.eval.suite import parse_config
from llava.eval.tuning.asking import FLOPS
from llava.eval.tuning.choosing import METHODS
from llava.eval.tuning.contest import CONTROLS, Contest
from llava.eval.tuning.shown import print_tables

EPILOG = f"""
methods:
  {", ".join(METHODS[:8])},
  {", ".join(METHODS[8:])}
of these
  plan                    VisiPruner's filter and exit layer (medians), one for every prompt, tokens spread evenly
  divprune-visipruner     DivPrune before the decoder, and behind it what VisiPruner was set to at the lowest target
  topk-RANK               attention_topk; by the last token's attention it is fastv
  random, random-before   controls: drawn after a layer, or before the decoder
Beside them run {" and ".join(CONTROLS)} (nothing pruned; no visual token at all) and every --config as it is.

1. Tuning. A method's one knob, how many tokens stay, is set by bisection to the most that saves the target; token
   counts decide, answers do not. Where layers are free too, at most --trials of them are asked on the tuning questions,
   and the best accuracy wins. VisiPruner's thresholds and boundaries come from one unpruned pass, as many are tried,
   and the three best are set to the target by how many tokens stay.
2. Benchmarks. Dense and what was chosen answer the benchmarks, which no choice has looked at.

example:
  python -m llava.tiny.benchmarks && python -m llava.tiny.benchmarks --split tune
  python -m llava.eval.compare_methods --model-path playground/checkpoints/llava-tiny \\
      --benchmarks gqa_mini mme_mini textvqa_mini --tune-dir playground/data/eval/tune --limit 100

OUT gets configs.json (what was chosen, its FLOPs, what was tried, who is absent and why), configs/METHOD-TARGET.json
for --pruning-config, summary.json, table.csv, accuracy.png, and all answers. The same command goes on where it stopped.
The last line of output is one JSON object. Exit status: 0, 1 after one line on stderr, 2 for a wrong command line.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(
        prog="python -m llava.eval.compare_methods",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model-path", required=True, help="checkpoint folder or hub name; docs/models.md lists the known models")
    add("--benchmarks", nargs="+", required=True, help="folders of --data-dir, e.g. gqa_mini mme_mini")
    add("--data-dir", type=Path, default=Path("playground/data/eval"), help="default playground/data/eval")
    add("--tune-dir", type=Path, required=True, help="folder with sets of the same names and other questions")
    add("--out", type=Path, default=Path("runs/face_to_face"), help="folder to write to (default runs/face_to_face)")
    add(
        "--save",
        type=number(float, 0, 100),
        nargs="+",
        default=[30.0, 50.0, 60.0],
        metavar="PERCENT",
        help="of dense prefill FLOPs (default 30 50 60)",
    )
    add("--count", choices=FLOPS, default="all", help="FLOPs of all tokens (default), or of visual ones as in papers")
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD", help="default: all")
    add("--config", action="append", type=parse_config, default=[], metavar="NAME=CONFIG", help="one more, as it is")
    add(
        "--trials", type=number(int, 1), default=12, help="settings of a method asked at a target, at most (default 12)"
    )
    add("--tune-limit", type=number(int, 1), default=60, help="tuning questions of each benchmark (default 60)")
    add("--limit", type=number(int, 1), help="only the first questions of each benchmark; scores are then partial")
    add("--points", type=number(float, 0), default=1.0, help="loss that the last lines judge VisiPruner by (default 1)")
    add("--rounds", type=number(int, 0), default=0, help="rounds of paired timing of all configs (default 0: none)")
    add("--timed-questions", type=number(int, 1), default=24, help="questions of each benchmark timed (default 24)")
    add("--batch-size", type=number(int, 1), default=16, help="questions a batch (default 16)")
    add("--max-new-tokens", type=number(int, 1), default=16, help="longest answer in tokens (default 16)")
    add("--device", default="auto", help="auto (default: CUDA, MPS, CPU in this order), cpu, cuda, cuda:1, mps")
    add("--dtype", default="auto", help="float32, float16, bfloat16; auto (default) is float32 on CPU, else float16")
    add("--overwrite", action="store_true", help="choose and answer anew what is in the folder")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    args = build_parser().parse_args(argv)
    try:
        summary = Contest(args).run()
    except KeyboardInterrupt:
        print("interrupted; the same command (without --overwrite) goes on from here", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 1
    print_tables(summary["rows"], summary["targets"], summary["absent"], args.count)
    print("\n".join(summary["verdicts"]))
    if args.limit is not None:
        print(f"PARTIAL: the first {args.limit} questions of each benchmark")
    print(
        f"{summary['device']}, batch {args.batch_size}; {args.out}/summary.json, table.csv, accuracy.png, configs.json"
    )
    print(json.dumps({key: summary[key] for key in ("model_path", "targets", "absent", "verdicts")}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
