"""The Starlette app: OpenAI's protocol under `/v1`, what the page asks under `/api`, the page at `/`."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from anyio import CapacityLimiter, to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from llava.cli import one_line
from llava.model.pruning import PruningConfig
from llava.serve.chat import Sampling

from . import page_api
from .batch import Done, Failed, Job, Progress, Text
from .gallery import Gallery
from .guard import Access, Guard
from .metrics import Metrics
from .pictures import Picture
from .protocol import Answer, Asked, ChatRequest, Refused, config_of, read_body, turns_of
from .service import Busy, Call, ModelService, TooLong

log = logging.getLogger("llava.web")
PAGE = Path(__file__).parent / "page"
CLIENT_GONE = 499
PREPARING = 4
"""Requests whose images are decoded at one time."""


@dataclass(frozen=True)
class Served:
    """What an app serves: a model under a name; `images`: how many a request may hold."""

    service: ModelService
    name: str
    metrics: Metrics
    images: int = 8
    gallery: Gallery | None = None


@dataclass(frozen=True, eq=False)
class Prepared:
    """A request's prompt: row, images, and the config that prunes it."""

    row: list[int]
    pictures: tuple[Picture, ...]
    config: PruningConfig


class Port:
    """The endpoints of one `Served`."""

    def __init__(self, served: Served):
        self.served, self.service = served, served.service
        self.created = int(time.time())
        self._preparing: CapacityLimiter | None = None

    def routes(self) -> list[Route | Mount]:
        """Return every route."""
        return [
            Route("/", self.page),
            Mount("/page", StaticFiles(directory=PAGE)),
            Route("/health", self.health),
            Route("/metrics", self.metrics),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            *page_api.routes(self),
        ]

    async def page(self, request: Request) -> Response:
        """GET /."""
        return FileResponse(PAGE / "index.html", headers={"Cache-Control": "no-cache"})

    async def health(self, request: Request) -> Response:
        """GET /health: 200 while the model's thread runs."""
        alive = self.service.alive
        state = {"status": "ok" if alive else "stopped", "model": self.served.name, "waiting": self.service.waiting}
        return JSONResponse(state, 200 if alive else 503)

    async def metrics(self, request: Request) -> Response:
        """GET /metrics."""
        return Response(self.served.metrics.text(), media_type="text/plain; version=0.0.4")

    def _model(self) -> dict[str, Any]:
        return {"id": self.served.name, "object": "model", "created": self.created, "owned_by": "llava"}

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/NAME."""
        self._check_model(request.path_params["name"])
        return JSONResponse(self._model())

    def _check_model(self, name: str | None) -> None:
        if name not in (None, self.served.name):
            raise Refused(
                404, f"there is no model {name!r} here, only {self.served.name!r}", "model_not_found", "model"
            )

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        asked: ChatRequest = read_body(ChatRequest, await request.body())
        prepared = await self.prepare(asked)
        events: asyncio.Queue[Any] = asyncio.Queue()
        job = Job(
            prepared.row,
            prepared.pictures,
            prepared.config,
            self._sampling(asked),
            _teller(events),
            asked.stops,
            asked.seed,
            (asked.top_logprobs or 0) if asked.logprobs else None,
            asked.prefix_cache,
            asked.progress and bool(asked.stream),
        )
        answer = Answer(asked, self.served.name, prepared.config, self.service.loaded.tokenizer)
        coming = self.events(request, job, events)
        first = await anext(coming)
        if isinstance(first, Failed):
            raise _refusal(first.error)
        if asked.stream:
            return StreamingResponse(
                self._stream(first, coming, answer),
                media_type="text/event-stream",
                headers={"Cache-Control": "no-store"},
            )
        pieces, tokens, event = [], [], first
        while not isinstance(event, Done):
            if isinstance(event, Failed):
                raise _refusal(event.error)
            if isinstance(event, Text):
                pieces.append(event.piece)
                tokens += event.tokens
            event = await anext(coming)
        return JSONResponse(answer.whole("".join(pieces), [*tokens, *event.tokens], event))

    def _sampling(self, asked: ChatRequest) -> Sampling:
        most = self.service.sizes.new_tokens
        wanted = asked.max_completion_tokens or asked.max_tokens or most
        temperature = 0.0 if asked.temperature is None else asked.temperature
        return Sampling(temperature, asked.top_p, min(wanted, most))

    async def prepare(self, asked: Asked) -> Prepared:
        """Check a request and write its prompt, in a thread; raises `Refused`."""
        if self._preparing is None:
            self._preparing = CapacityLimiter(PREPARING)
        try:
            return await to_thread.run_sync(self._prepare, asked, limiter=self._preparing)
        except ValueError as error:
            raise Refused(400, one_line(error)) from None

    def _prepare(self, asked: Asked) -> Prepared:
        self._check_model(asked.model)
        turns, urls = turns_of(asked.messages)
        if len(urls) > self.served.images:
            raise Refused(400, f"the request holds {len(urls)} images, the limit is {self.served.images}")
        config = self.service.check_config(config_of(asked.pruning_config, self.service.config))
        inputs = self.service.loaded.inputs
        letters = sum(len(turn.question) + len(turn.answer or "") for turn in turns)
        if inputs.limit is not None and letters > 64 * inputs.limit:  # far beyond: do not even count its tokens
            raise Refused(400, f"the text has {letters} letters, the model takes {inputs.limit} tokens", TOO_LONG)
        row = self.service.encode(turns)
        if inputs.limit is not None and len(row) > inputs.limit:
            raise Refused(
                400, f"the prompt has {len(row)} tokens without images, the model takes {inputs.limit}", TOO_LONG
            )
        return Prepared(row, tuple(self.service.store.read(*url) for url in urls), config)

    async def call(self, request: Request, run: Callable[[], Any]) -> Any:
        """Run something in the model's thread and return its result; raises `Refused`."""
        events: asyncio.Queue[Any] = asyncio.Queue()
        async for result in self.events(request, Call(run, _teller(events), Event()), events):
            if isinstance(result, Failed):
                raise _refusal(result.error)
            return result
        raise _Gone

    async def events(self, request: Request, work: Job | Call, queue: asyncio.Queue[Any]) -> AsyncIterator[Any]:
        """Submit work and yield its events; a client that goes away ends it, and frees its place.

        Raises `Refused` where the queue is full, `_Gone` where the client went away.
        """
        metrics = self.served.metrics
        gone = asyncio.ensure_future(_gone(request))
        coming: asyncio.Future[Any] | None = None
        finished = False
        try:
            try:
                self.service.submit(work)
            except Busy as error:
                raise Refused(503, str(error), code="overloaded") from None
            while not finished:
                coming = asyncio.ensure_future(queue.get())
                await asyncio.wait({coming, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not coming.done():
                    raise _Gone
                event = coming.result()
                finished = not isinstance(event, Text | Progress)
                if isinstance(event, Done):
                    metrics.answered(event)
                yield event
        finally:
            gone.cancel()
            if coming is not None:
                coming.cancel()
            if not finished:
                self.service.cancel(work)
                metrics.cancelled.inc()

    async def _stream(self, first: Any, coming: AsyncIterator[Any], answer: Answer) -> AsyncIterator[str]:
        """Yield the server-sent events of an answer."""
        yield _sse(answer.chunk({"role": "assistant", "content": ""}))
        event = first
        while True:
            if isinstance(event, Progress):
                yield _sse(answer.progress(*event))
            elif isinstance(event, Text):
                yield _sse(answer.chunk({"content": event.piece}, event.tokens))
            elif isinstance(event, Failed):
                yield _sse(_refusal(event.error).body())
                break
            else:
                yield _sse(answer.chunk({}, event.tokens, event))
                options = answer.request.stream_options
                if options is not None and options.include_usage:
                    yield _sse(answer.usage(event))
                break
            try:
                event = await anext(coming)
            except _Gone:
                return
        yield "data: [DONE]\n\n"


TOO_LONG = "context_length_exceeded"


class _Gone(Exception):
    """The client went away."""


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _teller(queue: asyncio.Queue[Any]) -> Callable[[Any], None]:
    """Return a function that puts events into a queue of this loop, from any thread."""
    loop = asyncio.get_running_loop()

    def tell(event: Any) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(queue.put_nowait, event)

    return tell


def _sse(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n"


def _refusal(error: Exception) -> Refused:
    """Return what the client hears of an error in the model's thread."""
    import torch

    if isinstance(error, TooLong):
        return Refused(400, one_line(error), code=TOO_LONG)
    if isinstance(error, Busy):
        return Refused(503, one_line(error), code="overloaded")
    if isinstance(error, torch.OutOfMemoryError):
        return Refused(
            503, "the device's memory is too small for this request: fewer or smaller images", "out_of_memory"
        )
    if isinstance(error, ValueError):
        return Refused(400, one_line(error))
    log.error("a request failed", exc_info=error)
    return Refused(500, f"the server failed ({type(error).__name__}); its log says how")


def build_app(served: Served, access: Access | None = None) -> Starlette:
    """Return the ASGI application; it closes the service when it shuts down."""
    access = access or Access()
    served.metrics.watch(served.service)
    port = Port(served)

    async def refused(request: Request, error: Refused) -> Response:
        more = {"Retry-After": "1"} if error.status == 503 else {}
        return JSONResponse(error.body(), error.status, headers=more)

    async def no_such(request: Request, error: HTTPException) -> Response:
        return JSONResponse(
            Refused(error.status_code, f"{request.method} {request.url.path}: {error.detail}").body(), error.status_code
        )

    async def gone(request: Request, error: _Gone) -> Response:
        return Response(status_code=CLIENT_GONE)

    async def failed(request: Request, error: Exception) -> Response:
        return JSONResponse(Refused(500, f"the server failed ({type(error).__name__}); its log says how").body(), 500)

    class Counted:
        """Counts answers by path and status."""

        def __init__(self, app: Any):
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            known = scope.get("path") if scope.get("path") in PATHS else "other"

            async def counting(message: Any) -> None:
                if message["type"] == "http.response.start":
                    served.metrics.requests.labels(known, message["status"]).inc()
                await send(message)

            await self.app(scope, receive, counting)

    middleware = [Middleware(Counted), Middleware(Guard, access=access)]
    if access.origins:
        cors = Middleware(
            CORSMiddleware, allow_origins=list(access.origins), allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )  # fmt: skip
        middleware.insert(1, cors)
    handlers = {Refused: refused, HTTPException: no_such, _Gone: gone, Exception: failed}
    return Starlette(routes=port.routes(), middleware=middleware, exception_handlers=handlers)


PATHS = ("/", "/health", "/metrics", "/v1/models", "/v1/chat/completions", "/api/inspect", "/api/words")
