"""conv3x3: its options, many channels, and its errors."""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import lmfn_kernels
from bench.host import Launches
from lmfn_kernels.cases import conv_inputs
from lmfn_kernels.testing import assert_correct


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("activation", ["none", "relu", "leaky_relu"])
@pytest.mark.parametrize(("stride", "padding"), [(1, 1), (1, 0), (2, 1), (2, 0)])
def test_options(activation: str, stride: int, padding: int) -> None:
    inputs = conv_inputs(2, 6, 7, 9, 18, torch.float64, stride=stride, padding=padding)
    assert_correct(partial(lmfn_kernels.conv3x3, stride=stride, padding=padding, activation=activation), inputs)


@pytest.mark.usefixtures("backend")
def test_many_channels() -> None:
    """More than one block of input and of output channels, neither a multiple of the block."""
    assert_correct(partial(lmfn_kernels.conv3x3, activation="leaky_relu"), conv_inputs(1, 70, 130, 5, 6, torch.float32))


@pytest.mark.usefixtures("backend")
def test_weight_alone() -> None:
    assert_correct(partial(lmfn_kernels.conv3x3, activation="relu"), conv_inputs(1, 3, 4, 5, 6, torch.float32)[:2])


@pytest.mark.parametrize("activation", ["none", "relu", "leaky_relu"])
def test_nan_is_kept_on_a_cpu(activation: str) -> None:
    """oneDNN's own ReLU makes it 0."""
    x, weight, bias, residual = conv_inputs(1, 16, 16, 5, 6, torch.float32)
    x[:, :, 2, 3] = torch.nan
    for added in (None, residual):
        y = lmfn_kernels.conv3x3(x, weight, bias, added, activation=activation)
        assert y.isnan().sum() == 16 * 9


@pytest.mark.parametrize(("stride", "padding"), [(1, 1), (2, 1), (2, 0)])
def test_gradients_of_a_convolution_and_another_use_of_its_input(backend: str, stride: int, padding: int) -> None:
    """Backward adds the gradient of the other use, which nothing but the kernel does."""
    op = partial(lmfn_kernels.conv3x3_and_input, stride=stride, padding=padding, activation="leaky_relu")
    inputs = conv_inputs(2, 6, 7, 9, 18, torch.float32, stride=stride, padding=padding)[:3]
    assert_correct(op, inputs)
    leaves = [t.requires_grad_() for t in inputs]
    y, x = op(*leaves)
    assert x.data_ptr() == leaves[0].data_ptr()
    gradients = [torch.randn_like(y), torch.randn_like(x)]
    with Launches() as launched:
        dx = torch.autograd.grad([y, x], leaves[:1], gradients, retain_graph=True)
    assert backend == "torch" or not launched.others.keys() & {"add", "add_"}
    alone, *_ = torch.autograd.grad(y, leaves, gradients[0], retain_graph=True)
    torch.testing.assert_close(dx[0], alone + gradients[1])
    other = torch.autograd.grad(x, leaves[:1], gradients[1])
    assert torch.equal(other[0], gradients[1])


@pytest.mark.parametrize("call", ["compile", "transform", "checkpoint"])
def test_another_use_of_the_input_elsewhere(call: str) -> None:
    """Compilers and transforms add the gradients themselves; without gradients, the input is what is returned."""
    torch.compiler.reset()

    def loss(*inputs: Tensor) -> Tensor:
        y, x = lmfn_kernels.conv3x3_and_input(*inputs, stride=2)
        return y.sum() + x.square().sum()

    inputs = [t.requires_grad_() for t in conv_inputs(1, 3, 2, 6, 5, torch.float32)[:3]]
    if call == "transform":
        found = torch.func.grad(loss, argnums=(0, 1, 2))(*inputs)
    elif call == "checkpoint":
        found = torch.autograd.grad(checkpoint(loss, *inputs, use_reentrant=False), inputs)
    else:
        found = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(*inputs), inputs)
    for gradient, expected in zip(found, torch.autograd.grad(loss(*inputs), inputs), strict=True):
        torch.testing.assert_close(gradient, expected)
    with torch.no_grad():
        assert lmfn_kernels.conv3x3_and_input(*inputs)[1] is inputs[0]


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("of_weights", [True, False])
def test_another_use_of_the_input_under_autocast(of_weights: bool) -> None:
    """It is the input itself, not its copy in autocast's dtype, with and without gradients."""
    x, weight, bias, _ = conv_inputs(1, 3, 2, 6, 5, torch.float32)
    x.requires_grad_(of_weights)
    with torch.autocast("cpu", torch.float16):
        y, again = lmfn_kernels.conv3x3_and_input(x, weight, bias)
    assert y.dtype == torch.float16
    assert again is x


@pytest.mark.parametrize("name", ["triton", "torch", "reference"])
def test_relu_of_infinity(name: str) -> None:
    """As PyTorch's ReLU: an infinity times a slope of 0 would be NaN. In 16 bits, sums become infinite."""
    x, weight, bias, residual = (t.abs() for t in conv_inputs(1, 3, 2, 6, 5, torch.float32))
    residual[..., ::2] = -torch.inf
    leaves = [t.requires_grad_() for t in (x, weight, bias, residual)]
    with lmfn_kernels.backend(name):
        y = lmfn_kernels.conv3x3(*leaves, activation="relu")
        gradients = torch.autograd.grad(y, leaves, torch.where(residual < 0, torch.inf, 1.0))
    assert (y[..., ::2] == 0).all()
    assert (y[..., 1::2] > 0).all()
    assert all(map(torch.isfinite, gradients[2]))
    assert torch.equal(gradients[3], (y > 0).float())


def call(**changes: object) -> None:
    x, weight, bias, residual = conv_inputs(1, 3, 2, 6, 7, torch.float32)
    lmfn_kernels.conv3x3(**({"x": x, "weight": weight, "bias": bias, "residual": residual} | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": [1.0]}, TypeError, "x is a list; expected a tensor"),
        ({"x": torch.zeros(1, 3, 6, 7, dtype=torch.int32)}, TypeError, "x has dtype torch.int32; expected one of"),
        ({"x": torch.zeros(3, 6, 7)}, ValueError, r"x has shape \(3, 6, 7\); expected a non-empty \[B, C, H, W\]"),
        ({"x": torch.zeros(1, 3, 0, 7)}, ValueError, r"x has shape \(1, 3, 0, 7\); expected a non-empty"),
        ({"x": torch.zeros(1, 3, 2, 7), "padding": 0}, ValueError, "height and width of at least 3"),
        (
            {"weight": torch.zeros(2, 4, 3, 3)},
            ValueError,
            r"weight has shape .2, 4, 3, 3.; expected .2, 3, 3, 3.",
        ),
        (
            {"weight": torch.zeros(2, 3, 3, 3).double()},
            TypeError,
            "weight has dtype torch.float64; expected ",
        ),
        ({"weight": torch.zeros(2, 3, 3, 3, device="meta")}, ValueError, "weight is on meta; expected cpu"),
        ({"weight": torch.zeros(0, 3, 3, 3)}, ValueError, r"weight has shape .0, 3, 3, 3.; expected .any, 3, 3, 3."),
        ({"bias": torch.zeros(3)}, ValueError, r"bias has shape \(3,\); expected \(2\)"),
        (
            {"residual": torch.zeros(1, 2, 7, 7)},
            ValueError,
            r"residual has shape .1, 2, 7, 7.; expected .1, 2, 6, 7.",
        ),
        ({"stride": 3}, ValueError, "stride is 3; expected 1 or 2"),
        ({"padding": 2}, ValueError, "padding is 2; expected 0 or 1"),
        ({"activation": "gelu"}, ValueError, "activation is 'gelu'; expected one of none, relu, leaky_relu"),
        ({"activation": "leaky_relu", "slope": 0.0}, ValueError, "slope is 0.0; expected a number above 0"),
    ],
)
def test_errors_name_the_argument(changes: dict[str, object], error: type[Exception], message: str) -> None:
    call()
    with pytest.raises(error, match=message):
        call(**changes)


def test_errors_on_the_meta_device() -> None:
    """Which has no autocast to ask about."""
    x, weight = torch.zeros(1, 3, 6, 7, device="meta"), torch.zeros(2, 3, 3, 3, device="meta", dtype=torch.float16)
    with pytest.raises(TypeError, match=r"weight has dtype torch.float16; expected torch.float32"):
        lmfn_kernels.conv3x3(x, weight)
