"""`python -m bench all`: its parts are existing commands, and their output is a summary and few files."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bench import all as everything
from bench import model, train
from bench.__main__ import MEASURING, OTHERS, main
from bench.parts import ROOT, Part
from bench.providers import PROVIDERS
from bench.registry import OPS
from bench.rows import Row, RowFile, Shape

Make = Callable[..., Row]


def test_the_parts_are_commands_that_there_are(tmp_path: Path) -> None:
    """The most informative parts come first."""
    names = ["compile", "tests", "frame", "step", "kernels", "trial", "host", "compiled peers", "ops", "growth"]
    for kind, expected in (("cpu", ["model", "train", "memory", "ops"]), ("cuda", names)):
        todo, beside = everything.parts(kind, tmp_path)
        assert [part.name for part in todo][: len(expected)] == expected
        for part in (*todo, *beside):
            if part.command is not None:
                asked = part.command(0.5)[3:]
                with pytest.raises(SystemExit) as ended:
                    main([*asked, "--help"])
                assert ended.value.code == 0


def test_nothing_is_left_out(tmp_path: Path) -> None:
    """Frame and step are measured with all providers, those with long compilation separately."""
    assert model.SHAPES["cuda"] == [everything.FRAME, *everything.OTHER_FRAMES]
    assert train.SHAPES["cuda"][0] == everything.STEP
    assert set(everything.OPS) < set(OPS)
    here = {name for name, provider in PROVIDERS.items() if "cuda" in provider.devices}
    assert {*everything.EAGER, *everything.COMPILED} == here
    for part in everything.parts("cuda", tmp_path)[1]:
        assert part.command is not None
        assert "--turns" in part.command(1)
    written = {"model.jsonl", "train.jsonl", "ops.jsonl", "memory.jsonl", "profile.tsv", "gpu.json"}
    assert len({*written, "log.txt", "summary.txt"}) <= 8


def python(code: str, *arguments: object) -> Callable[[float], list[str]]:
    return lambda _: [sys.executable, "-c", code, *map(str, arguments)]


def rows(folder: Path, row: Make) -> None:
    """The files that parts would leave."""
    shape, times = Shape(1, 4, 50, 720, 1280), {"l2": "host", "op": "lmfn"}
    with RowFile(folder / "model.jsonl") as file:
        file.add(row(provider="for_inference", shape=Shape(8, 4, 50, 720, 1280), p80=15.0, p50=15.0, **times))
        for provider, p50 in (("for_inference", 2.125), ("eager-channels-last", 11.64), ("compile", 7.7)):
            file.add(row(provider=provider, shape=shape, p20=p50, p50=p50, p80=p50, **times))
    with RowFile(folder / "train.jsonl") as file:
        file.add(row(provider="triton-graph", mode="step", shape=shape, p20=14.4, p50=14.4, p80=14.5, **times))
    with RowFile(folder / "ops.jsonl") as file:
        for provider, p50 in (("triton", 1.0), ("eager", 1.5)):
            file.add(row(provider=provider, p20=p50, p50=p50, p80=p50))
    heads = "of\tfirst\tkernel\tshape\tlaunches\tus\tfloor_us\tshare"
    lines = [
        "# {}",
        heads,
        "frame\t0\tconv_kernel\ta\t14\t524.40\t130.00\t0.248",
        "frame\t3\tcopy\t\t2\t6.00\t0.00\t0.000",
    ]
    (folder / "profile.tsv").write_text("\n".join(lines) + "\n")
    (folder / "on-trial").mkdir(exist_ok=True)
    with RowFile(folder / "on-trial" / "train.jsonl") as file:
        file.add(row(provider="triton-graph", mode="step", shape=shape, p20=13.0, p50=13.0, p80=13.1, **times))


def run(
    monkeypatch: pytest.MonkeyPatch, out: Path, todo: list[Part], beside: list[Part] | None = None, minutes: float = 1
) -> tuple[int, list[str]]:
    """Exit status and summary."""
    monkeypatch.setattr(everything, "parts", lambda *_: (todo, beside or []))
    before = signal.getsignal(signal.SIGTERM)
    status = main(["all", "--device", "cpu", "--minutes", str(minutes), "--out", str(out)])
    signal.signal(signal.SIGTERM, before)
    return status, (out / "summary.txt").read_text().splitlines()


HELD = "frame: 3 of 4 predictions held within a factor of 1.25"


def test_a_summary_of_what_was_found(row: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows(tmp_path / "out", row)
    tests = "print('PASSED a::b'); print('PASSED a::c'); print('SKIPPED a::d: one GPU'); print('on trial: passed x')"
    status, lines = run(
        monkeypatch, tmp_path / "out", [Part("tests", 1, python(tests)), Part("ops", 1, python(f"print({HELD!r})"))]
    )
    assert status == 0
    assert len(lines) <= 13
    text = "\n".join(lines)
    for expected in (
        "Some device",
        "tests: 2 passed, 1 skipped",
        "frame 1x4x50x720x1280 bfloat16, ms: for_inference 2.12, compile 7.7, eager-channels-last 11.6",
        "step 1x4x50x720x1280 bfloat16, ms: triton-graph 14.4",
        "frame, kernels alone: 530 us, 16 launches, 25% of the roofline; most: conv_kernel 524, copy 6",
        "on trial: step 1x4x50x720x1280 bfloat16, ms: triton-graph 13",
        "on trial: passed x",
        f"ops: {HELD}",
        "ops, speedup over the fastest other provider: rfdb infer 1x50x180x320 1.50",
        "rows: 4 model, 1 train, 2 ops, 0 memory",
        "done: tests, ops",
        "no faults",
    ):
        assert expected in text


def test_what_fails_is_named_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    todo = [
        Part("tests", 1, python("import os; print('FAILED a::b: off by one', flush=True); os.abort()")),
        Part("step", 1, python("print('WRONG, so no row: lmfn step, triton: NaN'); import sys; sys.exit(1)")),
        Part("ops", 1, python("for _ in range(2): print('left out: rfdb, compile: no C++ compiler')")),
        Part("late", 1, python("import pathlib, sys; pathlib.Path(sys.argv[1]).touch()", out / "late")),
    ]
    status, lines = run(monkeypatch, out, todo)
    assert status == 1
    assert (out / "late").exists()
    assert "died of SIGABRT: tests; failed with 1: step; done: ops, late" in lines
    assert "left out: ops: rfdb, compile: no C++ compiler" in lines
    assert "faults: tests: a::b: off by one; step: so no row: lmfn step, triton: NaN" in lines


def test_a_failed_test_counts_where_its_part_ran_out_of_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import time; print('FAILED a::b: no', flush=True); time.sleep(60)"
    monkeypatch.setattr("bench.parts.LEAST_SECONDS", 0.1)
    status, lines = run(monkeypatch, tmp_path, [Part("tests", 1, python(code))], minutes=0.03)
    assert status == 1
    assert "out of time: tests" in lines


def test_a_broken_file_of_rows_breaks_no_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text('{')"
    status, lines = run(monkeypatch, tmp_path, [Part("frame", 1, python(code, tmp_path / "model.jsonl"))])
    assert status == 0
    assert any(line.startswith("unreadable: ") and "model.jsonl" in line for line in lines)


def test_the_command_on_a_cpu(tmp_path: Path, bare: dict[str, str]) -> None:
    """A quarter of a minute is too short for all parts, and nothing fails. The packages needed for files are
    missing."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "bench", "all", "--device", "cpu", "--minutes", "0.25", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=bare, timeout=250)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "no faults" in (out / "summary.txt").read_text()
    for part in ("model", "train", "memory", "ops"):
        assert re.search(f"^{part}: (done|out of time|not started), ", (out / "log.txt").read_text(), re.MULTILINE)


def test_whoever_ends_it_ends_all_of_it(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from bench import all as everything
from bench.__main__ import main
from bench.parts import Part

tick = "import sys, time; open(sys.argv[1], 'w').close()\\nwhile True: time.sleep(0.01)"
command = [sys.executable, "-c", tick, {str(tmp_path / "begun")!r}]
everything.parts = lambda *_: ([Part("part", 1, lambda _: command)], [])
sys.exit(main(["all", "--device", "cpu", "--out", {str(tmp_path)!r}]))
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not (tmp_path / "begun").exists() and time.monotonic() < end:
        time.sleep(0.01)
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    left = [line for line in Path("/proc").glob("[0-9]*/cmdline") if os.fsencode(tmp_path / "begun") in read(line)]
    assert not left


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_every_verb_for_a_gpu_needs_no_more_than_it_has(bare: dict[str, str]) -> None:
    verbs = {module for module, _ in (MEASURING | OTHERS).values()} - {"bench.resources"}
    code = f"import importlib\nfor module in {sorted(verbs)}: importlib.import_module(module)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=bare, timeout=250)
    assert done.returncode == 0, done.stderr


def test_the_network_without_what_files_need(bare: dict[str, str]) -> None:
    code = """
import torch
from bench import model, network
from bench.rows import Shape
shape = Shape(1, 1, 16, 64, 64)
x, *rest = network.tensors(shape, torch.float32, "cpu")
print(network.function(shape)(x, *rest).shape)
assert model.engines("cuda", torch.float32)["eager"](network.network(shape), x)(x).shape == x.shape
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=bare, timeout=250)
    assert done.stdout == "torch.Size([1, 3, 64, 64])\n", done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="it is the GPU that is missed")
def test_the_gpus_tests_need_no_more_than_it_has(bare: dict[str, str]) -> None:
    """All GPU tests are collected; on a machine without a GPU they fail for that reason."""
    command = [sys.executable, "-m", "bench", "tests", "tests/gpu/test_patches.py", "--processes", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=bare, timeout=250)
    assert done.stdout.endswith("0 passed, 1 failed, 0 skipped\n"), done.stdout + done.stderr
    assert re.search("not compiled with CUDA|no NVIDIA driver", done.stdout), done.stdout
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "gpu",
        "tests/gpu",
        "--collect-only",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=bare, timeout=250)
    assert done.returncode == 0, done.stdout[-3000:]
