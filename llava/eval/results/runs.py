"""The old names of `llava.eval.runner.run`, until their users have switched."""

from llava.cli import UserError as RunError
from llava.eval.runner.run import Key, Run

EvalRun, read_run = Run, Run.read
__all__ = ["EvalRun", "Key", "RunError", "read_run"]
