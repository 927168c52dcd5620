"""The README's Python example runs as it stands, and every file and command it names exists."""

import dataclasses
import re
from pathlib import Path

from scene_fixtures import SCENE

from llava.model.pruning.methods import VisiPruner
from llava.model.pruning.methods.visipruner import PRESETS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_runs_and_reads_the_sign(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    exec(re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1), {})
    answer, summary = capsys.readouterr().out.strip().splitlines()
    assert answer == SCENE.sign
    assert re.search(r"'filter_layer': \d", summary)


def test_files_that_the_readme_names_exist():
    named = re.findall(r"\]\(((?!http)[^)]+)\)", README) + re.findall(r"(?:bash|python) (scripts/\S+\.sh)", README)
    assert len(named) >= 6
    for path in named:
        assert (ROOT / path.partition("#")[0]).exists(), path


def test_the_config_table_names_every_key_and_its_presets_values():
    table = dict(re.findall(r"^\| `(\w+)`[^|]*\| ([^|]+\| [^|]+)\|", README, re.MULTILINE))
    for key, value in PRESETS["paper"].items():
        assert [cell.strip(" `") for cell in table[key].split("|")] == [str(value), str(PRESETS["released"][key])]
    for field in dataclasses.fields(VisiPruner):
        assert f"`{field.name}`" in README
