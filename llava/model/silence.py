"""`silence`: suppress library output while a model loads; problems that matter are raised as errors."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging


@contextmanager
def silence() -> Iterator[None]:
    """Inside the block transformers shows no progress bar, and it and bitsandbytes log errors alone."""
    bar, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    quantizer = logging.getLogger("bitsandbytes")
    level = quantizer.level
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    quantizer.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
            yield
    finally:
        quantizer.setLevel(level)
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()
