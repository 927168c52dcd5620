"""Properties of every benchmark's scorer; the rules of each are in test_scorer_NAME.py."""

import importlib
import json

import pytest
from answer_fixtures import SMALL, last_json, small, write_jsonl

from llava.cli import UserError
from llava.eval import score
from llava.eval.benchmarks import BENCHMARKS, benchmark_of
from llava.eval.metrics.answer_files import read_answers

# LLaVA's command of each benchmark: its options for questions, references and answers.
COMMANDS = {
    "gqa": ("eval_gqa", None, "--questions", "--answers"),
    "mme": ("eval_mme", "--questions", "--references", "--answers"),
    "textvqa": ("eval_textvqa", None, "--annotation-file", "--result-file"),
    "pope": ("eval_pope", "--question-file", "--annotation-dir", "--result-file"),
    "scienceqa": ("eval_science_qa", None, "--base-dir", "--result-file"),
    "mmbench": ("eval_mmbench", None, "--annotation-file", "--result-file"),
    "mmstar": ("eval_mmstar", None, "--annotation-file", "--result-file"),
    "vqav2_val": ("eval_vqav2", None, "--annotation-file", "--result-file"),
    "vizwiz_val": ("eval_vizwiz", "--question-file", "--annotation-file", "--result-file"),
}


@pytest.fixture(params=list(SMALL))
def small_set(request, tmp_path):
    """(benchmark, its folder with a small set, rows of random answers, `written(rows)`: their file)."""
    benchmark = BENCHMARKS[request.param]
    folder, rows = small(benchmark, tmp_path)
    return benchmark, folder, rows, lambda rows: write_jsonl(tmp_path / "answers.jsonl", rows)


def test_the_mean_of_the_question_scores_is_the_accuracy(small_set):
    benchmark, folder, rows, written = small_set
    found = benchmark_of(folder / benchmark.questions)
    assert (found.name, found.at("anywhere")) == (benchmark.name, folder.resolve())
    answers = written(rows)
    worth = benchmark.question_scores(
        read_answers(answers), folder / benchmark.questions, benchmark.references_at(folder)
    )
    expected = benchmark.score(folder, answers)["accuracy"]
    assert 0 < expected < 100
    assert 100 * sum(worth.values()) / len(worth) == pytest.approx(expected)
    assert set(worth) <= {(str(row["question_id"]), row["prompt"]) for row in rows}
    (term,) = benchmark.quoted_terms(worth)["accuracy"]
    assert {key: value for key, (value, _) in term.items()} == worth


def test_answers_must_cover_the_questions_unless_partial(small_set):
    benchmark, folder, rows, written = small_set
    unknown = rows[0] | {"question_id": "none/1.png", "prompt": "What?\nAnswer."}
    for changed, message in (
        (rows[1:], "1 missing, 0 duplicate answers, 0 answers to unknown.*first missing"),
        ([*rows, rows[0]], "0 missing, 1 duplicate answers, 0 answers to unknown"),
        ([*rows, unknown], "0 missing, 0 duplicate answers, 1 answers to unknown.*first unknown: .*answers.jsonl"),
    ):
        with pytest.raises(UserError, match=message):
            benchmark.score(folder, written(changed))
        assert benchmark.score(folder, written(changed), partial=True)["partial"] is True
    with pytest.raises(UserError, match="nothing to score"):
        benchmark.score(folder, written([unknown]), partial=True)


def rounded(scores):
    return json.loads(json.dumps(scores), parse_float=lambda number: round(float(number), 6))


def test_the_order_of_answers_does_not_matter_and_empty_ones_are_counted(small_set):
    benchmark, folder, rows, written = small_set
    rows[0]["text"] = " "
    scores, backwards = (benchmark.score(folder, written(some)) for some in (rows, rows[::-1]))
    assert rounded(backwards) == rounded(scores)
    assert (scores["empty"], scores["answered"], scores["questions"]) == (1, len(rows), len(rows))
    assert scores.quoted == scores[scores["figure"]]
    assert json.loads(json.dumps(scores)) == scores


def test_score_and_llavas_command_print_the_scores(small_set, capsys, tmp_path):
    benchmark, folder, rows, written = small_set
    expected = benchmark.score(folder, written(rows[:-1]), partial=True)
    name, questions, references, answers = COMMANDS[benchmark.name]
    given = {questions: folder / benchmark.questions, references: benchmark.references_at(folder)}
    given |= {answers: tmp_path / "answers.jsonl", "--output": tmp_path / "new" / "scores.json"}
    if name == "eval_science_qa":
        given["--base-dir"] = folder
    words = [str(word) for pair in given.items() if pair[0] for word in pair]
    command = importlib.import_module(f"llava.eval.{name}").main
    assert command(words) == 1  # incomplete
    assert "--partial" in capsys.readouterr().err
    assert command([*words, "--partial"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"PARTIAL: {len(rows) - 1} of {len(rows)} questions answered")
    assert last_json(printed) == json.loads((tmp_path / "new" / "scores.json").read_text()) == expected
    out = tmp_path / "again.json"
    words = [benchmark.name, "--data-dir", str(tmp_path), "--answers", str(tmp_path / "answers.jsonl"), "--partial"]
    assert score.main([*words, "--out", str(out)]) == 0
    assert last_json(capsys.readouterr().out) == json.loads(out.read_text()) == expected


@pytest.mark.parametrize("damage", ["{", "[3]", ""])
def test_damaged_references_are_one_line_that_names_the_file(small_set, capsys, damage, tmp_path):
    benchmark, folder, rows, written = small_set
    written(rows)
    path = benchmark.references_at(folder)
    path = next(iter(sorted(path.rglob("*.txt" if benchmark.name == "mme" else "*")))) if path.is_dir() else path
    path.write_text(damage)
    argv = [benchmark.name, "--data-dir", str(tmp_path), "--answers", str(tmp_path / "answers.jsonl")]
    assert score.main(argv) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    with pytest.raises(UserError):
        benchmark.rehearse(folder)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"quest', "answers.jsonl is not valid JSON at line 2.*run what wrote it again"),
        ('\n{"question_id": "1"}', 'answers.jsonl:3: key "text" is missing'),
        ('{"question_id": "1", "text": null}', 'key "text" should be str'),
        ("3", "answers.jsonl:2: expected a JSON object, found int"),
    ],
)
def test_damaged_answers_are_named_with_their_line(tmp_path, line, message):
    folder, rows = small(BENCHMARKS["gqa"], tmp_path)
    file = write_jsonl(tmp_path / "answers.jsonl", rows[:1])
    file.write_text(file.read_text() + line)
    with pytest.raises(UserError, match=message):
        BENCHMARKS["gqa"].score(folder, file)


@pytest.mark.parametrize("name", ["mme", "textvqa"])
def test_an_answer_without_its_prompt_is_named_where_ids_are_not_enough(tmp_path, name):
    folder, rows = small(BENCHMARKS[name], tmp_path)
    del rows[3]["prompt"]
    with pytest.raises(UserError, match='answers.jsonl:4: key "prompt" is missing'):
        BENCHMARKS[name].score(folder, write_jsonl(tmp_path / "answers.jsonl", rows))


def test_answers_to_unknown_questions_have_no_score(tmp_path):
    gqa = BENCHMARKS["gqa"]
    folder, rows = small(gqa, tmp_path)
    answers = read_answers(write_jsonl(tmp_path / "a.jsonl", [rows[0] | {"question_id": "99"}, rows[1]]))
    worth = gqa.question_scores(answers, folder / gqa.questions, gqa.references_at(folder))
    assert list(worth) == [("1", rows[1]["prompt"])]


def test_what_cannot_be_scored_here_says_so(tmp_path, capsys):
    answers = write_jsonl(tmp_path / "a.jsonl", [])
    assert score.main(["mmvet", "--answers", str(answers)]) == 1
    assert "MM-Vet has no references to score with; its answers go to a server" in capsys.readouterr().err
    assert score.main(["gqa", "--answers", str(answers), "--upload", str(tmp_path / "u.json")]) == 1
    assert "GQA has no server" in capsys.readouterr().err


def test_the_benchmark_of_a_question_file_is_its_folders(tmp_path):
    with pytest.raises(UserError, match="no known benchmark's folder; known: gqa, mme"):
        benchmark_of(tmp_path / "nothing" / "q.jsonl")
    with pytest.raises(UserError, match="benchmark 'coco' is not known"):
        benchmark_of(tmp_path / "gqa" / "q.jsonl", kind="coco")
    assert benchmark_of(tmp_path / "gqa_tune" / "q.jsonl").kind == "gqa"
