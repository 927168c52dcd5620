"""LLaVA's command to score MMBench answers; llava.eval.score mmbench finds the files by itself."""

from llava.eval.score import scorer

main = scorer("eval_mmbench", "mmbench", annotation_file="references", result_file="answers")

if __name__ == "__main__":
    raise SystemExit(main())
