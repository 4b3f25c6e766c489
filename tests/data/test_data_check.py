"""The data check: what is present, and every pair that does not match."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from skimage.metrics import peak_signal_noise_ratio

from lmfn.data import DataError, check


@pytest.fixture
def photo() -> np.ndarray:
    return skimage.data.astronaut()[:64, 200:280]


def test_good_pairs(save: Callable, photo: np.ndarray, tmp_path: Path) -> None:
    psnr = {}
    for n in range(3):
        sharp = photo[: 64 - 10 * (n == 2)]
        blurred = np.roll(sharp, n + 1, axis=1)
        psnr[f"seq/00000{n}"] = peak_signal_noise_ratio(sharp, blurred)
        save(tmp_path / "test" / "seq" / "sharp" / f"00000{n}.png", pixels=sharp)
        save(tmp_path / "test" / "seq" / "blur" / f"00000{n}.png", pixels=blurred)
    report = check(tmp_path)
    assert report.ok
    assert (report.layout, report.split, report.count, report.decoded) == ("GoPro (blur)", "test", 3, 3)
    assert dict(report.sizes) == {(64, 80): 2, (54, 80): 1}
    assert report.psnr == pytest.approx(psnr)
    text = report.text()
    assert "3 pairs (GoPro (blur), test)" in text
    assert "80x64 (2 of 3), from 80x54 to 80x64" in text
    assert f"mean {np.mean(list(psnr.values())):.2f} dB, from {min(psnr.values()):.2f} (seq/" in text
    assert "no problems" in text


def test_pairs_that_do_not_fit(save: Callable, photo: np.ndarray, tmp_path: Path) -> None:
    for n in range(6):
        save(tmp_path / "sharp" / f"{n}.png", pixels=photo)
        save(tmp_path / "blur" / f"{n}.png", pixels=np.roll(photo, 2, axis=0))
    save(tmp_path / "blur" / "1.png", pixels=photo[:, :-1])
    save(tmp_path / "blur" / "2.png", pixels=photo)
    save(tmp_path / "blur" / "3.png", pixels=255 - photo)
    for name, end in (("4", 20), ("5", -40)):  # one without a header, and one with a header but not all pixels
        file = tmp_path / "blur" / f"{name}.png"
        file.write_bytes(file.read_bytes()[:end])
    report = check(tmp_path)
    assert not report.ok
    assert len(report.problems) == 5
    text = report.text()
    for word in (
        "problems: 5",
        "blur/1.png is 79x64, but its partner",
        "blur/2.png is the same image as",
        "blur/3.png and ",
        "show different pictures (PSNR ",
        "blur/4.png: ",
        "blur/5.png: ",
    ):
        assert word in text


def test_names_do_not_end_a_line(save: Callable, photo: np.ndarray, tmp_path: Path) -> None:
    name = "a\r\n\x1b[31m.png"
    for kind in ("blur", "sharp"):
        save(tmp_path / kind / name, pixels=photo)
    text = check(tmp_path).text()
    assert "a\\r\\n\\x1b[31m.png is the same image" in text
    assert len(text.splitlines()) == 6


def test_a_sample_is_spread_evenly_and_said(save: Callable, photo: np.ndarray, tmp_path: Path) -> None:
    for n in range(10):
        save(tmp_path / "sharp" / f"{n}.png", pixels=photo)
        save(tmp_path / "blur" / f"{n}.png", pixels=np.roll(photo, 1, axis=0))
    report = check(tmp_path, sample=5)
    assert list(report.psnr) == ["0", "2", "4", "6", "8"]
    assert "decoded 5 of 10, spread evenly" in report.text()
    with pytest.raises(ValueError, match="sample is 0"):
        check(tmp_path, sample=0)
    report = check(tmp_path / "blur", sharp=tmp_path / "sharp")
    assert (report.layout, report.decoded) == ("two folders", 10)


def test_folders_without_pairs(save: Callable, tmp_path: Path) -> None:
    for n in range(3):
        save(tmp_path / "a" / f"{n}.jpg", 20, 30 + n)
    (tmp_path / "a" / "3.png").write_text("not an image")
    report = check(tmp_path)
    assert (report.layout, report.count, report.psnr, report.sizes.total()) == ("images", 4, {}, 3)
    [problem] = report.problems
    assert "3.png" in problem
    assert f"{tmp_path}: 4 images" in report.text()
    assert "no pairs were recognised. Any two folders" in report.text()
    assert "my/{}_blur.png,my/{}_sharp.png" in report.text()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        check(tmp_path / "empty")
