"""Triton's interpreter for all tests but the GPU's: kernels run on the CPU, line by line in NumPy.

bfloat16 arithmetic and products are silently wrong there, so no test runs a kernel in it.
"""

import os

import hypothesis
import pytest

# The same examples in every run, so that what fails was broken by what changed; and no test asserts a time.
hypothesis.settings.register_profile("same", derandomize=True, deadline=None)
hypothesis.settings.load_profile("same")


def pytest_configure(config: pytest.Config) -> None:
    """Before anything imports Triton, as accelerate does: what it has decorated by then stays as it is."""
    if config.getoption("markexpr") != "gpu":
        os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True, scope="module")
def no_precision_is_left() -> None:
    """Accelerate holds a process to the precision of its first run; the tests of a module may take another."""
    from accelerate.state import AcceleratorState  # not before pytest_configure: it imports Triton

    AcceleratorState._reset_state(reset_partial_state=True)
