"""The old name of `llava.eval.runner.costs`."""

from llava.eval.runner.costs import STAGES, SUMMED, Costs

Totals = Costs
__all__ = ["STAGES", "SUMMED", "Totals"]
