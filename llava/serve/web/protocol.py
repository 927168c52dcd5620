"""OpenAI's chat protocol: what a request may hold, and what answers and errors look like.

Beside OpenAI's fields a request may have `pruning_config` (a JSON object, or "none"), `trace` ("summary", "full",
"none"), `prefix_cache` and `progress`; the answer's `pruning` says what the engine did. docs/serving.md has the list.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llava.model.inputs import Turn
from llava.model.pruning import PruningConfig
from llava.model.pruning.method import METHODS

from .batch import Done, Token

FINISHED = {"end": "stop", "limit": "length", "stopped": "stop"}


class Refused(Exception):
    """A request that is answered with an error: HTTP status, message, OpenAI's type and code, the parameter."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None):
        super().__init__(message)
        self.status, self.code, self.param = status, code, param

    def body(self) -> dict[str, Any]:
        """Return the error as OpenAI's clients read it."""
        kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class Strict(BaseModel):
    """A JSON object; fields of other names are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)


class TextPart(Strict):
    """Text of a message."""

    type: Literal["text"]
    text: str


class ImageUrl(Strict):
    """Where an image is: a data: URL, or an http(s) URL."""

    url: str


class ImagePart(Strict):
    """An image of a message; its place among the texts is before them."""

    type: Literal["image_url"]
    image_url: ImageUrl


class VideoPart(Strict):
    """A video of a message, as other servers of this protocol take it; after its images."""

    type: Literal["video_url"]
    video_url: ImageUrl


class Message(Strict):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]]

    @property
    def text(self) -> str:
        """The texts of the message, one line each."""
        parts = [self.content] if isinstance(self.content, str) else self.content
        return "\n".join(one if isinstance(one, str) else one.text for one in parts if isinstance(one, str | TextPart))

    @property
    def images(self) -> list[str]:
        """The URLs of its images."""
        parts = [] if isinstance(self.content, str) else self.content
        return [one.image_url.url for one in parts if isinstance(one, ImagePart)]

    @property
    def videos(self) -> list[str]:
        """The URLs of its videos."""
        parts = [] if isinstance(self.content, str) else self.content
        return [one.video_url.url for one in parts if isinstance(one, VideoPart)]


class StreamOptions(Strict):
    """`include_usage`: a last chunk with the numbers of tokens."""

    include_usage: bool = False


class Asked(Strict):
    """What every request about a prompt has."""

    model: str | None = None
    messages: list[Message] = Field(min_length=1)
    pruning_config: dict[str, Any] | Literal["none"] | None = None


class ChatRequest(Asked):
    """The body of POST /v1/chat/completions; fields of OpenAI's that change nothing here are ignored."""

    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    n: Literal[1] | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    seed: int | None = Field(None, ge=0, lt=1 << 63)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    trace: Literal["summary", "full", "none"] = "summary"
    prefix_cache: bool = True
    progress: bool = False

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end the answer."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(one for one in given if one)


def read_body(kind: type[Strict], body: bytes) -> Any:
    """Return a request's body as `kind`; raises `Refused` with the first mistake in one line."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise Refused(400, f"{place}: {first['msg']}" if place else first["msg"], param=place or None) from None


def turns_of(messages: Sequence[Message]) -> tuple[list[Turn], list[tuple[str, bool]]]:
    """Return a conversation as turns, and the URLs of its images and videos in order, each with whether it is a video.

    Questions and answers alternate, the last message is a question. Text of a system message stands before the first
    question's: models of LLaVA's convention have a system text of their own, which stays.

    Raises `Refused` for messages in another order, an empty question, or an image in an answer.
    """
    system = [one.text for one in messages if one.role in ("system", "developer")]
    spoken = [one for one in messages if one.role in ("user", "assistant")]
    if any(one.images or one.videos for one in messages if one.role != "user"):
        raise Refused(400, "messages: only a user's message may hold images and videos", param="messages")
    if any(one.role != ("user", "assistant")[place % 2] for place, one in enumerate(spoken)) or len(spoken) % 2 == 0:
        raise Refused(400, "messages: user and assistant alternate, and a user's message is the last", param="messages")
    turns = []
    for place in range(0, len(spoken), 2):
        question = spoken[place].text.strip()
        if not question:
            raise Refused(400, f"messages: question {place // 2 + 1} is empty", param="messages")
        if not turns and system:
            question = "\n".join([*system, question])
        answer = spoken[place + 1].text if place + 1 < len(spoken) else None
        turns.append(Turn(question, len(spoken[place].images), answer, len(spoken[place].videos)))
    kinds = ((one.images, False) for one in spoken), ((one.videos, True) for one in spoken)
    return turns, [(url, is_video) for pair in zip(*kinds, strict=True) for urls, is_video in pair for url in urls]


def config_of(given: Mapping[str, Any] | str | None, default: PruningConfig) -> PruningConfig:
    """Return the config that a request asks for; None is the server's, "none" is dense.

    Only methods of this package: a reference to a file or module would run code of the request's choice.

    Raises:
        ValueError: what `PruningConfig.from_dict` refuses, and a method that is a reference.

    """
    if given is None:
        return default
    config = {"method": "none"} if given == "none" else given
    for stage in (config, config.get("before")):
        method = stage.get("method", "visipruner") if isinstance(stage, Mapping) else None
        if stage is not None and (not isinstance(method, str) or method not in METHODS or ":" in method):
            raise ValueError(f"pruning_config: unknown method {method!r}; known here: {', '.join(METHODS)}")
    return PruningConfig.from_dict(config)


class Answer:
    """Makes the JSON of one answer: whole, or chunk by chunk."""

    def __init__(self, request: ChatRequest, model: str, config: PruningConfig, tokenizer: Any):
        self.request, self.config, self.tokenizer = request, config, tokenizer
        self._head = {"id": f"chatcmpl-{uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, text: str, tokens: Sequence[Token], done: Done) -> dict[str, Any]:
        """Return a `chat.completion`."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": self._logprobs(tokens),
            "finish_reason": FINISHED[done.ended],
        }
        head = self._head | {"object": "chat.completion"}
        return head | {"choices": [choice], "usage": usage_of(done), "pruning": self.pruning(done)}

    def chunk(self, delta: dict[str, Any], tokens: Sequence[Token] = (), done: Done | None = None) -> dict[str, Any]:
        """Return a `chat.completion.chunk`; with `done` the last one that has a choice."""
        choice = {
            "index": 0,
            "delta": delta,
            "logprobs": self._logprobs(tokens) if tokens else None,
            "finish_reason": None if done is None else FINISHED[done.ended],
        }
        more = {} if done is None else {"pruning": self.pruning(done)}
        return self._chunk([choice]) | more

    def usage(self, done: Done) -> dict[str, Any]:
        """Return the chunk without choices that has the numbers of tokens."""
        return self._chunk([]) | {"usage": usage_of(done)}

    def progress(self, layer: int, layers: int, ahead: int) -> dict[str, Any]:
        """Return a chunk without choices that says how far the prompt is."""
        return self._chunk([]) | {"progress": {"layer": layer, "layers": layers, "ahead": ahead}}

    def pruning(self, done: Done) -> dict[str, Any]:
        """Return what the engine did: config, trace, milliseconds, prompts in the batch, what the cache saved."""
        made: dict[str, Any] = {"config": self.config.to_dict()}
        if self.request.trace != "none":
            made["trace"] = done.trace.to_dict() if self.request.trace == "full" else done.trace.summary()
        made["milliseconds"] = {name: round(value, 3) for name, value in done.times._asdict().items()}
        made["batch"] = done.batch
        made["prefix_reuse"] = None if done.reused is None else done.reused.to_dict()
        return made

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self._head | {"object": "chat.completion.chunk", "choices": choices}

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not self.request.logprobs:
            return None
        return {"content": [self._token(one) for one in tokens], "refusal": None}

    def _token(self, token: Token) -> dict[str, Any]:
        top = [self._named(*one) for one in token.top[: self.request.top_logprobs or 0]]
        return self._named(token.id, token.logprob) | {"top_logprobs": top}

    def _named(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.tokenizer.decode([token])
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(text.encode("utf-8", "replace"))}


def usage_of(done: Done) -> dict[str, Any]:
    """Return OpenAI's `usage`."""
    total = done.prompt_tokens + done.new_tokens
    return {"prompt_tokens": done.prompt_tokens, "completion_tokens": done.new_tokens, "total_tokens": total}
