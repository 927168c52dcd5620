"""One pass that prunes nothing and writes down the influence of every visual token in every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from tqdm import tqdm

from llava.eval.runner.answering import Answerer, Generation
from llava.eval.runner.batches import Batch
from llava.eval.runner.running import Loaded
from llava.files import replacing
from llava.model.pruning import PruningConfig
from llava.model.pruning.influence import Influence, Measurement
from llava.model.pruning.methods.relative_influence import RelativeInfluence
from llava.model.pruning.policy import Policy
from llava.model.pruning.probes import LayerStates


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


@dataclass(frozen=True)
class _Watch(PruningConfig):
    prompts: list[list[_Found]] = field(default_factory=list)

    method: ClassVar[str] = "watch"

    def to_dict(self) -> dict[str, Any]:
        return {"method": self.method}

    def start(self, num_layers: int) -> Policy:
        self.prompts.append([])
        return _Prompt(self.prompts[-1])


class _Prompt(Policy):
    def __init__(self, found: list[_Found]):
        self.found = found

    def probe(self, layer: int) -> Influence | None:
        return _WithOutput() if layer >= 0 else None

    def keep(self, layer: int, positions: np.ndarray, measured: _Found | None) -> None:
        if measured is not None:
            self.found.append(measured)


def watch(loaded: Loaded, batches: Sequence[Batch]) -> Watched:
    """Read all prompts once.

    Raises `ValueError` for a question that cannot be asked.
    """
    cosine, l2, output, tokens = [], [], [], []
    config = _Watch()
    how = Generation(max_new_tokens=1)
    with Answerer(loaded.model, loaded.inputs, loaded.name, config, how) as answerer:
        for batch in tqdm(batches, desc="influence of all layers", unit="batch"):
            lines, bad = answerer.answer(batch)
            if bad:
                raise ValueError(f"{bad[0].question.where}: {bad[0].reason}")
            found = config.prompts[-len(lines) :]
            for prompt, line in zip(found, lines, strict=True):
                if not prompt:
                    raise ValueError("a prompt has no visual tokens that the decoder could read")
                cosine.append(np.stack([layer.cosine for layer, _ in prompt]))
                l2.append(np.stack([layer.l2 for layer, _ in prompt]))
                output.append(np.array([norm for _, norm in prompt]))
                tokens.append(line["metadata"]["prompt_tokens"])
            config.prompts.clear()
    return Watched(cosine, l2, output, np.array(tokens))
