"""MMStar: option letters on questions that cannot be answered without the image; six capabilities, eighteen axes.

Letters are parsed by MMStar's own rule; the overall figure is the share of correct answers, as there. (lmms-eval parses
letters differently and averages over axes.) MMStar is not in LLaVA and gets MMBench's instruction.
"""

from __future__ import annotations

from pathlib import Path

from llava.cli import UserError
from llava.eval.benchmarks.base import Benchmark, Conversion, References
from llava.eval.benchmarks.files import question_row
from llava.eval.benchmarks.prompts import LETTER
from llava.eval.metrics.tables import LETTERS, read_table

QUESTIONS = "mmstar_val.jsonl"
TABLE = "mmstar_val.tsv"
IMAGES = "images"
_COLUMNS = "index question answer category l2_category"
_LEADS = ("", "(", "option ", "the answer is ")
_FROM = "the hub's Lin-Chen/MMStar, its mmstar.parquet or MMStar.tsv (llava.eval.prepare writes it)"


def says_option(answer: str, letter: str) -> bool:
    """Whether MMStar's evaluation reads `letter` in an answer.

    Capitals aside, the answer must begin with the letter, or with it after "(", "option " or "the answer is ". What
    follows does not matter: "Because …" says B.
    """
    text = answer.lower().strip().replace("\n", " ")
    wanted = letter.lower().strip()
    return any(text.startswith(lead + wanted) for lead in _LEADS)


def judge(text: str, reference: dict[str, str]) -> float:
    """1 where the answer says the row's option, else 0."""
    return float(says_option(text, reference["answer"]))


def read(questions: Path, references: Path) -> References:
    """The table's rows by index.

    Raises `UserError`: as in `read_table`; an index that occurs twice, an answer that is no option letter.
    """
    needed = ("index", "answer", "category", "l2_category")
    rows: dict[str, dict[str, str]] = {}
    for where, row in read_table(references, needed):
        if row["index"] in rows:
            raise UserError(f"{where}: index {row['index']!r} occurs twice")
        if row["answer"].strip() not in tuple(LETTERS):
            raise UserError(f"{where}: answer {row['answer']!r} should be one of {', '.join(LETTERS)}")
        rows[row["index"]] = {column: row[column] for column in needed}
    return References(rows)


def groups(row: dict[str, str]) -> list[tuple[str, str]]:
    """The row's core capability, and its axis within it."""
    return [("capability", row["category"]), ("axis", f"{row['category']} / {row['l2_category']}")]


def prompt(question: str) -> str:
    """The prompt: the question, which contains its options, and the instruction."""
    return f"{question.strip()}\n{LETTER}"


def _write(rows, layout):
    """The questions, the table without its images, the images."""
    kept = []
    with layout.lines(QUESTIONS) as write:
        for row in rows:
            image = layout.image_name(str(row["index"]), row["image"])
            layout.image(f"{IMAGES}/{image}", row["image"])
            write(question_row(str(row["index"]), image, prompt(row["question"]), row["category"]))
            kept.append({key: str(row[key]) for key in _COLUMNS.split()})
    layout.table(TABLE, kept)


MMSTAR = Benchmark(
    name="mmstar",
    title="MMStar",
    folder="mmstar",
    questions=QUESTIONS,
    images=IMAGES,
    suffix=f"\n{LETTER}",
    max_new_tokens=1024,
    questions_from=_FROM,
    images_from=_FROM,
    references_from=_FROM,
    counts=(1500,),
    references=TABLE,
    read=read,
    judge=judge,
    groups=groups,
    conversions=(
        Conversion("mmstar.parquet *.parquet", f"{_COLUMNS} image", _write),
        Conversion("mmstar*.tsv", f"{_COLUMNS} image", _write),
    ),
)
