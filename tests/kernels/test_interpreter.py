"""What `tests/interpreter.py` adds to Triton's interpreter."""

import builtins

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
    for values, other in ((x, 2), (x + 1, 1)):  # other values, or another constant
        with pytest.raises(Exception, match=r"OverflowError.*int32 add"):
            added(values, other)
    assert added(x.long(), 2).tolist() == [2, most + 1]


@triton.jit
def square_kernel(p_y, size):
    tl.store(p_y, size * size)


def test_sizes_beyond_int32_are_int64() -> None:
    y = torch.empty(1, dtype=torch.int64)
    square_kernel[(1,)](y, 2**31)
    assert y.item() == 2**62


@triton.jit
def mixed_kernel(p_x, p_y, p_z, other: tl.constexpr, n: tl.constexpr):
    o = tl.arange(0, n)
    x, y = tl.load(p_x + o), tl.load(p_y + o)
    tl.store(p_z + o, tl.where(x > y, x * other, x - y).to(p_z.dtype.element_ty))


def test_other_values_types_and_constants() -> None:
    """Operations are decided once, and then repeated: never with the values, types or constants of before."""
    for seed in range(2):
        torch.manual_seed(seed)
        for left in (torch.int32, torch.int64, torch.float32, torch.float16):
            for right in (torch.int32, torch.float32, torch.float64):
                for other in (1, True, 1.0, 0.5):
                    x, y = torch.randint(-9, 9, (16,)).to(left), torch.randint(-9, 9, (16,)).to(right)
                    z = torch.empty(16, dtype=torch.float64)
                    mixed_kernel[(1,)](x, y, z, other=other, n=16)
                    expected = torch.where(x > y, (x * other).double(), x.double() - y.double())
                    assert torch.equal(z, expected), (left, right, other)


@triton.jit
def turns_kernel(p_y, n):
    found = 0
    for _ in range(0, n):
        found += 1
    tl.store(p_y, found)


def test_loops_are_replaced_where_a_test_says_and_nowhere_else() -> None:
    """Whether this kernel, or another one of its module, has been run before or not."""
    y = torch.empty(3, dtype=torch.int32)
    for i in range(3):
        with pytest.MonkeyPatch.context() as patch:
            if i == 1:
                patch.setattr("interpreter.loop", lambda *bounds: builtins.range(*bounds)[:2])
            turns_kernel[(1,)](y[i:], 20)
    assert y.tolist() == [20, 2, 20]
