"""What all commands have in common: help and a wrong option are answered before torch and transformers are imported."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMANDS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "llava").rglob("*.py")
    if path.name != "cli.py" and "return run_command(" in path.read_text(encoding="utf-8")
)
PROBE = """
import importlib, sys
main = importlib.import_module(sys.argv[1]).main
for words in (["--help"], ["--no-such-option"]):
    try:
        main(words)
    except SystemExit as left:
        print(left.code)
print([name for name in ("torch", "transformers") if name in sys.modules])
"""


@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_a_wrong_option_are_answered_at_once(command):
    said = subprocess.run([sys.executable, "-c", PROBE, command], capture_output=True, text=True, cwd=ROOT)
    assert said.stdout.splitlines()[-3].endswith("0") and said.stdout.splitlines()[-2:] == ["2", "[]"], said.stderr
    assert said.stderr.startswith("error: ") and said.stderr.count("\n") == 1
