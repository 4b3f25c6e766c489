"""Pairs written to disk: complete, reproducible, and readable as training data."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lmfn import images
from lmfn.data import BlurKinds, BlurOptions, DataError, Source, TrainingSet, check, find_pairs, synth
from lmfn.data.synthesis import blur_photo

FEW = BlurOptions(frames=(3, 3), linear_light=0, shot_noise=(0, 0), read_noise=(0, 0), mosaic=0, jpeg=0)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_pairs_from_photos(save: Callable, tmp_path: Path) -> None:
    photos = {name: save(tmp_path / "in" / f"{name}.png", 45, 37) for name in ("b", "a/b", "a/c.d")}
    report = synth(tmp_path / "in", tmp_path / "out", seed=3)
    assert report.ok
    assert report.text() == f"{tmp_path / 'out'}: 3 pairs"
    pairs = find_pairs(tmp_path / "out")
    assert {p.name for p in pairs} == set(photos)
    for pair in pairs:
        n = sorted(photos, key=lambda name: tmp_path / f"{name}.png").index(pair.name)
        made = blur_photo(photos[pair.name], np.random.default_rng((3, n, 0)), BlurOptions(BlurKinds.moving()))
        for file, expected in zip((pair.blurred, pair.sharp), made, strict=True):
            np.testing.assert_array_equal(images.read_rgb(file), expected)
    TrainingSet([Source("pairs", tmp_path / "out")], patch=32, seed=0)[0]
    assert check(tmp_path / "out").count == 3

    synth(tmp_path / "in", tmp_path / "again", seed=3)
    assert contents(tmp_path / "again") == contents(tmp_path / "out")
    synth(tmp_path / "in", tmp_path / "other", seed=4)
    assert contents(tmp_path / "other") != contents(tmp_path / "out")


def test_several_pairs_a_photo_differ(save: Callable, tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.png", 40, 40)
    shake = BlurOptions(BlurKinds.only("shake"), labels=0)
    assert synth(tmp_path / "in", tmp_path / "out", count=3, blur=shake).written == 3
    files = contents(tmp_path / "out")
    assert set(files) == {f"{kind}/a/{n}.png" for kind in ("blur", "sharp") for n in range(3)}
    assert len(set(files.values())) == 4


def test_a_broken_photo_is_reported_and_the_others_are_done(save: Callable, tmp_path: Path) -> None:
    for name in "abc":
        save(tmp_path / "in" / f"{name}.png", 40, 40)
    file = tmp_path / "in" / "b.png"
    whole = file.read_bytes()
    synth(tmp_path / "in", tmp_path / "good")
    file.write_bytes(whole[:-50])
    report = synth(tmp_path / "in", tmp_path / "out")
    assert (report.written, report.ok, len(report.failed)) == (2, False, 1)
    assert "in/b.png" in report.failed[0]
    assert "could not be used: 1" in report.text()
    good = contents(tmp_path / "good")
    assert contents(tmp_path / "out") == {name: data for name, data in good.items() if "b.png" not in name}


def test_pairs_from_frames_and_videos(save: Callable, make_video: Callable, tmp_path: Path) -> None:
    for n in range(8):
        save(tmp_path / "in" / "run" / f"{n:04d}.png", pixels=np.full((9, 12, 3), 10 * n, np.uint8))
    save(tmp_path / "in" / "short" / "1.png", 9, 12)
    make_video(tmp_path / "in" / "clip.mp4", count=7)
    report = synth(tmp_path / "in", tmp_path / "out", frames=True, blur=FEW)
    assert report.written == 4
    assert [reason.split(" (")[0] for reason in report.failed] == [f"{tmp_path / 'in/short'} has 1 frames, and 3"]
    pairs = {p.name: p for p in find_pairs(tmp_path / "out")}
    assert set(pairs) == {"run/0001", "run/0004", "clip/000001", "clip/000004"}
    for name, value in (("run/0001", 10), ("run/0004", 40)):
        assert np.unique(images.read_rgb(pairs[name].sharp)).tolist() == [value]
        assert np.unique(images.read_rgb(pairs[name].blurred)).tolist() == [value]
    synth(tmp_path / "in", tmp_path / "again", frames=True, blur=FEW)
    assert contents(tmp_path / "again") == contents(tmp_path / "out")


def test_a_folder_of_frames_itself(save: Callable, tmp_path: Path) -> None:
    for n in range(3):
        save(tmp_path / "in" / f"{n}.png")
    synth(tmp_path / "in", tmp_path / "out", frames=True, blur=FEW)
    assert [p.name for p in find_pairs(tmp_path / "out")] == ["1"]


def test_refusals(save: Callable, tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.png")
    for arguments, message in (
        ({"seed": -1}, "seed is -1"),
        ({"count": 0}, "count is 0"),
        ({"count": 2, "frames": True}, "count is 2"),
    ):
        with pytest.raises(ValueError, match=message):
            synth(tmp_path / "in", tmp_path / "out", **arguments)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no images"):
        synth(tmp_path / "empty", tmp_path / "out")
    synth(tmp_path / "in", tmp_path / "empty")  # an empty folder is accepted as OUT
    for out in (tmp_path / "empty", tmp_path / "in" / "a.png"):
        with pytest.raises(DataError, match="is not an empty folder; remove it or name another one"):
            synth(tmp_path / "in", out)
    save(tmp_path / "in" / "a.jpg")
    with pytest.raises(DataError, match="are both called 'a'"):
        synth(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "in" / "a.jpg").unlink()


@pytest.mark.parametrize(
    ("stopped", "raised"), [(images.ImageError("no space left"), OSError), (KeyboardInterrupt(), KeyboardInterrupt)]
)
def test_half_a_pair_is_not_left(
    stopped: BaseException,
    raised: type[BaseException],
    save: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save(tmp_path / "in" / "a.png")
    write = images.write

    def stop(path: Path, photo: images.Photo) -> None:
        if "sharp" in str(path):
            raise stopped
        write(path, photo)

    monkeypatch.setattr(images, "write", stop)
    with pytest.raises(raised):
        synth(tmp_path / "in", tmp_path / "out")
    assert contents(tmp_path / "out") == {}
