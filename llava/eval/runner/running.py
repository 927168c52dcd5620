"""Old names, until every caller uses `llava.eval.runner.evaluator`."""

from __future__ import annotations

from llava.cli import ModelOptions, part_of
from llava.model.loaded import LoadedModel

Loaded = LoadedModel


class Loader:
    """Loads the model that the first call asks for, and gives the same one to every further call."""

    def __init__(self) -> None:
        self._loaded: LoadedModel | None = None

    def __call__(self, args, plan=None) -> LoadedModel:
        if self._loaded is None:
            self._loaded = LoadedModel.from_path(part_of(ModelOptions, args))
        return self._loaded
