"""The metrics against scikit-image, scipy and loops written from the definitions."""

from math import exp

import numpy as np
import pytest
import scipy.ndimage
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from lmfn.evaluation import metrics
from lmfn.evaluation.metrics import lpips, ms_ssim, psnr, ssim_gauss2d, ssim_matlab3d, to_8bit

METRICS = {"psnr": psnr, "ssim_gauss2d": ssim_gauss2d, "ssim_matlab3d": ssim_matlab3d}

PHOTO = skimage.data.astronaut() / 255.0


def two_images(height, width, channels=3, noise=0.1, seed=0):
    """A piece of a photograph and a noisy, slightly blurred copy, float64 [H, W, C] in [0, 1]."""
    rng = np.random.default_rng(seed)
    top, left = (int(rng.integers(0, 512 - side + 1)) for side in (height, width))
    sharp = PHOTO[top : top + height, left : left + width, :channels]
    output = scipy.ndimage.gaussian_filter(sharp, (1, 1, 0)) + noise * rng.standard_normal(sharp.shape)
    return output.clip(0, 1), sharp


def as_batch(*arrays):
    return torch.stack([torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1))) for array in arrays])


def skimage_ssim(output, sharp):
    return structural_similarity(
        output, sharp, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, channel_axis=2
    )


def window3d():
    axis = np.array([exp(-(k**2) / (2 * 1.5**2)) for k in range(-5, 6)])
    window = axis[:, None, None] * axis[None, :, None] * axis[None, None, :]
    return window / window.sum()


def ssim_from_moments(mx, my, mxx, myy, mxy):
    return ((2 * mx * my + 1e-4) * (2 * (mxy - mx * my) + 9e-4)) / (
        (mx**2 + my**2 + 1e-4) * (mxx - mx**2 + myy - my**2 + 9e-4)
    )


def brute_matlab3d(output, sharp):
    """The full 11x11x11 window at every position, with edge values repeated beyond the image."""
    mean = [
        scipy.ndimage.correlate(x, window3d(), mode="nearest")
        for x in (output, sharp, output**2, sharp**2, output * sharp)
    ]
    return ssim_from_moments(*mean).mean()


def loop_matlab3d(output, sharp):
    """The definition, pixel by pixel and neighbour by neighbour."""
    height, width, channels = sharp.shape
    window = window3d()
    total = 0.0
    for y in range(height):
        for x in range(width):
            for c in range(channels):
                moments = np.zeros(5)
                for dy, dx, dc in np.ndindex(11, 11, 11):
                    at = (
                        min(max(y + dy - 5, 0), height - 1),
                        min(max(x + dx - 5, 0), width - 1),
                        min(max(c + dc - 5, 0), channels - 1),
                    )
                    a, b = output[at], sharp[at]
                    moments += window[dy, dx, dc] * np.array([a, b, a * a, b * b, a * b])
                total += ssim_from_moments(*moments)
    return total / (height * width * channels)


@given(
    st.lists(st.floats(-2, 3, width=32), min_size=1, max_size=40),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_to_8bit_gives_the_nearest_level(values, dtype):
    x = torch.tensor(values, dtype=dtype)
    stored = to_8bit(x)
    levels = np.arange(256) / 255
    nearest = np.abs(np.clip(x.double().numpy(), 0, 1)[:, None] - levels).min(axis=1)
    assert stored.dtype == dtype
    np.testing.assert_allclose(
        np.abs(stored.double().numpy() - x.double().clamp(0, 1).numpy()), nearest, rtol=0, atol=1e-7
    )
    assert torch.equal(to_8bit(stored), stored)
    assert (stored * 255 - (stored * 255).round()).abs().max() < 1e-4


def test_to_8bit_keeps_every_level():
    levels = torch.arange(256) / 255
    assert torch.equal(to_8bit(levels), levels)


@pytest.mark.parametrize(("height", "width", "channels"), [(1, 1, 3), (7, 5, 3), (33, 64, 1), (121, 77, 3)])
def test_psnr_is_scikit_images_for_every_image_of_a_batch(height, width, channels):
    pairs = [two_images(height, width, channels, noise, seed) for seed, noise in enumerate((0.02, 0.3))]
    measured = psnr(as_batch(*(a for a, _ in pairs)), as_batch(*(b for _, b in pairs)))
    expected = [peak_signal_noise_ratio(b, a, data_range=1) for a, b in pairs]
    assert measured.shape == (2,)
    np.testing.assert_allclose(measured, expected, rtol=0, atol=1e-9)


def test_psnr_of_identical_images_is_infinite_and_of_the_others_is_not():
    output, sharp = (as_batch(image) for image in two_images(20, 30))
    measured = psnr(torch.cat([sharp, output]), torch.cat([sharp, sharp]))
    assert measured[0] == float("inf")
    assert measured[1] == psnr(output, sharp)[0]


SIZES = [(11, 11), (11, 38), (12, 13), (37, 20), (101, 75)]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_ssim_gauss2d_is_scikit_images(height, width, channels):
    pairs = [two_images(height, width, channels, noise, seed) for seed, noise in enumerate((0.02, 0.3))]
    measured = ssim_gauss2d(as_batch(*(a for a, _ in pairs)), as_batch(*(b for _, b in pairs)))
    assert measured.shape == (2,)
    np.testing.assert_allclose(measured, [skimage_ssim(a, b) for a, b in pairs], rtol=0, atol=1e-9)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (5, 7), (23, 31), (40, 17)])
def test_ssim_matlab3d_is_that_of_the_whole_window(height, width, channels):
    pairs = [two_images(height, width, channels, noise, seed) for seed, noise in enumerate((0.02, 0.3))]
    measured = ssim_matlab3d(as_batch(*(a for a, _ in pairs)), as_batch(*(b for _, b in pairs)))
    assert measured.shape == (2,)
    np.testing.assert_allclose(measured, [brute_matlab3d(a, b) for a, b in pairs], rtol=0, atol=1e-9)


def test_ssim_matlab3d_is_that_of_the_definition_in_loops():
    output, sharp = two_images(3, 4)
    expected = loop_matlab3d(output, sharp)
    np.testing.assert_allclose(ssim_matlab3d(as_batch(output), as_batch(sharp)), [expected], rtol=0, atol=1e-9)
    np.testing.assert_allclose(brute_matlab3d(output, sharp), expected, rtol=0, atol=1e-12)


@settings(max_examples=25)
@given(
    st.integers(11, 40), st.integers(11, 40), st.sampled_from([1, 2, 3, 5]), st.integers(0, 2**32 - 1), st.booleans()
)
def test_ssims_of_any_images(height, width, channels, seed, flat):
    rng = np.random.default_rng(seed)
    output, sharp = rng.random((2, height, width, channels)) ** rng.choice([0.1, 1, 10])
    if flat:
        sharp[:] = rng.random()
    a, b = as_batch(output), as_batch(sharp)
    np.testing.assert_allclose(ssim_gauss2d(a, b), [skimage_ssim(output, sharp)], rtol=0, atol=1e-9)
    np.testing.assert_allclose(ssim_matlab3d(a, b), [brute_matlab3d(output, sharp)], rtol=0, atol=1e-9)


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_sums_are_float64_whatever_the_images_are(metric):
    """A single float32 sum over an image would lose the fourth decimal of a PSNR near 100 dB."""
    _, sharp = two_images(64, 48)
    sharp = as_batch(sharp).float()
    output = sharp + torch.randn(sharp.shape, generator=torch.Generator().manual_seed(0)) * 1e-5
    measured = metric(output, sharp)
    assert measured.dtype == torch.float64
    assert torch.equal(measured, metric(output.double(), sharp.double()))


@pytest.mark.parametrize("metric", [ssim_gauss2d, ssim_matlab3d])
def test_ssim_of_identical_images_is_one_and_it_is_symmetric(metric):
    output, sharp = (as_batch(image) for image in two_images(31, 22))
    assert metric(sharp, sharp).item() == pytest.approx(1, abs=1e-12)
    assert metric(output, sharp).item() == pytest.approx(metric(sharp, output).item(), abs=1e-12)
    assert metric(output, sharp).item() < 0.95


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_what_cannot_be_compared_is_refused(metric):
    image = torch.rand(1, 3, 16, 16)
    with pytest.raises(ValueError, match=r"\(1, 3, 16, 16\) and \(1, 3, 16, 15\)"):
        metric(image, image[..., :15])
    with pytest.raises(ValueError, match=r"\[B, C, H, W\]"):
        metric(image[0], image[0])
    with pytest.raises(TypeError, match=r"torch\.uint8"):
        metric((image * 255).byte(), image)


@pytest.mark.parametrize(("height", "width"), [(10, 11), (11, 10), (1, 40)])
def test_gauss2d_needs_room_for_its_window(height, width):
    image = torch.rand(1, 3, height, width)
    with pytest.raises(ValueError, match=rf"at least 11 x 11, got shape \(1, 3, {height}, {width}\)"):
        ssim_gauss2d(image, image)


def test_masked_psnr_and_ssim_are_those_of_scikit_images_maps():
    output, sharp = two_images(33, 47)
    mask = np.zeros((33, 47))
    mask[4:30, 9:] = 1
    squares = ((output - sharp) ** 2)[mask == 1]
    a, b, m = as_batch(output), as_batch(sharp), torch.from_numpy(mask)[None, None]
    np.testing.assert_allclose(psnr(a, b, m), [-10 * np.log10(squares.mean())], rtol=0, atol=1e-9)
    _, whole = structural_similarity(
        output, sharp, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, channel_axis=2,
        full=True,
    )  # fmt: skip
    kept = whole[5:-5, 5:-5][mask[5:-5, 5:-5] == 1]
    np.testing.assert_allclose(ssim_gauss2d(a, b, m), [kept.mean()], rtol=0, atol=1e-9)
    ones = torch.ones_like(m)
    assert psnr(a, b, ones).item() == pytest.approx(psnr(a, b).item(), abs=1e-12)
    assert ssim_gauss2d(a, b, ones).item() == pytest.approx(ssim_gauss2d(a, b).item(), abs=1e-12)


def ms_ssim_text(x, y):
    """Five scales of gray images, from the definition: full windows by scipy, downsampling by hand."""
    result = 1.0
    for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        if scale:
            x, y = (half_text(image) for image in (x, y))
        window = window3d()[5] / window3d()[5].sum()
        mx, my, mxx, myy, mxy = (
            scipy.ndimage.correlate(image, window)[5:-5, 5:-5] for image in (x, y, x * x, y * y, x * y)
        )
        structure = (2 * (mxy - mx * my) + 9e-4) / (mxx - mx**2 + myy - my**2 + 9e-4)
        luminance = (2 * mx * my + 1e-4) / (mx**2 + my**2 + 1e-4) if scale == 4 else 1
        result *= max((luminance * structure).mean(), 0) ** weight
    return result


def half_text(image):
    rows = range(0, image.shape[0], 2)
    columns = range(0, image.shape[1], 2)
    padded = np.pad(image, ((0, 1), (0, 1)), "edge")
    return np.array([[padded[y : y + 2, x : x + 2].mean() for x in columns] for y in rows])


@pytest.mark.parametrize(("height", "width"), [(161, 176), (187, 163)])
def test_ms_ssim_is_that_of_the_definition(height, width):
    pairs = [two_images(height, width, 1, noise, seed) for seed, noise in enumerate((0.02, 0.3))]
    measured = ms_ssim(as_batch(*(a for a, _ in pairs)), as_batch(*(b for _, b in pairs)))
    expected = [ms_ssim_text(a[..., 0], b[..., 0]) for a, b in pairs]
    assert expected[1] < expected[0] - 0.1
    np.testing.assert_allclose(measured, expected, rtol=0, atol=1e-9)


def test_ms_ssim_of_extremes():
    _, sharp = two_images(161, 161, 1)
    sharp = as_batch(sharp)
    assert ms_ssim(sharp, sharp).item() == pytest.approx(1, abs=1e-12)
    assert ms_ssim(1 - sharp, sharp).item() == 0  # a negative structure has no real power
    with pytest.raises(ValueError, match=r"at least 161 x 161, got shape \(1, 1, 160, 161\)"):
        ms_ssim(sharp[:, :, 1:], sharp[:, :, 1:])


def test_lpips_gives_its_network_what_that_expects(monkeypatch):
    """Images in [-1, 1], float32; returns one number per image."""
    seen = []

    def network(output, sharp):
        seen.append((output, sharp))
        return (output - sharp).abs().mean((1, 2, 3), keepdim=True)

    monkeypatch.setattr(metrics, "_alexnet", lambda _: network)
    output, sharp = torch.rand(2, 2, 3, 40, 50, dtype=torch.float64)
    measured = lpips(output, sharp)
    torch.testing.assert_close(measured, 2 * (output - sharp).abs().mean((1, 2, 3)), rtol=1e-6, atol=0)
    assert (measured.shape, measured.dtype) == ((2,), torch.float64)
    torch.testing.assert_close(seen[0][0], (output * 2 - 1).float())
    assert seen[0][1].dtype == torch.float32
