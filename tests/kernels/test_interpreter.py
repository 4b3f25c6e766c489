"""What `tests/interpreter.py` adds to Triton's interpreter."""

import pytest
import torch
import triton
import triton.language as tl


@triton.jit
def sum_kernel(p_x, p_y, other: tl.constexpr, n: tl.constexpr):
    o = tl.arange(0, n)
    tl.store(p_y + o, tl.load(p_x + o) + other)


def added(x: torch.Tensor, other: int) -> torch.Tensor:
    y = torch.empty_like(x)
    sum_kernel[(1,)](x, y, other=other, n=x.numel())
    return y


def test_integers_that_overflow_are_an_error() -> None:
    most = 2**31 - 1
    x = torch.tensor([0, most - 1], dtype=torch.int32)
    assert added(x, 1).tolist() == [1, most]
    with pytest.raises(Exception, match=r"OverflowError.*int32 add"):
        added(x, 2)
    assert added(x.long(), 2).tolist() == [2, most + 1]
