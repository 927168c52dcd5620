"""Models that can be pruned: transformers' image-text-to-text list, what each takes, and why no more.

python -m llava.model.pruning.families
python -m llava.model.pruning.families --runs refused
python -m llava.model.pruning.families --markdown       # the table of docs/models.md
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from llava.cli import OutputOptions, option, print_json, run_command

RUNS = ("all methods", "before the decoder", "refused")


@dataclass(kw_only=True)
class Options(OutputOptions):
    """Which models."""

    runs: str | None = option(None, help="only the models that take these methods", choices=RUNS)
    markdown: bool = option(False, help="print Markdown")


def work(options: Options) -> None:
    """Print the table."""
    from llava.eval.results.table import Column, Table
    from llava.model.pruning.families.listing import listing
    from llava.model.silence import silence

    with silence():
        entries = listing()
    chosen = [entry for entry in entries if options.runs in (None, entry.runs)]
    table = Table(["model_type", Column("runs", left=True), Column("decoder", left=True)])
    table.columns.append(Column("why", "why no more", left=True))
    for entry in chosen:
        table.add(**asdict(entry))
    counts = {runs: sum(entry.runs == runs for entry in entries) for runs in RUNS}
    if options.markdown:
        print(table.markdown())
        return
    table.print(", ".join(f"{count} {runs}" for runs, count in counts.items()))
    print_json({"counts": counts, "models": [asdict(entry) for entry in chosen]}, options)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return run_command(Options, work, argv, prog="python -m llava.model.pruning.families", description=__doc__)


if __name__ == "__main__":
    raise SystemExit(main())
