"""`llava-chat` (`python -m llava.serve.cli_pruning`): talk with a model about an image, visual tokens pruned."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .display import card_sentence, one_line
from .loop import ChatLoop, command_help

if TYPE_CHECKING:
    from llava.model.pruning import PruningConfig

    from .chat import Chat

SMALL_MODEL = Path(__file__).resolve().parents[2] / "playground" / "checkpoints" / "llava-tiny"
PRUNING_7B = {
    "mode": ["shallow", "middle", "deep"],
    "layer_threshold": 0.995,
    "tokens_threshold": 0.2,
}
"""The settings of LLaVA-1.5-7B, for a checkpoint without a `pruning.json`; the boundary scales with its depth."""

INTERRUPTED = 130


def make_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(
        prog="llava-chat",
        description=__doc__,
        epilog=f"In the chat:\n{command_help()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-p", "--prompt", help="answer this question on standard output and exit")
    parser.add_argument("--image-file", metavar="PATH|URL", help="the image to talk about; without it, text only")
    parser.add_argument("--model-path", default=str(SMALL_MODEL), help="folder or hub name (default: the small model)")
    parser.add_argument("--model-base", help="the language model of a checkpoint that holds a projector alone")
    parser.add_argument(
        "--pruning-config",
        metavar="JSON|FILE",
        help="JSON, a path to a .json, or none (default: the model's pruning.json, else LLaVA-1.5-7B's settings)",
    )
    parser.add_argument("--no-pruning", action="store_true", help="begin with pruning off")
    parser.add_argument("--conv-mode", help="prompt format of LLaVA's original layout (default: from its name)")
    parser.add_argument("--temperature", type=_at_least(0.0, float), default=0.0, help="0 is greedy (default)")
    parser.add_argument("--top-p", type=_at_least(0.0, float, 1.0), help="nucleus sampling, with a temperature")
    parser.add_argument("--max-new-tokens", type=_at_least(1, int), default=512, help="per answer (default 512)")
    bits = parser.add_mutually_exclusive_group()
    bits.add_argument("--load-4bit", action="store_true", help="quantise the language model (needs bitsandbytes)")
    bits.add_argument("--load-8bit", action="store_true", help="the same with 8 bits")
    parser.add_argument("--device", default="auto", help="auto (default: CUDA, MPS, CPU), cpu, cuda, cuda:1, mps")
    parser.add_argument("--dtype", default="auto", help="auto (default: float32 on CPU, else float16), bfloat16, …")
    parser.add_argument("--seed", type=int, help="of the sampling")
    parser.add_argument(
        "--reuse-prefix",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep what a prompt has in common with the next one: image and earlier turns (default: yes)",
    )
    parser.add_argument(
        "--prefix-cache-bytes", type=_at_least(0, int), metavar="BYTES", help="memory for that (default: 2 GiB)"
    )
    return parser


def _at_least(low: float, kind: type, high: float = math.inf):
    def convert(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high or math.isinf(value):
            expected = f"≥ {low}" if high == math.inf else f"from {low} to {high}"
            raise argparse.ArgumentTypeError(f"expected a number {expected}, got {text!r}")
        return value

    return convert


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, 1 after an error (one line), 130 after Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a replaced stream may not have it
            stream.reconfigure(errors="replace")  # a console that lacks a character of the answer
    args = make_parser().parse_args(argv)
    try:
        return _run(args)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # the reader left; keep the interpreter's own flush at exit from failing too
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return 1


def _run(args: argparse.Namespace) -> int:
    from rich.console import Console

    terminal = args.prompt is None and sys.stdin.isatty() and sys.stdout.isatty()
    notes = Console(stderr=not terminal, highlight=False)
    try:
        chat = start(args, notes if terminal else None)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"llava-chat: {one_line(error)}", file=sys.stderr)
        return 1
    if args.prompt is not None:
        reply = ChatLoop(chat, input, sys.stdout, notes).ask(args.prompt)
        return 1 if reply is None else INTERRUPTED if reply.ended == "stopped" else 0
    loop = ChatLoop(chat, _reader(terminal), sys.stdout, notes)
    if terminal:
        for line in banner(args, chat, loop):
            loop.say(line, "dim")
    loop.run()
    return 0


def start(args: argparse.Namespace, progress=None) -> Chat:
    """Check what can be checked, then load the model and the image.

    `progress`: a rich console that shows what is happening, or None.

    Raises:
        ValueError: an empty prompt, an image, config, conversation mode or checkpoint that cannot be used.
        RuntimeError, OSError: weights that cannot be loaded.

    """
    if args.prompt is not None and not args.prompt.strip():
        raise ValueError("-p was given an empty question")
    folder = Path(args.model_path).expanduser()
    if args.model_path == str(SMALL_MODEL) and not folder.is_dir():
        raise ValueError(f"the small model is not at {folder}: give --model-path")
    with progress.status("loading …") if progress else contextlib.nullcontext():
        image = None
        if args.image_file is not None:
            from .images import load_image

            image = load_image(args.image_file)

        from transformers.utils import logging

        from llava import load_pretrained_model
        from llava.mm_utils import get_model_name_from_path
        from llava.model.checkpoint import find_source
        from llava.model.layouts import read_layout
        from llava.model.preflight import resolve
        from llava.model.pruning.prefix_cache import CACHE_BYTES
        from llava.utils import pick_device

        from .chat import Chat, Sampling

        pick_device(args.device)
        source = find_source(str(folder) if folder.is_dir() else args.model_path, "--model-path", {})
        layout = read_layout(source.folder)
        layout.check_conv_mode(args.conv_mode)
        pruning, _ = resolve(choose_pruning(args.pruning_config, source.folder), source, layout)
        name = get_model_name_from_path(args.model_path)
        conv_mode = choose_conv_mode(args.conv_mode, name) if layout.has_conversations else None
        logging.disable_progress_bar()
        logging.set_verbosity_error()  # what matters of its warnings is an error of the chat, in one line
        if args.seed is not None:
            import torch

            torch.manual_seed(args.seed)
        model_path = str(folder) if folder.is_dir() else args.model_path
        loaded = load_pretrained_model(
            model_path,
            args.model_base,
            name,
            args.load_8bit,
            args.load_4bit,
            device=args.device,
            dtype=args.dtype,
        )
        sampling = Sampling(args.temperature, args.top_p, args.max_new_tokens)
        room = CACHE_BYTES if args.prefix_cache_bytes is None else args.prefix_cache_bytes
        room = room if args.reuse_prefix else None
        chat = Chat(loaded, conv_mode, pruning, sampling, not (args.no_pruning or args.pruning_config == "none"), room)
        if image is not None:
            chat.see(image, args.image_file)
    return chat


def choose_pruning(given: str | None, folder: Path) -> PruningConfig:
    """Return the config that was given, else the checkpoint's `pruning.json`, else LLaVA-1.5-7B's settings.

    "none" begins with pruning off; what `/prune on` then turns on is the default. Raises `ValueError` as
    `PruningConfig.from_json` does.
    """
    from llava.model.pruning import PruningConfig

    if given not in (None, "none"):
        return PruningConfig.from_json(given)
    if (folder / "pruning.json").is_file():
        return PruningConfig.from_json(folder / "pruning.json")
    return PruningConfig.from_dict(PRUNING_7B)


def choose_conv_mode(given: str | None, model_name: str) -> str:
    """Return the prompt format: the given one, else what LLaVA's own command line takes for a name like this.

    The small models and MobileVLM are not among LLaVA's names; they were trained with vicuna_v1. Raises `ValueError`
    for a format that does not exist.
    """
    from llava.conversation import conv_templates

    if given is not None and given not in conv_templates:
        raise ValueError(f"unknown --conv-mode {given!r}; known: {', '.join(conv_templates)}")
    if given is not None:
        return given
    name = model_name.lower()
    modes = {
        "mobilevlm": "vicuna_v1",
        "llava-tiny": "vicuna_v1",
        "llama-2": "llava_llama_2",
        "v1": "llava_v1",
        "mpt": "mpt",
    }
    return next((mode for part, mode in modes.items() if part in name), "llava_v0")


def banner(args: argparse.Namespace, chat: Chat, loop: ChatLoop) -> list[str]:
    """Return the lines that greet on a terminal."""
    lines = [f"{args.model_path} · {chat.inputs.name} · pruning {'on' if chat.pruning_on else 'off'}"]
    card = card_sentence(Path(args.model_path).expanduser())
    if card:
        lines.append(card)
    if args.model_path == str(SMALL_MODEL):
        lines.append("It was not trained on conversations of several turns: /clear before an unrelated question.")
    return [*lines, loop.describe_image(), "/help lists the commands, Ctrl-D leaves"]


def _reader(terminal: bool):
    from .loop import COMMANDS
    from .prompt import plain_reader, terminal_reader

    if terminal:
        return terminal_reader(command.name for command in COMMANDS)
    return plain_reader(sys.stdin, sys.stderr if sys.stdin.isatty() else None)


if __name__ == "__main__":
    sys.exit(main())
