"""LLaVA's command to score TextVQA answers; llava.eval.score textvqa finds the files by itself."""

from llava.eval.score import scorer

main = scorer("eval_textvqa", "textvqa", annotation_file="references", result_file="answers")

if __name__ == "__main__":
    raise SystemExit(main())
