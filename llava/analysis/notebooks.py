"""Run the notebooks of `visualization/`: refresh them and the figures of docs/analysis.md, or try another model.

    python -m llava.analysis.notebooks                                  # all of them, in place, and docs/analysis/
    python -m llava.analysis.notebooks attention_visualization
    python -m llava.analysis.notebooks --check                          # run them, write nothing
    python -m llava.analysis.notebooks --out runs/7b --model-path liuhaotian/llava-v1.5-7b --image PICTURE

A notebook's first code cell holds its parameters. A cell tagged `figure:NAME` makes docs/analysis/NAME.jpg. The
notebooks are in a checkout of the repository, not in the installed package. They need nbclient and ipykernel:
pip install 'llava[viz]'.
"""

from __future__ import annotations

import base64
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llava.cli import UserError, option, run_command

if TYPE_CHECKING:
    from nbformat import NotebookNode

CHECKOUT = Path(__file__).parents[2]
FOLDER, FIGURES = CHECKOUT / "visualization", CHECKOUT / "docs/analysis"
PARAMETERS = "parameters"
SECONDS = 120
"""What a notebook may take on two CPU cores with the small model; another model gets ten times that for each cell."""
MAX_BYTES = 300_000
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(kw_only=True)
class Options:
    """Options of the command."""

    names: list[str] = option(
        [], help="notebooks, without .ipynb (default: all)", positional=True, many=True, metavar="NAME"
    )
    check: bool = option(False, help="run, and write nothing")
    out: Path | None = option(
        None, help="write notebooks and figures to this folder instead", metavar="FOLDER", aliases=("--output",)
    )
    model_path: str | None = option(None, help="MODEL_PATH of the notebooks (with --out)")
    image: str | None = option(None, help="IMAGE of the notebooks (with --out)")
    question: str | None = option(None, help="QUESTION of the notebooks (with --out)")
    config: str | None = option(None, help="CONFIG of the notebooks that have it (with --out)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_command(
        Options, work, argv, prog="python -m llava.analysis.notebooks", description=__doc__, interrupted="interrupted"
    )


def work(options: Options) -> None:
    """Run notebooks, write them and their figures; `UserError` for bad options before the first one runs."""
    from tqdm import tqdm

    known = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    if not known:
        raise UserError(f"no notebooks in {FOLDER}: run this command from a checkout of the repository")
    unknown = sorted(set(options.names) - set(known))
    if unknown:
        raise UserError(f"no notebook {unknown[0]!r} in {FOLDER.name}/; there are {', '.join(known)}")
    given = {key.upper(): getattr(options, key) for key in ("model_path", "image", "question", "config")}
    parameters = {name: _absolute(value, Path.cwd()) for name, value in given.items() if value is not None}
    if parameters and options.out is None and not options.check:
        raise UserError("other parameters need --out FOLDER: the notebooks in place show the small model")
    try:
        import ipykernel  # noqa: F401  the kernel that nbclient starts
        import nbclient  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: pip install 'llava[viz]'") from None
    with tqdm(options.names or known, unit="notebook") as names:
        for name in names:
            refresh(FOLDER / f"{name}.ipynb", parameters, None if options.check else options.out or FOLDER)


def refresh(path: Path, parameters: Mapping[str, str], folder: Path | None) -> None:
    """Run a notebook and write it and its figures to `folder` (None: nowhere); `UserError` where a cell fails.

    In the notebooks' own folder the figures go to docs/analysis; in another one, parameters that are paths become
    absolute, so that the notebook runs where it was written.
    """
    import nbformat
    from nbclient.exceptions import CellExecutionError, CellTimeoutError

    in_place = folder is None or folder.resolve() == path.parent.resolve()
    try:
        notebook = run_notebook(path, parameters, SECONDS * (10 if parameters else 1), in_place)
        figures = figures_of(notebook)
    except (CellExecutionError, CellTimeoutError, ValueError) as error:
        last = [line for line in _COLOUR.sub("", str(error)).splitlines() if line.strip()][-1]
        raise UserError(f"{path.name}: {last}") from None
    if folder is None:
        return
    pictures = FIGURES if folder == FOLDER else folder
    for made in (folder, pictures):
        made.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, folder / path.name)
    for figure, picture in figures.items():
        (pictures / f"{figure}.jpg").write_bytes(picture)


def run_notebook(
    path: Path, parameters: Mapping[str, str] | None = None, seconds: int = SECONDS, in_place: bool = True
) -> NotebookNode:
    """Run a notebook in its own folder, in a fresh kernel; return it with its outputs.

    `parameters` are values for its parameters cell, and each cell may take `seconds`. Unless the notebook is to stay
    `in_place`, its parameters that are paths become absolute. Raises `nbclient`'s errors for a cell that fails or
    takes longer.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    set_parameters(notebook, parameters or {}, None if in_place else path.parent)
    resources = {"metadata": {"path": str(path.parent)}}
    quiet = os.environ | {"PYTHONWARNINGS": "ignore:IProgress not found"}  # tqdm, where ipywidgets is not installed
    client = NotebookClient(
        notebook,
        timeout=seconds,
        resources=resources,
        extra_arguments=["--log-level=50"],
        shutdown_kernel="immediate",
    )
    try:
        client.execute(env=quiet)
    finally:  # nbclient takes a Ctrl-C for itself: the cell fails, or ends as if nothing was
        if getattr(client, "_async_cleanup_kernel_future", None) is not None:
            raise KeyboardInterrupt from None
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times, different in every run
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return notebook


def set_parameters(notebook: NotebookNode, parameters: Mapping[str, str], folder: Path | None = None) -> None:
    """Replace the `NAME = "…"` lines of the parameters cell; a name that it does not assign is left out.

    folder: where its relative paths begin, which become absolute; None leaves them as they are.
    """
    if not parameters and folder is None:
        return
    cell = next(cell for cell in notebook.cells if PARAMETERS in cell.metadata.get("tags", ()))
    values: dict[str, str] = {}
    exec(cell.source, {}, values)
    if folder is not None:
        values = {name: _absolute(value, folder) for name, value in values.items()}
    cell.source = "\n".join(
        f"{name} = {json.dumps(parameters.get(name, value), ensure_ascii=False)}" for name, value in values.items()
    )


def figures_of(notebook: NotebookNode) -> dict[str, bytes]:
    """Return the pictures of the cells tagged `figure:NAME`, JPEG by name; `ValueError` where a cell made none."""
    figures = {}
    for cell in notebook.cells:
        for tag in cell.metadata.get("tags", ()):
            if not tag.startswith("figure:"):
                continue
            pictures = [output.data["image/jpeg"] for output in cell.outputs if "image/jpeg" in output.get("data", {})]
            if not pictures:
                raise ValueError(f"the cell tagged {tag} made no picture")
            figures[tag.removeprefix("figure:")] = base64.b64decode(pictures[0])
    return figures


def _absolute(value: str, folder: Path) -> str:
    """Return the absolute path if `text` is an existing path, relative to `folder` or not; other text unchanged."""
    path = folder / Path(value).expanduser()
    try:
        return str(path.resolve()) if value and path.exists() else value
    except (OSError, ValueError):  # a long question is no file name
        return value


if __name__ == "__main__":
    sys.exit(main())
