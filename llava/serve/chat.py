"""`Chat`: a conversation with a model about an image, a video or both, pruned or not; no terminal in here."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from PIL import Image
from transformers import GenerationConfig

from llava.mm_utils import KeywordsStoppingCriteria
from llava.model.inputs import ImageFeatures, ProcessedImage, Turn
from llava.model.loaded import LoadedModel
from llava.model.pruning import PruningConfig, PruningSession, PruningTrace, prune
from llava.model.pruning.methods import NoPruning
from llava.model.pruning.prefix_cache import CACHE_BYTES, PrefixCache
from llava.model.videos import Video

from .generation import AnswerStream, StopOnRequest, stop_on_interrupt


@dataclass(frozen=True)
class Sampling:
    """Sampling settings: greedy at temperature 0; `top_p` None: the model's own setting."""

    temperature: float = 0.0
    top_p: float | None = None
    max_new_tokens: int = 512

    def generation_config(self, limit: int) -> GenerationConfig:
        """Return the settings of an answer of at most `limit` tokens; the model's own fill what is not set here."""
        if self.temperature == 0:
            # neutral values in place of the checkpoint's, which would raise a warning that they have no effect
            return GenerationConfig(do_sample=False, temperature=1.0, top_p=1.0, top_k=50, max_new_tokens=limit)
        return GenerationConfig(do_sample=True, temperature=self.temperature, top_p=self.top_p, max_new_tokens=limit)


@dataclass(frozen=True)
class Reply:
    """An answer with its trace and times.

    `ended`: by the model (`end`), at the token limit (`limit`), or by Ctrl-C (`stopped`). Milliseconds: `prefill_ms`
    to the first token, `decode_ms` from there to the last. `trace` is None without pruning; `visual_start` is the
    prompt position of the first visual token, and `grid` its image's rows and columns of visual tokens where they are
    one grid; None without an image.
    """

    text: str
    ended: Literal["end", "limit", "stopped"]
    prompt_tokens: int
    new_tokens: int
    prefill_ms: float
    decode_ms: float
    trace: PruningTrace | None
    visual_start: int | None
    grid: tuple[int, int] | None = None


@dataclass(frozen=True)
class ShownImage:
    """The image or video of a conversation: name, width and height, prepared pixels, features.

    `source`: a video's frames, None for an image.
    """

    name: str
    size: tuple[int, int]
    picture: ProcessedImage
    seen: ImageFeatures
    source: Video | None = None


class Chat:
    """One conversation. Every turn is a full prompt with image, video and earlier turns, so pruning is exact.

    `pruning` is applied while `pruning_on`. What a prompt has in common with the one before is kept, in at most
    `prefix_cache_bytes`, and not computed again, also without pruning. None: prompts run whole.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        pruning: PruningConfig,
        sampling: Sampling | None = None,
        pruning_on: bool = True,
        prefix_cache_bytes: int | None = CACHE_BYTES,
    ):
        self.tokenizer, self.model = loaded.tokenizer, loaded.model
        self.inputs, self.context_len = loaded.inputs, loaded.context_len
        self.pruning = pruning
        self.pruning_on = pruning_on
        self.sampling = sampling or Sampling()
        self.image: ShownImage | None = None
        self.video: ShownImage | None = None
        self.last: Reply | None = None
        self.said: list[Turn] = []
        self._prefixes = None if prefix_cache_bytes is None else PrefixCache(prefix_cache_bytes)

    def set_pruning(self, config: PruningConfig | Mapping[str, Any] | str) -> None:
        """Prune by another config from the next question on; `ValueError`: one that this model cannot run."""
        layers = self.model.config.get_text_config().num_hidden_layers
        config = PruningConfig.of(config)
        config.check_layers(layers)
        with prune(self.model, config):  # refuses what the model cannot run
            pass
        self.pruning = config.resolved(layers)

    def clear(self) -> None:
        """Clear the conversation; image and video stay."""
        self.said = []

    @property
    def turns(self) -> int:
        """Questions answered since the conversation began."""
        return len(self.said)

    @property
    def shown(self) -> list[ShownImage]:
        """The image and the video, in the order of a prompt."""
        return [one for one in (self.image, self.video) if one is not None]

    @torch.no_grad()
    def see(self, image: Image.Image | Video, name: str) -> ShownImage:
        """Set the RGB image, or the video, and begin a new conversation; the other one stays.

        Raises `ValueError` for a video where the model takes none.
        """
        is_video = isinstance(image, Video)
        if is_video and self.inputs.video_marker is None:
            raise ValueError("this model takes no videos: show it an image")
        picture = self.inputs.prepare(image)
        [seen] = self.inputs.encode_images(self.model, [picture])
        if is_video:
            height, width = image.frames.shape[1:3]
            self.video = ShownImage(name, (width, height), picture, seen, image)
        else:
            self.image = ShownImage(name, image.size, picture, seen)
        self.clear()
        return self.video if is_video else self.image

    def ask(self, question: str, on_text: Callable[[str], None] | None = None) -> Reply:
        """Answer a question, passing the text on as it is written; Ctrl-C ends the answer and keeps what there is.

        Raises:
            ValueError: an empty question, one that holds the image marker, or a conversation longer than the context.
                The conversation is as it was before.

        """
        turn = self._turn(question)
        row = self.inputs.encode([*self.said, turn])
        seen = [one.seen for one in self.shown] if self.said or turn.images or turn.videos else []
        length = self.inputs.length(row, seen)
        room = self.context_len - length
        if room < 1:
            raise ValueError(
                f"the conversation has {length} tokens with what it shows, the model takes {self.context_len}: "
                "start over with /clear, or ask something shorter"
            )
        limit = min(self.sampling.max_new_tokens, room)
        stream = AnswerStream(self.tokenizer, on_text, [self.inputs.stop_string])
        begun = time.perf_counter()
        interrupted, trace = self._generate(row, seen, stream, limit)
        ended_at = time.perf_counter()
        first_at = stream.first_at or ended_at
        if stream.text:
            # a marker in an answer would count as an image in every later prompt
            self.said = [*self.said, replace(turn, answer=self.inputs.clean(stream.text))]
        self.last = Reply(
            text=stream.text,
            ended="stopped" if interrupted else "limit" if self._cut(stream, limit) else "end",
            prompt_tokens=length,
            new_tokens=stream.tokens,
            prefill_ms=1000 * (first_at - begun),
            decode_ms=1000 * (ended_at - first_at),
            trace=trace,
            visual_start=self.inputs.visual_start(row, seen),
            grid=seen[0].grid if len(seen) == 1 else None,
        )
        return self.last

    def _turn(self, question: str) -> Turn:
        question = question.strip()
        if not question:
            raise ValueError("the question is empty")
        try:
            question.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"the question is not valid UTF-8 at character {error.start + 1}: ask it again") from None
        held = next((word for word in self.inputs.reserved if word in question), None)
        if held is not None:
            raise ValueError(f"the question holds {held}, the image's place: load images with /image")
        first = self.turns == 0
        return Turn(question, int(first and self.image is not None), videos=int(first and self.video is not None))

    def _generate(self, row, seen, stream, limit) -> tuple[bool, PruningTrace | None]:
        """Run the model over a prompt; return whether Ctrl-C ended it, and the trace."""
        session = None
        with stop_on_interrupt() as stop:
            criteria = [StopOnRequest(stop)]
            if self.inputs.stop_string:
                criteria.append(KeywordsStoppingCriteria([self.inputs.stop_string], self.tokenizer))
            arguments = {
                "streamer": stream,
                "stopping_criteria": criteria,
                "generation_config": self.sampling.generation_config(limit),
            }
            try:
                with self._session() as session:
                    if session and seen and any(stage.reads_vision for stage in session.config.stages):
                        with torch.no_grad():  # the method watches the vision tower, so all is seen once more
                            seen = self.inputs.encode_images(self.model, [one.picture for one in self.shown])
                    self.model.generate(**self.inputs.collate([row], [seen], self.model), **arguments)
            except KeyboardInterrupt:
                stop.set()
                stream.end()
        return stop.is_set(), session.traces[-1] if self.pruning_on and session and session.traces else None

    def _session(self) -> AbstractContextManager[PruningSession | None]:
        """Return the session for a prompt, pruned or dense, with the prefix cache of earlier prompts."""
        if not self.pruning_on and self._prefixes is None:
            return nullcontext()
        return prune(self.model, self.pruning if self.pruning_on else NoPruning(), prefix_cache=self._prefixes)

    def _cut(self, stream: AnswerStream, limit: int) -> bool:
        ends = self.model.generation_config.eos_token_id
        return stream.tokens >= limit and stream.last_token not in (ends if isinstance(ends, list) else [ends])
