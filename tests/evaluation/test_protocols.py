"""Each protocol against an independent implementation, or a case with a known answer."""

import math

import numpy as np
import pytest
import scipy.ndimage
import skimage.data
import skimage.transform
import torch
from skimage.metrics import structural_similarity

from lmfn.evaluation.metrics import ms_ssim, psnr
from lmfn.evaluation.protocols import PROTOCOLS, align

PHOTO = skimage.data.astronaut() / 255.0


def as_batch(array):
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))[None]


def eight_bits(array):
    return np.round(array.clip(0, 1) * 255) / 255


def warped(matrix, height=160, width=200):
    """The photograph seen by another camera: its part at (60, 120), and that part transformed by `matrix` (x, y, 1)."""
    shift = np.array([[1, 0, 120], [0, 1, 60], [0, 0, 1.0]])
    parts = (skimage.transform.ProjectiveTransform(m) for m in (shift, shift @ matrix))
    return [skimage.transform.warp(PHOTO, part, output_shape=(height, width), order=3) for part in parts]


def similarity(angle, scale, right, down):
    c, s = scale * math.cos(angle), scale * math.sin(angle)
    return np.array([[c, -s, right], [s, c, down], [0, 0, 1]])


MOVES = {
    "shifted": similarity(0, 1, 3.4, -2.7),
    "rotated": similarity(math.radians(1.5), 1, 2, -1),
    "scaled": similarity(0, 0.97, -1.5, -2),
    "tilted": similarity(0.01, 0.99, 1, 2) + np.array([[0, 0, 0], [0, 0, 0], [4e-5, -3e-5, 0]]),
}


@pytest.mark.parametrize("move", MOVES)
def test_align_finds_a_known_homography_and_brightness(move):
    sharp, moved = warped(MOVES[move])
    aligned, mask = align(as_batch(0.8 * moved), as_batch(sharp))
    assert (aligned.shape, mask.shape) == ((1, 3, 160, 200), (1, 1, 160, 200))
    assert psnr(as_batch(0.8 * moved), as_batch(sharp)).item() < 22
    inner = (slice(None), slice(None), slice(12, -12), slice(12, -12))
    factor = 0.8 * (0.8 * moved * sharp).sum() / (0.64 * moved**2).sum()  # of the images before alignment
    assert 0.95 < factor < 1
    assert psnr(aligned[inner] / factor, as_batch(sharp)[inner]).item() > 38
    # What the moved image does not show is masked, up to half a pixel: its corners, in the sharp image's coordinates.
    y, x = np.mgrid[:160, :200]
    places = np.linalg.inv(MOVES[move]) @ np.stack([x.ravel(), y.ravel(), np.ones(x.size)])
    right, down = (places[:2] / places[2]).reshape(2, 160, 200)
    surely_in = (right > 1) & (right < 198) & (down > 1) & (down < 158)
    surely_out = (right < -1.5) | (right > 200.5) | (down < -1.5) | (down > 160.5)
    assert mask[0, 0].numpy()[surely_in].min() == 1
    assert surely_out.any()
    assert mask[0, 0].numpy()[surely_out].max() == 0


def test_realblur_is_what_the_maps_of_scikit_image_give_under_the_mask():
    sharp, moved = warped(MOVES["rotated"])
    output = scipy.ndimage.gaussian_filter(0.9 * moved, (1, 1, 0))
    measured = PROTOCOLS["realblur"].measure(as_batch(output), [as_batch(sharp)], ("psnr", "ssim_gauss2d"))
    aligned, mask = align(as_batch(eight_bits(output)), as_batch(sharp))
    mask = mask[0, 0].numpy()
    a, b = (x[0].permute(1, 2, 0).numpy() * mask[..., None] for x in (aligned, as_batch(sharp)))
    assert 0.9 < mask.mean() < 1
    assert measured["psnr"] == pytest.approx(-10 * np.log10(((a - b) ** 2)[mask == 1].mean()), abs=1e-9)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
    _, maps = structural_similarity(a, b, channel_axis=2, full=True, **options)
    kept = mask[5:-5, 5:-5] == 1
    assert measured["ssim_gauss2d"] == pytest.approx(maps[5:-5, 5:-5][kept].mean(), abs=1e-9)
    assert measured["psnr"] > PROTOCOLS["plain"].measure(as_batch(output), [as_batch(sharp)], ("psnr",))["psnr"] + 5


def test_rsblur_is_realblur_of_the_clipped_image():
    sharp, moved = warped(MOVES["rotated"])
    sharp = np.clip(1.4 * sharp, 0, 1)  # highlights, which cubic interpolation and scaling take above white
    output = as_batch(scipy.ndimage.gaussian_filter(np.clip(1.4 * moved, 0, 1), (1, 1, 0)))
    aligned, mask = align(as_batch(eight_bits(output[0].permute(1, 2, 0).numpy())), as_batch(sharp))
    assert aligned.max() > 1
    inside = mask[0, 0].numpy() == 1
    error = ((aligned.clamp(0, 1) - as_batch(sharp))[0].permute(1, 2, 0).numpy()[inside] ** 2).mean()
    measured = PROTOCOLS["rsblur"].measure(output, [as_batch(sharp)], ("psnr",))["psnr"]
    assert measured == pytest.approx(-10 * np.log10(error), abs=1e-9)
    assert measured > PROTOCOLS["realblur"].measure(output, [as_batch(sharp)], ("psnr",))["psnr"]


def test_realblur_says_what_cannot_be_aligned():
    rng = np.random.default_rng(0)
    noise = as_batch(rng.random((64, 64, 3)))
    with pytest.raises(ArithmeticError, match="cannot be aligned to the sharp image"):
        align(as_batch(1 - eight_bits(PHOTO[100:164, 200:264])), as_batch(PHOTO[100:164, 200:264]))
    with pytest.raises(ArithmeticError, match="cannot be aligned"):
        align(torch.zeros_like(noise), noise)


def koehler_text(output, frames):
    """Frame by frame in NumPy, with the shift found by exhaustive search."""
    z = eight_bits(output)
    found = []
    for x in frames:
        scaled = z * (x * z).sum() / (z * z).sum()
        gray_x, gray_z = x.mean(2), scaled.mean(2)
        tries = [(dy, dx) for dy in range(-8, 9) for dx in range(-8, 9)]
        down, right = max(tries, key=lambda t: (gray_x * np.roll(gray_z, t, (0, 1))).sum())
        moved, mask = np.zeros_like(x), np.zeros((*x.shape[:2], 1))
        for row in range(x.shape[0]):
            for column in range(x.shape[1]):
                if 0 <= row - down < x.shape[0] and 0 <= column - right < x.shape[1]:
                    moved[row, column], mask[row, column] = scaled[row - down, column - right], 1
        a, b = (image @ np.array([0.299, 0.587, 0.114]) for image in (moved, x * mask))
        found.append(
            (-10 * np.log10(((a - b) ** 2).mean()), ms_ssim(*(torch.from_numpy(i)[None, None] for i in (a, b))))
        )
    return max(p for p, _ in found), max(s.item() for _, s in found)


def test_koehler_is_the_best_over_the_frames():
    crop = lambda y, x: PHOTO[y : y + 165, x : x + 170]  # noqa: E731
    frames = [crop(100, 150), crop(103, 148), scipy.ndimage.gaussian_filter(crop(98, 155), (0.7, 0.7, 0))]
    output = scipy.ndimage.gaussian_filter(0.7 * crop(101, 151), (0.5, 0.5, 0))
    measured = PROTOCOLS["koehler"].measure(as_batch(output), map(as_batch, frames), ("psnr", "ms_ssim"))
    expected = koehler_text(output, frames)
    assert (measured["psnr"], measured["ms_ssim"]) == pytest.approx(expected, abs=1e-9)
    one = [PROTOCOLS["koehler"].measure(as_batch(output), [as_batch(f)], ("psnr",))["psnr"] for f in frames]
    assert measured["psnr"] == max(one) > min(one) + 0.1


def test_koehler_of_a_frame_moved_and_darkened():
    """Nothing is lost at the edge, and half of an even level is a level. What remains is the factor, which is fitted
    before the shift is undone."""
    sharp = np.zeros((165, 170, 3))
    sharp[10:-10, 10:-10] = np.round(PHOTO[100:245, 150:300] * 127) * 2 / 255
    moved = np.roll(sharp, (-4, 6), (0, 1)) / 2
    factor = (sharp * moved).sum() / (moved**2).sum()
    gray = sharp @ np.array([0.299, 0.587, 0.114])
    measured = PROTOCOLS["koehler"].measure(as_batch(moved), [as_batch(sharp)], ("psnr",))
    assert 1.7 < factor < 1.99
    assert measured["psnr"] == pytest.approx(-10 * np.log10((((1 - factor / 2) * gray) ** 2).mean()), abs=1e-9)
    black = PROTOCOLS["koehler"].measure(torch.zeros(1, 3, 165, 170).double(), [as_batch(sharp)], ("psnr",))
    assert black["psnr"] == pytest.approx(-10 * np.log10((gray**2).mean()), abs=1e-9)


@pytest.mark.parametrize("name", ["plain", "gopro", "hide"])
def test_protocols_of_pairs_round_to_8_bits_and_measure_what_is_named(name):
    protocol = PROTOCOLS[name]
    assert protocol.metrics == ("psnr", "ssim_gauss2d", "ssim_matlab3d")
    sharp, output = np.full((12, 12, 3), 100 / 255), np.full((12, 12, 3), 101.4 / 255)
    output[:6] = 1.7
    measured = protocol.measure(as_batch(output), [as_batch(sharp)], protocol.metrics)
    assert measured["psnr"] == pytest.approx(10 * np.log10(255**2 / ((155**2 + 1) / 2)), abs=1e-9)
    assert list(measured) == list(protocol.metrics)
