"""Properties of all commands: help without torch and transformers, errors and warnings of one line."""

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


WARNS = """
import dataclasses, warnings
from llava.cli import run_command
def work(options):
    for number in (1, 1, 2):
        warnings.warn(f"key {number}\\nhas no effect")
        warnings.resetwarnings()
run_command(dataclasses.make_dataclass("Options", []), work, [], prog="example", description=None)
"""


def test_a_warning_for_users_is_one_line_shown_once():
    said = subprocess.run([sys.executable, "-c", WARNS], capture_output=True, text=True, cwd=ROOT)
    assert said.stderr == "warning: key 1 has no effect\nwarning: key 2 has no effect\n"


def test_a_command_that_is_interrupted_while_it_imports_says_so_in_one_line():
    started = "import sys; sys.argv[0] = '-m'; import llava; sys.argv[0] = 'run.py'; raise KeyboardInterrupt"
    assert subprocess.run([sys.executable, "-c", started], capture_output=True, cwd=ROOT).stderr == b"interrupted\n"
    imported = "import sys, llava; assert sys.excepthook is sys.__excepthook__"
    subprocess.run([sys.executable, "-c", imported], check=True, cwd=ROOT)
