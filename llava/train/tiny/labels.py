"""Dense labels of a scene: what every patch of the picture shows and where the object it belongs to has its centre.

They stand in for CLIP's pre-training: the tower learns them before there is a decoder, and keeps them as a second loss.
"""

import numpy as np
from PIL import Image, ImageDraw

from llava.tiny.scenes import IMAGE_SIZE, SIGN_SPACING, Scene, draw_shape
from llava.tiny.worlds import COLORS, DIGITS, LETTERS, SHAPES

PATCH = 14
GRID = IMAGE_SIZE // PATCH
SIZES = ("small", "large")
CHARACTERS = DIGITS + LETTERS
LABELS = {
    "shape": 1 + len(SHAPES) + 2,
    "color": 1 + len(COLORS),
    "size": 1 + len(SIZES),
    "character": 1 + len(CHARACTERS) + len(DIGITS),
    "place": 1 + 3,
    "column": 1 + GRID,
    "row": 1 + GRID,
}
"""Classes of each label; 0 is background. Handwritten digits have characters of their own, a sign's three characters
the places 1 to 3, and column and row are those of the object's centre, or the patch's own where there is no object."""
UNKNOWN = -1
"""The colour of what has none with a name."""
_SIGN, _CARD = len(SHAPES) + 1, len(SHAPES) + 2
_LEAST_PIXELS = 24


def _entities(scene: Scene, draw: ImageDraw.ImageDraw) -> list[tuple[int, ...]]:
    """Draw every object's number (from 1) and return its classes in the order of `LABELS`."""
    found: list[tuple[int, ...]] = []

    def add(x: float, y: float, *classes: int) -> int:
        found.append((*classes, 1 + int(x) // PATCH, 1 + int(y) // PATCH))
        return len(found)

    if scene.sign:
        x, y = scene.sign_at
        for i, character in enumerate(scene.sign):
            middle = x + (i - 1) * SIGN_SPACING
            number = add(middle, y, _SIGN, 0, 0, 1 + CHARACTERS.index(character), 1 + i)
            draw.rectangle([middle - 7, y - 11, middle + 7, y + 11], fill=number)
    if scene.digit is not None:
        x, y = scene.card_at
        number = add(x, y, _CARD, 0, 0, 1 + len(CHARACTERS) + scene.digit, 0)
        draw.rectangle([x - 17, y - 17, x + 17, y + 17], fill=number)
    for o in scene.objects:
        color = 1 + list(COLORS).index(o.color) if o.color else UNKNOWN
        number = (add(o.x, o.y, 1 + SHAPES.index(o.shape), color, 1 + SIZES.index(o.size), 0, 0),)
        draw_shape(draw, o.shape, o.x, o.y, o.radius, number, number)
    return found


def owners(scene: Scene) -> np.ndarray:
    """Return int64 [12, 12]: which of the scene's things a patch belongs to, from 1 in the order sign's characters,
    card, objects; 0 is background.

    A patch belongs to the thing that covers most of it, if that is more than 24 of its 196 pixels.
    """
    return _owned(scene)[0]


def dense_labels(scene: Scene) -> np.ndarray:
    """Return int8 [7, 12, 12], one map for each of `LABELS`, by the owners of the patches."""
    owner, entities = _owned(scene)
    background = np.zeros((len(LABELS), GRID, GRID), np.int8)
    background[-2:] = 1 + np.indices((GRID, GRID))[::-1]
    of_entities = np.array([(0,) * len(LABELS), *entities], np.int8)[owner].transpose(2, 0, 1)
    return np.where(owner > 0, of_entities, background)


def _owned(scene: Scene) -> tuple[np.ndarray, list[tuple[int, ...]]]:
    canvas = Image.new("L", (IMAGE_SIZE, IMAGE_SIZE), 0)
    entities = _entities(scene, ImageDraw.Draw(canvas))
    patches = np.asarray(canvas).reshape(GRID, PATCH, GRID, PATCH).swapaxes(1, 2).reshape(GRID, GRID, -1)
    covered = np.stack(
        [(patches == number).sum(-1) for number in range(1, len(entities) + 1)] or [np.zeros((GRID, GRID))]
    )
    return np.where(covered.max(0) > _LEAST_PIXELS, 1 + covered.argmax(0), 0), entities
