"""LLaVA's command to score VQAv2 answers; llava.eval.score vqav2_val finds the files by itself."""

from llava.eval.score import scorer

main = scorer("eval_vqav2", "vqav2_val", annotation_file="references", result_file="answers")

if __name__ == "__main__":
    raise SystemExit(main())
