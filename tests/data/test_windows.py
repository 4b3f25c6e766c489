"""Pairs cut into windows: they cover the whole image, and the output is a data set."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lmfn import cli, images
from lmfn.data import DataError, Source, TrainingSet, cut, find_pairs


@pytest.mark.parametrize(("side", "overlap", "count"), [(32, 0, 6), (32, 8, 12), (64, 16, 2), (200, 30, 1)])
def test_windows_hold_every_pixel(side: int, overlap: int, count: int, save: Callable, tmp_path: Path) -> None:
    whole = {kind: save(tmp_path / "in" / kind / "a" / "1.png", 60, 90) for kind in ("blur", "sharp")}
    assert cut(find_pairs(tmp_path / "in"), tmp_path / "out", side=side, overlap=overlap) == count
    pairs = find_pairs(tmp_path / "out")
    assert len(pairs) == count
    seen = np.zeros((60, 90), int)
    for pair in pairs:
        top, left = map(int, pair.blurred.stem.split("_"))
        here = slice(top, top + side), slice(left, left + side)
        np.testing.assert_array_equal(images.read_rgb(pair.blurred), whole["blur"][here])
        np.testing.assert_array_equal(images.read_rgb(pair.sharp), whole["sharp"][here])
        assert images.read_size(pair.blurred) == (min(side, 60), min(side, 90))
        assert pair.name == f"a/1/{pair.blurred.stem}"
        seen[here] += 1
    assert seen.min() == 1
    assert overlap == 0 or count == 1 or (seen > 1).any()


def test_the_verb_cuts_the_split_that_is_named(save: Callable, tmp_path: Path) -> None:
    for split in ("train", "test"):
        for kind in ("blur", "sharp"):
            save(tmp_path / "in" / split / "S" / kind / "1.png", 40, 70)
    arguments = ["data", "cut", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--side", "40", "--overlap", "10"]
    assert cli.main(arguments) == 0
    assert [pair.name for pair in find_pairs(tmp_path / "out")] == ["S/1/00000_00000", "S/1/00000_00030"]
    TrainingSet([Source("pairs", tmp_path / "out")], patch=32, seed=0)[0]
    assert cli.main(arguments) == 1


def test_faults_are_named(save: Callable, tmp_path: Path) -> None:
    save(tmp_path / "in" / "blur" / "1.png", 40, 70)
    save(tmp_path / "in" / "sharp" / "1.png", 40, 71)
    pairs = find_pairs(tmp_path / "in")
    for side, overlap in ((0, 0), (8, 8), (8, -1)):
        with pytest.raises(ValueError, match=f"side is {side} and overlap {overlap}"):
            cut(pairs, tmp_path / "out", side=side, overlap=overlap)
    with pytest.raises(DataError, match=r"blur/1\.png and its partner .* must have the same size"):
        cut(pairs, tmp_path / "out")
    with pytest.raises(DataError, match="is not an empty folder"):
        cut(pairs, tmp_path / "in")
