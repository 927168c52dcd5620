"""The plain reading over a model's own layers, for those that are not Llama's: full weights under explicit masks.

The layers are called as they are, untouched, with an attention function that forms [H, T, T] probabilities: which
columns a row sees is decided pair by pair from the config of the model, how text and visual rows treat visual columns
by `reference.attention_probabilities`.
"""

from __future__ import annotations

import reference
import torch
from transformers import AttentionInterface

NAME = "plain reading"


def attention(module, query, key, value, mask, scaling=None, softcap=None, s_aux=None, plain=None, **kwargs):
    """As transformers asks; `plain` makes probabilities of scaled scores [H, q, k], and keeps what was read."""
    key, value = plain.keys(key[0], value[0])
    groups = query.shape[1] // key.shape[0]
    scores = query[0] @ key.repeat_interleave(groups, 0).transpose(1, 2) * scaling
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    weights = plain.probabilities(scores, None if s_aux is None else s_aux[:, None, None])
    output = (weights @ value.repeat_interleave(groups, 0)).transpose(0, 1)
    plain.what_was_read = reference._Attention(output.reshape(len(output), -1), weights, key, value)
    return output[None], None


AttentionInterface.register(NAME, attention)


class OwnLayers:
    """The layers of a model, for one prompt of L tokens and two more.

    given:
        what the untouched decoder was called with
    ropes:
        what each layer takes as `position_embeddings`, for L + 2 positions
    image:
        positions of the visual tokens
    block:
        int [L], tokens of one number ≥ 0 read each other both ways
    far_blocks:
        whether they do so beyond a sliding window
    """

    def __init__(self, case, given: dict, ropes: list, image: list[int], block: list[int]):
        self.model, self.decoder, self.ropes, self.image = case.model, case.decoder, ropes, image
        self.block, self.far_blocks = [*block, -1, -1], "paligemma" in case.model.config.model_type
        self.features = given.get("deepstack_visual_embeds") or []

    def sees(self, layer: int, row: int, column: int) -> bool:
        """Whether the row at one position sees the column at another."""
        config = self.decoder.config
        window = getattr(config, "sliding_window", None)
        everywhere = "full_attention" if window is None else "sliding_attention"
        kind = (getattr(config, "layer_types", None) or [everywhere] * (layer + 1))[layer]
        same = self.block[row] == self.block[column] >= 0
        near = row - column < window if kind == "sliding_attention" else True
        return (column <= row and near) or (same and (near or self.far_blocks))

    def run(self, layer: int, x: torch.Tensor, positions: list[int]) -> torch.Tensor:
        """Call the layer on x [T, D] at these positions."""
        rope = tuple(part[..., positions, :] for part in self.ropes[layer])
        config = self.decoder.config
        before, config._attn_implementation = config._attn_implementation, NAME
        try:
            output = self.decoder.layers[layer](x[None], attention_mask=None, position_embeddings=rope, plain=self)
        finally:
            config._attn_implementation = before
        return (output[0] if isinstance(output, tuple) else output)[0]

    def read(self, layer, x, positions, visual, config):
        """One layer of a prefill: its output [T, D], and what was read."""
        allowed = torch.tensor([[self.sees(layer, row, column) for column in positions] for row in positions])
        self.keys = lambda key, value: (key, value)
        self.probabilities = lambda scores, sinks: reference.attention_probabilities(
            scores, visual, config, layer, allowed, sinks
        )
        x = self.run(layer, x, positions)
        if layer < len(self.features):
            rows = [row for row, shown in enumerate(visual) if shown]
            x = x.clone()
            x[rows] += self.features[layer][[self.image.index(positions[row]) for row in rows]]
        return x, self.what_was_read

    def logits(self, normed: torch.Tensor) -> torch.Tensor:
        """The head's logits [vocabulary] of normed [D]."""
        logits = self.model.lm_head(normed)
        cap = getattr(self.decoder.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    @torch.no_grad()
    def decode(self, result: reference.Result, token: int, position: int, given: int) -> torch.Tensor:
        """Feed one token at `position` of a prompt of `given` to the kept keys and values, which grow by it."""
        x = self.decoder.embed_tokens(torch.tensor([token]))
        for layer, kept in enumerate(result.kv_positions):
            seen = torch.tensor([self.sees(layer, position, column) for column in [*kept, *range(given, position + 1)]])

            def keys(key, value, layer=layer):
                result.keys[layer] = torch.cat([result.keys[layer], key], 1)
                result.values[layer] = torch.cat([result.values[layer], value], 1)
                return result.keys[layer], result.values[layer]

            def probabilities(scores, sinks, seen=seen):
                scores = scores.masked_fill(~seen, float("-inf"))
                scores = scores if sinks is None else torch.cat([scores, sinks], -1)
                return scores.softmax(-1)[..., : len(seen)]

            self.keys, self.probabilities = keys, probabilities
            x = self.run(layer, x, [position])
        return self.logits(self.decoder.norm(x)[0])
