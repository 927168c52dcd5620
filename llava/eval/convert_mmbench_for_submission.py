"""LLaVA's command: RESULT_DIR/EXPERIMENT.jsonl to UPLOAD_DIR/EXPERIMENT.xlsx, the Excel file of MMBench's server."""

from pathlib import Path

from llava.eval.benchmarks.mmbench import submission
from llava.eval.score import command, report


def _work(options):
    answers = Path(options.result_dir) / f"{options.experiment}.jsonl"
    upload = Path(options.upload_dir) / f"{options.experiment}.xlsx"
    report(submission(Path(options.annotation_file), answers, upload), options)


main = command(
    "convert_mmbench_for_submission",
    _work,
    __doc__,
    annotation_file="MMBench's TSV, e.g. mmbench_dev_20230712.tsv",
    result_dir="folder of EXPERIMENT.jsonl, the answers",
    upload_dir="folder for EXPERIMENT.xlsx",
    experiment="name of the run",
)

if __name__ == "__main__":
    raise SystemExit(main())
