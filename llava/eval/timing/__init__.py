"""The parts of `llava.eval.bench`: what is run, the turns that it is run in, and the figures made of that."""


class BenchError(ValueError):
    """What was asked for cannot be measured; one line."""
