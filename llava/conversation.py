"""The prompt formats LLaVA models were trained on: a conversation in, one string out.

The system sentences, roles and separators are LLaVA's (haotian-liu/LLaVA, `llava/conversation.py`) to the character:
a model answers differently under any other. `conv_templates` maps a `--conv-mode` to its template; take a `.copy()`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto


class SeparatorStyle(Enum):
    """How turns are joined; see `Conversation.get_prompt`."""

    SINGLE = auto()
    TWO = auto()
    MPT = auto()
    PLAIN = auto()
    LLAMA_2 = auto()


@dataclass
class Conversation:
    """A system sentence, two roles (user, assistant), the turns so far, and how to join them.

    A template holds its turns in a tuple and cannot grow; `copy()` returns a conversation that can.
    `offset` is the number of leading turns that belong to the template (worked examples).
    """

    system: str
    roles: tuple[str, str]
    messages: list[list[str | None]] | tuple[tuple[str, str], ...] = ()
    offset: int = 0
    sep_style: SeparatorStyle = SeparatorStyle.SINGLE
    sep: str = "###"
    sep2: str | None = None
    version: str = "Unknown"

    def copy(self) -> Conversation:
        """Return an independent conversation with the same turns."""
        return replace(self, messages=[[role, message] for role, message in self.messages])

    def append_message(self, role: str, message: str | None) -> None:
        """Add a turn; message None is the turn that the model is to write.

        Raises `TypeError` on a template.
        """
        if not isinstance(self.messages, list):
            raise TypeError("a conversation template cannot grow: call .copy() and append to the copy")
        self.messages.append([role, message])

    def get_prompt(self) -> str:
        """Return the prompt.

        Raises `ValueError` if a LLAMA_2 conversation does not open with a user's message.
        """
        return _JOIN[self.sep_style](self)


def _join_single(conv: Conversation) -> str:
    turns = (f"{role}: {message}{conv.sep}" if message else f"{role}:" for role, message in conv.messages)
    return conv.system + conv.sep + "".join(turns)


def _join_two(conv: Conversation) -> str:
    separators = (conv.sep, conv.sep2)
    prompt = conv.system + conv.sep
    for i, (role, message) in enumerate(conv.messages):
        prompt += f"{role}: {message}{separators[i % 2]}" if message else f"{role}:"
    return prompt


def _join_mpt(conv: Conversation) -> str:
    turns = (f"{role}{message}{conv.sep}" if message else role for role, message in conv.messages)
    return conv.system + conv.sep + "".join(turns)


def _join_plain(conv: Conversation) -> str:
    separators = (conv.sep, conv.sep2 or "")
    turns = (message + separators[i % 2] for i, (_, message) in enumerate(conv.messages) if message)
    return conv.system + "".join(turns)


def _join_llama_2(conv: Conversation) -> str:
    prompt = ""
    for i, (role, message) in enumerate(conv.messages):
        if i == 0:
            if not message or role != conv.roles[0]:
                raise ValueError(f"a llama_2 conversation must open with a message of {conv.roles[0]}, not {role}")
            if conv.system:
                message = f"<<SYS>>\n{conv.system}\n<</SYS>>\n\n{message}"
        if message:
            prompt += f"{conv.sep}[INST] {message} [/INST]" if i % 2 == 0 else f" {message} {conv.sep2}"
    return prompt.removeprefix(conv.sep)


_JOIN = {
    SeparatorStyle.SINGLE: _join_single,
    SeparatorStyle.TWO: _join_two,
    SeparatorStyle.MPT: _join_mpt,
    SeparatorStyle.PLAIN: _join_plain,
    SeparatorStyle.LLAMA_2: _join_llama_2,
}

_POLITE = "The assistant gives helpful, detailed, and polite answers to the {}'s questions."
_CURIOUS_HUMAN = "A chat between a curious human and an artificial intelligence assistant. " + _POLITE.format("human")
_CURIOUS_USER = "A chat between a curious user and an artificial intelligence assistant. " + _POLITE.format("user")

conv_llava_v0 = Conversation(_CURIOUS_HUMAN, ("Human", "Assistant"))

_TWO = {"sep_style": SeparatorStyle.TWO, "sep": " ", "sep2": "</s>", "version": "v1"}
conv_vicuna_v1 = Conversation(_CURIOUS_USER, ("USER", "ASSISTANT"), **_TWO)
conv_llava_v1 = Conversation(_CURIOUS_HUMAN, ("USER", "ASSISTANT"), **_TWO)

_LLAMA_2 = {"sep_style": SeparatorStyle.LLAMA_2, "sep": "<s>", "sep2": "</s>", "version": "llama_v2"}
conv_llama_2 = Conversation(
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe.  "
    "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. "
    "Please ensure that your responses are socially unbiased and positive in nature.\n\n"
    "If a question does not make any sense, or is not factually coherent, explain why instead of answering something "
    "not correct. If you don't know the answer to a question, please don't share false information.",
    ("USER", "ASSISTANT"),
    **_LLAMA_2,
)
conv_llava_llama_2 = Conversation(
    "You are a helpful language and vision assistant. "
    "You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language.",
    ("USER", "ASSISTANT"),
    **_LLAMA_2,
)
conv_mpt = Conversation(
    "<|im_start|>system\nA conversation between a user and an LLM-based AI assistant. "
    "The assistant gives helpful and honest answers.",
    ("<|im_start|>user\n", "<|im_start|>assistant\n"),
    sep_style=SeparatorStyle.MPT,
    sep="<|im_end|>",
    version="mpt",
)
conv_llava_plain = Conversation("", ("", ""), sep_style=SeparatorStyle.PLAIN, sep="\n")

conv_templates = {
    "v1": conv_vicuna_v1,
    "vicuna_v1": conv_vicuna_v1,
    "llama_2": conv_llama_2,
    "plain": conv_llava_plain,
    "llava_v0": conv_llava_v0,
    "llava_v1": conv_llava_v1,
    "llava_llama_2": conv_llava_llama_2,
    "mpt": conv_mpt,
}
default_conversation = conv_vicuna_v1


def find_template(name: str) -> Conversation:
    """Return the template of a `--conv-mode`; `ValueError` with the known ones for another name."""
    if name not in conv_templates:
        why = "was removed: it serves no model that loads here" if name == "v0" else "is unknown"
        raise ValueError(f"the conversation template {name!r} (conv_mode) {why}; known: {', '.join(conv_templates)}")
    return conv_templates[name]
