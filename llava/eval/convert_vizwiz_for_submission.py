"""LLaVA's command: VizWiz answers as the file that its server takes, [{"image", "answer"}], answers normalised."""

from pathlib import Path

from llava.eval.benchmarks.vizwiz import submission
from llava.eval.score import ANSWERS, command, report


def _work(options):
    files = (options.annotation_file, options.result_file, options.result_upload_file)
    report(submission(*map(Path, files)), options)


main = command(
    "convert_vizwiz_for_submission",
    _work,
    __doc__,
    annotation_file="the question JSONL that was asked (llava_test.jsonl)",
    result_file=ANSWERS,
    result_upload_file="the JSON to write",
)

if __name__ == "__main__":
    raise SystemExit(main())
