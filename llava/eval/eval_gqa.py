"""LLaVA's command to score GQA answers; llava.eval.score gqa finds the files by itself."""

from llava.eval.score import scorer

main = scorer("eval_gqa", "gqa", questions="references", answers="answers")

if __name__ == "__main__":
    raise SystemExit(main())
