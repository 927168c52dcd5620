"""LLaVA's command to score ScienceQA answers, with its two result files; llava.eval.score scienceqa scores IMG."""

from dataclasses import replace
from pathlib import Path

from llava.eval.benchmarks.scienceqa import SCIENCEQA, llava_results, read_problems
from llava.eval.metrics.answer_files import write_json
from llava.eval.score import ANSWERS, OUTPUTS, command, report


def _work(options):
    base, answers = Path(options.base_dir), Path(options.result_file)
    asked = replace(SCIENCEQA, read=lambda _, base: read_problems(base, options.split, options.img_only))
    scores = asked.score_files(base, base, answers, options.partial)
    if options.output_file or options.output_result:
        for path, document in zip(
            (options.output_file, options.output_result), llava_results(base, answers, options.split), strict=True
        ):
            if path:
                write_json(path, document)
    report(scores, options, asked, options.output)


main = command(
    "eval_science_qa",
    _work,
    "Score ScienceQA answers: option letters, LLaVA's reading.",
    base_dir="folder of pid_splits.json and problems.json",
    result_file=ANSWERS,
    split=("test", "the split that was asked (default test)"),
    img_only=(False, "only the questions with an image were asked"),
    output_file=(None, "also write LLaVA's analysis of every answer to this JSON file"),
    output_result=(None, "also write LLaVA's summary with all readings to this JSON file"),
    **OUTPUTS,
)

if __name__ == "__main__":
    raise SystemExit(main())
