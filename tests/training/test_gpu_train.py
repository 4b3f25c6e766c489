"""`make gpu-train` on the CPU: some minutes of a run from packs, continued by the next call."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lmfn import images
from lmfn.data import Source, pack

ROOT = Path(__file__).parents[2]
SMALL = "channels=8 features=8 distilled=4 esa=4 rfdbs=1"


@pytest.fixture
def packs(tmp_path: Path) -> dict[str, str]:
    rng = np.random.default_rng(0)
    for folder in ("blur", "sharp"):
        images.write(tmp_path / "pairs" / folder / "0.png", images.Photo(rng.random((64, 64, 3), dtype=np.float32)))
    pack([Source("pairs", tmp_path / "pairs")], tmp_path / "train.npz")
    return {"PACK": str(tmp_path / "train.npz"), "VAL": str(tmp_path / "train.npz"), "OUT": str(tmp_path / "out")}


def make(**variables: str) -> subprocess.CompletedProcess[str]:
    given = {"PYTHON": sys.executable} | variables
    command = ["make", "-s", "gpu-train", *(f"{name}={value}" for name, value in given.items())]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_a_later_call_goes_on(packs: dict[str, str], tmp_path: Path) -> None:
    arguments = f"--device cpu --precision fp32 --network {SMALL} --patch 32 --batch 2 --log-every 1 --val-every 2"
    for steps in ("2", "4"):
        done = make(**packs, BUDGET="4", STEPS=steps, ARGS=arguments)
        assert done.returncode == 0, done.stderr
    run = tmp_path / "out" / "gpu"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "loss" in record] == [1, 2, 3, 4]
    assert [record["step"] for record in records if record.get("event") == "start"] == [0, 2]
    assert (run / "state" / "step-00000004.safetensors").is_file()


def test_an_error_is_one_and_the_end_of_the_budget_is_none(packs: dict[str, str], tmp_path: Path) -> None:
    done = make(**packs | {"PACK": str(tmp_path / "missing.npz")}, BUDGET="4")
    assert done.returncode == 2
    assert "missing.npz" in done.stderr
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    assert make(**packs, BUDGET="0.001", PYTHON=str(slow)).returncode == 0
