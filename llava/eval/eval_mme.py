"""LLaVA's command to score MME answers; llava.eval.score mme finds the files by itself."""

from pathlib import Path

from llava.eval.benchmarks.mme import MME, RELEASE
from llava.eval.score import ANSWERS, OUTPUTS, command, report


def _work(options):
    questions = Path(options.questions)
    references = Path(options.references) if options.references else questions.parent / RELEASE
    report(MME.score_files(questions, references, Path(options.answers), options.partial), options, MME, options.output)


main = command(
    "eval_mme",
    _work,
    "Score MME answers: acc, acc+, perception, cognition.",
    questions=f"llava_mme.jsonl, or the folder {RELEASE}: then all its questions are expected",
    answers=ANSWERS,
    references=(None, f"the folder {RELEASE} (default: beside the questions file)"),
    **OUTPUTS,
)

if __name__ == "__main__":
    raise SystemExit(main())
