"""LLaVA's command: VQAv2 answers as the file that its server takes, [{"question_id", "answer"}], answers normalised.

Reads DIR/answers/SPLIT/CKPT/merge.jsonl and writes DIR/answers_upload/SPLIT/CKPT.json.
"""

from pathlib import Path

from llava.eval.benchmarks.vqav2 import TEST, submission
from llava.eval.score import command, report


def _work(options):
    folder, split = Path(options.dir), options.split
    answers = folder / "answers" / split / options.ckpt / "merge.jsonl"
    upload = folder / "answers_upload" / split / f"{options.ckpt}.json"
    report(submission(folder / f"{split}.jsonl", folder / TEST, answers, upload), options)


main = command(
    "convert_vqav2_for_submission",
    _work,
    __doc__,
    dir=("playground/data/eval/vqav2", "default playground/data/eval/vqav2"),
    ckpt="name of the run: answers/SPLIT/CKPT/merge.jsonl",
    split="question file without .jsonl, e.g. llava_vqav2_mscoco_test-dev2015",
)

if __name__ == "__main__":
    raise SystemExit(main())
