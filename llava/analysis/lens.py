"""Logit lens (VisiPruner, Eq. 2): the hidden state after every layer, read through final norm and unembedding.

    words = logit_lens(model, inputs)[0]                 # what the last prompt token would say after each layer
    plot_words(words, tokenizer)

Hidden states are layer outputs, before the final norm, also that of the last layer (unlike the last entry of
transformers' `hidden_states`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from llava.model.pruning.families import family_of

from .arrays import NamedArray
from .recording import read


@dataclass(frozen=True, eq=False)
class Words:
    """Words that hidden vectors map to; `…` are the axes of the vectors.

    ids, probabilities:
        the most probable tokens, axes (…, rank)
    followed:
        probability of the tokens that were asked for, axes (…, followed), labelled with their ids
    """

    ids: NamedArray
    probabilities: NamedArray
    followed: NamedArray

    def text(self, tokenizer: Any) -> NamedArray:
        """Return `ids` as texts: what each token adds to an answer, without surrounding whitespace.

        A token that adds nothing visible, such as one byte of a character, has its name ("<0x07>").
        """

        def shown(token: int) -> str:
            text = tokenizer.decode([token]).strip()
            return text if text.isprintable() and "\ufffd" not in text else tokenizer.convert_ids_to_tokens(token)

        texts = np.array([shown(token) for token in self.ids.values.ravel().tolist()], object)
        return NamedArray(texts.reshape(self.ids.values.shape), self.ids.axes, self.ids.labels)


def logit_lens(
    model: nn.Module,
    inputs: Mapping[str, Any],
    positions: Sequence[int] = (-1,),
    *,
    top: int = 5,
    follow: Sequence[int] = (),
) -> list[Words]:
    """Read the tokens at `positions` after every layer, dense; one `Words` per prompt, axes (layer, token).

    inputs:
        keywords of the model's `generate` or `forward`
    positions:
        places in the prompt, images expanded; negative from its end: −1 is the last prompt token. Visual tokens too.
    top, follow:
        how many words of each state; ids of tokens whose probability is wanted after every layer

    Raises:
        ValueError: a model without an unembedding, a position that a prompt does not have, an id that is no token.

    """
    unembedding = Unembedding(model, top, follow)
    with captured(unembedding.decoder, unembedding.layers, positions, inputs.get("attention_mask")) as states:
        read(model, inputs)
    labels = {"token": [*positions]}
    return [
        unembedding.words([unembedding.read(state[b]) for state in states], ("layer", "token"), labels)
        for b in range(len(states[0]))
    ]


class Unembedding:
    """The map from hidden states to word probabilities: softmax(W_u · norm(x)), in fp32.

    top: how many words of each vector; follow: token ids whose probabilities are wanted whatever their rank.
    Raises `ValueError` for a model without an unembedding, and for numbers and ids that do not fit it.
    """

    def __init__(self, model: nn.Module, top: int = 5, follow: Sequence[int] = ()):
        family = family_of(model)
        self.decoder = family.decoder(model)
        self.norm = family.norm(self.decoder)
        self.head = model.get_output_embeddings()
        if self.head is None:
            raise ValueError(
                f"{type(model).__name__} has no unembedding to read hidden states with: give the whole model"
            )
        vocabulary = self.head.weight.shape[0]
        if not 0 < top <= vocabulary:
            raise ValueError(f"top is {top}: give 1 to {vocabulary}, the words of this model")
        unknown = [token for token in follow if not 0 <= token < vocabulary]
        if unknown:
            raise ValueError(f"token id {unknown[0]} was to be followed, but this model has 0 to {vocabulary - 1}")
        self.top, self.follow = top, list(follow)
        self.layers = self.decoder.layers[: self.decoder.config.num_hidden_layers]  # those that run

    @torch.no_grad()
    def read(self, vectors: torch.Tensor, norm: bool = True) -> tuple[np.ndarray, ...]:
        """Read vectors [n, D]; return ids [n, top], probabilities [n, top], probabilities of `follow` [n, f].

        norm: through the decoder's final norm first.
        """
        weight = self.head.weight
        vectors = vectors.to(weight.device, weight.dtype)
        if norm:
            vectors = self.norm(vectors).to(weight.device)
        logits = self.head(vectors).float()
        cap = getattr(self.decoder.config, "final_logit_softcapping", None)
        probabilities = (logits if cap is None else cap * torch.tanh(logits / cap)).softmax(-1)
        best = probabilities.topk(self.top)
        followed = probabilities[:, torch.tensor(self.follow, dtype=torch.long, device=weight.device)]
        return tuple(part.cpu().numpy() for part in (best.indices, best.values, followed))

    def words(self, parts: Sequence[tuple[np.ndarray, ...]], axes: tuple[str, str], labels: dict[str, Any]) -> Words:
        """Stack results of `read`: one per index of the first of `axes`; the vectors are the second axis."""
        ids, probabilities, followed = map(np.stack, zip(*parts, strict=True))
        ranked = (*axes, "rank")
        return Words(
            NamedArray(ids, ranked, labels),
            NamedArray(probabilities, ranked, labels),
            NamedArray(followed, (*axes, "followed"), {**labels, "followed": self.follow}),
        )


@contextmanager
def captured(
    decoder: nn.Module, modules: Sequence[nn.Module], positions: Sequence[int], padding: torch.Tensor | None = None
) -> Iterator[list[torch.Tensor]]:
    """Collect the output of modules of a decoder at chosen tokens: one [B, n, …] per module, while the block runs.

    positions: places in each prompt, padding not counted, negative from its end. padding: the prompts' mask [B, T], for
    a model that gives its decoder another. The hooks are removed in any case.
    Raises `ValueError`, out of the model's forward, for a position that a prompt does not have.
    """
    collected: list[torch.Tensor] = []
    columns: list[torch.Tensor] = []

    def find(module, args, kwargs):
        hidden = kwargs["inputs_embeds"] if kwargs.get("inputs_embeds") is not None else kwargs["input_ids"]
        mask = kwargs.get("attention_mask")
        if isinstance(mask, dict) or (mask is not None and mask.ndim != 2):
            mask = padding
        mask = torch.ones(hidden.shape[:2]) if mask is None else mask
        columns[:] = [_columns(mask.cpu(), positions)]
        collected.clear()

    def keep(module, args, output):
        states = output[0] if isinstance(output, tuple) else output
        at = columns[0].to(states.device)
        collected.append(states[torch.arange(len(at), device=states.device)[:, None], at])

    hooks = [decoder.register_forward_pre_hook(find, with_kwargs=True)]
    hooks += [module.register_forward_hook(keep) for module in modules]
    try:
        yield collected
    finally:
        for hook in hooks:
            hook.remove()


def _columns(mask: torch.Tensor, positions: Sequence[int]) -> torch.Tensor:
    """Return the columns [B, n] of positions in prompts whose tokens are where `mask` [B, T] is not 0."""
    rows = []
    for number, row in enumerate(mask):
        tokens = row.nonzero()[:, 0]
        outside = [position for position in positions if not -len(tokens) <= position < len(tokens)]
        if outside:
            raise ValueError(f"position {outside[0]} is outside prompt {number}, which has {len(tokens)} tokens")
        rows.append(tokens[torch.tensor(list(positions), dtype=torch.long)])
    return torch.stack(rows)
