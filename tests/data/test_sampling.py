"""Training patches: pure functions of (seed, n), however they are read, with faults named before training."""

import dataclasses
import pickle
from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from lmfn import images
from lmfn.data import BlurKinds, BlurOptions, DataError, Source, TrainingSet
from lmfn.data.rendering import Patch
from lmfn.data.sampling import ImageCache

SMALL = BlurOptions(frames=(3, 5))
SHAKE = BlurKinds.only("shake")
CLEAN = BlurOptions(
    SHAKE, frames=(3, 5), linear_light=0, shot_noise=(0, 0), read_noise=(0, 0), mosaic=0, jpeg=0, labels=0
)


@pytest.fixture
def sources(save: Callable, make_video: Callable, tmp_path: Path) -> list[Source]:
    """One source of every kind, with files of odd and different sizes."""
    for n, (height, width) in enumerate([(33, 47), (40, 29), (35, 35)]):
        for kind in ("blur", "sharp"):
            save(tmp_path / "pairs" / kind / f"{n}.png", height, width)
        save(tmp_path / "photos" / f"{n}.png", height, width)
    for n in range(7):
        save(tmp_path / "frames" / "a" / f"{n}.png", 31, 37)
        save(tmp_path / "frames" / "b" / f"{n}.png", 29, 64)
    make_video(tmp_path / "video.mp4", count=9)
    return [
        Source("pairs", tmp_path / "pairs"),
        Source("frames", tmp_path / "frames"),
        Source("photos", tmp_path / "photos", weight=2),
        Source("frames", tmp_path / "video.mp4"),
    ]


def patches(data: TrainingSet, count: int = 24) -> torch.Tensor:
    return torch.stack([torch.stack(data[n]) for n in range(count)])


def test_a_patch_depends_on_the_seed_and_its_number_alone(sources: list[Source]) -> None:
    def make(seed: int = 4, **options: float) -> TrainingSet:
        return TrainingSet(sources, patch=27, seed=seed, blur=SMALL, **options)

    data = make()
    expected = patches(data)
    assert expected.shape == (24, 2, 3, 27, 27)
    assert expected.dtype == torch.uint8
    assert all(image.is_contiguous() for image in data[0])
    assert len({expected[n].numpy().tobytes() for n in range(24)}) == 24
    assert torch.equal(torch.stack(data[13]), expected[13])  # out of order, from a filled cache
    assert torch.equal(patches(make(cache_gib=0)), expected)
    assert torch.equal(patches(make(cache_gib=2e-5)), expected)  # about five images
    assert not torch.equal(patches(make(seed=5)), expected)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert torch.equal(patches(make()), expected)
    finally:
        torch.set_num_threads(threads)
    for workers in (0, 2):
        loader = DataLoader(data, batch_size=8, sampler=range(24), num_workers=workers)
        assert torch.equal(torch.cat([torch.stack(batch, 1) for batch in loader]), expected)


def test_a_set_travels_to_another_process_without_its_cache(sources: list[Source]) -> None:
    data = TrainingSet(sources, patch=20, seed=0, blur=SMALL)
    expected = patches(data)
    sent = pickle.dumps(data)
    assert len(sent) < 20_000
    assert torch.equal(patches(pickle.loads(sent)), expected)


def test_partners_are_cropped_and_turned_alike(save: Callable, tmp_path: Path) -> None:
    for n in range(3):
        pixels = save(tmp_path / "sharp" / f"{n}.png", 30 + n, 41)
        save(tmp_path / "blur" / f"{n}.png", pixels=255 - pixels)
    data = TrainingSet([Source("pairs", tmp_path)], patch=17, seed=0)
    for n in range(40):
        blurred, sharp = data[n]
        assert torch.equal(blurred, 255 - sharp)


class Upright(TrainingSet):
    """The same patches, neither flipped nor rotated."""

    def plan(self, n: int) -> Patch:
        return dataclasses.replace(super().plan(n), turns=0, flip=False)


def test_augmentation_is_the_eight_symmetries_of_the_square(save: Callable, tmp_path: Path) -> None:
    save(tmp_path / "1.png", 24, 40)
    plain, turned = (
        kind([Source("photos", tmp_path)], patch=15, seed=1, blur=CLEAN) for kind in (Upright, TrainingSet)
    )
    seen: Counter[tuple[int, bool]] = Counter()
    for n in range(120):
        before, after = plain[n], turned[n]
        for flip, turns in product((False, True), range(4)):
            both = [torch.rot90(t.flip(2) if flip else t, turns, (1, 2)) for t in before]
            if all(map(torch.equal, both, after)):
                seen[turns, flip] += 1
    assert sum(seen.values()) == 120
    assert len(seen) == 8
    assert min(seen.values()) >= 5  # 15 on average


def test_sources_are_drawn_by_weight_and_crops_reach_every_corner(save: Callable, tmp_path: Path) -> None:
    for name, value in (("dark", 10), ("light", 200)):
        save(tmp_path / name / "1.png", pixels=np.full((20, 20, 3), value, np.uint8))
    sources = [Source("photos", tmp_path / "dark", weight=3), Source("photos", str(tmp_path / "light"), weight=1)]
    data = TrainingSet(sources, patch=8, seed=0, blur=CLEAN)
    dark = sum(int(data[n][1].max()) == 10 for n in range(200))
    assert 120 <= dark <= 180  # 150, with a standard deviation of 6.1

    corners = np.zeros((9, 10, 3), np.uint8)
    corners[[0, 0, -1, -1], [0, -1, 0, -1]] = [[1] * 3, [2] * 3, [3] * 3, [4] * 3]
    save(tmp_path / "corners" / "1.png", pixels=corners)
    data = TrainingSet([Source("photos", tmp_path / "corners")], patch=8, seed=0, blur=CLEAN)
    assert set(torch.cat([data[n][1].unique() for n in range(100)]).tolist()) == {0, 1, 2, 3, 4}


def test_frames_are_cropped_at_one_place_and_all_places_occur(save: Callable, tmp_path: Path) -> None:
    still = save(tmp_path / "still" / "00.png", 25, 31)
    for n in range(1, 6):
        save(tmp_path / "still" / f"{n:02d}.png", pixels=still)
    data = TrainingSet([Source("frames", tmp_path / "still")], patch=19, seed=0, blur=CLEAN)
    for n in range(20):
        blurred, sharp = data[n]
        assert torch.equal(blurred, sharp)

    # Frame n of the sequences below has the value n, or 100 + n: their mean is the middle one.
    for run, count in (("x", 5), ("y", 9)):
        for n in range(count):
            value = n + (100 if run == "y" else 0)
            save(tmp_path / "runs" / run / f"{n}.png", pixels=np.full((8, 8, 3), value, np.uint8))
    data = TrainingSet([Source("frames", tmp_path / "runs")], patch=8, seed=0, blur=CLEAN)
    middles: Counter[int] = Counter()
    for n in range(200):
        blurred, sharp = data[n]
        assert torch.equal(blurred, sharp)
        middles[int(sharp.max())] += 1
    assert set(middles) == {1, 2, 3, *range(101, 108)}


def test_a_photo_as_large_as_the_patch_will_do(save: Callable, tmp_path: Path) -> None:
    pixels = save(tmp_path / "1.png", 16, 16)
    data = Upright([Source("photos", tmp_path)], patch=16, seed=0, blur=CLEAN)
    np.testing.assert_array_equal(data[0][1].permute(1, 2, 0), pixels)


def test_pairs_come_from_the_train_split(save: Callable, tmp_path: Path) -> None:
    for split, value in (("train", 50), ("test", 200)):
        for kind in ("blur", "blur_gamma", "sharp"):
            value += kind == "blur_gamma"
            save(tmp_path / split / "seq" / kind / "000001.png", pixels=np.full((8, 8, 3), value, np.uint8))
    assert {int(TrainingSet([Source("pairs", tmp_path)], patch=8, seed=0)[n][0].max()) for n in range(9)} == {50}
    gamma = TrainingSet([Source("pairs", tmp_path, variant="blur_gamma")], patch=8, seed=0)
    assert gamma[0][0].unique().tolist() == [51]


def breaking(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda d, _: (d / "pairs/sharp/1.png").unlink(), r"blur/1\.png has no sharp partner"),
        (lambda d, _: (d / "pairs/sharp/1.png").replace(d / "pairs/sharp/0.png"), r"blur/1\.png has no sharp partner"),
        (lambda d, _: swap(d / "pairs/sharp/1.png", d / "pairs/sharp/2.png"), r"blur/1\.png is 29x40, but its partner"),
        (lambda d, _: breaking(d / "pairs/blur/2.png"), r"pairs/blur/2\.png"),
        (lambda d, _: breaking(d / "photos/2.png"), r"photos/2\.png"),
        (lambda d, _: breaking(d / "frames/b/3.png"), r"frames/b/3\.png"),
        (lambda d, _: [f.unlink() for f in (d / "photos").iterdir()], "photos holds no images"),
        (lambda d, _: [(d / f"frames/b/{n}.png").unlink() for n in (1, 2, 3)], r"frames/b has 4 frames, and 5 "),
        (lambda d, video: video(d / "video.mp4", count=4), r"video\.mp4 has 4 frames, and 5 "),
        (lambda d, video: video(d / "video.mp4", count=9, height=24), r"video\.mp4 is 64x24, smaller than the patch"),
    ],
)
def test_faults_are_named_at_construction(
    harm: Callable, message: str, sources: list[Source], make_video: Callable, tmp_path: Path
) -> None:
    harm(tmp_path, make_video)
    with pytest.raises(ValueError, match=message) as caught:
        TrainingSet(sources, patch=27, seed=0, blur=SMALL)
    assert isinstance(caught.value, DataError | images.ImageError)


def swap(a: Path, b: Path) -> None:
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_patch_larger_than_an_image_is_an_error(which: int, sources: list[Source]) -> None:
    with pytest.raises(DataError, match=rf"{sources[which].path}.* is \d+x\d+, smaller than the patch, 30x30"):
        TrainingSet([sources[which]], patch=30, seed=0, blur=SMALL)


def test_wrong_arguments_are_named(sources: list[Source]) -> None:
    for arguments, message in (
        ({"patch": 0, "seed": 0}, "patch is 0"),
        ({"patch": 8, "seed": -1}, "seed is -1"),
        ({"patch": 8, "seed": 0, "cache_gib": -1}, "cache_gib is -1"),
    ):
        with pytest.raises(ValueError, match=message):
            TrainingSet(sources, **arguments)
    with pytest.raises(ValueError, match="no source"):
        TrainingSet([], patch=8, seed=0)
    with pytest.raises(ValueError, match="kind is 'video'"):
        Source("video", "x")
    for weight in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"weight of x is .*; it must be"):
            Source("photos", "x", weight)
    with pytest.raises(ValueError, match=r"Source\.sharp of x is for pairs"):
        Source("photos", "x", sharp="y")
    with pytest.raises(IndexError):
        TrainingSet(sources, patch=8, seed=0, blur=SMALL)[-1]


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=60), st.integers(0, 40))
def test_the_cache_keeps_what_was_used_last_within_its_limit(steps: list[tuple[int, bool]], limit: int) -> None:
    cache, recent = ImageCache(limit), []
    for key, put in steps:
        image = np.full(key + 1, key, np.uint8)
        held = cache.get(key)
        assert (held is not None) == (key in recent)
        if held is not None:
            np.testing.assert_array_equal(held, image)
            recent.remove(key)
            recent.append(key)
        elif put and key < limit:
            cache.put(key, image)
            recent.append(key)
            while sum(k + 1 for k in recent) > limit:
                recent.pop(0)
