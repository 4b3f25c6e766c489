"""Triton's interpreter for all tests except those on a GPU: kernels run on the CPU, line by line in NumPy. Its bfloat16
arithmetic and products are silently wrong, so no test runs a kernel in bfloat16."""

import gc
import os
import shutil
import sys
from importlib.util import find_spec

import pytest

if find_spec("hypothesis"):  # a machine used only for measurements may lack it and accelerate
    from hypothesis import settings

    # The same examples in every run, so that a new failure comes from a change; and no time limit per example.
    settings.register_profile("same", derandomize=True, deadline=None)
    settings.load_profile("same")


def pytest_configure(config: pytest.Config) -> None:
    """Before anything imports Triton, as accelerate does: what is decorated before is not interpreted."""
    if config.getoption("markexpr") != "gpu":
        os.environ["TRITON_INTERPRET"] = "1"
    gc.disable()


def pytest_collection_finish() -> None:
    """What was imported and collected stays, so the garbage collector need not look through it after every run of
    Accelerate's, which starts it."""
    gc.freeze()
    gc.enable()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


@pytest.fixture(autouse=True, scope="session")
def interpreter(pytestconfig: pytest.Config) -> None:
    """Triton's interpreter, several times as fast, and with a check for integers that overflow."""
    if pytestconfig.getoption("markexpr") != "gpu" and find_spec("triton"):
        import interpreter

        interpreter.patch()


@pytest.fixture(autouse=True, scope="session")
def one_thread(pytestconfig: pytest.Config) -> None:
    """As forks have, whose results are compared with those of this process; `make test` has a process per core."""
    if pytestconfig.getoption("markexpr") != "gpu":
        import torch

        torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def no_precision_is_left() -> None:
    """Accelerate fixes a process's precision at its first run; this lets the tests of a module use others."""
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that compiles kernels, or has none: without the interpreter, and where gcc is found,
    without its optimiser, as Triton has a launcher in C built for every kernel."""
    kept = {key: value for key, value in os.environ.items() if key not in ("TRITON_INTERPRET", "LMFN_BACKEND")}
    if "CC" not in kept and (gcc := shutil.which("gcc")):
        compiler = tmp_path_factory.mktemp("compiler") / "gcc"
        compiler.write_text(f'#!/bin/sh\nexec {gcc} "$@" -O0\n')
        compiler.chmod(0o755)
        kept["CC"] = str(compiler)
    return kept


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the weights of a network that is as small as possible."""
    from lmfn import LMFN

    folder = tmp_path_factory.mktemp("weights")
    LMFN.from_preset("lmfn", channels=8, features=8, distilled=4, esa=4, rfdbs=1).save_pretrained(folder)
    return str(folder)
