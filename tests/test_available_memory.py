"""Memory that a process may take: the machine's, and its container's by control groups of both versions."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from lmfn import memory

GB = 10**9


def group(root: Path, groups: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_version_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 9 * GB}))
    root = group(
        tmp_path,
        "0::/a/b\n",
        {
            "sys/fs/cgroup/a/b/memory.max": "max\n",
            "sys/fs/cgroup/a/b/memory.current": f"{GB}\n",
            "sys/fs/cgroup/a/memory.max": f"{4 * GB}\n",
            "sys/fs/cgroup/a/memory.current": f"{3 * GB}\n",
            "sys/fs/cgroup/a/memory.stat": f"anon 5\ninactive_file {GB}\n",
        },
    )
    assert memory.container_limit(root) == (4 * GB, 2 * GB, root / "sys/fs/cgroup/a/memory.max")
    assert memory.available(root) == 2 * GB


def test_version_1_whose_path_is_that_outside(tmp_path: Path) -> None:
    root = group(
        tmp_path,
        "5:cpu,cpuacct:/docker/1\n4:memory:/docker/1\n0::/\n",
        {
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * GB}\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GB}\n",
            "sys/fs/cgroup/memory/memory.stat": f"total_inactive_file {GB // 2}\n",
        },
    )
    assert memory.container_limit(root) == (2 * GB, GB // 2, root / "sys/fs/cgroup/memory/memory.limit_in_bytes")
    (root / "sys/fs/cgroup/memory/memory.usage_in_bytes").write_text(f"{9 * GB}\n")
    assert memory.available(root) == 0


def test_no_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = group(
        tmp_path,
        "4:memory:/\n0::/\n",
        {
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "5\n",
        },
    )
    assert memory.container_limit(root) is None
    assert memory.container_limit(tmp_path / "macos") is None
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 7}))
    assert memory.available(root) == 7


@pytest.mark.skipif(sys.platform != "linux", reason="a limit of Linux")
def test_the_limit_of_the_process() -> None:
    """As set by `ulimit -v`: memory already in use, for instance by PyTorch's libraries, counts."""
    code = (
        "import resource; from lmfn import memory; import psutil; before = psutil.Process().memory_info().vms; "
        f"resource.setrlimit(resource.RLIMIT_AS, (before + {GB}, -1)); print(memory.available())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 0.9 * GB < int(found) <= GB
