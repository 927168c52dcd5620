"""The chat's loop: read a line, run a command or answer a question; errors are one line each."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.text import Text

from llava.cli import VideoOptions, one_line

from .display import print_trace, printable, summary_line

if TYPE_CHECKING:
    from .chat import Chat, Reply


COMMANDS = {
    "/image PATH|URL": "load an image and begin a new conversation; alone: which one is loaded",
    "/video PATH": "load a video and begin a new conversation; alone: what is loaded",
    "/clear": "begin a new conversation about the same image and video",
    "/prune on|off": "switch pruning; alone: whether it is on, and its settings",
    "/set KEY VALUE": "change a setting of pruning, such as tokens_threshold 0.3, or all of them: /set JSON|FILE",
    "/trace [FILE]": "show what pruning did with the last prompt, layer by layer; with a file: draw the video's frames",
    "/help": "list the commands",
    "/quit": "leave (so does Ctrl-D)",
}
"""Usage → help of the lines that start with a slash; each is a method of `ChatLoop`."""
NAMES = [usage.split()[0] for usage in COMMANDS]
KEYS = "A backslash at the end of a line, or Alt-Enter, begins a new line. Ctrl-C stops an answer, or clears the line."


def command_help() -> str:
    """Return the list of commands and keys as plain text."""
    width = max(map(len, COMMANDS))
    return "\n".join([*(f"  {usage:{width}}  {text}" for usage, text in COMMANDS.items()), f"  {KEYS}"])


class ChatLoop:
    """A `Chat` on a terminal or a pipe.

    Answers go to the text stream `answers` as they are written, everything else to the console `notes`. `read_line`
    returns a line, raises EOFError at the end of input and KeyboardInterrupt on Ctrl-C. `rule`: frames of videos.
    """

    def __init__(
        self,
        chat: Chat,
        read_line: Callable[[], str],
        answers: TextIO,
        notes: Console,
        rule: VideoOptions | None = None,
    ):
        self.chat, self.read_line, self.answers, self.notes = chat, read_line, answers, notes
        self.rule = rule or VideoOptions()
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
        if word.lower() in NAMES:
            with self._reporting():
                getattr(self, word.lower()[1:])(argument.strip())
            return
        close = difflib.get_close_matches(word.lower(), NAMES, n=1, cutoff=0.4)
        hint = f"; did you mean {close[0]}?" if close else ""
        if os.path.isfile(os.path.expanduser(unquoted(line))):
            hint = f"; to load this file: /image {line}"
        self.say(f"unknown command {word}{hint} (/help lists all)", "red")

    def image(self, source: str) -> None:
        """Load an image, or say which one is loaded."""
        if source:
            from .images import load_image  # here: --help lists the commands without NumPy and Pillow

            source = unquoted(source)
            self.chat.see(load_image(source), source)
        self.say(self.describe_image(), "dim")

    def video(self, source: str) -> None:
        """Load a video, or say what is loaded."""
        if source:
            from llava.model.videos import read_video  # here: --help lists the commands without NumPy and Pillow

            source = unquoted(source)
            self.chat.see(read_video(source, self.rule), source)
        self.say(self.describe_image(), "dim")

    def describe_image(self) -> str:
        """Say which image and video the conversation is about."""
        said = []
        for one in self.chat.shown:
            what = "image" if one.source is None else "video"
            frames = "" if one.source is None else f"{len(one.source.frames)} frames, "
            said.append(
                f"{what} {one.name} ({frames}{one.size[0]}×{one.size[1]} pixels, {one.seen.visual} visual tokens)"
            )
        return " and ".join(said) or "no image: text only; /image PATH|URL or /video PATH loads one"

    def clear(self, argument: str) -> None:
        """Begin a new conversation."""
        self.chat.clear()
        self.say(f"a new conversation; {self.describe_image()}", "dim")

    def prune(self, argument: str) -> None:
        """Switch pruning on or off, or show its settings."""
        if argument not in ("", "on", "off"):
            raise ValueError(f"/prune takes on or off, got {argument!r}")
        if argument:
            self.chat.pruning_on = argument == "on"
        self.say_pruning(settings=not argument)

    def set(self, argument: str) -> None:
        """Change one setting of pruning (KEY VALUE), or replace them all (JSON or a file)."""
        argument = unquoted(argument)
        key, _, value = argument.partition(" ")
        if argument.startswith("{") or argument.endswith(".json"):
            self.chat.set_pruning(argument)
        elif value:
            self.chat.set_pruning(self.chat.pruning.to_dict() | {key: json_value(value)})
        elif key:
            raise ValueError(f"/set {key} lacks a value: give one as in /set tokens_threshold 0.3")
        self.say_pruning(settings=True)

    def say_pruning(self, settings: bool) -> None:
        """Say whether pruning is on, and how it is set."""
        self.say(f"pruning is {'on' if self.chat.pruning_on else 'off'}", "dim")
        if settings:
            self.say(json.dumps(self.chat.pruning.to_dict()), "dim", wrap=False)

    def trace(self, argument: str) -> None:
        """Show the last trace, or draw what is kept of the video's frames into a file."""
        last = self.chat.last
        if last is None:
            raise ValueError("no trace yet: ask something first")
        if last.trace is None:
            raise ValueError("the last answer has no trace: pruning was off (/prune on)")
        if not argument:
            print_trace(last, self.notes)
            return
        video = self.chat.video
        if video is None or not last.trace.frames:
            raise ValueError("there is no video whose frames could be drawn: /video PATH loads one")
        from llava.analysis.frames import plot_frames

        plot_frames(video.source, last.trace, medium=len(self.chat.shown) - 1).savefig(unquoted(argument), dpi=150)
        self.say(f"drawn: {unquoted(argument)}", "dim")

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
        """Say a user's mistake, or that memory is too small, in one line; the loop continues."""
        import torch

        try:
            yield
        except torch.OutOfMemoryError as error:
            self.say(f"out of memory ({one_line(error)}); try /prune on, /clear, or start with --load-4bit", "red")
        except ValueError as error:
            self.say(one_line(error), "red")


def json_value(text: str) -> Any:
    """Return the JSON value of a text, or the text itself where it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return text.strip()


def unquoted(path: str) -> str:
    """Undo what terminals do to a file dropped on them: quotes around it, backslashes before spaces."""
    if len(path) > 1 and path[0] == path[-1] and path[0] in "'\"":
        return path[1:-1]
    return path if os.path.exists(path) else path.replace("\\ ", " ")
