"""States of the image encoder for methods that read it (VisionZip), recorded by hooks during a session.

Images may be encoded long before the prompt that shows them is read (an evaluation encodes each image once). So every
image's states are remembered with a fingerprint, three rows of what the projector made of it, and found again by the
visual tokens that enter the decoder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from .packed import PackedTokens, upload

REMEMBERED = 128
"""Images whose states are held, and more in a larger batch: about 1.2 MB each for CLIP-L/336 in half precision."""


@dataclass(frozen=True)
class Encoder:
    """Where a family keeps its image encoder: a CLIP whose class token comes first, and one visual token per patch.

    layer:
        the encoder layer whose output the projector reads
    projector:
        maps patches [N, P, Dv] to visual tokens [N, P, D]
    """

    layer: CLIPEncoderLayer
    projector: nn.Module


@dataclass(frozen=True, eq=False)
class EncoderStates:
    """The encoder's states of one image: class token and P patches.

    features:
        [1 + P, Dv], output of the layer
    attention:
        fp32 [P], of the class token to each patch, summed over heads
    keys:
        fp32 [1 + P, d], averaged over heads
    project:
        maps features [n, Dv] to visual tokens [n, D]
    """

    features: torch.Tensor
    attention: torch.Tensor
    keys: torch.Tensor
    project: Callable[[torch.Tensor], torch.Tensor]


def clip_encoder(tower: nn.Module, select_layer: int, projector: nn.Module) -> Encoder:
    """Return the encoder of a CLIP tower of which hidden state `select_layer` (as transformers counts) is projected.

    Raises:
        ValueError: the selected state is no layer's output.

    """
    layers = [module for module in tower.modules() if isinstance(module, CLIPEncoderLayer)]
    number = select_layer % (len(layers) + 1)
    if not layers or number == 0:
        raise ValueError(f"hidden state {select_layer} of the vision tower is not the output of a CLIP encoder layer")
    return Encoder(layers[number - 1], projector)


class EncoderHook:
    """Records the states of images that the encoder processes between `start` and `stop`.

    Keeps the newest `REMEMBERED` images, and always those of the last prompts and those encoded since, as a batch may
    have any number of images.
    """

    def __init__(self, encoder: Encoder):
        self.encoder = encoder
        self._hooks: list = []
        self._seen: tuple[torch.Tensor, torch.Tensor] | None = None
        self._images: list[tuple[torch.Tensor, EncoderStates]] = []
        self._present = 0

    def start(self) -> None:
        """Start recording."""
        self._hooks = [
            self.encoder.layer.register_forward_hook(self._encoded, with_kwargs=True),
            self.encoder.projector.register_forward_hook(self._projected),
        ]

    def stop(self) -> None:
        """Stop recording and clear the records."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._seen, self._images, self._present = [], None, [], 0

    def _encoded(self, module, args, kwargs, output) -> None:
        entered = args[0] if args else kwargs["hidden_states"]
        self._seen = entered, output[0] if isinstance(output, tuple) else output

    def _projected(self, module, args, output) -> None:
        if self._seen is None:
            return
        (entered, features), self._seen = self._seen, None
        if output.shape[:2] != (features.shape[0], features.shape[1] - 1):
            raise ValueError(
                f"the projector makes {output.shape[1]} visual tokens of {features.shape[1] - 1} patches; methods that "
                "read the image encoder need one token per patch"
            )
        attention, keys = _class_attention(self.encoder.layer, entered)
        for image in range(len(features)):
            states = EncoderStates(features[image], attention[image], keys[image], self.encoder.projector.forward)
            self._images.append((_fingerprint(output[image]), states))
        self._present += len(features)
        del self._images[: -max(REMEMBERED, self._present)]

    def find(self, tokens: PackedTokens) -> dict[int, list[EncoderStates]]:
        """Return the images of every prompt that has visual tokens, in order; one host synchronisation.

        Raises:
            ValueError: visual tokens that are not those of remembered images.

        """
        if not tokens.visual.any():
            return {}
        missing = ValueError(
            "this method reads the image encoder, and these visual tokens are not of an image that it encoded inside "
            f"`with prune(…)` (of earlier batches the newest {REMEMBERED} are remembered): encode the pixels there, "
            "one token per patch"
        )
        if not self._images:
            raise missing
        patches = len(self._images[0][1].attention)
        if any(count % patches for count in tokens.visual_counts):
            raise missing
        places = np.flatnonzero(tokens.visual).reshape(-1, patches)
        device = tokens.hidden.device
        rows = upload(places[:, _sampled(patches)].ravel(), device)
        shown = tokens.hidden[0].index_select(0, rows).view(len(places), -1)
        known = torch.stack([fingerprint.to(tokens.hidden) for fingerprint, _ in self._images])
        same = torch.stack([(row == known).all(-1) for row in shown]).cpu().numpy()
        if not same.any(1).all():
            raise missing
        found = same.argmax(1).tolist()
        images = iter([self._images[place][1] for place in found])
        present = set(found)
        order = sorted(range(len(self._images)), key=lambda place: place in present)
        self._images, self._present = [self._images[place] for place in order], len(present)
        return {
            b: [next(images) for _ in range(count // patches)] for b, count in enumerate(tokens.visual_counts) if count
        }


def _sampled(patches: int) -> list[int]:
    return [0, patches // 2, patches - 1]


def _fingerprint(projected: torch.Tensor) -> torch.Tensor:
    """Return three rows of [P, D], flattened."""
    return projected[_sampled(len(projected))].flatten()


@torch.no_grad()
def _class_attention(layer: CLIPEncoderLayer, entered: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the class token's attention [N, P] (summed over heads) and the keys [N, 1 + P, d] (averaged), in fp32.

    entered [N, 1 + P, Dv]: what the layer was called with.
    """
    attention, normed = layer.self_attn, layer.layer_norm1(entered)
    query, key = (
        states.float().unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        for states in (attention.q_proj(normed[:, :1]), attention.k_proj(normed))
    )  # [N, H, 1, d] and [N, H, 1 + P, d]
    weights = (query @ key.transpose(-1, -2) * attention.head_dim**-0.5).softmax(-1)
    return weights[:, :, 0, 1:].sum(1), key.mean(1)
