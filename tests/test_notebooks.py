"""The notebooks run from top to bottom with the small model, and what is committed of them is small and current."""

import os
import signal
import threading
import time
from pathlib import Path

import nbformat
import pytest
from scene_fixtures import QUESTION, SCENE

from llava.analysis import notebooks
from llava.analysis.notebooks import FIGURES, FOLDER, MAX_BYTES, PARAMETERS, figures_of, main, run_notebook

ROOT = Path(__file__).parents[1]
NAMES = (
    "project_hidden_states_to_semantic_space",
    "project_vo_to_semantic_space",
    "attention_visualization",
    "L1_norms_of_value_matrix",
    "pruning_walkthrough",
)


def committed(name: str):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def printed(notebook) -> list[str]:
    return [output.text for cell in notebook.cells for output in cell.get("outputs", []) if "text" in output]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_and_its_committed_outputs_are_current(name):
    kept, fresh = committed(name), run_notebook(FOLDER / f"{name}.ipynb")
    assert printed(fresh)[0] == printed(kept)[0] == f"{QUESTION} → {SCENE.sign}\n"
    assert figures_of(fresh).keys() == figures_of(kept).keys()
    for figure, picture in figures_of(kept).items():
        assert (FIGURES / f"{figure}.jpg").read_bytes() == picture


@pytest.mark.parametrize("name", NAMES)
def test_what_is_committed_is_small_and_says_nothing_of_a_machine(name):
    path = FOLDER / f"{name}.ipynb"
    assert path.stat().st_size < MAX_BYTES
    notebook = committed(name)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert "site-packages" not in path.read_text(encoding="utf-8")
    assert not [cell for cell in code if "def " in cell.source]


@pytest.mark.parametrize("name", NAMES)
def test_the_parameters_are_the_small_models(name):
    [cell] = [cell for cell in committed(name).cells if PARAMETERS in cell.metadata.get("tags", ())]
    values: dict[str, str] = {}
    exec(cell.source, {}, values)
    assert {"MODEL_PATH", "IMAGE", "QUESTION"} <= values.keys() <= {"MODEL_PATH", "IMAGE", "QUESTION", "CONFIG"}
    assert all((FOLDER / value).exists() for key, value in values.items() if key != "QUESTION")


def test_the_documentation_shows_every_figure_and_names_every_notebook():
    text = (ROOT / "docs/analysis.md").read_text(encoding="utf-8")
    figures = {figure for name in NAMES for figure in figures_of(committed(name))}
    assert {path.stem for path in FIGURES.iterdir()} == figures
    assert all(f"analysis/{figure}.jpg" in text for figure in figures)
    assert all(f"{name}.ipynb" in text for name in NAMES)
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(NAMES)


def test_other_parameters_take_the_place_of_the_notebooks_own_and_paths_hold_where_it_was_written(
    tmp_path, monkeypatch, capsys
):
    cell = nbformat.v4.new_code_cell("QUESTION = 'a'\nIMAGE = 'b'", metadata={"tags": [PARAMETERS]})
    shown = nbformat.v4.new_code_cell("print(QUESTION, open(IMAGE).read())")
    (tmp_path / "b").write_text("b")
    failing = nbformat.v4.new_code_cell("raise KeyError('no such thing')")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell, shown]), tmp_path / "good.ipynb")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell, failing]), tmp_path / "bad.ipynb")
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path)
    assert main(["good", "--output", str(tmp_path / "out"), "--question", "it's"]) == 0
    assert printed(nbformat.read(tmp_path / "out/good.ipynb", as_version=4)) == ["it's b\n"]
    assert printed(run_notebook(tmp_path / "out/good.ipynb")) == ["it's b\n"]
    assert printed(nbformat.read(tmp_path / "good.ipynb", as_version=4)) == []
    assert main(["bad", "--check"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "error: bad.ipynb: KeyError: 'no such thing'"
    assert printed(run_notebook(tmp_path / "good.ipynb", {"CONFIG": "none.json"})) == ["a b\n"]


def test_ctrl_c_in_the_middle_of_a_cell_is_one_line(tmp_path, monkeypatch, capsys):
    cell = nbformat.v4.new_code_cell("", metadata={"tags": [PARAMETERS]})
    long = nbformat.v4.new_code_cell("import pathlib, time\npathlib.Path('begun').touch()\ntime.sleep(60)")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell, long]), tmp_path / "long.ipynb")
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path)

    def press():
        while not (tmp_path / "begun").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    assert main([]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"

    def ended(client, **words):
        client._async_cleanup_kernel_future = "what nbclient leaves of a Ctrl-C that comes with the last cell's end"

    monkeypatch.setattr("nbclient.NotebookClient.execute", ended)
    assert main([]) == 130


def test_a_figure_cell_without_a_picture_is_refused():
    cell = nbformat.v4.new_code_cell("1", metadata={"tags": ["figure:lens"]})
    with pytest.raises(ValueError, match="the cell tagged figure:lens made no picture"):
        figures_of(nbformat.v4.new_notebook(cells=[cell]))


def test_arguments_that_cannot_work_are_refused_before_anything_runs(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(notebooks, "refresh", lambda *args: pytest.fail("a notebook ran"))
    for arguments, message in (
        (["nothing"], "no notebook 'nothing' in visualization/"),
        (["--model-path", "other"], "other parameters need --out FOLDER"),
    ):
        assert main(arguments) == 1
        assert message in capsys.readouterr().err
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path)  # as an installed package has it
    assert main([]) == 1
    assert "run this command from a checkout" in capsys.readouterr().err
