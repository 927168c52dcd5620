"""Schedules that a model was trained with: visual tokens enter late, are thinned, leave early; or never run at all.

Layers run visual tokens from `enter` on, fewer of them from each layer of `keep` on, none from `exit` on. Tokens that
enter carry what the projector made of the image, at the positions that wait for them in the prompt; no weight is added.
With `frozen` they stay as the projector made them in every layer: those in `read` make keys and values of them, which
text rows read beside their own; all other layers are blind to the image.

HiDrop (arXiv 2602.23699): `enter`, `keep` and `exit`. Its 7B is {"enter": 8, "keep": {"10": 87, "14": 10, "16": 5,
"18": 1}, "exit": 24}; its own flags count two of these from 1 (`late_entry_layer` 9, `early_exit_layer` 25) and one
from 0 (`layer_list`). ViCA (arXiv 2602.07574): {"frozen": true, "read": [0, 1, 7, 8, 9, 10, 11, 14], "system": "zero"}
for the 7B; the 13B reads in 0, 6, 8, 9, 10, 13, 14, 16, the 3B in 0, 1, 14, 15, 18, 19, 21, 22, 23, without `system`.

The original codes run one image of 576 tokens, HiDrop at batch size 1 and with flash-attention 2 alone, ViCA with masks
in eager attention while training. HiDrop ranks with scores rounded to the model's dtype, so that in half precision more
tokens tie; here they are fp32. In its training, a batch that mixes image and text samples takes the number of tokens
of one sample for another. ViCA's training code zeroes the attention of the first 576 rows of a prompt without image,
and its accelerated code of 3B and 13B that of system rows in later layers; here such prompts run dense, and such rows
attend. A label right behind an image (the first token of a caption, in LLaVA's first stage) belongs to the last visual
token, and counts only where that token runs to the end: HiDrop lets the token before the image predict it, ViCA what
the projector made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch

from ..influence import AnswerInfluence, Influence
from ..method import EXIT, AtLeast, AttentionRule, Count, Layer, Method, PromptState, Selection
from ..probes import AttentionProbe, Probe


class Step(NamedTuple):
    """From `layer` on, this many visual tokens run."""

    layer: Annotated[int, AtLeast(1)]
    count: Count


def leading(scores: np.ndarray, count: int) -> np.ndarray:
    """Return bool [V]: the tokens that fewer than `count` others beat; where scores tie at the border, all of them."""
    return np.searchsorted(np.sort(-scores), -scores) < count


@dataclass(frozen=True)
class Schedule(Method, name="schedule"):
    """Run visual tokens in some layers only, ever fewer of them; or frozen ones in none.

    enter:
        first layer that runs visual tokens
    keep:
        visual tokens that run from a layer on, by layer: {"10": 87, "14": 10}
    exit:
        first layer without visual tokens; None: they stay to the end
    rank:
        what chooses them: `attention` by that layer's own norm, query and key projection, heads averaged; `influence`
        (L2, see `influence`) in the layer before; `random`. Rows that ask are the last prompt token, and where labels
        are given the token before each answer, averaged; a prompt whose labels mark no answer is not thinned
    frozen:
        visual tokens never run; goes with `read` and `system` alone
    read:
        layers in which text reads frozen tokens; None: all
    system:
        text rows before the first image: `dense`, or `zero`, their attention output is 0 in every layer
    seed:
        of `random`; prompts with equally many visual tokens draw the same, except where labels are given: then every
        draw is another, by torch's generator
    """

    enter: Layer = 0
    keep: tuple[Step, ...] = ()
    exit: Layer | None = None
    rank: Literal["attention", "influence", "random"] = "attention"
    frozen: bool = False
    read: tuple[Layer, ...] | None = None
    system: Literal["dense", "zero"] = "dense"
    seed: Count = 0

    def __post_init__(self):
        if isinstance(self.keep, Mapping):
            steps = ((int(key) if str(key).isdigit() else key, count) for key, count in self.keep.items())
            object.__setattr__(self, "keep", tuple(steps))
        super().__post_init__()

    def to_dict(self) -> dict[str, Any]:
        """Return the settings, `keep` as it is written in JSON."""
        settings = super().to_dict()
        return settings | {"keep": {str(layer): count for layer, count in self.keep}}

    def check(self) -> None:
        if self.rectify:
            raise ValueError(
                "'rectify' counts tokens that were dropped; those of method 'schedule' enter late or return"
            )
        if not (self.frozen or self.enter or self.keep or self.exit is not None):
            raise ValueError("method 'schedule' needs 'enter', 'keep', 'exit' or 'frozen' in the pruning config")
        if self.frozen and (self.enter or self.keep or self.exit is not None):
            raise ValueError("'frozen' tokens run in no layer: leave 'enter', 'keep' and 'exit' out, and give 'read'")
        if self.read is not None and not self.frozen:
            raise ValueError("'read' names the layers that read frozen tokens: give 'frozen': true, too")
        steps = [(self.enter, None), *self.keep] + ([] if self.exit is None else [(self.exit, 0)])
        for (layer, count), (later, fewer) in pairwise(steps):
            if later <= layer:
                raise ValueError(f"'enter', 'keep' and 'exit' must rise from layer to layer, got {later} after {layer}")
            if count is not None and fewer > count:
                raise ValueError(f"'keep' must fall from layer to layer, got {fewer} after {count}")

    def layer_settings(self) -> dict[str, int | tuple[int, ...]]:
        """Return the settings that are layers, those of `keep` among them."""
        return super().layer_settings() | {"keep": tuple(layer for layer, _ in self.keep)}

    def attention(self, layer: int) -> AttentionRule:
        return AttentionRule(before=self.system)

    def reads(self, layer: int) -> bool:
        return self.read is None or layer in self.read

    def probe(self, layer: int, prompt: PromptState) -> Probe | None:
        count = dict(self.keep).get(layer + 1, 0)
        if self.rank == "random" or not 0 < count < len(prompt.positions) or prompt.answers == 0:
            return None
        if self.rank == "influence":
            return Influence() if prompt.answers is None else AnswerInfluence()
        return AttentionProbe("last" if prompt.answers is None else "answers", ahead=True)

    def select(self, layer: int, prompt: PromptState, measured: Any) -> np.ndarray | Selection | None:
        if layer + 1 == self.exit:
            return EXIT
        count = dict(self.keep).get(layer + 1)
        if count is None or count >= len(prompt.positions) or prompt.answers == 0:
            return None
        if count == 0:
            return EXIT
        return leading(self._scores(prompt, measured), count)

    def _scores(self, prompt: PromptState, measured: Any) -> np.ndarray:
        if self.rank == "influence":
            return measured.l2
        if self.rank == "attention":
            return measured.last if prompt.answers is None else measured.answers
        seed = self.seed if prompt.answers is None else int(torch.randint(2**31, ()))
        return np.random.default_rng(seed).permutation(len(prompt.positions)).astype(np.float32)
