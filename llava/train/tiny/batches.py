"""Training batches: batch number n of a stage is a function of seed, stage and n, whoever draws it and whenever."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from llava.tiny.scenes import IMAGE_SIZE, render
from llava.tiny.worlds import PAINTED, TRAINING
from llava.train.tiny.conversations import STYLES, converse
from llava.train.tiny.labels import GRID, LABELS, dense_labels
from llava.train.tiny.packing import Packed, pack
from llava.train.tiny.pointing import Pointers, draw_pointers

_LEAST_OBJECTS = 2
_PREFETCHED = 3
_SHARED = Path("/dev/shm")


@dataclass(frozen=True)
class Batch:
    """Pictures uint8 [B + P, H, W, 3], dense labels int8 [B + P, 7, 12, 12], conversations about the first B pictures
    and where they look.

    The P others are painted ones, for the tower alone. Its own stage has pictures and labels, and no conversations.
    """

    pictures: torch.Tensor
    labels: torch.Tensor
    packed: Packed | None
    pointers: Pointers | None = None

    def to(self, device: torch.device) -> "Batch":
        """Copy to a device."""
        return _each(self, lambda tensor: tensor.to(device=device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """Copy to page-locked memory (DataLoader calls it)."""
        return _each(self, torch.Tensor.pin_memory)


def _each(record: Any, move: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Apply `move` to every tensor of a dataclass and of the dataclasses in it."""
    moved = {}
    for field in fields(record):
        value = getattr(record, field.name)
        if isinstance(value, torch.Tensor):
            moved[field.name] = move(value)
        elif is_dataclass(value):
            moved[field.name] = _each(value, move)
    return replace(record, **moved)


@dataclass(frozen=True)
class Batches(Dataset):
    """The batches of one stage.

    seed, stage:
        the run's seed and the stage's number; with the batch's number they determine everything drawn
    images, questions:
        pictures of a batch (half as many again of captions), questions about each
    styles:
        how often a batch has each of `STYLES`; empty: pictures alone, always with a sign
    painted:
        pictures more that nothing is asked about
    """

    seed: int
    stage: int
    images: int
    questions: int
    styles: tuple[tuple[str, float], ...] = ()
    painted: int = 0

    def __getitem__(self, number: int) -> Batch:
        """Draw batch `number`."""
        rng = np.random.default_rng([self.seed, self.stage, number])
        count, style = self.images, None
        if self.styles:
            names, weights = zip(*self.styles, strict=True)
            style = STYLES[names[rng.choice(len(names), p=np.array(weights) / sum(weights))]]
            count = self.images if style.kinds else self.images * 3 // 2
        pictures = np.empty((count + self.painted, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        labels = np.empty((count + self.painted, len(LABELS), GRID, GRID), np.int8)
        scenes, conversations = [], []
        signs, cards = (0.75, 0.5) if style else (1.0, 0.8)
        for i in range(count + self.painted):
            scene = None
            while scene is None or len(scene.objects) < _LEAST_OBJECTS:
                pictures[i], scene = render(rng, signs, cards, TRAINING if i < count else PAINTED)
            labels[i] = dense_labels(scene)
            if style and i < count:
                scenes.append(scene)
                conversations.append(converse(scene, rng, style, self.questions, TRAINING))
        packed = pack(conversations) if style else None
        pointers = draw_pointers(scenes, conversations, packed) if packed else None
        return Batch(torch.from_numpy(pictures), torch.from_numpy(labels), packed, pointers)


def fitting_workers(batches: Batches, workers: int, shared_bytes: int | None = None) -> int:
    """Return how many of `workers` processes can have their batches in shared memory at once; at least one, if any.

    shared_bytes: free there; None: what /dev/shm has, as much as needed where there is none.
    """
    if shared_bytes is None:
        if not _SHARED.is_dir():
            return workers
        shared_bytes = shutil.disk_usage(_SHARED).free
    largest = IMAGE_SIZE * IMAGE_SIZE * 3 * (batches.images * 3 // 2 + batches.painted)
    return min(workers, max(1, shared_bytes // (2 * _PREFETCHED * largest)))


def load(batches: Batches, start: int, stop: int, workers: int, pin: bool) -> DataLoader:
    """Yield batches `start` to `stop` - 1 in order, drawn ahead by `workers` processes (0: drawn when asked for)."""
    workers = fitting_workers(batches, workers)
    return DataLoader(
        batches,
        batch_size=None,
        sampler=range(start, stop),
        num_workers=workers,
        pin_memory=pin,
        prefetch_factor=_PREFETCHED if workers else None,
    )
