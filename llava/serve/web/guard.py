"""What stands before the app: token, host and origin checks, limits of bodies, and headers for browsers."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .protocol import Refused

LOOPBACK = ("127.0.0.1", "localhost", "::1")
OPEN = ("/", "/health")
PAGE = "/page/"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True)
class Access:
    """Who may use the server.

    `token`: what every request but the page's own files has to bring, None for no token; `hosts`: names that a request
    may call the server by, None for any (against pages that point a name of theirs at this machine); `origins`: other
    sites whose pages may use it; `body`: bytes of a request; `under_way`: requests with a body at one time; `seconds`:
    that a body may take to arrive.
    """

    token: str | None = None
    hosts: Collection[str] | None = LOOPBACK
    origins: Collection[str] = ()
    body: int = 64_000_000
    under_way: int = 128
    seconds: float = 60.0


class Guard:
    """ASGI middleware that enforces an `Access`."""

    def __init__(self, app: ASGIApp, access: Access):
        self.app, self.access, self._under_way = app, access, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it (ASGI)."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        has_body = scope["method"] not in ("GET", "HEAD", "OPTIONS")
        try:
            self._check(scope)
            if has_body and self._under_way >= self.access.under_way:
                raise Refused(503, "the server is busy: try again later", code="overloaded")
        except Refused as refused:
            await JSONResponse(refused.body(), refused.status)(scope, receive, send_with_headers)
            return
        self._under_way += has_body
        try:
            await self.app(scope, self._limited(receive), send_with_headers)
        finally:
            self._under_way -= has_body

    def _check(self, scope: Scope) -> None:
        access, headers = self.access, Headers(scope=scope)
        host = headers.get("host", "")
        if access.hosts is not None and _name(host) not in access.hosts:
            raise Refused(403, "this server answers to its local name only: open http://127.0.0.1 and its port")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host and origin not in access.origins:
            raise Refused(403, "pages of other sites may not use this server (--allow-origin lets one)")
        path = scope["path"]
        if access.token is not None and path not in OPEN and not path.startswith(PAGE) and scope["method"] != "OPTIONS":
            given = headers.get("authorization", "").removeprefix("Bearer ").strip()
            if not hmac.compare_digest(given.encode(), access.token.encode()):
                raise Refused(401, "the token is missing or wrong: Authorization: Bearer …", code="invalid_api_key")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > access.body:
            raise Refused(413, f"the request is larger than {access.body / 1e6:g} MB, the limit")
        if scope["method"] == "POST" and not headers.get("content-type", "").startswith("application/json"):
            raise Refused(415, "the request's Content-Type is application/json")

    def _limited(self, receive: Receive) -> Receive:
        """Wrap `receive`: it raises `Refused` for a body beyond the limits."""
        left, reading, deadline = self.access.body, True, None

        async def limited() -> Message:
            nonlocal left, reading, deadline
            if not reading:
                return await receive()
            deadline = deadline or asyncio.get_running_loop().time() + self.access.seconds
            try:
                async with asyncio.timeout_at(deadline):
                    message: Any = await receive()
            except TimeoutError:
                raise Refused(408, f"the request did not arrive within {self.access.seconds:g} s") from None
            left -= len(message.get("body", b""))
            reading = message.get("more_body", False)
            if left < 0:
                raise Refused(413, f"the request is larger than {self.access.body / 1e6:g} MB, the limit")
            return message

        return limited


def _name(host: str) -> str:
    """`[::1]:8000` → `::1`, `localhost:8000` → `localhost`."""
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0].lower()
