"""The profile by kernel: the rows of its table, on a stand-in for a GPU, and the work counted without a GPU."""

import json
from collections.abc import Callable, Iterator
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench import ahead, predictions, profile
from bench.__main__ import main
from bench.devices import Gpu
from bench.registry import OPS
from bench.rows import Shape
from lmfn_kernels.runtime import trials
from lmfn_kernels.runtime.launch import intercepting, padded_image


@pytest.fixture
def profiled(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    """No kernel computes anything; each of ours takes 10 us, after a copy by PyTorch that takes 2 us."""

    def kernels(call: Callable[[], Any]) -> list[tuple[str, float]]:
        seen = [("copy", 2.0)]

        def noted(launch: Callable[..., Any], kernel: Any, *arguments: Any) -> None:
            seen.append((kernel.__name__, 10.0))
            launch(kernel, *arguments)

        with intercepting(noted):
            call()
        return seen

    monkeypatch.setattr(gpu, "kernels", kernels)
    monkeypatch.setattr(profile, "device", lambda _: gpu)
    with ahead.in_place_of_launches("fake-gpu-1:90:232448", lambda *_: None):
        yield gpu


SMALL = ["profile", "--shape", "1x1x16x64x64", "--dtype", "float32"]


@pytest.mark.usefixtures("profiled")
@pytest.mark.parametrize("what", ["frame", "step"])
def test_a_row_for_each_kernel_and_shape(what: str, capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    assert main([*SMALL, "--what", what, "--format", "json", "--out", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = found[f"{what} 1x16x64x64 float32"]
    assert found["machine"]["device"] == "Fake GPU 1"
    assert rows[0] == {"first": 0, "kernel": "copy", "shape": "", "launches": 1, "us": 2.0, "floor_us": 0.0}
    first = ["lay_out_kernel"] * (what == "step") + ["pad_kernel", "stem_kernel"]  # a frame lays out its weights before
    assert [row["kernel"] for row in rows[1 : 1 + len(first)]] == first
    assert [row["first"] for row in rows] == sorted(row["first"] for row in rows), "in order"
    assert all(row["us"] == 10 * row["launches"] and row["floor_us"] > 0 for row in rows[1:])
    assert len({(row["kernel"], row["shape"]) for row in rows}) == len(rows)
    lines = (tmp_path / "profile.tsv").read_text().splitlines()
    assert json.loads(lines[0].removeprefix("# "))["device"] == "Fake GPU 1"
    heads = lines[1].split("\t")
    assert heads == ["of", "first", "kernel", "shape", "launches", "us", "floor_us", "share"]
    assert len(lines) == len(rows) + 2
    assert all(len(line.split("\t")) == len(heads) for line in lines[1:])


@pytest.mark.usefixtures("profiled")
def test_predictions_beside_what_is_measured(
    predicted: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    of = "frame 1x16x64x64 float32"
    parts = {"*": 100, "ring_kernel *": 5, "pad_kernel *": 5, "stem_kernel *": 11, "conv_kernel down, *": 31}
    here = [("Fake GPU 1", of, part, "12" if part == "pad_kernel *" else "", us) for part, us in parts.items()]
    predicted(*here, ("Fake GPU 1", "frame 1x16x64x65 float32", "copy*", "", 2), ("Fake GPU 2", of, "copy*", "", 2))
    assert main([*SMALL, "--what", "frame"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["us", "predicted", "launches", "roofline", "kernel"]
    assert lines[2].split() == ["2.0", "1", "copy"], "nothing is predicted for it here"
    assert lines[3].split()[:3] == ["10.0", "5.0", "1"]
    assert lines[4].split()[:3] == ["10.0", "11.0", "1"]
    assert lines[-6].split()[:3] == ["30.0", "31.0", "3"]
    assert lines[-6].endswith("%  conv_kernel down, *")
    assert lines[-5].split()[1] == "100.0"
    assert lines[-5].endswith("%  all")
    assert lines[-4] == f"{of}: 2 of 5 predictions held within a factor of 1.25 without what is on trial"
    assert lines[-3].startswith("100 predicted, ")
    assert lines[-2:] == [
        "5 predicted, not launched: ring_kernel * (fewer loads)",
        "5 predicted, 10.0 measured, 12 at c0ffee: pad_kernel * (fewer loads)",
    ]


@pytest.mark.usefixtures("profiled")
def test_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--what", "frame"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "frame 1x16x64x64 float32"
    assert lines[-1].endswith("  all")
    total, launches, share, _ = lines[-1].split()
    assert float(total) == 2 + 10 * (int(launches) - 1)
    assert share.endswith("%")


def test_what_the_profiler_did_not_see(profiled: Gpu, capsys: pytest.CaptureFixture[str]) -> None:
    profiled.kernels = lambda _: []  # type: ignore[method-assign]
    assert main([*SMALL, "--what", "frame"]) == 1
    assert "error: the profiler saw 0 kernels, which are not those launched" in capsys.readouterr().err


def test_a_cpu_has_no_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "--device", "cpu"]) == 1
    assert "error: profile needs a GPU" in capsys.readouterr().err


def described() -> Iterator[tuple[Shape, str, list[profile.Launch]]]:
    """The launches of a frame and of a step at full size, without their work."""
    found: list[profile.Launch] = []

    def noted(kernel: Any, _grid: Any, arguments: dict[str, Any]) -> None:
        found.append(profile.described(kernel.__name__, arguments))

    with ahead.in_place_of_launches("some-gpu:90:232448", noted):
        for (_, call), shape, mode in zip(
            islice(ahead.calls(), 2),
            (Shape(1, 4, 50, 720, 1280), Shape(16, 4, 50, 256, 256)),
            ("infer", "full"),
            strict=True,
        ):
            found.clear()
            call()
            yield shape, mode, list(found)


@pytest.mark.parametrize("tried", [(), ("ring_scales", "ring_input_gradient")], ids=str)
def test_the_kernels_work_is_the_networks(tried: tuple[str, ...]) -> None:
    """Products equal those of the formula and what backward computes again, except for ALFM, which has fewer; every
    kernel moves bytes. Launches for several maps have their sizes."""
    with trials.trying(*tried):
        found = list(described())
    assert any("1x180x320 + 1x90x160 + 1x45x80," in launch.shape for launch in found[0][2]) == bool(tried)
    for shape, mode, launches in found:
        flop = sum(launch.flop for launch in launches)
        # d1 to d3 and y, and both 1x1 convolutions of the gate.
        again = 3 * 50 * 25 + 4 * 25 * 50 + 12 * 12 + 12 * 50 if mode == "full" else 0
        again *= 2 * 4 * shape.b * shape.h * shape.w // 16
        assert 0.9 < flop / (OPS["lmfn"].work(shape, mode).flop + again) < 1.0
        assert all(launch.bytes > 0 for launch in launches)


def test_zeros_after_the_channels_are_no_traffic() -> None:
    x = padded_image(torch.zeros(1, dtype=torch.bfloat16), 2, 50, 4, 3)
    descriptor = SimpleNamespace(base=x, shape=[2, 4, 3, 64], block_shape=[1, 8, 16, 64])
    arguments = {"t_x": descriptor, "p_bias": torch.zeros(50), "num_warps": 4}
    assert profile.described("pad_kernel", arguments).bytes == 2 * 4 * 3 * 50 * 2 + 50 * 4


def test_each_prediction_is_of_something_that_is_launched() -> None:
    """On Hopper, with all kernels on trial."""
    with trials.trying(*trials.ON_TRIAL):
        found = list(described())
    for what, (shape, _, launches) in zip(("frame", "step"), found, strict=True):
        parts = [f"{launch.kernel} {launch.shape}" for launch in launches]
        for one in predictions.predictions("NVIDIA H200", f"{what} {shape} bfloat16"):
            assert any(map(one.covers, parts)), f"{one.part} matches nothing of {sorted(set(parts))}"
