"""A tiny trainer that the tests of llava.train.tiny share: two layers of tower, six of decoder, seconds per run."""

import torch

from llava.tiny.export import Architecture
from llava.train.tiny.packing import vocabulary_size
from llava.train.tiny.plan import Settings
from llava.train.tiny.run import Trainer
from llava.train.tiny.stages import STAGES

SMALL = Architecture(
    vocab_size=vocabulary_size(),
    hidden_size=32,
    layers=6,
    heads=2,
    mlp_size=48,
    vision_hidden_size=32,
    vision_layers=3,
    vision_heads=2,
    vision_mlp_size=48,
)
STEPS = (2,) * len(STAGES)


def settings(steps=STEPS, **changes) -> Settings:
    """Settings of a run that takes seconds."""
    values = dict(
        seed=0,
        device="cpu",
        precision="fp32",
        threads=1,
        images=2,
        tower_images=4,
        questions=4,
        held_out=1,
        reported=1,
        greedy=1,
        steps=steps,
    )
    return Settings(**values | changes)


def trained(recipe=None, start=None, **options) -> Trainer:
    """A small trainer that ran to the end of its stages, from the state `start` if given."""
    trainer = Trainer(settings(**options), recipe, SMALL)
    if start is not None:
        trainer.load_state_dict(start)
    for _ in trainer.run(workers=0):
        pass
    return trainer


def same_weights(a: Trainer, b: Trainer) -> bool:
    """Whether two trainers' parameters are equal to the bit."""
    mine, others = a.model.state_dict(), b.model.state_dict()
    return all(torch.equal(mine[name], others[name]) for name in mine)
