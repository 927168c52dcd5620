"""The former name of `llava.eval.compare_methods`."""

from llava.eval.compare_methods import main

if __name__ == "__main__":
    raise SystemExit(main())
