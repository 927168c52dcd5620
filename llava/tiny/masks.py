"""Which layers need the image: accuracy when text→visual attention is masked in some of them, as a table and a picture.

    python -m llava.tiny.masks [--model-path CHECKPOINT ...] [--scenes 24] [--out runs/masks]

Three experiments: layers 0 to k-1 masked (from the shallow end), layers k to the last (from the deep end), two layers
in a row. A model with VisiPruner's three stages loses nothing at either end and much in the middle. Text rows of a
masked layer read no visual token, in the prompt and while decoding; nothing is dropped. OUT/masks.csv holds one row a
checkpoint and mask, accuracy by kind of question and their mean; OUT/masks.png the means.
"""

import argparse
import csv
import sys
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from llava import PruningConfig, load_pretrained_model
from llava.tiny.accuracy import CHECKPOINT, measure, summarize

EXPERIMENTS = {
    "shallow": "layers 0 to k-1 masked",
    "deep": "layers k to the last masked",
    "window": "layers k and k+1 masked",
}


def experiments(layers: int) -> Iterator[tuple[str, int, tuple[int, ...]]]:
    """Yield (experiment, k, masked layers) of every run for a decoder of `layers` layers."""
    for k in range(1, layers + 1):
        yield "shallow", k, tuple(range(k))
    for k in range(1, layers):
        yield "deep", k, tuple(range(k, layers))
    for k in range(layers - 1):
        yield "window", k, (k, k + 1)


def run(loaded: tuple, name: str, scenes: int) -> list[dict]:
    """Measure one checkpoint unmasked (experiment "none") and under every mask; one row each, with a bar on stderr."""
    plans = [("none", 0, ()), *experiments(loaded[1].config.num_hidden_layers)]
    rows = []
    for experiment, k, layers in tqdm(plans, desc=name, unit="mask"):
        options = {"pruning_config": PruningConfig.from_dict({"method": "mask", "layers": layers})} if layers else {}
        summary = summarize(measure(loaded, scenes, **options))
        kinds = {kind: row["accuracy"] for kind, row in summary["kinds"].items()}
        about = {"checkpoint": name, "experiment": experiment, "k": k, "masked": " ".join(map(str, layers))}
        rows.append(about | {"mean": summary["mean"]} | kinds)
    return rows


def draw(path: Path, rows: list[dict]) -> None:
    """Draw the means, one chart an experiment, one line a checkpoint, dashed without a mask."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.4), layout="constrained")
    charts = figure.subplots(1, len(EXPERIMENTS), sharey=True)
    names = list(dict.fromkeys(row["checkpoint"] for row in rows))
    for chart, (experiment, title) in zip(charts, EXPERIMENTS.items(), strict=True):
        for color, name in enumerate(names):
            mine = [row for row in rows if row["checkpoint"] == name]
            line = [row for row in mine if row["experiment"] == experiment]
            chart.plot([r["k"] for r in line], [r["mean"] for r in line], "o-", ms=3, color=f"C{color}", label=name)
            chart.axhline(mine[0]["mean"], color=f"C{color}", ls="--", lw=0.8)
        chart.set_title(title, fontsize=10)
        chart.set_xlabel("k")
        chart.set_ylim(0, 1.02)
    charts[0].set_ylabel("accuracy, mean of all kinds")
    charts[0].legend(fontsize=8)
    figure.savefig(path, dpi=130)


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", nargs="+", default=[CHECKPOINT], help="one or more checkpoints to compare")
    parser.add_argument("--scenes", type=int, default=24, help="pictures, with about 24 questions each (default 24)")
    parser.add_argument("--out", type=Path, default=Path("runs/masks"), help="folder (default runs/masks)")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(argv)
    if args.scenes < 1:
        parser.error(f"--scenes must be at least 1, got {args.scenes}")
    names = [Path(path).name for path in args.model_path]
    if len(set(names)) < len(names):
        parser.error(f"--model-path: the folders' names tell the lines apart and must differ, got {' '.join(names)}")
    rows = []
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        for name, path in zip(names, args.model_path, strict=True):
            loaded = load_pretrained_model(path, None, "llava-tiny", device=args.device)
            rows += run(loaded, name, args.scenes)
    except (OSError, ValueError) as error:
        sys.exit(f"masks: {error}")
    with (args.out / "masks.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    draw(args.out / "masks.png", rows)
    print(f"wrote {args.out / 'masks.csv'} and {args.out / 'masks.png'}")


if __name__ == "__main__":
    main()
