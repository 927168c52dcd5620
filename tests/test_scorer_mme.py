"""MME's scorer against hand-computed cases of the official rules."""

import json

import pytest

from llava.cli import UserError
from llava.eval.benchmarks.mme import MME, TASKS, parse_yes_no, read_release


def score(questions, answers, partial=False):
    return MME.score_files(questions, questions.parent / "MME_Benchmark_release_version", answers, partial)


SHORT = "\nAnswer the question using a single word or phrase."
ASK = " Please answer yes or no."
DOG, CAT = "Is there a dog?" + ASK, "Is there a cat?" + ASK


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Yes", "yes"),
        ("no.", "no"),
        ("Yes, it is.", "yes"),
        ("NO", "no"),
        (" yes", "yes"),
        ("not sure", "no"),  # the official rule looks for "no" within four characters, whatever the word
        ("know", "no"),
        ("I don't know", "other"),
        ("The answer is yes", "other"),
        ("  yes", "other"),  # cut after four characters: "  ye"
        ("ye", "other"),
        ("", "other"),
    ],
)
def test_parsing_looks_at_four_characters(text, label):
    assert parse_yes_no(text) == label


@pytest.fixture
def release(tmp_path):
    """Two tasks, two images each; `count` has the layout with sub-folders, `existence` the flat one."""
    root = tmp_path / "MME_Benchmark_release_version"
    for task, sub in (("existence", ""), ("count", "questions_answers_YN"), ("code_reasoning", "")):
        folder = root / task / sub
        folder.mkdir(parents=True)
        (root / task / ("images" if sub else "")).mkdir(exist_ok=True)
        for image in ("0001", "0002"):
            (folder / f"{image}.txt").write_text(f"{DOG}\tYes\n{CAT}\tNo\n")
    (root / "eval_tool").mkdir()
    return root


def questions_file(release, *tasks):
    rows = [
        {"question_id": f"{task}/{image}.png", "image": f"{task}/{image}.png", "text": question + SHORT}
        for task in tasks
        for image in ("0001", "0002")
        for question in (DOG, CAT)
    ]
    path = release.parent / "llava_mme.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_answers(release, rows):
    path = release.parent / "answers.jsonl"
    lines = [json.dumps({"question_id": i, "prompt": question + SHORT, "text": text}) for i, question, text in rows]
    path.write_text("\n".join(lines))
    return path


def answers_for(task, texts):
    """The task's four answers: image 1 dog, cat, image 2 dog, cat (right: yes, no, yes, no)."""
    slots = [(f"{task}/{image}.png", question) for image in ("0001", "0002") for question in (DOG, CAT)]
    return [(i, question, text) for (i, question), text in zip(slots, texts, strict=True)]


def test_both_layouts_of_the_release_are_read(release):
    references = read_release(release)
    assert len(references) == 12
    assert references["count", "0001.txt", DOG] == "yes"
    assert references["existence", "0002.txt", CAT] == "no"


def test_acc_acc_plus_and_score_of_a_task(release):
    rows = answers_for("existence", ["Yes", "No", "Yes", "Yes"]) + answers_for("count", ["yes", "no", "maybe", "no"])
    result = score(questions_file(release, "existence", "count"), write_answers(release, rows))
    assert result["groups"]["task"]["existence"] == {
        "acc": 75,
        "acc_plus": 50,
        "score": 125,
        "count": 4,
        "images": 2,
        "other": 0,
    }
    assert result["groups"]["task"]["count"]["score"] == 125
    assert result["groups"]["task"]["count"]["other"] == 1
    assert result["perception"] == 250
    assert result["cognition"] is None
    assert result["accuracy"] == 75


def test_all_right_is_200_a_task_and_all_other_is_0(release):
    questions = questions_file(release, "existence", "code_reasoning")
    right = answers_for("existence", ["Yes", "No"] * 2)
    result = score(questions, write_answers(release, right + answers_for("code_reasoning", ["perhaps"] * 4)))
    assert (result["perception"], result["cognition"], result["total"]) == (200, 0, 200)


def test_absent_tasks_are_said_to_be_absent(release, capsys):
    rows = answers_for("existence", ["Yes", "No"] * 2)
    result = score(questions_file(release, "existence"), write_answers(release, rows))
    official = [task for names in TASKS.values() for task in names]
    assert result["absent"] == [task for task in official if task != "existence"]
    table = MME.render(result)
    assert "absent tasks (not in the sums): count" in table
    assert "commonsense_reasoning" in table


def test_the_release_folder_as_questions_expects_all_of_it(release):
    rows = [row for task in ("existence", "count", "code_reasoning") for row in answers_for(task, ["Yes", "No"] * 2)]
    assert score(release, write_answers(release, rows))["total"] == 600
    with pytest.raises(UserError, match="8 of 12 questions answered, 4 missing"):
        score(release, write_answers(release, rows[:8]))


def test_a_task_of_no_official_list_enters_no_sum(release):
    (release / "existence").rename(release / "unheard_of")
    rows = answers_for("unheard_of", ["Yes", "No"] * 2)
    result = score(questions_file(release, "unheard_of"), write_answers(release, rows))
    assert result["unofficial"] == ["unheard_of"]
    assert result["groups"]["task"]["unheard_of"]["score"] == 200
    assert (result["perception"], result["total"]) == (None, 0)


def test_the_yes_or_no_instruction_is_put_back_where_the_prompt_lacks_it(release):
    (release / "existence" / "0001.txt").write_text(f"Is there a dog?{ASK}\tYes\nIs there a cat? {ASK}\tNo\n")
    rows = [(i, q.replace(ASK, ""), t) for i, q, t in answers_for("existence", ["Yes", "No"] * 2)]
    path = release.parent / "llava_mme.jsonl"
    path.write_text("".join(json.dumps({"question_id": i, "text": q + SHORT}) + "\n" for i, q, _ in rows))
    assert score(path, write_answers(release, rows))["perception"] == 200


def test_an_image_with_one_answer_counts_in_acc_but_not_in_acc_plus(release):
    questions = questions_file(release, "existence")
    answers = write_answers(release, answers_for("existence", ["Yes", "No", "No", "No"])[:3])
    with pytest.raises(UserError, match="3 of 4 questions answered, 1 missing"):
        score(questions, answers)
    task = score(questions, answers, partial=True)["groups"]["task"]["existence"]
    assert task["acc"] == pytest.approx(200 / 3)
    assert (task["acc_plus"], task["images"], task["count"]) == (100, 1, 3)


def test_an_image_without_two_questions_is_refused(release):
    (release / "count" / "questions_answers_YN" / "0002.txt").write_text(f"{DOG}\tYes\n")
    with pytest.raises(UserError, match="two questions per image, but 1 .*count/0002.txt with 1"):
        score(release, write_answers(release, []))


@pytest.mark.parametrize("line", [f"{DOG} Yes", f"{DOG}\tMaybe", f"{DOG}\tYes\tNo"])
def test_a_malformed_reference_line_is_named(release, line):
    (release / "existence" / "0001.txt").write_text(f"{CAT}\tNo\n{line}\n")
    with pytest.raises(UserError, match="0001.txt:2: expected"):
        read_release(release)
