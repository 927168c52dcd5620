"""docs/methods.md: its table is the code's keys and defaults, and its example is a method that runs."""

import dataclasses
import importlib.util
import json
import re
import sys
from pathlib import Path

import torch
from conftest import MIXED, Prompts

from llava.model.pruning import PruningConfig, prune
from llava.model.pruning.methods import METHODS

PAGE = (Path(__file__).parents[1] / "docs" / "methods.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|$", PAGE, re.MULTILINE))


def test_the_table_has_every_method_with_its_keys_and_defaults():
    assert list(ROWS) == list(METHODS)
    for name, cls in METHODS.items():
        if name == "visipruner":
            continue
        listed = dict(re.findall(r"`(\w+)` (\[[^\]]*\]|[^,\s]+)", ROWS[name]))
        defaults = {field.name: field.default for field in dataclasses.fields(cls) if field.name != "before"}
        assert list(listed) == list(defaults)
        for key, default in defaults.items():
            assert listed[key] == "–" if default is None else json.loads(listed[key]) == json.loads(json.dumps(default))


def test_configs_on_the_page_are_valid():
    configs = re.findall(r"`(\{.*?\})`", PAGE.replace("\n", " "))
    assert len(configs) >= 2
    for config in configs:
        PruningConfig.from_json(config)


def test_the_example_method_runs_and_keeps_what_it_says(llama, tmp_path, monkeypatch):
    path = tmp_path / "short_keys.py"
    path.write_text(re.search(r"```python\n(.*?)```", PAGE, re.DOTALL).group(1), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("llava.model.pruning.methods.short_keys", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    prompts, keys = Prompts(*MIXED), []
    hook = llama.model.layers[2].self_attn.k_proj.register_forward_hook(lambda *call: keys.append(call[2]))
    with prune(llama, module.ShortKeys(keep=4), prompts.visual) as session:
        llama(**prompts.inputs)
    hook.remove()
    lengths = keys[0][0].unflatten(-1, (2, -1)).norm(dim=-1).sum(-1)  # rotary embedding does not change lengths
    start = 0
    for kind, trace in zip(MIXED, session.traces, strict=True):
        visual = [start + j for j, letter in enumerate(kind) if letter == "v"]
        shortest = lengths[visual].topk(min(4, len(visual)), largest=False).indices
        assert trace.kept == sorted(torch.tensor(visual)[shortest].sub(start).tolist())
        start += len(kind)
