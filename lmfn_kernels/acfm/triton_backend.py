"""ACFM by Triton kernels; the same functions as `torch_backend.py`, on images from `as_kernel_image`."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from torch import Tensor

from lmfn_kernels.acfm import kernels
from lmfn_kernels.alfm.triton_backend import (
    as_kernel_image,
    blocks_of,
    both_sides,
    fold_into_weight,
    fold_into_weight_backward,
    gram,
    matrix_precision,
    mix,
    mix_weights,
    products,
    within,
)
from lmfn_kernels.alfm.windows import Grid
from lmfn_kernels.runtime.gradients import PartialSums
from lmfn_kernels.runtime.launch import (
    PLANS,
    Plan,
    Tiling,
    as_pitched_image,
    channel_block,
    empty_image,
    launch,
    padded_image,
    partial_sums,
    tiling,
)
from lmfn_kernels.runtime.layout import pitch, pixel_pitch

__all__ = [
    "as_kernel_image",
    "both_sides",
    "fold_into_weight",
    "fold_into_weight_backward",
    "gate",
    "gate_backward",
    "gram",
    "merge",
    "mix",
    "products",
]

SUMS = 32  # the gradients of the 14 or 28 weights and of alpha, rounded up to a power of two


def gate(x: Tensor, add: Tensor | None, alpha: Tensor, weights: Sequence[Tensor]) -> Tensor:
    out = empty_image(x, *x.shape)
    key = kernels.channel_gate_kernel, tiling("channel_gate", x), _maps(weights)
    launch(x, _gate, key, t_x=x, t_add=add, t_out=out, p_alpha=alpha, **_weights(weights))
    return out


def merge(
    x: Tensor,
    alpha: Tensor,
    weights: Sequence[Tensor],
    maps: Sequence[Tensor],
    matrix: Tensor,
    grid: Grid,
    bias: Tensor,
    slope: float,
    save: bool,
) -> tuple[Tensor, Tensor | None]:
    out, kept = padded_image(x, *x.shape), empty_image(x, *x.shape) if save else None
    images = {"p_x": x} | {f"p_f{j}": f for j, f in enumerate(maps)}
    t, row = within(tiling("merge", x), grid), pixel_pitch(x.shape[1], x.dtype)
    if _maps(weights) == 3:  # three sums of the gate; with 64 pixels they spill on sm_100
        t = t._replace(config=t.config._replace(height=min(4, t.config.height)))
    if grid.blocks > 1 and x.dtype.itemsize > 2:  # two sums, of a window and of all, in many registers
        t = t._replace(config=t.config._replace(height=min(2, t.config.height)))
    key = t, grid, _maps(weights), len(maps), slope, matrix_precision(x), row
    launch(
        x,
        _merge,
        key,
        **{name: as_pitched_image(image) for name, image in images.items()},
        p_w=mix_weights(matrix.mT[:, None], len(maps), x.dtype),
        p_mix_bias=bias,
        t_added=kept,
        t_out=out,
        p_alpha=alpha,
        **_weights(weights),
    )
    return out, kept


@lru_cache(PLANS)
def _merge(t: Tiling, grid: Grid, maps: int, layers: int, slope: float, precision: str, row: int) -> Plan:
    c = t.size[1]
    n = channel_block(c)
    return Plan(
        kernels.merge_kernel,
        (t.tiles,),
        t.config.warps,
        {"t_added": t.pixels(n), "t_out": t.pixels(n)},
        C=c,
        MAPS=maps,
        LAYERS=layers,
        SLOPE=slope,
        PITCH=row,
        OF_ROW=pitch(c, t.dtype),
        MIX_PRECISION=precision,
        BLOCK_C=n,
        **blocks_of(grid),
        **t.constants(),
    )


def gate_backward(
    g: Tensor, x: Tensor, alpha: Tensor, weights: Sequence[Tensor], add: Tensor | None = None
) -> tuple[Tensor, PartialSums, list[PartialSums]]:
    """Gradients of x (plus `add`), alpha and the weights."""
    dx, e = empty_image(x, *x.shape), empty_image(x, *x.shape)
    t = tiling("channel_gate_backward", x)
    sums = partial_sums(x, t.splits, (SUMS,))
    maps = _maps(weights)
    images: dict[str, Tensor] = {"t_g": g, "t_x": x, "t_dx": dx, "t_e": e}
    launch(x, _gate_backward, (t, maps), **images, p_alpha=alpha, **_weights(weights), p_sums=sums)
    key = kernels.channel_gate_input_kernel, tiling("channel_gate", x), maps
    launch(x, _gate, key, t_e=e, t_dx=dx, t_add=add, p_spatial=weights[0])
    sizes = [weight.numel() for weight in (*weights, alpha)]
    *found, dalpha = map(PartialSums, sums[:, : sum(sizes)].split(sizes, dim=1))
    return dx, dalpha, found


@lru_cache(PLANS)
def _gate(kernel: Any, t: Tiling, maps: int) -> Plan:
    """`kernel` is the gate's kernel, or that of the input gradient through the gate."""
    c = t.size[1]
    images = ("t_x", "t_add", "t_out", "t_e", "t_dx")
    blocks = {name: t.pixels(channel_block(c)) for name in images}
    return Plan(kernel, (t.tiles,), t.config.warps, blocks, C=c, MAPS=maps, **t.constants())


@lru_cache(PLANS)
def _gate_backward(t: Tiling, maps: int) -> Plan:
    b, c = t.size[:2]
    return Plan(
        kernels.channel_gate_backward_kernel,
        (t.splits,),
        t.config.warps,
        {name: t.pixels(channel_block(c)) for name in ("t_g", "t_x", "t_dx", "t_e")},
        B=b,
        C=c,
        SPLITS=t.splits,
        SUMS=SUMS,
        MAPS=maps,
        **t.constants(),
    )


def _maps(weights: Sequence[Tensor]) -> int:
    """Maps per channel that the spatial convolution yields: 1 for `Pseudo3D`, 3 for `Full3D`."""
    return 3 if len(weights) == 2 else 1


def _weights(weights: Sequence[Tensor]) -> dict[str, Tensor | None]:
    spatial, *middle, bias = weights
    spatial_bias, channel = middle or (None, None)
    return {"p_spatial": spatial, "p_spatial_bias": spatial_bias, "p_channel": channel, "p_bias": bias}
