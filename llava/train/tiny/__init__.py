"""The small model's recipe, from scratch: `python -m llava.train.tiny`."""

RECIPES = ("pruning-aware", "plain")
STAGE_NAMES = ("tower", "few", "some", "all", "hard")
