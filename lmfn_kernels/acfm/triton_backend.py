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
    with_pitch,
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


def gate(x: Tensor, add: Tensor | None, alpha: Tensor, weights: Sequence[Tensor]) -> Tensor:
    x, row = with_pitch(x)
    out = empty_image(x, *x.shape)
    key = tiling("channel_gate", x), _maps(weights), row
    launch(x, _gate, key, p_x=x, t_add=add, t_out=out, p_alpha=alpha, **_weights(weights))
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
    t, row = within(tiling("merge", x), grid)._replace(precision=matrix_precision(x)), pixel_pitch(x.shape[1], x.dtype)
    if _maps(weights) == 3:  # three sums of the gate; with 64 pixels they spill on sm_100
        t = t._replace(config=t.config._replace(height=min(4, t.config.height)))
    if grid.blocks > 1 and x.dtype.itemsize > 2:  # two sums, of a window and of all, in many registers
        t = t._replace(config=t.config._replace(height=min(2, t.config.height)))
    key = t, grid, _maps(weights), len(maps), slope, row
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
def _merge(t: Tiling, grid: Grid, maps: int, layers: int, slope: float, row: int) -> Plan:
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
        WINDOWED=grid.blocks > 1,
        SLOPE=slope,
        PITCH=row,
        OF_ROW=pitch(c, t.dtype),
        UNIT=16 // t.dtype.itemsize,
        BLOCK_C=n,
        **blocks_of(grid),
        **t.constants(),
    )


def gate_backward(
    g: Tensor, x: Tensor, alpha: Tensor, weights: Sequence[Tensor], add: Tensor | None = None
) -> tuple[Tensor, PartialSums, list[PartialSums]]:
    """Gradients of x (plus `add`), alpha and the weights."""
    (g, of_g), (x, of_x), maps = with_pitch(g), with_pitch(x), _maps(weights)
    b, c, h, w = x.shape
    row, t = pixel_pitch(c, x.dtype), tiling("channel_gate_backward", x)
    # The channels of e go on to the next pixel, and the kernel writes zeros to those that x does not have.
    dx, e = empty_image(x, b, c, h, w), empty_image(x, b, row, h, w)
    spatial, *others = (weight.numel() for weight in (*weights, alpha))
    sums = partial_sums(x, t.splits, (sum(others),))
    images: dict[str, Tensor] = {"p_g": g, "p_x": x, "t_dx": dx, "t_e": e}
    key = t, maps, of_g, of_x, sum(others)
    launch(x, _gate_backward, key, **images, p_alpha=alpha, **_weights(weights), p_sums=sums)
    t = tiling("channel_gate_input", x)
    if maps == 3:  # three sums per tap; with 32 pixels they spill on sm_80 and sm_100
        t = t._replace(config=t.config._replace(height=min(2, t.config.height)))
    of_spatial = partial_sums(x, t.splits, (spatial,))
    launch(
        x,
        _gate_input,
        (t, maps, row, of_x),
        p_e=as_pitched_image(e),
        p_x=x,
        p_dx=as_pitched_image(dx),
        t_dx=dx,
        p_add=None if add is None else as_pitched_image(add),
        p_spatial=weights[0],
        p_sums=of_spatial,
    )
    *found, dalpha = map(PartialSums, sums.split(others, dim=1))
    return dx, dalpha, [PartialSums(of_spatial), *found]


@lru_cache(PLANS)
def _gate(t: Tiling, maps: int, row: int) -> Plan:
    """`row` is the number of elements from one pixel of x to the next."""
    blocks = {name: t.pixels(channel_block(t.size[1])) for name in ("t_add", "t_out")}
    constants = {"PITCH": row, "MAPS": maps, **_constants(t)}
    return Plan(kernels.channel_gate_kernel, (t.tiles,), t.config.warps, blocks, **constants)


@lru_cache(PLANS)
def _gate_backward(t: Tiling, maps: int, of_g: int, of_x: int, sums: int) -> Plan:
    """`of_g` and `of_x` are the elements from one pixel to the next."""
    blocks = {name: t.pixels(channel_block(t.size[1])) for name in ("t_dx", "t_e")}
    constants = {"B": t.size[0], "SPLITS": t.splits, "SUMS": sums, "MAPS": maps, **_constants(t)}
    constants |= {"PITCH_G": of_g, "PITCH": of_x}
    return Plan(kernels.channel_gate_backward_kernel, (t.splits,), t.config.warps, blocks, **constants)


@lru_cache(PLANS)
def _gate_input(t: Tiling, maps: int, row: int, of_x: int) -> Plan:
    """`of_x` is the number of elements from one pixel of x to the next, `row` that of the other images."""
    blocks = {"t_dx": t.pixels(channel_block(t.size[1]))}
    constants = {"B": t.size[0], "SPLITS": t.splits, "MAPS": maps, **_constants(t)}
    constants |= {"PITCH": row, "PITCH_X": of_x}
    return Plan(kernels.channel_gate_input_kernel, (t.splits,), t.config.warps, blocks, **constants)


def _constants(t: Tiling) -> dict[str, Any]:
    """Those that all kernels of the gate have."""
    constants = {"C": t.size[1], "UNIT": 16 // t.dtype.itemsize, "BLOCK_C": channel_block(t.size[1]), **t.constants()}
    del constants["PRECISION"]  # there are no products of matrices
    return constants


def _maps(weights: Sequence[Tensor]) -> int:
    """Maps per channel that the spatial convolution yields: 1 for `Pseudo3D`, 3 for `Full3D`."""
    return 3 if len(weights) == 2 else 1


def _weights(weights: Sequence[Tensor]) -> dict[str, Tensor | None]:
    spatial, *middle, bias = weights
    spatial_bias, channel = middle or (None, None)
    return {"p_spatial": spatial, "p_spatial_bias": spatial_bias, "p_channel": channel, "p_bias": bias}
