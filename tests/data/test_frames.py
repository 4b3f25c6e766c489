"""Sequences of frames: the natural order of names, and exact frames of a video wherever decoding starts."""

import sys
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from lmfn.data import DataError
from lmfn.data.frames import find_runs, without_fragments


def test_folders_of_frames_are_runs_in_natural_order(save: Callable, tmp_path: Path) -> None:
    pixels = {n: save(tmp_path / "a" / f"frame_{n}.png") for n in (10, 2, 1)}
    save(tmp_path / "b" / "deep" / "0001.png", 40, 50)
    a, b = find_runs(tmp_path)
    assert [a.name(n) for n in range(len(a))] == ["frame_1", "frame_2", "frame_10"]
    assert (a.size, b.size, len(b)) == ((24, 32), (40, 50), 1)
    for (n, frame), name in zip(a.decode(1, 3), (2, 10), strict=True):
        assert n == (2, 10).index(name) + 1
        np.testing.assert_array_equal(frame, pixels[name])
    assert find_runs(tmp_path / "a")[0] == a


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("b_frames.mp4", "libx264", {"bf": "3", "g": "12"}),
        ("open_gop.mkv", "libx264", {"bf": "2", "g": "9", "x264-params": "open-gop=1"}),
        ("intra.avi", "mjpeg", {}),
    ],
)
def test_a_videos_frames_do_not_depend_on_where_decoding_starts(
    name: str, codec: str, options: dict[str, str], make_video: Callable, tmp_path: Path
) -> None:
    make_video(tmp_path / name, count=41, codec=codec, options=options)
    with av.open(str(tmp_path / name)) as container:
        expected = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    [run] = find_runs(tmp_path / name)
    assert (len(run), run.size) == (41, expected[0].shape[:2])
    for first, last in [(0, 41), (0, 3), (12, 13), (11, 25), (35, 41), (40, 41)]:
        got = dict(run.decode(first, last))
        assert set(got) >= set(range(first, last))
        for n, frame in got.items():
            np.testing.assert_array_equal(frame, expected[n])


@pytest.mark.parametrize(("degrees", "turns"), [(90, 1), (-90, 3), (180, 2)])
def test_frames_of_a_turned_video_come_upright(degrees: int, turns: int, make_video: Callable, tmp_path: Path) -> None:
    make_video(tmp_path / "a.mp4", count=3)
    with av.open(str(tmp_path / "a.mp4")) as flat, av.open(str(tmp_path / "b.mp4"), "w") as turned:
        stream = turned.add_stream_from_template(flat.streams.video[0])
        stream.set_display_rotation(degrees)
        for packet in flat.demux(video=0):
            if packet.size:
                packet.stream = stream
                turned.mux(packet)
    [before], [after] = find_runs(tmp_path / "a.mp4"), find_runs(tmp_path / "b.mp4")
    assert after.size == (before.size if turns == 2 else before.size[::-1])
    for (_, upright), (_, frame) in zip(after.decode(0, 3), before.decode(0, 3), strict=True):
        np.testing.assert_array_equal(upright, np.rot90(frame, turns))


def test_videos_in_a_folder_and_names(make_video: Callable, tmp_path: Path) -> None:
    make_video(tmp_path / "x" / "clip.mp4", count=5)
    make_video(tmp_path / "other.mov", count=7)
    assert sorted((run.path.name, len(run), run.name(2)) for run in find_runs(tmp_path)) == [
        ("clip.mp4", 5, "000002"),
        ("other.mov", 7, "000002"),
    ]


def test_a_video_s_runs_end_where_frames_are_missing(make_video: Callable, tmp_path: Path) -> None:
    """Otherwise the mean would be over moments that are not consecutive."""
    make_video(tmp_path / "whole.mp4", count=41)
    with av.open(str(tmp_path / "whole.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with av.open(str(tmp_path / "gaps.mp4"), "w") as container:
        stream = container.add_stream("libx264rgb", rate=30, options={"qp": "0", "g": "12", "bf": "2"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "rgb24"
        for n, pixels in enumerate(frames):
            if n not in (20, 38):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts = n
                container.mux(stream.encode(frame))
        container.mux(stream.encode())
    runs = find_runs(tmp_path / "gaps.mp4")
    assert [len(run) for run in runs] == [20, 17, 2]
    assert [run.name(0) for run in runs] == ["000000", "000020", "000037"]
    for run, first in zip(runs, (0, 21, 39), strict=True):
        for n, frame in run.decode(0, len(run)):
            np.testing.assert_array_equal(frame, frames[first + n])
    assert without_fragments(runs, 13) == runs[:2]
    assert without_fragments(runs, 40) == runs


def test_faults_are_named(
    save: Callable, make_video: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"there is no folder or video .*nowhere"):
        find_runs(tmp_path / "nowhere")
    with pytest.raises(DataError, match="neither images nor videos"):
        find_runs(tmp_path)
    save(tmp_path / "a" / "1.png")
    save(tmp_path / "a" / "2.png", 24, 30)
    with pytest.raises(DataError, match=r"a/2\.png is 30x24, but 1\.png in the same folder is 32x24"):
        find_runs(tmp_path)
    save(tmp_path / "b" / "1.png")
    save(tmp_path / "b" / "1.jpg")
    with pytest.raises(DataError, match=r"b/1\.\w+ and .*b/1\.\w+ have the same name"):
        find_runs(tmp_path / "b")
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match=r"broken\.mp4 cannot be read as a video"):
        find_runs(tmp_path / "broken.mp4")
    make_video(tmp_path / "cut.mkv", count=41)
    [run] = find_runs(tmp_path / "cut.mkv")
    content = (tmp_path / "cut.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"cut\.mkv.* cannot be decoded"):
        list(run.decode(30, 41))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DataError, match=r'broken\.mp4: reading videos needs PyAV: pip install "lmfn-deblur\[video\]"$'):
        find_runs(tmp_path / "broken.mp4")
