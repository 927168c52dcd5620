"""Two runs on the same questions: scores, answers fixed and broken, agreement, cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llava.cli import OutputOptions, number, option, print_json, run_command

EPILOG = """
A RUN is X.jsonl of llava.eval.run or model_vqa_loader (X.run.json must lie beside it), X.run.json, or a folder with one
run, whose chunks are put together. Both must have been asked the same question file.

example, dense against pruned:
  python -m llava.eval.compare runs/quickstart/gqa_mini/dense.jsonl runs/quickstart/gqa_mini/paper.jsonl --examples 3

  … --failed-by runs/control/gqa_mini/downsample.jsonl    # only the questions that a smaller picture fails

fixed, broken    answers that B scores higher, or lower, than A does: wrong to right and right to wrong, scored 0 or 1
interval         95%, paired bootstrap: images are drawn with all their questions, MME's within their task
p                exact and two-sided, that fixed and broken are equally likely (McNemar's test for scores of 0 and 1)
agreement        share of answers that are the same text, with Wilson's 95% interval
cost             per question, from the traces in the answers; milliseconds as measured in each run, one after the
                 other: for a speed-up that can be trusted use the paired times of llava.eval.run

Exit status: 0, 1 after one line on stderr, 2 for a wrong command line.
"""


@dataclass(kw_only=True)
class Options(OutputOptions):
    """What is compared, and how."""

    run_a: str = option(help="the baseline of RUN_B, usually the dense run", positional=True)
    run_b: str = option(help="the other run, of the same question file", positional=True)
    benchmark: str | None = option(None, help="default: by the name of the question file's folder")
    references: str | None = option(None, help="default: where LLaVA's layout has them, beside the question file")
    judge: str | None = option(None, help="how answers to questions of your own compare with --references, e.g. exact")
    allow_partial: bool = option(False, help="compare the common questions of unfinished or unequal runs")
    failed_by: str | None = option(
        None, help="the run of a control: compare only the questions that it fails", metavar="RUN"
    )
    examples: int = option(0, help="show the first N broken and the first N fixed answers", type=number(int, 0))
    resamples: int = option(10_000, help="draws of the bootstrap (default 10000)", type=number(int, 1))
    seed: int = option(0, help="seed of the bootstrap (default 0)", type=number(int, 0))


def work(options: Options) -> None:
    """Read both runs, compare them, print."""
    from llava.eval.results.comparison import compare
    from llava.eval.runner.run import Run

    result = compare(
        Run.read(options.run_a),
        Run.read(options.run_b),
        options.benchmark,
        options.references,
        options.judge,
        options.allow_partial,
        options.resamples,
        options.seed,
        options.examples,
        None if options.failed_by is None else Run.read(options.failed_by),
    )
    print_comparison(result)
    print_json(result, options)


def print_comparison(result: Mapping[str, Any]) -> None:
    """Print what `compare` returns, for people."""
    from rich.markup import escape

    from llava.eval.results.formats import bytes_text, config_text, count_text
    from llava.eval.results.table import Column, Table, console

    to = console()
    for letter in ("a", "b"):
        run = result[letter]
        lines = f"{letter.upper()}  {run['answers']}\n   {run['model']}: {config_text(run['pruning_config'])}"
        to.print(lines, soft_wrap=True, markup=False)
    for note in result["notes"]:
        to.print(f"[bold]{escape(note)}[/bold]", soft_wrap=True)
    if "scores" in result:
        columns = [Column("a", "A", ".2f"), Column("b", "B", ".2f"), Column("difference", "B - A", "+.2f")]
        scores = Table([Column("name", result["benchmark"]), *columns, Column("text", "95% interval")])
        for name, score in result["scores"].items():
            interval = score["interval"]
            text = "none: one cluster" if interval is None else f"{interval[0]:+.2f} to {interval[1]:+.2f}"
            scores.add(**score, name=f"{name} (%)" if name == "accuracy" else name, text=text)
        to.print()
        scores.print(to=to)
        drawn, kept = result["clusters"], result["scored"] - result["fixed"] - result["broken"]
        to.print(
            f"\n{result['scored']} questions: {result['fixed']} fixed, {result['broken']} broken, {kept} with an equal "
            f"score; p = {result['p']:.2g}\n"
            f"interval: {result['resamples']} draws of {drawn['count']} clusters (questions of one {drawn['by']}), "
            f"seed {result['seed']}",
            soft_wrap=True,
        )
    agreement = result["agreement"]
    low, high = agreement["interval"]
    to.print(
        f"\nagreement: {agreement['equal']} of {result['questions']} answers are the same text, "
        f"{agreement['percent']:.1f}% (95% interval {low:.1f} to {high:.1f})\n",
        soft_wrap=True,
    )
    forms = {
        "flops": ("FLOPs, visual tokens", count_text),
        "flops_all_tokens": ("FLOPs, all tokens", count_text),
        "kv_bytes": ("KV after prefill", bytes_text),
        "tokens_per_layer": ("tokens per layer", "{:,.1f}".format),
        "kept_tokens": ("visual tokens kept", "{:,.1f}".format),
        "generated_tokens": ("tokens generated", "{:,.1f}".format),
        **{f"{stage}_ms": (stage, "{:.2f} ms".format) for stage in ("prefill", "decode", "vision")},
    }
    costs = Table(
        [Column("name", "per question"), Column("a", "A"), Column("b", "B"), Column("ratio", "B / A", "{:.2f}×".format)]
    )
    for name, (label, form) in forms.items():
        cost = result["costs"][name]
        costs.add(label, form(cost["a"]), form(cost["b"]), cost["ratio"])
    costs.print(to=to)
    for example in result.get("examples", ()):
        to.print(f"\n[bold]{example['change']}[/bold]  question {escape(example['question_id'])}")
        to.print(escape("   " + example["prompt"].replace("\n", "\n   ")), style="dim", soft_wrap=True)
        for letter in ("a", "b"):
            answer = example[letter]
            to.print(f"   {letter.upper()}: {escape(answer['text'])}  (score {answer['score']:.2g})", soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return run_command(Options, work, argv, prog="python -m llava.eval.compare", description=__doc__, epilog=EPILOG)


if __name__ == "__main__":
    raise SystemExit(main())
