"""Rendered scenes: coloured shapes, a sign and a card with a real handwritten digit on a noisy background.

A scene is a function of one random generator: the same seed gives the same picture and the same facts, so the order of
the random draws is part of the format.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from llava.tiny.worlds import COLORS, EVALUATION, SHAPES, Digits, World, draw_paint

IMAGE_SIZE = 168
RADIUS = {"small": 11, "large": 19}
SIGN_SPACING = 15
TRAIN_DIGITS = 1500
Box = tuple[float, float, float, float]
Point = tuple[float, float]


@dataclass(frozen=True)
class SceneObject:
    """One shape. `x`, `y`: centre in pixels, y grows downwards. No two objects of a scene share colour and shape.

    `color`: its name; "" in a painted world.
    """

    color: str
    shape: str
    size: str
    x: float
    y: float
    radius: float = 0.0


@dataclass(frozen=True)
class Scene:
    """What a picture shows. `sign`: three characters or None; `digit`: 0–9 on the card, None without a card.

    `sign_at`, `card_at`: their centres in pixels.
    """

    objects: tuple[SceneObject, ...]
    sign: str | None
    digit: int | None
    sign_at: Point | None = None
    card_at: Point | None = None


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont:
    import matplotlib  # carries the font file, so every machine draws the same letters

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSansMono-Bold.ttf"), 22)


@lru_cache(maxsize=2)
def handwritten_digits(split: Digits) -> tuple[np.ndarray, np.ndarray]:
    """Return scikit-learn's handwritten digits, images uint8 [N, 8, 8] and targets int [N].

    Of a fixed shuffle the first 1500 are for training, the other 297 are held out. Raises ValueError on another split.
    """
    from sklearn.datasets import load_digits

    if split not in ("train", "heldout"):
        raise ValueError(f"digits split must be 'train' or 'heldout', got {split!r}")
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    index = order[:TRAIN_DIGITS] if split == "train" else order[TRAIN_DIGITS:]
    return (data.images[index] * (255 / 16)).astype(np.uint8), data.target[index]


def _place(rng: np.random.Generator, boxes: list[Box], half_w: float, half_h: float) -> tuple[float, float] | None:
    """Find a centre for a box that keeps 4 px from every earlier box, and record it; None after 40 failed draws."""
    for _ in range(40):
        x = rng.uniform(half_w + 3, IMAGE_SIZE - half_w - 3)
        y = rng.uniform(half_h + 3, IMAGE_SIZE - half_h - 3)
        if all(abs(x - bx) > half_w + bw + 4 or abs(y - by) > half_h + bh + 4 for bx, by, bw, bh in boxes):
            boxes.append((x, y, half_w, half_h))
            return x, y
    return None


def _integers(values: np.ndarray) -> tuple[int, ...]:
    return tuple(int(v) for v in values)


def _background(rng: np.random.Generator) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    base = rng.uniform(70, 165) + rng.uniform(-18, 18, 3)
    coarse = (base + rng.normal(0, 16, (7, 7, 3))).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(coarse).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(2, 7)):
        stroke = _integers((base + rng.uniform(-35, 35)).clip(0, 255))
        points = [tuple(rng.uniform(0, IMAGE_SIZE, 2)) for _ in range(3)]
        draw.line(points, fill=stroke, width=int(rng.integers(1, 4)))
    return image, draw


def _sign(rng: np.random.Generator, draw: ImageDraw.ImageDraw, boxes: list[Box], world: World) -> tuple[str, Point]:
    x, y = _place(rng, boxes, 26, 15)  # the first box always finds a place
    text = world.draw_sign(rng)
    board = _integers(rng.uniform(205, 255, 3))
    draw.rectangle([x - 26, y - 15, x + 26, y + 15], fill=board, outline=(20, 20, 20))
    ink = _integers(rng.uniform(0, 60, 3))
    for i, character in enumerate(text):
        draw.text((x + (i - 1) * SIGN_SPACING, y), character, fill=ink, font=_font(), anchor="mm")
    return text, (float(x), float(y))


def _jitter(rng: np.random.Generator, strokes: Image.Image) -> Image.Image:
    """Slant by up to 0.2, scale both ways by up to 15%, turn by up to 12° and shift by up to 2 px, about the middle."""
    angle, slant, (wide, high) = np.deg2rad(rng.uniform(-12, 12)), rng.uniform(-0.2, 0.2), rng.uniform(0.85, 1.15, 2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    inverse = np.linalg.inv(turn @ np.array([[wide, slant], [0, high]]))
    middle = strokes.width / 2
    offset = middle - inverse @ (middle + rng.uniform(-2, 2, 2))
    matrix = np.column_stack([inverse, offset]).flatten().tolist()
    return strokes.transform(strokes.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def _card(
    rng: np.random.Generator, image: Image.Image, draw: ImageDraw.ImageDraw, boxes: list[Box], world: World
) -> tuple[int, Point] | tuple[None, None]:
    place = _place(rng, boxes, 19, 19)
    if place is None:
        return None, None
    x, y = place
    images, targets = handwritten_digits(world.digits)
    k = rng.integers(len(targets))
    strokes = Image.fromarray(images[k]).resize((34, 34), Image.Resampling.BICUBIC)
    if world.jitter:
        strokes = _jitter(rng, strokes)
    alpha = np.asarray(strokes, np.float32)[..., None] / 255
    ink = rng.uniform(0, 70, 3)
    paper = rng.uniform(190, 245, 3)
    image.paste(Image.fromarray((paper * (1 - alpha) + ink * alpha).astype(np.uint8)), (int(x) - 17, int(y) - 17))
    draw.rectangle([x - 18, y - 18, x + 18, y + 18], outline=(60, 40, 20), width=2)
    return int(targets[k]), (float(x), float(y))


def draw_shape(
    draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, r: float, fill: tuple[int, ...], outline: tuple[int, ...]
) -> None:
    """Draw one shape of radius `r` about (x, y); `fill` and `outline` have one value for each of the image's bands."""
    if shape == "circle":
        draw.ellipse([x - r, y - r, x + r, y + r], fill=fill, outline=outline)
    elif shape == "square":
        draw.rectangle([x - r * 0.88, y - r * 0.88, x + r * 0.88, y + r * 0.88], fill=fill, outline=outline)
    elif shape == "triangle":
        draw.polygon([(x, y - r), (x - r, y + r * 0.85), (x + r, y + r * 0.85)], fill=fill, outline=outline)
    else:
        w = r * 0.36  # half the width of an arm
        corners = [
            (-w, -r),
            (w, -r),
            (w, -w),
            (r, -w),
            (r, w),
            (w, w),
            (w, r),
            (-w, r),
            (-w, w),
            (-r, w),
            (-r, -w),
            (-w, -w),
        ]
        draw.polygon([(x + dx, y + dy) for dx, dy in corners], fill=fill, outline=outline)


def _objects(
    rng: np.random.Generator, draw: ImageDraw.ImageDraw, boxes: list[Box], world: World
) -> tuple[SceneObject, ...]:
    names, sizes = list(COLORS), list(RADIUS)
    wanted = rng.integers(2, 6)
    colors = rng.permutation(len(names))[: rng.integers(2, 5)]
    shapes = rng.permutation(len(SHAPES))[: rng.integers(2, 5)]
    # few colours and shapes: questions need both to tell objects apart
    pairs = [(c, s) for c in colors for s in shapes]
    rng.shuffle(pairs)
    pairs = [(c, s) for c, s in pairs if (names[c], SHAPES[s]) in world.pairs]
    objects = []
    for c, s in pairs[:wanted]:
        size = sizes[int(rng.integers(2))]
        radius = RADIUS[size] * rng.uniform(0.93, 1.1)
        place = _place(rng, boxes, radius, radius)
        if place is None:
            continue
        color = draw_paint(rng) if world.painted else np.array(COLORS[names[c]])
        fill = _integers((color + rng.normal(0, 9, 3)).clip(0, 255))
        draw_shape(draw, SHAPES[s], *place, radius, fill, outline=tuple(v // 3 for v in fill))
        name = "" if world.painted else names[c]
        objects.append(SceneObject(name, SHAPES[s], size, float(place[0]), float(place[1]), float(radius)))
    return tuple(objects)


def render(
    rng: np.random.Generator,
    sign_probability: float = 0.6,
    card_probability: float = 0.35,
    world: World = EVALUATION,
) -> tuple[np.ndarray, Scene]:
    """Draw one scene.

    Args:
        rng: source of every random choice; consumed.
        sign_probability: chance of a sign with three characters.
        card_probability: chance of a card with a digit (left out as well when no place is free).
        world: what may appear (see `llava.tiny.worlds`).

    Returns:
        The picture, uint8 [168, 168, 3] RGB, and what it shows. Objects, sign and card never overlap.

    """
    image, draw = _background(rng)
    boxes: list[Box] = []
    sign, sign_at = _sign(rng, draw, boxes, world) if rng.random() < sign_probability else (None, None)
    digit, card_at = (None, None)
    if rng.random() < card_probability:
        digit, card_at = _card(rng, image, draw, boxes, world)
    objects = _objects(rng, draw, boxes, world)
    grain = rng.integers(-12, 13, (IMAGE_SIZE, IMAGE_SIZE, 1), dtype=np.int16)
    pixels = (np.asarray(image, np.int16) + grain).clip(0, 255).astype(np.uint8)
    return pixels, Scene(objects, sign, digit, sign_at, card_at)
