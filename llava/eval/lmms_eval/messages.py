"""lmms-eval's two forms of a question, chat messages or a text with visuals, as the turns and images of a prompt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from llava.model.inputs import Turn


@dataclass(frozen=True)
class Conversation:
    """The turns of a prompt, the last one unanswered, and the images that they show, in order."""

    turns: list[Turn]
    images: list[Image.Image]


def of_text(text: str, visuals: Sequence[Any] | None) -> Conversation:
    """Read what a simple task gives: one question, with its images before it."""
    images = [_image(visual) for visual in visuals or ()]
    return Conversation([Turn(text, len(images))], images)


def of_messages(messages: Iterable[Mapping[str, Any]]) -> Conversation:
    """Read what a chat task's `doc_to_messages` returns: `{"role", "content"}`, content a text or a list of parts.

    A part is `{"type": "text", "text"}` or `{"type": "image", "url"}`, the url a PIL image or a path. The texts of a
    message are joined; its images come before them, as the models were trained.

    Raises:
        ValueError: roles that do not alternate from user to user, a system message (the models' templates bring their
            own), a video or audio part, an image in an answer, or an image that is neither PIL nor path.

    """
    turns: list[Turn] = []
    images: list[Image.Image] = []
    question: tuple[str, int] | None = None
    for message in messages:
        role = message.get("role")
        texts, shown = _parts(message.get("content"))
        if role == "user" and question is None:
            question = "".join(texts), len(shown)
            images += shown
        elif role == "assistant" and question is not None and not shown:
            turns.append(Turn(*question, answer="".join(texts)))
            question = None
        else:
            what = f"message of the {role} with an image" if shown else f"message of the {role}"
            raise ValueError(
                f"a {what} is number {2 * len(turns) + (question is not None)} of the conversation (from 0): expected "
                "questions of the user, with answers of the assistant in text between them, and no system message"
            )
    if question is None:
        raise ValueError("the conversation does not end with a message of the user: there is nothing to answer")
    return Conversation([*turns, Turn(*question)], images)


def _parts(content: str | Sequence[Mapping[str, Any]]) -> tuple[list[str], list[Image.Image]]:
    texts: list[str] = []
    images: list[Image.Image] = []
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        if part["type"] == "text":
            texts.append(part["text"])
        elif part["type"] == "image":
            images.append(_image(part["url"]))
        else:
            raise ValueError(f"a message holds {part['type']!r}: only text and images are supported")
    return texts, images


def _image(given: Any) -> Image.Image:
    if isinstance(given, Image.Image):
        return given
    if isinstance(given, str):
        with Image.open(given) as image:
            return image.convert("RGB")
    raise ValueError(f"an image is given as {type(given).__name__}: only PIL images and paths are supported")
