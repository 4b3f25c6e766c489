"""The RFDB and its parts: ESA's low branch, sizes of its maps, what the kernels refuse, and errors."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import lmfn_kernels
from bench.host import Launches
from lmfn_kernels import Conv
from lmfn_kernels.cases import conv, convs, gate_from_flat, gate_inputs, rfdb_from_flat, rfdb_inputs, rfdb_weights
from lmfn_kernels.rfdb.backend import implementation
from lmfn_kernels.runtime import configs
from lmfn_kernels.runtime.launch import intercepting, tiling
from lmfn_kernels.testing import assert_correct, random
from tests.kernels.conftest import amid_nan


def conv_pool(x: Tensor, *flat: Tensor) -> Tensor:
    return F.max_pool2d(F.conv2d(x, *flat, stride=2), 7, stride=3)


def low_convs(x: Tensor, *flat: Tensor) -> tuple[Tensor, ...]:
    low1 = F.relu(F.conv2d(x, *flat[:2], padding=1))
    low2 = F.relu(F.conv2d(low1, *flat[2:4], padding=1))
    return F.conv2d(low2, *flat[4:], padding=1), low1, low2


def low_branch(name: str, x: Tensor, *flat: Tensor) -> list[Tensor]:
    """What the kernel computes and saves for backward, except the maximum's index; without saving, the same result."""
    part = getattr(implementation("triton"), name)
    result, saved = part(amid_nan(x), *convs(flat), True)
    alone, nothing = part(amid_nan(x), *convs(flat), False)
    assert torch.equal(alone.nan_to_num(7), result.nan_to_num(7))
    assert not nothing
    return [result] if name == "conv_pool" else [result, *saved]


LOW_BRANCH = {
    "conv_pool": (conv_pool, 1, [(15, 71), (21, 16)]),
    "low_convs": (low_convs, 3, [(3, 9), (5, 1)]),
}
"""Formula, convolutions, and sizes: less than a tile of the kernel, and more, neither a multiple."""


@pytest.fixture(params=LOW_BRANCH)
def part(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A kernel of ESA's low branch, with the tiles that it has on a GPU."""
    name: str = request.param
    tiles = configs.heuristic(name, torch.float16, configs.Device("some-gpu", 90, 232_448), 10)
    monkeypatch.setattr(configs, "INTERPRETED", configs.INTERPRETED._replace(height=tiles.height, width=tiles.width))
    return name


@pytest.mark.parametrize(
    ("f", "dtype"),
    [
        (12, torch.float32),
        (12, torch.float16),
        (3, torch.float64),
        (8, torch.float16),
        (16, torch.float32),
        (24, torch.float16),
    ],
)
def test_low_branch_within_rounding_of_float64(part: str, f: int, dtype: torch.dtype) -> None:
    """With NaN and infinities around and between the pixels."""
    formula, convs, sizes = LOW_BRANCH[part]
    for images, (h, w) in enumerate(sizes if f == 12 else sizes[:1], 1):
        inputs = [random((images, f, h, w), dtype)]
        for _ in range(convs):
            inputs += conv(f, f, 3, dtype)
        assert_correct(partial(low_branch, part), inputs, [False] * len(inputs), formula=formula)


def test_low_branch_spreads_nan_as_its_formula(part: str) -> None:
    formula, convs, sizes = LOW_BRANCH[part]
    x = random((1, 2, *sizes[0]), torch.float32)
    x[0, 1, 0, 1] = float("nan")
    flat = [t for _ in range(convs) for t in conv(2, 2, 3, torch.float32)]
    found, expected = low_branch(part, x, *flat)[0], formula(x, *flat)
    expected = expected if isinstance(expected, Tensor) else expected[0]
    assert torch.equal(found.isnan(), expected.isnan())
    assert 0 < int(found.isnan().sum()) < found.numel()


def low_convs_gradients(g: Tensor, x: Tensor, low1: Tensor, low2: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """Gradients of x, of the three weights, and of the three biases."""
    w1, w2, w3 = weights
    g2 = F.conv_transpose2d(g, w3, padding=1) * (low2 > 0)
    g1 = F.conv_transpose2d(g2, w2, padding=1) * (low1 > 0)
    of_weights = [
        F.conv2d(of.transpose(0, 1), of_result.transpose(0, 1), padding=1).transpose(0, 1)
        for of, of_result in ((x, g1), (low1, g2), (low2, g))
    ]
    return F.conv_transpose2d(g1, w1, padding=1), *of_weights, *(t.sum((0, 2, 3)) for t in (g1, g2, g))


def low_convs_backward(g: Tensor, x: Tensor, low1: Tensor, low2: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    images = map(amid_nan, (g, x, low1, low2))
    dx, of_convs = implementation("triton").low_convs_backward(next(images), next(images), list(images), weights)
    of_weights, of_biases = zip(*of_convs, strict=True)
    return dx, *(partials.values.sum(0).to(g.dtype) for partials in (*of_weights, *of_biases))


@pytest.mark.parametrize(
    ("f", "size", "dtype"),
    [
        (12, (2, 3, 9), torch.float32),
        (12, (1, 5, 1), torch.float16),
        (3, (1, 4, 4), torch.float64),
        (16, (1, 3, 5), torch.float32),
        (24, (1, 2, 6), torch.float16),
    ],
)
def test_low_convs_backward_within_rounding_of_float64(
    f: int, size: tuple[int, int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the tiles that it has on a GPU, and NaN and infinities around and between the pixels."""
    monkeypatch.setattr(configs, "INTERPRETED", configs.INTERPRETED._replace(height=4, width=4))
    b, h, w = size
    inputs = [random((b, f, h, w), dtype) for _ in range(4)] + [conv(f, f, 3, dtype)[0] for _ in range(3)]
    assert_correct(low_convs_backward, inputs, [False] * len(inputs), formula=low_convs_gradients)


def test_index_of_the_maximum() -> None:
    """Of 49, row by row: the first of equal values."""
    x = torch.zeros(1, 2, 27, 33, dtype=torch.float64)
    x[0, 0] = random(x.shape[2:])
    kept = torch.zeros(2, 2, 3, 3, dtype=torch.float64)
    kept[0, 0, 1, 1] = kept[1, 1, 1, 1] = 1  # the second channel is zero throughout
    low, index = implementation("triton").conv_pool(amid_nan(x), Conv(kept, kept.new_zeros(2)), True)
    _, expected = F.max_pool2d(F.conv2d(x, kept, stride=2), 7, stride=3, return_indices=True)
    assert index is not None
    rows, columns = (torch.arange(size) * 3 for size in low.shape[2:])
    assert torch.equal(expected, (rows[:, None] + index // 7) * 16 + columns + index % 7)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("low", [(1, 1), (2, 3), (4, 19), (7, 4)])
def test_esa_gate_of_low_maps_of_any_size(low: tuple[int, int]) -> None:
    assert_correct(gate_from_flat, gate_inputs(1, 6, 3, 4, 19, low, torch.float64))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("low", [(1, 1), (1, 2), (2, 4)])  # too few, and too many, for 9 x 19
def test_esa_gate_on_a_fixed_grid(low: tuple[int, int]) -> None:
    assert_correct(partial(gate_from_flat, fixed_grid=True), gate_inputs(1, 6, 3, 9, 19, low, torch.float32))


@pytest.mark.usefixtures("backend")
def test_rfdb_on_a_fixed_grid() -> None:
    assert_correct(partial(rfdb_from_flat, fixed_grid=True), rfdb_inputs(1, 6, 3, 2, 21, 28, torch.float32))


@pytest.mark.usefixtures("backend")
def test_the_networks_block_at_the_smallest_size() -> None:
    assert_correct(rfdb_from_flat, rfdb_inputs(1, 50, 25, 12, 15, 15, torch.float32))


def test_weights_of_a_stage_take_one_launch() -> None:
    f, launched = implementation("triton"), []
    x, e, z = (f.as_kernel_image(torch.zeros(1, c, 4, 5)) for c in (6, 6, 9))
    with intercepting(lambda _launch, kernel, grid, _arguments: launched.append((kernel.__name__, grid))):
        f.weight_gradients([(e, z, x, torch.zeros(6, 6, 3, 3), torch.zeros(9, 6, 1, 1))])
    tiles = tiling("weight_gradient", e).tiles
    assert launched == [("weight_gradient_kernel", (tiles, 4, 1))], "three rows of taps and the 1x1"


def for_two_uses(x: Tensor, *flat: Tensor) -> tuple[Tensor, Tensor]:
    return lmfn_kernels.rfdb_for_two_uses(x, rfdb_weights(flat))


def test_gradients_of_two_uses_are_added(backend: str) -> None:
    """Each result has a gradient of its own, and backward their sum, which nothing but the kernel computes."""
    inputs = rfdb_inputs(1, 6, 3, 2, 15, 15, torch.float32)
    assert_correct(for_two_uses, inputs)
    leaves = [t.requires_grad_() for t in inputs]
    one, other = for_two_uses(*leaves)
    assert one.data_ptr() == other.data_ptr()
    ones = torch.ones_like(one)
    with Launches() as launched:
        found = torch.autograd.grad(other, leaves, ones, retain_graph=True)
        torch.autograd.grad([one, other], leaves, [ones, ones])
    assert backend == "torch" or launched.others.keys() <= {"copy_"}, "those of Triton's interpreter"
    expected = torch.autograd.grad(rfdb_from_flat(*leaves), leaves, ones)
    assert all(map(torch.equal, found, expected)), "of the second use alone"


@pytest.mark.parametrize("call", ["compile", "transform", "checkpoint"])
def test_two_uses_elsewhere(call: str) -> None:
    """Compilers and transforms add the gradients themselves; without gradients, there is one result."""
    torch.compiler.reset()

    def loss(*inputs: Tensor) -> Tensor:
        one, other = for_two_uses(*inputs)
        return one.sum() + other.square().sum()

    inputs = [t.requires_grad_() for t in rfdb_inputs(1, 4, 2, 2, 15, 15, torch.float32)]
    if call == "transform":
        found = torch.func.grad(loss, argnums=tuple(range(len(inputs))))(*inputs)
    elif call == "checkpoint":
        found = torch.autograd.grad(checkpoint(loss, *inputs, use_reentrant=False), inputs)
    else:
        found = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(*inputs), inputs)
    for gradient, expected in zip(found, torch.autograd.grad(loss(*inputs), inputs), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        one, other = for_two_uses(*inputs)
    assert one is other


def test_kernels_refuse_what_they_cannot_take() -> None:
    with lmfn_kernels.backend("triton"), pytest.raises(ValueError, match="70 channels, and the fused kernels"):
        rfdb_from_flat(*rfdb_inputs(1, 70, 5, 4, 15, 15))
    with lmfn_kernels.backend("triton"), pytest.raises(ValueError, match="its ESA has 17 channels, and the kernels"):
        rfdb_from_flat(*rfdb_inputs(1, 6, 3, 17, 15, 15))


def test_errors_name_the_convolution() -> None:
    x, *flat = rfdb_inputs(1, 6, 3, 2, 15, 15)
    weights = rfdb_weights(flat)
    with pytest.raises(ValueError, match="height and width of at least 15"):
        lmfn_kernels.rfdb(x[:, :, :14], weights)
    with pytest.raises(ValueError, match=r"weights.conv_f.weight has shape .6, 12, 1, 1.; expected .2, 2, 1, 1."):
        lmfn_kernels.rfdb(x, weights._replace(conv_f=weights.fuse))
    with pytest.raises(ValueError, match=r"weights.refine has 2 convolutions; expected 3"):
        lmfn_kernels.rfdb(x, weights._replace(refine=weights.refine[:2]))  # type: ignore[arg-type]
