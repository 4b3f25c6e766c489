"""ALFM by Triton kernels; the same functions as `torch_backend.py`, on maps from `as_kernel_image`."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from lmfn_kernels.alfm import kernels
from lmfn_kernels.alfm.attention_matrix import layers
from lmfn_kernels.alfm.reference import SHORTEST
from lmfn_kernels.alfm.windows import Grid, windows_from_quarters
from lmfn_kernels.runtime import configs
from lmfn_kernels.runtime.gradients import PartialSums, PendingMask
from lmfn_kernels.runtime.launch import (
    PLANS,
    Block,
    Plan,
    Tiling,
    accumulator,
    as_kernel_image,
    as_pitched_image,
    cdiv,
    channel_block,
    empty_image,
    launch,
    partial_sums,
    pitch_of_pixels,
    tiling,
    with_pitch,
)
from lmfn_kernels.runtime.layout import pitch

__all__ = [
    "as_kernel_image",
    "both_sides",
    "fold_into_weight",
    "fold_into_weight_backward",
    "gram",
    "matrix_precision",
    "mix",
    "mix_weights",
    "products",
]

WIDEST = 64  # channels in a block
MAPS = range(8)
SLOTS = range(4)
SUM_TILE = 16  # rows and columns of F F^T per program that adds partial sums
WARPS = 4  # of kernels for NC x NC matrices, whose size does not depend on the image

Slot = tuple[int, int]
"""Index of the map, and first channel."""


def gram(maps: Sequence[Tensor], by_layer: bool, grid: Grid, *, of_windows: bool) -> Tensor:
    """F F^T of every window or block: [B * windows, NC, NC] or, with layers as rows, [B * windows, N, N]."""
    x, size = maps[0], len(maps) * maps[0].shape[1]
    t = _tiling("gram", x, grid)
    splits = _splits(t, grid, grid.blocks)
    maps, row = _with_one_pitch(maps)
    widest, blocks = _widest(x), x.shape[0] * grid.blocks
    parts = partial_sums(x, splits * blocks, (size, size))
    for slots in _groups(_slots(maps), _at_once(x)):
        images = {f"p_x{i}": maps[j] for i, (j, _) in enumerate(slots)}
        launch(x, _gram, (t, grid, widest, size, slots, splits, row), **images, p_out=parts)
    outputs = x.shape[0] * (grid.windows if of_windows else grid.blocks)
    found = torch.empty((outputs, size, size), dtype=parts.dtype, device=x.device)
    launch(x, _gram_sum, (grid, blocks, size, splits, of_windows), p_parts=parts, p_out=found)
    return layers(found, len(maps)) if by_layer else found


def _with_one_pitch(maps: Sequence[Tensor]) -> tuple[Sequence[Tensor], int]:
    """`with_pitch` of several maps, with one distance between pixels for all."""
    pitches = {pitch_of_pixels(f) for f in maps}
    if len(pitches) > 1 or None in pitches:
        maps = [as_pitched_image(f) for f in maps]
    return maps, maps[0].stride(3)


@lru_cache(PLANS)
def _gram(t: Tiling, grid: Grid, widest: int, size: int, slots: tuple[Slot, ...], splits: int, row: int) -> Plan:
    """`t` is the tiling of a map, whose pixels are `row` elements apart; `widest` and `size` are the channels of a slot
    and of all maps together."""
    constants = _of_slots(t, grid, widest, size, slots, splits)
    programs = t.size[0] * grid.blocks, splits
    return Plan(kernels.gram_kernel, programs, t.config.warps, {}, H=t.size[2], W=t.size[3], PITCH=row, **constants)


@lru_cache(PLANS)
def _gram_sum(grid: Grid, blocks: int, size: int, splits: int, of_windows: bool) -> Plan:
    """`blocks` is the number of blocks in all images."""
    n = cdiv(size, SUM_TILE)
    outputs = blocks // grid.blocks * (grid.windows if of_windows else grid.blocks)
    return Plan(
        kernels.gram_sum_kernel,
        (outputs, n, n),
        2,
        {},
        ROWS=grid.rows,
        COLUMNS=grid.columns,
        BLOCKS=blocks,
        SIZE=size,
        SPLITS=splits,
        TALL=of_windows and grid.rows > 1,
        WIDE=of_windows and grid.columns > 1,
        UNROLL=min(16, splits),
        BLOCK=SUM_TILE,
    )


def products(gradient: PendingMask, maps: Sequence[Tensor], grid: Grid) -> tuple[Tensor, PartialSums]:
    """G F^T of every window, weighted by its shares, [B * windows, O, NC], and the sum of G over pixels [O]."""
    g, activation_output, slope = gradient
    x, o, size = maps[0], g.shape[1], len(maps) * maps[0].shape[1]
    t = _tiling("product", x, grid)
    splits, parts = _splits(t, grid, _parts(grid)), x.shape[0] * _parts(grid)
    out, sums = partial_sums(x, splits, (parts * o, size)), partial_sums(x, splits, (parts, o))
    (maps, row), (g, of_g), of_act = _with_one_pitch(maps), with_pitch(g), 0
    if activation_output is not None:
        activation_output, of_act = with_pitch(activation_output)
    slots, n = _slots(maps), _at_once(x)
    for first in range(0, len(slots), n):
        these = slots[first : first + n]
        key = t, grid, _widest(x), size, these, splits, o, slope, (row, of_g, of_act)
        images = {f"p_x{i}": maps[j] for i, (j, _) in enumerate(these)}
        launch(x, _product, key, p_g=g, p_act=activation_output, p_out=out, p_sum=sums, **images)
    found = out.sum(0).unflatten(0, (parts, o))
    of_windows = found if grid.blocks == 1 else windows_from_quarters(found, grid)
    return of_windows, PartialSums(sums.flatten(0, 1))


def _parts(grid: Grid) -> int:
    """Sums per image: with windows, four per block, one for each window that may contain it."""
    return 1 if grid.blocks == 1 else 4 * grid.blocks


@lru_cache(PLANS)
def _product(
    t: Tiling,
    grid: Grid,
    widest: int,
    size: int,
    slots: tuple[Slot, ...],
    splits: int,
    o: int,
    slope: float,
    pitches: tuple[int, int, int],
) -> Plan:
    """As `_gram`; `o` is the number of channels of the gradient, `pitches` are the elements from one pixel to the next
    of the maps, the gradient and the activation's output."""
    block_g = _block(o)
    constants = _of_slots(t, grid, widest, size, slots, splits)
    constants |= {"G": o, "WINDOWED": grid.blocks > 1, "SLOPE": slope, "BLOCK_G": block_g}
    constants |= {"H": t.size[2], "W": t.size[3]} | dict(zip(("PITCH", "PITCH_G", "PITCH_ACT"), pitches, strict=True))
    programs = t.size[0] * _parts(grid), splits, cdiv(o, block_g)
    return Plan(kernels.product_kernel, programs, t.config.warps, {}, **constants)


def mix(
    maps: Sequence[Tensor],
    outputs: int,
    grid: Grid,
    *,
    window_matrix: Tensor | None = None,
    block_matrix: Tensor | None = None,
    bias: Tensor | None = None,
    slope: float = 1.0,
    gradient: PendingMask | None = None,
) -> list[Tensor]:
    """LR(products of the gradient or the maps with matrices + bias), see `ALFMBackend`."""
    g, activation_output, act_slope = gradient or (None, None, 1.0)
    x = maps[0] if maps else g
    assert x is not None
    of_gradient, of_maps = (window_matrix, block_matrix) if gradient else (None, block_matrix)
    if gradient is None and window_matrix is not None:
        of_maps = window_matrix
    sized = of_gradient if of_maps is None else of_maps
    assert sized is not None
    n, of_g = sized.shape[3], 0 if g is None else g.shape[1]
    out = [empty_image(x, x.shape[0], n, *x.shape[2:]) for _ in range(outputs)]
    channels, windowed_maps = maps[0].shape[1] if maps else 1, of_maps is window_matrix
    launch(
        x,
        _mix,
        (_tiling("mix", x, grid), grid, outputs, n, len(maps), channels, of_g, windowed_maps, slope, act_slope),
        t_g=g,
        t_act=activation_output,
        **{f"t_x{j}": f for j, f in enumerate(maps)},
        t_wg=None if of_gradient is None else mix_weights(of_gradient, 1, x.dtype),
        t_w=None if of_maps is None else mix_weights(of_maps, len(maps), x.dtype),
        p_bias=bias,
        **{f"t_out{j}": y for j, y in enumerate(out)},
    )
    return out


@lru_cache(PLANS)
def _mix(
    t: Tiling,
    grid: Grid,
    outputs: int,
    n: int,
    maps: int,
    channels: int,
    of_g: int,
    windowed_maps: bool,
    slope: float,
    act_slope: float,
) -> Plan:
    """`n`, `channels` and `of_g` are the channels of an output, of a map and of the gradient."""
    block_k, block_g, block_n = _block(channels), _block(of_g or 1), _block(n)
    if grid.blocks > 1:
        block_n = min(32, block_n)  # two accumulators, one per window and one for all: 64 outputs need many registers
    blocks: dict[str, Block] = {"t_g": t.pixels(block_g), "t_act": t.pixels(block_g)}
    blocks |= {f"t_x{j}": t.pixels(block_k) for j in MAPS} | {f"t_out{j}": t.pixels(block_n) for j in MAPS}
    blocks |= {"t_wg": (1, block_g, block_n), "t_w": (1, block_k, block_n)}
    return Plan(
        kernels.mix_kernel,
        (t.tiles * outputs, cdiv(n, block_n)),
        t.config.warps,
        blocks,
        N=n,
        OUTPUTS=outputs,
        MAPS=maps,
        C=channels,
        G=of_g,
        WINDOWED=grid.blocks > 1,
        WINDOWED_MAPS=windowed_maps,
        SLOPE=slope,
        ACT_SLOPE=act_slope,
        BLOCK_K=block_k,
        BLOCK_G=block_g,
        BLOCK_N=block_n,
        **blocks_of(grid),
        **t.constants(),
    )


def fold_into_weight(
    gram: Tensor,
    theta: Tensor,
    weight: Tensor,
    temperature: Tensor | None,
    by_layer: bool,
    dtype: torch.dtype,
) -> Tensor:
    """P [B, O, NC], as in `attention_matrix.py`, stored as `mix_weights` returns its transpose."""
    w, m = weight.flatten(1), _attention(gram, temperature, by_layer)
    s = pitch(w.shape[0], dtype)
    out = torch.empty((m.shape[0], w.shape[1], s), dtype=dtype, device=m.device)[..., : w.shape[0]].mT
    return _folded(w, m, theta, out[:, :, None], back=False)[:, :, 0]


def fold_into_weight_backward(
    dp: Tensor,
    gram: Tensor,
    theta: Tensor,
    weight: Tensor,
    temperature: Tensor | None,
    by_layer: bool,
    maps: Sequence[Tensor],
) -> tuple[Tensor, PartialSums, PartialSums, PartialSums | None, Tensor | None]:
    """Gradients of E, theta, the weight and the temperature, as in `attention_matrix.py`, and P as `mix_weights`
    returns it."""
    (b, r, _), w, m = gram.shape, _matrix(weight), _attention(gram, temperature, by_layer)
    matrix = None
    if maps:
        matrix = _empty_weights(maps[0], b, len(maps), w.shape[0], maps[0].shape[1])
        _folded(w, m, theta, matrix.transpose(1, 2), back=False)
    dweight = PartialSums(_folded(dp, m, theta, back=True)[..., None, None])
    de = torch.empty_like(gram)
    dtheta, dtemperature = partial_sums(gram, b * r, (1,)), partial_sums(gram, b * r, (1,))
    launch(
        gram,
        _attention_backward,
        (m.shape, w.shape, by_layer),
        p_dp=dp,
        p_w=w,
        p_m=m,
        p_e=gram,
        p_theta=theta,
        p_temperature=temperature,
        p_de=de,
        p_dtheta=dtheta,
        p_dtemperature=dtemperature,
    )
    if temperature is None:
        return de, PartialSums(dtheta), dweight, None, matrix
    launch(gram, _length_backward, (gram.shape,), p_e=gram, p_de=de)
    return de, PartialSums(dtheta), dweight, PartialSums(dtemperature), matrix


def both_sides(de: Tensor, maps: Sequence[Tensor]) -> Tensor:
    """dE + dE^T as `mix_weights` returns it."""
    n, c = len(maps), maps[0].shape[1]
    out = _empty_weights(maps[0], de.shape[0], n, n * c, c)
    launch(de, _both_sides, (de.shape, out.shape, out.stride(2)), p_de=de, p_out=out)
    return out


@lru_cache(PLANS)
def _both_sides(de: Sequence[int], out: Sequence[int], row: int) -> Plan:
    """`row` is the number of elements from one row of the result to the next."""
    b, _, size, c = out
    constants = {"R": de[1], "OF_ROW": size // de[1], "SIZE": size, "C": c, "PITCH": row, "BLOCK": 32}
    return Plan(kernels.both_sides_kernel, (b, cdiv(size, 32), cdiv(size, 32)), WARPS, {}, **constants)


def _attention(gram: Tensor, temperature: Tensor | None, by_layer: bool) -> Tensor:
    out = torch.empty_like(gram)
    launch(gram, _attention_plan, (gram.shape, by_layer), p_e=gram, p_temperature=temperature, p_out=out)
    return out


def _folded(x: Tensor, m: Tensor, theta: Tensor, out: Tensor | None = None, *, back: bool) -> Tensor:
    """X (theta M + I), or with `back` X (theta M + I)^T; X is [B, O, NC], or [O, NC] for all images.

    The result [B, O, NC] has the dtype of M. In `out`, if given, it is [B, O, N, C] or [B, O, 1, NC].
    """
    found = torch.empty((m.shape[0], *x.shape[-2:]), dtype=m.dtype, device=m.device) if out is None else out
    parts = found[:, :, None] if out is None else out
    key = x.shape, x.stride(), m.shape, parts.shape, parts.stride(), back, m.dtype, matrix_precision(m)
    launch(m, _fold, key, p_x=x, p_m=m, p_theta=theta, p_out=found)
    return found


@lru_cache(PLANS)
def _attention_plan(gram: Sequence[int], by_layer: bool) -> Plan:
    b, r, _ = gram
    return Plan(kernels.attention_kernel, (b, r), WARPS, {}, R=r, BY_LAYER=by_layer, **_of_row(r))


@lru_cache(PLANS)
def _attention_backward(m: Sequence[int], weight: Sequence[int], by_layer: bool) -> Plan:
    b, r, _ = m
    of_row = _of_row(r)
    constants = {"BY_LAYER": by_layer, "BLOCK_K": 8192 // of_row["BLOCK_R"], **_as_rows(weight, r), **of_row}
    return Plan(kernels.attention_backward_kernel, (b, r), WARPS, {}, **constants)


@lru_cache(PLANS)
def _length_backward(gram: Sequence[int]) -> Plan:
    b, r, _ = gram
    return Plan(kernels.length_backward_kernel, (b, r), WARPS, {}, R=r, **_of_row(r))


@lru_cache(PLANS)
def _fold(
    x: Sequence[int],
    of_x: Sequence[int],
    m: Sequence[int],
    out: Sequence[int],
    of_out: Sequence[int],
    back: bool,
    dtype: torch.dtype,
    precision: str,
) -> Plan:
    """`x` and `of_x` are size and strides of X, `out` and `of_out` those of the result, [B, O, N, C]."""
    b, r, _ = m
    sizes, block_k, block_r = _as_rows(x, r), 16, 64
    return Plan(
        kernels.fold_kernel,
        (b, cdiv(sizes["ROWS"], block_k), cdiv(r, block_r)),
        WARPS,
        {},
        s_b=of_x[0] if len(x) == 3 else 0,
        s_o=of_x[-2],
        s_k=of_x[-1],
        s_out_b=of_out[0],
        s_out_o=of_out[1],
        s_out_j=of_out[2],
        s_out_k=of_out[3],
        WIDTH=out[3],
        ROWS=sizes["ROWS"],
        R=r,
        C=sizes["C"],
        BACK=back,
        ACC=accumulator(dtype),
        PRECISION=precision,
        BLOCK_K=block_k,
        BLOCK_R=block_r,
    )


def _matrix(weight: Tensor) -> Tensor:
    return weight.flatten(1).contiguous()


def _as_rows(x: Sequence[int], r: int) -> dict[str, int]:
    """Sizes of a matrix [..., O, NC] as in `fold_kernel`, if M has `r` rows."""
    o, size = x[-2:]
    return {"ROWS": o * (size // r), "R": r, "C": size // r, "SIZE": size}


def _of_row(r: int) -> dict[str, Any]:
    return {"BLOCK_R": channel_block(r), "SHORTEST": SHORTEST}


def mix_weights(matrix: Tensor, maps: int, dtype: torch.dtype) -> Tensor:
    """The blocks of `matrix` [B, outputs, maps * K, N] as [B * outputs * maps, K, N], rows a pitch apart: a view of
    what the functions above stored so, otherwise a copy."""
    (b, outputs, rows, n), s = matrix.shape, pitch(matrix.shape[3], dtype)
    if matrix.dtype != dtype or matrix.stride() != (outputs * rows * s, rows * s, s, 1):
        matrix = _empty_weights(matrix, b, outputs, rows, n, dtype).copy_(matrix)
    return matrix.as_strided((b * outputs * maps, rows // maps, n), (rows // maps * s, s, 1))


def _empty_weights(like: Tensor, b: int, outputs: int, rows: int, n: int, dtype: torch.dtype | None = None) -> Tensor:
    """Uninitialised [b, outputs, rows, n] for `mix_weights` in `dtype`, by default that of `like`."""
    s = pitch(n, dtype or like.dtype)
    strides = (outputs * rows * s, rows * s, s, 1)
    return torch.empty_strided((b, outputs, rows, n), strides, dtype=dtype or like.dtype, device=like.device)


def _slots(maps: Sequence[Tensor]) -> tuple[Slot, ...]:
    channels, widest = maps[0].shape[1], _widest(maps[0])
    return tuple((j, first) for j in range(len(maps)) for first in range(0, channels, widest))


def _widest(x: Tensor) -> int:
    """Channels per slot. In blocks of 64, the three TF32 products for one in float32 spill registers on sm_80."""
    return 32 if x.dtype == torch.float32 and 65536 < configs.describe(x.device).shared < 200_000 else WIDEST


def _at_once(x: Tensor) -> int:
    """Slots per program. Four have ten blocks of sums, which need the registers and matrix units of sm_90."""
    return 4 if x.dtype.itemsize == 2 and configs.describe(x.device).shared >= 200_000 else 2


def _groups(slots: tuple[Slot, ...], at_once: int) -> Iterator[tuple[Slot, ...]]:
    """Groups of at most `at_once` slots, such that every pair of slots is in at least one group."""
    half = at_once // 2
    parts = [slots[first : first + half] for first in range(0, len(slots), half)]
    if len(parts) == 1:
        yield slots
    for one, other in combinations(parts, 2):
        yield *one, *other


def _block(channels: int) -> int:
    return min(WIDEST, channel_block(channels))


def blocks_of(grid: Grid) -> dict[str, Any]:
    """The kernels' constants that depend only on the grid."""
    return {"SIDE_H": grid.height, "SIDE_W": grid.width, "ROWS": grid.rows, "COLUMNS": grid.columns}


def _of_slots(t: Tiling, grid: Grid, widest: int, size: int, slots: tuple[Slot, ...], splits: int) -> dict[str, Any]:
    """Constants of the kernels that take maps slot by slot."""
    channels = t.size[1]
    block_c = min(widest, channel_block(channels))
    constants = {
        **blocks_of(grid),
        "C": channels,
        "SIZE": size,
        "SPLITS": splits,
        "ACC": accumulator(t.dtype),
        "PRECISION": t.precision,
        "BLOCK_H": t.config.height,
        "BLOCK_W": t.config.width,
        "BLOCK_C": block_c,
        "STAGES": t.config.stages,
    }
    for i in SLOTS:
        j, first = slots[i] if i < len(slots) else (0, 0)
        constants |= {f"o_c{i}": first, f"o_r{i}": j * channels + first}
    return constants


def _tiling(kernel: str, x: Tensor, grid: Grid) -> Tiling:
    return within(tiling(kernel, x), grid)._replace(precision=matrix_precision(x))


def matrix_precision(x: Tensor) -> str:
    """As `precision`, but by PyTorch's setting for matrix products, which the formula uses.

    Float32 products are three TF32 products on NVIDIA GPUs, since without matrix units blocks this large would spill.
    """
    if x.dtype != torch.float32:
        return "ieee"
    if torch.backends.cuda.matmul.fp32_precision == "tf32" and configs.has_tf32(x.device):
        return "tf32"
    return "tf32x3" if torch.version.hip is None and configs.describe(x.device).shared > 65536 else "ieee"


def _splits(t: Tiling, grid: Grid, sums: int) -> int:
    """Number of partial sums of each of an image's `sums`, such that all of them take about as many programs as there
    are multiprocessors: a few more would take twice as long. It must not depend on the batch, so that an image's bits
    do not either."""
    tiles_of_block = cdiv(grid.height, t.config.height) * cdiv(grid.width, t.config.width)
    return max(1, min(t.config.splits // sums, cdiv(tiles_of_block, 8)))


def within(t: Tiling, grid: Grid) -> Tiling:
    """The tiling with tiles small enough that none spans two blocks; `unsupported_reason` ensures 16 x 16 is
    possible."""
    if grid.blocks == 1:
        return t
    height, width = t.config.height, t.config.width
    while grid.height % height:
        height //= 2
    while grid.width % width:
        width //= 2
    return t._replace(config=t.config._replace(height=height, width=width))
