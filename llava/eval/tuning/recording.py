"""Record the influence of every visual token in every layer, in one dense pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from llava.cli import GenerationOptions, UserError
from llava.eval.runner.answering import Answerer
from llava.eval.runner.batches import Batch
from llava.files import replacing
from llava.model.loaded import LoadedModel
from llava.model.pruning import PromptState
from llava.model.pruning.influence import Influence, Measurement, RelativeInfluence
from llava.model.pruning.probes import LayerStates
from llava.model.pruning.record import recorder

LISTS = ("cosine", "l2", "output")
SCALES = ("absolute", "relative")


@dataclass(frozen=True)
class Recording:
    """Influence in an unpruned prefill, by prompt.

    cosine:
        cos(O, O − c_j) of visual token j, fp32 [layers, V] each
    l2:
        ‖c_j‖, of the same shape
    output:
        ‖O‖, fp32 [layers] each
    tokens:
        int [prompts], all tokens of each prompt
    """

    cosine: list[np.ndarray]
    l2: list[np.ndarray]
    output: list[np.ndarray]
    tokens: np.ndarray

    def in_scale(self, scale: str) -> Recording:
        """Return it with `l2` in a `VisiPruner.tokens_scale`: `absolute`, or `relative`, divided by ‖O‖."""
        if scale == "absolute":
            return self
        return replace(self, l2=[one / norm[:, None] for one, norm in zip(self.l2, self.output, strict=True)])

    def filter_layers(self, start: int, layer_threshold: float) -> np.ndarray:
        """Return each prompt's filter layer if layers from `start` on are probed, int [prompts]; `layers` for none."""
        below = self._lowest < layer_threshold
        below[:, :start] = False
        return np.where(below.any(1), below.argmax(1), below.shape[1])

    @cached_property
    def _lowest(self) -> np.ndarray:
        return np.array([one.min(1) for one in self.cosine])  # [prompts, layers]

    def kept(self, filter_layers: np.ndarray, scale: str, threshold: float) -> float:
        """Return the mean number of tokens that a threshold keeps at the prompts' filter layers."""
        pairs = zip(self.in_scale(scale).l2, filter_layers, strict=True)
        return float(np.mean([(l2[layer] > threshold).sum() for l2, layer in pairs if layer < len(l2)]))

    def save(self, path: Path) -> None:
        """Write to an .npz, whole or not at all."""
        parts = {f"{name} {n}": one for name in LISTS for n, one in enumerate(getattr(self, name))}
        with replacing(path, "wb") as file:
            np.savez(file, tokens=self.tokens, **parts)

    @classmethod
    def read(cls, path: Path) -> Recording:
        """Read what `save` wrote."""
        with np.load(path) as parts:
            lists = {name: [parts[f"{name} {n}"] for n in range(len(parts["tokens"]))] for name in LISTS}
            return cls(**lists, tokens=parts["tokens"])

    @classmethod
    def of(cls, prompts: Sequence[PromptState], tokens: Sequence[int]) -> Recording:
        """Collect what a session with the config `RECORDER` measured; tokens: of each prompt."""
        columns: dict[str, list[np.ndarray]] = {name: [] for name in LISTS}
        for prompt in prompts:
            layers = [*prompt.memory["recorded"].measured.values()]
            if not layers:
                raise UserError("a prompt has no visual tokens that the decoder could read")
            columns["cosine"].append(np.stack([influence.cosine for influence, _ in layers]))
            columns["l2"].append(np.stack([influence.l2 for influence, _ in layers]))
            columns["output"].append(np.array([norm for _, norm in layers]))
        return cls(**columns, tokens=np.array(tokens))


@dataclass(frozen=True)
class InfluenceAndOutput(RelativeInfluence):
    """The results of `Influence`, each with ‖O‖."""

    def results(
        self, states: LayerStates, prompts: tuple[int, ...], arrays: Sequence[np.ndarray]
    ) -> list[tuple[Measurement, np.float32]]:
        """Return (influence, ‖O‖) of each prompt."""
        return list(zip(Influence.results(self, states, prompts, arrays), arrays[1], strict=True))


RECORDER = recorder(InfluenceAndOutput())


def record(path: Path, loaded: LoadedModel, batches: Sequence[Batch]) -> Recording:
    """Run one prefill of all prompts and write the recording to `path`; `UserError` for a prompt that cannot be run."""
    prompts, tokens = [], []
    with Answerer(loaded, RECORDER, GenerationOptions(max_new_tokens=1)) as answerer:
        for batch in tqdm(batches, desc="influence of all layers", unit="batch"):
            lines, bad = answerer.answer(batch)
            if bad:
                raise bad[0].refusal()
            prompts += answerer.policies
            tokens += [line["metadata"]["prompt_tokens"] for line in lines]
    recording = Recording.of(prompts, tokens)
    recording.save(path)
    return recording


def scales_of(recording: Recording, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a chosen threshold in both scales: the thresholds that keep as many tokens, and ‖O‖ where prompts filter.

    `output` has the 5th, 50th and 95th percentile of ‖O‖, `kept` the mean number of tokens of the unpruned pass.
    """
    layers = recording.filter_layers(settings["shallow_mid_layer"], settings["layer_threshold"])
    prompts = [prompt for prompt, layer in enumerate(layers) if layer < len(recording.cosine[prompt])]
    own = settings.get("tokens_scale", "absolute")
    kept = recording.kept(layers, own, settings["tokens_threshold"])
    norms = [float(recording.output[prompt][layers[prompt]]) for prompt in prompts]
    result = {"kept": kept, "output": [float(value) for value in np.percentile(norms, (5, 50, 95))]}
    for scale in SCALES:
        values = recording.in_scale(scale).l2
        descending = np.sort(np.concatenate([values[prompt][layers[prompt]] for prompt in prompts]))[::-1]
        place = min(round(kept * len(prompts)), len(descending) - 1)
        result[scale] = settings["tokens_threshold"] if scale == own else float(f"{descending[place]:.3g}")
    return result


def transfer(recording: Recording, settings: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return the number of tokens that another model's threshold, in either scale, and this model's own keep here.

    other: the record of that model's calibration. `better` is the scale whose count is closer, by ratio.
    """
    layers = recording.filter_layers(settings["shallow_mid_layer"], settings["layer_threshold"])
    own = recording.kept(layers, settings.get("tokens_scale", "absolute"), settings["tokens_threshold"])
    kept = {scale: recording.kept(layers, scale, other["scale"][scale]) for scale in SCALES}
    off = {scale: abs(np.log((count + 0.5) / (own + 0.5))) for scale, count in kept.items()}
    better = min(off, key=off.__getitem__) if off["absolute"] != off["relative"] else "neither"
    counts = {f"{scale}_kept": count for scale, count in kept.items()}
    return {"from": other["model"], "own_kept": own, **counts, "better": better}
