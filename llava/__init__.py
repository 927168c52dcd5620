"""VisiPruner: training-free pruning of visual tokens in multimodal LLMs.

`from llava import load_pretrained_model, prune, PruningConfig` is the public face.
"""

import sys
from importlib import import_module

__version__ = "0.1.0"

_PUBLIC = {
    "PruningConfig": ".model.pruning",
    "PruningTrace": ".model.pruning",
    "load_pretrained_model": ".model.builder",
    "prune": ".model.pruning",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str):
    # on demand: the scorers and the benchmark writer need neither torch nor transformers
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _one_line_interrupt(kind, error, traceback):
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


if sys.argv[:1] == ["-m"]:  # `python -m llava.…` looks for its module: Ctrl-C is one line before `main` runs, too
    sys.excepthook = _one_line_interrupt
