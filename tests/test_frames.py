"""Where visual tokens lie: the frame, row and column that the engine finds for each, and what a trace keeps of it."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from family_models import CASES, VIDEO, batch_of

from llava.model.pruning import Method
from llava.model.pruning.grid import grid_of

FAMILIES = {
    "qwen2_vl": (3, 2, 3),
    "qwen2_5_vl": (3, 2, 3),
    "qwen3_vl": (3, 2, 3),
    "llava_onevision": (3, 2, 2),
    "llava_next_video": (3, 2, 2),
}
"""Frames, rows and columns of the video of `family_models`."""


@dataclass(frozen=True)
class LastFrame(Method):
    """Keep the last frame of the first video, after layer 1."""

    reads_frames = True

    def select(self, layer, prompt, measured):
        return None if layer != 1 else (prompt.frames == 2) & (prompt.media == 0)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("beams", [1, 2])
def test_a_method_sees_frame_row_and_column_however_the_model_is_called(name, beams):
    case, batch = CASES[name], batch_of(name, "ttt", "tvtvtt", "ittvt")
    frames, rows, columns = FAMILIES[name]
    per_frame = rows * columns
    with case.prune(LastFrame(), batch) as session:
        case.model.generate(**batch.inputs, max_new_tokens=2, do_sample=False, num_beams=beams)
        if beams == 1:
            case.model(**batch.inputs)
    text, two, mixed = session.policies[:: beams if beams > 1 else 1][:3]
    video = [(t, y, x) for t in range(frames) for y in range(rows) for x in range(columns)]
    video += [(-1, -1, -1)] * (name == "llava_onevision")  # its newline
    places = two.grid[two.grid[:, 0] >= 0]
    assert places[:, 1:].tolist() == [list(cell) for cell in video * 2]
    assert places[:, 0].tolist() == [0] * len(video) + [1] * len(video)
    assert (two.frames == 2).all() and two.cells.tolist() == [list(cell[1:]) for cell in video if cell[0] == 2]
    image = mixed.grid[mixed.grid[:, 0] == 0]  # the word's first medium is an image: one frame, so none is number 2
    assert set(image[:, 1].tolist()) == {0} and not len(mixed.positions)
    assert text.grid is not None and (text.grid == -1).all()
    traces = session.traces[:: beams if beams > 1 else 1]
    assert [frame.tokens for frame in traces[1].frames] == [per_frame] * 2 * frames
    assert traces[1].kept_per_frame() == [0, 0, per_frame] + [0] * frames
    assert traces[1].kept_per_frame(layer=1) == [per_frame] * 2 * frames
    assert traces[1].summary()["kept_per_frame"] == traces[1].kept_per_frame()
    for frame in traces[1].frames:
        assert set(batch.ids[1][-batch.lengths[1] :][frame.start : frame.start + frame.tokens].tolist()) == {VIDEO}
    if beams == 1:  # called without `generate`, the grids reach the entry module itself
        assert [p.grid.tolist() for p in session.policies[3:]] == [p.grid.tolist() for p in session.policies[:3]]


def test_images_alone_have_no_frames_unless_a_method_reads_them():
    case, batch = CASES["qwen2_5_vl"], batch_of("qwen2_5_vl", "titjt")
    with case.prune({"method": "none"}, batch) as session:
        case.model(**batch.inputs)
    assert session.policies[0].grid is None and not session.traces[0].frames
    assert "frame_tokens" not in session.traces[0].summary()
    with case.prune(LastFrame(), batch) as session:
        case.model(**batch.inputs)
    assert [frame[:2] for frame in session.traces[0].frames] == [(0, 0), (1, 0)]


def test_without_a_grid_every_run_of_visual_tokens_is_an_image(llama):
    case, batch = CASES["bare llama"], batch_of("bare llama", "titjt")
    with case.prune(LastFrame(), batch) as session:
        case.model(**batch.inputs)
    assert [frame[:4] for frame in session.traces[0].frames] == [(0, 0, 1, 7), (1, 0, 9, 16)]


def test_cells_that_do_not_explain_the_prompt_are_an_error():
    there = np.array([[True, True, False]])
    with pytest.raises(ValueError, match="explain the places of 3 visual tokens, the prompts have 2"):
        grid_of([(there, [np.zeros((3, 3), int)])])
    case, batch = CASES["qwen2_vl"], batch_of("qwen2_vl", "ttvt")
    wrong = batch.inputs | {"video_grid_thw": torch.tensor([[2, 4, 6]])}
    with case.prune({"method": "none"}, batch) as session, pytest.raises(ValueError, match="explain the places of 12"):
        session._grid(wrong)
