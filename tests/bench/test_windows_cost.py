"""The cost of attention in windows, as `python -m bench windows` prints it."""

import re

import pytest

from bench.__main__ import main
from bench.devices import Cpu


def test_a_shape_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["windows", "--device", "cpu", "--shape", "72x64"]) == 1
    assert "error: --shape 72x64: expected three numbers, BxHxW" in capsys.readouterr().err


def test_a_line_with_both_times_and_their_ratio_beside_a_prediction(capsys, predicted):
    predicted((Cpu().name, "windows 1x72x64 float32", "windows of 64 less whole", "", 16))
    assert main(["windows", "--device", "cpu", "--shape", "1x72x64", "--window", "64", "--rounds", "2"]) == 0
    line = capsys.readouterr().out
    assert re.fullmatch(
        r"1x72x64 float32 on CPU .*: whole [\d.]+ ms, windows of 64 [\d.]+ ms, ratio [\d.]+ \(.* to .*\) of 2"
        r", -?\d+ us more, predicted 16 us, which (held|did not hold) without what is on trial\n",
        line,
    )
