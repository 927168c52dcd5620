"""`llava-web` in this process on a free loopback port, with a real client."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import uvicorn
from PIL import Image

from llava.serve.web.command import Options, make_app


class Server:
    """A running server: its address, app state, and clients."""

    def __init__(self, app, port: int, token: str | None = None):
        self.url, self.served, self.token = f"http://127.0.0.1:{port}", app.state.served, token
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self.http = httpx.Client(base_url=self.url, headers=headers, timeout=60)
        self.openai = openai.OpenAI(base_url=f"{self.url}/v1", api_key=token or "none", max_retries=0, timeout=60)

    @property
    def service(self):
        return self.served.service

    def ask(self, messages, **more):
        extra = {key: more.pop(key) for key in ("pruning_config", "trace", "prefix_cache", "progress") if key in more}
        given = {"model": self.served.name, "messages": messages, **more}
        return self.openai.chat.completions.create(**given, extra_body=extra)

    def metric(self, name: str) -> float:
        lines = self.http.get("/metrics").text.splitlines()
        return float(next(line.rpartition(" ")[2] for line in lines if line.startswith(name)))


@contextmanager
def serving(token: str | None = None, **options):
    """Serve on a free port until the block ends."""
    app = make_app(Options(device="cpu", **options), token)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 30
    while not server.started and time.monotonic() < until:
        time.sleep(0.01)
    made = Server(app, server.servers[0].sockets[0].getsockname()[1], token)
    try:
        yield made
    finally:
        made.http.close()
        made.openai.close()
        server.should_exit = True
        thread.join(20)
        made.service.close()


def data_url(image: bytes | Path | Image.Image) -> str:
    if isinstance(image, Image.Image):
        file = io.BytesIO()
        image.save(file, "PNG")
        image = file.getvalue()
    content = image.read_bytes() if isinstance(image, Path) else image
    return "data:image/png;base64," + base64.b64encode(content).decode()


def question(text: str, *images) -> list[dict]:
    """One user's message about images: paths, bytes, PIL images or URLs."""
    urls = [image if isinstance(image, str) else data_url(image) for image in images]
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]
