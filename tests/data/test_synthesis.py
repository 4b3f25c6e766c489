"""Blur synthesis: against scipy's interpolation, the formulas in float64, and the physics of a point of light."""

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates
from skimage.metrics import peak_signal_noise_ratio

from lmfn.data import BlurOptions, synthesis
from lmfn.data.synthesis import camera_path, draw_frame_count, from_linear, mean_of_frames, shake, to_linear

CLEAN = {"shot_noise": (0, 0), "read_noise": (0, 0), "highlights": (1, 1)}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def light_of(image: np.ndarray) -> np.ndarray:
    """Linear light of the first channel, in float64, by the standard's formula."""
    v = image[:, :, 0] / 255
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def test_the_curve_is_srgb() -> None:
    codes = np.arange(256, dtype=np.uint8)
    values = torch.from_numpy(codes / 255).float()
    np.testing.assert_allclose(to_linear(values), light_of(codes[:, None, None])[:, 0], atol=1e-6)
    np.testing.assert_allclose(from_linear(to_linear(values)), codes / 255, atol=1e-6)
    np.testing.assert_allclose(from_linear(torch.tensor([-1.0, 2.0])), [0, 1], atol=1e-6)


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
    blurred, sharp = shake(photo, rng(seed), one)
    np.testing.assert_array_equal(sharp, photo)
    light = light_of(blurred)
    rows, columns = np.mgrid[: light.shape[0], : light.shape[1]]
    assert light.sum() == pytest.approx(25, rel=0.02)
    assert (rows * light).sum() / light.sum() == pytest.approx(y, abs=0.1)
    assert (columns * light).sum() / light.sum() == pytest.approx(x, abs=0.1)
    reach = np.hypot(rows - y, columns - x)[light > 0.002].max()
    assert reach <= length + rotation + 4.5


@settings(max_examples=50)
@example(seed=0, length=0.0, curvature=0.0, rotation=5e-324, radius=100.0)
@given(st.integers(0, 10**6), st.floats(0, 60), st.floats(0, 360), st.floats(0, 30), st.floats(50, 2000))
def test_paths_are_centred_as_long_as_told_and_without_gaps(
    seed: int, length: float, curvature: float, rotation: float, radius: float
) -> None:
    one = BlurOptions(length=(length,) * 2, curvature=(curvature,) * 2, rotation=(rotation,) * 2)
    path = camera_path(rng(seed), one, radius)
    assert path.weight.sum() == pytest.approx(1)
    assert path.weight.min() > 0
    for values in (path.x, path.y, path.angle):
        assert path.weight @ values == pytest.approx(0, abs=1e-9)
    steps = np.hypot(np.diff(path.x), np.diff(path.y))
    turns = np.abs(np.diff(path.angle)) * radius
    assert (steps + turns).max(initial=0) <= 1 + 1e-6
    assert steps.sum() <= length + 1e-9
    assert turns.sum() <= rotation + 1e-9


def test_a_straight_path_is_a_line_of_its_length() -> None:
    one = BlurOptions(length=(20, 20), curvature=(0, 0), rotation=(0, 0))
    for seed in range(20):
        path = camera_path(rng(seed), one, 100)
        ends = np.hypot(path.x[-1] - path.x[0], path.y[-1] - path.y[0])
        assert ends == pytest.approx(20 * (len(path.x) - 1) / len(path.x), rel=1e-3)


@pytest.mark.parametrize("box", [None, (11, 7, 31, 45), (0, 30, 20, 29), (52, 0, 9, 59)])
def test_the_integral_is_scipys(box: tuple[int, int, int, int] | None) -> None:
    photo = skimage.data.astronaut()[100:161, 200:259]
    blur = BlurOptions(length=(12, 12), rotation=(6, 6), **CLEAN)
    blurred, sharp = shake(photo, rng(5), blur, box)
    top, left, height, width = box or (0, 0, *photo.shape[:2])
    np.testing.assert_array_equal(sharp, photo[top : top + height, left : left + width])
    path = camera_path(rng(5), blur, radius=np.hypot(*photo.shape[:2]) / 2)
    y, x = np.mgrid[top : top + height, left : left + width].astype(np.float64)
    cy, cx = (photo.shape[0] - 1) / 2, (photo.shape[1] - 1) / 2
    expected = np.zeros((height, width, 3))
    for dx, dy, angle, weight in zip(path.x, path.y, path.angle, path.weight, strict=True):
        turned = np.exp(-1j * angle) * ((x - cx - dx) + 1j * (y - cy - dy))
        for c in range(3):
            light = light_of(photo[:, :, c : c + 1])
            expected[:, :, c] += weight * map_coordinates(
                light, [turned.imag + cy, turned.real + cx], order=1, mode="reflect"
            )
    encoded = np.where(expected <= 0.0031308, expected * 12.92, 1.055 * expected ** (1 / 2.4) - 0.055) * 255
    assert np.abs(blurred - encoded).max() <= 0.51


def test_tiles_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    photo = skimage.data.astronaut()[:131, :157]
    blur = BlurOptions(length=(15, 15), **CLEAN)
    whole, _ = shake(photo, rng(3), blur)
    monkeypatch.setattr(synthesis, "TILE", 37)
    tiled, _ = shake(photo, rng(3), blur)
    assert np.abs(whole.astype(int) - tiled).max() <= 1
    assert (whole != tiled).mean() < 1e-3


def test_the_same_generator_gives_the_same_pixels_on_any_number_of_threads() -> None:
    photo, threads = skimage.data.astronaut(), torch.get_num_threads()
    try:
        made = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            made.append(shake(photo, rng(9), BlurOptions(), (100, 100, 130, 140))[0])
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(made[0], made[1])
    np.testing.assert_array_equal(made[0], made[2])
    assert (shake(photo, rng(10), BlurOptions(), (100, 100, 130, 140))[0] != made[0]).any()


def test_longer_paths_blur_more() -> None:
    photo = skimage.data.astronaut()

    def quality(length: float) -> float:
        blur = BlurOptions(length=(length, length), **CLEAN)
        made = [shake(photo, rng(n), blur, (80, 150, 200, 200)) for n in range(4)]
        return float(np.mean([peak_signal_noise_ratio(sharp, blurred) for blurred, sharp in made]))

    assert 60 > quality(0) > quality(4) > quality(12) > quality(24) > 12


def test_no_path_no_blur() -> None:
    photo = skimage.data.astronaut()[:65, :70]
    still = BlurOptions(length=(0, 0), rotation=(0, 0), **CLEAN)
    np.testing.assert_array_equal(shake(photo, rng(), still)[0], photo)


def test_highlights_streak_and_clip() -> None:
    photo = np.full((80, 80, 3), 40, np.uint8)
    photo[38:42, 38:42] = 255
    dull, bright = (
        shake(photo, rng(1), BlurOptions(length=(16, 16), **(CLEAN | {"highlights": (gain,) * 2})))[0]
        for gain in (1, 4)
    )
    assert (bright >= dull).all()
    assert (bright == 255).sum() > 2 * (dull == 255).sum()
    assert bright[0, 0].tolist() == [40, 40, 40]
    assert light_of(bright).max() <= 1


@pytest.mark.parametrize(("shot", "read"), [(0, 0.01), (1e-3, 0), (5e-4, 0.005)])
@pytest.mark.parametrize("code", [90, 160, 220])
def test_noise_has_its_variance_in_linear_light(shot: float, read: float, code: int) -> None:
    photo = np.full((200, 200, 3), code, np.uint8)
    blur = BlurOptions(
        length=(0, 0), rotation=(0, 0), highlights=(1, 1), shot_noise=(shot,) * 2, read_noise=(read,) * 2
    )
    light = light_of(shake(photo, rng(), blur)[0])
    x = light_of(photo)[0, 0]
    assert light.mean() == pytest.approx(x, abs=2e-3)
    assert light.var() == pytest.approx(shot * x + read**2, rel=0.06)


def test_mean_of_frames_is_the_data_sets() -> None:
    frames = list(rng().integers(0, 256, (7, 33, 21, 3), dtype=np.uint8))
    stack = np.stack(frames).astype(np.float64)
    for linear, expected in ((0.0, stack.mean(0)), (1.0, (stack**2.2).mean(0) ** (1 / 2.2))):
        blurred, sharp = mean_of_frames(
            frames, rng(), BlurOptions(linear_light=linear, shot_noise=(0, 0), read_noise=(0, 0))
        )
        assert np.abs(blurred - expected).max() <= 0.501
        np.testing.assert_array_equal(sharp, frames[3])
    noisy, _ = mean_of_frames(frames, rng(), BlurOptions(linear_light=0, shot_noise=(0.01, 0.01)))
    assert 5 < np.abs(noisy - stack.mean(0)).mean() < 30
    with pytest.raises(ValueError, match="6 frames have no middle one"):
        mean_of_frames(frames[:6], rng())


def test_frame_counts_are_odd_and_all_occur() -> None:
    generator = rng()
    assert {draw_frame_count(generator, BlurOptions(frames=(7, 13))) for _ in range(200)} == {7, 9, 11, 13}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("length", (5, 2)),
        ("length", (-1, 2)),
        ("length", 3),
        ("length", (1, 2, 3)),
        ("rotation", (0, float("nan"))),
        ("curvature", ("a", "b")),
        ("highlights", (0.5, 2)),
        ("frames", (7, 12)),
        ("frames", (7.0, 13.0)),
        ("frames", (0, 3)),
        ("linear_light", 1.5),
        ("linear_light", None),
        ("shot_noise", (0, float("inf"))),
        ("read_noise", (True, True)),
    ],
)
def test_wrong_options_are_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"BlurOptions.{field} is "):
        BlurOptions(**{field: value})


def test_light_is_clipped_before_the_noise() -> None:
    photo = np.full((40, 40, 3), 255, np.uint8)
    noisy = shake(photo, rng(), BlurOptions(highlights=(3, 3), shot_noise=(0, 0), read_noise=(0.05, 0.05)))[0]
    assert 0.3 < (noisy < 255).mean() < 0.6
