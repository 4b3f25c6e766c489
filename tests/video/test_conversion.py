"""Frames to RGB and back, against the formulas of ITU-T H.273 in float64."""

from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange

from lmfn.video.conversion import from_rgb, to_rgb

SHARES = {1: (0.2126, 0.0722), 4: (0.3, 0.11), 6: (0.299, 0.114), 7: (0.212, 0.087), 9: (0.2627, 0.0593)}
FORMATS = {8: "yuv444p", 10: "yuv444p10le", 12: "yuv444p12le"}


def planes(frame: av.VideoFrame) -> np.ndarray:
    dtype = np.dtype(np.uint8 if frame.format.components[0].bits == 8 else np.uint16)
    found = [np.frombuffer(plane, dtype).reshape(-1, plane.line_size // dtype.itemsize) for plane in frame.planes]
    return np.stack([plane[: frame.height, : frame.width] for plane in found], axis=2)


def expected(samples: np.ndarray, bits: int, full: bool, space: int) -> np.ndarray:
    """RGB in [0, 1] of samples `[H, W, 3]`: luma, blue and red chroma."""
    unit, most = 2 ** (bits - 8), 2**bits - 1
    y, cb, cr = (samples[:, :, n].astype(np.float64) for n in range(3))
    y = y / most if full else (y / unit - 16) / 219
    cb, cr = ((plane - 128 * unit) / (most if full else 224 * unit) for plane in (cb, cr))
    red, blue = SHARES[space]
    r, b = y + 2 * (1 - red) * cr, y + 2 * (1 - blue) * cb
    return np.stack([r, (y - red * r - blue * b) / (1 - red - blue), b], axis=2)


def frame_of(samples: np.ndarray, bits: int, full: bool, space: int) -> av.VideoFrame:
    frame = av.VideoFrame(samples.shape[1], samples.shape[0], FORMATS[bits])
    for n, plane in enumerate(planes_to_write(frame, bits)):
        plane[: frame.height, : frame.width] = samples[:, :, n]
    frame.color_range, frame.colorspace = ColorRange.JPEG if full else ColorRange.MPEG, space
    return frame


def planes_to_write(frame: av.VideoFrame, bits: int) -> list[np.ndarray]:
    dtype = np.dtype(np.uint8 if bits == 8 else np.uint16)
    return [np.frombuffer(plane, dtype).reshape(-1, plane.line_size // dtype.itemsize) for plane in frame.planes]


@pytest.mark.parametrize("space", SHARES)
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("bits", FORMATS)
def test_every_sample_comes_back(bits: int, full: bool, space: int) -> None:
    unit, rng = 2 ** (bits - 8), np.random.default_rng(0)
    samples = rng.integers(96 * unit, 160 * unit, (33, 65, 3))
    samples[0, :, 0] = np.linspace(0 if full else 16 * unit, 2**bits - 1 if full else 235 * unit, 65)
    samples[0, :, 1:] = 128 * unit
    rgb = to_rgb(frame_of(samples, bits, full, space))
    assert rgb.dtype == np.float32
    assert np.abs(rgb - expected(samples, bits, full, space)).max() < 1e-6
    assert rgb[0, 0].tolist() == [0, 0, 0]
    assert rgb[0, -1].tolist() == [1, 1, 1]
    assert np.ptp(rgb[0], axis=1).max() < 1e-6  # gray stays neutral
    back = planes(from_rgb(rgb, FORMATS[bits], int(ColorRange.JPEG if full else ColorRange.MPEG), space))
    assert np.array_equal(back, samples)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p", "yuv420p10le", "yuv422p10le", "yuv440p"])
def test_a_gray_ramp_stays_as_it_is_whatever_the_sampling_of_chroma(pix_fmt: str, full: bool) -> None:
    ramp = np.linspace(0, 1, 64, dtype=np.float32)[None, :, None].repeat(32, 0).repeat(3, 2)
    value_range = int(ColorRange.JPEG if full else ColorRange.MPEG)
    frame = from_rgb(ramp, pix_fmt, value_range, 1)
    frame.color_range, frame.colorspace = value_range, 1
    first = to_rgb(frame)
    assert np.ptp(first, axis=2).max() < 1e-6
    assert np.abs(first - ramp).max() < 1.2 / 219
    again = from_rgb(first, pix_fmt, value_range, 1)
    for old, new in zip(frame.planes, again.planes, strict=True):
        assert bytes(old) == bytes(new)


@pytest.mark.parametrize("pix_fmt", ["monow", "monob", "gray", "gray10le", "gray16le", "grayf32le", "pal8", "ya8"])
def test_black_and_white_of_other_formats(pix_fmt: str) -> None:
    samples = np.zeros((32, 64, 3), np.uint8)
    samples[:, 32:] = 255
    frame = av.VideoFrame.from_ndarray(samples, format="rgb24")
    if pix_fmt == "pal8":
        index = (samples[:, :, 0] // 255).copy()
        palette = np.zeros((256, 4), np.uint8)
        palette[:, 0], palette[1] = 255, 255
        frame = av.VideoFrame.from_ndarray((index, palette), format="pal8")
    else:
        frame = frame.reformat(format=pix_fmt)
    rgb = to_rgb(frame)
    assert np.abs(rgb[:, :24]).max() < 0.005
    assert np.abs(rgb[:, 40:] - 1).max() < 0.005


@pytest.mark.parametrize(("pix_fmt", "levels"), [("rgb24", 255), ("gbrp", 255), ("bgra", 255), ("rgb48le", 65535)])
def test_rgb_is_taken_as_it_is(pix_fmt: str, levels: int) -> None:
    dtype = np.uint8 if levels == 255 else np.uint16
    samples = np.random.default_rng(0).integers(0, levels + 1, (32, 64, 3), dtype=dtype)
    frame = av.VideoFrame.from_ndarray(samples, format="rgb24" if levels == 255 else "rgb48le").reformat(format=pix_fmt)
    frame.color_range = ColorRange.MPEG  # a wrong tag
    assert np.abs(to_rgb(frame) - samples / levels).max() < 1e-6
    if pix_fmt != "bgra":
        back = from_rgb(to_rgb(frame), pix_fmt, int(ColorRange.UNSPECIFIED), 0).to_ndarray()
        assert np.array_equal(back, samples)
    assert frame.time_base in (None, Fraction(0))
