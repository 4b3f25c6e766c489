"""The network over strips of rows against the network on the whole image, and images within a memory limit."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
import small_networks
import torch

import lmfn.deblur
from lmfn import LMFN, images
from lmfn.deblur import Deblurrer, Way, padded
from lmfn.files import deblur_files
from lmfn.images import Photo
from lmfn.inference import engine
from lmfn.options import parse_bytes
from lmfn.strips import Map, PlainStages, Strips

TINY = {"channels": 4, "features": 4, "distilled": 2, "esa": 2, "rfdbs": 1}
SMALL = {"channels": 8, "features": 8, "distilled": 4, "esa": 4, "rfdbs": 2}


def network(preset="lmfn", **options):
    """Small, and far from the identity."""
    torch.manual_seed(0)
    model = LMFN.from_preset(preset, **{**SMALL, **options})
    with torch.no_grad():
        model.head.conv.weight.mul_(4 if preset == "lmfn" else 1)
        for module in (model.alfm, model.acfm):
            for name in ("theta", "alpha"):
                if hasattr(module, name):
                    getattr(module, name).fill_(0.7)
    return model.eval()


def picture(height, width, channels=3):
    return np.random.default_rng(0).random((height, width, channels), np.float32)


def in_strips(strips, x, folder=None):
    """The padded image `x`, computed in the lowest possible strips."""
    size = x.shape[2:]
    plan, count = strips.plan(*size, 0), []
    found = strips(lambda first, last: x[:, :, first:last], size, plan, folder, lambda: count.append(1))
    assert len(count) == plan.strips
    assert max(plan.rows.values()) < size[0] // 4 or size[0] < 256
    return found.read(0, size[0], torch.empty(x.shape))


@pytest.mark.parametrize(
    ("preset", "options"),
    [
        ("lmfn", {"similarity": "cosine", "alfm_window": 64, "esa_grid": "fixed"}),
        ("lmfn", {"similarity": "cosine", "skip": "none"}),
        ("lmfn", {"rfdbs": 1, "alfm": "none"}),
        ("lmfn", {"alfm": "concat", "acfm": "none", "skip": "feature"}),
        ("lmfn-released", {"similarity": "cosine"}),
        ("lmfn-released", {"similarity": "cosine", "alfm_window": 64, "rfdbs": 1}),
    ],
)
def test_strips_are_the_whole(preset, options, tmp_path):
    model = network(preset, **options)
    ready = engine(model, "cpu", torch.float32)
    x = torch.rand(1, 3, 336, 112)
    whole = ready.run(x)
    assert (ready.run(x[:, :, :160])[:, :, :64] - whole[:, :, :64]).abs().max() > 1e-4 or "alfm_window" in options
    for folder in (None, tmp_path):
        assert (in_strips(ready.strips, x, folder) - whole).abs().max() < 1e-5
    with torch.no_grad():
        plain = Strips(PlainStages(model, torch.device("cpu"), torch.float32), model)
        assert (in_strips(plain, x) - whole).abs().max() < 1e-5


def test_strips_in_bfloat16():
    model = network()
    for ready in (engine(model, "cpu", torch.bfloat16),):
        x = torch.rand(1, 3, 336, 64)
        whole = ready.run(x)
        error = in_strips(ready.strips, x) - whole
        assert error.square().mean().sqrt() < 0.02 * whole.square().mean().sqrt()


def test_ablations_that_look_further_have_no_strips():
    assert engine(network(encoder="strided"), "cpu").strips is None
    assert engine(network(alfm="pooled"), "cpu").strips is None


def test_nothing_of_a_scratch_file_is_left(tmp_path):
    """However the process ends, since the file has no name."""
    x = Map(3, 4, 5, torch.float32, tmp_path)
    rows = torch.rand(1, 3, 4, 5)
    x.write(0, rows)
    assert not list(tmp_path.iterdir())
    assert torch.equal(x.read(1, 3, torch.empty(1, 3, 2, 5)), rows[:, :, 1:3])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("writes", [1, 9, 30])
def test_killed_amid_strips(tmp_path, monkeypatch, writes):
    """Nothing is half-written: neither an output nor a scratch file is left, only the claim on the output."""
    source, target, scratch = tmp_path / "a.png", tmp_path / "b.png", tmp_path / "scratch"
    scratch.mkdir()
    images.write(source, Photo(np.full((300, 90, 3), 99, np.uint8)))
    deblurrer = Deblurrer(network(), device="cpu")
    if (child := os.fork()) == 0:
        monkeypatch.setattr(tempfile, "tempdir", str(scratch))
        plan = deblurrer.engine.strips.plan(*(len(padded(n, True)) for n in (300, 90)), 0)
        monkeypatch.setattr(deblurrer, "way", lambda _: Way(64, plan, True, 0))
        write, left = Map.write, iter(range(writes))

        def killed_at_last(*arguments):
            write(*arguments)
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        monkeypatch.setattr(Map, "write", killed_at_last)
        deblur_files([source], target, deblurrer=deblurrer)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert {path for path in tmp_path.iterdir() if path.suffix != ".claim"} == {source, scratch}
    assert not list(scratch.iterdir())


@pytest.fixture
def short(monkeypatch):
    """A deblurrer that uses a scratch file and strips as high as the room allows, by default as low as possible, and
    its result for the whole image."""

    def make(model, image, room=0, **options):
        deblurrer = Deblurrer(model, device="cpu", **options)
        whole = deblurrer(image)
        assert deblurrer.way(image).plan is None
        tall, wide = (len(padded(n, True)) for n in image.shape[:2])
        way = Way(64, deblurrer.engine.strips.plan(tall, wide, room), True, 0)
        monkeypatch.setattr(deblurrer, "way", lambda _: way)
        return deblurrer, whole

    return make


@pytest.mark.parametrize("preset", ["lmfn", "lmfn-released"])
@pytest.mark.parametrize("size", [(1, 2000), (2000, 1), (301, 207), (130, 333)])
def test_images_of_any_shape(short, size, preset):
    image = picture(*size)
    deblurrer, whole = short(network(preset, similarity="cosine", alfm_window=64), image, guard="off")
    assert np.abs(deblurrer(image) - whole).max() < 1e-5


@pytest.mark.parametrize(("preset", "size"), [("lmfn", (1, 40_000)), ("lmfn-released", (40_000, 1))])
def test_long_lines(short, preset, size):
    image = picture(*size)
    tiny = network(preset, **TINY, similarity="cosine", alfm_window=384)
    deblurrer, whole = short(tiny, image, room=2**26, guard="off")
    assert np.abs(deblurrer(image) - whole).max() < 1e-5


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float64])
@pytest.mark.parametrize("channels", [1, 4])
def test_samples_as_files_have_them(dtype, channels):
    image = picture(70, 90, channels)
    if dtype != np.float64:
        image = np.rint(image * np.iinfo(dtype).max)
    image = image.astype(dtype)
    deblurrer = Deblurrer(network(), device="cpu", guard="off", strength=0.5)
    most = 1 if dtype == np.float64 else np.iinfo(dtype).max
    expected = deblurrer((image / most).astype(np.float32)) * most
    assert deblurrer(image).dtype == dtype
    assert np.abs(deblurrer(image) - expected).max() < (1e-6 if dtype == np.float64 else 0.51)


def test_the_guard_looks_at_strips_as_at_the_whole(short):
    y, x = np.mgrid[:200, :260]
    image = np.repeat(0.5 + 0.2 * np.sin(y / 9) * np.cos(x / 13), 3).reshape(200, 260, 3).astype(np.float32)
    image[64:128, 96:192] = 0.1 + 0.8 * ((y // 2 + x // 2) % 2)[:64, :96, None]
    with pytest.warns(lmfn.deblur.DoubtfulOutput, match="the input was kept there"):
        deblurrer, whole = short(small_networks.destructive(), image, guard="input")
    with pytest.warns(lmfn.deblur.DoubtfulOutput, match="the input was kept there"):
        assert np.abs(deblurrer(image) - whole).max() < 1e-5


def test_the_first_way_that_fits_is_taken(monkeypatch):
    """With the default channels, a strip needs far less memory than the whole image."""
    deblurrer, image = Deblurrer(LMFN.from_preset("lmfn", rfdbs=4), device="cpu"), picture(1000, 900)
    whole = deblurrer.way(image)
    found = []
    for share in (1, 0.6, 0.4, 0.2):
        monkeypatch.setattr(lmfn.deblur, "available_memory", lambda _, share=share: int(share * whole.needed))
        try:
            way = deblurrer.way(image)
            found.append(str(way))
            assert way.needed <= share * whole.needed
        except MemoryError:
            found.append("none")
    assert found == ["whole", "strips, maps in memory", "strips, maps in a file", "none"]


def test_below_the_floor_the_error_names_it(monkeypatch):
    image = picture(400, 300)
    with pytest.raises(
        MemoryError, match=r"300 x 400 pixels .* at least \d\.\d\d GB on cpu, and the budget is 0\.00 GB"
    ):
        Deblurrer(network(), device="cpu", memory=1000)(image)
    deblurrer = Deblurrer(network(), device="cpu")
    monkeypatch.setattr(lmfn.deblur, "available_memory", lambda _: 2**20)
    with pytest.raises(
        MemoryError, match=r"at least 0\.\d\d GB on cpu, and 0\.00 GB are available; make the image smaller"
    ):
        deblurrer(image)
    for memory in (0, "2GB", float("nan")):
        with pytest.raises(ValueError, match=f"memory is {memory!r}; it must be a number of bytes above 0"):
            Deblurrer(network(), device="cpu", memory=memory)


def test_a_line_takes_less_than_a_strip():
    """The rows that are read count: 64 of a line, 96 of the lowest strip of a taller image."""
    deblurrer = Deblurrer(network(), device="cpu")
    beside = [deblurrer.way(picture(h, 4000)).needed - deblurrer.estimated_bytes(h, 4000) for h in (1, 100)]
    of_pixels = 4000 * (120 + 12)  # what comes of a row, and the result
    assert 0 < beside[0] - of_pixels < 0.7 * (beside[1] - 100 * of_pixels)


def test_amounts_of_memory():
    assert [parse_bytes(text) for text in ("2GB", "1.5 GiB", "800m", "64", "3 kB")] == [
        2 * 10**9,
        3 * 2**29,
        8 * 10**8,
        64,
        3000,
    ]
    for wrong in ("", "much", "2 PB", "-1GB", "GB"):
        with pytest.raises(ValueError, match="no amount of memory"):
            parse_bytes(wrong)


def measured(*arguments):
    """Way, peak and estimate of processes that sharpen a file, by `experiments/memory/sizes.py`."""
    call = [sys.executable, "experiments/memory/sizes.py", *arguments]
    done = subprocess.run(call, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    rows = [[cell.strip() for cell in line.split("|")] for line in done.stdout.splitlines()[2:]]
    assert rows, done.stderr
    return [(row[5], float(row[6]), float(row[7])) for row in rows]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_that_the_system_moves_to_the_disk_counts(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "experiments" / "memory")
    import sizes

    seen = threading.Event()
    account = {"RssFile": 30, "RssAnon": 100, "RssShmem": 0, "VmSwap": 0, "VmHWM": 130}

    def held(*names):
        found = sum(account[name] for name in names)
        if found == 200:  # of what is in no file
            seen.set()
        return found

    monkeypatch.setattr(sizes, "held", held)
    with sizes.peak() as found:
        account.update(RssFile=10, RssAnon=50, VmSwap=150)
        assert seen.wait(60)
        account.update(RssAnon=100, VmSwap=0)
    assert found == [230]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_estimate_is_what_a_process_holds():
    """The default network, as a whole and in strips, measured by the system."""
    found = measured("640x480", "--memory", "+170MB") + measured("1")
    assert [way.partition(",")[0] for way, *_ in found] == ["strips", "whole"]
    for way, peak, estimate in found:
        assert 0.85 < estimate / peak < 1.15, way


@pytest.mark.large
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("megapixels", ["12", "24", "48", "100"])
def test_large_images_take_less_than_2_gib(megapixels):
    ((way, peak, estimate),) = measured(megapixels, "--memory", "2GiB")
    assert way.startswith("strips")
    assert peak < 2
    assert 0.85 < estimate / peak < 1.15


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_image_takes_the_memory_that_was_estimated(tmp_path):
    """From file to file, 20 megapixels. `make test-large` has up to 100 and the default network, and takes minutes."""
    network("lmfn-released", **TINY, similarity="cosine").save_pretrained(tmp_path)
    ((way, peak, estimate),) = measured("20", "--memory", "+700MiB", "--weights", str(tmp_path))
    assert way == "strips, maps in memory"
    assert 0.98 < estimate / peak < 1.2  # one more copy of the image, of two bytes per sample, makes it 0.96
