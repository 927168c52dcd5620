"""What the page asks beside answers: the model, a prompt's tokens and influence, words, plans, the gallery."""

from __future__ import annotations

import dataclasses
import functools
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal

from anyio import to_thread
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from llava.cli import one_line
from llava.model.pruning.method import METHODS
from llava.model.pruning.methods import NoPruning

from . import inspection, plans
from .protocol import Asked, Refused, Strict, read_body

if TYPE_CHECKING:
    from .app import Port

PRESETS: dict[str, dict[str, Any]] = {
    "FastV": {"method": "fastv"},
    "PyramidDrop": {"method": "pyramiddrop"},
    "SparseVLM": {"method": "sparsevlm"},
    "VTW": {"method": "vtw"},
    "DivPrune": {"method": "divprune"},
    "VisionZip": {"method": "visionzip"},
    "random half": {"method": "random", "layer": 1, "share": 0.5},
}
"""Configs to start from, beside the server's own and dense; those that the model cannot run are left out."""


class WordsRequest(Asked):
    """POST /api/words."""

    position: int = Field(ge=0)


class PlanRequest(Strict):
    """POST /api/plan: tokens forced to stay and go, or a control, from a trace."""

    trace: dict[str, Any]
    visual: list[int] = Field(max_length=1 << 17)
    stay: list[int] = []
    go: list[int] = []
    control: Literal["random", "downsampled"] | None = None
    seed: int = Field(0, ge=0, lt=1 << 32)


def routes(port: Port) -> list[Route]:
    """Return the routes below /api."""

    def bound(handler: Any) -> Any:
        return functools.partial(handler, port)

    made = [
        Route("/api/about", bound(about)),
        Route("/api/example", bound(example)),
        Route("/api/inspect", bound(inspect), methods=["POST"]),
        Route("/api/words", bound(words), methods=["POST"]),
        Route("/api/plan", bound(plan), methods=["POST"]),
    ]
    if port.served.gallery is not None:
        made += [
            Route("/api/gallery", bound(gallery)),
            Route("/api/gallery/{number:int}", bound(gallery_item)),
            Route("/api/gallery/{number:int}/image/{image:int}", bound(gallery_image)),
        ]
    return made


async def about(port: Port, request: Request) -> Response:
    """GET /api/about: the model, its layers, configs to choose from, limits."""
    service = port.service
    presets = {"as started": service.config.to_dict(), "dense": NoPruning().to_dict()}
    for name, settings in PRESETS.items():
        try:
            presets[name] = service.check_config(METHODS[settings["method"]].from_dict(settings)).to_dict()
        except (ValueError, KeyError):
            continue
    limits = service.store.limits
    return JSONResponse(
        {
            "model": port.served.name,
            "layers": service.layers,
            "context": service.loaded.inputs.limit or service.loaded.context_len,
            "presets": presets,
            "methods": {name: _settings(cls) for name, cls in METHODS.items() if ":" not in name},
            "limits": {
                "images": port.served.images,
                "megabytes": limits.megabytes,
                "megapixels": limits.megapixels,
                "new_tokens": service.sizes.new_tokens,
            },
            "gallery": None if port.served.gallery is None else port.served.gallery.about(),
        }
    )


async def example(port: Port, request: Request) -> Response:
    """GET /api/example: the picture of the documentation, drawn here."""
    return Response(await to_thread.run_sync(_example), media_type="image/png")


@functools.cache
def _example() -> bytes:
    import numpy as np
    from PIL import Image

    from llava.tiny.scenes import render
    from llava.tiny.worlds import PICTURE

    return _png(Image.fromarray(render(np.random.default_rng(PICTURE))[0]))


def _png(image: Any) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _settings(cls: Any) -> list[str]:
    return [one.name for one in dataclasses.fields(cls)]


async def inspect(port: Port, request: Request) -> Response:
    """POST /api/inspect: tokens, states and influence of a prompt (see `inspection.inspect`)."""
    prepared = await port.prepare(read_body(Asked, await request.body()))
    run = functools.partial(inspection.inspect, port.service.loaded, prepared.row, prepared.pictures, prepared.config)
    return JSONResponse(await port.call(request, run))


async def words(port: Port, request: Request) -> Response:
    """POST /api/words: words of one token by layer (see `inspection.words`)."""
    asked = read_body(WordsRequest, await request.body())
    prepared = await port.prepare(asked)
    run = functools.partial(inspection.words, port.service.loaded, prepared.row, prepared.pictures, asked.position)
    return JSONResponse(await port.call(request, run))


async def plan(port: Port, request: Request) -> Response:
    """POST /api/plan: a config that forces tokens, or a control with as many (see `plans`)."""
    asked = read_body(PlanRequest, await request.body())
    try:
        if asked.control is not None:
            made = plans.control(asked.trace, asked.visual, asked.control, asked.seed)
        else:
            made = plans.forced(asked.trace, asked.visual, asked.stay, asked.go)
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # a trace of the client's making
        raise Refused(400, f"the trace cannot be replayed: {one_line(error)}") from None
    return JSONResponse({"config": made})


async def gallery(port: Port, request: Request) -> Response:
    """GET /api/gallery?kind=&layer=&low=&high=&page=: one page of answers."""
    try:
        asked = {key: request.query_params.get(key) for key in ("kind", "layer", "low", "high", "page")}
        numbers = {key: None if not value else int(value) for key, value in asked.items() if key != "kind"}
    except ValueError:
        raise Refused(400, "layer, low, high and page are integers") from None
    return JSONResponse(port.served.gallery.page(asked["kind"] or None, **numbers))


async def gallery_item(port: Port, request: Request) -> Response:
    """GET /api/gallery/N: one answer with its tokens, from the file: the model does not run."""
    number = request.path_params["number"]
    return JSONResponse(await to_thread.run_sync(_found, port, lambda: port.served.gallery.item(number)))


async def gallery_image(port: Port, request: Request) -> Response:
    """GET /api/gallery/N/image/M: the image of a question of the run, as PNG."""
    number, image = request.path_params["number"], request.path_params["image"]
    picture = await to_thread.run_sync(_found, port, lambda: port.served.gallery.image(number, image))
    return Response(_png(picture), media_type="image/png")


def _found(port: Port, look: Any) -> Any:
    try:
        return look()
    except LookupError as error:
        raise Refused(404, f"the gallery has no such entry: {error}") from None
    except ValueError as error:
        raise Refused(400, one_line(error)) from None
