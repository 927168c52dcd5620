"""One pass that prunes nothing and writes down the influence of every visual token in every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from llava.eval.runner.answering import Answerer, Generation
from llava.eval.runner.batches import Batch
from llava.eval.runner.running import Loaded
from llava.files import replacing
from llava.model.pruning import PromptState
from llava.model.pruning.influence import Influence, Measurement, RelativeInfluence
from llava.model.pruning.probes import LayerStates
from llava.model.pruning.record import Recorder


@dataclass(frozen=True)
class Watched:
    """Influence in an unpruned prefill, by prompt; and what the prompts are.

    cosine:
        cos(O, O − c_j) of visual token j, fp32 [layers, V] each
    l2:
        ‖c_j‖, alike
    output:
        ‖O‖, fp32 [layers] each
    tokens:
        int [prompts], all tokens of each prompt
    """

    cosine: list[np.ndarray]
    l2: list[np.ndarray]
    output: list[np.ndarray]
    tokens: np.ndarray

    def in_scale(self, scale: str) -> Watched:
        """Return the same with `l2` as `VisiPruner.tokens_scale` has it: `absolute`, or `relative`, divided by ‖O‖."""
        if scale == "absolute":
            return self
        l2 = [one / norm[:, None] for one, norm in zip(self.l2, self.output, strict=True)]
        return replace(self, l2=l2)

    def save(self, path: Path) -> None:
        """Write to an .npz, whole or not at all."""
        parts = {f"{name} {n}": one for name in _LISTS for n, one in enumerate(getattr(self, name))}
        with replacing(path, "wb") as file:
            np.savez(file, tokens=self.tokens, **parts)

    @classmethod
    def read(cls, path: Path) -> Watched:
        """Read what `save` wrote."""
        with np.load(path) as parts:
            count = len(parts["tokens"])
            found = {name: [parts[f"{name} {n}"] for n in range(count)] for name in _LISTS}
            return cls(**found, tokens=parts["tokens"])


_LISTS = ("cosine", "l2", "output")


@dataclass(frozen=True)
class _WithOutput(RelativeInfluence):
    """As `Influence`, and ‖O‖ beside it."""

    def results(self, states: LayerStates, prompts: tuple[int, ...], arrays: Sequence[np.ndarray]) -> list[_Found]:
        return list(zip(Influence.results(self, states, prompts, arrays), arrays[1], strict=True))


_Found = tuple[Measurement, np.float32]


def recorder() -> Recorder:
    """Return the config that prunes nothing and measures the influence, and ‖O‖, of every layer."""
    return Recorder(_WithOutput())


def figures(prompt: PromptState) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return cosine and L2 [layers, V], and ‖O‖ [layers], of a prompt that `recorder()` measured."""
    layers = [*prompt.memory["recorded"].measured.values()]
    return (
        np.stack([layer.cosine for layer, _ in layers]),
        np.stack([layer.l2 for layer, _ in layers]),
        np.array([norm for _, norm in layers]),
    )


def watch(loaded: Loaded, batches: Sequence[Batch]) -> Watched:
    """Read all prompts once.

    Raises `ValueError` for a question that cannot be asked.
    """
    cosine, l2, output, tokens = [], [], [], []
    how = Generation(max_new_tokens=1)
    with Answerer(loaded, recorder(), how) as answerer:
        for batch in tqdm(batches, desc="influence of all layers", unit="batch"):
            lines, bad = answerer.answer(batch)
            if bad:
                raise ValueError(f"{bad[0].question.where}: {bad[0].reason}")
            for prompt, line in zip(answerer.policies, lines, strict=True):
                if not prompt.visual_tokens:
                    raise ValueError("a prompt has no visual tokens that the decoder could read")
                for column, part in zip((cosine, l2, output), figures(prompt), strict=True):
                    column.append(part)
                tokens.append(line["metadata"]["prompt_tokens"])
    return Watched(cosine, l2, output, np.array(tokens))
