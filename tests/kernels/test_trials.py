"""Kernels on trial are not used, unless they are asked for."""

import pytest

from lmfn_kernels.runtime import trials
from lmfn_kernels.runtime.trials import ON_TRIAL, in_use, trying


def test_used_within_the_context_alone() -> None:
    first, second, *_ = ON_TRIAL
    assert not any(map(in_use, ON_TRIAL))
    with trying(first):
        with trying(second):
            assert in_use(second)
            assert not in_use(first)
        assert in_use(first)
    assert not in_use(first)


@pytest.mark.parametrize(
    ("names", "expected"),
    [("", set()), ("all", set(ON_TRIAL)), (" ring_fuse,overlap, ", {"ring_fuse", "overlap"})],
)
def test_the_environment_lists_names(names: str, expected: set[str]) -> None:
    assert trials._asked_for(names) == expected


def test_a_name_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match=r"LMFN_TRY lists ring; on trial are .*ring_fuse.*, or all"):
        trials._asked_for("ring, ring_fuse")
