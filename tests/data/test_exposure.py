"""Blur synthesis: against scipy's interpolation, the formulas in float64, and the physics of a point light."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates
from skimage.metrics import peak_signal_noise_ratio

from lmfn.data import BlurKinds, BlurOptions
from lmfn.data.synthesis import (
    Exposure,
    Photographs,
    blur_photo,
    draw_frame_count,
    exposure,
    mean_of_frames,
    synthesise,
)
from lmfn.data.synthesis.exposure import STILL
from lmfn.data.synthesis.paths import Motion
from lmfn.options import BlurKind

MOVING = tuple(kind for kind in get_args(BlurKind) if kind not in STILL)

SHAKE = BlurKinds.only("shake")
QUIET = {"shot_noise": (0, 0), "read_noise": (0, 0), "mosaic": 0, "jpeg": 0, "labels": 0, "contrast": (0, 0)}
CLEAN = QUIET | {"highlights": (1, 1), "kinds": SHAKE}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def light_of(image: np.ndarray) -> np.ndarray:
    """Linear light of the first channel, in float64, by the standard's formula."""
    v = image[:, :, 0] / 255
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


@settings(max_examples=30)
@given(
    st.integers(0, 10**6),
    st.tuples(st.integers(40, 90), st.integers(40, 90)),
    st.floats(0, 24),
    st.floats(0, 180),
    st.floats(0, 8),
)
def test_a_point_stays_where_it_is_and_keeps_its_light(
    seed: int, at: tuple[int, int], length: float, curvature: float, rotation: float
) -> None:
    photo = np.zeros((131, 127, 3), np.uint8)
    y, x = at
    photo[y - 2 : y + 3, x - 2 : x + 3] = 255
    one = BlurOptions(length=(length,) * 2, curvature=(curvature,) * 2, rotation=(rotation,) * 2, **CLEAN)
    blurred, sharp = blur_photo(photo, rng(seed), one)
    np.testing.assert_array_equal(sharp, photo)
    light = light_of(blurred)
    rows, columns = np.mgrid[: light.shape[0], : light.shape[1]]
    assert light.sum() == pytest.approx(25, rel=0.02)
    assert (rows * light).sum() / light.sum() == pytest.approx(y, abs=0.1)
    assert (columns * light).sum() / light.sum() == pytest.approx(x, abs=0.1)
    reach = np.hypot(rows - y, columns - x)[light > 0.002].max()
    assert reach <= length + rotation + 4.5


@pytest.mark.parametrize("kind", ["shake", "uneven", "comb", "curve", "zoom"])
def test_the_integral_is_scipys(kind: BlurKind) -> None:
    photo = skimage.data.astronaut()[100:161, 200:259]
    blur = BlurOptions(length=(12, 12), rotation=(6, 6), **(CLEAN | {"kinds": BlurKinds.only(kind)}))
    blurred, sharp = blur_photo(photo, rng(5), blur)
    np.testing.assert_array_equal(sharp, photo)
    motion = Exposure.draw(rng(5), blur, photo.shape[:2]).motion
    y, x = np.mgrid[: photo.shape[0], : photo.shape[1]].astype(np.float64)
    cy, cx = motion.pivot
    expected = np.zeros(photo.shape)
    for dx, dy, angle, zoom, weight in zip(motion.x, motion.y, motion.angle, motion.zoom, motion.weight, strict=True):
        turned = np.exp(-zoom - 1j * angle) * ((x - cx - dx) + 1j * (y - cy - dy))
        for c in range(3):
            light = light_of(photo[:, :, c : c + 1])
            expected[:, :, c] += weight * map_coordinates(
                light, [turned.imag + cy, turned.real + cx], order=1, mode="reflect"
            )
    encoded = np.where(expected <= 0.0031308, expected * 12.92, 1.055 * expected ** (1 / 2.4) - 0.055) * 255
    assert np.abs(blurred - encoded).max() <= 0.51


@pytest.mark.parametrize("kind", get_args(BlurKind))
def test_tiles_and_threads_do_not_show(kind: BlurKind, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = skimage.data.astronaut()[:131, :157]
    blur = BlurOptions(kinds=BlurKinds.only(kind), length=(15, 15), mosaic=1, jpeg=1, labels=0.5)
    whole = np.stack(blur_photo(photo, rng(3), blur))
    assert (np.stack(blur_photo(photo, rng(4), blur)) != whole).any() == (kind != "sharp")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        np.testing.assert_array_equal(np.stack(blur_photo(photo, rng(3), blur)), whole)
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(exposure, "TILE", 48)
    tiled = np.stack(blur_photo(photo, rng(3), blur))
    # The last bits of a coordinate depend on the tile: a pixel or a JPEG coefficient may round to the other side.
    assert np.abs(tiled.astype(int) - whole).mean() < 0.01


def test_longer_paths_blur_more() -> None:
    photo = skimage.data.astronaut()[80:280, 150:350]

    def quality(length: float) -> float:
        blur = BlurOptions(length=(length, length), **CLEAN)
        made = [blur_photo(photo, rng(n), blur) for n in range(4)]
        return float(np.mean([peak_signal_noise_ratio(sharp, blurred) for blurred, sharp in made]))

    assert 60 > quality(0) > quality(4) > quality(12) > quality(24) > 12


@pytest.mark.parametrize("kind", MOVING)
@pytest.mark.parametrize("contrast", [0, 0.5])
def test_no_motion_no_blur(kind: BlurKind, contrast: float) -> None:
    photo = skimage.data.astronaut()[:65, :70]
    photo[:16, :16] = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    still = CLEAN | {"kinds": BlurKinds.only(kind), "contrast": (contrast, contrast), "highlights": (2, 2)}
    blurred, sharp = blur_photo(photo, rng(), BlurOptions(length=(0, 0), rotation=(0, 0), **still))
    if kind == "object":  # its edge covers pixels partially, and linear light is mixed differently from values
        assert (blurred != sharp).any(axis=2).mean() < 0.05
        assert (sharp != photo).any(axis=2).mean() > 0.05
    else:
        np.testing.assert_array_equal(blurred, photo)
        np.testing.assert_array_equal(sharp, photo)


@pytest.mark.parametrize("kind", STILL)
def test_what_must_be_left_alone_is_the_same_on_both_sides(kind: BlurKind) -> None:
    photo = skimage.data.astronaut()[:90, 150:230]
    for seed in range(6):
        blurred, sharp = blur_photo(photo, rng(seed), BlurOptions(kinds=BlurKinds.only(kind)))
        np.testing.assert_array_equal(blurred, sharp)
        assert (sharp != photo).any() == (kind != "sharp")


def test_light_is_kept_by_every_motion() -> None:
    """A bright disc in the middle of a black photograph: the sum of its light, by kind of blur."""
    y, x = np.mgrid[:121, :121] - 60
    photo = np.where(np.hypot(y, x) < 12, 188, 0).astype(np.uint8)[:, :, None].repeat(3, 2)
    for kind in ("shake", "uneven", "comb", "curve"):
        blur = BlurOptions(length=(20, 20), **(CLEAN | {"kinds": BlurKinds.only(kind)}))
        for seed in range(3):
            light = light_of(blur_photo(photo, rng(seed), blur)[0])
            assert light.sum() == pytest.approx(light_of(photo).sum(), rel=0.01)


def test_text_on_white_paper_keeps_its_light() -> None:
    photo = np.full((90, 90, 3), 128, np.uint8)
    for seed in range(6):
        made = blur_photo(photo, rng(seed), BlurOptions(**(CLEAN | {"labels": 1, "highlights": (2, 2)})))
        blurred, sharp = (light_of(image).mean() for image in made)
        assert blurred == pytest.approx(sharp, rel=0.03)


def test_an_object_moves_and_its_ground_stands() -> None:
    photo = np.full((120, 120, 3), 60, np.uint8)
    photo[:, :40] = 200  # the source of the objects is elsewhere
    blur = BlurOptions(length=(18, 18), **(CLEAN | {"kinds": BlurKinds.only("object")}))
    found = 0
    for seed in range(20):
        drawn = Exposure.draw(rng(seed), blur, (120, 120))
        if np.ptp(drawn.motion.x) + np.ptp(drawn.motion.y) > 0:
            continue
        found += 1
        blurred, sharp = blur_photo(photo, rng(seed), blur)
        y, x = np.mgrid[:120, :120]
        away = np.hypot(y - drawn.outline.centre[0], x - drawn.outline.centre[1])
        far = away > drawn.outline.radius * (1 + sum(height for height, _ in drawn.outline.dents)) + 20
        np.testing.assert_array_equal(blurred[far], photo[far])
        np.testing.assert_array_equal(sharp[far], photo[far])
    assert 4 < found < 16  # half of them


def test_depth_scales_the_motion() -> None:
    """Far from the edge between near and far, the blur is that of shakes by 1 and by `far` times the path."""
    photo = skimage.data.astronaut()[:140, :140]
    blur = BlurOptions(length=(16, 16), rotation=(0, 0), **(CLEAN | {"kinds": BlurKinds.only("depth")}))
    drawn = Exposure.draw(rng(2), blur, (140, 140))
    window = torch.from_numpy(np.pad(photo, ((30, 30), (30, 30), (0, 0)), mode="symmetric"))[None]
    box = (0, 0, 140, 140)
    depth = replace(drawn.depth, softness=0.1, wave=(0.0, 0.1, 0.0), far=0.25)
    found = synthesise(None, Photographs(window, None, [replace(drawn, depth=depth)], [box]))[0][0]
    near, far = (
        synthesise(None, Photographs(window, None, [replace(drawn, depth=None, motion=motion)], [box]))[0][0]
        for motion in (drawn.motion, scaled(drawn.motion, 0.25))
    )
    y, x = torch.meshgrid(torch.arange(140.0), torch.arange(140.0), indexing="ij")
    above = np.cos(depth.direction) * (x - depth.through[1]) + np.sin(depth.direction) * (y - depth.through[0])
    for side, expected in ((above > 2, near), (above < -2, far)):
        assert side.float().mean() > 0.1
        assert (found[side].int() - expected[side].int()).abs().max() <= 1
    assert (near.int() - far.int()).abs().max() > 20


def scaled(motion: Motion, by: float) -> Motion:
    return replace(motion, x=motion.x * by, y=motion.y * by)


def test_highlights_streak_and_clip() -> None:
    photo = np.full((80, 80, 3), 40, np.uint8)
    photo[38:42, 38:42] = 255
    dull, bright = (
        blur_photo(photo, rng(1), BlurOptions(length=(16, 16), **(CLEAN | {"highlights": (gain,) * 2})))[0]
        for gain in (1, 4)
    )
    assert (bright >= dull).all()
    assert (bright == 255).sum() > 2 * (dull == 255).sum()
    assert bright[0, 0].tolist() == [40, 40, 40]
    assert light_of(bright).max() <= 1


def test_mean_of_frames_is_the_data_sets() -> None:
    frames = list(rng().integers(0, 256, (7, 33, 21, 3), dtype=np.uint8))
    stack = np.stack(frames).astype(np.float64)
    for linear, expected in ((0.0, stack.mean(0)), (1.0, (stack**2.2).mean(0) ** (1 / 2.2))):
        blurred, sharp = mean_of_frames(frames, rng(), BlurOptions(linear_light=linear, **QUIET))
        assert np.abs(blurred - expected).max() <= 0.501
        np.testing.assert_array_equal(sharp, frames[3])
    noisy, _ = mean_of_frames(frames, rng(), BlurOptions(linear_light=0, shot_noise=(0.01, 0.01), jpeg=0))
    assert 5 < np.abs(noisy - stack.mean(0)).mean() < 30
    with pytest.raises(ValueError, match="6 frames have no middle one"):
        mean_of_frames(frames[:6], rng())


def test_frame_counts_are_odd_and_all_occur() -> None:
    generator = rng()
    assert {draw_frame_count(generator, BlurOptions(frames=(7, 13))) for _ in range(200)} == {7, 9, 11, 13}


def test_light_is_clipped_before_the_noise() -> None:
    photo = np.full((40, 40, 3), 255, np.uint8)
    blur = BlurOptions(**(CLEAN | {"highlights": (3, 3), "read_noise": (0.05, 0.05)}))
    noisy = blur_photo(photo, rng(), blur)[0]
    assert 0.3 < (noisy < 255).mean() < 0.6
