"""A launch: what is done for each one and what only once, observed by `launched.py`, where Triton compiles."""

import json
import re
import subprocess
import sys
from pathlib import Path

CHECKS = Path(__file__).with_name("launched.py")


def test_launches(environment: dict[str, str], tmp_path: Path) -> None:
    """In one separate process for all checks, since this one uses Triton's interpreter, and they share compiled
    kernels."""
    done = subprocess.run(
        [sys.executable, str(CHECKS)],
        capture_output=True,
        text=True,
        env=environment | {"PYTHONPATH": str(CHECKS.parents[2])},
        cwd=tmp_path,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    failures: dict[str, str] = json.loads(done.stdout)
    assert failures.keys() == set(re.findall(r"def (check_\w+)", CHECKS.read_text()))
    failed = {check: failure for check, failure in failures.items() if failure}
    assert not failed, "\n".join(failed.values())
