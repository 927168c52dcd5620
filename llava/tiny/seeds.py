"""Which random seeds belong to what, in one place: no picture of a benchmark can have been trained on.

A scene is drawn by `numpy.random.default_rng(seed)`, one seed a picture. `llava.train.tiny` draws from lists of
numbers, `default_rng([run's seed, stage, batch])`, which no single seed equals; what may appear in its pictures is set
apart besides (`llava.tiny.worlds`).
"""

TUNE = range(1_000_000_000, 2_000_000_000)
BENCHMARK = range(2_000_000_000, 3_000_000_000)
TEST = range(3_000_000_000, 4_000_000_000)
PICTURE = TEST[1083]
"""Of docs/scene.png, which the documentation, the notebooks and the tests ask about."""

SPLITS = {"tune": TUNE, "benchmark": BENCHMARK}
_PER_SET = 10_000_000
_PER_BENCHMARK = 1_000_000


def picture_seeds(split: str, number: int, benchmark: int) -> range:
    """Return the seeds of one benchmark's pictures.

    Args:
        split: "benchmark", or "tune" for finding thresholds (pictures and digits that may be looked at while choosing).
        number: which of the 100 disjoint sets of that split (the command line's `--seed`).
        benchmark: 0, 1, 2, …, 9: disjoint pictures for every benchmark of a set.

    Raises:
        ValueError: on an unknown split, or a number outside 0–99.

    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    sets = len(SPLITS[split]) // _PER_SET
    if not 0 <= number < sets or not 0 <= benchmark < _PER_SET // _PER_BENCHMARK:
        raise ValueError(f"seed must be 0 to {sets - 1} and benchmark 0 to 9, got {number} and {benchmark}")
    start = SPLITS[split].start + number * _PER_SET + benchmark * _PER_BENCHMARK
    return range(start, start + _PER_BENCHMARK)
