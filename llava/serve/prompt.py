"""Where the chat's lines come from: an edited prompt with history on a terminal, plain lines otherwise."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TextIO

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.history import FileHistory, History, InMemoryHistory

PROMPT = "> "


def terminal_reader(commands: Iterable[str]) -> Callable[[], str]:
    """Return a function that reads one line with editing, history (arrows, Ctrl-R) and completion of commands.

    It raises KeyboardInterrupt on Ctrl-C and EOFError on Ctrl-D.
    """
    session: PromptSession[str] = PromptSession(
        history=open_history(history_file()),
        completer=WordCompleter(list(commands), sentence=True),
        complete_while_typing=False,
        enable_open_in_editor=False,
    )
    return lambda: session.prompt(PROMPT)


def plain_reader(stream: TextIO, prompt_to: TextIO | None = None) -> Callable[[], str]:
    """Return a function that reads one line of a pipe or file, and raises EOFError at its end."""

    def read() -> str:
        if prompt_to is not None:
            prompt_to.write(PROMPT)
            prompt_to.flush()
        line = stream.readline()
        if not line:
            raise EOFError
        return line.rstrip("\r\n")

    return read


def history_file() -> Path:
    """Return where this user's history belongs: $XDG_STATE_HOME, %LOCALAPPDATA% or ~/.local/state."""
    given = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_STATE_HOME")
    state = Path(given) if given else Path(os.path.expanduser("~"), ".local", "state")
    return state / "llava-chat" / "history"


def open_history(path: Path) -> History:
    """Return the history in `path`, made readable for its user alone, or one in memory where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        path.read_bytes()
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))
