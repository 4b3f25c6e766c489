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
def arithmetic_kernel(p_x, p_y, p_z, operation: tl.constexpr, n: tl.constexpr):
    o = tl.arange(0, n)
    x, y = tl.load(p_x + o), tl.load(p_y + o)
    if operation == "add":
        z = x + y
    elif operation == "sub":
        z = x - y
    else:
        z = x * y
    tl.store(p_z + o, z)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32])
@pytest.mark.parametrize("operation", ["add", "sub", "mul"])
def test_an_overflow_after_small_and_wider_integers_is_an_error(operation: str, dtype: torch.dtype) -> None:
    def computed(x: int, y: int, dtype: torch.dtype) -> int:
        values = torch.tensor([[1, x], [1, y], [0, 0]], dtype=dtype)
        arithmetic_kernel[(1,)](*values, operation=operation, n=2)
        return int(values[2, 1])

    most, y = torch.iinfo(dtype).max, -2 if operation == "sub" else 2
    expected = {"add": most + 2, "sub": most + 2, "mul": most * 2}[operation]
    assert computed(most, y, torch.int64) == expected  # 64 bits first, then small values: neither serves for others
    assert computed(3, 1, dtype) == {"add": 4, "sub": 2, "mul": 3}[operation]
    with pytest.raises(Exception, match=f"OverflowError.*int.* {operation}"):
        computed(most, y, dtype)


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
def before_kernel(p_x, p_before, p_y):
    before = tl.load(p_before)
    tl.store(p_y, -before)
    tl.store(p_y, tl.load(p_x - before))


def test_an_operation_within_another_one() -> None:
    """To subtract from a pointer, Triton negates and adds; the negation has been computed before."""
    x = torch.arange(4, dtype=torch.int32)
    for before in (0, 1):
        y = torch.empty(1, dtype=torch.int32)
        before_kernel[(1,)](x[2:], torch.tensor([before], dtype=torch.int32), y)
        assert y.item() == 2 - before


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
