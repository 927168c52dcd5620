"""docs/methods.md: its table has the code's keys and defaults; its example, run as it stands, is a method."""

import dataclasses
import importlib
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from conftest import MIXED, Prompts

from llava.eval import run
from llava.model.pruning import PruningConfig, prune
from llava.model.pruning.method import METHODS
from llava.tiny.benchmarks import write_benchmarks

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|$", PAGE, re.MULTILINE))


def test_the_table_has_every_method_with_its_keys_and_defaults():
    assert set(ROWS) == set(METHODS)
    for name, cls in METHODS.items():
        if name == "visipruner":
            continue
        listed = dict(re.findall(r"`(\w+)` (\[[^\]]*\]|[^,\s]+)", ROWS[name]))
        defaults = {
            field.name: field.default
            for field in dataclasses.fields(cls)
            if field.name not in ("before", "rectify", "decoding")
        }
        assert list(listed) == list(defaults)
        for key, default in defaults.items():
            none = default is None or default is dataclasses.MISSING
            assert listed[key] == "–" if none else json.loads(listed[key]) == json.loads(json.dumps(default))


def test_configs_on_the_page_are_valid():
    configs = [json.loads(config) for config in re.findall(r"`(\{.*?\})`", PAGE.replace("\n", " "))]
    assert len(configs) >= 3
    for config in configs:
        if config["method"] != "short_keys":
            PruningConfig.from_dict(config)


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The page's file in an empty folder, which is the working directory; afterwards nobody knows the method."""
    (tmp_path / "short_keys.py").write_text(
        re.search(r"```python\n(.*?)```", PAGE, re.DOTALL).group(1), encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    METHODS.pop("short_keys", None)
    sys.modules.pop("short_keys", None)


def test_the_example_keeps_the_shortest_keys(llama, example):
    prompts, keys = Prompts(*MIXED), []
    hook = llama.model.layers[2].self_attn.k_proj.register_forward_hook(lambda *call: keys.append(call[2]))
    with prune(llama, {"method": "short_keys.py:ShortKeys", "keep": 4}, prompts.visual) as session:
        llama(**prompts.inputs)
    hook.remove()
    lengths = keys[0][0].unflatten(-1, (2, -1)).norm(dim=-1).sum(-1)  # rotary embedding does not change lengths
    start = 0
    for kind, trace in zip(MIXED, session.traces, strict=True):
        visual = [start + j for j, letter in enumerate(kind) if letter == "v"]
        shortest = lengths[visual].topk(min(4, len(visual)), largest=False).indices
        assert trace.kept == sorted(torch.tensor(visual)[shortest].sub(start).tolist())
        start += len(kind)


def test_every_way_to_name_the_example_works_and_is_kept(llama, example):
    visual = Prompts("tvvvt").visual
    for reference in ("short_keys.py:ShortKeys", "./short_keys.py:ShortKeys", "short_keys:ShortKeys"):
        config = PruningConfig.from_dict({"method": reference, "keep": 2, "before": {"method": "random", "keep": 3}})
        assert config.to_dict()["method"] == config.resolved(6).to_dict()["method"] == reference
        assert PruningConfig.from_json(json.dumps(config.to_dict())) == config
        with pytest.raises(ValueError, match="'layer' is 6, but the model has 6 layers"):
            prune(llama, {"method": reference, "layer": 6}, visual)
        with pytest.raises(ValueError, match="unknown key 'kep'.*did you mean 'keep'"):
            PruningConfig.from_dict({"method": reference, "kep": 2})
    del sys.modules["short_keys"]
    short_keys = importlib.import_module("short_keys")
    assert prune(llama, short_keys.ShortKeys(keep=24), visual).config.keep == 24
    (by_name,) = re.findall(r"`(\{\"method\": \"short_keys\".*?\})`", PAGE)
    assert PruningConfig.from_json(by_name) == short_keys.ShortKeys(keep=24)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("nowhere.py:ShortKeys", "there is no file 'nowhere.py'"),
        ("short_keys.py:ShortKey", "defines no class 'ShortKey' .did you mean 'ShortKeys'"),
        ("short_keys.py:KeyNorm", "KeyNorm is not a subclass of llava.model.pruning.Method"),
        ("broken.py:Any", "'broken.py' cannot be imported .NameError: name 'nothing' is not defined"),
        ("bare.py:Bare", "put @dataclass.frozen=True. above class Bare"),
        ("taken.py:Taken", "there is a method 'fastv' in this package: give Taken another name"),
        ("no.such.module:Method", "'no.such.module' cannot be imported .ModuleNotFoundError"),
        ("short_keys", "unknown pruning method 'short_keys'"),
    ],
)
def test_what_names_no_method_is_one_line(example, reference, message):
    (example / "broken.py").write_text("nothing\n")
    (example / "bare.py").write_text("from llava.model.pruning import Method\nclass Bare(Method):\n    keep: int = 3\n")
    (example / "taken.py").write_text(
        "from llava.model.pruning import Method\nclass Taken(Method, name='fastv'): ...\n"
    )
    with pytest.raises(ValueError, match=message) as caught:
        PruningConfig.from_dict({"method": reference})
    assert "\n" not in str(caught.value)


def test_the_command_of_the_page_runs_the_example_and_its_run_file_names_it(example, capsys):
    (command,) = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    words = shlex.split(command.replace("\\\n", " "))
    assert words[:3] == ["python", "-m", "llava.eval.run"]
    (example / "playground").mkdir()
    (example / "playground" / "checkpoints").symlink_to(ROOT / "playground" / "checkpoints")
    write_benchmarks(example / "playground" / "data" / "eval", questions=20, names=("gqa_mini",))
    assert run.main(words[3:]) == 0
    (record,) = example.rglob("*.run.json")
    assert json.loads(record.read_text())["settings"]["pruning_config"]["method"] == "short_keys.py:ShortKeys"
    (answers,) = (path for path in record.parent.glob("*.jsonl") if "times" not in path.name)
    kept = [json.loads(line)["metadata"]["kept_tokens"] for line in answers.read_text().splitlines()]
    assert kept == [24] * 20


def test_what_select_must_not_return_is_said(llama, example):
    (example / "wrong.py").write_text(
        "import numpy as np\nfrom llava.model.pruning import Method\n"
        "class Wrong(Method):\n    def select(self, layer, prompt, measured):\n        return np.array([0, 1])\n"
    )
    prompts = Prompts("tvvvt")
    told = pytest.raises(
        ValueError, match=r"select\(\) of method 'wrong.py:Wrong' must return .* bool \[3\].*int64 \[2\]"
    )
    with prune(llama, {"method": "wrong.py:Wrong"}, prompts.visual), told:
        llama(**prompts.inputs)
