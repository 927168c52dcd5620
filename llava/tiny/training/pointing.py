"""Where to look: the last prompt token's attention is drawn to what the question is about, while the model learns.

Left to the answers' loss alone, the decoder stays for a thousand steps at what can be guessed: it has to discover at
once how to gather the question, how to find the object, and what to say about it. A loss on the attention of half of
the heads in two middle layers teaches the second by itself. Its weight falls with the learning rate to nearly nothing.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from llava.tiny.questions import PLURAL
from llava.tiny.scenes import Scene
from llava.tiny.training.conversations import Turn
from llava.tiny.training.labels import owners
from llava.tiny.training.packing import Packed, answer_pieces
from llava.tiny.worlds import COLORS, SHAPES

THINGS = 1 + 3 + 1 + 5
"""Numbers that `owners` gives: background, a sign's characters, the card, the objects."""
_LEAST = 1e-4
_NOUNS = {**{shape: shape for shape in SHAPES}, **{plural: shape for shape, plural in PLURAL.items()}}
_DESCRIPTION = re.compile(rf"(?:({'|'.join(COLORS)}) )?\b({'|'.join(_NOUNS)}|objects?)\b")


def pointing_layers(layers: int) -> tuple[int, int]:
    """Return the two layers: the first after the shallow third, where VisiPruner filters, and the middle."""
    return layers // 3, layers // 2


def concerned(question: str, scene: Scene) -> list[int]:
    """Return the numbers (see `owners`) of everything that a description in the question fits."""
    signs = [1, 2, 3] if scene.sign else []
    cards = [len(signs) + 1] if scene.digit is not None else []
    if "sign" in question:
        return signs
    if "card" in question:
        return cards
    first = len(signs) + len(cards) + 1
    found = set()
    for color, noun in _DESCRIPTION.findall(question):
        shape = _NOUNS.get(noun)
        for n, o in enumerate(scene.objects):
            if color in ("", o.color) and shape in (None, o.shape):
                found.add(first + n)
    return sorted(found)


@dataclass(frozen=True)
class Pointers:
    """Which text rows of a batch should look where.

    owners:
        int64 [B, V], the thing that each visual token belongs to
    rows:
        int64 [N, 3] image, conversation and token: the last prompt tokens, and those that say a sign's next characters
    wanted:
        bool [N, THINGS] what each is concerned with
    """

    owners: torch.Tensor
    rows: torch.Tensor
    wanted: torch.Tensor


def draw_pointers(
    scenes: Sequence[Scene], conversations: Sequence[Sequence[Sequence[Turn]]], packed: Packed
) -> Pointers:
    """Return the pointers of a packed batch; questions that concern nothing in the picture have none."""
    rows, wanted = [], []

    def point(*row: int, at: Sequence[int]) -> None:
        if at:
            rows.append(row)
            wanted.append(np.isin(np.arange(THINGS), at))

    for b, scene in enumerate(scenes):
        for k, turns in enumerate(conversations[b]):
            for n, turn in enumerate(turns):
                end = int(packed.ends[b, k, n])
                point(b, k, end, at=concerned(turn.text, scene))
                if turn.answer == scene.sign:
                    said = 0
                    for step, piece in enumerate(answer_pieces(turn.answer)):
                        if step:
                            point(b, k, end + step, at=range(said + 1, said + len(piece) + 1))
                        said += len(piece)
    return Pointers(
        torch.from_numpy(np.stack([owners(scene).flatten() for scene in scenes]).astype(np.int64)),
        torch.tensor(rows, dtype=torch.int64).view(-1, 3),
        torch.from_numpy(np.array(wanted, bool).reshape(-1, THINGS)),
    )


def pointing_loss(
    attention: Sequence[torch.Tensor], pointers: Pointers, chosen: torch.Tensor | None = None
) -> torch.Tensor:
    """Return how far the attention is from lying on the wanted things, an equal part on each; 0 where it does.

    The mean over rows of Σ_i −log(n·p_i) / n, p_i the part of a row's visual attention on the i-th of its n things,
    summed over the layers.

    Args:
        attention: of every layer [h, B, K, S, V'], text rows to visual tokens.
        pointers: who should look where.
        chosen: int64 [B, V'], the visual tokens that are there; None: all.

    """
    belongs = F.one_hot(pointers.owners, THINGS).float()
    if chosen is not None:
        belongs = belongs.gather(1, chosen[..., None].expand(-1, -1, THINGS))
    b, k, s = pointers.rows.unbind(1)
    wanted = pointers.wanted & (belongs.sum(1) > 0)[b]
    count = wanted.sum(1).clamp(min=1)
    total = belongs.new_zeros(())
    for weights in attention:
        on_image = weights[:, b, k, s].float().sum(0)
        part = torch.bmm(on_image[:, None], belongs[b])[:, 0] / (on_image.sum(1, keepdim=True) + _LEAST)
        lost = -(wanted * (part + _LEAST).log()).sum(1) / count - count.log()
        total = total + (lost * wanted.any(1)).sum() / max(1, len(b))
    return total
