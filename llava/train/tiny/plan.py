"""Settings of a training run, fixed at its start: device, precision, batch sizes, steps of every stage."""

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from llava.files import write_json

PLAN = "plan.json"
EVALUATIONS = 24
_REPEATS = 5
_CLEARLY = 0.8


@dataclass(frozen=True)
class Settings:
    """Settings fixed at the start of a run.

    precision:
        "bf16" (autocast) or "fp32"
    threads:
        of the training process on a CPU; sums depend on them, in the last digits
    images, tower_images, questions:
        pictures of a batch, of the tower's batches, and questions about each picture
    held_out, reported, greedy:
        scenes of the evaluations while training, of the final report, and of its part that decodes greedily
    steps:
        of every stage
    """

    seed: int
    device: str
    precision: str
    threads: int
    images: int
    tower_images: int
    questions: int
    held_out: int
    reported: int
    greedy: int
    steps: tuple[int, ...] = ()

    @property
    def autocast(self) -> torch.dtype | None:
        """The dtype of autocast, None for float32."""
        return torch.bfloat16 if self.precision == "bf16" else None


def default_settings(seed: int, device: torch.device, threads: int | None, images: int | None) -> Settings:
    """Return the settings for a device, without steps; CUDA gets many more pictures per batch."""
    cuda = device.type == "cuda"
    images = images or (256 if cuda else 10)
    return Settings(
        seed=seed,
        device=str(device),
        precision=faster_precision(device),
        threads=threads or os.cpu_count() or 1,
        images=images,
        tower_images=images * (2 if cuda else 3),
        questions=24 if cuda else 16,
        held_out=128 if cuda else 48,
        reported=512,
        greedy=128 if cuda else 48,
    )


def faster_precision(device: torch.device) -> str:
    """Return "bf16" where a product of the model's size is clearly faster in it than in float32, else "fp32"."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    if device.type != "cpu":
        return "fp32"
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.ones(4096, 192, dtype=dtype), torch.ones(192, 1024, dtype=dtype)
        tries = []
        for _ in range(_REPEATS):
            start = time.perf_counter()
            a @ b
            tries.append(time.perf_counter() - start)
        seconds[dtype] = min(tries)
    return "bf16" if seconds[torch.bfloat16] < _CLEARLY * seconds[torch.float32] else "fp32"


def read_plan(folder: Path) -> Settings | None:
    """Read a run's plan.json; None where there is none. Raises `ValueError` if it is not one."""
    path = folder / PLAN
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Settings(**values | {"steps": tuple(values["steps"])})
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is not the plan of a training run: {error}") from error


def write_plan(folder: Path, settings: Settings) -> None:
    """Write plan.json."""
    write_json(folder / PLAN, asdict(settings))
