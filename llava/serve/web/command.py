"""`llava-web` (`python -m llava.serve.web`): see pruning in a browser, and call the model over OpenAI's protocol."""

from __future__ import annotations

import os
import secrets
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llava.cli import (
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

if TYPE_CHECKING:
    from starlette.applications import Starlette

from llava.serve.cli_pruning import SMALL_MODEL

TOKEN = "LLAVA_WEB_TOKEN"
EPILOG = """
examples:
  the small model, at http://127.0.0.1:8000
    llava-web
  another model and config, for other machines; the token is printed
    llava-web --host 0.0.0.0 --token auto --model-path llava-hf/llava-1.5-7b-hf --pruning-config pruning.json
  a run's answers beside the dense ones
    llava-web --run runs/llava-tiny/gqa_mini/paper.jsonl --against runs/llava-tiny/gqa_mini/dense.jsonl
  from a program
    curl -s http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
        -d '{"messages":[{"role":"user","content":"Hello"}]}'

docs/serving.md has the protocol, the limits and what is checked.
"""


@dataclass(kw_only=True)
class Options(ModelOptions, VideoOptions):
    """Options of the server."""

    model_path: str = option(str(SMALL_MODEL), help="checkpoint folder or hub name (default: the small model)")
    pruning_config: str | None = option(
        None,
        help="JSON, a path to a .json file, or none, which answers dense where a request names no config "
        "(default: the model's pruning.json, else LLaVA-1.5-7B's settings)",
        metavar="JSON|FILE",
    )
    host: str = option("127.0.0.1", help="address to listen at (default 127.0.0.1); any other needs --token")
    port: int = option(8000, help="port (default 8000; 0: a free one)", type=number(int, 0, 65535))
    token: str | None = option(
        None, help=f"secret that requests must bring; auto makes one and prints it (or set {TOKEN})"
    )
    allow_origin: list[str] = option(
        [], help="site whose pages may use the server, e.g. https://example.org; may be given again", repeated=True
    )
    served_name: str | None = option(None, help="name of the model in the protocol (default: its folder's)")
    max_batch: int = option(16, help="prompts that are read together (default 16)", type=number(int, 1))
    max_queue: int = option(64, help="requests that may wait; more are refused (default 64)", type=number(int, 1))
    max_new_tokens: int = option(1024, help="longest answer in tokens (default 1024)", type=number(int, 1))
    max_images: int = option(8, help="images per request (default 8)", type=number(int, 0))
    max_megabytes: float = option(20.0, help="bytes of an image file, in 10⁶ (default 20)", type=number(float, 0.001))
    max_megapixels: float = option(40.0, help="pixels of an image, in 10⁶ (default 40)", type=number(float, 0.001))
    image_urls: bool = option(False, help="fetch image URLs of requests, from public addresses only")
    image_seconds: float = option(10.0, help="longest download of an image in seconds", type=number(float, 0.1))
    prefix_cache: str = option(
        "auto",
        help="keep images and prompts that were read: auto (default: 2 GiB), off, or a number of bytes",
        metavar="auto|off|BYTES",
        type=cache_size,
    )
    untouched: bool = option(
        False, help="run requests without pruning outside of the engine, in plain transformers (for measurements)"
    )
    run: str | None = option(None, help="answers file of a run to show as a gallery", metavar="X.jsonl")
    against: str | None = option(None, help="with --run: the run to compare with, such as dense", metavar="X.jsonl")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_command(Options, work, argv, prog="llava-web", description=__doc__, epilog=EPILOG, interrupted="stopped")


def work(options: Options) -> int:
    """Check, load, and serve until Ctrl-C or a signal."""
    token = access_token(options)
    try:
        import uvicorn
    except ModuleNotFoundError:
        raise UserError("llava-web needs its extra: pip install 'llava[web]'") from None
    import socket

    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((options.host, options.port))
    except OSError as error:
        raise UserError(
            f"cannot listen at {options.host}:{options.port}: {error.strerror}; give another --port"
        ) from None
    app = make_app(options, token)
    service = app.state.served.service
    host = f"[{options.host}]" if ":" in options.host else options.host
    address = f"http://{host}:{listener.getsockname()[1]}/"
    print(f"{app.state.served.name} at {address}{f'#token={token}' if token else ''}", flush=True)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=5, server_header=False
    )
    try:
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        service.close()
    return 0


def access_token(options: Options) -> str | None:
    """Return the token; raises `UserError` for an address that others reach without one."""
    from .guard import LOOPBACK

    token = options.token or os.environ.get(TOKEN)
    if token == "auto":
        token = secrets.token_urlsafe(24)
    if token is None and options.host not in LOOPBACK:
        raise UserError(f"--host {options.host} is reached from other machines: give --token auto, or a token")
    if token is not None and (not token.isascii() or not token.isprintable() or " " in token):
        raise UserError("--token takes printable ASCII without spaces")
    return token


def make_app(options: Options, token: str | None = None) -> Starlette:
    """Check the options, load the model and return the app; `app.state.served` is what it serves.

    Raises:
        ValueError: a config, model or run that cannot be used.
        RuntimeError, OSError: weights that cannot be loaded.

    """
    if options.against is not None and options.run is None:
        raise UserError("--against names a run to compare --run with: give --run, too")
    if options.model_path == str(SMALL_MODEL) and not SMALL_MODEL.is_dir():
        raise UserError(f"the small model is not at {SMALL_MODEL}: give --model-path")
    from transformers.utils import logging

    from llava.eval.runner.run import Run
    from llava.model.images import Limits
    from llava.model.loaded import LoadedModel
    from llava.model.preflight import check_model, default_config, resolve
    from llava.model.pruning import PruningConfig
    from llava.model.pruning.methods import NoPruning

    from .app import Served, build_app
    from .gallery import Gallery
    from .guard import LOOPBACK, Access
    from .metrics import Metrics
    from .pictures import PictureStore
    from .service import ModelService, Sizes

    run, against = (None if path is None else Run.read(path) for path in (options.run, options.against))
    checked = check_model(options, None)
    if options.pruning_config == "none":
        config = NoPruning()
    else:
        given = options.pruning_config
        config = PruningConfig.from_json(given) if given else default_config(checked.source.folder)
    config, _ = resolve(config, checked.source, checked.layout)
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # what matters of its warnings is an error of the server, in one line
    loaded = LoadedModel.from_path(options)
    limits = Limits(options.image_seconds, options.max_megabytes, options.max_megapixels)
    room = {"auto": PREFIX_CACHE_BYTES, "off": None}.get(options.prefix_cache, options.prefix_cache)
    sizes = Sizes(
        options.max_batch,
        options.max_queue,
        options.max_new_tokens,
        None if room is None else int(room),
        engine=not options.untouched,
    )
    metrics = Metrics()
    store = PictureStore(loaded.inputs, limits, urls=options.image_urls, frames=part_of(VideoOptions, options))
    service = ModelService(loaded, config, store, sizes, metrics.on_batch)
    gallery = None if run is None else Gallery(run, against, service, limits)
    served = Served(service, options.served_name or loaded.name, metrics, options.max_images, gallery)
    access = Access(
        token,
        LOOPBACK if options.host in LOOPBACK else None,
        tuple(options.allow_origin),
        body=int(1_000_000 + 1.4 * limits.bytes * max(options.max_images, 1)),
        under_way=options.max_queue + 2 * options.max_batch,
    )
    app = build_app(served, access)
    app.state.served = served
    return app


if __name__ == "__main__":
    sys.exit(main())
