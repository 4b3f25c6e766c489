"""A launch: what is done for each one and what only once, observed by `launched.py`, where Triton compiles."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

CHECKS = Path(__file__).with_name("launched.py")


@pytest.fixture(scope="module")
def found(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The failures of each check. In a separate process, since this one uses Triton's interpreter."""
    root = CHECKS.parents[2]
    done = subprocess.run(
        [sys.executable, str(CHECKS)],
        capture_output=True,
        text=True,
        env=environment | {"PYTHONPATH": str(root)},
        cwd=tmp_path_factory.mktemp("launched"),
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    failed: dict[str, str] = json.loads(done.stdout)
    return failed


@pytest.mark.parametrize("check", re.findall(r"def (check_\w+)", CHECKS.read_text()))
def test_launch(check: str, found: dict[str, str]) -> None:
    assert not found[check], found[check]
