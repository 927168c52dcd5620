"""The picture that documentation, notebooks and tests share, docs/scene.png, and what it shows."""

from pathlib import Path

import numpy as np

from llava.tiny.scenes import render
from llava.tiny.worlds import PICTURE

PATH = Path(__file__).parents[1] / "docs/scene.png"
PIXELS, SCENE = render(np.random.default_rng(PICTURE))
QUESTION = "What is written on the sign?"
