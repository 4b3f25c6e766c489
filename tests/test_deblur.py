"""The deblurrer against the network alone."""

import copy
import os
import pickle
import sys
import warnings

import numpy as np
import pytest
import small_networks
import torch
from PIL import ImageCms

import lmfn.deblur
from lmfn import LMFN, images, plausibility
from lmfn.deblur import Deblurrer
from lmfn.files import deblur_files
from lmfn.images import Photo
from lmfn.memory import available_memory
from lmfn.plausibility import DoubtfulOutput

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture(scope="module")
def model():
    """A small network that, unlike an untrained one, is far from the identity, so that an unchanged input is
    noticed."""
    torch.manual_seed(0)
    model = LMFN.from_preset("lmfn", channels=8, features=8, distilled=4, esa=4, rfdbs=1)
    with torch.no_grad():
        model.head.conv.weight.mul_(20)
    return model.eval()


@pytest.fixture(scope="module")
def deblurrer(model):
    return Deblurrer(model, device="cpu", guard="off")


@pytest.mark.parametrize("again", [lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy])
def test_a_deblurrer_is_pickled_and_copied_with_its_options(model, again) -> None:
    given = Deblurrer(model, device="cpu", guard="off", strength=0.5, memory=2**40)
    same = again(given)
    assert (same.guard, same.strength, same.memory, same.precision, same.device) == (
        "off", 0.5, 2**40, "fp32", given.device,
    )  # fmt: skip
    image = picture(40, 50, 3)
    assert np.array_equal(same(image), given(image))


def picture(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).random(shape).astype(dtype)


def through(model, rgb):
    """The network's output for `[H, W, 3]` with 16 pixels reflected (or repeated) around it, without a Deblurrer."""
    mode = "reflect" if min(rgb.shape[:2]) > 16 else "edge"
    padded = np.pad(rgb, ((16, 16), (16, 16), (0, 0)), mode=mode)
    with torch.no_grad():
        x = torch.tensor(np.moveaxis(padded, 2, 0)[None].copy(), dtype=torch.float32)
        return np.moveaxis(model(x)[0].clamp(0, 1).numpy(), 0, 2)[16:-16, 16:-16]


# ---- arrays


@pytest.mark.parametrize("size", [(1, 1), (17, 1000), (64, 64), (5, 70), (99, 131)])
def test_rgb_is_what_the_network_gives(model, deblurrer, size):
    image = picture(*size, 3)
    sharp = deblurrer(image)
    assert np.abs(sharp - through(model, image)).max() < 1e-5
    assert np.abs(sharp - image).max() > 0.05
    assert sharp.shape == image.shape
    assert sharp.dtype == np.float32


def test_float64_stays_float64(model, deblurrer):
    image = picture(20, 30, 3, dtype=np.float64)
    sharp = deblurrer(image)
    assert sharp.dtype == np.float64
    assert np.abs(sharp - through(model, image)).max() < 1e-5


def test_gray_is_the_mean_of_three_equal_channels(model, deblurrer):
    image = picture(20, 30, 1)
    three = through(model, np.repeat(image, 3, axis=2))
    sharp = deblurrer(image)
    assert sharp.shape == image.shape
    free = ((three > 0) & (three < 1)).all(axis=2)  # where nothing was clipped before averaging
    assert free.mean() > 0.3
    assert np.abs(sharp[:, :, 0] - three.mean(axis=2))[free].max() < 1e-5


@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_comes_back_untouched_and_does_not_matter(deblurrer, channels):
    image = picture(21, 33, channels, dtype=np.float64)
    image[:5, :, -1] = 0
    sharp = deblurrer(image)
    assert np.array_equal(sharp[:, :, -1], image[:, :, -1])
    assert np.array_equal(sharp[:, :, :-1], deblurrer(image[:, :, :-1]))


def test_strides_do_not_matter_and_the_input_stays(deblurrer):
    image = picture(40, 50, 3)
    before = image.copy()
    sharp = deblurrer(image)
    assert np.array_equal(image, before)
    assert np.array_equal(deblurrer(image[::-1, ::-1][::-1, ::-1]), sharp)
    assert np.array_equal(deblurrer(np.asfortranarray(image)), sharp)
    image.setflags(write=False)
    assert np.array_equal(deblurrer(image), sharp)


def test_the_result_is_clipped(model):
    loud = copy.deepcopy(model)
    with torch.no_grad():
        loud.head.conv.bias.add_(torch.tensor([2.0, -2.0, 0.0]))
    sharp = Deblurrer(loud, device="cpu", guard="off")(picture(20, 20, 3))
    assert (sharp[:, :, 0] == 1).all()
    assert (sharp[:, :, 1] == 0).all()


def test_bf16_is_near(model, deblurrer):
    image = picture(64, 80, 3)
    sharp = Deblurrer(model, device="cpu", precision="bf16", guard="off")(image)
    assert sharp.dtype == np.float32
    difference = np.abs(sharp - deblurrer(image)).max()
    assert 0 < difference < 0.05


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (np.zeros((4, 4, 3), np.int64), TypeError, "int64.*float32 or float64 in .*, uint8 or uint16"),
        (np.zeros((4, 4, 3), np.uint32), TypeError, "uint32.*uint8 or uint16"),
        (np.zeros((4, 4, 3), np.float16), TypeError, "float16.*float32 or float64"),
        (torch.zeros(4, 4, 3), TypeError, "Tensor.*numpy"),
        (np.ma.masked_equal(np.zeros((4, 4, 3)), 0), TypeError, r"masked array; fill it first \(image\.filled"),
        (np.zeros((4, 4), np.float32), ValueError, r"\(4, 4\).*\[H, W, C\]"),
        (np.zeros((1, 4, 4, 3), np.float32), ValueError, r"\(1, 4, 4, 3\)"),
        (np.zeros((4, 4, 5), np.float32), ValueError, r"\(4, 4, 5\)"),
        (np.zeros((4, 4, 0), np.float32), ValueError, r"\(4, 4, 0\)"),
        (np.zeros((0, 4, 3), np.float32), ValueError, r"\(0, 4, 3\)"),
        (np.full((4, 4, 3), np.nan, np.float32), ValueError, r"nan.*\[0, 1\]"),
        (np.full((4, 4, 3), np.inf, np.float32), ValueError, r"inf.*\[0, 1\]"),
        (np.full((4, 4, 3), 1.01, np.float32), ValueError, r"1\.01.*\[0, 1\]"),
        (np.full((4, 4, 3), -0.01, np.float32), ValueError, r"-0\.01.*\[0, 1\]"),
    ],
)
def test_what_is_no_image(deblurrer, image, error, message):
    with pytest.raises(error, match=message):
        deblurrer(image)


@pytest.mark.parametrize("guard", ["warn", "off"])
def test_output_that_is_not_finite_is_an_error(model, guard):
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.head.conv.bias[1] = float("nan")
    with pytest.raises(FloatingPointError, match="not finite"):
        Deblurrer(broken, device="cpu", guard=guard)(picture(8, 8, 3))


def test_weights_from_a_folder_and_a_file(model, deblurrer, tmp_path):
    model.save_pretrained(tmp_path)
    image = picture(20, 30, 3)
    for weights in (tmp_path, str(tmp_path), tmp_path / "model.safetensors"):
        assert np.array_equal(Deblurrer(weights, device="cpu", guard="off")(image), deblurrer(image))


def test_a_given_network_is_not_changed(model):
    model.train()
    Deblurrer(model, device="cpu")
    assert model.training
    assert model.reduce.weight.is_contiguous()
    model.eval()


def test_what_cannot_be_loaded(tmp_path, model):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Deblurrer(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"fp4.*fp32, bf16, fp16, fp8"):
        Deblurrer(model, precision="fp4")
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        Deblurrer(model, device="cpu", precision="fp16")
    with pytest.raises(ValueError, match="guard is 'on'; it must be one of warn, input, off"):
        Deblurrer(model, guard="on")
    for device in ("abacus", "meta"):
        with pytest.raises(ValueError, match=rf"'{device}' cannot be used here; there is .*cpu"):
            Deblurrer(model, device=device)


# ---- the guard


def smooth(height=70, width=90):
    """A picture without fine detail, in the middle of the range."""
    y, x = np.mgrid[:height, :width]
    return np.stack([0.5 + 0.2 * np.sin(y / 9 + k) * np.cos(x / 13 - k) for k in range(3)], axis=2).astype(np.float32)


def mosaic(period, step):
    pattern = np.zeros((70, 90, 3), np.float32)
    pattern[::period, ::period] = step
    return pattern


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (smooth() * np.nan, "is not finite"),
        (np.where(mosaic(4, 1) > 0, -0.2, smooth()), "has 7% of its values outside [0, 1]"),
        (smooth() + np.float32([0, 0, 0.1]), "has another brightness or colour than the input, by 0.10 of the range"),
        (smooth() + 0.4 * (picture(70, 90, 3) - 0.5) * 2, "is far from the input, by 0.2"),
        (smooth() + mosaic(4, 0.1), "has a pattern that repeats every 16 pixels, of 6.2 levels"),
        (smooth() + mosaic(8, 0.1), "has a pattern that repeats every 16 pixels, of 3.2 levels"),
        (smooth() + mosaic(16, 0.2), "has a pattern that repeats every 16 pixels, of 3.2 levels"),
        (smooth() + mosaic(15, 0.1), None),
        (smooth() + mosaic(4, 0.02), None),
        (smooth(), None),
    ],
)
def test_what_is_doubtful(output, reason):
    said = plausibility.implausibility(torch.from_numpy(smooth()), torch.from_numpy(output.astype(np.float32)))
    assert said is None if reason is None else said.startswith(reason)


def test_a_pattern_of_the_input_s_own_is_none_of_the_network_s():
    board = np.kron(np.indices((9, 11)).sum(0) % 2, np.ones((8, 8)))[:, :, None].repeat(3, 2)
    board = torch.from_numpy(board).float()
    assert plausibility.implausibility(0.3 + 0.4 * board, 0.25 + 0.5 * board) is None
    assert plausibility.implausibility(torch.full_like(board, 0.5), 0.45 + 0.1 * board).startswith("has a pattern")


def test_an_image_of_any_size_can_be_looked_at():
    for size in ((1, 1), (17, 1000), (31, 32), (40, 48)):
        assert plausibility.implausibility(torch.full((*size, 1), 0.5), torch.full((*size, 3), 0.51)) is None


def broken(value):
    """A network whose pixel shuffle makes a visible grid: every fourth pixel is `value` away from the input."""
    model = LMFN.from_preset("lmfn", channels=8, features=8, distilled=4, esa=4, rfdbs=1, head="pixelshuffle")
    with torch.no_grad():
        model.head.conv.weight.zero_()
        model.head.conv.bias.zero_()[::16] = value
    return model


def checks(period, height=128, width=160):
    """Sharp black and white squares of `period` pixels."""
    rows, columns = np.mgrid[:height, :width]
    board = (rows // period + columns // period) % 2 * 0.8 + 0.1
    return np.repeat(board[:, :, None], 3, axis=2).astype(np.float32)


def test_a_fine_pattern_that_the_network_destroys_is_found_and_kept():
    photo = smooth(192, 256)
    chart = photo.copy()
    chart[64:128, 96:192] = checks(2)[:64, :96]
    with pytest.warns(DoubtfulOutput, match=r"% of the image, within \(\d+, \d+\) to \(.*\); the input was"):
        kept = Deblurrer(small_networks.destructive(), device="cpu", guard="input")(chart)
    error = np.abs(kept - chart)
    assert error[80:112, 112:176].max() < 1e-6
    with pytest.warns(DoubtfulOutput, match="look at it"):
        destroyed = Deblurrer(small_networks.destructive(), device="cpu")(chart)
    assert np.abs(destroyed - chart)[80:112, 112:176].max() > 0.1
    # Far from the pattern the network's output is used.
    assert np.array_equal(kept[:, :24], destroyed[:, :24])


def test_what_is_not_sharp_or_hardly_changes_is_plausible():
    board = torch.from_numpy(checks(4))
    assert plausibility.implausible_regions(board, board) is None
    assert plausibility.implausible_regions(board, board + 0.01 * torch.sin(torch.arange(160.0))[:, None]) is None
    blurred = 0.5 + 0.2 * torch.sin(torch.arange(160.0) * 0.3)[None, :, None].expand(128, -1, 3)
    assert plausibility.implausible_regions(blurred, 0.5 + 2 * (blurred - 0.5)) is None
    found = plausibility.implausible_regions(board, board * 0.9 + 0.05)
    assert found.share == 1
    assert found.box == (0, 0, 160, 128)


@pytest.mark.parametrize("size", [(1, 1), (5, 300), (64, 64), (65, 97)])
def test_regions_have_the_images_size(size):
    image = torch.rand(*size, 3)
    found = plausibility.implausible_regions(image, torch.full_like(image, 2.0))
    assert found.weight(0, size[0]).shape == (*size, 1)
    assert found.box == (0, 0, size[1], size[0])
    assert found.share == 1


def test_white_borders_stay_white_and_a_bar_at_the_border_does_no_harm():
    shipped = Deblurrer("lmfn", device="cpu", guard="input")
    white = np.ones((80, 96, 3), np.float32)
    assert np.abs(shipped(white) - white).max() < 0.5 / 255
    chart = white.copy()
    chart[:, :12] = 0
    chart[40:48, 40:80] = 0
    assert -10 * np.log10(np.mean((shipped(chart) - chart) ** 2)) > 45


def test_strength_blends_the_change(model):
    image = picture(40, 50, 3) * 0.5 + 0.25
    whole = Deblurrer(model, device="cpu", guard="off")(image)
    free = (whole > 0) & (whole < 1)
    for strength in (0, 0.4, 1):
        sharp = Deblurrer(model, device="cpu", guard="off", strength=strength)(image)
        assert np.abs(sharp - (image + strength * (whole - image)))[free].max() < 1e-6
    assert np.array_equal(Deblurrer(model, device="cpu", guard="off", strength=0)(image), image)
    with pytest.warns(UserWarning, match=r"strength of 1\.5 exaggerates"):
        more = Deblurrer(model, device="cpu", guard="off", strength=1.5)(image)
    assert np.abs(more - image).mean() > np.abs(whole - image).mean()
    for wrong in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"strength is .*; it must be 0 or more"):
            Deblurrer(model, strength=wrong)


def test_a_doubtful_output_is_said_or_replaced_by_the_input(tmp_path):
    image = smooth()
    kept, replaced, unseen = (Deblurrer(broken(0.1), device="cpu", guard=g) for g in ("warn", "input", "off"))
    with pytest.warns(DoubtfulOutput, match=r"^the output has a pattern .*of 6\.2 levels of 255; look at it$"):
        assert np.abs(kept(image) - image).max() == pytest.approx(0.1, abs=1e-3)
    for model in (broken(0.1), broken(float("nan"))):
        with pytest.warns(DoubtfulOutput, match=r"^the output .*; the input was kept$"):
            assert np.array_equal(Deblurrer(model, device="cpu", guard="input")(image), image)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unseen(image)
        replaced(np.full((16, 16, 3), 0.5, np.float32))  # too small to decide

    images.write(tmp_path / "a" / "1.tif", Photo(image, bits=32))
    images.write(tmp_path / "a" / "2.tif", Photo(picture(16, 16, 3), bits=32))
    images.write(tmp_path / "a" / "3.tif", Photo(image, bits=32))
    result = deblur_files([tmp_path / "a"], tmp_path / "out", deblurrer=kept)
    assert len(result.done) == 3
    assert [path.name for path, _ in result.doubtful] == ["1.tif", "3.tif"]
    assert result.doubtful[0][1].startswith(f"{tmp_path / 'a' / '1.tif'}: the output has a pattern")
    assert str(result).startswith("3 deblurred, 2 of the deblurred doubtful:\n  ")
    assert str(result).endswith(result.doubtful[1][1])


# ---- memory


def test_too_large_an_image_is_refused_before_the_work(monkeypatch, deblurrer):
    def never(*_):
        raise AssertionError("the network was run")

    monkeypatch.setattr(deblurrer, "_sharpen", never)
    monkeypatch.setattr(lmfn.deblur, "available_memory", lambda _: 10**7)
    with pytest.raises(MemoryError, match=r"1200 x 800 pixels \(1\.0 megapixels\) needs .*0\.01 GB are.*smaller"):
        deblurrer(np.broadcast_to(np.float32(0.5), (800, 1200, 3)))


def test_unknown_memory_is_no_obstacle(monkeypatch, deblurrer):
    monkeypatch.setattr(lmfn.deblur, "available_memory", lambda _: None)
    assert deblurrer(picture(8, 8, 3)).shape == (8, 8, 3)


def test_the_allocator_s_error_becomes_a_memory_error(monkeypatch, deblurrer):
    def full(*_):
        return torch.empty(2**60)  # more than any machine has

    monkeypatch.setattr(deblurrer, "_sharpen", full)
    with pytest.raises(MemoryError, match="out of memory on cpu with an image of 8 x 9 pixels"):
        deblurrer(picture(9, 8, 3))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_available_memory_is_known_on_linux():
    assert 2**20 < available_memory(torch.device("cpu")) <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


# ---- files


def test_with_the_network_all_the_way(tmp_path, model, deblurrer):
    source = tmp_path / "a.png"
    images.write(source, Photo(picture(17, 1000, 3)))
    result = deblur_files([str(source)], str(tmp_path / "b.png"), deblurrer=deblurrer)
    expected = through(model, images.read(source).pixels)
    assert result.done == [tmp_path / "b.png"]
    assert np.abs(images.read_rgb(tmp_path / "b.png") - np.rint(expected * 255)).max() <= 1
