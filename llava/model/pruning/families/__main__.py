"""The command `python -m llava.model.pruning.families`, which lives among the commands."""

from llava.eval.models import main

if __name__ == "__main__":
    raise SystemExit(main())
