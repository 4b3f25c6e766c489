"""Every op under every backend against the written formula in float64."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

import lmfn_kernels
from lmfn_kernels import testing
from lmfn_kernels.rfdb import torch_backend
from lmfn_kernels.testing import (
    assert_rounded,
    conv_case,
    conv_flat,
    differentiate,
    exactly,
    fuse_case,
    fuse_flat,
    gate_case,
    gate_flat,
    random,
    rfdb_case,
    rfdb_flat,
    stage_case,
    stage_flat,
)

BODIES = ["torch", "triton"]
# What the interpreter computes in; it gets bfloat16 wrong.
DTYPES = {"torch": [torch.float64, torch.float32, torch.float16, torch.bfloat16]}
DTYPES["triton"] = DTYPES["torch"][:3]
GRID = [(body, dtype) for body in BODIES for dtype in DTYPES[body]]


def check(
    body: str, function: Callable[..., object], tensors: Sequence[Tensor], needs: Sequence[bool] | None = None
) -> None:
    """Results and gradients against the float64 formula on the same, already rounded, inputs."""
    exact, exact_gradients = exactly(function, tensors, needs)
    with lmfn_kernels.backend(body):
        results, gradients = differentiate(function, tensors, needs)
    for i, (result, expected) in enumerate(zip(results, exact, strict=True)):
        assert result.dtype == tensors[0].dtype
        assert_rounded(f"result {i}", result, expected)
    for i, (gradient, expected_gradient) in enumerate(zip(gradients, exact_gradients, strict=True)):
        assert (gradient is None) == (expected_gradient is None)
        if gradient is not None and expected_gradient is not None:
            assert gradient.dtype == tensors[i].dtype
            assert_rounded(f"gradient of input {i} {tuple(gradient.shape)}", gradient, expected_gradient)


@pytest.mark.parametrize(("body", "dtype"), GRID)
@pytest.mark.parametrize("activation", ["none", "relu", "leaky_relu"])
@pytest.mark.parametrize(("stride", "padding"), [(1, 1), (1, 0), (2, 1), (2, 0)])
def test_conv3x3(body: str, dtype: torch.dtype, activation: str, stride: int, padding: int) -> None:
    tensors = conv_case(2, 6, 7, 9, 18, dtype, stride=stride, padding=padding)
    check(body, conv_flat(stride=stride, padding=padding, activation=activation), tensors)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (4, 1), (2, 2), (17, 33)])
def test_conv3x3_of_a_few_pixels(body: str, height: int, width: int) -> None:
    for stride in (1, 2):
        tensors = conv_case(1, 3, 2, height, width, torch.float32, stride=stride)
        check(body, conv_flat(stride=stride, activation="leaky_relu"), tensors)


@pytest.mark.parametrize("body", BODIES)
def test_conv3x3_of_many_channels(body: str) -> None:
    """More than one block of inputs, and of outputs, neither a multiple of it."""
    check(body, conv_flat(activation="leaky_relu"), conv_case(1, 70, 130, 5, 6, torch.float32))


@pytest.mark.parametrize(("body", "dtype"), GRID)
def test_distill_stage(body: str, dtype: torch.dtype) -> None:
    check(body, stage_flat, stage_case(2, 10, 5, 9, 19, dtype))


@pytest.mark.parametrize(("body", "dtype"), GRID)
def test_distill_fuse(body: str, dtype: torch.dtype) -> None:
    check(body, fuse_flat, fuse_case(2, 10, 5, 4, 9, 19, dtype))


@pytest.mark.parametrize(("body", "dtype"), GRID)
@pytest.mark.parametrize("low", [(1, 1), (2, 3), (9, 19), (12, 4)])
def test_esa_gate(body: str, dtype: torch.dtype, low: tuple[int, int]) -> None:
    check(body, gate_flat, gate_case(2, 10, 4, 9, 19, low, dtype))


@pytest.mark.parametrize(("body", "dtype"), GRID)
@pytest.mark.parametrize("low", [(1, 1), (1, 2), (2, 4)])  # too few, and too many, for 9 x 19
def test_esa_gate_on_a_fixed_grid(body: str, dtype: torch.dtype, low: tuple[int, int]) -> None:
    check(body, partial(gate_flat, fixed_grid=True), gate_case(2, 10, 4, 9, 19, low, dtype))


@pytest.mark.parametrize(("body", "dtype"), GRID)
def test_rfdb(body: str, dtype: torch.dtype) -> None:
    check(body, rfdb_flat, rfdb_case(2, 10, 5, 4, 17, 21, dtype))


@pytest.mark.parametrize("body", BODIES)
def test_rfdb_on_a_fixed_grid(body: str) -> None:
    check(body, partial(rfdb_flat, fixed_grid=True), rfdb_case(1, 10, 5, 4, 21, 28, torch.float32))


@pytest.mark.parametrize("body", BODIES)
def test_rfdb_of_the_network(body: str) -> None:
    """The network's own channels, at the smallest size that ESA takes."""
    check(body, rfdb_flat, rfdb_case(1, 50, 25, 12, 15, 15, torch.float32))


@pytest.mark.parametrize("body", BODIES)
# Derandomised and not shrunk: the same examples everywhere, and a failure names one in seconds.
@settings(
    max_examples=8,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_rfdb_of_any_kind(body: str, data: st.DataObject) -> None:
    """Shapes, strides, dtypes, and which inputs need gradients."""
    b, c, d, f = (data.draw(st.integers(1, high), label=name) for name, high in zip("bcdf", (2, 9, 5, 5), strict=True))
    h, w = data.draw(st.integers(15, 24), label="h"), data.draw(st.integers(15, 24), label="w")
    dtype = data.draw(st.sampled_from([torch.float32, torch.float16]), label="dtype")
    torch.manual_seed(data.draw(st.integers(0, 99), label="seed"))
    tensors = rfdb_case(b, c, d, f, h, w, dtype)
    kind = data.draw(st.sampled_from(["plain", "channels_last", "sliced", "expanded", "transposed"]), label="memory")
    if kind == "channels_last":
        tensors = [t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for t in tensors]
    elif kind == "sliced":
        tensors[0] = random((b, c + 3, h + 2, w + 1), dtype)[:, 2:-1, 1:-1, 1:]
    elif kind == "expanded":
        tensors[0] = random((1, c, h, 1), dtype).expand(b, c, h, w)
    elif kind == "transposed":
        tensors[0] = random((b, c, w, h), dtype).mT
    needs = data.draw(st.lists(st.booleans(), min_size=len(tensors), max_size=len(tensors)), label="needs")
    check(body, rfdb_flat, tensors, needs)


@pytest.mark.parametrize("body", BODIES)
def test_gradcheck(body: str) -> None:
    """Against finite differences, in float64, for inputs that no activation's kink is near."""
    cases = [
        (stage_flat, stage_case(1, 3, 2, 3, 4, torch.float64)),
        (fuse_flat, fuse_case(1, 3, 2, 2, 3, 4, torch.float64)),
        (gate_flat, gate_case(1, 3, 2, 4, 5, (2, 2), torch.float64)),
        (conv_flat(stride=2, activation="leaky_relu"), conv_case(1, 3, 2, 5, 4, torch.float64, stride=2)),
        (rfdb_flat, rfdb_case(1, 2, 1, 1, 15, 15)),
    ]
    with lmfn_kernels.backend(body):
        for function, tensors in cases:
            leaves = [t.requires_grad_() for t in tensors]
            assert torch.autograd.gradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("body", BODIES)
def test_same_bits(body: str) -> None:
    tensors = rfdb_case(1, 10, 5, 4, 17, 21, torch.float32)
    with lmfn_kernels.backend(body):
        first, again = (differentiate(rfdb_flat, tensors) for _ in range(2))
    for a, b in zip([*first[0], *first[1]], [*again[0], *again[1]], strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)


def border_tap_dropped(conv: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """One of the nine taps is left out in the first row."""

    def call(x: Tensor, weight: Tensor, *rest: Any, slope: float = 1.0, **options: Any) -> Tensor:
        y = conv(x, weight, *rest, **options)
        if weight.shape[2] == 3 and options.get("stride", 1) == 1:
            one = torch.zeros_like(weight)
            one[:, :, 2, 2] = weight[:, :, 2, 2]
            y[:, :, 0] -= conv(x, one, None, padding=options["padding"])[:, :, 0]
        return F.leaky_relu(y, slope)

    return call


def bias_sign_wrong(conv: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any, **options: Any) -> Tensor:
        return conv(x, weight, None if bias is None else -bias, *rest, **options)

    return call


def other_slope(conv: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *args, slope=1.0, **options: conv(*args, slope=0.06 if slope == 0.05 else slope, **options)


def tile_missing_in_bias_gradient(weight_gradient: Callable[..., Any]) -> Callable[..., Any]:
    def call(e: Tensor, *rest: Any, **options: Any) -> tuple[Tensor, Tensor]:
        less = e.clone()
        less[:1, :, :8, :16] = 0
        return weight_gradient(e, *rest, **options)[0], weight_gradient(less, *rest, **options)[1]

    return call


def last_column_less(input_gradient: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(*args: Any, **options: Any) -> Tensor:
        g = input_gradient(*args, **options)
        g[:, :, :, -1] *= 0.75
        return g

    return call


@pytest.mark.parametrize("dtype", DTYPES["torch"])
@pytest.mark.parametrize(
    ("piece", "defect"),
    [
        ("conv", border_tap_dropped),
        ("conv", bias_sign_wrong),
        ("conv", other_slope),
        ("weight_gradient", tile_missing_in_bias_gradient),
        ("input_gradient", last_column_less),
    ],
)
@pytest.mark.parametrize("name", ["distill_stage", "rfdb"])
def test_the_bound_finds_a_defect(
    name: str, piece: str, defect: Callable[..., Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every dtype, and in the block as in an op by itself."""
    function, tensors = {
        "distill_stage": lambda: (stage_flat, stage_case(2, 10, 5, 17, 21, dtype)),
        "rfdb": lambda: (rfdb_flat, rfdb_case(2, 10, 5, 4, 17, 21, dtype)),
    }[name]()
    monkeypatch.setattr(torch_backend, piece, defect(getattr(torch_backend, piece)))
    with pytest.raises(AssertionError, match="where roundings make"):
        check("torch", function, tensors)


def test_the_bound_is_measured_on_every_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a function computes on another device than its input is off by numbers drawn there."""
    asked: list[str] = []
    make = torch.Generator

    def generator(device: torch.device | str = "cpu") -> torch.Generator:
        asked.append(str(device))
        return make()  # of numbers on meta tensors there are none

    def function(x: Tensor) -> Tensor:
        assert (torch.ones(3, dtype=x.dtype, device="meta") * 2).is_meta
        return x * 2

    monkeypatch.setattr(torch, "Generator", generator)
    testing.exactly(function, [torch.rand(3)], rounds=1)
    assert {"cpu", "meta"} <= set(asked)
