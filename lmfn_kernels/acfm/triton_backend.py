"""ACFM on Triton kernels; same functions as `torch_backend.py`, on images that `layout` returned."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lmfn_kernels.acfm import kernels
from lmfn_kernels.alfm.triton_backend import (
    MAPS,
    blocks_of,
    fold_into_weight,
    fold_into_weight_backward,
    gram,
    layout,
    matrix_arithmetic,
    mix,
    mix_weights,
    products,
    within,
)
from lmfn_kernels.alfm.windows import Grid
from lmfn_kernels.runtime.configs import Config, config
from lmfn_kernels.runtime.launch import arithmetic, block, empty, partial, pixels, run, tiles, total

__all__ = [
    "fold_into_weight", "fold_into_weight_backward", "gate", "gate_backward", "gram", "layout", "merge", "mix",
    "products",
]  # fmt: skip

SUMS = 32  # the 14 or 28 weights and alpha


def gate(x: Tensor, add: Tensor | None, alpha: Tensor, weights: Sequence[Tensor]) -> Tensor:
    out = empty(x, *x.shape)
    c = config("channel_gate", x)
    n = block(x.shape[1])
    run(
        kernels.channel_gate_kernel,
        x,
        (tiles(x, c),),
        c,
        t_x=pixels(x, c, n),
        t_add=pixels(add, c, n),
        t_out=pixels(out, c, n),
        p_alpha=alpha,
        **_weights(weights),
        **_size(x, c),
    )
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
    out, kept = empty(x, *x.shape), empty(x, *x.shape) if save else None
    c = within(config("merge", x), grid)
    n = block(x.shape[1])
    run(
        kernels.merge_kernel,
        x,
        (tiles(x, c),),
        c,
        t_x=pixels(x, c, n),
        **{f"t_f{j}": pixels(maps[j] if j < len(maps) else None, c, n) for j in MAPS},
        t_w=mix_weights(matrix.mT, len(maps), 1, x.dtype, n, n),
        p_mix_bias=bias,
        t_added=pixels(kept, c, n),
        t_out=pixels(out, c, n),
        p_alpha=alpha,
        **_weights(weights),
        **blocks_of(grid),
        LAYERS=len(maps),
        CHANNELS=x.shape[1],
        SLOPE=slope,
        MIX_PRECISION=matrix_arithmetic(x)["PRECISION"],
        BLOCK_C=n,
        **_size(x, c),
    )
    return out, kept


def gate_backward(
    g: Tensor, x: Tensor, alpha: Tensor, weights: Sequence[Tensor]
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Gradients of x, of alpha, and of the weights."""
    n = block(x.shape[1])
    dx, e = empty(x, *x.shape), empty(x, *x.shape)
    c = config("channel_gate_backward", x)
    splits = min(c.splits, tiles(x, c))
    sums = partial(x, splits, (SUMS,))
    run(
        kernels.channel_gate_backward_kernel,
        x,
        (splits,),
        c,
        t_g=pixels(g, c, n),
        t_x=pixels(x, c, n),
        t_dx=pixels(dx, c, n),
        t_e=pixels(e, c, n),
        p_alpha=alpha,
        **_weights(weights),
        p_sums=sums,
        B=x.shape[0],
        SPLITS=splits,
        SUMS=SUMS,
        **_size(x, c),
    )
    c = config("channel_gate", x)
    run(
        kernels.channel_gate_input_kernel,
        x,
        (tiles(x, c),),
        c,
        t_e=pixels(e, c, n),
        t_dx=pixels(dx, c, n),
        p_spatial=weights[0],
        MAPS=_maps(weights),
        **_size(x, c),
    )
    sizes = [weight.numel() for weight in (*weights, alpha)]
    # Their own memory, as an op's results must have.
    *found, dalpha = (gradient.clone() for gradient in total(sums)[: sum(sizes)].split(sizes))
    return dx, dalpha, found


def _maps(weights: Sequence[Tensor]) -> int:
    """Maps that the spatial convolution gives for a channel."""
    return 3 if len(weights) == 2 else 1


def _weights(weights: Sequence[Tensor]) -> dict[str, Any]:
    spatial, *middle, bias = weights
    spatial_bias, channel = middle or (None, None)
    return {
        "p_spatial": spatial,
        "p_spatial_bias": spatial_bias,
        "p_channel": channel,
        "p_bias": bias,
        "MAPS": _maps(weights),
    }


def _size(x: Tensor, c: Config) -> dict[str, Any]:
    return {"H": x.shape[2], "W": x.shape[3], "C": x.shape[1], "BLOCK_H": c.height, "BLOCK_W": c.width, **arithmetic(x)}
