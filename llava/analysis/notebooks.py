"""Run the notebooks of `visualization/`: refresh them and the figures of docs/analysis.md, or try another model.

    python -m llava.analysis.notebooks                                  # all of them, in place, and docs/analysis/
    python -m llava.analysis.notebooks attention_visualization
    python -m llava.analysis.notebooks --check                          # run them, write nothing
    python -m llava.analysis.notebooks --output runs/7b --model-path liuhaotian/llava-v1.5-7b --image PICTURE

A notebook's first code cell holds its parameters. A cell tagged `figure:NAME` makes docs/analysis/NAME.jpg. Needs
nbclient and ipykernel: pip install 'llava[viz]'. Exit status: 0 done, 1 a notebook failed, 2 bad arguments.
"""

from __future__ import annotations

import argparse
import base64
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    from nbformat import NotebookNode

FOLDER = Path(__file__).parents[2] / "visualization"
FIGURES = Path(__file__).parents[2] / "docs/analysis"
PARAMETERS = "parameters"
SECONDS = 120
"""What a notebook may take on two CPU cores with the small model; a larger one gets ten times that a cell."""
MAX_BYTES = 300_000
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def run_notebook(path: Path, parameters: Mapping[str, str] | None = None, seconds: int = SECONDS) -> NotebookNode:
    """Return a notebook with the outputs of a run in its own folder, from a fresh kernel.

    parameters: values for its parameters cell; seconds: what each cell may take.
    Raises `nbclient`'s errors for a cell that fails or takes longer.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    if parameters:
        set_parameters(notebook, parameters)
    resources = {"metadata": {"path": str(path.parent)}}
    quiet = os.environ | {"PYTHONWARNINGS": "ignore:IProgress not found"}  # tqdm, where ipywidgets is not installed
    client = NotebookClient(notebook, timeout=seconds, resources=resources, extra_arguments=["--log-level=40"])
    client.execute(env=quiet)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times, different in every run
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return notebook


def set_parameters(notebook: NotebookNode, parameters: Mapping[str, str]) -> None:
    """Replace the `NAME = …` lines of the parameters cell; a name that it does not assign is left out."""
    cell = next(cell for cell in notebook.cells if PARAMETERS in cell.metadata.get("tags", ()))
    lines = cell.source.splitlines()
    for place, line in enumerate(lines):
        name = line.partition(" = ")[0]
        if name in parameters:
            lines[place] = f"{name} = {parameters[name]!r}"
    cell.source = "\n".join(lines)


def figures_of(notebook: NotebookNode) -> dict[str, bytes]:
    """Return the pictures of the cells tagged `figure:NAME`, JPEG by name; `ValueError` where a cell made none."""
    found = {}
    for cell in notebook.cells:
        for tag in cell.metadata.get("tags", ()):
            if not tag.startswith("figure:"):
                continue
            pictures = [output.data["image/jpeg"] for output in cell.outputs if "image/jpeg" in output.get("data", {})]
            if not pictures:
                raise ValueError(f"the cell tagged {tag} made no picture")
            found[tag.removeprefix("figure:")] = base64.b64decode(pictures[0])
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run notebooks; returns the exit status."""
    known = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    parser = argparse.ArgumentParser(
        prog="python -m llava.analysis.notebooks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"notebooks (default: all): {', '.join(known)}")
    parser.add_argument("--check", action="store_true", help="run, and write nothing")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write notebooks and figures here")
    for name in ("model-path", "image", "question", "config"):
        named = name.upper().replace("-", "_")
        parser.add_argument(f"--{name}", metavar=named, help=f"{named} of the notebooks that have it (with --output)")
    args = parser.parse_args(argv)
    parameters = {
        name.upper(): str(Path(value).resolve()) if Path(value).exists() else value
        for name in ("model_path", "image", "question", "config")
        if (value := getattr(args, name)) is not None
    }
    unknown = sorted(set(args.names) - set(known))
    problem = None
    if unknown:
        problem = f"no notebook {unknown[0]!r} in {FOLDER.name}/; there are {', '.join(known)}"
    elif parameters and args.output is None and not args.check:
        problem = "other parameters need --output: the notebooks in place show the small model"
    if problem is None:
        try:
            import ipykernel  # noqa: F401  the kernel that nbclient starts
            import nbclient  # noqa: F401
        except ImportError as error:
            problem = f"{error.name} is not installed; pip install 'llava[viz]'"
    if problem is not None:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    problem = None
    with tqdm(args.names or known, unit="notebook") as names:  # closed before the error is printed
        for name in names:
            problem = refresh(FOLDER / f"{name}.ipynb", parameters, None if args.check else args.output or FOLDER)
            if problem is not None:
                break
    if problem is not None:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    return 0


def refresh(path: Path, parameters: Mapping[str, str], folder: Path | None) -> str | None:
    """Run a notebook and write it and its figures to `folder` (None: nowhere); return what went wrong, in one line.

    In the notebooks' own folder the figures go to docs/analysis.
    """
    import nbformat
    from nbclient.exceptions import CellExecutionError, CellTimeoutError

    try:
        notebook = run_notebook(path, parameters, SECONDS * (10 if parameters else 1))
        figures = figures_of(notebook)
    except (CellExecutionError, CellTimeoutError, ValueError) as error:
        return f"{path.name}: {[line for line in _COLOUR.sub('', str(error)).splitlines() if line.strip()][-1]}"
    if folder is None:
        return None
    pictures = FIGURES if folder == FOLDER else folder
    for made in (folder, pictures):
        made.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, folder / path.name)
    for figure, picture in figures.items():
        (pictures / f"{figure}.jpg").write_bytes(picture)
    return None


if __name__ == "__main__":
    raise SystemExit(main())
