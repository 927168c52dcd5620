"""`Chat`: a conversation with a LLaVA model about one image, pruned or not; no terminal in here."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from PIL import Image
from transformers import GenerationConfig

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.conversation import Conversation, SeparatorStyle, conv_templates
from llava.mm_utils import KeywordsStoppingCriteria, process_images, tokenizer_image_token
from llava.model.pruning import PruningConfig, PruningTrace, prune

from .generation import AnswerStream, StopOnRequest, stop_on_interrupt


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn: greedily at temperature 0; `top_p` None leaves it to the model's own settings."""

    temperature: float = 0.0
    top_p: float | None = None
    max_new_tokens: int = 512

    def generation_config(self, limit: int) -> GenerationConfig:
        """Return the settings of an answer of at most `limit` tokens; the model's own fill what is not set here."""
        if self.temperature == 0:
            # neutral values in place of the checkpoint's, which would raise a warning that they have no effect
            return GenerationConfig(do_sample=False, temperature=1.0, top_p=1.0, max_new_tokens=limit)
        return GenerationConfig(do_sample=True, temperature=self.temperature, top_p=self.top_p, max_new_tokens=limit)


@dataclass(frozen=True)
class Reply:
    """An answer and what it took.

    `ended`: by the model (`end`), at the token limit (`limit`), or by Ctrl-C (`stopped`). Milliseconds: `prefill_ms`
    to the first token, `decode_ms` from there to the last. `trace` is None without pruning; `visual_start` is the
    prompt position of the first visual token, None without an image.
    """

    text: str
    ended: Literal["end", "limit", "stopped"]
    prompt_tokens: int
    new_tokens: int
    prefill_ms: float
    decode_ms: float
    trace: PruningTrace | None
    visual_start: int | None


@dataclass(frozen=True)
class SeenImage:
    """An image after the vision tower: its name, its width and height, its projected features `[V, D]`."""

    name: str
    size: tuple[int, int]
    features: torch.Tensor


class Chat:
    """One conversation. Every turn reads the whole prompt again, image included: simple, and exact under pruning.

    `loaded` is what `load_pretrained_model` returns; `pruning` is applied while `pruning_on`.
    """

    def __init__(
        self,
        loaded: tuple,
        conv_mode: str,
        pruning: PruningConfig,
        sampling: Sampling | None = None,
        pruning_on: bool = True,
    ):
        self.tokenizer, self.model, self.image_processor, self.context_len = loaded
        self.conv_mode = conv_mode
        self.pruning = pruning
        self.pruning_on = pruning_on
        self.sampling = sampling or Sampling()
        self.image: SeenImage | None = None
        self.last: Reply | None = None
        self.clear()

    def clear(self) -> None:
        """Forget what was said; the image stays."""
        self.conversation: Conversation = conv_templates[self.conv_mode].copy()

    @property
    def turns(self) -> int:
        """Questions answered since the conversation began."""
        return (len(self.conversation.messages) - self.conversation.offset) // 2

    @torch.no_grad()
    def see(self, image: Image.Image, name: str) -> SeenImage:
        """Run the vision tower over an RGB picture and begin a new conversation about it."""
        pixels = process_images([image], self.image_processor, self.model.config)
        features = self.model.encode_images(pixels.to(self.model.device, self.model.dtype))[0]
        self.image = SeenImage(name, image.size, features)
        self.clear()
        return self.image

    def ask(self, question: str, on_text: Callable[[str], None] | None = None) -> Reply:
        """Answer a question, passing the text on as it is written; Ctrl-C ends the answer and keeps what there is.

        Raises:
            ValueError: an empty question, one that holds the image marker, or a conversation longer than the context.
                The conversation is as it was before.

        """
        conversation = self._with(question)
        ids = tokenizer_image_token(conversation.get_prompt(), self.tokenizer, return_tensors="pt")
        start = ids.tolist().index(IMAGE_TOKEN_INDEX) if IMAGE_TOKEN_INDEX in ids else None
        length = len(ids) if start is None else len(ids) - 1 + len(self.image.features)
        room = self.context_len - length
        if room < 1:
            raise ValueError(
                f"the conversation has {length} tokens with its image, the model takes {self.context_len}: "
                "start over with /clear, or ask something shorter"
            )
        limit = min(self.sampling.max_new_tokens, room)
        stop_string = _stop_string(conversation)
        stream = AnswerStream(self.tokenizer, on_text, stop_string)
        features = None if start is None else [self.image.features]
        begun = time.perf_counter()
        interrupted, trace = self._generate(ids, features, stream, limit, stop_string)
        ended_at = time.perf_counter()
        first_at = stream.first_at or ended_at
        if stream.text:
            # a marker in an answer would count as an image in every later prompt
            conversation.messages[-1][1] = stream.text.replace(DEFAULT_IMAGE_TOKEN, "image")
            self.conversation = conversation
        self.last = Reply(
            text=stream.text,
            ended="stopped" if interrupted else "limit" if self._cut(stream, limit) else "end",
            prompt_tokens=length,
            new_tokens=stream.tokens,
            prefill_ms=1000 * (first_at - begun),
            decode_ms=1000 * (ended_at - first_at),
            trace=trace,
            visual_start=start,
        )
        return self.last

    def _with(self, question: str) -> Conversation:
        question = question.strip()
        if not question:
            raise ValueError("the question is empty")
        if DEFAULT_IMAGE_TOKEN in question:
            raise ValueError(f"the question holds {DEFAULT_IMAGE_TOKEN}, the image's place: load images with /image")
        if self.image is not None and self.turns == 0:
            marker = DEFAULT_IMAGE_TOKEN
            if self.model.config.mm_use_im_start_end:
                marker = DEFAULT_IM_START_TOKEN + marker + DEFAULT_IM_END_TOKEN
            question = f"{marker}\n{question}"
        conversation = self.conversation.copy()
        conversation.append_message(conversation.roles[0], question)
        conversation.append_message(conversation.roles[1], None)
        return conversation

    def _generate(self, ids, features, stream, limit, stop_string) -> tuple[bool, PruningTrace | None]:
        """Run the model over ids `[L]`; return whether Ctrl-C ended it, and the trace."""
        session = None
        with stop_on_interrupt() as stop:
            criteria = [StopOnRequest(stop)]
            if stop_string:
                criteria.append(KeywordsStoppingCriteria([stop_string], self.tokenizer))
            inputs = ids[None].to(self.model.device)
            arguments = {
                "attention_mask": torch.ones_like(inputs),
                "image_features": features,
                "streamer": stream,
                "stopping_criteria": criteria,
                "generation_config": self.sampling.generation_config(limit),
            }
            try:
                if self.pruning_on:
                    with prune(self.model, self.pruning) as session:
                        self.model.generate(inputs, **arguments)
                else:
                    self.model.generate(inputs, **arguments)
            except KeyboardInterrupt:
                stop.set()
                stream.end()
        return stop.is_set(), session.traces[-1] if session and session.traces else None

    def _cut(self, stream: AnswerStream, limit: int) -> bool:
        ends = self.model.generation_config.eos_token_id
        return stream.tokens >= limit and stream.last_token not in (ends if isinstance(ends, list) else [ends])


def _stop_string(conversation: Conversation) -> str | None:
    """Return the text that ends a turn where that is not the tokenizer's own end token."""
    styles = (SeparatorStyle.SINGLE, SeparatorStyle.MPT, SeparatorStyle.PLAIN)
    return conversation.sep if conversation.sep_style in styles else None
