"""TextVQA (validation): short answers with OCR tokens in the prompt, M4C's soft accuracy against ten annotators.

Questions are found as LLaVA does: by image id and the question inside the prompt, lower-cased (in LLaVA's question file
`question_id` is the image id).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from llava.cli import UserError
from llava.eval.benchmarks.base import EVAL_ZIP, Benchmark, Conversion, References
from llava.eval.benchmarks.files import question_row, read_entries
from llava.eval.benchmarks.prompts import SHORT, short_answer
from llava.eval.metrics.answer_files import Answer, field
from llava.eval.metrics.judges import vqa

QUESTIONS = "llava_textvqa_val_v051_ocr.jsonl"
IMAGES = "train_images"
REFERENCES = "TextVQA_0.5.1_val.json"
ANNOTATORS = 10
_OCR_FIRST = re.compile(r"Question: (.*?) Short answer:", re.DOTALL)
_SITE = "https://dl.fbaipublicfiles.com/textvqa"
_HUB = "or the hub's lmms-lab/textvqa"


def read(questions: Path, references: Path) -> References:
    """The ten answers of each question, by (image id, question), from {"data": [{"image_id", "question", "answers"}]}.

    Raises `UserError`: the file is missing or malformed, a question has not ten answers.
    """
    keys, answers_of, aliases = [], {}, {}
    for where, entry in read_entries(references, "data"):
        question = field(entry, "question", where).lower()
        key = (str(field(entry, "image_id", where, (str, int))), question)
        answers = field(entry, "answers", where, list)
        if len(answers) != ANNOTATORS or not all(isinstance(answer, str) for answer in answers):
            raise UserError(f'{where}: "answers" should hold {ANNOTATORS} strings, found {len(answers)} entries')
        keys.append(key)
        answers_of[key] = answers  # a question asked twice of one image: the last entry counts, as in LLaVA
        if "question_id" in entry:
            aliases[str(entry["question_id"]), question] = key

    def key_of(answer: Answer) -> tuple[str, str]:
        try:
            key = (answer.question_id, question_of_prompt(answer.asked))
        except UserError as error:
            raise error if answer.prompt is None else UserError(f"{answer.where}: {error}") from None
        return key if key in answers_of else aliases.get(key, key)

    return References(answers_of, keys, key_of)


def question_of_prompt(prompt: str) -> str:
    """The question inside a LLaVA TextVQA prompt, lower-cased.

    The prompt shapes: "OCR tokens: … Question: … Short answer:"; three lines, one of them "Reference OCR token: …"
    before or after the question; two lines, the question first.

    Raises `UserError`: the prompt has none of these shapes.
    """
    lines = prompt.split("\n")
    if prompt.startswith("OCR tokens: "):
        found = _OCR_FIRST.search(prompt)
        if found is not None:
            return found.group(1).lower()
    elif "Reference OCR token: " in prompt and len(lines) == 3:
        return lines[1 if prompt.startswith("Reference OCR token:") else 0].lower()
    elif len(lines) == 2:
        return lines[0].lower()
    raise UserError(
        f"the prompt {prompt[:80]!r} has none of LLaVA's TextVQA shapes: question and instruction on two lines, "
        'these with a "Reference OCR token: " line, or "OCR tokens: … Question: … Short answer:"'
    )


def prompt(question: str, ocr_tokens: Sequence[str]) -> str:
    """The prompt: only the first letter is upper case; the OCR line is present even without tokens."""
    return short_answer(f"{question.capitalize()}\nReference OCR token: {', '.join(ocr_tokens)}")


def _write(rows, layout):
    """lmms-lab/textvqa, validation."""
    kept = ("question_id", "question", "image_id", "answers")
    with layout.lines(QUESTIONS) as write, layout.array(REFERENCES, key="data") as write_reference:
        for row in rows:
            image = f"{row['image_id']}.jpg"
            layout.image(f"{IMAGES}/{image}", row["image"])
            write(question_row(row["image_id"], image, prompt(row["question"], row["ocr_tokens"] or [])))
            write_reference({key: row[key] for key in kept})


TEXTVQA = Benchmark(
    name="textvqa",
    title="TextVQA",
    folder="textvqa",
    questions=QUESTIONS,
    images=IMAGES,
    suffix=f"\n{SHORT}",
    questions_from=f"{EVAL_ZIP}, {_HUB}",
    images_from=f"{_SITE}/images/train_val_images.zip, {_HUB}",
    references_from=f"{_SITE}/data/TextVQA_0.5.1_val.json, {_HUB}",
    counts=(5000,),
    references=REFERENCES,
    read=read,
    judge=vqa,
    conversions=(Conversion("validation-*.parquet", "image_id question_id question image answers ocr_tokens", _write),),
)
