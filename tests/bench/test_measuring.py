"""The measuring verbs from end to end, on the CPU and on a stand-in for a GPU, at the smallest shapes."""

import io
import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import onnxruntime
import pytest
import torch
from torch import Tensor

from bench import devices, measure, memory, model, ops, train, tune
from bench.__main__ import main
from bench.devices import Call, Cpu, Gpu
from bench.measure import Session
from bench.ops import Request
from bench.parts import TIMED, WAITING
from bench.providers import EXPORTED, PROVIDERS, Provider
from bench.registry import OPS, PARTS, BenchOp
from bench.rows import RowFile, Shape, read
from bench.tables import mebibytes
from bench.units import SIZE, UNITS
from lmfn import cuda_graphs
from lmfn_kernels import testing
from lmfn_kernels.runtime import configs

FAKE = configs.Device("fake-gpu-1", 90, 232_448)


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


def test_ops_on_a_gpu(
    gpu: Gpu, tmp_path: Path, predicted: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    predicted(("Fake GPU 1", "conv3x3 infer 1x16x6x5 float32", "triton", "", 70))
    shape = Shape(1, 1, 16, 6, 5)
    with RowFile(tmp_path / "ops.jsonl") as file:
        session = Session(gpu, file, rounds=2)
        ops.measure(session, Request(OPS["conv3x3"], shape, torch.float32, ("infer", "full"), ("triton", "eager")))
    assert session.wrong == 0
    rows = read(tmp_path / "ops.jsonl")
    assert [(r.mode, r.l2, r.provider) for r in rows] == [
        (mode, l2, provider)
        for mode in ("infer", "full")
        for l2 in ("cold", "warm")
        for provider in ("triton", "eager")
    ]
    assert all(r.peak_bytes == 1000 and r.machine.device == "Fake GPU 1" and r.machine.threads == 0 for r in rows)
    assert {k.name for r in rows if r.provider == "triton" for k in r.kernels} == {
        "lay_out", "conv", "weight_gradient", "sum",
    }  # fmt: skip
    assert all(not r.kernels for r in rows if r.provider == "eager")
    assert gpu.cuda.slept >= len(rows) * 2, "before every timed call"
    lines = capsys.readouterr().out.splitlines()
    assert [", predicted 70 us, which did not hold without what is on trial, " in line for line in lines] == [
        r.mode == "infer" and r.provider == "triton" for r in rows
    ]


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


@pytest.mark.parametrize("first_wrong", range(5))
def test_later_calls_are_checked_as_well(first_wrong: int, gpu: Gpu) -> None:
    """On a GPU they may be replays of a graph, or launched otherwise than the first."""
    calls = iter(range(10))

    def call(_: object) -> list[Tensor]:
        return [torch.ones(3) if next(calls) < first_wrong else torch.zeros(3)]

    exact = testing.Reference(torch.ones(3, dtype=torch.float64), *[torch.full((1,), 1e-3)] * 2)
    with nullcontext() if first_wrong == 4 else pytest.raises(AssertionError, match="RMS error 1"):
        measure.candidate(gpu, Call(lambda _: None, call), [exact], watch=False, config={})


def test_what_is_ready_has_rows_before_anything_is_compiled(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling may take all the time that is left. In the background it does not wait for its turn before."""
    session = Session(gpu, rounds=1)
    seen: list[list[str]] = []

    def refused(*_: object, **__: object) -> None:
        seen.append(sorted({f"{row.mode} {row.provider}" for row in session.rows}))
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", refused)
    names, small = ["eager", "compile"], Shape(1, 1, 16, 64, 64)
    ops.measure(session, Request(OPS["conv3x3"], Shape(1, 1, 16, 6, 5), torch.float32, ("infer",), names))
    train.measure(session, small, torch.float32, names)
    session.rows.clear()
    model.measure(session, small, torch.float32, names)
    session.turns = True
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    session.rows.clear()
    ops.measure(session, Request(OPS["conv3x3"], Shape(1, 1, 16, 6, 5), torch.float32, ("infer",), names))
    assert seen == [["infer eager"], ["infer eager", "step eager"], ["infer eager"], []]
    assert {row.provider for row in session.rows} == {"eager"}


def test_only_what_is_timed_searches_for_algorithms(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[bool] = []
    noted = mock.Mock(side_effect=lambda: searched.append(torch.backends.cudnn.benchmark))
    monkeypatch.setattr(testing, "reference_with_bounds", noted)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    measure.reference()
    assert searched == [False]
    assert torch.backends.cudnn.benchmark


@pytest.mark.parametrize("verb", ["ops", "model", "train"])
def test_what_does_not_fit_is_left_out(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(testing, "reference_with_bounds", mock.Mock(side_effect=torch.OutOfMemoryError("too large")))
    assert main([verb, "--device", "cpu", "--shape", "1x64x64", "1x32x32", "--dtype", "float32"]) == 0
    assert capsys.readouterr().err.count(": too large\n") >= 2


def test_what_cannot_run_is_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["ops", "--device", "cpu", "--op", "conv3x3", "--shape", "1x16x9x8", "--mode", "infer", "--rounds", "1"]
    with mock.patch.object(torch, "compile", side_effect=RuntimeError("no C++ compiler\nwas found")):
        assert main([*asked, "--provider", "compile", "eager", "--out", str(tmp_path)]) == 0
    assert [r.provider for r in read(tmp_path / "ops.jsonl")] == ["eager"]
    assert "left out: conv3x3 infer 1x16x9x8 float32, compile: no C++ compiler\n" in capsys.readouterr().err


@pytest.mark.parametrize("shape", ["3x4", "1x2x3x4x5x6", "1x0x4", "axbxc"])
def test_a_shape_that_is_none(shape: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ops", "--device", "cpu", "--shape", shape]) == 1
    assert f"error: --shape {shape}: expected three to five numbers" in capsys.readouterr().err


def test_a_provider_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["model", "--device", "cpu", "--shape", "1x16x16", "--dtype", "float32", "--provider", "fastest"]
    assert main(asked) == 0
    said = "left out: lmfn infer 1x4x50x16x16 float32, fastest: there is no such provider here; there are eager; "
    assert said in capsys.readouterr().err


def test_out_of_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ops", "--device", "cpu", "--op", "conv3x3", "rfdb", "--minutes", "0"]) == 0
    assert "out of time: 2 measurements were not started" in capsys.readouterr().err


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
    assert main([*asked, "--provider", "OpenVINO, exported", "for_inference"]) == 0
    said = capsys.readouterr()
    assert "OpenVINO, exported: import of openvino halted" in said.err
    assert "for_inference" in said.out


def test_the_network_is_measured_in_other_runtimes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [
        name
        for name in EXPORTED["cpu"]
        if "Core ML" not in name and find_spec("openvino" if "VINO" in name else "onnxruntime")
    ]
    # PyTorch's exporter, which writes the unmodified network, needs onnxscript.
    as_written = [
        name for name in ("ONNX Runtime", "OpenVINO") if f"{name}, exported" in names and find_spec("onnxscript")
    ]
    few = ["--device", "cpu", "--rounds", "1", "--shape", "1x1x16x70x64", "--dtype", "float32", "--out", str(tmp_path)]
    assert main(["model", *few, "--provider", *EXPORTED["cpu"], *as_written, "for_inference"]) == 0
    assert sorted(r.provider for r in read(tmp_path / "model.jsonl")) == sorted([*names, *as_written, "for_inference"])
    if sys.platform != "darwin":
        assert "Core ML, exported: the installed ONNX Runtime has no CoreMLExecutionProvider" in capsys.readouterr().err
    assert main(["model", *[word.replace("70x64", "48x64") for word in few], "--provider", *names]) == 0
    assert "the exported network needs images of more than 48 pixels per side" in capsys.readouterr().err


def test_execution_providers_that_are_not_here(
    monkeypatch: pytest.MonkeyPatch, gpu: Gpu, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stand-in for an ONNX Runtime whose TensorRT fails to start and whose CUDA is the CPU."""
    cuda, tensorrt, real = "CUDAExecutionProvider", "TensorrtExecutionProvider", onnxruntime.InferenceSession

    def session_on_cpu(network: bytes, options: onnxruntime.SessionOptions, providers: list[str]) -> mock.Mock:
        made = mock.Mock(wraps=real(network, options, providers=["CPUExecutionProvider"]))
        made.get_providers.return_value = [*([cuda] if cuda in providers else []), "CPUExecutionProvider"]
        return made

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [tensorrt, cuda])
    monkeypatch.setattr(onnxruntime, "InferenceSession", session_on_cpu)
    with RowFile(tmp_path / "model.jsonl") as file:
        session = Session(gpu, file, rounds=1)
        for dtype in (torch.float32, torch.float16):
            model.measure(session, Shape(1, 1, 16, 64, 64), dtype, list(EXPORTED["cuda"]))
    assert [(row.provider, row.dtype) for row in session.rows] == [
        ("ONNX Runtime with CUDA, exported", "float32"),
        ("ONNX Runtime with CUDA, exported", "float16"),
    ]
    assert mebibytes(session.rows[0]) == "not counted"
    assert session.wrong == 0
    assert f"TensorRT, exported: ONNX Runtime could not start its {tensorrt}" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["profile", "windows", "tune", "ahead"])
def test_float32_is_not_tf32(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(f"bench.{verb}.run", lambda _: int(torch.backends.cudnn.allow_tf32))
    assert main([verb]) == 0


def test_ceilings() -> None:
    copy, matrix = devices._ceilings(Cpu(), torch.float32, numbers=2**16, side=64, rounds=3)
    assert copy > 0
    assert matrix > 0


def test_the_commit_is_that_of_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it is started."""
    found = Cpu().machine(torch.float32)
    monkeypatch.chdir(tmp_path)
    assert Cpu().machine(torch.float32).commit == found.commit


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
    """Forward, with only the slope of the result; with gradients, also of the maps."""
    op, provider, c, n = OPS["layer_attention"], PROVIDERS["torch"], 16, 4
    peaks = []
    for h in (64, 128, 192):
        shape = Shape(1, n, c, h, 64)
        tensors = provider.inputs(op.make(shape, torch.float32, "cpu"))
        peaks.append(Cpu().peak(ops.call(provider.function(op.function(shape)), [tensors], mode)))
    slopes = [(b - a) / (64 * 64) for a, b in pairwise(peaks)]
    maps = c if mode == "infer" else (n + 2) * c  # the result and its gradient
    assert slopes[0] == pytest.approx(slopes[1], rel=0.02), "bytes per pixel"
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
    """Times are invented: wide tiles are fast, and 2 warps are faster but give wrong results."""
    key, shape = "conv/float32/5", Shape(1, 1, 16, 6, 5)
    monkeypatch.setattr(configs, "describe", lambda _: FAKE)
    for name, value in {"TILES": [(2, 8), (2, 16)], "ROUNDS": 1, "AGAIN": 1, "WINNER_AGAIN": 1}.items():
        monkeypatch.setattr(tune, name, value)
    monkeypatch.setattr(configs, "heuristic", lambda *_: configs.Config(2, 8, 4, 1, 2))
    monkeypatch.setattr(tune, "warps", lambda c: iter([c._replace(warps=2)]))
    for step in ("stages", "splits"):
        monkeypatch.setattr(tune, step, lambda c: iter([c]))
    tuning = tune.Tuning(gpu, float("inf"), [tmp_path])
    right, seen = tune.check_results, []

    def times(_: tune.Workload, __: int) -> dict[str, float]:
        config = dict.get(tuning.table, key, configs.heuristic("", torch.float32, FAKE, 0))
        seen.append(config)
        return {key: 100.0 - config.width + config.warps}

    def check_results(results: list[Tensor], exact: list[tune.testing.Reference]) -> tuple[float, float]:
        config = dict.get(tuning.table, key)
        assert config is None or config.warps != 2, "wrong results"
        return right(results, exact)

    with tuning.using(tuning.launch):
        spent = tuning.times(tune.made(OPS["conv3x3"], shape, torch.float32, "cpu"), 1)
    assert set(spent) >= {key, "weight_gradient/float32/5"}
    monkeypatch.setattr(tuning, "times", times)
    monkeypatch.setattr(tune, "check_results", check_results)
    tuning.tune(OPS["conv3x3"], shape, torch.float32)
    found = json.loads((tmp_path / "fake-gpu-1.json").read_text())
    assert found == {"launch": {key: configs.Config(2, 16, 4, 1, 2)._asdict()}, "backend": {}}
    assert all(config.warps == 4 for config in seen), "what is wrong is never timed"
    tuning.tune(OPS["conv3x3"], shape, torch.float32)
    assert len(tuning.launch) == 1


def tune_command(gpu: Gpu, monkeypatch: pytest.MonkeyPatch, package: Path, out: Path) -> int:
    """The command, for a kernel that is faster with a wider tile."""
    monkeypatch.setattr(configs, "describe", lambda _: FAKE)
    monkeypatch.setattr(configs, "heuristic", lambda *_: configs.Config(2, 8, 4, 1, 2))
    for name, value in {"TILES": [(2, 16)], "ROUNDS": 1, "AGAIN": 1, "WINNER_AGAIN": 1, "CONFIGS": package}.items():
        monkeypatch.setattr(tune, name, value)
    for step in ("warps", "stages", "splits"):
        monkeypatch.setattr(tune, step, lambda c: iter([c]))
    monkeypatch.setattr(tune, "device", lambda _: gpu)

    def times(self: tune.Tuning, _work: tune.Workload, _rounds: int) -> dict[str, float]:
        key = "conv/float32/5"
        return {key: 100.0 - dict.get(self.table, key, configs.heuristic("", torch.float32, FAKE, 0)).width}

    monkeypatch.setattr(tune.Tuning, "times", times)
    few = ["--op", "conv3x3", "--shape", "1x16x6x5", "--dtype", "float32", "--out", str(out)]
    return main(["tune", *few])


def test_tune_makes_its_folders(gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, out = tmp_path / "package" / "configs", tmp_path / "results" / "out"
    assert tune_command(gpu, monkeypatch, package, out) == 0
    found = json.loads((out / "fake-gpu-1.json").read_text())
    assert found["launch"] == {"conv/float32/5": configs.Config(2, 16, 4, 1, 2)._asdict()}
    assert (package / "fake-gpu-1.json").read_text() == (out / "fake-gpu-1.json").read_text()
    assert Path(configs.__file__).parents[1].joinpath("configs", "README.md").exists(), "where it is, there is a README"


def test_tune_writes_out_where_the_package_cannot_be_written(
    gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(configs, "describe", lambda _: FAKE)
    package = tmp_path / "package"
    package.write_text("no folder")
    tune.Tuning(gpu, 0, [tmp_path / "out", package]).write()
    assert (tmp_path / "out" / "fake-gpu-1.json").exists()
    assert f"left out: {package / 'fake-gpu-1.json'}: " in capsys.readouterr().err
    with pytest.raises(OSError, match="package"):
        tune.Tuning(gpu, 0, [package]).write()


def test_tune_without_a_gpu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["tune"]) == 1
    assert "error: there is no GPU that PyTorch can use here" in capsys.readouterr().err


def test_a_turn_is_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call is checked before its turn and timed in it; if no more turns are given, the command ends."""
    few = ["ops", "--device", "cpu", "--op", "conv3x3", "--shape", "1x16x9x8", "--mode", "infer", "--rounds", "1"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    assert main([*few, "--provider", "torch", "eager", "--turns"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [lines[0], lines[-1]] == [WAITING, TIMED]
    assert len(lines) == 4
    assert main([*few, "--provider", "torch", "--turns", "--out", str(tmp_path)]) == 1
    assert "error: the process that grants turns has ended" in capsys.readouterr().err
    assert read(tmp_path / "ops.jsonl") == []


def test_a_turn_ends_with_an_error_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise all others would wait for its end until it is killed."""
    session = Session(Cpu(), turns=True)
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    with session.if_it_fits("rfdb"), session.turn():
        raise torch.OutOfMemoryError("too large")
    assert capsys.readouterr().out.splitlines() == [WAITING, TIMED]


def test_a_step_as_a_graph_on_a_gpu(gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows for the step and for the step as a graph, which here runs the step again; the kernels are PyTorch's."""
    monkeypatch.setitem(train.STEPS, "triton-graph", replace(train.STEPS["triton-graph"], backend="torch"))
    within, captured = [False], []

    def peak(call: Call) -> int:
        within[0] = True
        call()
        within[0] = False
        return 1000

    class Noted(cuda_graphs.GraphCapture):
        def __call__(self, *arguments: Any, **options: Any) -> Callable[..., Any]:
            captured.append(within[0])
            return super().__call__(*arguments, **options)

    monkeypatch.setattr(gpu, "peak", peak)
    monkeypatch.setattr(cuda_graphs, "GraphCapture", Noted)
    with RowFile(tmp_path / "train.jsonl") as file:
        session = Session(gpu, file, rounds=1)
        train.measure(session, Shape(1, 1, 16, 64, 64), torch.float32, ["triton-graph", "eager-channels-last"])
    assert session.wrong == 0
    assert captured == [True], "what a graph keeps is allocated while it is captured"
    assert [r.provider for r in read(tmp_path / "train.jsonl")] == ["triton-graph", "eager-channels-last"]


def test_the_network_on_a_gpu(gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Providers with long compilation are timed last, interleaved with all others."""
    names = ["for_inference", "eager", "compile-max-autotune"]
    made = {name: model.engines("cuda", torch.float32)["eager"] for name in names}
    monkeypatch.setattr(model, "engines", lambda *_: made)
    with RowFile(tmp_path / "model.jsonl") as file:
        session = Session(gpu, file, rounds=1)
        model.measure(session, Shape(1, 1, 16, 64, 64), torch.float32, None)
    assert session.wrong == 0
    assert [row.provider for row in session.rows] == [*names[:2], *names]
    assert [r.provider for r in read(tmp_path / "model.jsonl")] == names


@pytest.mark.filterwarnings("ignore:FP8 needs a GPU")
def test_fp8_beside_bfloat16(gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of its own where the kernels have it, here as PyTorch simulates it, within 16 times bfloat16's bound. It
    comes last, as it would end the process if its kernels failed."""
    monkeypatch.setattr(model, "missing_for_e4m3", lambda _: None)
    made = {name: make for name, make in model.engines("cuda", torch.bfloat16).items() if name in ("eager", model.FP8)}
    assert model.FP8 not in model.engines("cuda", torch.float16)
    monkeypatch.setattr(model, "engines", lambda *_: made)
    with RowFile(tmp_path / "model.jsonl") as file:
        session = Session(gpu, file, rounds=1)
        model.measure(session, Shape(1, 1, 50, 64, 64), torch.bfloat16, None)
    assert session.wrong == 0
    assert [row.provider for row in session.rows] == ["eager", "eager", model.FP8]


def test_the_units_are_those_of_the_network(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The minimum arithmetic is that of the formulas, except a third for ALFM; every entry is an op and is measured."""
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
def test_least_work(op: BenchOp) -> None:
    """`full` is forward plus backward; work grows with pixels, and backward has twice the arithmetic of forward."""
    shape = op.shape(2, 64, 80)
    infer, bwd, full = (op.work(shape, mode) for mode in ("infer", "bwd", "full"))
    assert full == (infer.flop + bwd.flop, infer.values + bwd.values)
    assert bwd.flop == 2 * infer.flop
    assert op.work(op.shape(1, 64, 80), "infer").flop * 2 == infer.flop
    assert infer.values > 0


def test_errors_of_ours_count_and_others_are_left_out(gpu: Gpu, capsys: pytest.CaptureFixture[str]) -> None:
    session = Session(gpu)
    subject = Request(OPS["conv3x3"], Shape(1, 1, 16, 6, 5), torch.float32, ("infer",), ()).subject(gpu, "infer")
    for provider, error in (("compile", RuntimeError("a")), ("triton", ValueError("b")), ("triton", RuntimeError("c"))):
        with session.counting_failures(subject, provider):
            raise error
    assert session.wrong == 1
    assert [line.partition(":")[0] for line in capsys.readouterr().err.splitlines()] == [
        "left out",
        "left out",
        "WRONG, so no row",
    ]
    with pytest.raises(RuntimeError), session.counting_failures(subject, "compile"):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    assert measure.first_line(KeyError()) == "KeyError()"
