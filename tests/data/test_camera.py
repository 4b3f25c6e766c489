"""The camera: curves and noise against their formulas, demosaicing against skimage, JPEG against libjpeg."""

import io

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from scipy import stats

from lmfn.data import BlurKinds, BlurOptions
from lmfn.data.synthesis import blur_photo
from lmfn.data.synthesis.camera import (
    CODES,
    Camera,
    Mosaic,
    Noise,
    demosaic,
    from_linear,
    jpeg,
    light_of_codes,
    normal,
    sense,
    to_linear,
    with_contrast,
)

CPU = torch.device("cpu")
SILENT = Noise(0.0, 0.0, 0)
PLAIN = Mosaic((1.0, 1.0, 1.0), ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)), (0, 0))


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


@pytest.mark.parametrize("contrast", [0.0, 0.3, 0.5])
def test_codes_come_back_through_the_tone_curve(contrast: float) -> None:
    encoded = with_contrast(from_linear(light_of_codes(contrast, 1.0)), contrast)
    torch.testing.assert_close(encoded, CODES, atol=1e-5, rtol=0)


def test_only_clipped_codes_are_made_brighter() -> None:
    dull, bright = light_of_codes(0.2, 1.0), light_of_codes(0.2, 3.0)
    assert torch.equal(dull[:255], bright[:255])
    assert bright[255] == pytest.approx(3)
    assert (bright.diff() > 0).all()


@pytest.mark.parametrize(("shot", "read"), [(0, 0.01), (1e-3, 0), (5e-4, 0.005)])
@pytest.mark.parametrize("code", [90, 160, 220])
def test_noise_has_its_variance_in_linear_light(shot: float, read: float, code: int) -> None:
    photo = np.full((200, 200, 3), code, np.uint8)
    still = {"kinds": BlurKinds.only("shake"), "length": (0, 0), "rotation": (0, 0), "highlights": (1, 1)}
    plain = {"contrast": (0, 0), "mosaic": 0, "jpeg": 0, "labels": 0}
    blur = BlurOptions(**still, **plain, shot_noise=(shot,) * 2, read_noise=(read,) * 2)
    light = light_of(blur_photo(photo, np.random.default_rng(0), blur)[0])
    x = light_of(photo)[0, 0]
    assert light.mean() == pytest.approx(x, abs=2e-3)
    assert light.var() == pytest.approx(shot * x + read**2, rel=0.06)


@pytest.mark.parametrize("phase", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_flat_light_passes_a_mosaic(phase: tuple[int, int]) -> None:
    generator = np.random.default_rng(3)
    for _ in range(20):
        drawn = Mosaic.draw(generator)
        mosaic = Mosaic(drawn.gains, drawn.matrix, phase)
        for colour in ((0.3, 0.2, 0.1), (0.02, 0.3, 0.4), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (0.5, 0.7, 1.9)):
            light = torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, 9, 11)
            found = sense(light, [Camera(SILENT, mosaic)], [(3, 2, 9, 11)])
            torch.testing.assert_close(found, light.clamp(max=1), atol=2e-6, rtol=0)


def test_saturated_white_stays_white_behind_a_mosaic() -> None:
    mosaic = Mosaic.draw(np.random.default_rng(0))
    for value in (1.1, 2.0, 5.0):
        found = sense(torch.full((1, 3, 8, 8), value), [Camera(SILENT, mosaic)], [(0, 0, 8, 8)])
        torch.testing.assert_close(found, torch.ones_like(found), atol=1e-5, rtol=0)


def test_a_mosaic_keeps_one_colour_and_finds_linear_ones() -> None:
    """Malvar's filters are exact for gradients and do not change the colour sampled at a pixel."""
    y, x = torch.meshgrid(torch.arange(14.0), torch.arange(12.0), indexing="ij")
    ramp = torch.stack([0.2 + 0.02 * x, 0.2 + 0.02 * x, 0.2 + 0.02 * x]) + 0.01 * y
    found = demosaic(ramp[None], [(5, 8)])[0]
    torch.testing.assert_close(found[:, 2:-2, 2:-2], ramp[:, 2:-2, 2:-2], atol=1e-6, rtol=0)
    noise = torch.rand(1, 3, 16, 16, generator=torch.manual_seed(0))
    found = demosaic(noise, [(0, 0)])
    for channel, rows, columns in ((0, 0, 0), (1, 0, 1), (1, 1, 0), (2, 1, 1)):
        assert torch.equal(found[:, channel, rows::2, columns::2], noise[:, channel, rows::2, columns::2])


def test_a_photograph_survives_its_mosaic() -> None:
    photo = torch.from_numpy(skimage.data.astronaut()[:200, :200]).permute(2, 0, 1)[None] / 255
    smooth = torch.nn.functional.avg_pool2d(photo, 4)
    light = to_linear(smooth)
    found = from_linear(sense(light, [Camera(SILENT, PLAIN)], [(0, 0, 50, 50)]))
    assert 10 * -(found - smooth)[..., 2:-2, 2:-2].square().mean().log10() > 26


def test_the_white_balance_of_a_mosaic_does_not_show() -> None:
    """Without noise, detail is found alike whatever the sensor's sensitivity to each colour."""
    light = torch.rand(1, 3, 16, 18, generator=torch.manual_seed(0))
    found = [
        sense(light, [Camera(SILENT, Mosaic(gains, PLAIN.matrix, (0, 1)))], [(0, 0, 16, 18)])
        for gains in ((1.0, 1.0, 1.0), (2.3, 1.0, 1.6))
    ]
    torch.testing.assert_close(found[1], found[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("gains", [(1.0, 1.0, 1.0), (2.0, 1.0, 1.6)])
def test_noise_behind_a_mosaic_has_the_variance_of_the_filters(gains: tuple[float, float, float]) -> None:
    """For uniform light: the raw variance times the squares of the white balance and of the filters."""
    shot, read, value = 1e-3, 2e-3, 0.4
    light = torch.full((1, 3, 400, 400), value)
    found = sense(light, [Camera(Noise(shot, read, 5), Mosaic(gains, PLAIN.matrix, (0, 0)))], [(0, 0, 400, 400)])
    balanced = [gain**2 * (shot * value / gain + read**2) for gain in gains]
    # For red, at the four pixels of the mosaic (itself, horizontal, vertical, diagonal), in 64ths: the squares
    # of the coefficients at red, green and blue pixels.
    expected = [balanced[0]]
    for red, green, blue in ((32, 31.5, 0), (32, 31.5, 0), (16, 0, 45)):
        other = green * balanced[1] + blue * balanced[2]
        expected.append((red * balanced[0] + other) / 64)
    places = [found[0, 0, row::2, column::2] for row, column in ((0, 0), (0, 1), (1, 0), (1, 1))]
    for place, variance in zip(places, expected, strict=True):
        assert place.var().item() == pytest.approx(variance, rel=0.03)
        assert place.mean().item() == pytest.approx(value, abs=1e-3)


def test_noise_is_normal_and_a_function_of_key_and_place() -> None:
    noise = normal([7, 2**63 - 1], [(0, 0, 200, 300), (0, 0, 200, 300)], CPU)
    assert noise.shape == (2, 3, 200, 300)
    for values in noise:
        assert stats.kstest(values.flatten().double(), "norm").pvalue > 1e-3
        for axis in (0, 1, 2):  # neighbours are independent
            a, b = values.narrow(axis, 0, values.shape[axis] - 1), values.narrow(axis, 1, values.shape[axis] - 1)
            assert abs(np.corrcoef(a.flatten(), b.flatten())[0, 1]) < 0.02
    assert abs(np.corrcoef(noise[0].flatten(), noise[1].flatten())[0, 1]) < 0.02
    part = normal([7], [(11, 23, 40, 50)], CPU)
    assert torch.allclose(part[0], noise[0, :, 11:51, 23:73], atol=1e-5)


@pytest.mark.parametrize("quality", [20, 50, 75, 95, 100])
def test_jpeg_is_libjpegs(quality: int) -> None:
    photo = skimage.data.astronaut()[:64, 100:196]
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    expected = np.asarray(Image.open(file)).astype(int)
    found = jpeg(torch.from_numpy(photo)[None], [quality], [(0, 0, 64, 96)])[0].numpy().astype(int)
    difference = np.abs(found - expected)
    # libjpeg's transform uses integers, so occasionally a coefficient is rounded to the other side.
    assert difference.mean() < 0.8
    assert np.abs(found - photo).mean() == pytest.approx(np.abs(expected - photo).mean(), rel=0.1)


def test_jpeg_blocks_are_counted_from_the_photographs_corner() -> None:
    photo = torch.from_numpy(skimage.data.astronaut()[:80, :96])[None]
    whole = jpeg(photo, [40], [(0, 0, 80, 96)])
    part = jpeg(photo[:, 5:69, 7:89], [40], [(5, 7, 64, 82)])
    inner = part[:, 32:48, 32:64].int() - whole[:, 37:53, 39:71].int()
    assert inner.abs().max() <= 1
    shifted = jpeg(photo[:, 5:69, 7:89], [40], [(0, 0, 64, 82)])
    assert (shifted[:, 32:48, 32:64].int() - whole[:, 37:53, 39:71].int()).abs().max() > 5
