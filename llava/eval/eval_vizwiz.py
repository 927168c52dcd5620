"""LLaVA's command to score VizWiz answers; llava.eval.score vizwiz_val finds the files by itself."""

from llava.eval.score import scorer

main = scorer(
    "eval_vizwiz", "vizwiz_val", annotation_file="references", question_file="questions", result_file="answers"
)

if __name__ == "__main__":
    raise SystemExit(main())
