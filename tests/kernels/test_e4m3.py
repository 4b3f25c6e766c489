"""Convolutions between maps in 16 bits and maps stored as e4m3, as PyTorch computes them where no kernel does."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import lmfn_kernels
from lmfn_kernels import (
    Conv,
    RFDBWeights,
    ScaledConv,
    distill_stages_e4m3,
    power_of_two,
    residual_block,
    residual_block_e4m3,
    rfdb,
    rfdb_e4m3,
    scaled,
)
from lmfn_kernels.conv.torch_backend import scaled_conv
from lmfn_kernels.weights import E4M3

WIDE = torch.bfloat16
ROUNDING = {E4M3: 2**-4, WIDE: 2**-8}
"""Largest relative error of a normal number."""
SMALLEST = {E4M3: 2**-10, WIDE: 0.0}
"""Largest error of a number near zero."""


def image(*shape: int, dtype: torch.dtype = WIDE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def conv(n: int, k: int, size: int, seed: int = 1) -> Conv:
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(n, k, size, size, generator=draw) / (size * k**0.5)
    return Conv((weight * torch.logspace(-1, 1, n).view(n, 1, 1, 1)).to(WIDE).float(), torch.randn(n, generator=draw))


def formula(x: Tensor, stored: ScaledConv, residual: Tensor | None, slope: float) -> Tensor:
    """In float64, from the operands as they are stored."""
    k, weight = x.shape[1], stored.weight.double()
    weight = weight[..., :k].permute(1, 2, 0) if stored.weight.dtype == E4M3 else weight.permute(2, 1, 0)
    size = 1 if weight.shape[2] == 1 else 3
    y = F.conv2d(x.double(), weight[..., : size * size].unflatten(2, (size, size)), padding=size // 2)
    if weight.shape[2] == 10:
        y += F.conv2d(x.double(), weight[..., 9, None, None])
    y = (
        y * (1 if stored.factor is None else stored.factor.double()[:, None, None])
        + stored.bias.double()[:, None, None]
    )
    return F.leaky_relu(y if residual is None else y + residual.double(), slope)


@pytest.mark.parametrize("residual", ["none", "own tap", "another image"])
@pytest.mark.parametrize(("before", "after"), [(WIDE, E4M3), (E4M3, E4M3), (E4M3, WIDE)])
@pytest.mark.parametrize("size", [3, 1])
def test_only_the_result_is_rounded(before: torch.dtype, after: torch.dtype, residual: str, size: int) -> None:
    x, beside = image(2, 50, 5, 7, dtype=before), image(2, 50, 5, 7) if residual == "another image" else None
    of, to = (0.25 if before == E4M3 else None), (0.125 if after == E4M3 else 1.0)
    stored = scaled(conv(50, 50, size), WIDE, of, to, residual=residual == "own tap" and size == 3)
    found = scaled_conv(x, stored, beside, slope=0.05, dtype=after)
    assert found.dtype == after
    assert found.is_contiguous(memory_format=torch.channels_last)
    exact = formula(x, stored, beside, 0.05)
    error = (found.double() - exact.clamp(-448, 448)).abs()
    assert (error <= ROUNDING[after] * exact.abs() + SMALLEST[after] + 1e-5).all()


@pytest.mark.parametrize("of", [None, 0.25])
def test_weights_are_those_of_the_convolution(of: float | None) -> None:
    """Times powers of two, to 4 bits in e4m3, and with the residual exactly."""
    given, x = conv(50, 40, 3), image(1, 40, 4, 4, dtype=WIDE if of is None else E4M3)
    stored = scaled(given, WIDE, of, 2.0)
    weight = stored.weight.float()
    weight = weight.permute(2, 1, 0) if of is None else weight[..., :40].permute(1, 2, 0)
    scale = torch.full((50,), 2.0) if stored.factor is None else stored.factor * (2 / 0.25)
    error = (weight * scale[:, None, None]).unflatten(2, (3, 3)) - given.weight
    assert (error.abs() <= (0 if of is None else given.weight.abs() / 16 + scale.view(-1, 1, 1, 1) / 1024)).all()
    nothing = Conv(torch.zeros(40, 40, 3, 3), torch.zeros(40))
    added = formula(x, scaled(nothing, WIDE, of, 2.0, residual=True), None, 1.0)
    assert torch.equal(added, x.double() * (1 if of is None else of) / 2)


def test_what_e4m3_cannot_hold() -> None:
    """Becomes its largest value; what is not a number stays so."""
    x = torch.tensor([1e4, -1e4, float("inf"), float("nan")], dtype=WIDE).view(1, 1, 1, 4)
    same = scaled(Conv(torch.ones(1, 1, 1, 1), torch.zeros(1)), WIDE)
    found = scaled_conv(x, same, None, slope=1.0, dtype=E4M3).float().flatten()
    assert found[:3].tolist() == [448, -448, 448]
    assert found[3].isnan()
    assert power_of_two(0.0) > 0
    assert power_of_two(448 / 8) == 1.0
    assert power_of_two(450 / 8) == 2.0


@pytest.mark.parametrize("upsample", [False, True])
def test_residual_block(upsample: bool) -> None:
    x, convs = image(1, 50, 9, 11), (conv(64, 50, 3), conv(50, 64, 3, seed=2))
    exact = residual_block(x.double(), *(Conv(*(t.double() for t in c)) for c in convs), upsample=upsample)
    scale = power_of_two(60.0)
    stored = scaled(convs[0], WIDE, to=scale), scaled(convs[1], WIDE, scale)
    with torch.autocast("cpu"):
        found = residual_block_e4m3(x, *stored, upsample=upsample)
    assert found.dtype == WIDE
    assert (found - exact).square().mean() < 0.05**2 * exact.square().mean()


def to_wide(of: Any) -> Any:
    return Conv(*(t.to(WIDE) for t in of)) if isinstance(of, Conv) else tuple(map(to_wide, of))


ESA = "conv1", "conv_f", "conv2", "conv_max", "conv3", "conv3_"


def narrower(of: Conv) -> Conv:
    """With 11 in place of 12 channels in ESA."""
    return Conv(of.weight[:11, :11] if of.weight.shape[1] == 12 else of.weight[:11], of.bias[:11])


def test_rfdb() -> None:
    x, c = image(1, 50, 17, 19), 50
    distil, refine = (tuple(conv(n, c, k, seed) for seed in (1, 2, 3)) for n, k in ((25, 1), (c, 3)))
    esa = [conv(12, 12, 3, seed) for seed in (4, 5, 6, 7)]
    rest = conv(25, c, 3), conv(c, 100, 1), conv(12, c, 1), conv(12, 12, 1), *esa, conv(c, 12, 1)
    weights = RFDBWeights(distil, refine, *rest)  # type: ignore[arg-type]
    scales = [None, power_of_two(100.0), power_of_two(1000.0), 1.0]
    stages = [
        (scaled(distil[j], WIDE, scales[j]), scaled(refine[j], WIDE, scales[j], scales[j + 1] or 1.0, residual=True))
        for j in range(3)
    ]
    wide = RFDBWeights(*(to_wide(w) for w in weights))
    exact = rfdb(x.float(), weights)
    plain = (rfdb(x, wide).float() - exact).square().mean()
    with pytest.raises(ValueError, match="expected 3 stages whose distil has 25 outputs"):
        rfdb_e4m3(x, wide, stages[:2])
    with pytest.raises(ValueError, match=r"weights.conv4.weight has shape .50, 12, 1, 1.; expected .50, 11, 1, 1."):
        rfdb_e4m3(x, wide._replace(**{name: narrower(getattr(wide, name)) for name in ESA}), stages)
    found = rfdb_e4m3(x, wide, stages)
    assert found.dtype == WIDE
    assert plain < (found.float() - exact).square().mean() < 0.05**2 * exact.square().mean()


def test_errors() -> None:
    x, stored = image(1, 50, 4, 4), scaled(conv(50, 50, 3), WIDE)
    with pytest.raises(TypeError, match=r"x is torch.float32; with e4m3, the other maps are float16 or bfloat16"):
        residual_block_e4m3(x.float(), stored, stored)
    with pytest.raises(ValueError, match="there are 32, 50 channels; e4m3 needs 33 to 64"):
        residual_block_e4m3(x[:, :32], stored, stored)
    with pytest.raises(RuntimeError, match="distill_stages_e4m3 has no gradient"):
        distill_stages_e4m3(x.clone().requires_grad_(), [])
    with lmfn_kernels.backend("triton"), pytest.raises((RuntimeError, ValueError), match=r"CPU|cpu"):
        residual_block_e4m3(x, stored, stored)
    with pytest.raises(
        ValueError, match=r"conv2 has a weight \(9, 50, 50\) of torch.bfloat16 .* \(9, 50, 64\) of .*e4m3"
    ):
        residual_block_e4m3(x, stored, stored)
    with pytest.raises(ValueError, match=r"conv1 has a weight \(9, 40, 50\) .*; expected \(9, 50, 50\)"):
        residual_block_e4m3(x, scaled(conv(50, 40, 3), WIDE), stored)
    with pytest.raises(ValueError, match="distil of stage 0 has 65 outputs; expected at most 64"):
        distill_stages_e4m3(x, [(scaled(conv(65, 50, 1), WIDE), scaled(conv(50, 50, 3), WIDE, residual=True))])
    with pytest.raises(ValueError, match=r"refine of stage 0 has a weight \(9, 50, 50\) .*; expected \(10, 50, 50\)"):
        distill_stages_e4m3(x, [(scaled(conv(25, 50, 1), WIDE), stored)])


@pytest.mark.parametrize("field", ScaledConv._fields)
def test_every_tensor_is_checked(field: str) -> None:
    """One on another device, of another dtype or size, as after moving only some tensors of a network."""
    x, convs = image(1, 50, 4, 4), (scaled(conv(50, 50, 3), WIDE), scaled(conv(50, 50, 3), WIDE, 1.0))
    given = getattr(convs[1], field)
    for wrong in (given.to("meta"), given.half(), given[:-1]):
        with pytest.raises(ValueError, match=rf"conv2 has a {field} .* of .* on .*; expected .* on cpu, as `scaled`"):
            residual_block_e4m3(x, convs[0], convs[1]._replace(**{field: wrong}))
