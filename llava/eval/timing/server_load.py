"""Load on a `llava-web` process: clients that ask, leave, or send nonsense; used by `llava.eval.bench_server`."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import httpx
import numpy as np
from PIL import Image

from llava.cli import UserError
from llava.tiny.scenes import render

STARTING = 300.0
PAGE_KB = 1024
QUESTIONS = ("What is written on the sign?", "How many squares are there?", "What color is the circle?", "Describe it.")


class ServerProcess:
    """Context manager: `llava-web` in a process of its own on a loopback port; `errors` is what it logged."""

    def __init__(self, words: Sequence[str], port: int = 0):
        self.words, self.port = [sys.executable, "-m", "llava.serve.web", *words], port
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process

    def __enter__(self) -> ServerProcess:
        command = [*self.words, "--port", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._log, text=True)
        line = self.process.stdout.readline()
        found = re.search(r"http://[^/\s]+:(\d+)", line)
        if found is None:
            self.process.wait(60)
            raise UserError(f"the server did not start: {self.errors.strip() or line}")
        self.url, self.port = found[0], int(found[1])
        return self

    def __exit__(self, *exception: Any) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it as a power cut would: SIGKILL."""
        self.process.kill()
        self.process.wait(30)

    @property
    def errors(self) -> str:
        """Everything on its standard error so far."""
        self._log.seek(0)
        return self._log.read()

    @property
    def resident(self) -> int:
        """Resident memory in bytes (Linux)."""
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as file:
            line = next(line for line in file if line.startswith("VmRSS:"))
        return int(line.split()[1]) * PAGE_KB

    def figure(self, name: str) -> float:
        """One figure of GET /metrics."""
        lines = httpx.get(f"{self.url}/metrics", timeout=60).text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def scene_url(number: int) -> str:
    """Return scene `number` as a data: URL."""
    file = BytesIO()
    Image.fromarray(render(np.random.default_rng(number))[0]).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def body_of(image: str | None, question: str, new_tokens: int, **more: Any) -> dict[str, Any]:
    """Return a request's body."""
    parts = [] if image is None else [{"type": "image_url", "image_url": {"url": image}}]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]
    return {"messages": messages, "max_tokens": new_tokens, "stream": True, **more}


@dataclass(frozen=True)
class Measured:
    """Seconds of each answer to its first token and to its last; tokens of all answers, and seconds of it all."""

    first: list[float]
    whole: list[float]
    tokens: int
    seconds: float

    def to_dict(self) -> dict[str, float]:
        """Requests per second, tokens per second, and percentiles in milliseconds."""
        first, whole = np.array(self.first) * 1000, np.array(self.whole) * 1000
        return {
            "requests": len(self.first),
            "requests_per_s": round(len(self.first) / self.seconds, 3),
            "tokens_per_s": round(self.tokens / self.seconds, 2),
            "first_token_ms": round(float(np.median(first)), 1),
            "first_token_p95_ms": round(float(np.percentile(first, 95)), 1),
            "answer_ms": round(float(np.median(whole)), 1),
        }


def measure(url: str, bodies: Sequence[dict[str, Any]], clients: int) -> Measured:
    """Ask all `bodies` by `clients` at a time; raises `UserError` for an answer that is an error."""
    return asyncio.run(_measure(url, bodies, clients))


async def _measure(url: str, bodies: Sequence[dict[str, Any]], clients: int) -> Measured:
    waiting = iter(bodies)
    first: list[float] = []
    whole: list[float] = []
    tokens = 0

    async def client(http: httpx.AsyncClient) -> None:
        nonlocal tokens
        for body in waiting:
            given = body | {"stream_options": {"include_usage": True}}
            begun, heard = time.perf_counter(), None
            async with http.stream("POST", f"{url}/v1/chat/completions", json=given) as answer:
                if answer.status_code != 200:
                    raise UserError(f"the server answered {answer.status_code}: {(await answer.aread()).decode()}")
                async for line in answer.aiter_lines():
                    if '"content":"' in line and '"content":""' not in line and heard is None:
                        heard = time.perf_counter()
                    if '"usage"' in line:
                        tokens += json.loads(line[6:])["usage"]["completion_tokens"]
            ended = time.perf_counter()
            first.append((heard or ended) - begun)
            whole.append(ended - begun)

    limits = httpx.Limits(max_connections=clients)
    begun = time.perf_counter()
    async with httpx.AsyncClient(timeout=600, limits=limits) as http:
        await asyncio.gather(*(client(http) for _ in range(clients)))
    return Measured(first, whole, tokens, time.perf_counter() - begun)


ODD: list[Any] = [None, True, -1, 1e308, 10**40, "", "\0", [], {}, [[]], {"a": 1}, "NaN", "é" * 300, [None] * 9]


def mutated(value: Any, draw: random.Random) -> Any:
    """Return a JSON value with one place of it replaced, dropped or doubled."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        if draw.random() < 0.1:
            return {name: one for name, one in value.items() if name != key}
        return value | {key: mutated(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.9:
        place = draw.randrange(len(value))
        return [*value[:place], mutated(value[place], draw), *value[place + (draw.random() < 0.8) :]]
    if isinstance(value, str) and value and draw.random() < 0.4:
        place = draw.randrange(len(value))
        return value[:place] + chr(draw.choice((0, 39, 44, 60, 233, 0xFFFD, 0x1F600))) + value[place + 1 :]
    return draw.choice(ODD)


def fuzz(url: str, count: int, seed: int = 0, clients: int = 8) -> Counter[int]:
    """Send `count` requests that are a little, or altogether, wrong; return how many got which HTTP status.

    Raises `UserError` for an answer of 5xx that is not "try again later", or none: the server has a defect, or died.
    """
    return asyncio.run(_fuzz(url, count, seed, clients))


async def _fuzz(url: str, count: int, seed: int, clients: int) -> Counter[int]:
    statuses: Counter[int] = Counter()
    image = scene_url(1)
    configs = [{"method": "fastv", "k": 2, "r": 0.5}, {"method": "replay", "cuts": [[1, 4]]}, "none", {"before": {}}]
    numbers = iter(range(count))

    def made(number: int) -> tuple[str, str, bytes]:
        draw = random.Random(seed * 1_000_003 + number)
        body = body_of(draw.choice((image, image, None)), draw.choice(QUESTIONS), 2, temperature=0.0, top_p=0.9, seed=1)
        body |= {"pruning_config": draw.choice(configs), "stop": ["."], "logprobs": True, "position": 40, "n": 1}
        body |= {"trace": {"tokens_per_layer": [1], "cuts": []}, "visual": [1, 2]} if draw.random() < 0.1 else {}
        for _ in range(draw.choice((1, 1, 2, 4))):
            body = mutated(body, draw)
        content = json.dumps(body).encode("utf-8", "surrogatepass")
        if draw.random() < 0.15:
            place = draw.randrange(len(content))
            content = content[:place] + draw.randbytes(draw.randrange(4)) + content[place + draw.randrange(3) :]
        paths = ("/v1/chat/completions",) * 6 + (
            "/api/inspect",
            "/api/words",
            "/api/plan",
            "/v1/models/%00",
            "/api/gallery/-1",
        )
        path = draw.choice(paths)
        return draw.choice(("POST",) * 9 + ("GET", "PUT")), path, content

    async def client(http: httpx.AsyncClient) -> None:
        for number in numbers:
            method, path, content = made(number)
            try:
                answer = await http.request(
                    method, url + path, content=content, headers={"Content-Type": "application/json"}
                )
            except httpx.TransportError as error:
                raise UserError(f"request {number} of seed {seed} ({method} {path}) got no answer: {error!r}") from None
            statuses[answer.status_code] += 1
            if answer.status_code >= 500 and answer.status_code != 503:
                raise UserError(f"request {number} of seed {seed} ({method} {path}): {answer.text[:300]}")

    async with httpx.AsyncClient(timeout=120) as http:
        await asyncio.gather(*(client(http) for _ in range(clients)))
    return statuses


def mixed_load(
    server: ServerProcess, seconds: float, clients: int, new_tokens: int, on_sample: Callable[[float, int], None]
) -> Counter[str]:
    """Ask, inspect, err and vanish for some time; `on_sample(second, resident bytes)` about forty times."""
    return asyncio.run(_mixed(server, seconds, clients, new_tokens, on_sample))


async def _mixed(
    server: ServerProcess, seconds: float, clients: int, new_tokens: int, on_sample: Callable[[float, int], None]
) -> Counter[str]:
    done: Counter[str] = Counter()
    until = time.monotonic() + seconds
    url, shared = server.url, [scene_url(number) for number in range(4)]

    async def client(number: int, http: httpx.AsyncClient) -> None:
        draw = random.Random(number)
        while time.monotonic() < until:
            kind = draw.choices(("same", "new", "text", "vanish", "inspect", "nonsense"), (4, 4, 1, 1, 1, 1))[0]
            image = draw.choice(shared) if kind != "new" else scene_url(draw.randrange(1 << 30))
            config = draw.choice((None, None, "none", {"method": "fastv", "k": 2, "r": draw.choice((0.25, 0.5, 0.75))}))
            body = body_of(None if kind == "text" else image, draw.choice(QUESTIONS), new_tokens, pruning_config=config)
            if kind == "nonsense":
                body = mutated(body, draw)
            path = "/api/inspect" if kind == "inspect" else "/v1/chat/completions"
            async with http.stream("POST", url + path, json=body) as answer:
                if kind == "vanish":
                    await anext(answer.aiter_bytes(), b"")
                else:
                    await answer.aread()
                done[f"{kind} {answer.status_code}"] += 1

    async def watch() -> None:
        begun = time.monotonic()
        while time.monotonic() < until:
            on_sample(time.monotonic() - begun, server.resident)
            await asyncio.sleep(seconds / 40)

    async with httpx.AsyncClient(timeout=120) as http:
        await asyncio.gather(watch(), *(client(number, http) for number in range(clients)))
    return done


def survives_kill(words: Sequence[str]) -> bool:
    """Kill a server under load (SIGKILL), start it again on its port, and compare the answers before and after."""
    question = body_of(scene_url(0), QUESTIONS[0], 8) | {"stream": False}

    def ask(server: ServerProcess) -> str:
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=question, timeout=STARTING)
        return answer.json()["choices"][0]["message"]["content"]

    with ServerProcess(words) as server:
        before = ask(server)
        with (
            httpx.Client(timeout=60) as http,
            http.stream("POST", f"{server.url}/v1/chat/completions", json=question | {"stream": True}),
        ):
            os.kill(server.process.pid, signal.SIGKILL)
            server.process.wait(30)
    with ServerProcess(words, server.port) as again:
        return ask(again) == before
