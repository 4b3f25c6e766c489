"""Kernels on trial, tested and measured by commands of their own. No GPU is needed: the commands are only noted."""

import argparse
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bench import trial
from bench.__main__ import main
from bench.gpu_tests import CUT
from lmfn_kernels.runtime.trials import ON_TRIAL

TESTED = [name for name in ON_TRIAL if name != "newer_triton"]
Run = Callable[..., tuple[int, list[tuple[str, list[str]]]]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Exit status, and the commands with their LMFN_TRY, in order; those with one of the words end with its status."""

    def made(
        failing: dict[str, int] | None = None, capability: tuple[int, int] = (9, 0)
    ) -> tuple[int, list[tuple[str, list[str]]]]:
        noted, python = tmp_path / "noted", tmp_path / "python"
        fails = "".join(f"*{shlex.quote(word)}*) exit {status};; " for word, status in (failing or {}).items())
        python.write_text(
            f'#!/bin/sh\necho "$LMFN_TRY|$*" >> {shlex.quote(str(noted))}\ncase "$*" in {fails}*) exit 0;; esac\n'
        )
        python.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(python))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        monkeypatch.delenv("LMFN_TRY", raising=False)
        status = trial.run(argparse.Namespace(minutes=1.0, out=tmp_path / "out"))
        lines = noted.read_text().splitlines() if noted.exists() else []
        return status, [(names, shlex.split(words)) for names, _, words in (line.partition("|") for line in lines)]

    return made


def test_what_passed_is_measured(run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    status, commands = run({"ring_fuse": 1})
    assert status == 1
    passed = [name for name in TESTED if name != "ring_fuse"]
    tests, measured, later = commands[: len(TESTED)], commands[len(TESTED) : -len(passed)], commands[-len(passed) :]
    compiled, measured = measured[:2], measured[2:]
    assert {" ".join(words) for _, words in compiled} == {"-m bench ahead --minutes 0.2"}
    few = [name for name in passed if name != "overlap"]
    assert {names for names, _ in compiled} == {",".join(["newer_triton", *some]) for some in (passed, few)}
    for of, names, which in ((tests, TESTED, "not torch.float16"), (later, passed, "torch.float16")):
        assert sorted(" ".join(words[:-1]) for _, words in of) == sorted(
            f"-m bench tests -k on_trial and {name} and {which} --processes 1 --minutes" for name in names
        )
        assert {names for names, _ in of} == {"newer_triton"}
        assert {0 < float(words[-1]) <= 1 for _, words in of} == {True}
    assert [words[2] for _, words in measured] == ["profile", "model", "train"]
    for names, words in measured:
        assert names == ",".join(["newer_triton", *passed])
        assert words[words.index("--out") + 1] == str(tmp_path / "out" / "on-trial")
        with pytest.raises(SystemExit) as ended:  # a command that there is
            main([*words[2:], "--help"])
        assert ended.value.code == 0
    said = f"on trial: not torch.float16: passed: {', '.join(passed)}; failed: ring_fuse\n"
    assert said in capfd.readouterr().out


def test_each_kernel_has_tests_of_its_own() -> None:
    """The expression selects tests of this name alone."""
    folder = Path(__file__).parents[1] / "gpu"
    written = "".join(path.read_text() for path in folder.glob("test_*.py"))
    for name in TESTED:
        assert f'"{name}": ' in written or f"def test_on_trial_{name}(" in written
        assert not any(name in other for other in TESTED if other != name)


def test_a_wrong_measurement_is_a_fault_and_the_others_go_on(run: Run) -> None:
    status, commands = run({"bench model": 1})
    assert status == 1
    assert [words[2] for _, words in commands[len(TESTED) : -len(TESTED)]] == ["profile", "model", "train"]


def test_what_takes_too_long_has_not_passed(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    status, commands = run({"ring_order": CUT})
    assert status == 0
    assert all("ring_order" not in names for names, _ in commands)
    assert "; not ended in time: ring_order\n" in capfd.readouterr().out


def test_all_is_well(run: Run) -> None:
    assert run()[0] == 0


def test_nothing_is_measured_if_nothing_passed(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    status, commands = run({"bench tests": 1})
    assert status == 1
    assert len(commands) == len(TESTED)
    assert "on trial: not torch.float16: failed: overlap, " in capfd.readouterr().out


def test_without_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["trial", "--out", str(tmp_path)]) == 1
    assert "error: there is no GPU that PyTorch can use here" in capsys.readouterr().err


def test_only_hopper(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(capability=(8, 0)) == (0, [])
    assert capfd.readouterr().out == "on trial: nothing for compute capability 8.0\n"
    assert "LMFN_TRY" not in os.environ
