"""`llava-chat` from outside: one question, mistakes before the model loads, pipes, and a real terminal."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import select
import subprocess
import sys
from pathlib import Path

import pytest
from llava_fixtures import make_model, write_checkpoint
from PIL import Image

from llava.model.preflight import default_config
from llava.serve import cli_pruning
from llava.serve.cli_pruning import choose_conv_mode, main
from llava.serve.display import card_sentence
from llava.serve.loop import COMMANDS

CONFIG = json.dumps({"mode": ["middle"], "shallow_mid_layer": 1, "layer_threshold": 1.0, "tokens_threshold": 0.1})
LIMIT = 4096
SECONDS = 60
PROMPT_SHOWN = "\x1b[?2004h"  # bracketed paste on: the line editor is waiting


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "red.png"
    Image.new("RGB", (40, 30), (200, 20, 20)).save(path)
    return str(path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Random weights that talk until the limit: no end token."""
    folder = write_checkpoint(tmp_path_factory.mktemp("model") / "llava-tiny-random", make_model())
    config = json.loads((folder / "config.json").read_text())
    config |= {"eos_token_id": None, "tokenizer_model_max_length": LIMIT, "max_position_embeddings": LIMIT}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture
def no_loading(monkeypatch):
    def load(*args, **kwargs):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("llava.model.loaded.LoadedModel.from_path", load)


def test_help_names_every_command_and_needs_no_model(capsys, no_loading):
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    text = capsys.readouterr().out
    assert left.value.code == 0 and all(usage in text and what in text for usage, what in COMMANDS.items())


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["--image-file", "/nothing/here.png"], "no such file"),
        (["--image-file", __file__], "not an image"),
        (["--image-file", "http://127.0.0.1:1/x.png"], "cannot be fetched"),
        (["--pruning-config", "{"], "not JSON"),
        (["--pruning-config", "nowhere.json"], "cannot be read"),
        (["--pruning-config", '{"mod": []}'], "did you mean 'mode'"),
        (["--pruning-config", '{"mode": ["deep"], "mid_deep_layer": 99}'], "99"),
        (["--conv-mode", "v7"], "known: v1"),
        (["-p", "  "], "empty"),
        (["--load-4bit", "--load-8bit"], "8"),
        (["--min-pixels", "784"], "pixels"),
        (["--device", "gpu"], "gpu"),
    ],
)
def test_a_mistake_is_one_line_before_the_model_loads(capsys, no_loading, monkeypatch, arguments, reason):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert main(["-p", "hi", *arguments]) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and reason in said.err


def test_a_missing_checkpoint_is_one_line(capsys, tmp_path, monkeypatch):
    assert main(["-p", "hi", "--model-path", str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.setattr(cli_pruning, "SMALL_MODEL", tmp_path / "moved")
    assert main(["-p", "hi", "--model-path", str(tmp_path / "moved")]) == 1
    assert "the small model is not at" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["--temperature", "-1"], ["--temperature", "nan"], ["--top-p", "1.5"], ["--max-new-tokens", "0"]]
    + [["--seed", "x"], ["--prefix-cache", "x"]],
)
def test_options_out_of_range_are_refused(capsys, no_loading, arguments):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2 and arguments[0] in capsys.readouterr().err


def test_a_prompt_that_is_not_utf_8_is_one_line(capsys, no_loading):
    with pytest.raises(SystemExit) as left:
        main(["-p", "what\udce9?"])
    said = capsys.readouterr().err
    assert left.value.code == 2 and "is not valid UTF-8" in said and said.count("\n") == 1


def test_one_question_prints_the_answer_alone(capsys, picture):
    question = ["-p", "What color is the square?", "--image-file", picture, "--device", "cpu"]
    assert main(question) == 0
    pruned = capsys.readouterr()
    assert main([*question, "--no-pruning"]) == 0
    dense = capsys.readouterr()
    for said in (pruned, dense):
        assert re.fullmatch(r"[A-Za-z0-9 ]+\n", said.out) and "\x1b" not in said.out + said.err
        assert said.err.count("\n") == 1
    assert "visual tokens" in pruned.err and "pruning off" in dense.err


def test_a_pipe_is_read_line_by_line(capsys, monkeypatch, checkpoint):
    lines = b"one?\n/prune off\nwhat\xe9?\ntwo?\n"  # the third is not UTF-8
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines), encoding="utf-8"))
    options = ["--model-path", checkpoint, "--pruning-config", CONFIG, "--max-new-tokens", "3", "--device", "cpu"]
    assert main(options) == 0
    said = capsys.readouterr()
    assert said.err.count("cut at the token limit") == 2 and "pruning is off" in said.err
    assert "the question is not valid UTF-8 at character 5" in said.err
    assert "\x1b" not in said.out + said.err and "> " not in said.out


def test_conversation_modes_follow_the_name():
    names = {
        "llava-tiny": "vicuna_v1",
        "llava-v1.5-7b": "llava_v1",
        "llava-llama-2-13b": "llava_llama_2",
        "LLaVA-Lightning-MPT-7B": "mpt",
        "other": "llava_v0",
    }
    assert {name: choose_conv_mode(name) for name in names} == names


def test_the_checkpoints_own_pruning_config_is_the_default(tmp_path):
    assert default_config(tmp_path).resolved(32).shallow_mid_layer == 6
    (tmp_path / "pruning.json").write_text(CONFIG)
    assert default_config(tmp_path).shallow_mid_layer == 1


def test_the_first_sentence_of_a_model_card(tmp_path):
    assert card_sentence(tmp_path) is None
    (tmp_path / "README.md").write_text("---\nlicense: x\n---\n# Title\n\nA small\nmodel. More.\n")
    assert card_sentence(tmp_path) == "A small model."


# a session's first terminal becomes its controlling one, so that Ctrl-C arrives as a signal
ON_TERMINAL = """
import os, sys
os.close(os.open(os.ttyname(0), os.O_RDWR))
from llava.serve.cli_pruning import main
sys.exit(main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_on_a_real_terminal_ctrl_c_stops_the_answer_and_ctrl_d_leaves(checkpoint, picture, tmp_path):
    terminal, inside = os.openpty()
    options = ["--model-path", checkpoint, "--image-file", picture, "--pruning-config", CONFIG, "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-c", ON_TERMINAL, *options, "--max-new-tokens", str(LIMIT)],
        stdin=inside,
        stdout=inside,
        stderr=inside,
        start_new_session=True,
        cwd=Path(cli_pruning.__file__).parents[2],
        env=os.environ | {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "XDG_STATE_HOME": str(tmp_path)},
    )
    os.close(inside)
    screen = Screen(terminal)
    try:
        screen.wait_for("Ctrl-D leaves")
        screen.wait_for(PROMPT_SHOWN)
        screen.type("What is this?\r")
        screen.wait_for("What is this?")
        screen.wait_for_more(200)
        screen.type("\x03")
        screen.wait_for("stopped")
        screen.wait_for(PROMPT_SHOWN)
        screen.type("/trace\r")
        screen.wait_for("KV cache:")
        screen.wait_for(PROMPT_SHOWN)
        screen.type("\x04")
        screen.wait_for_end()
        assert process.wait(SECONDS) == 0
    finally:
        process.kill()
        process.wait()
        os.close(terminal)


class Screen:
    """What a program writes to a terminal; each wait begins where the one before ended."""

    def __init__(self, terminal: int):
        self.terminal = terminal
        self.text = ""

    def type(self, keys: str) -> None:
        os.write(self.terminal, keys.encode())

    def wait_for(self, expected: str) -> None:
        while expected not in self.text:
            self._read(f"for {expected!r}")
        self.text = self.text.split(expected, 1)[1]

    def wait_for_more(self, count: int) -> None:
        while len(self.text) < count:
            self._read(f"for {count} more characters")

    def wait_for_end(self) -> None:
        with contextlib.suppress(OSError):  # Linux reports the end of a terminal as an error
            while True:
                before = len(self.text)
                self._read("for the end")
                if len(self.text) == before:
                    return

    def _read(self, what: str) -> None:
        ready, _, _ = select.select([self.terminal], [], [], SECONDS)
        assert ready, f"waited {SECONDS} s {what}, the screen says {self.text[-500:]!r}"
        self.text += os.read(self.terminal, 1 << 16).decode("utf-8", errors="replace")
