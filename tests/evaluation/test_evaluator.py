"""The results of evaluate, against scikit-image on the same files, and the inputs that it refuses."""

import json
import math
import os
import re
import shutil
import socket
import sys
from dataclasses import asdict, replace
from typing import get_args, get_type_hints

import numpy as np
import pytest
import scipy.ndimage
import skimage.data
import skimage.io
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import nn

from lmfn import LMFN, Deblurrer, cli, images
from lmfn.data.layouts import Pair, PairSet, find_pairs
from lmfn.device import device_name
from lmfn.evaluation import Evaluation, Evaluator, count_gmacs, evaluate
from lmfn.evaluation import evaluator as module
from lmfn.evaluation.metrics import psnr, ssim_gauss2d, ssim_matlab3d
from lmfn.evaluation.protocols import METRICS as ALL_METRICS
from lmfn.evaluation.protocols import PROTOCOLS
from lmfn.evaluation.results import Complexity, ImageResult
from lmfn.extras import require
from lmfn.network.fingerprint import fingerprint
from lmfn_kernels.runtime.torch_private import FakeTensor

METRICS = {"psnr": psnr, "ssim_gauss2d": ssim_gauss2d, "ssim_matlab3d": ssim_matlab3d}

SIZES = [(65, 48), (70, 83), (70, 83)]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Three pieces of a photograph and their defocused copies, 8-bit PNG, in two sizes."""
    root = tmp_path_factory.mktemp("Photos")
    (root / "blur").mkdir()
    (root / "sharp").mkdir()
    photo = skimage.data.astronaut()
    found = []
    for k, (height, width) in enumerate(SIZES):
        sharp = photo[60 * k : 60 * k + height, 100 + 30 * k : 100 + 30 * k + width]
        pair = Pair(f"{k}", root / "blur" / f"{k}.png", root / "sharp" / f"{k}.png")
        skimage.io.imsave(pair.sharp, sharp)
        skimage.io.imsave(pair.blurred, scipy.ndimage.gaussian_filter(sharp, (1.5, 1.5, 0)))
        found.append(pair)
    return PairSet("flat pairs", root, "test", tuple(found))


def tiny():
    torch.manual_seed(0)
    return LMFN.from_preset("lmfn", channels=8, features=8, distilled=4, esa=4, rfdbs=1)


class Brighter(nn.Module):
    """A network with an easily computed output: not a multiple of 1/255 nor half-way between two, partly above 1."""

    def __init__(self, factor=1.0957):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))
        self.seen = []
        self.graphs = []

    def forward(self, x):
        if not isinstance(x, FakeTensor):  # on which GMACs are counted
            self.seen.append(tuple(x.shape))
        self.graphs.append(torch.is_grad_enabled())
        return x * self.factor


class Oracle(nn.Module):
    """Returns the given outputs in turn; the first twice, for the warm-up."""

    def __init__(self, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.outputs = [outputs[0], *outputs]

    def forward(self, x):
        return x if isinstance(x, FakeTensor) else self.outputs.pop(0)


def run(model, pairs, **options):
    return evaluate(model, pairs, **({"protocol": "plain", "device": "cpu", "progress": False} | options))


def reference(image, sharp):
    """PSNR and SSIM (gauss2d) of two uint8 images."""
    ssim = structural_similarity(
        sharp, image, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, channel_axis=2
    )
    return {"psnr": peak_signal_noise_ratio(sharp, image), "ssim_gauss2d": ssim}


def test_rows_and_means_are_those_of_the_8_bit_images(pairs):
    evaluation = run(Brighter(), pairs)
    by_rounding = []
    for row, pair, (height, width) in zip(evaluation.rows, pairs.pairs, SIZES, strict=True):
        blurred, sharp = skimage.io.imread(pair.blurred), skimage.io.imread(pair.sharp)
        output = np.round(np.clip(blurred * 1.0957, 0, 255)).astype(np.uint8)
        assert (row.name, row.height, row.width) == (pair.name, height, width)
        assert row.seconds > 0
        for measured, expected in ((row.blurred, reference(blurred, sharp)), (row.deblurred, reference(output, sharp))):
            assert list(measured) == ["psnr", "ssim_gauss2d", "ssim_matlab3d"]
            for metric, value in expected.items():
                assert measured[metric] == pytest.approx(value, abs=1e-6)
        unrounded = torch.from_numpy(np.clip(blurred[None] / 255 * 1.0957, 0, 1)).permute(0, 3, 1, 2)
        truth = torch.from_numpy(sharp[None] / 255).permute(0, 3, 1, 2)
        by_rounding.append(abs(METRICS["psnr"](unrounded, truth).item() - row.deblurred["psnr"]))
        rounded = torch.from_numpy(output[None] / 255).permute(0, 3, 1, 2)
        assert row.deblurred["ssim_matlab3d"] == pytest.approx(
            METRICS["ssim_matlab3d"](rounded, truth).item(), abs=1e-6
        )
    assert max(by_rounding) > 1e-4
    for metric in METRICS:
        assert evaluation.blurred[metric] == pytest.approx(np.mean([row.blurred[metric] for row in evaluation.rows]))
        assert evaluation.deblurred[metric] == pytest.approx(
            np.mean([row.deblurred[metric] for row in evaluation.rows])
        )


def test_a_network_that_changes_nothing_gains_nothing(pairs):
    evaluation = run(Brighter(1.0), pairs)
    for row in evaluation.rows:
        assert row.deblurred == row.blurred
    assert [line.split()[-1] for line in evaluation.table().splitlines()[1:4]] == ["+0.00", "+0.0000", "+0.0000"]


def test_a_perfect_image_makes_the_mean_infinite_and_the_json_stays_valid(pairs, tmp_path):
    truths = [torch.from_numpy(skimage.io.imread(pair.sharp)[None] / 255).permute(0, 3, 1, 2) for pair in pairs.pairs]
    evaluation = run(Oracle(truths), pairs)
    assert evaluation.deblurred["psnr"] == math.inf
    assert math.isfinite(evaluation.blurred["psnr"])
    assert evaluation.deblurred["ssim_gauss2d"] == pytest.approx(1)
    assert "inf" in evaluation.table()

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    path = tmp_path / "new" / "result.json"
    evaluation.write(path)
    content = json.loads(path.read_text(), parse_constant=refuse)
    assert float(content["means"]["deblurred"]["psnr"]) == math.inf
    assert [float(row["deblurred"]["psnr"]) for row in content["rows"]] == [math.inf] * 3
    assert [entry.name for entry in path.parent.iterdir()] == ["result.json"]


def test_two_perfect_inputs_have_no_gain_instead_of_nan(pairs):
    same = replace(pairs, pairs=tuple(replace(pair, blurred=pair.sharp) for pair in pairs.pairs))
    line = run(Brighter(1.0), same).table().splitlines()[1]
    assert line.split() == ["PSNR", "(dB)", "inf", "inf", "+0.00"]


def test_the_report_holds_what_the_numbers_depend_on(pairs, tmp_path):
    model = tiny()
    evaluation = run(model, pairs, protocol="gopro", weights="runs/first", precision="bf16")
    evaluation.write(tmp_path / "result.json")
    evaluation.write(tmp_path / "result.json")
    content = json.loads((tmp_path / "result.json").read_text())
    assert content["protocol"] == "gopro"
    assert (content["data"], content["layout"], content["split"]) == (pairs.root.name, "flat pairs", "test")
    assert content["pairs"] == 3
    assert (content["weights"], content["config"]) == ("runs/first", asdict(model.config))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    sizes = {"256x256": (256, 256), "1280x720": (720, 1280), "1920x1200": (1200, 1920)}
    gmacs = {name: count_gmacs(model, *size) for name, size in sizes.items()}
    assert content["complexity"] == {"parameters": parameters, "bytes": 4 * parameters, "gmacs": gmacs}
    assert content["sha256"] == fingerprint(model)
    assert (content["precision"], content["device"]) == ("bf16", device_name(CPU))
    assert (content["threads"], content["torch"]) == (torch.get_num_threads(), torch.__version__)
    assert content["means"] == {"blurred": evaluation.blurred, "deblurred": evaluation.deblurred}
    assert content["time"] == {"seconds": evaluation.seconds, "size": "83x70"}
    assert content["rows"] == [asdict(row) for row in evaluation.rows]


def test_the_table_reads_so():
    def row(name, size, seconds):
        blurred = {"psnr": 25.0, "ssim_gauss2d": 0.75, "ssim_matlab3d": 0.8}
        return ImageResult(name, *size, blurred, {"psnr": 31.5, "ssim_gauss2d": 0.9231, "ssim_matlab3d": 0.79}, seconds)

    evaluation = Evaluation(
        protocol="gopro",
        metrics=tuple(METRICS),
        layout="GoPro (blur_gamma)",
        data="GOPRO_Large",
        split="test",
        weights="lmfn-gopro",
        sha256="0123456789abcdef",
        config={},
        complexity=Complexity(1248621, 4994484, {"256x256": 5.4, "1280x720": 75.83154464}),
        precision="bf16",
        batch=2,
        device="NVIDIA H200",
        threads=8,
        torch="2.13.0",
        rows=(
            row("a", (8, 9), 9.0),
            row("b", (720, 1280), 0.02),
            row("c", (720, 1280), 0.5),
            row("d", (720, 1280), 0.01),
        ),
    )
    assert evaluation.table() == (
        "                  blurred   deblurred      gain\n"
        "PSNR (dB)           25.00       31.50     +6.50\n"
        "SSIM gauss2d       0.7500      0.9231   +0.1731\n"
        "SSIM matlab3d      0.8000      0.7900   -0.0100\n"
        "\n"
        "protocol       gopro: as in GoPro's tables: RGB rounded to 8 bits, PSNR and SSIM per image, then their means\n"
        "data           GOPRO_Large, test, layout GoPro (blur_gamma), 4 pairs\n"
        "weights        lmfn-gopro (parameters' sha256 0123456789ab)\n"
        "parameters     1,248,621 (4,994,484 bytes)\n"
        "GMACs          5.40 at 256x256, 75.83 at 1280x720\n"
        "time           20.0 ms per image, median at 1280x720, bf16, batch 2\n"
        "device         NVIDIA H200, 8 CPU threads, torch 2.13.0"
    )


def test_the_network_is_run_once_to_warm_up_and_once_an_image(pairs):
    model = Brighter()
    evaluator = Evaluator(pairs, protocol="plain", device="cpu", progress=False)
    evaluator(model)
    sizes = [(1, 3, height, width) for height, width in SIZES]
    assert model.seen == [sizes[0], *sizes]
    assert not any(model.graphs)


@pytest.mark.parametrize(("keep", "reads"), [(True, 6), (False, 12)])
def test_validating_again_measures_no_blurred_image_again(pairs, monkeypatch, keep, reads):
    calls = {"psnr": 0, "read": 0}
    read_rgb = images.read_rgb

    def counted(name, function):
        def call(*arguments):
            calls[name] += 1
            return function(*arguments)

        return call

    monkeypatch.setitem(ALL_METRICS, "psnr", counted("psnr", psnr))
    monkeypatch.setattr(images, "read_rgb", counted("read", read_rgb))
    evaluator = Evaluator(
        pairs, protocol="plain", device="cpu", metrics=("psnr", "ssim_gauss2d"), keep=keep, progress=False
    )
    model = tiny()
    first, second = evaluator(model), evaluator(model)
    assert calls == {"psnr": 9, "read": reads}
    assert list(first.deblurred) == list(first.blurred) == ["psnr", "ssim_gauss2d"]
    assert [replace(row, seconds=0) for row in first.rows] == [replace(row, seconds=0) for row in second.rows]
    expected = run(model, pairs)
    assert [row.deblurred["psnr"] for row in first.rows] == [row.deblurred["psnr"] for row in expected.rows]


@pytest.mark.parametrize("training", [True, False])
def test_the_network_and_the_random_state_are_left_as_they_were(pairs, training):
    model = nn.Sequential(tiny(), nn.Dropout(0.5)).train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    first, second = run(model, pairs), run(model, pairs)
    assert first.deblurred == second.deblurred
    assert torch.equal(torch.get_rng_state(), state)
    assert all(part.training == training for part in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model(torch.rand(1, 3, 64, 64)).sum().backward()


def test_a_network_is_left_in_its_mode_when_it_fails(pairs):
    model = Brighter(math.nan).train()
    with pytest.raises(FloatingPointError, match=r"output for 0 \(.*blur/0\.png\) is not finite at precision fp32"):
        run(model, pairs)
    assert model.training


def test_the_image_with_an_infinite_output_is_named(pairs):
    outputs = [torch.zeros(1, 3, *size) for size in SIZES]
    outputs[1][0, 2, 5, 7] = math.inf
    with pytest.raises(FloatingPointError, match=r"output for 1 "):
        run(Oracle(outputs), pairs)


def test_a_network_is_measured_as_it_is_used(pairs):
    """Equal to `Deblurrer` bit by bit: prepared for inference, with a border."""
    model = tiny()
    evaluator = Evaluator(pairs, protocol="plain", device="cpu", progress=False)
    evaluator(model)
    deblurrer = Deblurrer(model, device="cpu")
    for pair in pairs:
        output = deblurrer(images.read(pair.blurred).pixels)
        assert np.array_equal(evaluator.show(model, pair)[1], np.rint(output * 255).astype(np.uint8))


def test_bf16_is_used_and_changes_little(pairs):
    model = tiny()
    with torch.no_grad():
        model.head.conv.weight.mul_(50)  # the change by an untrained network would vanish in 8 bits
    full, half = (run(model, pairs, precision=precision).deblurred for precision in ("fp32", "bf16"))
    assert full != half
    assert half["psnr"] == pytest.approx(full["psnr"], abs=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "coco"}, "unknown protocol 'coco'; there are plain, gopro, hide, realblur, rsblur, koehler"),
        ({"precision": "fp64"}, "precision is 'fp64'; it must be one of fp32, bf16, fp16"),
        ({"precision": "fp16"}, "fp16 needs a GPU"),
        ({"metrics": ("fid",)}, "protocol plain does not measure 'fid'; it measures psnr, ssim_gauss2d"),
        ({"metrics": ()}, "no metric is named; protocol plain measures psnr, ssim_gauss2d"),
        ({"protocol": "realblur", "metrics": ("lpips",)}, "realblur does not measure 'lpips'; it measures psnr, ssim"),
        ({"protocol": "koehler"}, "protocol koehler is for Koehler's set, and .* is flat pairs; use plain"),
        ({"batch": 0}, "batch is 0; it must be at least 1"),
        ({"worst": -1}, "worst is -1; it must not be negative"),
    ],
)
def test_wrong_arguments_are_refused(pairs, options, message):
    with pytest.raises(ValueError, match=message):
        run(Brighter(), pairs, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ("psnr", "lpips")}, r'the metric lpips needs the package lpips, .*"lmfn-deblur\[lpips\]"'),
        ({"protocol": "realblur"}, r'protocol realblur needs the package cv2, .*"lmfn-deblur\[eval\]"'),
    ],
)
@pytest.mark.usefixtures("unread")
def test_missing_packages_are_said_before_any_image_is_read(pairs, monkeypatch, options, message):
    monkeypatch.setattr(module, "require", lambda package, *rest: require(f"no_{package}", *rest))
    with pytest.raises(ValueError, match=message.replace("package ", "package no_")):
        run(Brighter(), pairs, **options)


@pytest.fixture
def unread(monkeypatch):
    def refuse(path):
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr(images, "read_rgb", refuse)


@pytest.mark.usefixtures("unread")
def test_pairs_of_two_sizes_are_refused_before_any_is_read(pairs):
    first, second, _ = pairs.pairs
    wrong = replace(pairs, pairs=(second, replace(second, name="odd", sharp=first.sharp)))
    with pytest.raises(ValueError, match=r"blur/1\.png is 83x70 but .*sharp/0\.png is 48x65") as error:
        run(Brighter(), wrong)
    assert "must have the same size" in str(error.value)


@pytest.mark.usefixtures("unread")
def test_an_empty_set_is_refused(pairs):
    with pytest.raises(ValueError, match=r"Photos.* contains no pairs"):
        run(Brighter(), replace(pairs, pairs=()))


@pytest.fixture
def small(tmp_path):
    pair = Pair("small", tmp_path / "blurred.png", tmp_path / "sharp.png")
    rng = np.random.default_rng(0)
    for path in (pair.blurred, pair.sharp):
        skimage.io.imsave(path, rng.integers(0, 256, (10, 40, 3), dtype=np.uint8))
    return PairSet("two folders", tmp_path, None, (pair,))


@pytest.mark.usefixtures("unread")
def test_images_too_small_for_gauss2d_are_refused_before_any_is_read(small):
    with pytest.raises(ValueError, match=r"blurred\.png is 40x10; .*ssim_gauss2d.* need at least 11x11"):
        run(Brighter(), small)


def test_images_too_small_for_gauss2d_are_measured_by_the_other_metrics(small):
    assert run(tiny(), small, metrics=("psnr", "ssim_matlab3d")).size == (10, 40)


def without_times(evaluation):
    return [replace(row, seconds=0) for row in evaluation.rows]


def test_batches_change_nothing_but_rounding(pairs):
    model = tiny()
    one, three = run(model, pairs), run(model, pairs, batch=3)
    assert (one.batch, three.batch) == (1, 3)
    for a, b in zip(one.rows, three.rows, strict=True):
        assert (a.name, a.blurred) == (b.name, b.blurred)
        for metric in METRICS:
            assert b.deblurred[metric] == pytest.approx(a.deblurred[metric], abs=1e-4)
    seen = Brighter()
    run(seen, pairs, batch=3)
    assert seen.seen == [(1, 3, *SIZES[0])] * 2 + [(2, 3, *SIZES[1])]


def test_what_is_left_in_the_folder(pairs, tmp_path):
    model = tiny()
    evaluation = run(model, pairs, out=tmp_path / "new", worst=1, weights="<tiny>")
    files = sorted(path.relative_to(tmp_path / "new").as_posix() for path in (tmp_path / "new").rglob("*.*"))
    strips = [file for file in files if file.startswith("strips")]
    assert files == ["images.csv", "report.html", "settings.json", *strips, "summary.json"]
    assert json.loads((tmp_path / "new" / "summary.json").read_text()) == evaluation.to_dict()
    gains = sorted(evaluation.rows, key=lambda row: row.deblurred["psnr"] - row.blurred["psnr"])
    assert strips == [f"strips/best-1-{gains[-1].name}.png", f"strips/worst-1-{gains[0].name}.png"]
    pair = pairs.pairs[int(gains[0].name)]
    shown = skimage.io.imread(tmp_path / "new" / strips[1])
    width = gains[0].width
    assert shown.shape == (gains[0].height, 3 * width, 3)
    np.testing.assert_array_equal(shown[:, :width], skimage.io.imread(pair.blurred))
    np.testing.assert_array_equal(shown[:, 2 * width :], skimage.io.imread(pair.sharp))
    middle = torch.from_numpy(shown[:, width : 2 * width] / 255).permute(2, 0, 1)[None]
    sharp = torch.from_numpy(shown[:, 2 * width :] / 255).permute(2, 0, 1)[None]
    assert psnr(middle, sharp).item() == pytest.approx(gains[0].deblurred["psnr"], abs=1e-9)

    page = (tmp_path / "new" / "report.html").read_text()
    assert page.count('<input type="range"') == 2
    assert page.count("<img ") == 4
    assert "&lt;tiny&gt;" in page
    assert "<tiny>" not in page
    assert "default-src 'none'" in page
    assert not re.search(r"""(src|href)=["'](?!data:image/webp;base64,)|url\(|https?:|@import""", page)
    for row in evaluation.rows:
        assert f"<td>{row.name}</td><td>{row.width}x{row.height}</td><td>{row.blurred['psnr']:.2f}</td>" in page


def test_an_evaluation_that_was_cut_off_goes_on(pairs, tmp_path):
    model, whole = Brighter(), run(Brighter(), pairs)
    run(model, pairs, out=tmp_path, worst=0)
    lines = (tmp_path / "images.csv").read_text().splitlines(keepends=True)
    assert len(lines) == 4
    (tmp_path / "images.csv").write_text(lines[0] + lines[2] + lines[3][:-9])  # one line cut, one missing
    model.seen.clear()
    resumed = run(model, pairs, out=tmp_path, worst=0)
    assert model.seen == [(1, 3, *SIZES[0])] * 2 + [(1, 3, *SIZES[2])]
    assert without_times(resumed) == without_times(whole)
    assert sorted(line.split(",")[0] for line in (tmp_path / "images.csv").read_text().splitlines()) == [
        "0", "1", "2", "name"
    ]  # fmt: skip
    again = run(model, pairs, out=tmp_path, worst=0)
    assert again.rows == resumed.rows  # bit by bit, including times: nothing was measured again


def test_a_folder_of_another_evaluation_is_refused(pairs, tmp_path, monkeypatch):
    run(tiny(), pairs, out=tmp_path, worst=0)
    before = (tmp_path / "images.csv").read_text()
    with pytest.raises(ValueError, match=r"contains an evaluation with another protocol; name another folder"):
        run(tiny(), pairs, out=tmp_path, protocol="gopro")
    with pytest.raises(ValueError, match=r"another sha256"):
        run(LMFN.from_preset("lmfn", channels=8, features=8, distilled=4, esa=4, rfdbs=1), pairs, out=tmp_path)
    with pytest.raises(ValueError, match=r"another batch;"):
        run(tiny(), pairs, out=tmp_path, batch=2)
    with monkeypatch.context() as patch:  # its report would have one device's name, and another's times
        patch.setattr(module, "device_name", lambda _: "another computer")
        with pytest.raises(ValueError, match=r"another device;"):
            run(tiny(), pairs, out=tmp_path)
    assert (tmp_path / "images.csv").read_text() == before
    (tmp_path / "images.csv").write_text(before.replace("\n1,", "\n1,x", 1))
    with pytest.raises(ValueError, match=r"images\.csv, line 3 is broken"):
        run(tiny(), pairs, out=tmp_path)


def test_other_images_of_the_same_names_are_another_evaluation(pairs, tmp_path):
    """As of two data sets whose folders are both called test; but data that was moved is still the same."""
    for kind in ("blur", "sharp"):
        for place in ("moved", "other"):
            shutil.copytree(pairs.root / kind, tmp_path / place / pairs.root.name / kind)
    moved, other = (find_pairs(tmp_path / place / pairs.root.name) for place in ("moved", "other"))
    file = other.pairs[1].sharp
    skimage.io.imsave(file, np.roll(skimage.io.imread(file), 7, axis=0))
    here = find_pairs(pairs.root)
    first = run(tiny(), here, out=tmp_path / "out", worst=0)
    assert run(tiny(), moved, out=tmp_path / "out", worst=0).rows == first.rows
    with pytest.raises(ValueError, match="contains an evaluation with another data; name another folder"):
        run(tiny(), other, out=tmp_path / "out", worst=0)


def test_what_was_measured_before_a_failure_is_kept(pairs, tmp_path):
    outputs = [torch.zeros(1, 3, *size) for size in SIZES]
    outputs[2][:] = math.nan
    with pytest.raises(FloatingPointError, match="output for 2 "):
        run(Oracle(outputs), pairs, out=tmp_path)
    assert [line.split(",")[0] for line in (tmp_path / "images.csv").read_text().splitlines()] == ["name", "0", "1"]
    assert not (tmp_path / "summary.json").exists()


def one_of_two(rank, port, words):
    """As torchrun's process of this number."""
    os.environ.update(
        RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port, TORCHELASTIC_RUN_ID="0"
    )
    sys.exit(cli.main(words))


def test_several_processes_share_the_images_out(pairs, tmp_path, capfd):
    weights = tmp_path / "weights"
    tiny().save_pretrained(weights)
    one = run(LMFN.from_pretrained(weights), pairs).to_dict()  # first, so that the processes need not import the same
    words = ["evaluate", "--data", pairs.root, "--weights", weights, "-o", tmp_path / "two", "--device", "cpu"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    torch.multiprocessing.start_processes(one_of_two, (port, [*map(str, words)]), nprocs=2, start_method="fork")
    assert capfd.readouterr().out.count("PSNR (dB)") == 1
    content = json.loads((tmp_path / "two" / "summary.json").read_text())
    for row in [*content["rows"], *one["rows"]]:
        row.pop("seconds")
    assert content["rows"] == one["rows"]


def test_koehlers_frames_are_read_in_the_protocol(tmp_path):
    photo = skimage.data.astronaut()[100:270, 150:325]
    for number in (1, 2, 3):
        file = tmp_path / "Image1" / "Kernel1" / f"GroundTruth1_1_{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        skimage.io.imsave(file, np.roll(photo, number - 2, axis=1))
    skimage.io.imsave(tmp_path / "Blurry1_1.png", scipy.ndimage.gaussian_filter(photo, (0, 2, 0)))
    shots = find_pairs(tmp_path)
    evaluation = run(Brighter(0.9), shots, protocol="koehler")
    [row] = evaluation.rows
    assert list(row.blurred) == ["psnr", "ms_ssim"]
    # The network only darkens, which the protocol undoes except for the rounding to 8 bits.
    assert row.deblurred["psnr"] == pytest.approx(row.blurred["psnr"], abs=0.01)
    assert "MS-SSIM" in evaluation.table()
    frame = tmp_path / "Image1" / "Kernel1" / "GroundTruth1_1_2.png"
    skimage.io.imsave(frame, photo[:-1])
    with pytest.raises(ValueError, match=r"Blurry1_1\.png is 175x170 but .*GroundTruth1_1_2\.png is 175x169"):
        run(Brighter(), shots, protocol="koehler")


def test_what_cannot_be_aligned_is_named(pairs):
    with pytest.raises(
        ArithmeticError, match=r"protocol realblur, the network's output for .*0\.png: it cannot be aligned"
    ):
        run(Oracle([torch.zeros(1, 3, *size) for size in SIZES]), pairs, protocol="realblur")


def test_the_command_line_knows_every_protocol():
    assert get_args(get_type_hints(cli.Evaluate)["protocol"]) == tuple(PROTOCOLS)
