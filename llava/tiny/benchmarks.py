"""Write the three small benchmarks: gqa_mini, mme_mini and textvqa_mini, in the file formats of the real ones.

    python -m llava.tiny.benchmarks [--out playground/data/eval] [--questions 1000] [--seed 0] [--split benchmark]

The same arguments give the same bytes (with the same Pillow and numpy). The signs and handwritten digits of the
benchmarks, and four of their pairs of colour and shape, never appear in training (`llava.tiny.worlds`). `--split tune`
writes sets of the same form from other seeds, which show what training shows: what is tuned on them can be measured on
the benchmarks.
Each benchmark's own files are replaced, anything else in its folder is left alone.
"""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from llava.tiny import gqa_mini, mme_mini, textvqa_mini
from llava.tiny.seeds import SPLITS, picture_seeds

QUESTIONS = 1000
EVAL_FOLDER = Path("playground/data/eval")
DEFAULT_OUT = {"benchmark": EVAL_FOLDER, "tune": EVAL_FOLDER / "tune"}
BENCHMARKS = {"gqa_mini": gqa_mini, "mme_mini": mme_mini, "textvqa_mini": textvqa_mini}


def write_benchmarks(
    out: Path,
    questions: int = QUESTIONS,
    seed: int = 0,
    split: str = "benchmark",
    progress: bool = False,
    per_image: int = gqa_mini.PER_IMAGE,
) -> dict[str, int]:
    """Write the three benchmarks into folders of `out`.

    Args:
        out: folder that gets gqa_mini, mme_mini and textvqa_mini.
        questions: questions of each; mme_mini rounds up to a multiple of ten.
        seed: 0–99, one of 100 sets of pictures that share none.
        split: "benchmark" or "tune" (see `llava.tiny.seeds`).
        progress: show a bar on standard error.
        per_image: questions of gqa_mini about one picture; textvqa_mini has two, mme_mini a pair.

    Returns:
        The number of questions written, by benchmark.

    Raises:
        ValueError: on fewer than one question, an unknown split, a seed out of range; before anything is written.

    """
    if questions < 1:
        raise ValueError(f"questions must be at least 1, got {questions}")
    if per_image < 1:
        raise ValueError(f"per_image must be at least 1, got {per_image}")
    picture_seeds(split, seed, benchmark=0)
    written = {}
    for name, benchmark in BENCHMARKS.items():
        with tqdm(total=questions, desc=name, unit="question", disable=not progress) as bar:
            options = {"per_image": per_image} if benchmark is gqa_mini else {}
            for count in benchmark.write(Path(out), questions, seed, split, **options):
                bar.update(count - bar.n)
            written[name] = count
    return written


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help=f"default {EVAL_FOLDER}, for --split tune {DEFAULT_OUT['tune']}")
    parser.add_argument(
        "--questions", type=int, default=QUESTIONS, help=f"questions of each benchmark (default {QUESTIONS})"
    )
    parser.add_argument("--seed", type=int, default=0, help="which of 100 disjoint sets, 0 to 99 (default 0)")
    parser.add_argument("--split", choices=sorted(SPLITS), default="benchmark", help="tune: for choosing thresholds")
    parser.add_argument(
        "--per-image",
        type=int,
        default=gqa_mini.PER_IMAGE,
        help=f"questions of gqa_mini about one picture (default {gqa_mini.PER_IMAGE})",
    )
    args = parser.parse_args(argv)
    out = args.out or DEFAULT_OUT[args.split]
    try:
        written = write_benchmarks(out, args.questions, args.seed, args.split, True, args.per_image)
    except (OSError, ValueError) as error:
        sys.exit(f"benchmarks: {error}")
    for name, count in written.items():
        print(f"{out / name}: {count} questions")


if __name__ == "__main__":
    main()
