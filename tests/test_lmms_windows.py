"""How requests are put into windows and batches."""

import numpy as np
import pytest

from llava.eval.lmms_eval import windows
from llava.eval.lmms_eval.windows import Prompt
from llava.model.inputs import ProcessedImage


def prompt(length, *shades, ids=()):
    pictures = [ProcessedImage({"pixels": np.full((2, 2), shade, np.float32)}, list(ids)) for shade in shades]
    return Prompt("", [0] * length, pictures)


def cut(prompts, batch_size, names=None):
    """The windows of these prompts, and how often each was prepared."""
    prepared = []

    def prepare(place):
        prepared.append(place)
        return prompts[place]

    found = list(windows.windows(range(len(prompts)), names or range(len(prompts)), prepare, batch_size))
    return found, prepared


def test_without_common_images_batches_are_of_similar_lengths():
    [window], prepared = cut([prompt(9, 1), prompt(2, 2), prompt(8, 3), prompt(3), prompt(1, 4)], 2)
    assert [batch.places for batch in window.batches] == [[3, 4], [1, 2], [0]]
    assert not window.shares and prepared == [0, 1, 2, 3, 4]
    assert [len(batch.finished) for batch in window.batches] == [1, 2, 1]


def test_requests_about_an_image_follow_each_other_and_show_one_picture():
    prompts = [prompt(9, 1), prompt(2, 2), prompt(8, 3), prompt(3, 1), prompt(1, 2), prompt(7, 1)]
    [window], _ = cut(prompts, 2)
    assert window.shares and [batch.places for batch in window.batches] == [[3, 5], [0, 4], [1, 2]]
    shown = [one.pictures[0] for batch in window.batches for one in batch.prompts]
    assert len(set(map(id, shown))) == 3
    assert shown[0] is shown[1] is shown[2] and shown[3] is shown[4]
    finished = [[picture.arrays["pixels"][0, 0] for picture in batch.finished] for batch in window.batches]
    assert finished == [[], [1], [2, 3]]


@pytest.mark.parametrize(
    "other",
    [
        ProcessedImage({"pixels": np.ones((4, 1), np.float32)}, []),
        ProcessedImage({"pixels": np.ones((2, 2), np.int32).view(np.float32)}, []),
        ProcessedImage({"pixels": np.ones((2, 2), np.float32)}, [7]),
        ProcessedImage({"pixel": np.ones((2, 2), np.float32)}, []),
        ProcessedImage({"pixels": np.ones((2, 2), np.float32), "sizes": np.ones(1)}, []),
    ],
)
def test_pictures_that_differ_in_anything_are_two(other):
    [window], _ = cut([prompt(1, 1), Prompt("", [0], [other])], 2)
    assert not window.shares
    [same], _ = cut([prompt(1, 1), prompt(1, 1)], 2)
    assert same.shares


def test_a_prompt_shown_twice_in_one_question_is_no_sharing_between_requests():
    [window], _ = cut([prompt(1, 1, 1), prompt(1, 2)], 1)
    assert [len(one.prompts[0].pictures) for one in window.batches] == [1, 2]
    assert [len(one.finished) for one in window.batches] == [1, 1]


def test_a_window_ends_and_what_it_knew_with_it(monkeypatch):
    monkeypatch.setattr(windows, "WINDOW", 2)
    found, prepared = cut([prompt(1, 1)] * 5, 1, names=["a", "a", "b", "a", "a"])
    assert [[batch.places for batch in window.batches] for window in found] == [[[0], [1]], [[2], [3]], [[4]]]
    assert prepared == [0, 2, 3, 4]
    assert [window.shares for window in found] == [True, True, False]
