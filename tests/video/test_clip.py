"""Clips through `deblur_clip`, with a stand-in for the network: what is preserved, and what is refused."""

import os
import resource
import shutil
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from lmfn import files, video
from lmfn.claims import Claim
from lmfn.data.frames import find_runs
from lmfn.files import carry_out, plan
from lmfn.jobs import Outcome
from lmfn.plausibility import DoubtfulOutput
from lmfn.video import VideoError, deblur_clip
from lmfn.video.flicker import FlickerMeter
from tests.video.conftest import frames, packets, picture, samples

TENTH = Fraction(1, 10)
LEVELS = [60 + 4 * (7 * n % 25) for n in range(21)]


def negative(image: np.ndarray) -> np.ndarray:
    return 1 - image


def run(source: Path, target: Path, **options: object) -> video.ClipSummary:
    return deblur_clip(source, target, **({"sharpen": negative, "frames": 8, "progress": False} | options))  # type: ignore[arg-type]


@pytest.mark.parametrize(("suffix", "finest"), [(".mp4", 1e-9), (".mov", 1e-9), (".mkv", 1.1e-3)])
def test_all_that_is_beside_the_pictures_is_kept(
    suffix: str, finest: float, make_clip: Callable, tmp_path: Path
) -> None:
    source, target = tmp_path / "in.mp4", tmp_path / f"out{suffix}"
    make_clip(source, LEVELS, subtitles=True, rotation=90)
    before = source.read_bytes()
    summary = run(source, target)
    assert source.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", target.name]
    assert (summary.frames, summary.resumed, summary.doubts) == (21, 0, [])
    old, new = frames(source), frames(target)
    assert [round(float(frame.to_ndarray(format="gray").mean())) for frame in new] == pytest.approx(
        [255 - level for level in LEVELS], abs=3
    )
    # Matroska has no times below 0, where the sound begins: everything moves together.
    shift = new[0].time - old[0].time
    assert 0 <= shift < 0.025
    assert [frame.time - shift for frame in new] == pytest.approx([frame.time for frame in old], abs=finest)
    assert new[-1].duration * new[-1].time_base == pytest.approx(old[-1].duration * old[-1].time_base, abs=0.012)
    for frame in new:
        assert (frame.rotation, frame.format.name) == (90, "yuv420p")
        assert (frame.color_range, frame.color_primaries, frame.color_trc, frame.colorspace) == (1, 1, 1, 1)
    sound, copied = packets(source, "audio"), packets(target, "audio")
    assert [content for _, content in copied] == [content for _, content in sound]
    assert [time - shift for time, _ in copied] == pytest.approx([time for time, _ in sound], abs=finest)
    with av.open(str(target)) as container:
        assert [chapter["metadata"]["title"] for chapter in container.chapters()] == ["one", "two"]
        assert container.metadata["title"] == "a title"
    if suffix == ".mkv":
        assert summary.notes == [f"{source}: its subtitle stream 2 (mov_text) is left out: .mkv cannot hold it"]
    else:
        assert packets(target, "subtitle") == packets(source, "subtitle")
        assert summary.notes == []


def test_other_containers_and_codecs(make_clip: Callable, tmp_path: Path) -> None:
    for name, codec, sound, out, chosen in (
        ("a.avi", "mpeg4", "mp3", "a.mkv", "h264"),
        ("b.ts", "libx264", "aac", "b.mp4", "h264"),
        ("c.mkv", "libx264", "libopus", "c.webm", "vp9"),
    ):
        make_clip(tmp_path / name, LEVELS[:10], codec=codec, sound=sound)
        run(tmp_path / name, tmp_path / out)
        old, new = frames(tmp_path / name), frames(tmp_path / out)
        assert len(old) == len(new) == 10
        steps = np.diff([frame.time for frame in old]), np.diff([frame.time for frame in new])
        np.testing.assert_allclose(*steps, atol=1.1e-3)
        np.testing.assert_array_equal(samples(tmp_path / out), samples(tmp_path / name))
        with av.open(str(tmp_path / out)) as container:
            assert container.streams.video[0].codec_context.name == chosen
    with pytest.raises(VideoError, match=r"d\.webm: \.webm cannot hold the sound of .*b\.ts \(aac\); write \.mkv"):
        run(tmp_path / "b.ts", tmp_path / "d.webm")


def test_ten_bits_and_hdr_stay(make_clip: Callable, tmp_path: Path) -> None:
    source = tmp_path / "in.mkv"
    pq = (1, 9, 16, 9)
    make_clip(source, LEVELS[:9], codec="ffv1", pix_fmt="yuv420p10le", size=(64, 96), options={}, colours=pq)
    summary = run(source, tmp_path / "lossless.mkv", codec="ffv1", sharpen=lambda image: image)
    assert any("HDR (PQ) is kept" in note for note in summary.notes)
    for old, new in zip(frames(source), frames(tmp_path / "lossless.mkv"), strict=True):
        assert new.format.name == "yuv420p10le"
        assert (new.color_range, new.color_primaries, new.color_trc, new.colorspace) == pq
        a, b = (frame.to_ndarray(format="yuv420p10le").astype(int)[:64] for frame in (old, new))  # luma
        assert np.abs(a - b).max() <= 2
    run(source, tmp_path / "out.mp4", sharpen=lambda image: image)
    new = frames(tmp_path / "out.mp4")[0]
    assert (new.format.name, new.color_trc) == ("yuv420p10le", 16)
    make_clip(tmp_path / "small.mkv", [90, 90], codec="ffv1", pix_fmt="yuv420p10le", options={})
    with pytest.raises(VideoError, match=r"small\.mkv is 48x32, and libx265 needs at least 64 pixels per side"):
        run(tmp_path / "small.mkv", tmp_path / "small.mp4")


def test_segments_of_a_few_frames_have_times(make_clip: Callable, tmp_path: Path) -> None:
    """x265 leaves the times of decoding undefined where the clip ends before its first reordered frame."""
    for count in (1, 2, 9):
        source, target = tmp_path / f"{count}.mkv", tmp_path / f"{count}.mp4"
        make_clip(source, LEVELS[:count], codec="ffv1", pix_fmt="yuv420p10le", size=(64, 96), options={}, sound=None)
        run(source, target, codec="libx265", crf=0)
        assert [f.time for f in frames(target)] == pytest.approx([f.time for f in frames(source)], abs=1e-3)


def test_frames_of_avi_follow_in_the_order_in_which_they_are_shown(make_clip: Callable, tmp_path: Path) -> None:
    b_frames = {"x264-params": "bframes=2:b-adapt=0:scenecut=0"}
    make_clip(tmp_path / "in.avi", LEVELS[:12], sound="mp3", options=b_frames)
    assert [frame.pts for frame in frames(tmp_path / "in.avi")] != sorted(f.pts for f in frames(tmp_path / "in.avi"))
    run(tmp_path / "in.avi", tmp_path / "out.mp4")
    made = frames(tmp_path / "out.mp4")
    assert [frame.time for frame in made] == pytest.approx([n / 30 for n in range(12)], abs=1e-3)
    levels = [round(float(frame.to_ndarray(format="gray").mean())) for frame in made]
    assert levels == pytest.approx([255 - level for level in LEVELS[:12]], abs=3)


def test_a_clock_that_begins_anywhere_becomes_0(make_clip: Callable, tmp_path: Path) -> None:
    make_clip(tmp_path / "in.ts", LEVELS[:9], start=30_000)
    run(tmp_path / "in.ts", tmp_path / "out.mp4")
    old, new = frames(tmp_path / "in.ts"), frames(tmp_path / "out.mp4")
    shift = old[0].time - new[0].time
    assert old[0].time > 29_000
    assert new[0].time < 1
    assert [frame.time + shift for frame in new] == pytest.approx([frame.time for frame in old], abs=1e-3)
    sound = [packets(path, "audio")[0][0] for path in (tmp_path / "in.ts", tmp_path / "out.mp4")]
    assert sound[0] - sound[1] == pytest.approx(shift, abs=1e-3)
    np.testing.assert_array_equal(samples(tmp_path / "out.mp4"), samples(tmp_path / "in.ts"))


def test_side_data_that_pyav_does_not_know(tmp_path: Path) -> None:
    """EXIF here; in spatial clips of phones, which eye a frame is for."""
    picture, exif = Image.new("RGB", (48, 32), (90, 90, 90)), Image.Exif()
    exif[0x010F] = "a maker"
    picture.save(tmp_path / "picture.png", exif=exif)
    source = tmp_path / "in.mov"
    with av.open(str(source), "w") as container:
        stream = container.add_stream("png", rate=30)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "rgb24"
        stream.set_display_rotation(90)
        for n in range(2):
            packet = av.Packet((tmp_path / "picture.png").read_bytes())
            packet.stream, packet.pts, packet.dts, packet.time_base, packet.is_keyframe = stream, n, n, TENTH, True
            container.mux(packet)
    with pytest.raises(ValueError, match="is not a valid Type"):
        list(frames(source)[0].side_data)
    run(source, tmp_path / "out.mov")
    assert [frame.rotation for frame in frames(tmp_path / "out.mov")] == [90, 90]
    (tmp_path / "picture.png").rename(tmp_path / "picture.mp4")
    with pytest.raises(VideoError, match=r"picture\.mp4 is a single picture, not a clip"):
        run(tmp_path / "picture.mp4", tmp_path / "out.mp4")


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", 8 + len(body)) + kind + body


def with_boxes(path: Path, added: bytes) -> None:
    """Add boxes to the description of the pictures of an MP4 whose index is at its end."""
    data = bytearray(path.read_bytes())
    start, end, parents = 0, len(data), []
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"):
        start = next(at for at in range(start, end) if data[at + 4 : at + 8] == kind)
        parents.append(start)
        end = start + int.from_bytes(data[start : start + 4], "big")
        start += 16 if kind == b"stsd" else 8
    for parent in parents:
        data[parent : parent + 4] = struct.pack(">I", int.from_bytes(data[parent : parent + 4], "big") + len(added))
    path.write_bytes(data[:end] + added + data[end:])


@pytest.mark.parametrize("stereo", [0, 1])
def test_pictures_of_360_degrees(make_clip: Callable, tmp_path: Path, stereo: int) -> None:
    make_clip(tmp_path / "in.mp4", [90] * 4)
    projection = box(b"proj", box(b"prhd", bytes(16)) + box(b"equi", bytes(20)))
    layout = box(b"st3d", bytes([0, 0, 0, 0, stereo]))
    with_boxes(tmp_path / "in.mp4", layout + box(b"sv3d", box(b"svhd", bytes(5)) + projection))
    notes = [
        note.removeprefix(f"{tmp_path / 'in.mp4'}: ") for note in run(tmp_path / "in.mp4", tmp_path / "o.mp4").notes
    ]
    assert ("the projection of its pictures (360 degrees) is not kept" in notes) is True
    assert ("the arrangement of its stereoscopic pictures is not kept" in notes) is bool(stereo)


def test_transparency_that_the_decoder_hides(make_clip: Callable, tmp_path: Path) -> None:
    source = tmp_path / "in.webm"
    make_clip(source, [90] * 3, codec="libvpx-vp9", pix_fmt="yuva420p", options={}, sound=None)
    assert run(source, tmp_path / "out.mkv").notes == [f"{source}: its transparency is not kept"]


def test_a_damaged_clip_leaves_no_parts(make_clip: Callable, tmp_path: Path) -> None:
    source = tmp_path / "in.mp4"
    make_clip(source, LEVELS, sound=None)
    sizes = [len(content) for _, content in packets(source, "video")]
    content = source.read_bytes()
    begin = content.index(packets(source, "video")[-3][1])
    source.write_bytes(content[:begin] + b"\xff" * sum(sizes[-3:]) + content[begin + sum(sizes[-3:]) :])
    with pytest.raises(VideoError, match=r"in\.mp4 .*to use the rest, convert it first: ffmpeg -i in\.mp4"):
        run(source, tmp_path / "out.mkv")
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


@pytest.mark.parametrize("pix_fmt", ["yuvj420p", "yuv444p", "gray", "yuv422p10le", "bgr0", "yuv420p"])
def test_frames_that_the_network_leaves_alone_stay_as_they_are(
    pix_fmt: str, make_clip: Callable, tmp_path: Path
) -> None:
    source = tmp_path / "in.mkv"
    colours = (2 if pix_fmt in ("yuvj420p", "bgr0") else 1, 1, 1, 1)
    make_clip(source, [40, 120, 220], codec="ffv1" if "j" not in pix_fmt else "mjpeg", pix_fmt=pix_fmt, options={},
              colours=colours, sound=None)  # fmt: skip
    run(source, tmp_path / "out.mkv", codec="libx264", crf=0, sharpen=lambda image: image)
    for old, new in zip(frames(source), frames(tmp_path / "out.mkv"), strict=True):
        if old.format.name == new.format.name:
            a, b = (frame.to_ndarray().astype(int) for frame in (old, new))
            assert np.abs((a - b).mean()) < (0.2 if "10" in pix_fmt else 0.05)
        else:
            a, b = (frame.to_ndarray(format="rgb24").astype(int) for frame in (old, new))
        assert np.abs(a - b).max() <= (8 if "10" in pix_fmt else 2)


@pytest.fixture
def interlaced(make_clip: Callable, tmp_path: Path) -> Path:
    path = tmp_path / "interlaced.mkv"
    make_clip(path, LEVELS[:10], options={"x264-params": "tff=1"})
    return path


def test_interlaced_clips(interlaced: Path, tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"interlaced\.mkv is interlaced.*--deinterlace makes"):
        run(interlaced, tmp_path / "out.mkv")
    summary = run(interlaced, tmp_path / "out.mkv", deinterlace=True)
    assert summary.frames == 10
    old, new = frames(interlaced), frames(tmp_path / "out.mkv")
    assert not any(frame.interlaced_frame for frame in new)
    assert [frame.time for frame in new] == pytest.approx([frame.time for frame in old], abs=1.1e-3)


def test_a_run_killed_at_any_moment_goes_on_and_ends_with_the_same_frames(make_clip: Callable, tmp_path: Path) -> None:
    source = tmp_path / "in.mp4"
    make_clip(source, LEVELS)
    run(source, tmp_path / "whole.mp4")
    expected = packets(tmp_path / "whole.mp4", "video")
    moments = [("frame", n) for n in (0, 7, 8, 13, 20)] + [("replace", n) for n in (0, 1, 2, 4, 7)]
    made_before = []
    for number, (what, n) in enumerate(moments):
        target = tmp_path / f"{number}.mp4"
        if (child := os.fork()) == 0:
            kill_at(source, target, what, n)
        assert os.waitpid(child, 0)[1] == 9, (what, n)
        assert not target.exists()
        parts = tmp_path / f".{target.name}.parts"
        if list(parts.glob("[0-9]*.nut")):
            with pytest.raises(VideoError, match=r"an interrupted run left .*parts: add --resume"):
                run(source, target)
        summary = run(source, target, resume=True)
        made_before.append(summary.resumed)
        assert packets(target, "video") == expected, (what, n)
        assert packets(target, "audio") == packets(source, "audio")
        assert not parts.exists()
        assert not list(tmp_path.glob("*.tmp*"))
    assert made_before == [0, 0, 0, 8, 16, 0, 0, 0, 8, 21]


def kill_at(source: Path, target: Path, what: str, moment: int) -> None:
    """In a child process: start, and die at the given frame or at the given renaming of a complete file."""
    counts = {"frame": 0, "replace": 0}
    replace = os.replace

    def count(event: str) -> None:
        if event == what and counts[event] == moment:
            os.kill(os.getpid(), 9)
        counts[event] += 1

    def sharpen(image: np.ndarray) -> np.ndarray:
        count("frame")
        return negative(image)

    def counted(*paths: Path) -> None:
        count("replace")
        replace(*paths)

    os.replace = counted  # type: ignore[assignment]
    try:
        run(source, target, sharpen=sharpen)
    finally:
        os._exit(1)


def test_only_the_same_job_goes_on(make_clip: Callable, tmp_path: Path) -> None:
    source, target = tmp_path / "in.mp4", tmp_path / "out.mp4"
    make_clip(source, LEVELS)
    calls = 0

    def fails_late(image: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls == 18:
            raise MemoryError("too large")
        return negative(image)

    with pytest.raises(MemoryError):
        run(source, target, sharpen=fails_late)
    assert not target.exists()
    for other, changed in (({"weights": "others"}, "weights"), ({"crf": 30}, "options"), ({"frames": 4}, "frames")):
        with pytest.raises(VideoError, match=f"belongs to a run with another {changed}"):
            run(source, target, resume=True, **other)
    assert run(source, target, resume=True).resumed == 16


def test_doubtful_frames_and_flicker_are_told(make_clip: Callable, tmp_path: Path) -> None:
    source = tmp_path / "in.mp4"
    make_clip(source, [100] * 12, options={"crf": "0"})

    def flickers(image: np.ndarray) -> np.ndarray:
        flickers.calls += 1  # type: ignore[attr-defined]
        if flickers.calls == 4:  # type: ignore[attr-defined]
            warnings.warn("the output is a mosaic", DoubtfulOutput, stacklevel=1)
        return image * (1.0 if flickers.calls % 2 else 0.9)  # type: ignore[attr-defined]

    flickers.calls = 0  # type: ignore[attr-defined]
    text = str(run(source, tmp_path / "out.mp4", sharpen=flickers))
    assert "12 frames, each sharpened independently" in text
    assert "1 frames look broken, the first at 0.12 s: the output is a mosaic" in text
    assert "flicker where the picture stands still" in text


def test_flicker_is_that_of_still_pixels() -> None:
    rng = np.random.default_rng(0)
    still, meter = rng.random((16, 16, 3)), FlickerMeter()
    for n in range(9):
        moving = still.copy()
        moving[:8] = rng.random((8, 16, 3))
        meter.add(moving, moving + (n % 2) * 0.01)
    levels = meter.total.levels()
    assert levels is not None
    # f[t-1] - 2 f[t] + f[t+1] of 0, 0.01, 0, ... is 0.02 in the mean of the channels.
    assert levels == pytest.approx((0, 255 * 0.02), abs=0.3)
    assert FlickerMeter().total.levels() is None


def cover_art(path: Path, _make_clip: Callable) -> None:
    with av.open(str(path), "w") as container:
        audio = container.add_stream("aac", rate=48000)
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = picture(90, (32, 32), 0, "yuvj420p")
        frame.pts = 0
        container.mux(cover.encode(frame))
        container.mux(cover.encode())
        for n in range(0, 9600, 960):
            part = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.float32), format="fltp", layout="mono")
            part.sample_rate, part.pts = 48000, n
            container.mux(audio.encode(part))
        container.mux(audio.encode())


def sizes_change(path: Path, _make_clip: Callable) -> None:
    """Packets of two encoders in one stream, each with its own headers."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        second = av.CodecContext.create("libx264", "w")
        second.width, second.height, second.pix_fmt, second.time_base = 64, 32, "yuv420p", Fraction(1, 30)
        for n in range(12):
            encoder, size = (stream, (32, 48)) if n < 6 else (second, (32, 64))
            frame = picture(90, size, n)
            frame.pts = n
            made = encoder.encode(frame) + (encoder.encode() if n in (5, 11) else [])
            for packet in made:
                packet.stream = stream
                container.mux(packet)


def sound_alone(path: Path, _make_clip: Callable) -> None:
    with av.open(str(path), "w") as container:
        audio = container.add_stream("aac", rate=48000)
        part = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        part.sample_rate = 48000
        container.mux(audio.encode(part))
        container.mux(audio.encode())


def truncated(path: Path, make_clip: Callable) -> None:
    make_clip(path, [90] * 60)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("text.mp4", lambda path, _: path.write_text("x"), r"text\.mp4 cannot be read as a video \(Invalid data"),
        ("sound.mp4", sound_alone, r"sound\.mp4 holds no moving pictures, but sound; lmfn deblur takes"),
        ("cover.mp4", cover_art, r"cover\.mp4 holds no moving pictures, but sound and a cover picture"),
        ("sizes.ts", sizes_change, r"sizes\.ts changes its size at .* from 48x32 to 64x32; cut it there first"),
        ("odd.mkv", lambda path, make: make(path, [90] * 4, codec="libvpx-vp9", size=(31, 47), options={}, sound=None),
         r"out\.mp4: libx264 cannot write 47x31 pixels .*the size is odd: try --codec libvpx-vp9"),
        ("cut.mkv", truncated, r"cut\.mkv is incomplete: it ends after \d\.\d of the \d\.\d s .*copy it first: ffmpeg"),
        ("ycgco.mp4", lambda path, make: make(path, [90] * 4, colours=(1, 1, 1, 8)),
         r"ycgco\.mp4: the matrix of its colours \(8 in ITU-T H\.273\) is not supported; convert it to BT\.709"),
        ("cut.mp4", truncated, r"cut\.mp4 cannot be read as a video"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_error_and_leaves_nothing(
    name: str, make: Callable, message: str, make_clip: Callable, tmp_path: Path
) -> None:
    make(tmp_path / name, make_clip)
    with pytest.raises(VideoError, match=message):
        run(tmp_path / name, tmp_path / "out.mp4")
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="this system has no scheduling policies")
def test_svt_av1_makes_nothing_real_time(make_clip: Callable, tmp_path: Path) -> None:
    """It does so where root runs it, as in most containers."""
    make_clip(tmp_path / "clip.mp4", LEVELS[:6], size=(64, 96), sound=None)
    run(tmp_path / "clip.mp4", tmp_path / "out.mkv", codec="libsvtav1")
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_odd_sizes_go_where_the_codec_has_them(make_clip: Callable, tmp_path: Path) -> None:
    make_clip(tmp_path / "odd.mkv", [90] * 4, codec="libvpx-vp9", size=(31, 47), options={}, sound=None)
    run(tmp_path / "odd.mkv", tmp_path / "out.mp4", codec="libvpx-vp9")
    assert (frames(tmp_path / "out.mp4")[0].width, frames(tmp_path / "out.mp4")[0].height) == (47, 31)


@pytest.fixture
def small_files() -> Iterator[Callable[[int], None]]:
    """A limit on the size of files, which a writer notices like a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_whole_segments(
    make_clip: Callable, tmp_path: Path, small_files: Callable[[int], None]
) -> None:
    source, target = tmp_path / "in.mp4", tmp_path / "out.mp4"
    make_clip(source, LEVELS, size=(96, 128))
    run(source, target)
    size = target.stat().st_size
    expected = packets(target, "video")
    target.unlink()
    small_files(size // 2)  # enough for each segment, too little for all of them
    with pytest.raises(VideoError, match=r"out\.mp4 cannot be written"):
        run(source, target)
    assert not target.exists()
    small_files(-1)
    assert run(source, target, resume=True).resumed == 21
    assert packets(target, "video") == expected
    target.unlink()
    small_files(1000)
    with pytest.raises(VideoError, match="cannot be written"):
        run(source, target)
    assert sorted(path.name for path in tmp_path.iterdir()) in (["in.mp4"], [".out.mp4.parts", "in.mp4"])


def test_what_is_wrong_with_the_target_is_said_first(make_clip: Callable, tmp_path: Path) -> None:
    source = tmp_path / "in.mp4"
    make_clip(source, LEVELS[:3])
    (tmp_path / "old.mp4").touch()

    def never(_: np.ndarray) -> np.ndarray:
        raise AssertionError("the network was run")

    for target, options, message in (
        (source, {}, "would overwrite it"),
        (tmp_path / "out.avi", {}, r"out\.avi: a clip is written as one of \.mp4"),
        (tmp_path / "old.mp4", {}, r"old\.mp4 is there already; --overwrite"),
        (tmp_path / "out.mp4", {"codec": "h265"}, "there is no encoder 'h265'; some are libx264"),
        (tmp_path / "out.mp4", {"codec": "aac"}, "aac is no video encoder"),
        (tmp_path / "out.mkv", {"codec": "ffv1", "crf": 3}, "ffv1 has no option crf"),
        (tmp_path / "out.mp4", {"crf": float("nan")}, "crf is nan; it must be from 0 to 63"),
        (tmp_path / "out.mp4", {"crf": 300}, "crf is 300; it must be from 0 to 63"),
        (tmp_path / "out.webm", {"codec": "libx264"}, r"out\.webm: "),
    ):
        with pytest.raises(VideoError, match=message):
            run(source, target, sharpen=never, **options)
    with pytest.raises(VideoError, match=r"there is no file .*gone\.mp4"):
        run(tmp_path / "gone.mp4", tmp_path / "out.mp4")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "old.mp4"]


def test_targets(tmp_path: Path) -> None:
    clip, photo = tmp_path / "clip.avi", tmp_path / "a.png"
    for path in (clip, tmp_path / "a.mov", photo):
        path.touch()

    def target(*arguments: object, **options: str) -> Path:
        return plan(*arguments, **options).jobs[0][1]  # type: ignore[arg-type]

    assert target([clip]) == tmp_path / "clip_deblurred.mkv"
    assert target([clip], suffix="-s", extension="MP4") == tmp_path / "clip-s.mp4"
    assert target([tmp_path / "a.mov"], tmp_path / "out") == tmp_path / "out" / "a.mov"
    assert target([clip], tmp_path / "b.mp4") == tmp_path / "b.mp4"
    for arguments, options, message in (
        (([clip],), {"extension": "png"}, r"the extension is \.png, and there is no image"),
        (([photo],), {"extension": "mp4"}, r"the extension is \.mp4, and there is no clip"),
        (([clip], tmp_path / "b.avi"), {}, r"b\.avi: a file must end in one of .*\.mp4"),
        (([clip], tmp_path / "b.png"), {}, r"b\.png: .*clip\.avi is written as one of \.mp4.*, since it is a clip"),
        (([photo], tmp_path / "b.mp4"), {}, r"b\.mp4: .*a\.png is written as one of .*, since it is an image"),
    ):
        with pytest.raises(ValueError, match=message):
            target(*arguments, **options)


def test_names_like_protocols(make_clip: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_clip(tmp_path / "a.mp4", LEVELS[:3])
    for name in ("12:30:05.mp4", "2024:05/a.mp4", "concat:a.mp4", "http:a.mp4", "-a%03d?.mp4"):
        Path(name).parent.mkdir(exist_ok=True)
        shutil.copy("a.mp4", name)
        target = Path(name).with_stem(Path(name).stem + "_sharp")
        assert run(Path(name), target).frames == 3
        assert len(frames(target.absolute())) == 3
        [sequence] = find_runs(Path(name))
        assert len(list(sequence.decode(0, 3))) == 3


def test_folders_of_clips_and_images(make_clip: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    (source / "deep").mkdir(parents=True)
    make_clip(source / "a.mp4", LEVELS[:3])
    make_clip(source / "deep" / "b.avi", LEVELS[:3], codec="mpeg4", sound=None)
    (source / "broken.mkv").write_text("no clip")
    Image.new("RGB", (8, 8)).save(source / "photo.png")
    outcomes: list[Outcome] = []
    summary = carry_out(plan([source], out), negative, None, report=outcomes.append)
    assert [path.name for path in summary.done] == ["photo.png", "a.mp4", "b.mkv"]
    assert [path.name for path, _ in summary.failed] == ["broken.mkv"]
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.*")) == ["a.mp4", "deep/b.mkv", "photo.png"]
    [clip] = [outcome for outcome in outcomes if outcome.source.name == "a.mp4"]
    assert clip.size == (32, 48)
    assert f"{source / 'a.mp4'} -> {out / 'a.mp4'}: 3 frames, each sharpened independently" in str(summary)
    assert f"{source / 'a.mp4'}: flicker where the picture stands still" in str(summary)
    again = plan([source], out)
    assert [path.name for path, _ in again.jobs] == ["broken.mkv"]
    parts = [again.part((k, 2)) for k in (1, 2)]
    assert [(len(part.jobs), len(part.existing)) for part in parts] == [(1, 1), (0, 2)]
    monkeypatch.setattr(files, "find_spec", lambda _: None)
    assert plan([source], out).left_out() == [
        '.mp4 1, .mkv 1, .avi 1 left out (for clips: pip install "lmfn-deblur[video]")'
    ]


def test_a_clip_that_kills_is_given_up_unless_each_run_gets_further(make_clip: Callable, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    make_clip(tmp_path / "in" / "a.mp4", [90] * 30, size=(16, 16), sound=None)
    make_clip(tmp_path / "in" / "b.mp4", [90] * 3, size=(16, 16), sound=None)
    resume = {"resume": True, "progress": False, "frames": 8}

    def dies_after(count: int) -> None:
        calls = iter(range(count))

        def sharpen(image: np.ndarray) -> np.ndarray:
            if next(calls, None) is None:
                os.kill(os.getpid(), 9)
            return image

        if (child := os.fork()) == 0:
            carry_out(plan([tmp_path / "in"], tmp_path / "out"), sharpen, None, clip_options=resume)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 9

    for _ in range(2):
        dies_after(14)
    assert Claim(tmp_path / "out" / "a.mp4").deaths() == 1
    dies_after(1)
    summary = carry_out(plan([tmp_path / "in"], tmp_path / "out"), negative, None, clip_options=resume)
    assert [(path.name, "given up, since 2 processes died" in reason) for path, reason in summary.failed] == [
        ("a.mp4", True)
    ]
    assert [path.name for path in (tmp_path / "out").glob("*.mp4")] == ["b.mp4"]


def test_names_of_clips_cost_no_pyav() -> None:
    code = "import sys; from lmfn.video import is_clip; sys.exit('av' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
