"""llava.eval.prepare: published archives, folders and tables into the loader's layout."""

import json

import pytest
from prepare_fixtures import GQA_QUESTIONS, GQA_REFERENCES, LETTER, SHORT, as_base64, jsonl, picture, write_zip

from llava.cli import UserError
from llava.eval.benchmarks import BENCHMARKS
from llava.eval.prepare import Layout, check, prepare
from llava.eval.prepare.__main__ import main
from llava.eval.runner.questions import read_questions

GQA_FILE = "llava_gqa_testdev_balanced.jsonl"


@pytest.fixture
def downloads(tmp_path):
    """GQA as people download it: LLaVA's eval.zip, and the site's two archives."""
    folder = tmp_path / "downloads"
    folder.mkdir()
    write_zip(
        folder / "eval.zip",
        {
            f"gqa/{GQA_FILE}": jsonl(GQA_QUESTIONS),
            f"gqa/answers/{GQA_FILE}": "LLaVA's own answers",
            "pope/llava_pope_test.jsonl": "",
        },
    )
    images = {f"images/{name}.jpg": picture(color) for name, color in (("n1", "red"), ("n2", "blue"), ("n9", "green"))}
    write_zip(folder / "images.zip", images)
    references = {"testdev_balanced_questions.json": json.dumps(GQA_REFERENCES)}
    write_zip(folder / "questions1.2.zip", references | {"val_all_questions.json": "{}"})
    return folder


def loaded(benchmark, out):
    """The question file as the loader reads it; every image must be there."""
    folder = benchmark.at(out)
    questions = read_questions(folder / benchmark.questions, folder / benchmark.images)
    assert all(question.path.is_file() for question in questions)
    return questions


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_gqa_from_its_three_archives_in_any_order(downloads, tmp_path, order):
    archives = [downloads / name for name in ("eval.zip", "images.zip", "questions1.2.zip")]
    gqa = BENCHMARKS["gqa"]
    state, layout = prepare(gqa, [archives[i] for i in order], tmp_path / "out")
    assert (state.questions, state.images, state.images_missing) == (3, 2, [])
    assert [question.text for question in loaded(gqa, tmp_path / "out")] == [row["text"] for row in GQA_QUESTIONS]
    assert state.problems == [f"{GQA_FILE} has 3 questions, expected 12,578"]
    assert layout.written == 4  # no image that no question names, no answers of LLaVA's
    gqa.rehearse(tmp_path / "out" / "gqa")


def test_the_answers_that_come_with_eval_zip_are_no_questions(tmp_path):
    for folder in ("gqa/answers", "answers/gqa", "gqa/results"):
        archive = write_zip(tmp_path / "eval.zip", {f"{folder}/{GQA_FILE}": jsonl(GQA_QUESTIONS)})
        assert prepare(BENCHMARKS["gqa"], [archive], tmp_path / "out")[0].questions == 0


def test_a_second_call_writes_nothing_and_a_broken_image_is_replaced(downloads, tmp_path):
    sources, gqa = sorted(downloads.iterdir()), BENCHMARKS["gqa"]
    prepare(gqa, sources, tmp_path)
    image = tmp_path / "gqa" / gqa.images / "n1.jpg"
    whole = image.read_bytes()
    stamp = (tmp_path / "gqa" / GQA_FILE).stat().st_mtime_ns
    assert prepare(gqa, sources, tmp_path)[1].written == 0
    image.write_bytes(whole[:10])
    layout = prepare(gqa, sources, tmp_path)[1]
    assert (layout.written, image.read_bytes()) == (1, whole)
    assert (tmp_path / "gqa" / GQA_FILE).stat().st_mtime_ns == stamp


def test_question_files_of_ones_own_are_kept_unless_overwrite(downloads, tmp_path):
    gqa, own = BENCHMARKS["gqa"], jsonl(GQA_QUESTIONS[:1])
    (tmp_path / "gqa").mkdir()
    (tmp_path / "gqa" / GQA_FILE).write_text(own)
    assert prepare(gqa, [downloads / "eval.zip"], tmp_path)[0].questions == 1
    assert (tmp_path / "gqa" / GQA_FILE).read_text() == own
    assert prepare(gqa, [downloads / "eval.zip"], tmp_path, overwrite=True)[0].questions == 3


def test_an_unpacked_folder_serves_as_well_even_in_place(downloads, tmp_path):
    out = tmp_path / "eval"
    for name, content in ((GQA_FILE, jsonl(GQA_QUESTIONS)), ("data/testdev_balanced_questions.json", "{}")):
        path = out / "gqa" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    state, layout = prepare(BENCHMARKS["gqa"], [out, downloads / "images.zip"], out)
    assert (state.questions, state.images_missing, layout.written) == (3, [], 2)


def test_what_is_missing_is_named_with_where_to_get_it(downloads, tmp_path, capsys):
    assert main(["gqa", str(downloads / "eval.zip"), "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "data/images: from images.zip of https://cs.stanford.edu" in printed
    assert "testdev_balanced_questions.json: from questions1.2.zip" in printed
    (entry,) = json.loads(printed.strip().split("\n")[-1])["benchmarks"]
    assert (entry["ready"], entry["images_missing"], entry["questions"]) == (False, 2, 3)
    write_zip(tmp_path / "some.zip", {"n2.jpg": picture("blue")})
    main(["gqa", str(tmp_path / "some.zip"), "--out", str(tmp_path)])
    assert "1 of 2 images are missing (n1.jpg): from images.zip" in capsys.readouterr().out


def test_a_source_of_something_else_is_named(downloads, tmp_path, capsys):
    write_zip(tmp_path / "other.zip", {"holiday.jpg": picture("red")})
    told = f"nothing that belongs to gqa was found in {tmp_path / 'other.zip'}\n"
    assert main(["gqa", str(tmp_path / "other.zip"), "--out", str(tmp_path)]) == 1
    assert told in capsys.readouterr().out
    assert main(["gqa", str(tmp_path / "other.zip"), str(downloads / "eval.zip"), "--out", str(tmp_path)]) == 1
    assert "nothing that belongs" not in capsys.readouterr().out


def test_ready_is_exit_status_0(tmp_path, capsys, monkeypatch):
    from llava.tiny.benchmarks import write_benchmarks

    write_benchmarks(tmp_path, questions=10)
    assert main(["gqa_mini,mme_mini,textvqa_mini", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count(" yes\n") == 3


def test_bad_input_is_one_line(tmp_path, capsys):
    def error(*argv):
        status = main([*argv, "--out", str(tmp_path / "out")])
        text = capsys.readouterr().err
        assert text.count("\n") == 1
        return status, text

    assert error("gqqa") == (
        1,
        "error: benchmark 'gqqa' is not known (did you mean gqa?); known are "
        + ", ".join(BENCHMARKS)
        + ", or path/file.py:NAME\n",
    )
    assert error("gqa", str(tmp_path / "no.zip")) == (1, f"error: source not found: {tmp_path / 'no.zip'}\n")
    broken = write_zip(tmp_path / "broken.zip", {"a": "b" * 100})
    broken.write_bytes(broken.read_bytes()[:-30])
    assert "not a whole zip archive" in error("gqa", str(broken))[1]
    (tmp_path / "mmstar.tsv").write_text("index\tquestion\n1\tQ?\n")
    status, text = error("mmstar", str(tmp_path / "mmstar.tsv"))
    assert status == 1
    assert "column 'answer' is missing" in text


def test_an_archive_cannot_write_outside_the_folder(downloads, tmp_path):
    gqa = BENCHMARKS["gqa"]
    evil = write_zip(
        tmp_path / "evil.zip",
        {"../../n1.jpg": picture("red"), "/elsewhere/n2.jpg": picture("red"), f"../{GQA_FILE}": jsonl(GQA_QUESTIONS)},
    )
    prepare(gqa, [evil], tmp_path / "a" / "out")
    assert sorted(p.name for p in (tmp_path / "a" / "out" / "gqa").rglob("*") if p.is_file()) == [
        GQA_FILE,
        "n1.jpg",
        "n2.jpg",
    ]
    assert not (tmp_path / "n1.jpg").exists()
    rows = [GQA_QUESTIONS[0] | {"image": "../../../n1.jpg"}]
    for image in ("../../../n1.jpg", "/etc/n1.jpg"):
        rows[0]["image"] = image
        hostile = write_zip(tmp_path / "hostile.zip", {GQA_FILE: jsonl(rows), "n1.jpg": picture("red")})
        with pytest.raises(UserError, match="must be a path inside"):
            prepare(gqa, [hostile], tmp_path / "b" / "out")
    assert list(tmp_path.rglob("n1.jpg")) == [tmp_path / "a" / "out" / "gqa" / gqa.images / "n1.jpg"]


def test_a_symbolic_link_out_of_the_folder_is_not_written_through(downloads, tmp_path):
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "out" / "gqa" / "data"
    elsewhere.mkdir()
    folder.mkdir(parents=True)
    (folder / "images").symlink_to(elsewhere)
    with pytest.raises(UserError, match="symbolic link leads out"):
        prepare(BENCHMARKS["gqa"], sorted(downloads.iterdir()), tmp_path / "out")
    assert list(elsewhere.iterdir()) == []
    for name, color in (("n1", "red"), ("n2", "blue")):  # images that are there already are used
        (elsewhere / f"{name}.jpg").write_bytes(picture(color))
    assert prepare(BENCHMARKS["gqa"], sorted(downloads.iterdir()), tmp_path / "out")[0].images_missing == []


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    layout = Layout(tmp_path)
    with pytest.raises(RuntimeError), layout.lines("q.jsonl") as write:
        write({"a": 1})
        raise RuntimeError("disk full")
    assert not (tmp_path / "q.jsonl").exists()
    with layout.array("list.json", key="data") as write:
        for number in range(3):
            write({"n": number})
    assert json.loads((tmp_path / "list.json").read_text()) == {"data": [{"n": 0}, {"n": 1}, {"n": 2}]}
    layout.json("map.json", {'a"b': [1]})
    assert layout.read_json("map.json") == {'a"b': [1]}


def test_mme_in_either_layout_of_the_release(tmp_path):
    mme = BENCHMARKS["mme"]
    rows = [
        {"question_id": image, "image": image, "text": f"Is it {word}?\n{SHORT}", "category": image.split("/")[0]}
        for image in ("artwork/images/1.jpg", "count/2.png")
        for word in ("red", "blue")
    ]
    lines = "Is it red? Please answer yes or no.\tYes\nIs it blue? Please answer yes or no.\tNo\n"
    release = "MME_Benchmark_release_version/MME_Benchmark"
    archive = write_zip(
        tmp_path / "mme.zip",
        {
            f"{release}/artwork/images/1.jpg": picture("red"),
            f"{release}/artwork/questions_answers_YN/1.txt": lines,
            f"{release}/count/2.png": picture("blue", "PNG"),
            f"{release}/count/2.txt": lines,
            f"{release}/readme.txt": "hello",
        },
    )
    questions = write_zip(tmp_path / "eval.zip", {"MME/llava_mme.jsonl": jsonl(rows)})
    state, _ = prepare(mme, [archive, questions], tmp_path / "out")
    assert (state.images_missing, state.misfit) == ([], None)
    assert len(loaded(mme, tmp_path / "out")) == 4


def test_scienceqas_questions_get_the_instruction_and_lose_the_text_only_ones(tmp_path):
    scienceqa = BENCHMARKS["scienceqa"]

    def item(number, text, image=None):
        turns = [{"from": "human", "value": text}, {"from": "gpt", "value": "A"}]
        return {"id": number, "conversations": turns} | ({"image": image} if image else {})

    listed = [
        item("4", "Text only?\nA. x\nB. y"),
        item("5", "<image>\nContext: It is hot.\nWhich?\nA. x\nB. y", "5/image.png"),
    ]
    problem = {"choices": ["x", "y"], "answer": 0, "image": None, "question": "?", "hint": ""}
    archive = write_zip(
        tmp_path / "eval.zip",
        {
            "scienceqa/llava_test_CQM-A.json": json.dumps(listed),
            "scienceqa/problems.json": json.dumps({"4": problem, "5": problem | {"image": "image.png"}}),
            "scienceqa/pid_splits.json": json.dumps({"test": ["4", "5"]}),
        },
    )
    images = write_zip(tmp_path / "test.zip", {"test/5/image.png": picture("red", "PNG"), "test/6/image.png": "x"})
    state, _ = prepare(scienceqa, [archive, images], tmp_path / "out")
    (question,) = loaded(scienceqa, tmp_path / "out")
    assert question.text == f"Context: It is hot.\nWhich?\nA. x\nB. y\n{LETTER}"
    assert (state.images, state.misfit) == (1, None)


def mmbench_table(path, rows):
    columns = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "l2-category"]
    lines = ["\t".join(str(row.get(column, "")) for column in columns) for row in rows]
    path.write_text("\n".join(["\t".join(columns), *lines]) + "\n")
    return path


def test_mmbenchs_table_becomes_questions_images_and_a_table_without_images(tmp_path):
    mmbench = BENCHMARKS["mmbench"]
    red = as_base64(picture("red", size=(64, 64)))
    table = mmbench_table(
        tmp_path / "MMBench_dev_en.tsv",
        [
            {"index": 7, "question": "Q?", "hint": "H.", "A": "x", "B": "y", "answer": "A", "image": red},
            {"index": 8, "question": '"""R"" ?"', "hint": "nan", "A": "x", "B": "y", "answer": "B", "image": 7},
            {"index": 1000007, "question": "Q?", "hint": "H.", "A": "y", "B": "x", "answer": "B", "image": red},
            {
                "index": 9,
                "question": "S?",
                "A": "x",
                "B": "None",
                "C": "z",
                "answer": "A",
                "image": as_base64(picture("blue", "PNG")),
            },
        ],
    )
    state, layout = prepare(mmbench, [table], tmp_path / "out")
    questions = loaded(mmbench, tmp_path / "out")
    assert [(question.question_id, question.image) for question in questions] == [
        (7, "7.jpg"),
        (8, "7.jpg"),
        (1000007, "7.jpg"),
        (9, "9.png"),
    ]
    assert questions[0].text == f"H.\nQ?\nA. x\nB. y\n{LETTER}"
    assert questions[1].text == f'"R" ?\nA. x\nB. y\n{LETTER}'
    assert questions[3].text == f"S?\nA. x\n{LETTER}"
    assert (state.images, layout.written) == (2, 4)
    own = tmp_path / "out" / "mmbench" / "mmbench_dev_20230712.tsv"
    assert "image" not in own.read_text().split("\n")[0].split("\t")
    assert prepare(mmbench, [tmp_path / "out"], tmp_path / "out")[1].written == 0
    assert BENCHMARKS["mmbench"].score(own.parent, answers_to(questions, tmp_path, "A"), False)["accuracy"] == 200 / 3


def answers_to(questions, folder, text):
    rows = [{"question_id": q.question_id, "prompt": q.text, "text": text} for q in questions]
    (folder / "answers.jsonl").write_text(jsonl(rows))
    return folder / "answers.jsonl"


def test_a_table_in_its_place_gets_questions_beside_it(tmp_path):
    """LLaVA's documentation puts the table itself into the folder."""
    folder = tmp_path / "mmbench"
    folder.mkdir()
    row = {"index": 7, "question": "Q?", "A": "x", "B": "y", "answer": "A", "image": as_base64(picture("red"))}
    table = mmbench_table(folder / "mmbench_dev_20230712.tsv", [row])
    before = table.read_text()
    prepare(BENCHMARKS["mmbench"], [table], tmp_path)
    assert table.read_text() == before
    assert len(loaded(BENCHMARKS["mmbench"], tmp_path)) == 1


def test_mmstars_table(tmp_path):
    columns = ("index", "question", "answer", "category", "l2_category", "image")
    cells = (0, "Which?  Options: A: x, B: y ", "B", "math", "geometry", as_base64(picture("red")))
    table = tmp_path / "MMStar.tsv"
    table.write_text("\t".join(columns) + "\n" + "\t".join(map(str, cells)) + "\n")
    state, _ = prepare(BENCHMARKS["mmstar"], [table], tmp_path / "out")
    (question,) = loaded(BENCHMARKS["mmstar"], tmp_path / "out")
    assert question.text == f"Which?  Options: A: x, B: y\n{LETTER}"
    assert state.misfit is None


def test_a_table_with_a_damaged_image_names_the_line(tmp_path):
    row = {"index": 7, "question": "Q?", "A": "x", "B": "y", "answer": "A", "image": "!" * 100}
    table = mmbench_table(tmp_path / "mmbench_dev.tsv", [row])
    with pytest.raises(UserError, match="mmbench_dev.tsv:2: the image is not base64"):
        prepare(BENCHMARKS["mmbench"], [table], tmp_path / "out")
    row["image"] = as_base64(b"no picture at all, only a text of some length that is not one either")
    with pytest.raises(UserError, match="image 7: not an image"):
        prepare(BENCHMARKS["mmbench"], [mmbench_table(table, [row])], tmp_path / "out")
    assert not (tmp_path / "out" / "mmbench" / "mmbench_dev_20230712.jsonl").exists()


def test_val_splits_from_the_authors_files(tmp_path):
    questions = {"questions": [{"question_id": 42000, "image_id": 42, "question": "What?"}]}
    entry = {"question_id": 42000, "answers": [{"answer": "x"}] * 10, "answer_type": "other"}
    (tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json").write_text(json.dumps(questions))
    (tmp_path / "v2_mscoco_val2014_annotations.json").write_text(json.dumps({"annotations": [entry]}))
    images = write_zip(tmp_path / "val2014.zip", {"val2014/COCO_val2014_000000000042.jpg": picture("red")})
    vqav2 = BENCHMARKS["vqav2_val"]
    assert prepare(vqav2, [tmp_path, images], tmp_path / "out")[0].misfit is None
    (question,) = loaded(vqav2, tmp_path / "out")
    assert (question.question_id, question.text) == (42000, f"What?\n{SHORT}")

    vizwiz = BENCHMARKS["vizwiz_val"]
    entries = [{"image": "VizWiz_val_0.jpg", "question": "what IS this?", "answers": [{"answer": "x"}] * 10}]
    annotations = write_zip(tmp_path / "Annotations.zip", {"Annotations/val.json": json.dumps(entries)})
    images = write_zip(tmp_path / "val.zip", {"val/VizWiz_val_0.jpg": picture("red")})
    assert prepare(vizwiz, [annotations, images], tmp_path / "out")[0].misfit is None
    (question,) = loaded(vizwiz, tmp_path / "out")
    assert question.text.startswith("What is this?\nWhen the provided information is insufficient")


def test_an_authors_file_of_another_form_is_one_clear_error(tmp_path):
    (tmp_path / "val.json").write_text('[{"image": "a.jpg"}]')
    with pytest.raises(UserError, match="val.json does not have the form it should have: KeyError.'question'"):
        prepare(BENCHMARKS["vizwiz_val"], [tmp_path / "val.json"], tmp_path / "out")


def test_checking_reads_a_folder_without_changing_it(tmp_path):
    state = check(BENCHMARKS["pope"], tmp_path)
    assert (state.questions, len(state.files_missing)) == (0, 5)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "pope").mkdir()
    (tmp_path / "pope" / "llava_pope_test.jsonl").write_text('{"image": 3}\n')
    with pytest.raises(UserError, match="llava_pope_test.jsonl:1: expected a JSON object"):
        check(BENCHMARKS["pope"], tmp_path)


def test_without_pyarrow_a_parquet_file_is_refused_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "test-00000-of-00001.parquet").write_bytes(b"PAR1")
    assert main(["mmvet", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.endswith("reading parquet files needs pyarrow: pip install pyarrow\n")


def test_parquet_inside_an_archive_is_refused(tmp_path):
    archive = write_zip(tmp_path / "x.zip", {"data/test-0.parquet": "PAR1"})
    with pytest.raises(UserError, match="unpack the archive"):
        prepare(BENCHMARKS["mmvet"], [archive], tmp_path / "out")
