"""Input of the chat: an editable prompt with history on a terminal, lines of a pipe otherwise.

A question may have several lines: a line that ends in a backslash continues on the next one, on a terminal Alt-Enter
begins a new line, and what is pasted stays together.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TextIO

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

PROMPT, CONTINUATION = "> ", "… "


def terminal_reader(commands: Iterable[str]) -> Callable[[], str]:
    """Return a function that reads one question with editing, history (arrows, Ctrl-R) and completion of commands.

    It raises KeyboardInterrupt on Ctrl-C and EOFError on Ctrl-D.
    """
    session: PromptSession[str] = PromptSession(
        history=open_history(history_file()),
        completer=WordCompleter(list(commands), sentence=True),
        complete_while_typing=False,
        enable_open_in_editor=False,
        multiline=True,
        prompt_continuation=CONTINUATION,
        key_bindings=_enter_keys(),
    )
    return lambda: session.prompt(PROMPT)


def _enter_keys() -> KeyBindings:
    """Enter ends the question, unless a backslash stands before it; Alt-Enter begins a new line."""
    bindings = KeyBindings()
    typing = has_focus(DEFAULT_BUFFER)  # and not searching the history

    @bindings.add("enter", filter=typing)
    def enter(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @bindings.add("escape", "enter", filter=typing)
    def alt_enter(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    return bindings


def plain_reader(stream: TextIO, prompt_to: TextIO | None = None) -> Callable[[], str]:
    """Return a function that reads one question of a pipe or file, and raises EOFError at its end."""

    def read() -> str:
        lines: list[str] = []
        while not lines or lines[-1].endswith("\\"):
            if prompt_to is not None:
                prompt_to.write(CONTINUATION if lines else PROMPT)
                prompt_to.flush()
            line = stream.readline()
            if not line and not lines:
                raise EOFError
            lines.append(line.rstrip("\r\n"))
        return "\n".join([*(line[:-1] for line in lines[:-1]), lines[-1]])

    return read


class _History(FileHistory):
    """A history file in UTF-8; what is pasted need not be valid UTF-8."""

    def store_string(self, string: str) -> None:
        """Append a question, its invalid characters replaced."""
        super().store_string(string.encode("utf-8", "replace").decode())


def history_file() -> Path:
    """Return where this user's history belongs: $XDG_STATE_HOME, %LOCALAPPDATA% or ~/.local/state."""
    given = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_STATE_HOME")
    state = Path(given) if given else Path(os.path.expanduser("~"), ".local", "state")
    return state / "llava-chat" / "history"


def open_history(path: Path) -> History:
    """Return the history in `path`, readable for its user alone, or one in memory where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        path.read_bytes()
    except OSError:
        return InMemoryHistory()
    return _History(str(path))
