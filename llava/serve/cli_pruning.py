"""`llava-chat` (`python -m llava.serve.cli_pruning`): talk with a model about an image, visual tokens pruned."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from llava.cli import (
    INTERRUPTED,
    PREFIX_CACHE_BYTES,
    ModelOptions,
    UserError,
    VideoOptions,
    cache_size,
    number,
    option,
    part_of,
    run_command,
)

from .loop import NAMES, ChatLoop, command_help

if TYPE_CHECKING:
    from rich.console import Console

    from .chat import Chat

SMALL_MODEL = Path(__file__).resolve().parents[2] / "playground" / "checkpoints" / "llava-tiny"


@dataclass(kw_only=True)
class Options(ModelOptions, VideoOptions):
    """Options of the chat."""

    model_path: str = option(str(SMALL_MODEL), help="checkpoint folder or hub name (default: the small model)")
    pruning_config: str | None = option(
        None,
        help="JSON, a path to a .json file, or none, which begins with pruning off "
        "(default: the model's pruning.json, else LLaVA-1.5-7B's settings)",
        metavar="JSON|FILE",
    )
    prompt: str | None = option(None, short="-p", help="answer this question on standard output and exit")
    image_file: str | None = option(None, help="the image to talk about; without it, text only", metavar="PATH|URL")
    video: str | None = option(None, help="the video to talk about, alone or beside an image", metavar="PATH")
    no_pruning: bool = option(False, help="begin with pruning off")
    temperature: float = option(0.0, help="0 (default) is greedy; above, answers are sampled", type=number(float, 0))
    top_p: float | None = option(None, help="sample from the top tokens of this probability", type=number(float, 0, 1))
    max_new_tokens: int = option(512, help="longest answer in tokens (default 512)", type=number(int, 1))
    seed: int | None = option(None, help="seed of the sampling", type=number(int, 0))
    prefix_cache: str = option(
        "auto",
        help="compute image and earlier turns of a conversation once: auto (default: 2 GiB), off, or a number of bytes",
        metavar="auto|off|BYTES",
        type=cache_size,
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace"), (sys.stderr, "replace")):
        with contextlib.suppress(AttributeError):  # a replaced stream may not have it
            stream.reconfigure(errors=errors)  # what is not UTF-8 is refused by the question, not by the stream
    return run_command(
        Options,
        work,
        argv,
        prog="llava-chat",
        description=__doc__,
        epilog=f"In the chat:\n{command_help()}",
        interrupted="interrupted",
    )


def work(options: Options) -> int:
    """Answer one question, or talk until the end of input; return the exit status."""
    from rich.console import Console

    terminal = options.prompt is None and sys.stdin.isatty() and sys.stdout.isatty()
    notes = Console(stderr=not terminal, highlight=False)
    chat = start(options, notes if terminal else None)
    if options.prompt is not None:
        reply = ChatLoop(chat, input, sys.stdout, notes).ask(options.prompt)
        return 1 if reply is None else INTERRUPTED if reply.ended == "stopped" else 0
    loop = ChatLoop(chat, _reader(terminal), sys.stdout, notes, part_of(VideoOptions, options))
    if terminal:
        for line in banner(options, chat, loop):
            loop.say(line, "dim")
    loop.run()
    return 0


def start(options: Options, progress: Console | None = None) -> Chat:
    """Check the options, then load the model, the image and the video; `progress` shows activity.

    Raises:
        ValueError: an empty prompt, an image, video, config, prompt format or checkpoint that cannot be used.
        RuntimeError, OSError: weights that cannot be loaded.

    """
    if options.prompt is not None and not options.prompt.strip():
        raise UserError("-p was given an empty question")
    if options.model_path == str(SMALL_MODEL) and not SMALL_MODEL.is_dir():
        raise UserError(f"the small model is not at {SMALL_MODEL}: give --model-path")
    with progress.status("loading …") if progress else contextlib.nullcontext():
        from .images import load_image

        image = None if options.image_file is None else load_image(options.image_file)
        video = None
        if options.video is not None:
            from llava.model.videos import read_video

            video = read_video(options.video, part_of(VideoOptions, options))

        import torch
        from transformers.utils import logging

        from llava.mm_utils import get_model_name_from_path
        from llava.model.loaded import LoadedModel
        from llava.model.preflight import check_model, default_config, resolve
        from llava.model.processors import takes_videos
        from llava.model.pruning import PruningConfig

        from .chat import Chat, Sampling

        checked = check_model(options, None)
        if video is not None and not takes_videos(checked.layout.model_type):
            raise UserError(f"--video: a model of type {checked.layout.model_type!r} takes no videos")
        given = None if options.pruning_config == "none" else options.pruning_config
        config = PruningConfig.from_json(given) if given else default_config(checked.source.folder)
        config, _ = resolve(config, checked.source, checked.layout)
        if options.conv_mode is None and checked.layout.has_conversations and not checked.layout.conv_mode:
            options = replace(options, conv_mode=choose_conv_mode(get_model_name_from_path(options.model_path)))
        logging.disable_progress_bar()
        logging.set_verbosity_error()  # what matters of its warnings is an error of the chat, in one line
        if options.seed is not None:
            torch.manual_seed(options.seed)
        sampling = Sampling(options.temperature, options.top_p, options.max_new_tokens)
        off = options.no_pruning or options.pruning_config == "none"
        room = {"auto": PREFIX_CACHE_BYTES, "off": None}.get(options.prefix_cache, options.prefix_cache)
        room = None if room is None else int(room)
        chat = Chat(LoadedModel.from_path(options), config, sampling, pruning_on=not off, prefix_cache_bytes=room)
        for media, name in ((image, options.image_file), (video, options.video)):
            if media is not None:
                chat.see(media, name)
    return chat


def choose_conv_mode(model_name: str) -> str:
    """Return the prompt format that LLaVA's own command line takes for a name like this.

    The small models and MobileVLM are not among LLaVA's names; they were trained with vicuna_v1.
    """
    modes = {"mobilevlm": "vicuna_v1", "llava-tiny": "vicuna_v1", "llama-2": "llava_llama_2", "v1": "llava_v1"}
    name = model_name.lower()
    return next((mode for part, mode in modes.items() if part in name), "mpt" if "mpt" in name else "llava_v0")


def banner(options: Options, chat: Chat, loop: ChatLoop) -> list[str]:
    """Return the lines that greet on a terminal."""
    from .display import card_sentence

    lines = [f"{options.model_path} · {chat.inputs.name} · pruning {'on' if chat.pruning_on else 'off'}"]
    card = card_sentence(Path(options.model_path).expanduser())
    if card:
        lines.append(card)
    if options.model_path == str(SMALL_MODEL):
        lines.append("It was not trained on conversations of several turns: /clear before an unrelated question.")
    return [*lines, loop.describe_image(), "/help lists the commands, Ctrl-D leaves"]


def _reader(terminal: bool):
    from .prompt import plain_reader, terminal_reader

    if terminal:
        return terminal_reader(NAMES)
    return plain_reader(sys.stdin, sys.stderr if sys.stdin.isatty() else None)


if __name__ == "__main__":
    sys.exit(main())
