"""`replacing`: the old file or the new one, whole."""

import os

import pytest

from llava.files import replacing


@pytest.mark.parametrize("sync", [True, False])
def test_a_file_takes_the_place_of_the_old_one_when_it_is_whole(tmp_path, sync):
    path = tmp_path / "new" / "folder" / "answers.txt"
    with replacing(path, sync=sync) as file:
        file.write("first ä\n")
        assert not path.exists()
    with replacing(path, "wb", sync=sync) as file:
        file.write(b"second\n")
        assert path.read_text(encoding="utf-8") == "first ä\n"
    assert path.read_bytes() == b"second\n" and os.listdir(path.parent) == ["answers.txt"]


def test_line_ends_are_as_written(tmp_path):
    with replacing(tmp_path / "table.csv") as file:
        file.write("a\r\nb\n")
    assert (tmp_path / "table.csv").read_bytes() == b"a\r\nb\n"


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt(), ValueError("no number")])
def test_what_was_there_stays_when_writing_fails(tmp_path, error):
    path = tmp_path / "answers.txt"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(type(error)), replacing(path) as file:
        file.write("half")
        raise error
    assert path.read_text(encoding="utf-8") == "old" and os.listdir(tmp_path) == ["answers.txt"]


def test_a_file_that_cannot_take_the_place_leaves_nothing_behind(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError), replacing(tmp_path / "folder") as file:
        file.write("x")
    assert os.listdir(tmp_path) == ["folder"]
