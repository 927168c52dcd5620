"""`Subject` and `Prompt`: a model under analysis and prompts for it, the start of every notebook.

    subject = Subject.load("playground/checkpoints/llava-tiny")
    prompt = subject.prompt("docs/scene.png", "What is written on the sign?")

`prompt.inputs` goes to the analyses, `prompt.view` to their figures; `prompt.words` says which token is where.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel

from llava.cli import ModelOptions
from llava.model.images import read_image, to_rgb
from llava.model.inputs import Inputs, Turn
from llava.model.loaded import LoadedModel
from llava.model.pruning import PruningConfig, PruningTrace, prune

from .views import View, view_of


@dataclass(frozen=True, eq=False)
class Prompt:
    """One prompt, ready for a model.

    `inputs`: keywords of the model's `generate`; `words`: the text of every token, in the decoder's order, "" at tokens
    that stand for an image; `view`: its pictures, and where its visual tokens lie on them.
    """

    inputs: Mapping[str, Any]
    words: tuple[str, ...]
    view: View

    def find(self, text: str) -> list[int]:
        """Return the positions of the tokens that last write `text`, whitespace aside; `ValueError` if none do."""
        wanted = "".join(text.split())
        for end in range(len(self.words), 0, -1):
            written = ""
            for start in range(end - 1, -1, -1):
                if not self.words[start]:
                    break
                written = "".join(self.words[start].split()) + written
                if written == wanted:
                    return list(range(start, end))
                if not wanted.endswith(written):
                    break
        raise ValueError(f"no tokens of the prompt write {text!r}; its words are {' '.join(self.words).split()}")


@dataclass(frozen=True, eq=False)
class Answer:
    """A greedy answer: text, new token ids (without the end token), and the pruning trace (None if dense)."""

    text: str
    ids: tuple[int, ...]
    trace: PruningTrace | None


@dataclass(frozen=True, eq=False)
class Subject:
    """A loaded model and its `Inputs`."""

    loaded: LoadedModel

    @classmethod
    def load(cls, model_path: str | Path, **options: Any) -> Subject:
        """Load a checkpoint in any layout that `load_pretrained_model` knows; `options`: fields of `ModelOptions`."""
        return cls(LoadedModel.from_path(ModelOptions(model_path=str(model_path), **options)))

    @property
    def model(self) -> PreTrainedModel:
        """The model."""
        return self.loaded.model

    @property
    def inputs(self) -> Inputs:
        """How it takes questions and images."""
        return self.loaded.inputs

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.loaded.tokenizer

    def prompt(self, image: str | Path | Image.Image | None, question: str) -> Prompt:
        """Return the prompt of a question about one image (PIL image or path), or without an image.

        Raises `ValueError` for a prompt longer than the model takes, and what `Inputs` refuses.
        """
        pictures = [] if image is None else [to_rgb(image) if isinstance(image, Image.Image) else read_image(image)]
        row = self.inputs.encode([Turn(question, len(pictures))])
        with torch.no_grad():
            seen = self.inputs.encode_images(self.model, [self.inputs.prepare(picture) for picture in pictures])
        length, limit = self.inputs.length(row, seen), self.inputs.limit
        if limit is not None and length > limit:
            raise ValueError(f"the prompt has {length} tokens, the model takes {limit}: shorten the question")
        following, words = iter(seen), []
        for token in row:
            image_here = token == self.inputs.marker
            words += [""] * next(following).tokens if image_here else [self.tokenizer.decode([token])]
        view = view_of(self.model, self.inputs, pictures, seen)
        return Prompt(self.inputs.collate([row], [seen], self.model), tuple(words), view)

    def answer(
        self, prompt: Prompt, config: PruningConfig | Mapping[str, Any] | str | None = None, max_new_tokens: int = 16
    ) -> Answer:
        """Answer greedily, pruned where a config is given."""
        arguments = {"max_new_tokens": max_new_tokens, "do_sample": False, "num_beams": 1}
        arguments |= {"temperature": None, "top_p": None, "top_k": None, "pad_token_id": self.tokenizer.pad_token_id}
        if config is None:
            traces: list[PruningTrace] = []
            output = self.model.generate(**prompt.inputs, **arguments)
        else:
            with prune(self.model, config) as session:
                output = self.model.generate(**prompt.inputs, **arguments)
            traces = session.traces
        ids = self.inputs.new_tokens(output, dict(prompt.inputs))[0].tolist()
        ends = self.model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list | tuple) else [ends])
        ids = ids[: next((place for place, token in enumerate(ids) if token in ends), len(ids))]
        return Answer(self.inputs.decode([ids])[0], tuple(ids), traces[0] if traces else None)

    def continued(self, prompt: Prompt, ids: Sequence[int]) -> Prompt:
        """Return the prompt followed by new tokens, as the model sees it after generating them.

        The state of position −1 − k is then that of decoding step `len(ids)` − k; step 0 is the prompt itself.
        """
        words = prompt.words + tuple(self.tokenizer.decode([token]) for token in ids)
        return replace(prompt, inputs=continued(prompt.inputs, ids), words=words)


def continued(inputs: Mapping[str, Any], ids: Sequence[int]) -> dict[str, Any]:
    """Append text tokens to the one prompt of `inputs`.

    Raises `ValueError` for several prompts, and for prompts given as embeddings.
    """
    name = next((name for name in ("inputs", "input_ids") if name in inputs), None)
    if name is None or len(inputs[name]) != 1:
        raise ValueError("tokens can be appended to one prompt of token ids: give inputs of one prompt")
    new = inputs[name].new_tensor([list(ids)])
    made = dict(inputs) | {name: torch.cat([inputs[name], new], 1)}
    for key, value in (("attention_mask", 1), ("mm_token_type_ids", 0)):
        if key in inputs:
            made[key] = torch.cat([inputs[key], torch.full_like(new, value, dtype=inputs[key].dtype)], 1)
    return made
