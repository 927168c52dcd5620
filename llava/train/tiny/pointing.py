"""The pointing loss: in training it draws the last prompt token's attention to what the question is about.

Left to the answers' loss alone, the decoder stays for a thousand steps at what can be guessed: it has to discover at
once how to gather the question, how to find the object, and what to say about it. A loss on the attention of some heads
in two middle layers teaches the second by itself: first half of the heads look at everything the question is about;
then three heads look at different things, as a sum over two objects does not tell which of them stands left; at last
all heads of the first layer look at everything alike, so that it finds and only the second tells apart. The loss's
weight falls with the learning rate to nearly nothing. Quoted characters learn beside it to tell whether they are the
sign's.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from llava.tiny.questions import PLURAL, RELATIONS, holds
from llava.tiny.scenes import Scene
from llava.tiny.worlds import COLORS, SHAPES
from llava.train.tiny.conversations import Turn
from llava.train.tiny.labels import owners
from llava.train.tiny.packing import IGNORED, Packed, characters, encode

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
        int64 [N, 3] image, conversation and token: the last prompt tokens, those that say a sign's next characters, and
        those that quote one in a question
    wanted:
        bool [N, THINGS] what each is concerned with
    apart:
        bool [N, 2, HEADS, THINGS] what each head should look at, in the first and in the second of the two layers
    verdicts:
        int64 [N] the token that says whether a quoted character is the sign's, at its row; -100 elsewhere
    """

    owners: torch.Tensor
    rows: torch.Tensor
    wanted: torch.Tensor
    apart: torch.Tensor
    verdicts: torch.Tensor


def draw_pointers(
    scenes: Sequence[Scene], conversations: Sequence[Sequence[Sequence[Turn]]], packed: Packed
) -> Pointers:
    """Return the pointers of a packed batch; questions that concern nothing in the picture have none."""
    rows, wanted, apart, verdicts = [], [], [], []

    def point(
        *row: int, at: Sequence[int], heads: Sequence[Sequence[Sequence[int]]], right: bool | None = None
    ) -> None:
        if at:
            rows.append(row)
            wanted.append(_marked(at))
            verdicts.append(IGNORED if right is None else encode("Yes" if right else "No")[0])
            apart.append([[_marked(things) for things in layer] for layer in heads])

    for b, scene in enumerate(scenes):
        for k, turns in enumerate(conversations[b]):
            for n, turn in enumerate(turns):
                end = int(packed.ends[b, k, n])
                point(b, k, end, at=concerned(turn.text, scene), heads=looks(turn.text, scene))
                if scene.sign and '"' in turn.text:
                    start = int(packed.ends[b, k, n - 1]) if n else 0
                    for row, said, place in _quoted(packed.ids[b, k, :end].tolist(), start):
                        placed = " say " in turn.text
                        at = place if placed else (1, 2, 3)
                        there = scene.sign[place.start - 1 : place.stop - 1]
                        right = said == there if placed and said != "-" else None
                        point(b, k, row, at=at, heads=[[at] * HEADS] * 2, right=right)
                if turn.answer == scene.sign:
                    said = 0
                    for step, piece in enumerate(characters(encode(turn.answer))):
                        if step:
                            at = range(said + 1, said + len(piece) + 1)
                            point(b, k, end + step, at=at, heads=[[at] * HEADS] * 2)
                        said += len(piece)
    return Pointers(
        torch.from_numpy(np.stack([owners(scene).flatten() for scene in scenes]).astype(np.int64)),
        torch.tensor(rows, dtype=torch.int64).view(-1, 3),
        torch.from_numpy(np.array(wanted, bool).reshape(-1, THINGS)),
        torch.from_numpy(np.array(apart, bool).reshape(-1, 2, HEADS, THINGS)),
        torch.tensor(verdicts, dtype=torch.int64),
    )


def _quoted(ids: Sequence[int], start: int) -> list[tuple[int, str, range]]:
    """Return the tokens from `start` on that stand between quotation marks: row, text, the places that it quotes."""
    found, said, inside = [], 0, False
    for row, text in enumerate(characters(ids[start:]), start):
        if '"' in text:
            if inside:
                break
            inside = True
        elif inside and text:
            found.append((row, text, range(said + 1, said + len(text) + 1)))
            said += len(text)
    return found


def _marked(things: Sequence[int]) -> np.ndarray:
    marked = np.zeros(THINGS, bool)
    marked[list(things)] = True
    return marked


def pointing_loss(
    attention: Sequence[torch.Tensor],
    pointers: Pointers,
    chosen: torch.Tensor | None = None,
    heads: Sequence[str] = ("together", "together"),
) -> torch.Tensor:
    """Return the distance of the attention from the wanted things, equally weighted; 0 at the target.

    The mean over rows of Σ_i −log(n·p_i) / n, p_i the part of the visual attention on the i-th of its n things, summed
    over the layers. The attention of half of the heads is taken together, or that of every head, or of `HEADS`, which
    look at different things, by itself, and the mean taken over them too.

    Args:
        attention: of both layers [H, B, K, S, V'], text rows to visual tokens.
        pointers: who should look where.
        chosen: int64 [B, V'], the visual tokens that are there; None: all.
        heads: in the first and in the second layer: half of them together, every head alike, or `HEADS` apart.

    """
    belongs = F.one_hot(pointers.owners, THINGS).float()
    if chosen is not None:
        belongs = belongs.gather(1, chosen[..., None].expand(-1, -1, THINGS))
    b, k, s = pointers.rows.unbind(1)
    there = (belongs.sum(1) > 0)[b]
    total = belongs.new_zeros(())
    for n, weights in enumerate(attention):
        count = {"together": len(weights) // 2, "alike": len(weights), "apart": HEADS}[heads[n]]
        on_image = weights[:count, b, k, s].float()
        if heads[n] == "together":
            total = total + _missed(on_image.sum(0), belongs[b], pointers.wanted & there)
            continue
        for head, of_head in enumerate(on_image):
            wanted = pointers.wanted if heads[n] == "alike" else pointers.apart[:, n, head]
            total = total + _missed(of_head, belongs[b], wanted & there) / count
    return total


def verdict_loss(hidden: torch.Tensor, head: nn.Module, pointers: Pointers) -> torch.Tensor:
    """Return the cross-entropy of "Yes" and "No" at the quoted characters, 0 where nothing is quoted.

    hidden: [B, K, S, D], the last; head: the unembedding. Three comparisons are learned one by one at the tokens that
    make them, where the answer alone would tell but whether all three hold.
    """
    told = pointers.verdicts != IGNORED
    if not told.any():
        return hidden.new_zeros((), dtype=torch.float32)
    b, k, s = pointers.rows[told].unbind(1)
    return F.cross_entropy(head(hidden[b, k, s]).float(), pointers.verdicts[told])


def _missed(on_image: torch.Tensor, belongs: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return the mean over rows; on_image [N, V'], belongs [N, V', THINGS], wanted bool [N, THINGS]."""
    count = wanted.sum(1).clamp(min=1)
    part = torch.bmm(on_image[:, None], belongs)[:, 0] / (on_image.sum(1, keepdim=True) + _LEAST)
    lost = -(wanted * (part + _LEAST).log()).sum(1) / count - count.log()
    return (lost * wanted.any(1)).sum() / max(1, len(wanted))
