"""Compare the accuracy of all pruning methods at the same FLOPs."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llava.cli import ModelOptions, OutputOptions, UserError, command_of, number, option, print_json, run_command
from llava.eval.results.plots import PlotOptions

PROG = "python -m llava.eval.compare_methods"
METHODS = ("visipruner", "plan", "divprune-visipruner", "fastv", "pyramiddrop", "sparsevlm", "vtw", "fitprune")
METHODS += ("topk-text", "topk-visual", "topk-influence", "dart", "visionzip", "divprune", "cdpruner", "vispruner")
METHODS += ("holov", "scope", "prumerge", "hiprune", "random", "random-before", "downsample")
EPILOG = f"""
methods:
  {", ".join(METHODS[:8])},
  {", ".join(METHODS[8:17])},
  {", ".join(METHODS[17:])}
of these
  plan                    VisiPruner's filter and exit layer (medians), one for every prompt, tokens spread evenly
  divprune-visipruner     DivPrune before the decoder, then VisiPruner as it was set for the lowest target
  topk-RANK               attention_topk; by the last token's attention it is fastv
  random, random-before   controls: drawn after a layer, or before the decoder
  downsample              control: the picture made smaller; the questions that it fails are also scored alone
or path/to/file.py:Class, a method of your own with schedules() and with_budget() (docs/methods.md).
Beside them run none and blind (nothing pruned; no visual token at all) and every --config as it is.

Configs are chosen on the questions of --tune-dir; the benchmarks are asked only then (docs/performance.md).

example:
  python -m llava.tiny.benchmarks && python -m llava.tiny.benchmarks --split tune
  python -m llava.eval.compare_methods --model-path playground/checkpoints/llava-tiny \\
      --benchmark gqa_mini,mme_mini,textvqa_mini --tune-dir playground/data/eval/tune --limit 100

OUT gets configs.json (what was chosen, its FLOPs, what was tried, which methods are absent and why),
configs/METHOD-TARGET.json for --pruning-config, summary.json, table.csv, accuracy.png, and all answers. An interrupted
command continues when it is given again. Exit status: 0, 1 after one line on stderr, 2 for a wrong command line.
"""


@dataclass(kw_only=True)
class Options(ModelOptions, PlotOptions, OutputOptions):
    """Options of the command: methods, budgets and questions."""

    benchmark: list[str] = option(
        help="folders of --data-dir, e.g. gqa_mini,mme_mini", many=True, aliases=["--benchmarks"], metavar="A,B"
    )
    data_dir: Path = option(Path("playground/data/eval"), help="default playground/data/eval")
    tune_dir: Path = option(help="folder with sets of the same names and other questions")
    out: Path = option(Path("runs/compare_methods"), help="folder to write to (default runs/compare_methods)")
    saving: list[float] = option(
        [30.0, 50.0, 60.0],
        help="percent of dense prefill FLOPs (default 30 50 60)",
        many=True,
        metavar="PERCENT",
        type=number(float, 0, 100),
        aliases=["--save"],
    )
    count: Literal["all", "visual"] = option(
        "all", help="FLOPs of all tokens (default), or of visual ones as in papers"
    )
    methods: list[str] = option(list(METHODS), help="default: all", many=True, metavar="METHOD")
    config: list[str] = option(
        [], help="one more config, not set to a budget; may be given again", metavar="NAME=CONFIG", repeated=True
    )
    trials: int = option(12, help="configs tried per method and target, at most (default 12)", type=number(int, 1))
    tune_limit: int = option(60, help="tuning questions of each benchmark (default 60)", type=number(int, 1))
    limit: int | None = option(
        None, help="only the first questions of each benchmark; scores are then partial", type=number(int, 1)
    )
    points: float = option(1.0, help="tolerated loss in the verdict on VisiPruner (default 1)", type=number(float, 0))
    rounds: int = option(0, help="rounds of paired timing of all configs (default 0: none)", type=number(int, 0))
    timed_questions: int = option(
        24, help="questions of each benchmark that are timed (default 24)", type=number(int, 1)
    )
    batch_size: int = option(16, help="questions per batch (default 16)", type=number(int, 1))
    max_new_tokens: int = option(16, help="longest answer in tokens (default 16)", type=number(int, 1))
    overwrite: bool = option(False, help="discard the folder's choices and answers")


def methods_of(given: Sequence[str]) -> dict[str, str]:
    """Return the methods of --methods by table name, in the order of `METHODS`, the user's own last."""
    names = [name for text in given for name in text.split(",") if name]
    for name in names:
        if name not in METHODS and ":" not in name:
            near = difflib.get_close_matches(name, METHODS, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise UserError(
                f"--methods {name} is not known{hint}; known are {', '.join(METHODS)}, or path/file.py:Class"
            )
    own = {name.rpartition(":")[2]: name for name in names if ":" in name}
    if taken := {*METHODS, "dense", "none", "blind"} & {*own}:
        raise UserError(f"--methods: the class name {', '.join(sorted(taken))} is taken; rename the class")
    return {name: name for name in METHODS if name in names} | own


def work(options: Options) -> None:
    """Compare, and print the tables."""
    from llava.eval.tuning.comparison import MethodComparison
    from llava.eval.tuning.rows import print_tables

    options.require_dense("methods are set to budgets; --config NAME=CONFIG sets a config beside them as it is")
    comparison = MethodComparison(options, methods_of(options.methods), command_of(PROG, options))
    summary = comparison.run()
    print_tables(summary)
    print("\n".join(summary["verdicts"]))
    if options.limit is not None:
        print(f"PARTIAL: the first {options.limit} questions of each benchmark")
    files = f"summary.json, table.csv, {comparison.plot.name}, configs.json"
    print(f"{summary['device']}, batch {options.batch_size}; {options.out}/{files}")
    print_json({key: summary[key] for key in ("model_path", "targets", "absent", "verdicts")}, options)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return run_command(
        Options,
        work,
        argv,
        prog=PROG,
        description=__doc__,
        epilog=EPILOG,
        interrupted="interrupted; the same command (without --overwrite) continues from here",
    )


if __name__ == "__main__":
    raise SystemExit(main())
