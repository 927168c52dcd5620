"""llava.eval.prepare on snapshots of the hub's data sets, made up in their columns."""

import json

import pyarrow
import pytest
from prepare_fixtures import LETTER, SHORT, jsonl, picture, read_jsonl
from pyarrow import parquet

from llava.cli import UserError
from llava.eval.benchmarks import BENCHMARKS
from llava.eval.prepare import Layout, prepare
from llava.eval.prepare.rows import BATCH, choose
from llava.eval.prepare.rows import parquet_rows as rows
from llava.eval.runner.questions import read_questions

RED, BLUE = picture("red"), picture("blue", "PNG")
IMAGE = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


def cell(data):
    return {"bytes": data, "path": None}


def write(path, table_rows, images=True):
    """A parquet file of rows; the column "image" as the hub stores images."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.Table.from_pylist(table_rows)
    if images and "image" in table_rows[0]:
        values = pyarrow.array([row["image"] for row in table_rows], IMAGE)
        table = table.set_column(table.schema.get_field_index("image"), "image", values)
    parquet.write_table(table, path, row_group_size=3)
    return path


def loaded(name, out):
    benchmark = BENCHMARKS[name]
    folder = benchmark.at(out)
    questions = read_questions(folder / benchmark.questions, folder / benchmark.images)
    assert all(question.path.is_file() for question in questions)
    assert all(question.text.endswith(benchmark.suffix) for question in questions)
    return questions


def prepared(name, source, out):
    """Prepare from one snapshot: all of it but the number of questions must be as it should."""
    state, layout = prepare(BENCHMARKS[name], [source], out)
    assert (state.images_missing, state.files_missing, state.misfit) == ([], [], None)
    assert prepare(BENCHMARKS[name], [source], out)[1].written == 0  # a second call finds everything
    return loaded(name, out), layout


def test_gqa(tmp_path):
    hub, types = tmp_path / "hub", {"structural": "verify", "semantic": "attr", "detailed": "color"}
    question = {"id": "1", "imageId": "n1", "question": "Is it red?", "answer": "yes", "isBalanced": True}
    write(hub / "testdev_balanced_instructions" / "testdev-0.parquet", [question | {"types": types}])
    write(hub / "testdev_all_instructions" / "testdev-0.parquet", [question | {"id": "2"}])
    write(hub / "testdev_balanced_images" / "testdev-0.parquet", [{"id": "n1", "image": cell(RED)}])
    (asked,), _ = prepared("gqa", hub, tmp_path)
    assert (asked.question_id, asked.image, asked.text) == ("1", "n1.jpg", f"Is it red?\n{SHORT}")
    references = json.loads((tmp_path / "gqa" / "data" / "testdev_balanced_questions.json").read_text())
    assert references["1"]["types"] == types


def test_mme(tmp_path):
    source = write(
        tmp_path / "hub" / "data" / "test-00000-of-00001.parquet",
        [
            {
                "question_id": f"{task}/{file}",
                "question": f"Is it {word}? Please answer yes or no.",
                "answer": answer,
                "category": task,
                "image": cell(RED),
            }
            for task, file in (("count", "1.jpg"), ("artwork", "2.jpg"))
            for word, answer in (("red", "Yes"), ("blue", "No"))
        ],
    )
    asked, _ = prepared("mme", source, tmp_path)
    assert [question.image for question in asked] == ["count/1.jpg"] * 2 + ["artwork/2.jpg"] * 2
    assert asked[1].text == f"Is it blue?\n{SHORT}"
    # With LLaVA's question file in place its paths are used.
    own = [
        {"question_id": i, "image": i, "text": q.text, "category": "artwork"}
        for i, q in (("artwork/images/2.jpg", asked[2]), ("artwork/images/2.jpg", asked[3]))
    ]
    (tmp_path / "other" / "MME").mkdir(parents=True)
    (tmp_path / "other" / "MME" / "llava_mme.jsonl").write_text(jsonl(own))
    asked, _ = prepared("mme", source, tmp_path / "other")
    assert [question.image for question in asked] == ["artwork/images/2.jpg"] * 2


def test_textvqa(tmp_path):
    row = {
        "image_id": "ab12",
        "question_id": 7,
        "question": "what BRAND is it?",
        "answers": ["nokia"] * 10,
        "ocr_tokens": ["NOKIA", "3310"],
        "image": cell(RED),
    }
    write(tmp_path / "hub" / "data" / "train-0.parquet", [row | {"question": "of the wrong split"}])
    write(tmp_path / "hub" / "data" / "validation-0.parquet", [row, row | {"question": "and?", "ocr_tokens": []}])
    asked, layout = prepared("textvqa", tmp_path / "hub", tmp_path)
    assert asked[0].text == f"What brand is it?\nReference OCR token: NOKIA, 3310\n{SHORT}"
    assert asked[1].text == f"And?\nReference OCR token: \n{SHORT}"
    assert layout.written == 3


def test_pope_ids_are_unique_over_the_splits(tmp_path):
    source = write(
        tmp_path / "hub" / "data" / "test-0.parquet",
        [
            {
                "id": str(number),
                "question_id": "1",
                "question": "Is there a dog in the image?",
                "answer": "yes",
                "image_source": "COCO_val2014_000000000001",
                "category": split,
                "image": cell(RED),
            }
            for number, split in enumerate(("adversarial", "popular", "random"))
        ],
    )
    asked, layout = prepared("pope", source, tmp_path)
    assert [question.question_id for question in asked] == [1, 20_000_001, 10_000_001]
    assert layout.written == 5
    assert asked[0].image == "COCO_val2014_000000000001.jpg"


def test_scienceqa(tmp_path):
    row = {"question": "Which?", "choices": ["x", "y"], "answer": 1, "hint": "Hot.", "subject": "natural science"}
    source = tmp_path / "hub"
    write(
        source / "ScienceQA-IMG" / "test-0.parquet",
        [row | {"image": cell(BLUE)}, row | {"image": cell(BLUE), "hint": ""}],
    )
    write(source / "ScienceQA-FULL" / "test-0.parquet", [row | {"image": cell(BLUE)}] * 5)
    asked, _ = prepared("scienceqa", source, tmp_path)
    assert [question.text for question in asked] == [
        f"Context: Hot.\nWhich?\nA. x\nB. y\n{LETTER}",
        f"Which?\nA. x\nB. y\n{LETTER}",
    ]


def test_mmbench(tmp_path):
    row = {"question": "Q?", "hint": "nan", "A": "x", "B": "y", "C": "nan", "D": None, "category": "ocr"}
    more = {"source": "s", "L2-category": "coarse_perception", "comment": "nan", "split": "dev"}
    source = tmp_path / "hub"
    write(
        source / "en" / "dev-0.parquet",
        [
            row | more | {"index": 5, "answer": "A", "image": cell(RED)},
            row | more | {"index": 1_000_005, "answer": "B", "A": "y", "B": "x", "image": cell(RED)},
        ],
    )
    write(source / "cn" / "dev-0.parquet", [row | more | {"index": 6, "answer": "A", "image": cell(RED)}])
    asked, _ = prepared("mmbench", source, tmp_path)
    assert [(question.question_id, question.image) for question in asked] == [(5, "5.jpg"), (1_000_005, "5.jpg")]
    assert asked[1].text == f"Q?\nA. y\nB. x\n{LETTER}"


@pytest.mark.parametrize("images", [True, False], ids=["struct", "bytes"])
def test_mmstar_with_images_as_struct_or_bytes(tmp_path, images):
    row = {"index": 3, "question": "Q?\nOptions: A: x", "answer": "A", "category": "math", "l2_category": "geometry"}
    source = write(tmp_path / "mmstar.parquet", [row | {"image": cell(RED) if images else RED}], images)
    (asked,), _ = prepared("mmstar", source, tmp_path / "out")
    assert (asked.image, asked.text) == ("3.jpg", f"Q?\nOptions: A: x\n{LETTER}")


def test_mmvet(tmp_path):
    row = {"question_id": "v1_12", "question": "Who?", "answer": "x", "capability": "rec", "image": cell(BLUE)}
    (asked,), _ = prepared("mmvet", write(tmp_path / "test-0.parquet", [row]), tmp_path / "out")
    assert (asked.question_id, asked.image, asked.text) == (12, "v1_12.png", "Who?")
    bad = write(tmp_path / "bad" / "test-0.parquet", [row | {"question_id": "12"}])
    with pytest.raises(UserError, match="'12' should be v1_ and a number"):
        prepare(BENCHMARKS["mmvet"], [bad], tmp_path / "else")


def test_vqav2s_splits_share_a_folder(tmp_path):
    row = {"question_id": 420, "image_id": 42, "question": "What?", "image": cell(RED)}
    answers = [{"answer": "x", "answer_confidence": "yes", "answer_id": i} for i in range(10)]
    more = {"question_type": "what", "answer_type": "other", "multiple_choice_answer": "x", "answers": answers}
    data = tmp_path / "hub" / "data"
    write(data / "testdev-0.parquet", [row])
    write(data / "test-0.parquet", [row, row | {"question_id": 421}])
    write(data / "validation-0.parquet", [row | more | {"question_id": 422}])
    (asked,), _ = prepared("vqav2", tmp_path / "hub", tmp_path)
    assert (asked.question_id, asked.image) == (420, "COCO_test2015_000000000042.jpg")
    assert len(read_jsonl(tmp_path / "vqav2" / "llava_vqav2_mscoco_test2015.jsonl")) == 2
    (asked,), _ = prepared("vqav2_val", tmp_path / "hub", tmp_path)
    assert (asked.question_id, asked.image) == (422, "COCO_val2014_000000000042.jpg")


def test_vizwiz(tmp_path):
    row = {"question": "what IS this?", "answers": ["x"] * 10, "category": "other", "image": cell(RED)}
    data = tmp_path / "hub" / "data"
    write(data / "test-0.parquet", [row | {"question_id": "VizWiz_test_00000000.jpg"}])
    write(data / "val-0.parquet", [row | {"question_id": "VizWiz_val_00000003"}])
    for name, image in (("vizwiz", "VizWiz_test_00000000.jpg"), ("vizwiz_val", "VizWiz_val_00000003.jpg")):
        (asked,), _ = prepared(name, tmp_path / "hub", tmp_path)
        assert (asked.question_id, asked.image) == (0, image)
        assert asked.text.startswith("What is this?\nWhen")


def test_an_interrupted_call_continues_with_the_images_that_are_there(tmp_path, monkeypatch):
    row = {"question_id": "v1_0", "question": "Who?", "image": cell(BLUE)}
    source = write(tmp_path / "test-0.parquet", [row | {"question_id": f"v1_{i}"} for i in range(3)])
    real, seen = Layout.image_name, []

    def interrupted(layout, stem, data):
        seen.append(stem)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(layout, stem, data)

    monkeypatch.setattr(Layout, "image_name", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(BENCHMARKS["mmvet"], [source], tmp_path / "out")
    assert not (tmp_path / "out" / "mm-vet" / "llava-mm-vet.jsonl").exists()
    monkeypatch.setattr(Layout, "image_name", real)
    layout = prepare(BENCHMARKS["mmvet"], [source], tmp_path / "out")[1]
    assert (layout.written, layout.kept) == (2, 2)


def test_the_images_of_a_snapshot_serve_llavas_question_file(tmp_path):
    hub, out = tmp_path / "hub", tmp_path / "out"
    write(hub / "testdev_balanced_images" / "testdev-0.parquet", [{"id": "n1", "image": cell(RED)}])
    (tmp_path / "llava_gqa_testdev_balanced.jsonl").write_text(
        jsonl([{"question_id": "1", "image": "n1.jpg", "text": f"Is it red?\n{SHORT}"}])
    )
    state, _ = prepare(BENCHMARKS["gqa"], [tmp_path / "llava_gqa_testdev_balanced.jsonl", hub], out)
    assert (state.questions, state.images_missing) == (1, [])


def test_rows_come_in_small_batches_and_only_needed_columns(tmp_path, monkeypatch):
    first = write(tmp_path / "a.parquet", [{"id": i, "unneeded": "x"} for i in range(2 * BATCH + 3)])
    second = write(tmp_path / "b.parquet", [{"id": i} for i in range(2)])
    sizes = []
    real = parquet.ParquetFile.iter_batches

    def spy(self, *args, **kwargs):
        for batch in real(self, *args, **kwargs):
            sizes.append(len(batch))
            yield batch

    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", spy)
    read = list(rows([first, second], ("id",), ("absent",)))
    assert read == [{"id": i} for i in range(2 * BATCH + 3)] + [{"id": i} for i in range(2)]
    assert max(sizes) <= BATCH


def test_a_missing_column_and_a_damaged_file_are_one_clear_error(tmp_path):
    good = write(tmp_path / "a.parquet", [{"id": 1}])
    with pytest.raises(UserError, match="a.parquet: column 'image' is missing; found id"):
        list(rows([good], ("id", "image")))
    good.write_bytes(good.read_bytes()[:-5])
    with pytest.raises(UserError, match="not a readable parquet file"):
        list(rows([good], ("id",)))


def test_a_row_without_an_image_is_named(tmp_path):
    row = {"question_id": "v1_0", "question": "Who?"}
    source = write(tmp_path / "test-0.parquet", [row | {"image": {"bytes": None, "path": "x/y.png"}}])
    with pytest.raises(UserError, match="v1_0: no image in the row, only the path 'x/y.png'"):
        prepare(BENCHMARKS["mmvet"], [source], tmp_path / "out")


def test_choosing_files_takes_the_first_pattern_that_fits():
    names = ["s/data/test-1.parquet", "s/data/test-0.parquet", "s/Full/random-0.parquet"]
    assert choose(names, "data/test-*.parquet", "*.parquet") == names[1::-1]
    assert choose(names[2:], "data/test-*.parquet", "*.parquet") == names[2:]
    assert choose(names, "en/*.parquet") == []
