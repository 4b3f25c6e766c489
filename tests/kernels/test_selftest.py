"""The self-test of the ops: correct ops pass, and faults are reported for each op."""

import json

import pytest
import torch
from torch import Tensor

from lmfn_kernels import selftest


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, str | None]]:
    status = selftest.main(arguments)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return status, {line["op"]: line["fault"] for line in lines}


def test_all_ops_are_right(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "cpu", "float32") == (0, dict.fromkeys(selftest.CHECKS))
    assert {check.part for check in selftest.CHECKS.values()} == {"conv", "mshf", "rfdb", "alfm", "acfm", "upsample"}


def test_a_wrong_gradient_is_found(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    right = selftest.CHECKS["upsample_add"]

    def wrong(x: Tensor, low: Tensor) -> Tensor:
        if x.dtype == torch.float32 and x.requires_grad:
            low.register_hook(lambda gradient: 1.0001 * gradient)
        return right.function(x, low)

    monkeypatch.setitem(selftest.CHECKS, "upsample_add", right._replace(function=wrong))
    status, faults = run(capsys, "cpu", "float32", "upsample_add", "conv3x3")
    assert status == 0
    assert "gradient 1" in (faults["upsample_add"] or "")
    assert faults["conv3x3"] is None


def test_after_an_error_on_the_device_nothing_else_is_tried(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Tensor) -> Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with ...")

    monkeypatch.setitem(selftest.CHECKS, "rfdb", selftest.CHECKS["rfdb"]._replace(function=broken))
    status, faults = run(capsys, "cpu", "float32", "rfdb", "conv3x3")
    assert (status, faults) == (3, {"rfdb": "RuntimeError: CUDA error: an illegal memory access was encountered"})


def test_an_op_without_a_check_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        selftest.main(["cpu", "float32", "conv3x4"])
    assert "there is no check of conv3x4; there are conv3x3, " in capsys.readouterr().err
