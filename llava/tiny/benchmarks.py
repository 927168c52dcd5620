"""Write the three small benchmarks: gqa_mini, mme_mini and textvqa_mini, in the file formats of the real ones.

    python -m llava.tiny.benchmarks [--out playground/data/eval] [--questions 600] [--seed 0] [--split benchmark]
    python -m llava.tiny.benchmarks --world heldout --questions 1000 --per-image 4

The same arguments give the same bytes (with the same Pillow and numpy). `--split tune` writes sets of the same shape
from other seeds and from the digits used in training, for choosing thresholds: what is tuned on them can then be
measured on the benchmarks. `--world heldout` is for models of `llava.tiny.train`, which never shows its sign strings
and four of its pairs of colour and shape.
Each benchmark's own files are replaced, anything else in its folder is left alone.
"""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from llava.tiny import gqa_mini, mme_mini, textvqa_mini
from llava.tiny.seeds import SPLITS, picture_seeds
from llava.tiny.worlds import WORLDS

EVAL_FOLDER = Path("playground/data/eval")
DEFAULT_OUT = {"benchmark": EVAL_FOLDER, "tune": EVAL_FOLDER / "tune"}
BENCHMARKS = {"gqa_mini": gqa_mini, "mme_mini": mme_mini, "textvqa_mini": textvqa_mini}


def write_benchmarks(
    out: Path,
    questions: int = 600,
    seed: int = 0,
    split: str = "benchmark",
    progress: bool = False,
    world: str = "trial",
    per_image: int = gqa_mini.PER_IMAGE,
) -> dict[str, int]:
    """Write the three benchmarks into folders of `out`.

    Args:
        out: folder that gets gqa_mini, mme_mini and textvqa_mini.
        questions: questions of each; mme_mini rounds up to a multiple of ten.
        seed: 0–99, one of 100 sets of pictures that share none.
        split: "benchmark" or "tune" (see `llava.tiny.seeds`).
        progress: show a bar on standard error.
        world: "trial" or "heldout" (see `llava.tiny.worlds`).
        per_image: questions of gqa_mini about one picture; textvqa_mini has two, mme_mini a pair.

    Returns:
        The number of questions written, by benchmark.

    Raises:
        ValueError: on fewer than one question, an unknown split or world, a seed out of range; before anything is
            written.

    """
    if questions < 1:
        raise ValueError(f"questions must be at least 1, got {questions}")
    if per_image < 1:
        raise ValueError(f"per_image must be at least 1, got {per_image}")
    picture_seeds(split, seed, benchmark=0)
    if world not in WORLDS:
        raise ValueError(f"unknown world {world!r}; known: {', '.join(WORLDS)}")
    options = {name: {"world": WORLDS[world][split]} for name in BENCHMARKS}
    options["gqa_mini"]["per_image"] = per_image
    written = {}
    for name, benchmark in BENCHMARKS.items():
        with tqdm(total=questions, desc=name, unit="question", disable=not progress) as bar:
            for count in benchmark.write(Path(out), questions, seed, split, **options[name]):
                bar.update(count - bar.n)
            written[name] = count
    return written


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help=f"default {EVAL_FOLDER}, for --split tune {DEFAULT_OUT['tune']}")
    parser.add_argument("--questions", type=int, default=600, help="questions of each benchmark (default 600)")
    parser.add_argument("--seed", type=int, default=0, help="which of 100 disjoint sets, 0 to 99 (default 0)")
    parser.add_argument("--split", choices=sorted(SPLITS), default="benchmark", help="tune: for choosing thresholds")
    parser.add_argument(
        "--world", choices=WORLDS, default="trial", help="trial: what the shipped weights were trained on"
    )
    parser.add_argument("--per-image", type=int, default=gqa_mini.PER_IMAGE, help="questions of gqa_mini a picture")
    args = parser.parse_args(argv)
    out = args.out or DEFAULT_OUT[args.split]
    try:
        written = write_benchmarks(out, args.questions, args.seed, args.split, True, args.world, args.per_image)
    except (OSError, ValueError) as error:
        sys.exit(f"benchmarks: {error}")
    for name, count in written.items():
        print(f"{out / name}: {count} questions")


if __name__ == "__main__":
    main()
