"""How the GPU's tests are run: the environment of each process, and that a crashing test does not affect others. No GPU
is needed."""

import argparse
import sys
from pathlib import Path

import pytest

from bench import gpu_tests, shares
from bench.pytest_share import rank

TESTS = """
import os, sys, time, types
import pytest

cuda = types.SimpleNamespace(is_initialized=lambda: False)
sys.modules["torch"] = types.SimpleNamespace(cuda=cuda)  # quicker than PyTorch
pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_passes(dtype): print("BEGIN is a word, too")


def test_fails(): assert 1 == 2, "one is not two"
def test_crashes(): os.abort()
def test_after_the_crash(): pass
def test_hangs(): time.sleep(60)
def test_after_the_hang(): pass


def test_ends_in_a_cuda_error():
    def lost(): raise RuntimeError("CUDA error: an illegal memory access was encountered")
    cuda.is_initialized, cuda.synchronize = lambda: True, lost
    lost()


def test_after_the_cuda_error(): assert not cuda.is_initialized()


@pytest.mark.skip(reason="two GPUs are needed")
def test_is_skipped(): pass


@pytest.fixture
def broken():
    yield
    raise ValueError("too late")


def test_fails_at_its_end(broken): pass
"""


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "HANGS", 3.0)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "")  # and restore what `run` changes


def run(*paths: Path, processes: int = 1, expression: str = "", minutes: float = 5) -> int:
    names = [str(path) for path in paths]
    given = argparse.Namespace(paths=names, processes=processes, expression=expression, minutes=minutes)
    return gpu_tests.run(given)


def test_no_test_takes_others_with_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "test_some.py"
    file.write_text(TESTS)
    assert run(file, processes=2) == 1
    lines = capfd.readouterr().out.splitlines()
    ends = dict(reversed(line.split(maxsplit=1)) for line in lines if line.split(" ")[0] in shares.OUTCOMES)
    found = {test.partition("::")[2].partition(": ")[0]: end for test, end in ends.items()}
    passing = ["after_the_crash", "after_the_hang", "after_the_cuda_error"]
    failing = ["fails", "crashes", "hangs", "ends_in_a_cuda_error", "fails_at_its_end"]
    passing += [f"passes[{dtype}]" for dtype in ("bfloat16", "float32", "float16")]
    expected = {f"test_{name}": "PASSED" for name in passing} | {f"test_{name}": "FAILED" for name in failing}
    assert found == expected | {"test_is_skipped": "SKIPPED"}
    assert lines[-1] == "6 passed, 5 failed, 1 skipped"
    for text in ("one is not two", "its process died of SIGABRT", "no output for 3 seconds", "illegal memory access"):
        assert any(line.startswith("FAILED") and text in line for line in lines), text
    assert any("two GPUs are needed" in line for line in lines)


def test_what_cannot_be_collected_fails(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "test_some.py").write_text("import no_such_package")
    assert run(tmp_path) == 1
    assert "No module named 'no_such_package'" in capfd.readouterr().out


def test_those_that_match(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "test_some.py"
    file.write_text(TESTS)
    assert run(file, expression="passes and float32") == 0
    assert capfd.readouterr().out.splitlines()[-1] == "1 passed, 0 failed, 0 skipped"


def test_the_time_is_up(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What still runs is no failure, and no success."""
    monkeypatch.setattr(shares, "HANGS", 60.0)
    file = tmp_path / "test_some.py"
    file.write_text(TESTS)
    assert run(file, expression="hangs or after_the_hang", minutes=0.05) == gpu_tests.CUT
    assert capfd.readouterr().out.endswith("0 passed, 0 failed, 0 skipped, then the time was up\n")


def test_no_test_is_no_success(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text("def test_of_no_gpu(): pass")
    assert run(tmp_path) == gpu_tests.NONE


def test_the_name_of_a_piece_that_crashes_may_have_a_colon() -> None:
    """The next process goes on after it."""
    code = """
import os, pathlib, sys
name = "1, conv_kernel of host: frame"
if name not in pathlib.Path(sys.argv[-1]).read_text().splitlines():
    print("BEGIN", name, flush=True)
    os._exit(1)
print("COMPLETE")
"""
    found = shares.run_shares([sys.executable, "-c", code], 1)
    assert found == {"PASSED": 0, "FAILED": 1, "SKIPPED": 0, "broken": 0, "cut": 0}


def test_the_most_telling_first() -> None:
    names = ["test_graph", "test[float16-rfdb]", "test[float32-rfdb]", "test[torch.bfloat16-rfdb]"]
    assert sorted(names, key=rank) == names[::-1]
