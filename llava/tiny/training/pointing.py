"""Where to look: the last prompt token's attention is drawn to what the question is about, while the model learns.

Left to the answers' loss alone, the decoder stays for a thousand steps at what can be guessed: it has to discover at
once how to gather the question, how to find the object, and what to say about it. A loss on the attention of some heads
in two middle layers teaches the second by itself: first half of the heads look at everything the question is about;
then three heads look at different things, as a sum over two objects does not tell which of them stands left. The loss's
weight falls with the learning rate to nearly nothing.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from llava.tiny.questions import PLURAL, RELATIONS, holds
from llava.tiny.scenes import Scene
from llava.tiny.training.conversations import Turn
from llava.tiny.training.labels import owners
from llava.tiny.training.packing import Packed, answer_pieces
from llava.tiny.worlds import COLORS, SHAPES

THINGS = 1 + 3 + 1 + 5
"""Numbers that `owners` gives: background, a sign's characters, the card, the objects."""
HEADS = 3
"""Heads that look at different things."""
_LEAST = 1e-4
_NOUNS = {**{shape: shape for shape in SHAPES}, **{plural: shape for shape, plural in PLURAL.items()}}
_DESCRIPTION = re.compile(rf"(?:({'|'.join(COLORS)}) )?\b({'|'.join(_NOUNS)}|objects?)\b")


def pointing_layers(layers: int) -> tuple[int, int]:
    """Return the two layers: the first after the shallow third, where VisiPruner filters, and the middle."""
    return layers // 3, layers // 2


def concerned(question: str, scene: Scene) -> list[int]:
    """Return the numbers (see `owners`) of everything that a description in the question fits."""
    return sorted({thing for things in described(question, scene) for thing in things})


def described(question: str, scene: Scene) -> list[list[int]]:
    """Return, for each description in the question, the numbers (see `owners`) of what fits it; a sign is three."""
    signs = [1, 2, 3] if scene.sign else []
    cards = [len(signs) + 1] if scene.digit is not None else []
    if "sign" in question:
        return [[thing] for thing in signs]
    if "card" in question:
        return [cards]
    first = len(signs) + len(cards) + 1
    found = []
    for color, noun in _DESCRIPTION.findall(question):
        shape = _NOUNS.get(noun)
        fits = [color in ("", o.color) and shape in (None, o.shape) for o in scene.objects]
        found.append([first + n for n, fit in enumerate(fits) if fit])
    return found


def looks(question: str, scene: Scene) -> tuple[list[list[int]], list[list[int]]]:
    """Return what each of `HEADS` heads should look at in the first and in the second of the two layers.

    A sign: one character each. Else what the first description fits (in the second layer, of a relation that is asked
    for, what it fits that stands in it), what the second fits, and everything.
    """
    things = described(question, scene)
    if not any(things):
        return [[]] * HEADS, [[]] * HEADS
    if len(things) == HEADS:
        return things, things
    one, other = things[0], things[-1]
    both = sorted({*one, *other})
    relation = next((r for r in RELATIONS if f" {r} " in question), None)
    answer = one
    if relation and len(other) == 1:
        first = 1 + 3 * bool(scene.sign) + (scene.digit is not None)
        reference = scene.objects[other[0] - first]
        one = [n for n in one if n != other[0]]
        answer = [n for n in one if holds(scene.objects[n - first], reference, relation)] or one
    return [one, other, both], [answer, other, both]


@dataclass(frozen=True)
class Pointers:
    """Which text rows of a batch should look where.

    owners:
        int64 [B, V], the thing that each visual token belongs to
    rows:
        int64 [N, 3] image, conversation and token: the last prompt tokens, and those that say a sign's next characters
    wanted:
        bool [N, THINGS] what each is concerned with
    apart:
        bool [N, 2, HEADS, THINGS] what each head should look at, in the first and in the second of the two layers
    """

    owners: torch.Tensor
    rows: torch.Tensor
    wanted: torch.Tensor
    apart: torch.Tensor


def draw_pointers(
    scenes: Sequence[Scene], conversations: Sequence[Sequence[Sequence[Turn]]], packed: Packed
) -> Pointers:
    """Return the pointers of a packed batch; questions that concern nothing in the picture have none."""
    rows, wanted, apart = [], [], []

    def point(*row: int, at: Sequence[int], heads: Sequence[Sequence[Sequence[int]]]) -> None:
        if at:
            rows.append(row)
            wanted.append(_marked(at))
            apart.append([[_marked(things) for things in layer] for layer in heads])

    for b, scene in enumerate(scenes):
        for k, turns in enumerate(conversations[b]):
            for n, turn in enumerate(turns):
                end = int(packed.ends[b, k, n])
                point(b, k, end, at=concerned(turn.text, scene), heads=looks(turn.text, scene))
                if turn.answer == scene.sign:
                    said = 0
                    for step, piece in enumerate(answer_pieces(turn.answer)):
                        if step:
                            at = range(said + 1, said + len(piece) + 1)
                            point(b, k, end + step, at=at, heads=[[at] * HEADS] * 2)
                        said += len(piece)
    return Pointers(
        torch.from_numpy(np.stack([owners(scene).flatten() for scene in scenes]).astype(np.int64)),
        torch.tensor(rows, dtype=torch.int64).view(-1, 3),
        torch.from_numpy(np.array(wanted, bool).reshape(-1, THINGS)),
        torch.from_numpy(np.array(apart, bool).reshape(-1, 2, HEADS, THINGS)),
    )


def _marked(things: Sequence[int]) -> np.ndarray:
    return np.isin(np.arange(THINGS), list(things))


def pointing_loss(
    attention: Sequence[torch.Tensor], pointers: Pointers, chosen: torch.Tensor | None = None, apart: bool = False
) -> torch.Tensor:
    """Return how far the attention is from lying on the wanted things, an equal part on each; 0 where it does.

    The mean over rows of Σ_i −log(n·p_i) / n, p_i the part of the visual attention on the i-th of its n things, summed
    over the layers. The attention of half of the heads is taken together, or that of `HEADS` heads apart, and the mean
    taken over them too.

    Args:
        attention: of both layers [H, B, K, S, V'], text rows to visual tokens.
        pointers: who should look where.
        chosen: int64 [B, V'], the visual tokens that are there; None: all.
        apart: whether heads look at different things.

    """
    belongs = F.one_hot(pointers.owners, THINGS).float()
    if chosen is not None:
        belongs = belongs.gather(1, chosen[..., None].expand(-1, -1, THINGS))
    b, k, s = pointers.rows.unbind(1)
    there = (belongs.sum(1) > 0)[b]
    total = belongs.new_zeros(())
    for n, weights in enumerate(attention):
        heads = weights[:HEADS] if apart else weights[: len(weights) // 2]
        on_image = heads[:, b, k, s].float()
        if not apart:
            total = total + _missed(on_image.sum(0), belongs[b], pointers.wanted & there)
            continue
        for head, of_head in enumerate(on_image):
            missed = _missed(of_head, belongs[b], pointers.apart[:, n, head] & there)
            total = total + missed / len(on_image)
    return total


def _missed(on_image: torch.Tensor, belongs: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return the mean over rows; on_image [N, V'], belongs [N, V', THINGS], wanted bool [N, THINGS]."""
    count = wanted.sum(1).clamp(min=1)
    part = torch.bmm(on_image[:, None], belongs)[:, 0] / (on_image.sum(1, keepdim=True) + _LEAST)
    lost = -(wanted * (part + _LEAST).log()).sum(1) / count - count.log()
    return (lost * wanted.any(1)).sum() / max(1, len(wanted))
