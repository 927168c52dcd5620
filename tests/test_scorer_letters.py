"""MMBench's and MMStar's scorers: letters, rotations, abilities, tables."""

import csv

import pytest
from answer_fixtures import last_json, write_answers

from llava.cli import UserError
from llava.eval import eval_mmstar
from llava.eval.benchmarks.mmbench import MMBENCH, infer_option
from llava.eval.benchmarks.mmbench import read as read_mmbench
from llava.eval.benchmarks.mmstar import MMSTAR, says_option
from llava.eval.metrics.tables import choices_of, is_empty, read_table

CHOICES = {"A": "a red car", "B": "Blue Bus", "C": "green tram"}


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("A", "A"),
        ("B.", "B"),
        ("(C)", "C"),
        ("C. green tram", "C"),
        ("**B**", "B"),
        ("The answer is B", "B"),
        ("b", None),
        ("A or B", None),
        ("D", None),  # no option of this question
        ("It shows a blue bus on a road", "B"),  # by the option's text
        ("a blue bus and a green tram", None),
        ("Cannot say", None),
        ("Z", None),
        ("Z blue bus", None),
        ("C is what I take after long thought about it", None),  # the letter is not among the last five words
        ("The correct answer is C, because A and B are wrong", "C"),
        ("answer is **b** and not A or C at all", "B"),
        ("blue bus " * 20, None),  # far longer than all options together
        ("", None),
    ],
)
def test_mmbenchs_reading_of_an_answer(answer, letter):
    assert infer_option(answer, CHOICES) == letter


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("B", True),
        ("b) x", True),
        ("(B)", True),
        ("Option B", True),
        ("option\nB", True),
        ("The answer is B.", True),
        ("Because", True),
        ("A", False),
        ("The answer B", False),
        ("[B]", False),
        ("", False),
    ],
)
def test_mmstars_reading_of_an_answer(answer, says):
    assert says_option(answer, "B") is says


def test_empty_cells_end_the_options():
    assert choices_of({"A": "x", "B": "y", "C": "nan", "D": "z"}) == {"A": "x", "B": "y"}
    assert choices_of({"A": "0", "B": "false", "C": None}) == {"A": "0", "B": "false"}
    assert [value for value in ("", "NONE", "N/A", "None", "no", "0", None) if not is_empty(value)] == ["no", "0"]


def write_table(path, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    return path


def mmbench_row(index, answer, category="ocr", **more):
    ability = {"category": category, "l2-category": "coarse_perception" if category == "ocr" else "logic_reasoning"}
    return {"index": index, "question": "What\nis it?", "A": "x", "B": "y", "C": "", "answer": answer} | ability | more


@pytest.fixture
def mmbench(tmp_path):
    """Questions 1 (twice: rotated), 2 (twice), 3 (once)."""
    rows = [
        mmbench_row(1, "A"),
        mmbench_row(2, "B", "logic"),
        mmbench_row(3, "A", "logic"),
        mmbench_row(1_000_001, "B"),
        mmbench_row(1_000_002, "A", "logic"),
    ]
    table = write_table(tmp_path / "table.tsv", rows)
    return lambda texts, **options: MMBENCH.score_files(
        table, table, write_answers(tmp_path / "a.jsonl", texts), **options
    )


def test_single_pass_and_circular(mmbench):
    result = mmbench({1: "A", 2: "B", 3: "B", 1000001: "B", 1000002: "B"})
    assert result["accuracy"] == pytest.approx(200 / 3)  # 1 and 2 as they stand
    assert result["circular"] == result.quoted == pytest.approx(100 / 3)  # 2 falls with its rotation
    assert result["groups"]["category"] == {
        "logic": {"accuracy": 50, "count": 2, "circular": 0},
        "ocr": {"accuracy": 100, "count": 1, "circular": 100},
    }
    assert set(result["groups"]["l2-category"]) == {"coarse_perception", "logic_reasoning"}


def test_circular_is_never_above_the_single_pass(mmbench):
    for letters in ("AAAAA", "BBBBB", "ABABA", "ABABB", "BAABA"):
        result = mmbench(dict(zip((1, 2, 3, 1000001, 1000002), letters, strict=True)))
        assert result["circular"] <= result["accuracy"]


def test_an_unreadable_answer_is_wrong_and_counted(mmbench):
    result = mmbench({1: "dunno", 2: "B", 3: "", 1000001: "B", 1000002: "A"})
    assert (result["unreadable"], result["empty"]) == (2, 1)
    assert result["accuracy"] == pytest.approx(100 / 3)


def test_partial_mmbench_counts_only_whole_circles(mmbench):
    texts = {1: "A", 2: "B", 1000002: "A"}
    with pytest.raises(UserError, match="3 of 5 questions answered, 2 missing"):
        mmbench(texts)
    result = mmbench(texts, partial=True)
    assert (result["accuracy"], result["circular"]) == (100, 100)
    assert result["groups"]["category"]["ocr"]["circular"] is None
    assert "-" in MMBENCH.render(result)


def test_a_table_without_rotations_has_no_circular_figure(tmp_path):
    table = write_table(tmp_path / "t.tsv", [mmbench_row(1, "A"), mmbench_row(2, "A")])
    result = MMBENCH.score_files(table, table, write_answers(tmp_path / "a.jsonl", {1: "A", 2: "B"}))
    assert (result["figure"], result["circular"], result.quoted) == ("accuracy", None, 50)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([mmbench_row(1, "C")], "answer 'C' is none of the options A, B"),
        ([mmbench_row(1, "A"), mmbench_row(1, "A")], "occurs twice"),
        ([mmbench_row("x", "A")], "'x' is no number"),
    ],
)
def test_a_malformed_table_is_one_clear_error(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        read_mmbench(None, write_table(tmp_path / "t.tsv", rows))


def test_tables_have_long_cells_quotes_and_their_columns_checked(tmp_path):
    picture = "x" * 300_000  # beyond the csv module's own limit
    before = csv.field_size_limit()
    table = write_table(tmp_path / "t.tsv", [mmbench_row(1, "A", image=picture)])
    ((where, row),) = read_table(table, ("index", "image"))
    assert (row["image"], row["question"], where.rsplit(":", 1)[0]) == (picture, "What\nis it?", str(table))
    assert csv.field_size_limit() == before
    with pytest.raises(UserError, match="column 'bench' is missing; found index, question"):
        list(read_table(table, ("bench",)))
    table.write_text("index\tanswer\n1\n")
    with pytest.raises(UserError, match="t.tsv:2: the row has another number of cells"):
        list(read_table(table, ("index",)))


@pytest.fixture
def mmstar(tmp_path):
    rows = [
        {"index": i, "question": "?", "answer": answer, "category": category, "l2_category": axis}
        for i, answer, category, axis in (
            (0, "A", "math", "geometry"),
            (1, "B", "math", "statistics"),
            (2, "C", "coarse perception", "emotion"),
        )
    ]
    return write_table(tmp_path / "t.tsv", rows)


def test_mmstar_overall_by_capability_and_axis(mmstar, capsys):
    answers = write_answers(mmstar.parent / "a.jsonl", {0: "A", 1: "(b)", 2: "D"})
    assert eval_mmstar.main(["--annotation-file", str(mmstar), "--result-file", str(answers)]) == 0
    result = last_json(capsys.readouterr().out)
    assert result["accuracy"] == pytest.approx(200 / 3)
    assert result["groups"]["capability"] == {
        "coarse perception": {"accuracy": 0, "count": 1},
        "math": {"accuracy": 100, "count": 2},
    }
    assert result["groups"]["axis"]["math / geometry"] == {"accuracy": 100, "count": 1}
    with pytest.raises(UserError, match="1 answers to unknown"):
        MMSTAR.score_files(mmstar, mmstar, write_answers(mmstar.parent / "b.jsonl", {0: "A", 1: "B", 2: "C", 3: "D"}))
