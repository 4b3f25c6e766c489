"""Packs: images are restored bit by bit, patches equal those from files, and damage is named."""

import hashlib
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmfn import images
from lmfn.cli import main
from lmfn.data import DataError, Source, TrainingSet, find_pairs, pack
from lmfn.data.packed import Pack, from_differences, open_pack, packed_pairs, read_rgb, read_size, to_differences
from lmfn.data.resident import ResidentSet
from lmfn.evaluation import Evaluator
from lmfn.options import BlurOptions

SHORT = BlurOptions(frames=(3, 3))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pairs, three photographs and a sequence of eight frames, 40x48 and larger."""
    rng = np.random.default_rng(0)

    def write(name: str, height: int = 40, width: int = 48) -> None:
        pixels = rng.integers(256, size=(height, width, 3)).astype(np.float32) / 255
        images.write(tmp_path / f"{name}.png", images.Photo(pixels))

    for n in range(2):
        write(f"pairs/blur/{n}")
        write(f"pairs/sharp/{n}")
    for n in range(3):
        write(f"photos/{n}", 40 + n, 60)
    for n in range(8):
        write(f"frames/{n}")
    return tmp_path


def sources(folder: Path) -> list[Source]:
    return [
        Source("pairs", folder / "pairs", 2),
        Source("photos", folder / "photos", 1),
        Source("frames", folder / "frames", 0.5),
    ]


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_differences_lose_nothing(height: int, width: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)
    assert np.array_equal(from_differences(to_differences(image)), image)


def test_images_and_sources_come_back(folder: Path) -> None:
    report = pack(sources(folder), folder / "all.npz", blur=SHORT)
    found = Pack(folder / "all.npz")
    assert report.sha256 == found.sha256
    assert report.bytes == (folder / "all.npz").stat().st_size
    assert [(s.kind, s.weight, len(s.items)) for s in found.sources] == [
        ("pairs", 2, 2),
        ("photos", 1, 3),
        ("frames", 0.5, 1),
    ]
    assert "all.npz: " in report.text()
    assert "left out" not in report.text()
    files = {path.read_bytes() for path in folder.rglob("*.png")}
    digests = {hashlib.sha256(images.read_rgb(path).tobytes()).digest() for path in folder.rglob("*.png")}
    assert {hashlib.sha256(found.read(n).tobytes()).digest() for n in range(len(found.sizes))} == digests
    assert len(files) == len(found.sizes)
    (run,) = found.sources[2].items
    frames = [images.read_rgb(folder / "frames" / f"{n}.png") for n in range(8)]
    assert all(np.array_equal(found.read(n), frame) for n, frame in zip(run, frames, strict=True))
    path = folder / "all.npz" / "3"
    assert read_size(path) == read_rgb(path).shape[:2] == found.sizes[3]


def test_the_same_sources_give_the_same_file(folder: Path) -> None:
    for name in ("a.npz", "b.npz"):
        pack(sources(folder), folder / name, side=36, seed=3, blur=SHORT)
    one, other = (Pack(folder / name) for name in ("a.npz", "b.npz"))
    assert one.sha256 == other.sha256
    assert set(one.sizes) == {(36, 36)}
    assert pack(sources(folder), folder / "a.npz", side=36, seed=4, blur=SHORT).sha256 != other.sha256


def test_windows_are_the_same_in_all_images_of_an_item(folder: Path) -> None:
    pack([Source("pairs", folder / "pairs")], folder / "p.npz", side=32)
    found = Pack(folder / "p.npz")
    whole = [[images.read_rgb(folder / "pairs" / kind / f"{n}.png") for kind in ("blur", "sharp")] for n in range(2)]
    for blurred, sharp in found.sources[0].items:
        places = [
            (top, left)
            for pair in whole
            for top in range(9)
            for left in range(17)
            if all(
                np.array_equal(image[top : top + 32, left : left + 32], found.read(n))
                for image, n in zip(pair, (blurred, sharp), strict=True)
            )
        ]
        assert len(places) == 1


def test_what_does_not_fit_is_left_out_and_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["data", "pack", str(folder / "small.npz"), "--pairs", f"{folder / 'pairs'}=1"]
    assert main([*asked, "--photos", f"{folder / 'photos'}=1", "--max-bytes", "20000"]) == 0
    said = capsys.readouterr().out
    assert (folder / "small.npz").stat().st_size <= 20_000
    assert "1 of 2 pairs; 1 left out" in said
    assert "1 of 3 photos; 2 left out" in said
    with pytest.raises(DataError, match=r"photos: nothing fits into 0\.001 MB; raise --max-bytes"):
        pack([Source("photos", folder / "photos")], folder / "none.npz", max_bytes=1000)
    assert not (folder / "none.npz").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"side": 0}, "side is 0; it must be at least 1"),
        ({"seed": -1}, "seed is -1; it must not be negative"),
        ({"max_bytes": float("nan")}, "max_bytes is nan"),
        ({"max_bytes": 0}, "max_bytes is 0"),
    ],
)
def test_a_number_out_of_its_range_is_named_before_a_pack_is_written(
    folder: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        pack([Source("photos", folder / "photos")], folder / "p.npz", **options)
    assert not (folder / "p.npz").exists()


def test_a_pair_of_a_photograph_with_itself_is_kept_once(folder: Path) -> None:
    pack([Source("pairs", folder / "photos", sharp=folder / "photos")], folder / "same.npz")
    found = Pack(folder / "same.npz")
    assert len(found.sizes) == 3
    assert all(blurred == sharp for blurred, sharp in found.sources[0].items)


def test_long_runs_are_cut_into_stretches(folder: Path) -> None:
    pack([Source("frames", folder / "frames")], folder / "f.npz", blur=BlurOptions(frames=(1, 1)))
    items = Pack(folder / "f.npz").sources[0].items
    assert sorted(len(item) for item in items) == [2, 2, 2, 2]
    assert all(item == list(range(item[0], item[0] + 2)) for item in items)


def test_patches_from_a_pack(folder: Path) -> None:
    """Patches of all kinds, by weight, are equal on the device, from a worker, and in a process that receives the
    set."""
    pack(sources(folder), folder / "all.npz", blur=SHORT)
    data = TrainingSet([Source("packs", folder / "all.npz")], patch=32, seed=0, blur=SHORT)
    plans = [data.plan(n) for n in range(200)]
    kinds = [type(plan.exposure).__name__ for plan in plans]
    assert 90 < kinds.count("NoneType") < 140, "two of three and a half"
    assert {"Exposure", "Mean"} < set(kinds)
    resident = ResidentSet(data, torch.device("cpu"), progress=False)
    again = pickle.loads(pickle.dumps(data))
    for n in (kinds.index("NoneType"), kinds.index("Mean"), kinds.index("Exposure")):
        blurred, sharp = data[n]
        assert torch.equal(again[n][0], blurred)
        made = resident([plans[n]])
        assert torch.equal(made[1][0], sharp)
        assert (made[0][0].int() - blurred.int()).abs().max() <= 1


def test_pairs_of_a_pack_are_those_of_the_folder(folder: Path) -> None:
    """Equal patch by patch if the order is the same: with a single pair."""
    for kind in ("blur", "sharp"):
        (folder / "pairs" / kind / "1.png").unlink()
    pack([Source("pairs", folder / "pairs")], folder / "p.npz")
    packed, plain = (
        TrainingSet([source], patch=32, seed=0)
        for source in (Source("packs", folder / "p.npz"), Source("pairs", folder / "pairs"))
    )
    for n in range(5):
        assert all(torch.equal(a, b) for a, b in zip(packed[n], plain[n], strict=True))


def test_pairs_of_a_pack_are_measured(folder: Path) -> None:
    pack(sources(folder), folder / "all.npz", blur=SHORT)
    model, found = torch.nn.Conv2d(3, 3, 1), []
    for pairs in (packed_pairs(folder / "all.npz"), find_pairs(folder / "pairs")):
        evaluator = Evaluator(pairs, protocol="plain", metrics=("psnr",), device="cpu", progress=False)
        found.append(evaluator(model).blurred["psnr"])
    assert found[0] == pytest.approx(found[1], rel=1e-12)
    pack([Source("photos", folder / "photos")], folder / "photos.npz")
    with pytest.raises(DataError, match="contains no pairs"):
        packed_pairs(folder / "photos.npz")


def damaged(folder: Path, change: Sequence[tuple[int, int]]) -> Path:
    content = bytearray((folder / "p.npz").read_bytes())
    for place, value in change:
        content[place] ^= value
    (folder / "damaged.npz").write_bytes(bytes(content))
    return folder / "damaged.npz"


def test_a_pack_that_is_none_or_damaged(folder: Path) -> None:
    pack([Source("pairs", folder / "pairs")], folder / "p.npz")
    size = (folder / "p.npz").stat().st_size
    (folder / "text.npz").write_text("no pack")
    np.savez(folder / "other.npz", weights=np.zeros(3))
    (folder / "cut.npz").write_bytes((folder / "p.npz").read_bytes()[: size // 2])
    for path in (folder / "text.npz", folder / "other.npz", folder / "cut.npz", damaged(folder, [(size // 2, 255)])):
        with pytest.raises(DataError, match=f"{path.name} is"):
            open_pack(path)
    for path in (folder / "text.npz", folder / "other.npz"):  # arrays of the user's, say
        before = path.read_bytes()
        with pytest.raises(DataError, match=f"{path.name} is there already, and no pack"):
            pack([Source("pairs", folder / "pairs")], path)
        assert path.read_bytes() == before
    pack([Source("pairs", folder / "pairs")], folder / "p.npz")  # a pack is replaced
    with pytest.raises(DataError, match="there is no pack"):
        TrainingSet([Source("packs", folder / "missing.npz")], patch=32, seed=0)
    with pytest.raises(DataError, match=r"must be NAME\.npz"):
        pack([Source("pairs", folder / "pairs")], folder / "p.zip")
    with pytest.raises(DataError, match=r"p\.npz/0 is 48x40, smaller than the patch, 64x64"):
        TrainingSet([Source("packs", folder / "p.npz")], patch=64, seed=0)
