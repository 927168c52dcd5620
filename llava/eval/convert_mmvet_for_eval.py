"""LLaVA's command: MM-Vet answers as the file that its grader takes, {"v1_0": answer, "v1_1": …}."""

from pathlib import Path

from llava.eval.benchmarks.mmvet import submission
from llava.eval.score import ANSWERS, command, report


def _work(options):
    questions = Path(options.questions) if options.questions else None
    report(submission(questions, Path(options.src), Path(options.dst)), options)


main = command(
    "convert_mmvet_for_eval",
    _work,
    __doc__,
    src=ANSWERS,
    dst="the JSON to write",
    questions=(None, "the question JSONL that was asked: the answers must cover it (default: take them as they are)"),
)

if __name__ == "__main__":
    raise SystemExit(main())
