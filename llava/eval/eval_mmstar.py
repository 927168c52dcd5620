"""LLaVA's command to score MMStar answers; llava.eval.score mmstar finds the files by itself."""

from llava.eval.score import scorer

main = scorer("eval_mmstar", "mmstar", annotation_file="references", result_file="answers")

if __name__ == "__main__":
    raise SystemExit(main())
