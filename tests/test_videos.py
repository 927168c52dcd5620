"""The video reader: which frames, what they show, what is refused, and how much is decoded and held."""

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from video_fixtures import greys, write_video

from llava.cli import VideoOptions
from llava.model import videos
from llava.model.images import Limits
from llava.model.videos import check_video, chosen, read_video


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Ten seconds, 100 frames."""
    return write_video(tmp_path_factory.mktemp("clips") / "clip.mp4", greys(100))


def seen(video):
    """The number of each frame, read from its grey."""
    return [round(float(frame.mean()) / 2) for frame in video.frames]


@given(st.integers(1, 5000), st.floats(0.01, 4000), st.none() | st.integers(1, 900), st.none() | st.floats(0.001, 60))
def test_frames_are_spread_evenly_from_first_to_last_and_never_more_than_asked(total, seconds, frames, fps):
    indices = chosen(total, seconds, VideoOptions(frames=frames, fps=fps))
    most = frames or (32 if fps is None else 768)
    wanted = most if fps is None else min(most, max(1, round(seconds * fps)))
    assert len(indices) == len(set(indices)) == min(wanted, total)
    assert indices == sorted(indices) and indices[0] == 0 and indices[-1] < total
    if len(indices) > 1:
        assert indices[-1] == total - 1 and np.ptp(np.diff(indices)) <= 1


@pytest.mark.parametrize(
    ("name", "codec", "format"),
    [
        ("a.mp4", "libx264", "yuv420p"),
        ("a.mkv", "libx264", "yuv420p"),
        ("a.ts", "libx264", "yuv420p"),
        ("a.webm", "libvpx-vp9", "yuv420p"),
        ("a.mov", "mpeg4", "yuv420p"),
        ("a.avi", "mpeg4", "yuv420p"),
        ("a.gif", "gif", "rgb8"),
    ],
)
def test_the_frames_of_any_container_are_the_ones_that_were_chosen(tmp_path, name, codec, format):
    clip = write_video(tmp_path / name, greys(40), codec=codec, format=format)
    video = read_video(clip, VideoOptions(frames=5))
    assert video.indices == (0, 10, 20, 29, 39) and (video.total, round(video.fps, 2)) == (40, 10)
    tolerance = {"mpeg4": 2, "gif": 18}.get(codec, 1)  # MPEG-4 and 256 colours keep greys roughly
    assert np.abs(np.array(seen(video)) - video.indices).max() <= tolerance
    assert video.frames.dtype == np.uint8 and video.frames.shape == (5, 24, 32, 3)
    assert np.allclose(video.times, [0, 1, 2, 2.9, 3.9])


def test_frames_per_second_follow_the_duration(clip):
    assert read_video(clip, VideoOptions(fps=0.5)).indices == (0, 25, 50, 74, 99)
    assert read_video(clip, VideoOptions(fps=0.5, frames=2)).indices == (0, 99)
    assert len(read_video(clip).indices) == 32
    assert len(read_video(clip, VideoOptions(fps=1000)).indices) == 100


def test_only_what_the_chosen_frames_need_is_decoded(clip, monkeypatch):
    decoded = []
    monkeypatch.setattr(videos, "_pixels", lambda frame, size: decoded.append(frame.pts) or np.zeros((1, 1, 3)))
    entered = []
    whole = av.container.InputContainer.decode
    # the container class is C: count what passes through the generator instead
    monkeypatch.setattr(videos, "_seeking", _counted(videos._seeking, entered, whole))
    read_video(clip, VideoOptions(frames=3))
    assert len(decoded) == 3 and len(entered) <= 3 * 12 + 12


def _counted(seeking, entered, whole):
    class Counting:
        def __init__(self, container):
            self.container = container

        def seek(self, *args, **kwargs):
            self.container.seek(*args, **kwargs)

        def decode(self, stream):
            for frame in whole(self.container, stream):
                entered.append(frame.pts)
                yield frame

    return lambda container, *rest: seeking(Counting(container), *rest)


def test_containers_that_cannot_seek_are_read_from_the_beginning(clip, monkeypatch):
    expected = read_video(clip, VideoOptions(frames=7))
    monkeypatch.setattr(videos, "_seeking", lambda *args: None)
    assert seen(read_video(clip, VideoOptions(frames=7))) == seen(expected)


def test_frames_of_a_long_video_become_smaller(clip):
    video = read_video(clip, VideoOptions(frames=50), Limits(megapixels=0.02))
    assert video.frames.shape[1:3] == (17, 23) and video.frames[..., 0].size <= 20_000
    assert np.abs(np.array(seen(video)) - video.indices).max() <= 1
    assert read_video(clip, VideoOptions(frames=2), Limits(megapixels=0.02)).frames.shape[1:3] == (24, 32)


def test_what_is_no_video_is_one_line(tmp_path, clip, monkeypatch):
    whole = clip.read_bytes()
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        sound.rate = 8000
        container.mux(stream.encode(sound))
    for name, reason in {
        "empty.mp4": "is empty",
        "text.mp4": "cannot be read: Invalid data found",
        "cut.mp4": "cannot be read|is damaged",
        "sound.wav": "holds no video",
        "none.mp4": "no such file",
        ".": "not a file",
    }.items():
        for read in (check_video, read_video):
            with pytest.raises(ValueError, match=reason) as caught:
                read(tmp_path / name)
            assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="larger than the limit of 0.001 MB"):
        check_video(clip, Limits(megabytes=0.001))
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ValueError, match=r"pip install 'llava\[video\]'"):
        read_video(clip)


def test_a_file_that_ends_early_is_damaged(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (30, 48, 64, 3), dtype=np.uint8)
    path = tmp_path / "early.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:  # the index comes first
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for frame in noise:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    whole = path.read_bytes()
    path.write_bytes(whole[: 2 * len(whole) // 3])
    check_video(path)  # its first frame is there
    with pytest.raises(ValueError, match=r"is damaged: it ends after \d+ of 30 frames"):
        read_video(path)


def test_a_rotated_video_is_shown_upright(tmp_path):
    frames = np.zeros((3, 32, 48, 3), np.uint8)
    frames[:, :, 24:] = 255  # dark on the left, bright on the right
    path = write_video(tmp_path / "portrait.mp4", frames)
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40  # of the track: a quarter turn clockwise, as phones write it
    turn = [0, 1 << 16, 0, -(1 << 16), 0, 0, 32 << 16, 0, 1 << 30]
    data[matrix : matrix + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in turn)
    path.write_bytes(data)
    shown = read_video(path).frames
    assert shown.shape == (3, 48, 32, 3)
    assert shown[:, :20].max() < 60 and shown[:, 28:].min() > 200
