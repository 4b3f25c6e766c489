"""ALFM on Triton kernels; same functions as `torch_backend.py`, on maps that `layout` returned."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import torch
import triton
from torch import Tensor

from lmfn_kernels.alfm import kernels
from lmfn_kernels.alfm.attention_matrix import layers
from lmfn_kernels.alfm.reference import SHORTEST
from lmfn_kernels.alfm.windows import Grid, windows_from_quarters
from lmfn_kernels.runtime import configs
from lmfn_kernels.runtime.configs import Config, config
from lmfn_kernels.runtime.gradients import PendingMask
from lmfn_kernels.runtime.launch import (
    arithmetic,
    block,
    empty,
    layout,
    partial,
    pixels,
    run,
    tiles,
    total,
    weights,
)
from lmfn_kernels.runtime.layout import pitch

__all__ = [
    "fold_into_weight",
    "fold_into_weight_backward",
    "gram",
    "layout",
    "matrix_arithmetic",
    "mix",
    "mix_weights",
    "products",
]

WIDEST = 64  # channels in a block
MAPS = range(8)
SLOTS = range(4)
SMALL = Config(warps=4)  # for matrices of NC x NC, which do not grow with the image

Slot = tuple[int, int]
"""Which map, and the first channel."""


def gram(maps: Sequence[Tensor], by_layer: bool, grid: Grid) -> Tensor:
    """F F^T of every block: [B * blocks, NC, NC] or, of whole layers, [B * blocks, N, N]."""
    x, size = maps[0], len(maps) * maps[0].shape[1]
    c = within(config("gram", x), grid)
    splits, blocks = _splits(grid, c), x.shape[0] * grid.blocks
    out = partial(x, splits, (blocks, size, size))
    for slots in _groups(_slots(maps), _at_once(x)):
        run(
            kernels.gram_kernel,
            x,
            (splits, blocks),
            c,
            p_out=out,
            **_filled(maps, slots, c),
            **_common(maps, c, grid, splits),
        )
    found = total(out)
    return layers(found, len(maps)) if by_layer else found


def products(gradient: PendingMask, maps: Sequence[Tensor], grid: Grid) -> tuple[Tensor, Tensor]:
    """G F^T of every window [B * windows, O, NC], with the pixels' shares of it, and the sum of G [O]."""
    g, by, slope = gradient
    x, o, size = maps[0], g.shape[1], len(maps) * maps[0].shape[1]
    block_g = _block(o)
    c = within(config("product", x), grid)
    # Where there are windows, a block has a sum for each of the four that it may be in.
    splits, parts = _splits(grid, c), x.shape[0] * (1 if grid.blocks == 1 else 4 * grid.blocks)
    out, sums = partial(x, splits, (parts, o, size)), partial(x, splits, (parts, o))
    slots, n = _slots(maps), _at_once(x)
    for first in range(0, len(slots), n):
        run(
            kernels.product_kernel,
            x,
            (splits, parts, triton.cdiv(o, block_g)),
            c,
            t_g=pixels(g, c, block_g),
            t_by=pixels(by, c, block_g),
            p_out=out,
            p_sum=sums,
            G=o,
            WINDOWED=grid.blocks > 1,
            SLOPE=slope,
            BLOCK_G=block_g,
            **_filled(maps, slots[first : first + n], c),
            **_common(maps, c, grid, splits),
        )
    found = total(out)
    return found if grid.blocks == 1 else windows_from_quarters(found, grid), total(sums).sum(0)


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
    """As many images: the maps, or with a gradient it and the maps, times matrices, plus bias, through a leaky ReLU."""
    g, by, by_slope = gradient or (None, None, 1.0)
    x = maps[0] if maps else g
    assert x is not None
    of_gradient, of_maps = (window_matrix, block_matrix) if gradient else (None, block_matrix)
    if gradient is None and window_matrix is not None:
        of_maps = window_matrix
    sized = of_gradient if of_maps is None else of_maps
    assert sized is not None
    b, n, of_g = x.shape[0], sized.shape[2] // outputs, 0 if g is None else g.shape[1]
    channels = maps[0].shape[1] if maps else 1
    block_k, block_g, block_n = _block(channels), _block(of_g or 1), _block(n)
    c = within(config("mix", x), grid)
    out = [empty(x, b, n, *x.shape[2:]) for _ in range(outputs)]
    run(
        kernels.mix_kernel,
        x,
        (tiles(x, c) * outputs, triton.cdiv(n, block_n)),
        c,
        t_g=pixels(g, c, block_g),
        t_by=pixels(by, c, block_g),
        **{f"t_x{j}": pixels(maps[j] if j < len(maps) else None, c, block_k) for j in MAPS},
        t_wg=None if of_gradient is None else mix_weights(of_gradient, 1, outputs, x.dtype, block_g, block_n),
        t_w=None if of_maps is None else mix_weights(of_maps, len(maps), outputs, x.dtype, block_k, block_n),
        p_bias=bias,
        **{f"t_out{j}": pixels(out[j] if j < outputs else None, c, block_n) for j in MAPS},
        H=x.shape[2],
        W=x.shape[3],
        N=n,
        OUTPUTS=outputs,
        MAPS=len(maps),
        C=channels,
        G=of_g,
        WINDOWED_MAPS=of_maps is window_matrix,
        **blocks_of(grid),
        SLOPE=slope,
        BY_SLOPE=by_slope,
        BLOCK_H=c.height,
        BLOCK_W=c.width,
        BLOCK_K=block_k,
        BLOCK_G=block_g,
        BLOCK_N=block_n,
        **matrix_arithmetic(x),
    )
    return out


def fold_into_weight(gram: Tensor, theta: Tensor, weight: Tensor, temperature: Tensor | None, by_layer: bool) -> Tensor:
    """P [B, O, NC], as in `attention_matrix.py`."""
    return _folded(_matrix(weight), _attention(gram, temperature, by_layer), theta, back=False)


def fold_into_weight_backward(
    dp: Tensor, gram: Tensor, theta: Tensor, weight: Tensor, temperature: Tensor | None, by_layer: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of E, theta, the weight and the temperature, as in `attention_matrix.py`."""
    (b, r, _), w, m = gram.shape, _matrix(weight), _attention(gram, temperature, by_layer)
    dweight = torch.empty_like(weight).copy_(_folded(dp, m, theta, back=True).sum(0).view(weight.shape))
    de = torch.empty_like(gram)
    dtheta, dtemperature = partial(gram, b * r, (1,)), partial(gram, b * r, (1,))
    of_row = _of_row(gram)
    run(
        kernels.attention_backward_kernel,
        gram,
        (r, b),
        SMALL,
        p_dp=dp,
        p_w=w,
        p_m=m,
        p_e=gram,
        p_theta=theta,
        p_temperature=temperature,
        p_de=de,
        p_dtheta=dtheta,
        p_dtemperature=dtemperature,
        BY_LAYER=by_layer,
        BLOCK_K=8192 // of_row["BLOCK_R"],
        **_as_rows(w, gram),
        **of_row,
    )
    if temperature is None:
        return de, total(dtheta), dweight, None
    run(kernels.length_backward_kernel, gram, (r, b), SMALL, p_e=gram, p_de=de, R=r, **of_row)
    return de, total(dtheta), dweight, total(dtemperature)


def _attention(gram: Tensor, temperature: Tensor | None, by_layer: bool) -> Tensor:
    out, (b, r, _) = torch.empty_like(gram), gram.shape
    arguments = {"p_e": gram, "p_temperature": temperature, "p_out": out, "R": r, "BY_LAYER": by_layer}
    run(kernels.attention_kernel, gram, (r, b), SMALL, **arguments, **_of_row(gram))
    return out


def _folded(x: Tensor, m: Tensor, theta: Tensor, *, back: bool) -> Tensor:
    """X (theta M + I), or with `back` X (theta M + I)^T, of [B, O, NC] or, for all images the same, [O, NC]."""
    sizes, block_k, block_r = _as_rows(x, m), 16, 32
    out = torch.empty((m.shape[0], *x.shape[-2:]), dtype=m.dtype, device=m.device)
    run(
        kernels.fold_kernel,
        m,
        (triton.cdiv(sizes["ROWS"], block_k), triton.cdiv(sizes["R"], block_r), m.shape[0]),
        SMALL,
        p_x=x,
        p_m=m,
        p_theta=theta,
        p_out=out,
        STEP=x[0].numel() if x.ndim == 3 else 0,
        BACK=back,
        BLOCK_K=block_k,
        BLOCK_R=block_r,
        **sizes,
        **matrix_arithmetic(m),
    )
    return out


def _matrix(weight: Tensor) -> Tensor:
    return weight.flatten(1).contiguous()


def _as_rows(x: Tensor, m: Tensor) -> dict[str, int]:
    """How `fold_kernel` takes a matrix [..., O, NC], given M or E."""
    (o, size), r = x.shape[-2:], m.shape[1]
    return {"ROWS": o * (size // r), "R": r, "C": size // r, "SIZE": size}


def _of_row(gram: Tensor) -> dict[str, Any]:
    return {"BLOCK_R": block(gram.shape[1]), "SHORTEST": SHORTEST}


def mix_weights(matrix: Tensor, maps: int, outputs: int, dtype: torch.dtype, rows: int, columns: int) -> Any:
    """The blocks of `matrix` [B, maps * K, outputs * N] as matrices [K, N], image by image, output by output."""
    parts = matrix.unflatten(2, (outputs, -1)).unflatten(1, (maps, -1)).permute(0, 3, 1, 2, 4).flatten(0, 2)
    s = pitch(parts.shape[2], dtype)
    strides = (parts.shape[1] * s, s, 1)
    return weights(
        torch.empty_strided(parts.shape, strides, dtype=dtype, device=matrix.device).copy_(parts), rows, columns
    )


def _slots(maps: Sequence[Tensor]) -> list[Slot]:
    return [(j, first) for j in range(len(maps)) for first in range(0, maps[0].shape[1], _widest(maps[0]))]


def _widest(x: Tensor) -> int:
    """Channels in a slot: the three TF32 products that make up one of float32 spill on sm_80 in blocks of 64."""
    return 32 if x.dtype == torch.float32 and 65536 < configs.describe(x.device)[1] < 200_000 else WIDEST


def _at_once(x: Tensor) -> int:
    """Slots that one program holds: ten blocks of sums need the registers and the matrix units of sm_90."""
    return 4 if x.dtype.itemsize == 2 and configs.describe(x.device)[1] >= 200_000 else 2


def _groups(slots: list[Slot], at_once: int) -> Iterator[list[Slot]]:
    """Groups in which every two slots meet at least once."""
    half = at_once // 2
    parts = [slots[first : first + half] for first in range(0, len(slots), half)]
    if len(parts) == 1:
        yield slots
    for one, other in combinations(parts, 2):
        yield [*one, *other]


def _filled(maps: Sequence[Tensor], slots: list[Slot], c: Config) -> dict[str, Any]:
    """The slots' arguments; those that stay empty have no descriptor."""
    channels = maps[0].shape[1]
    found: dict[str, Any] = {}
    for i in SLOTS:
        j, first = slots[i] if i < len(slots) else (0, 0)
        image = maps[j] if i < len(slots) else None
        found |= {
            f"t_x{i}": pixels(image, c, min(_widest(maps[0]), block(channels))),
            f"o_c{i}": first,
            f"o_r{i}": j * channels + first,
        }
    return found


def _block(channels: int) -> int:
    return min(WIDEST, block(channels))


def blocks_of(grid: Grid) -> dict[str, Any]:
    return {
        "SIDE_H": grid.height,
        "SIDE_W": grid.width,
        "ROWS": grid.rows,
        "COLUMNS": grid.columns,
        "WINDOWED": grid.blocks > 1,
    }


def _common(maps: Sequence[Tensor], c: Config, grid: Grid, splits: int) -> dict[str, Any]:
    x = maps[0]
    return {
        "SIDE_H": grid.height,
        "SIDE_W": grid.width,
        "ROWS": grid.rows,
        "COLUMNS": grid.columns,
        "C": x.shape[1],
        "SIZE": len(maps) * x.shape[1],
        "SPLITS": splits,
        "BLOCK_H": c.height,
        "BLOCK_W": c.width,
        "BLOCK_C": min(_widest(x), block(x.shape[1])),
        "STAGES": c.stages,
        **matrix_arithmetic(x),
    }


def matrix_arithmetic(x: Tensor) -> dict[str, Any]:
    """As `arithmetic`, but PyTorch's setting for matrix products decides on TF32: that is what the formula has.

    Full float32 on NVIDIA is three TF32 products: blocks this large spill where they are done without matrix units.
    """
    full = "tf32x3" if torch.version.hip is None and configs.describe(x.device)[1] > 65536 else "ieee"
    tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
    return arithmetic(x) | {"PRECISION": "ieee" if x.dtype != torch.float32 else "tf32" if tf32 else full}


def _splits(grid: Grid, c: Config) -> int:
    """Partial sums of a block: not a matter of the batch, so an image's result is not one either."""
    tiles_of_block = -(-grid.height // c.height) * -(-grid.width // c.width)
    return min(c.splits, -(-tiles_of_block // 8))


def within(c: Config, grid: Grid) -> Config:
    """The config with tiles of which none lies in two blocks; `unsupported_reason` leaves 16 x 16 pixels at least."""
    if grid.blocks == 1:
        return c
    height, width = c.height, c.width
    while grid.height % height:
        height //= 2
    while grid.width % width:
        width //= 2
    return c._replace(height=height, width=width)
