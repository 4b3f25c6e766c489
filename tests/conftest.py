"""Triton's interpreter for all tests but the GPU's: kernels run on the CPU, line by line in NumPy.

bfloat16 arithmetic and products are silently wrong there, so no test runs a kernel in it.
"""

import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest

if find_spec("hypothesis"):  # a machine that only measures may have none, nor accelerate
    from hypothesis import settings

    # The same examples in every run, so that what fails was broken by what changed; and no test asserts a time.
    settings.register_profile("same", derandomize=True, deadline=None)
    settings.load_profile("same")


def pytest_configure(config: pytest.Config) -> None:
    """Before anything imports Triton, as accelerate does: what it has decorated by then stays as it is."""
    if config.getoption("markexpr") != "gpu":
        os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True, scope="session")
def interpreter_patched_once(pytestconfig: pytest.Config) -> None:
    """The interpreter replaces Triton's language at every call of every function of a kernel, half of its time."""
    if pytestconfig.getoption("markexpr") == "gpu" or not find_spec("triton"):
        return
    from triton.runtime import interpreter  # noqa: TID251 (only these tests run the interpreter)

    replace, replaced = interpreter._patch_lang, set()

    def replace_once(function: Callable[..., Any]) -> Any:
        if function.__module__ not in replaced:
            replaced.add(function.__module__)
            replace(function)
        return interpreter._LangPatchScope()  # which restores nothing

    interpreter._patch_lang = replace_once


@pytest.fixture(autouse=True, scope="module")
def no_precision_is_left() -> None:
    """Accelerate holds a process to the precision of its first run; the tests of a module may take another."""
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state(reset_partial_state=True)
