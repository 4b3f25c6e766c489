"""The measuring verbs from end to end, on the CPU and on a GPU that is none, at the smallest shapes."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor

from bench import all as everything
from bench import devices, measure, memory, model, ops, tune
from bench.__main__ import main
from bench.devices import Call, Cpu, Gpu
from bench.measure import Session
from bench.ops import Wanted
from bench.providers import PROVIDERS, Provider
from bench.registry import OPS, PARTS, Op
from bench.rows import RowFile, Shape, read
from bench.units import SIZE, UNITS
from lmfn_kernels.runtime import configs


def test_ops_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = ["--shape", "1x16x9x8", "--dtype", "float32", "--provider", "triton", "torch", "eager", "--rounds", "3"]
    asked = ["ops", "--device", "cpu", "--op", "conv3x3", "channel_gate", *shape, "--mode", "infer", "bwd", "full"]
    assert main([*asked, "--out", str(tmp_path)]) == 0
    rows = read(tmp_path / "ops.jsonl")
    assert [(r.op, r.mode, r.provider) for r in rows] == [
        (op, mode, provider)
        for op in ("conv3x3", "channel_gate")
        for mode in ("infer", "bwd", "full")
        for provider in ("torch", "eager")
    ]
    assert all(r.l2 == "host" and r.n == 3 and r.peak_bytes > 0 and 0 < r.rms_error < 1e-5 for r in rows)
    assert all((r.saved_bytes == 0) == (r.mode == "infer") for r in rows)
    captured = capsys.readouterr()
    assert captured.err.count("left out: triton") == 1
    for row in rows:
        assert main([*row.command.split()[3:], "--rounds", "1", "--provider", row.provider]) == 0
        assert f"{row.op} {row.mode} {row.shape}" in capsys.readouterr().out


def test_ops_on_a_gpu(gpu: Gpu, tmp_path: Path) -> None:
    shape = Shape(1, 1, 16, 6, 5)
    with RowFile(tmp_path / "ops.jsonl") as file:
        session = Session(gpu, file, rounds=2)
        ops.measure(session, Wanted(OPS["conv3x3"], shape, torch.float32, ("infer", "full"), ("triton", "eager")))
    assert session.wrong == 0
    rows = read(tmp_path / "ops.jsonl")
    assert [(r.mode, r.l2, r.provider) for r in rows] == [
        (mode, l2, provider)
        for mode in ("infer", "full")
        for l2 in ("cold", "warm")
        for provider in ("triton", "eager")
    ]
    assert all(r.peak_bytes == 1000 and r.machine.device == "Fake GPU 1" and r.machine.threads == 0 for r in rows)
    assert {k.name for r in rows if r.provider == "triton" for k in r.kernels} == {"conv", "weight_gradient"}
    assert all(not r.kernels for r in rows if r.provider == "eager")
    assert gpu.cuda.slept >= len(rows) * 2, "before every timed call"


def test_cold_calls_go_by_turns_over_copies_larger_than_twice_the_cache(gpu: Gpu) -> None:
    seen: list[int] = []
    call = Call(lambda turn: turn, seen.append)
    gpu.time({"a": call, "b": call}, 3, "cold")
    assert len(set(seen)) == len(seen), "no copy that the provider before has just read"
    seen.clear()
    gpu.time({"a": call}, 3, "warm")
    assert seen == [0] * 8, "each of three calls, and the one that warms up, comes after the same"
    assert gpu.copies_bytes > 2 * gpu.cuda.get_device_properties(0).L2_cache_size


def test_a_gpu_that_woke_too_early_sleeps_longer(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[int] = []
    monkeypatch.setattr(gpu.cuda, "_sleep", slept.append)
    monkeypatch.setattr(gpu.cuda.Event, "query", lambda _: slept[-1] < 1_000_000)
    times = gpu.time({"a": Call(lambda _: None, lambda _: None)}, 4, "cold")
    assert len(times["a"]) == 4
    assert slept[:4] == [200_000, 400_000, 800_000, 1_600_000]
    assert set(slept[4:]) == {1_600_000}


@pytest.mark.parametrize("broken", [lambda t: t * 1.001, lambda t: t * float("nan"), lambda t: t[..., :-1]])
def test_no_row_for_a_wrong_result(
    broken: Callable[[Tensor], Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right = Provider.function

    def function(self: Provider, inner: Callable[..., Tensor]) -> Callable[..., list[Tensor]]:
        call = right(self, inner)
        return call if self.name != "torch" else lambda *tensors: [broken(t) for t in call(*tensors)]

    asked = ["ops", "--device", "cpu", "--op", "conv3x3", "--shape", "1x16x9x8", "--mode", "infer", "--rounds", "1"]
    with mock.patch.object(Provider, "function", function):
        assert main([*asked, "--provider", "torch", "eager", "--out", str(tmp_path)]) == 1
    assert [r.provider for r in read(tmp_path / "ops.jsonl")] == ["eager"]
    assert "WRONG, so no row: conv3x3 infer 1x16x9x8 float32, torch:" in capsys.readouterr().err


def test_what_cannot_run_is_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["ops", "--device", "cpu", "--op", "conv3x3", "--shape", "1x16x9x8", "--mode", "infer", "--rounds", "1"]
    with mock.patch.object(torch, "compile", side_effect=RuntimeError("no C++ compiler\nwas found")):
        assert main([*asked, "--provider", "compile", "eager", "--out", str(tmp_path)]) == 0
    assert [r.provider for r in read(tmp_path / "ops.jsonl")] == ["eager"]
    assert "left out: conv3x3 infer 1x16x9x8 float32, compile: no C++ compiler\n" in capsys.readouterr().err


@pytest.mark.parametrize("shape", ["3x4", "1x2x3x4x5x6", "1x0x4", "axbxc"])
def test_a_shape_that_is_none(shape: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ops", "--device", "cpu", "--shape", shape]) == 1
    assert f"error: --shape {shape}: expected are three to five numbers" in capsys.readouterr().err


def test_out_of_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ops", "--device", "cpu", "--op", "conv3x3", "rfdb", "--minutes", "0"]) == 0
    assert "out of time: 2 measurements were not begun" in capsys.readouterr().err


def test_the_network_and_a_training_step(tmp_path: Path) -> None:
    few = ["--device", "cpu", "--rounds", "1", "--shape", "1x1x16x64x64", "--dtype", "float32", "--out", str(tmp_path)]
    assert main(["train", *few, "--provider", "torch", "eager-channels-last"]) == 0
    assert main(["model", *few, "--provider", "eager", "for_inference"]) == 0
    rows = [*read(tmp_path / "train.jsonl"), *read(tmp_path / "model.jsonl")]
    assert [(r.mode, r.provider) for r in rows] == [
        ("step", "torch"),
        ("step", "eager-channels-last"),
        ("infer", "eager"),
        ("infer", "for_inference"),
    ]
    assert rows[0].saved_bytes < rows[1].saved_bytes


def test_an_engine_that_is_not_installed_is_left_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    asked = ["model", "--device", "cpu", "--rounds", "1", "--shape", "1x1x16x64x64", "--dtype", "float32"]
    assert main([*asked, "--provider", "OpenVINO", "for_inference"]) == 0
    said = capsys.readouterr()
    assert "OpenVINO: import of openvino halted" in said.err
    assert "for_inference" in said.out


def test_ceilings() -> None:
    copy, matrix = devices._ceilings(Cpu(), torch.float32, numbers=2**16, side=64, rounds=3)
    assert copy > 0
    assert matrix > 0


def test_the_peak_is_what_is_held_at_once() -> None:
    x = torch.zeros(1000)

    def call(_: object) -> Tensor:
        y = x + 1
        z = y * 2
        del y
        return torch.cat([z, z])

    assert Cpu().peak(Call(lambda _: None, call)) == pytest.approx(3 * x.nbytes, abs=200)


@pytest.mark.parametrize("mode", ["infer", "full"])
def test_memory_of_the_attention_is_linear_in_pixels(mode: str) -> None:
    """Forward, with the slope of the result alone; with gradients, of the maps' gradients beside it."""
    op, provider, c, n = OPS["layer_attention"], PROVIDERS["torch"], 16, 4
    peaks = []
    for h in (64, 128, 192):
        shape = Shape(1, n, c, h, 64)
        tensors = provider.inputs(op.make(shape, torch.float32, "cpu"))
        peaks.append(Cpu().peak(ops.call(provider.function(op.function(shape)), [tensors], mode)))
    slopes = [(b - a) / (64 * 64) for a, b in pairwise(peaks)]
    maps = c if mode == "infer" else (n + 2) * c  # the result and, to go with it, its gradient
    assert slopes[0] == pytest.approx(slopes[1], rel=0.02), "bytes a pixel"
    assert slopes[0] <= 1.05 * maps * 4


def test_growth_covers_every_axis() -> None:
    for kind in ("cpu", "cuda"):
        for op in memory.GROWING:
            found = list(memory.shapes(op, kind, 10_000))
            sizes = {(s.h, s.w) for s in found if (s.b, s.n, s.c) == (1, *OPS[op].widths)}
            assert len(sizes) >= 4
            for axis in ("b", "c", *(["n"] if OPS[op].widths[0] > 1 else [])):
                assert len({getattr(s, axis) for s in found}) >= 3


def test_tuning_takes_a_faster_config_that_is_right(gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are made up: wide tiles are fast, and 2 warps are faster, but give wrong results."""
    key, shape = "conv/float32/5", Shape(1, 1, 16, 6, 5)
    monkeypatch.setattr(configs, "describe", lambda _: ("fake-gpu-1", 232_448))
    for name, value in {"TILES": [(2, 8), (2, 16)], "ROUNDS": 1, "AGAIN": 1, "WINNER_AGAIN": 1}.items():
        monkeypatch.setattr(tune, name, value)
    monkeypatch.setattr(configs, "heuristic", lambda *_: configs.Config(2, 8, 4, 1, 2))
    monkeypatch.setattr(tune, "warps", lambda c: iter([c._replace(warps=2)]))
    for step in ("stages", "splits"):
        monkeypatch.setattr(tune, step, lambda c: iter([c]))
    tuning = tune.Tuning(gpu, float("inf"), [tmp_path])
    right, seen = tune.hold, []

    def times(_: tune.Work, __: int) -> dict[str, float]:
        config = dict.get(tuning.table, key, configs.heuristic("", torch.float32, 0))
        seen.append(config)
        return {key: 100.0 - config.width + config.warps}

    def hold(results: list[Tensor], exact: list[tune.testing.Exact]) -> tuple[float, float]:
        config = dict.get(tuning.table, key)
        assert config is None or config.warps != 2, "wrong results"
        return right(results, exact)

    with tuning.using(tuning.launch):
        spent = tuning.times(tune.made(OPS["conv3x3"], shape, torch.float32, "cpu"), 1)
    assert set(spent) >= {key, "weight_gradient/float32/5"}
    monkeypatch.setattr(tuning, "times", times)
    monkeypatch.setattr(tune, "hold", hold)
    tuning.tune(OPS["conv3x3"], shape, torch.float32)
    found = json.loads((tmp_path / "fake-gpu-1.json").read_text())
    assert found == {"launch": {key: configs.Config(2, 16, 4, 1, 2)._asdict()}, "body": {}}
    assert all(config.warps == 4 for config in seen), "what is wrong is never timed"
    tuning.tune(OPS["conv3x3"], shape, torch.float32)
    assert len(tuning.launch) == 1


def test_a_budget_stops_what_hangs_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def python(code: str) -> Callable[[float], list[str]]:
        return lambda minutes: [sys.executable, "-c", code.replace("MINUTES", str(minutes))]

    todo = [
        everything.Part("fails", 1, python("import sys; sys.exit(3)")),
        everything.Part("hangs", 1, python("import time; print('begun'); time.sleep(60)")),
        everything.Part("works", 4, python("print('was given', MINUTES > 0.02)")),
    ]
    began = time.monotonic()
    with mock.patch.object(everything, "LEAST_SECONDS", 0.1):
        assert everything.within(6, todo, tmp_path / "log.txt") == 1
    assert time.monotonic() - began < 30
    said = capsys.readouterr().out
    assert said == (tmp_path / "log.txt").read_text()
    for text in ("fails: failed with 3", "hangs: stopped, its time was over", "was given True", "works: done"):
        assert text in said
    assert everything.within(0.001, todo, tmp_path / "log.txt") == 0
    assert "works: out of time, not begun" in capsys.readouterr().out


def test_a_budget_runs_commands_that_there_are(tmp_path: Path) -> None:
    """The most telling first, and what comes back is few files."""
    for kind, names in (
        ("cpu", ["model", "train", "memory", "ops"]),
        ("cuda", ["tests", "tune", "ops", "model", "train", "memory"]),
    ):
        parts = everything.parts(kind, tmp_path)
        assert [part.name for part in parts] == names
        for part in parts[1:]:
            asked = part.command(0.5)[3:]
            with pytest.raises(SystemExit) as ended:
                main([*asked, "--help"])
            assert ended.value.code == 0


BARE = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, *rest):
        others = ("OpenImageIO", "accelerate", "huggingface_hub", "hypothesis", "safetensors", "tqdm", "tyro", "xdist")
        return None if name.partition(".")[0] in others else self.finder.find_spec(name, *rest)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""
"""As on a machine that only measures: torch, Triton, NumPy, pytest."""


def on_a_bare_machine(code: str) -> subprocess.CompletedProcess[str]:
    root = Path(everything.__file__).parents[1]
    return subprocess.run(
        [sys.executable, "-c", BARE + code],
        capture_output=True,
        text=True,
        cwd=root,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )


def test_the_network_without_what_files_need() -> None:
    done = on_a_bare_machine(
        """
import torch
from bench import model, network
from bench.rows import Shape
shape = Shape(1, 1, 16, 64, 64)
x, *rest = network.tensors(shape, torch.float32, "cpu")
print(network.function(shape)(x, *rest).shape)
assert model.engines("cuda", torch.float32)["eager"](network.network(shape), x)(x).shape == x.shape
"""
    )
    assert done.stdout == "torch.Size([1, 3, 64, 64])\n", done.stderr


def test_what_tests_a_gpu_needs_no_more() -> None:
    """On a machine without one, it is the GPU that they miss."""
    done = on_a_bare_machine(
        'import pytest; pytest.main(["-m", "gpu", "tests/gpu/test_patches.py", "-p", "no:cacheprovider"])'
    )
    found = "1 passed" if torch.cuda.is_available() else "not compiled with CUDA|no NVIDIA driver"
    assert re.search(found, done.stdout), done.stdout + done.stderr
    assert "ModuleNotFoundError" not in done.stdout


def test_the_units_are_those_of_the_network(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their least arithmetic is the formulas' but for ALFM, which has a third of it; each is an op, and is measured."""
    flop = sum(u.times * (OPS | PARTS)[u.op].work(u.shape, "infer").flop for u in UNITS)
    assert flop == pytest.approx(OPS["lmfn"].work(Shape(1, 4, 50, *SIZE), "infer").flop, rel=0.05)
    small = [replace(unit, part=16 * unit.part) for unit in UNITS[:2]]
    monkeypatch.setattr(model, "UNITS", small)
    assert main(["model", "--device", "cpu", "--units", "--rounds", "1"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " infer " in line]
    assert [tuple(line.split()[i] for i in (0, 2, 5)) for line in lines] == [
        (unit.op, str(unit.shape), provider) for unit in small for provider in ("torch", "eager-channels-last")
    ]


@pytest.mark.parametrize("op", (OPS | PARTS).values(), ids=lambda op: op.name)
def test_least_work(op: Op) -> None:
    """Full is forward and backward; it grows with pixels, and backward has twice forward's arithmetic."""
    shape = op.shape(2, 64, 80)
    infer, bwd, full = (op.work(shape, mode) for mode in ("infer", "bwd", "full"))
    assert full == (infer.flop + bwd.flop, infer.values + bwd.values)
    assert bwd.flop == 2 * infer.flop
    assert op.work(op.shape(1, 64, 80), "infer").flop * 2 == infer.flop
    assert infer.values > 0


def test_errors_of_ours_count_and_others_are_left_out(gpu: Gpu, capsys: pytest.CaptureFixture[str]) -> None:
    session = Session(gpu)
    subject = Wanted(OPS["conv3x3"], Shape(1, 1, 16, 6, 5), torch.float32, ("infer",), ()).subject(gpu, "infer")
    for provider, error in (("compile", RuntimeError("a")), ("triton", ValueError("b")), ("triton", RuntimeError("c"))):
        with session.checking(subject, provider):
            raise error
    assert session.wrong == 1
    assert [line.partition(":")[0] for line in capsys.readouterr().err.splitlines()] == [
        "left out",
        "left out",
        "WRONG, so no row",
    ]
    with pytest.raises(RuntimeError), session.checking(subject, "compile"):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    assert measure.first_line(KeyError()) == "KeyError()"
