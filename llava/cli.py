"""Command lines made from dataclasses: one field per option, one set of exit statuses, one JSON line for programs.

A command is a dataclass of options and a function that does the work:

    @dataclass(kw_only=True)
    class Options(ModelOptions, OutputOptions):
        benchmark: str = option(help="names with commas, e.g. gqa,mme")

    def work(options: Options) -> None: ...

    def main(argv=None) -> int:
        return run_command(Options, work, argv, prog="python -m llava.eval.run", description=__doc__)

This module imports neither torch nor transformers, and neither does a command at its top: `--help` and a wrong option
are answered at once, and Ctrl-C ends every command in one line, also while it imports.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import math
import os
import shlex
import sys
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

Options = TypeVar("Options")
INTERRUPTED = 130
PREFIX_CACHE_BYTES = 2 << 30


class UserError(ValueError):
    """An error that the user can fix; one line: what was given, what was expected, what to do."""


def option(
    default: Any = MISSING,
    *,
    help: str,  # noqa: A002
    short: str | None = None,
    positional: bool = False,
    type: Callable[[str], Any] | None = None,  # noqa: A002
    choices: Sequence[str] | None = None,
    metavar: str | None = None,
    repeated: bool = False,
    many: bool = False,
    aliases: Sequence[str] = (),
) -> Any:
    """Return a dataclass field that is an option of the command line; without a default the option is required.

    type:
        text → value; raises `ValueError` for bad text (its message is shown). Default: what the annotation says
    repeated:
        the option may be given again; the field is a list
    many:
        the option takes several words; the field is a list
    aliases:
        older names of the option, such as "--fire", which stay accepted
    """
    hints = dict(help=help, short=short, positional=positional, type=type, choices=choices, metavar=metavar)
    hints |= dict(repeated=repeated, many=many, aliases=aliases)
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=hints)
    return dataclasses.field(default=default, metadata=hints)


def number(kind: Callable[[str], Any], low: float, high: float = math.inf) -> Callable[[str], Any]:
    """Return an option type: a finite number from `low` to `high`."""

    def convert(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high or value == math.inf:
            expected = f"≥ {low}" if high == math.inf else f"from {low} to {high}"
            what = "an integer" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"expected {what} {expected}, got {text!r}")
        return value

    return convert


def cache_size(text: str) -> str:
    """Option type of --prefix-cache: auto, off, or a number of bytes."""
    if text not in ("auto", "off") and not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"expected auto, off or a number of bytes, got {text!r}")
    return text


@dataclass(kw_only=True)
class ModelOptions:
    """Model, pruning config and device; the same for every command that loads a model."""

    model_path: str = option(help="checkpoint folder or hub name; docs/models.md lists the known models")
    model_base: str | None = option(None, help="base model of a checkpoint that holds a projector or a LoRA alone")
    pruning_config: str | None = option(
        None,
        help="JSON, a .json file, or none: dense (the default, unless the checkpoint was trained with a config)",
        metavar="JSON|FILE",
    )
    conv_mode: str | None = option(
        None,
        help="prompt format of LLaVA's original layout (default: the checkpoint's, else vicuna_v1); other models have "
        "their own chat template",
    )
    device: str = option("auto", help="auto (default: CUDA, MPS, CPU in this order), cpu, cuda, cuda:1, mps")
    dtype: str = option("auto", help="float32, float16, bfloat16; auto (default) is float32 on CPU, else float16")
    load_8bit: bool = option(False, help="quantize the language model to 8 bits (needs bitsandbytes)")
    load_4bit: bool = option(False, help="the same with 4 bits")
    min_pixels: int | None = option(None, help="smallest image in pixels (Qwen families)", type=number(int, 1))
    max_pixels: int | None = option(None, help="largest image in pixels (Qwen families)", type=number(int, 1))

    def require_dense(self, why: str) -> None:
        """Raise `UserError` if --pruning-config names a config, for a command that takes none."""
        if self.pruning_config not in (None, "none"):
            raise UserError(f"--pruning-config takes only none here: {why}")


@dataclass(kw_only=True)
class VideoOptions:
    """Frames that are shown of a video; the same rule for every command (docs/video.md)."""

    frames: int | None = option(
        None, help="frames of a video, at even distances (default 32; with --fps: at most, 768)", type=number(int, 1)
    )
    fps: float | None = option(None, help="frames of a video per second of it", type=number(float, 1e-3))


@dataclass(kw_only=True)
class GenerationOptions(VideoOptions):
    """Generation and evaluation settings; the same for every command that writes answers files."""

    batch_size: int = option(8, help="questions per batch (default 8)", type=number(int, 1))
    max_new_tokens: int | None = option(
        None, help="longest answer in tokens (default: the benchmark's)", type=number(int, 1)
    )
    temperature: float = option(0.0, help="0 (default) is greedy; above, answers are sampled", type=number(float, 0))
    top_p: float | None = option(None, help="sample from the top tokens of this probability", type=number(float, 0, 1))
    num_beams: int = option(1, help="beams of beam search (default 1: none)", type=number(int, 1))
    seed: int = option(0, help="for sampling; question i draws from seed + i at batch size 1", type=number(int, 0))
    limit: int | None = option(None, help="ask only the first questions of the file", type=number(int, 0))
    skip_bad: bool = option(False, help="leave out and count questions whose image is missing or unreadable")
    follow_symlinks: bool = option(False, help="accept images that are symbolic links out of the image folder")
    workers: int | None = option(
        None, help="processes that prepare inputs (default: at most 4, on CPU none)", type=number(int, 0)
    )
    prefix_cache: str = option(
        "auto",
        help="compute the common prefix of questions about one image once: auto (default: where questions share "
        f"images, with {PREFIX_CACHE_BYTES >> 30} GiB), off, or a number of bytes",
        metavar="auto|off|BYTES",
        type=cache_size,
    )
    resume: bool = option(False, help="continue an existing answers file (the default)")
    overwrite: bool = option(False, help="discard existing answers and start again")


@dataclass(kw_only=True)
class OutputOptions:
    """What a command prints."""

    json: bool = option(
        False, help="print the JSON object as the last line also in a terminal (elsewhere it is always printed)"
    )


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage text."""

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with status 2."""
        self.exit(2, f"error: {' '.join(message.split())} (--help explains the options)\n")


def build_parser(kind: type, *, prog: str, description: str | None, epilog: str = "") -> Parser:
    """Make the parser of an options dataclass: one group per class, its own first; underscores become hyphens."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog=prog, description=description, epilog=epilog, formatter_class=formatter, allow_abbrev=False)
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for owner in (one for one in kind.__mro__ if dataclasses.is_dataclass(one)):
        own = [name for name in owner.__dict__.get("__annotations__", {}) if name in fields]
        group = parser.add_argument_group(*_heading(owner)) if own and owner is not kind else parser
        for name in own:
            _add_option(group, fields.pop(name), hints[name])
    return parser


def _heading(kind: type) -> tuple[str, str]:
    """`ModelOptions` → "model options" and the first line of its docstring."""
    title = "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in kind.__name__)
    return title.strip(), (kind.__doc__ or "").split("\n")[0]


def _add_option(parser: argparse._ActionsContainer, field: dataclasses.Field, annotation: Any) -> None:
    given, words = field.metadata, {"help": field.metadata["help"].replace("%", "%%")}
    default = field.default if field.default_factory is MISSING else field.default_factory()
    flag = "--" + field.name.replace("_", "-")
    kinds = [one for one in typing.get_args(annotation) or (annotation,) if one is not types.NoneType]
    kind = kinds[0] if typing.get_origin(annotation) in (types.UnionType, typing.Union) else annotation
    if bool in kinds:
        if default is None or default is True:
            words |= {"action": argparse.BooleanOptionalAction, "default": default}
        else:
            words |= {"action": "store_true"}
        parser.add_argument(flag, *given["aliases"], **words)
        return
    if typing.get_origin(kind) is list:
        kind = typing.get_args(kind)[0]
    choices = given["choices"] or (list(typing.get_args(kind)) if typing.get_origin(kind) is Literal else None)
    words["type"] = given["type"] or (str if choices else {int: int, float: float, Path: Path}.get(kind, str))
    if choices:
        words["choices"] = choices
    if given["metavar"]:
        words["metavar"] = given["metavar"]
    if given["repeated"]:
        words["action"] = "append"
    elif given["many"]:
        words["nargs"] = "+"
    if given["positional"]:
        if default is not MISSING:
            words |= {"nargs": "*" if given["many"] else "?", "default": default}
        parser.add_argument(field.name, **words)
        return
    names = [*([given["short"]] if given["short"] else []), flag, *given["aliases"]]
    required = default is MISSING
    parser.add_argument(*names, required=required, default=None if required else default, **words)


def parse(kind: type[Options], argv: Sequence[str] | None, **parser_words: Any) -> Options:
    """Parse a command line into `kind`; `-` and `_` are equal in option names. Exits with status 2 on an error.

    Options of the same name may be repeated where the field says so; `dataclasses.replace` makes variants.
    """
    parser = build_parser(kind, **parser_words)
    words = [_hyphened(word) for word in (sys.argv[1:] if argv is None else argv)]
    for word in words:
        if any("\ud800" <= character <= "\udfff" for character in word):
            parser.error(f"{word.encode('utf-8', 'backslashreplace').decode()!r} is not valid UTF-8")
    found, unknown = parser.parse_known_args(words)
    if unknown:
        known = [name for action in parser._actions for name in action.option_strings]
        near = difflib.get_close_matches(unknown[0].partition("=")[0], known, n=1)
        parser.error(f"unknown option {unknown[0]}" + (f" (did you mean {near[0]}?)" if near else ""))
    if getattr(found, "resume", False) and getattr(found, "overwrite", False):
        parser.error("--resume and --overwrite exclude each other")
    values = {  # a list that was not given again is the field's own default
        field.name: getattr(found, field.name) for field in dataclasses.fields(kind) if hasattr(found, field.name)
    }
    return kind(**values)


def part_of(kind: type[Options], options: Any) -> Options:
    """Return the options of `kind` that are among the attributes of `options`; the others have their defaults."""
    names = [field.name for field in dataclasses.fields(kind)]
    return kind(**{name: getattr(options, name) for name in names if hasattr(options, name)})


def _hyphened(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def command_of(prog: str, options: Any) -> str:
    """Return the command line of `options`, without values at their default."""
    words = shlex.split(prog)
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if value == default or value is None:
            continue
        flag = "--" + field.name.replace("_", "-")
        if field.metadata.get("positional"):
            words += map(str, value) if isinstance(value, list) else [str(value)]
        elif value is True:
            words.append(flag)
        elif value is False:
            words.append(flag.replace("--", "--no-", 1))
        elif isinstance(value, list):
            each = [[flag, str(one)] for one in value] if field.metadata["repeated"] else [[flag, *map(str, value)]]
            words += [word for part in each for word in part]
        else:
            words += [flag, str(value)]
    return shlex.join(words)


def run_command(
    kind: type[Options],
    work: Callable[[Options], int | None],
    argv: Sequence[str] | None = None,
    *,
    prog: str,
    description: str | None,
    epilog: str = "",
    interrupted: str = "interrupted; the same command continues from here",
) -> int:
    """Parse a command line, work, and return the exit status (`exit_status`). A wrong command line leaves with 2."""
    return exit_status(lambda: work(parse(kind, argv, prog=prog, description=description, epilog=epilog)), interrupted)


def exit_status(call: Callable[[], int | None], interrupted: str) -> int:
    """Call; return the exit status: 0 or what it returns, 1 after one line on stderr, 130 after Ctrl-C.

    Only errors that a user can mend are caught (`ValueError`, `OSError`, `RuntimeError`, a missing package); anything
    else is a defect and shows its traceback.
    """
    try:
        with _one_line_warnings():
            return call() or 0
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader left; keep the interpreter's own flush at exit from failing too
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return 1
    except (ValueError, OSError, RuntimeError, ModuleNotFoundError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Show each user warning once, without its source line; developer warnings are unchanged."""
    standard, shown = warnings.formatwarning, set()

    def format_warning(message: Warning | str, category: type[Warning], *place: Any, **words: Any) -> str:
        if category is not UserWarning:
            return standard(message, category, *place, **words)
        line = f"warning: {' '.join(str(message).split())}\n"
        new = line not in shown
        shown.add(line)
        return line if new else ""

    warnings.formatwarning = format_warning
    try:
        yield
    finally:
        warnings.formatwarning = standard


def one_line(error: BaseException) -> str:
    """Return an error's message in one line; its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def print_json(record: Any, options: OutputOptions) -> None:
    """Print one JSON object as the last line: for programs, so in a terminal only with --json."""
    if options.json or not sys.stdout.isatty():
        print(json.dumps(record, separators=(",", ":")))
