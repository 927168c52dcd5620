"""LLaVA's command to score POPE answers; llava.eval.score pope finds the files by itself."""

from llava.eval.score import scorer

main = scorer("eval_pope", "pope", annotation_dir="references", question_file="questions", result_file="answers")

if __name__ == "__main__":
    raise SystemExit(main())
