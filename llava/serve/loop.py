"""The chat's loop: read a line, run a command or answer a question, print what it took; errors are one line each."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.text import Text

from .display import one_line, printable, summary_line, trace_tables
from .images import ImageError, Limits, load_image

if TYPE_CHECKING:
    from .chat import Chat, Reply


@dataclass(frozen=True)
class Command:
    """A line that starts with a slash: its usage, what it does, and the `ChatLoop` method that does it."""

    usage: str
    help: str
    method: str

    @property
    def name(self) -> str:
        """The word that calls it."""
        return self.usage.split()[0]


COMMANDS = (
    Command("/image PATH|URL", "load an image and begin a new conversation; alone: which one is loaded", "image"),
    Command("/clear", "begin a new conversation about the same image", "clear"),
    Command("/prune on|off", "switch pruning; alone: whether it is on, and its settings", "prune"),
    Command("/trace", "show what pruning did with the last prompt, layer by layer", "trace"),
    Command("/help", "list the commands", "help"),
    Command("/quit", "leave (so does Ctrl-D)", "quit"),
)
KEYS = "Ctrl-C stops an answer, or clears the line; Ctrl-D leaves."


def command_help() -> str:
    """Return the list of commands and keys as plain text."""
    width = max(len(command.usage) for command in COMMANDS)
    return "\n".join([*(f"  {command.usage:{width}}  {command.help}" for command in COMMANDS), f"  {KEYS}"])


class ChatLoop:
    """A `Chat` on a terminal or a pipe.

    Answers go to the text stream `answers` as they are written, everything else to the console `notes`. `read_line`
    returns a line, raises EOFError at the end of input and KeyboardInterrupt on Ctrl-C.
    """

    def __init__(
        self,
        chat: Chat,
        read_line: Callable[[], str],
        answers: TextIO,
        notes: Console,
        limits: Limits | None = None,
    ):
        self.chat = chat
        self.read_line = read_line
        self.answers = answers
        self.notes = notes
        self.limits = limits or Limits()
        self._leaving = False

    def run(self) -> None:
        """Serve lines until `/quit` or the end of input."""
        while not self._leaving:
            try:
                line = self.read_line().strip()
                if line.startswith("/"):
                    self.command(line)
                elif line:
                    self.ask(line)
            except KeyboardInterrupt:
                continue
            except EOFError:
                return

    def ask(self, question: str) -> Reply | None:
        """Print the answer and the dim line; return the reply, None after an error."""
        written = False

        def write(text: str) -> None:
            nonlocal written
            written = True
            self.answers.write(printable(text))
            self.answers.flush()

        reply = None
        with self._reporting():
            try:
                reply = self.chat.ask(question, write)
            finally:
                if written:
                    self.answers.write("\n")
                    self.answers.flush()
        if reply is not None:
            if not reply.text:
                self.say("(no answer)", "dim")
            self.say(summary_line(reply), "dim")
        return reply

    def command(self, line: str) -> None:
        """Run a line that starts with a slash."""
        word, _, argument = line.partition(" ")
        for command in COMMANDS:
            if word.lower() == command.name:
                with self._reporting():
                    getattr(self, command.method)(argument.strip())
                return
        names = [command.name for command in COMMANDS]
        close = difflib.get_close_matches(word.lower(), names, n=1, cutoff=0.4)
        hint = f"; did you mean {close[0]}?" if close else ""
        if os.path.isfile(os.path.expanduser(unquoted(line))):
            hint = f"; to load this file: /image {line}"
        self.say(f"unknown command {word}{hint} (/help lists all)", "red")

    def image(self, source: str) -> None:
        """Load an image, or say which one is loaded."""
        if source:
            source = unquoted(source)
            self.chat.see(load_image(source, self.limits), source)
        self.say(self.describe_image(), "dim")

    def describe_image(self) -> str:
        """Say which image the conversation is about."""
        image = self.chat.image
        if image is None:
            return "no image: text only; /image PATH|URL loads one"
        return f"image {image.name} ({image.size[0]}×{image.size[1]} pixels, {image.seen.visual} visual tokens)"

    def clear(self, argument: str) -> None:
        """Begin a new conversation."""
        self.chat.clear()
        self.say(f"a new conversation; {self.describe_image()}", "dim")

    def prune(self, argument: str) -> None:
        """Switch pruning on or off."""
        if argument not in ("", "on", "off"):
            raise ValueError(f"/prune takes on or off, got {argument!r}")
        if argument:
            self.chat.pruning_on = argument == "on"
        self.say(f"pruning is {'on' if self.chat.pruning_on else 'off'}", "dim")
        if not argument:
            self.say(json.dumps(self.chat.pruning.to_dict()), "dim", wrap=False)

    def trace(self, argument: str) -> None:
        """Show the last trace."""
        last = self.chat.last
        if last is None:
            raise ValueError("no trace yet: ask something first")
        if last.trace is None:
            raise ValueError("the last answer has no trace: pruning was off (/prune on)")
        self.notes.print(trace_tables(last))

    def help(self, argument: str) -> None:
        """List the commands."""
        self.say(command_help())

    def quit(self, argument: str) -> None:
        """Leave the loop."""
        self._leaving = True

    def say(self, text: str, style: str = "", wrap: bool = True) -> None:
        """Print a note, wrapped at words on a terminal; it may hold file names and errors, so nothing is markup."""
        self.notes.print(Text(printable(text), style=style), soft_wrap=not (wrap and self.notes.is_terminal))

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        """Turn a mistake of the user's, or a machine that is too small, into one line; the loop goes on."""
        import torch

        try:
            yield
        except torch.OutOfMemoryError as error:
            self.say(f"out of memory ({one_line(error)}); try /prune on, /clear, or start with --load-4bit", "red")
        except (ImageError, ValueError) as error:
            self.say(one_line(error), "red")


def unquoted(path: str) -> str:
    """Undo what terminals do to a file dropped on them: quotes around it, backslashes before spaces."""
    if len(path) > 1 and path[0] == path[-1] and path[0] in "'\"":
        return path[1:-1]
    return path if os.path.exists(path) else path.replace("\\ ", " ")
