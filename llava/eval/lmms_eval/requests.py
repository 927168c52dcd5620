"""lmms-eval's argument tuples, generation settings and messages, parsed into `Request`s."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from llava.cli import VideoOptions
from llava.model.images import read_image, to_rgb
from llava.model.inputs import Turn
from llava.model.videos import Video, read_video

DEFAULT_NEW_TOKENS = 1024
HONOURED = (
    *("do_sample", "max_new_tokens", "num_beams", "repetition_penalty"),
    *("temperature", "top_k", "top_p", "until"),
)
IGNORED = {
    "image_aspect_ratio": "images are prepared as the checkpoint asks",
    "seed": "lmms-eval's --seed decides",
}
"""Keys of tasks that do not reach the model, and what decides in their place."""

VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv", ".ts")
"""By them a simple task's paths of videos are told from those of images."""

Documents = Mapping[str, Any]
"""Task name → split → document number → document: lmms-eval's `task_dict`."""


class RequestError(RuntimeError):
    """A request that could not be answered; the message begins with the request's name."""


@dataclass(frozen=True)
class Decoding:
    """How answers are generated: keyword arguments of `generate` as sorted pairs, and the stop strings."""

    arguments: tuple[tuple[str, Any], ...]
    until: tuple[str, ...] = ()


@dataclass(frozen=True)
class Conversation:
    """The turns of a prompt, the last one unanswered, and what they show, in order: a turn's images, its videos."""

    turns: list[Turn]
    media: list[Image.Image | Video]


@dataclass(frozen=True)
class Request:
    """One question of lmms-eval.

    name:
        for messages: `task/split/document`
    prompt:
        names the conversation: requests with an equal one share it, so that it is read and prepared once
    read:
        reads the conversation; called when the request's turn comes, so that not all images are in memory
    wanted:
        how to generate, or the continuation whose likelihood is asked for
    """

    name: str
    prompt: Hashable
    read: Callable[[], Conversation]
    wanted: Decoding | str


@dataclass(frozen=True)
class Likelihood:
    """Natural log-probability of a continuation, summed over its tokens, and whether greedy decoding writes it."""

    logprob: float
    tokens: int
    greedy: bool


def chat_generation(arguments: tuple, documents: Documents, rule: VideoOptions | None = None) -> Request:
    """Read a chat model's `(context, doc_to_messages, generation_kwargs, document, task, split)`.

    The context is not used: the messages hold the whole question. `rule`: frames of videos. Raises `RequestError`
    naming the request.
    """
    _, to_messages, settings, number, task, split = _six(arguments)
    name = f"{task}/{split}/{number}"
    return Request(
        name,
        prompt=(task, split, number),
        read=lambda: of_messages(to_messages(documents[task][split][number]), rule),
        wanted=_named(name, decoding_of, settings),
    )


def simple_generation(arguments: tuple, documents: Documents, rule: VideoOptions | None = None) -> Request:
    """Read a simple model's `(context, generation_kwargs, doc_to_visual, document, task, split)`."""
    context, settings, to_visual, number, task, split = _six(arguments)
    wanted = _named(f"{task}/{split}/{number}", decoding_of, settings)
    return _simple(context, to_visual, documents, (task, split, number), wanted, rule)


def likelihood(arguments: tuple, documents: Documents, rule: VideoOptions | None = None) -> Request:
    """Read `(context, continuation, doc_to_visual, document, task, split)`; see `likelihood_result`."""
    context, continuation, to_visual, number, task, split = _six(arguments)
    if callable(continuation):
        continuation = _named(f"{task}/{split}/{number}", continuation, documents[task][split][number])
    return _simple(context, to_visual, documents, (task, split, number), str(continuation), rule)


def _simple(
    context: str,
    to_visual: Callable,
    documents: Documents,
    place: tuple[str, str, int],
    wanted: Decoding | str,
    rule: VideoOptions | None,
) -> Request:
    task, split, number = place
    return Request(
        f"{task}/{split}/{number}",
        prompt=(*place, context),
        read=lambda: of_text(context, to_visual(documents[task][split][number]), rule),
        wanted=wanted,
    )


def likelihood_result(arguments: tuple, found: Likelihood) -> tuple[float, bool]:
    """Return what lmms-eval expects: a log-probability, or for a choice its negative.

    Its models are documented to return log-probabilities, and its perplexity (`output_type: loglikelihood`, where the
    continuation is a function of the document) takes them as such. But `output_type: multiple_choice`, whose
    continuations are texts, chooses the *smallest* value (lmms-eval 0.6 and 0.7): it expects losses.
    """
    loss = isinstance(arguments[1], str)
    return (-found.logprob if loss else found.logprob), found.greedy


def _six(arguments: tuple) -> tuple:
    if len(arguments) != 6:
        raise ValueError(
            f"a request has {len(arguments)} arguments, 6 are known here: the metric acc_mutual_info, or a version of "
            "lmms-eval that this plug-in does not know"
        )
    return arguments


def _named(name: str, read: Callable[[Any], Any], given: Any) -> Any:
    try:
        return read(given)
    except ValueError as error:
        raise RequestError(f"{name}: {error}") from error


def of_text(text: str, visuals: Sequence[Any] | None, rule: VideoOptions | None = None) -> Conversation:
    """Read what a simple task gives: one question, with its images and then its videos before it.

    Videos are paths that end in one of `VIDEO_SUFFIXES`; images are PIL images and other paths.
    """
    videos = [visual for visual in visuals or () if _is_video(visual)]
    images = [_image(visual) for visual in visuals or () if not _is_video(visual)]
    turn = Turn(text, len(images), videos=len(videos))
    return Conversation([turn], [*images, *(read_video(path, rule) for path in videos)])


def of_messages(messages: Iterable[Mapping[str, Any]], rule: VideoOptions | None = None) -> Conversation:
    """Read what a chat task's `doc_to_messages` returns: `{"role", "content"}`, content a text or a list of parts.

    A part is `{"type": "text", "text"}`, `{"type": "image", "url"}`, the url a PIL image or a path, or `{"type":
    "video", "url"}`, a path. The texts of a message are joined; its images and then its videos come before them, as the
    models were trained.

    Raises:
        ValueError: roles that do not alternate from user to user, a system message (the models' templates bring their
            own), an audio part, an image or video in an answer, or one that is neither PIL nor path.

    """
    turns: list[Turn] = []
    media: list[Image.Image | Video] = []
    question: tuple[str, int, int] | None = None
    for message in messages:
        role = message.get("role")
        texts, images, videos = _parts(message.get("content"), rule)
        if role == "user" and question is None:
            question = "".join(texts), len(images), len(videos)
            media += [*images, *videos]
        elif role == "assistant" and question is not None and not images + videos:
            turns.append(Turn(question[0], question[1], "".join(texts), question[2]))
            question = None
        else:
            what = f"message of the {role} with an image" if images + videos else f"message of the {role}"
            raise ValueError(
                f"a {what} is number {2 * len(turns) + (question is not None)} of the conversation (from 0): expected "
                "questions of the user, with answers of the assistant in text between them, and no system message"
            )
    if question is None:
        raise ValueError("the conversation does not end with a message of the user: there is nothing to answer")
    return Conversation([*turns, Turn(question[0], question[1], videos=question[2])], media)


def _parts(
    content: str | Sequence[Mapping[str, Any]], rule: VideoOptions | None
) -> tuple[list[str], list[Image.Image], list[Video]]:
    texts: list[str] = []
    images: list[Image.Image] = []
    videos: list[Video] = []
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        if part["type"] == "text":
            texts.append(part["text"])
        elif part["type"] == "image":
            images.append(_image(part["url"]))
        elif part["type"] == "video" and isinstance(part["url"], str):
            videos.append(read_video(part["url"], rule))
        elif part["type"] == "video":
            raise ValueError(f"a video is given as {type(part['url']).__name__}: only paths are supported")
        else:
            raise ValueError(f"a message holds {part['type']!r}: only text, images and videos are supported")
    return texts, images, videos


def _is_video(given: Any) -> bool:
    return isinstance(given, str) and given.lower().endswith(VIDEO_SUFFIXES)


def _image(given: Any) -> Image.Image:
    if isinstance(given, Image.Image):
        return to_rgb(given)
    if isinstance(given, str):
        return read_image(given)
    raise ValueError(f"an image is given as {type(given).__name__}: only PIL images and paths are supported")


def decoding_of(given: Mapping[str, Any] | None) -> Decoding:
    """Read a task's `generation_kwargs`; greedy, one beam and 1024 new tokens unless it says otherwise.

    Answers are sampled when `do_sample` says so, or, without it, when `temperature` is above 0; never at temperature 0.
    A key that is None keeps the default. Keys in `IGNORED` are left out.

    Raises:
        ValueError: a key that is not known here, or a value that cannot be.

    """
    given = {key: value for key, value in (given or {}).items() if value is not None and key not in IGNORED}
    if unknown := sorted(set(given) - set(HONOURED)):
        raise ValueError(f"generation_kwargs has {', '.join(unknown)}; known: {', '.join((*HONOURED, *IGNORED))}")
    until = given.pop("until", ())
    if isinstance(until, str):
        until = [until]
    if not isinstance(until, list | tuple) or not all(isinstance(word, str) for word in until):
        raise ValueError(f"generation_kwargs: until must be a string or a list of strings, got {until!r}")
    temperature = _number(given, "temperature", None, 0)
    samples = bool(given.get("do_sample", temperature)) and temperature != 0
    top_k, top_p = _number(given, "top_k", None, 0, whole=True), _number(given, "top_p", None, 0)
    arguments: dict[str, Any] = {
        "do_sample": samples,
        "max_new_tokens": _number(given, "max_new_tokens", DEFAULT_NEW_TOKENS, 1, whole=True),
        "num_beams": _number(given, "num_beams", 1, 1, whole=True),
        "temperature": (1.0 if temperature is None else temperature) if samples else None,
        "top_p": top_p if samples else None,
    }
    if not samples or top_k is not None:
        arguments["top_k"] = top_k if samples else None
    if "repetition_penalty" in given:
        arguments["repetition_penalty"] = _number(given, "repetition_penalty", 1.0, 0)
    return Decoding(tuple(sorted(arguments.items())), tuple(word for word in until if word))


def _number(given: Mapping[str, Any], key: str, default: float | None, low: float, whole: bool = False) -> Any:
    value = given.get(key, default)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value < low:
        raise ValueError(f"generation_kwargs: {key} must be a number ≥ {low}, got {value!r}")
    if whole and value != int(value):
        raise ValueError(f"generation_kwargs: {key} must be a whole number, got {value!r}")
    return int(value) if whole else value
