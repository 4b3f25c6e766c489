"""Convolution by Triton kernels; the same functions as `torch_backend.py`, on images from `as_kernel_image`."""

from collections.abc import Sequence
from functools import cache, lru_cache
from importlib import import_module

import torch
import triton
from torch import Tensor

from lmfn_kernels.conv import kernels
from lmfn_kernels.runtime.gradients import PartialSums, PendingMask
from lmfn_kernels.runtime.launch import (
    PARITIES,
    PLANS,
    ROWS,
    Plan,
    Tiling,
    as_kernel_image,
    as_pending,
    cdiv,
    channel_block,
    empty_image,
    even_odd_views,
    launch,
    padded_image,
    partial_sums,
    tiling,
    weight_as_taps,
)
from lmfn_kernels.runtime.torch_private import FakeTensor
from lmfn_kernels.runtime.trials import in_use
from lmfn_kernels.weights import Conv, ScaledConv

__all__ = [
    "as_kernel_image",
    "conv",
    "convs",
    "input_gradient",
    "input_gradients",
    "launch_conv",
    "launch_scaled",
    "mask_gradient",
    "materialize",
    "of_taps",
    "scaled_conv",
    "weight_gradient",
    "weight_gradients",
    "weight_gradients_of_convs",
]


def mask_gradient(g: Tensor, y: Tensor, slope: float) -> Tensor | PendingMask:
    """The gradient of an activation's input; the kernel that loads it applies the mask."""
    return g if slope == 1 else PendingMask(g, y, slope)


def materialize(e: Tensor | PendingMask) -> Tensor:
    g, activation_output, slope = as_pending(e)
    if activation_output is None:
        return g
    return empty_image(g, *g.shape).copy_(torch.where(activation_output > 0, g, g * slope if slope else 0.0))


def launch_conv(
    out: Tensor,
    x: Tensor | PendingMask,
    weight: Tensor,
    *,
    mode: str,
    padding: int,
    bias: Tensor | None = None,
    residual: Tensor | PendingMask | None = None,
    extra: tuple[Tensor, Tensor] | None = None,
    mask: Tensor | None = None,
    mask_slope: float = 1.0,
    slope: float = 1.0,
    distil: tuple[Tensor, Tensor, Tensor] | None = None,
) -> None:
    """Launch `conv_kernel`, which writes `out`, in mode "same" or "back".

    `weight` is [taps, inputs, outputs], `extra` is (`t_z`, `t_dw`), `distil` is (weight, bias, second output). The
    others are described in `conv_kernel`.
    """
    # Without what is None: `ring_kernel`, which may be launched instead, does not have all of these arguments.
    image, activation_output, act_slope = as_pending(x)
    tensors: dict[str, Tensor | None] = {"t_x": image}
    d = 1
    if activation_output is not None:
        tensors["t_act"] = activation_output
    if residual is not None:
        tensors["t_residual"], residual_act, _ = as_pending(residual)
        if residual_act is not None:
            tensors["t_residual_act"] = residual_act
    if extra is not None:
        tensors["t_z"], tensors["t_dw"] = extra
        d = extra[0].shape[1]
    if mask is not None:
        tensors["t_mask"] = mask
    if distil is not None:
        tensors["t_dw"], tensors["p_dbias"], tensors["t_d"] = distil
        d = distil[2].shape[1]
    slopes = slope, act_slope, mask_slope
    masked = "t_act" in tensors or "t_residual_act" in tensors  # TMA cannot apply a mask as it loads
    of_input = "t_dw" not in tensors or tensors.get("t_residual") is image
    has_run = mode == "same" or in_use("ring_input_gradient")
    programs = ring_programs(out.device) if has_run and of_input and not masked else 0
    key = tiling("conv", out), weight.shape, d, mode, padding, slopes, programs, in_use("ring_order")
    launch(out, _convolution, key, t_w=weight, p_bias=bias, t_out=out, **tensors)


@lru_cache(PLANS)
def _convolution(
    t: Tiling,
    weight: Sequence[int],
    d: int,
    mode: str,
    padding: int,
    slopes: tuple[float, float, float],
    programs: int,
    ordered: bool,
) -> Plan:
    """`t` is the tiling of the output; `d` is the channels of the extra image or of the second output; `programs` is 0
    if `ring_kernel` cannot do what is asked for."""
    taps, k, n = weight if mode in ("same", "down") else (weight[0], weight[2], weight[1])
    if programs and _fits_ring(mode, taps, k, n, t.dtype):
        return _ring((t.size,), n, d, mode, padding, slopes[0], slopes[2], programs, ordered)
    block_k, block_n, block_d = min(64, channel_block(k)), min(64, channel_block(n)), channel_block(d)
    return Plan(
        kernels.conv_kernel,
        (t.tiles, cdiv(n, block_n)),
        t.config.warps,
        {
            **{f"t_x{place}": t.pixels(block_k) for place in PARITIES},
            "t_act": t.pixels(block_k),
            "t_w": (1, block_k, block_n) if mode in ("same", "down") else (1, block_n, block_k),
            **{name: t.pixels(block_n) for name in ("t_residual", "t_residual_act", "t_mask", "t_out")},
            **dict.fromkeys(("t_z", "t_d"), t.pixels(block_d)),
            "t_dw": (1, block_n, block_d),
        },
        N=n,
        D=d,
        K=k,
        TAPS=1 if taps == 1 else 3,
        MODE=mode,
        PADDING=padding,
        SLOPE=slopes[0],
        ACT_SLOPE=slopes[1],
        MASK_SLOPE=slopes[2],
        BLOCK_K=block_k,
        BLOCK_N=block_n,
        BLOCK_D=block_d,
        STAGES=t.config.stages,
        **t.constants(),
    )


RELEASE = ".".join(triton.__version__.split(".")[:2])


def has_ring() -> bool:
    """Whether `ring_kernel` is used with this Triton: with a release with which it has run, or to try one.

    Gluon, its language, changes between releases (`runtime/gluon_private.py`).
    """
    return RELEASE == "3.6" or (RELEASE in ("3.7", "3.8", "3.9") and in_use("newer_triton"))


def ring_programs(device: torch.device) -> int:
    """Programs of `ring_kernel` that a device runs at once, one per multiprocessor; 0 where it runs `conv_kernel`."""
    return _multiprocessors_of_hopper(device) if has_ring() else 0


@cache
def _multiprocessors_of_hopper(device: torch.device) -> int:
    """0 for other devices."""
    if device.type != "cuda" or torch.version.cuda is None:
        return 0
    properties = torch.cuda.get_device_properties(device)
    return int(properties.multi_processor_count) if (properties.major, properties.minor) == (9, 0) else 0


def _fits_ring(mode: str, taps: int, k: int, n: int, dtype: torch.dtype) -> bool:
    """Whether `ring_kernel` computes a convolution from k to n channels."""
    kinds = ("same", 64, 64), ("back", 64, 64), ("back", 32, 64)
    return (mode, channel_block(k), channel_block(n)) in kinds and taps == 9 and dtype.itemsize == 2


def shares(tiles: Sequence[int], programs: int) -> list[int]:
    """How many of the programs each map gets, given its tiles: those with which the last one is done earliest."""
    found = [1] * len(tiles)
    while sum(found) < programs:
        i = max(range(len(tiles)), key=lambda i: tiles[i] / found[i])
        if found[i] >= tiles[i]:
            break
        found[i] += 1
    return found


@lru_cache(PLANS)
def _ring(
    sizes: Sequence[Sequence[int]],
    n: int,
    d: int,
    mode: str,
    padding: int,
    slope: float,
    mask_slope: float,
    programs: int,
    ordered: bool,
) -> Plan:
    """`ring_kernel` for one to three outputs [B, n, H, W] of these sizes; d is the channels of a second output of the
    only one, if there is one."""
    ring = import_module("lmfn_kernels.conv.gluon_kernels")  # only here, as not every Triton has Gluon
    found = []
    for rows, pitch in ring.TILES if mode == "back" else ring.TILES[:1]:
        tiles = [b * cdiv(h, rows) * cdiv(w, pitch - 2) for b, _, h, w in sizes]
        split = shares(tiles, programs)
        found.append((max(map(cdiv, tiles, split)), split, rows, pitch))
    _, split, rows, pitch = min(found, key=lambda found: found[0])
    block_d, maps, axes = max(32, channel_block(d)), ["", "2", "3"][: len(sizes)], {"B": 0, "H": 2, "W": 3}
    of_one = {
        "t_x": (1, 2, pitch, ring.CHANNELS),
        **dict.fromkeys(("t_residual", "t_mask"), (1, rows, pitch, ring.CHANNELS)),
        "t_w": (1, ring.CHANNELS, ring.CHANNELS),
        "t_out": (1, 1, pitch // 2, ring.CHANNELS),
    }
    return Plan(
        ring.ring_kernel,
        (sum(split),),
        4,
        {
            **{f"{name}{i}": block for name, block in of_one.items() for i in maps},
            "t_z": (1, rows, pitch, block_d),
            "t_dw": (1, ring.CHANNELS, ring.CHANNELS if mode == "same" else block_d),
            "t_d": of_one["t_out"],
        },
        ring.descriptor,
        *("t_w", "t_w2", "t_w3", "t_dw"),
        **{f"{name}{i}": size[axis] for i, size in zip(maps, sizes, strict=True) for name, axis in axes.items()},
        FIRST2=split[0] if len(sizes) > 1 else None,
        FIRST3=sum(split[:2]) if len(sizes) > 1 else None,
        N=n,
        D=d,
        MODE=mode,
        PADDING=padding,
        SLOPE=slope,
        MASK_SLOPE=mask_slope,
        BLOCK_H=rows,
        BLOCK_W=pitch - 2,
        ORDERED=ordered,
    )


def _views(x: Tensor, stride: int) -> list[Tensor]:
    """The images of an input's descriptors. An empty view, e.g. the odd rows of a single row, becomes a zero pixel."""
    if stride == 1:
        return [x]
    views = even_odd_views(x)
    return [v if isinstance(v, FakeTensor) or v.numel() else empty_image(x, 1, x.shape[1], 1, 1).zero_() for v in views]


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    slope: float = 1.0,
) -> Tensor:
    height, width = ((size + 2 * padding - weight.shape[2]) // stride + 1 for size in x.shape[2:])
    out, w = padded_image(x, x.shape[0], weight.shape[0], height, width), weight_as_taps(weight)
    views = (
        {"t_x": x} if stride == 1 else {f"t_x{i}": view for i, view in zip(PARITIES, _views(x, stride), strict=True)}
    )
    mode = "same" if stride == 1 else "down"
    programs = ring_programs(out.device)
    t = tiling("conv" if stride == 1 else "conv_down", out)
    key = t, w.shape, 1, mode, padding, (slope, 1.0, 1.0), programs, in_use("ring_order")
    launch(out, _convolution, key, t_w=w, p_bias=bias, t_residual=residual, t_out=out, **views)
    return out


def convs(maps: Sequence[tuple[Tensor, Conv, Tensor | None]], slope: float) -> list[Tensor]:
    """As `conv` with padding 1, of one to three maps, each given by x, the convolution and a residual; on Hopper in one
    launch."""
    x, (weight, _), _ = maps[0]
    (n, k), programs = weight.shape[:2], ring_programs(x.device) if in_use("ring_scales") else 0
    if len(maps) == 1 or not programs or not _fits_ring("same", weight[0, 0].numel(), k, n, x.dtype):
        return [conv(x, *of_x, residual, padding=1, slope=slope) for x, of_x, residual in maps]
    outs = [padded_image(x, x.shape[0], n, *x.shape[2:]) for x, _, _ in maps]
    _launch_ring_of_maps(
        outs,
        "same",
        (slope, 1.0),
        programs,
        [
            {"t_x": x, "t_w": weight_as_taps(weight), "p_bias": bias, "t_residual": residual}
            for x, (weight, bias), residual in maps
        ],
    )
    return outs


def input_gradients(maps: Sequence[tuple[Tensor, Tensor, Tensor, Tensor | None]], mask: float = 1.0) -> list[Tensor]:
    """As `input_gradient` with padding 1, of one to three maps, each given by e, weight, x and `add`; on Hopper in one
    launch."""
    _, weight, x, _ = maps[0]
    used = in_use("ring_scales") and in_use("ring_input_gradient")
    (n, k), programs = weight.shape[:2], ring_programs(x.device) if used else 0
    if len(maps) == 1 or not programs or not _fits_ring("back", weight[0, 0].numel(), n, k, x.dtype):
        return [input_gradient(e, weight, x, padding=1, mask=mask, add=add) for e, weight, x, add in maps]
    outs = [padded_image(x, *x.shape) for _, _, x, _ in maps]
    _launch_ring_of_maps(
        outs,
        "back",
        (1.0, mask),
        programs,
        [
            {"t_x": e, "t_w": weight_as_taps(weight), "t_residual": add, "t_mask": None if mask == 1 else x}
            for e, weight, x, add in maps
        ],
    )
    return outs


def _launch_ring_of_maps(
    outs: Sequence[Tensor],
    mode: str,
    slopes: tuple[float, float],
    programs: int,
    maps: Sequence[dict[str, Tensor | None]],
) -> None:
    sizes = tuple(tuple(out.shape) for out in outs)
    key = sizes, sizes[0][1], 1, mode, 1, *slopes, programs, in_use("ring_order")
    tensors = {
        f"{name}{i if i > 1 else ''}": tensor
        for i, (out, of_map) in enumerate(zip(outs, maps, strict=True), 1)
        for name, tensor in {**of_map, "t_out": out}.items()
    }
    launch(outs[0], _ring, key, **tensors)


def scaled_conv(x: Tensor, conv: ScaledConv, residual: Tensor | None, *, slope: float, dtype: torch.dtype) -> Tensor:
    b, _, h, w = x.shape
    out = padded_image(x, b, len(conv.bias), h, w, dtype=dtype)
    weight, factor, bias = conv
    launch_scaled(out, 1, slope, t_x=x, t_w=weight, p_factor=factor, p_bias=bias, t_residual=residual)
    return out


def launch_scaled(out: Tensor, d: int, slope: float, **tensors: Tensor | None) -> None:
    """Launch `ring_kernel`, which writes `out`, with d channels of its second output, if there is one."""
    key = (tuple(out.shape),), out.shape[1], d, "same", 1, slope, 1.0, ring_programs(out.device), in_use("ring_order")
    launch(out, _ring, key, t_out=out, **tensors)


def input_gradient(
    e: Tensor | PendingMask,
    weight: Tensor,
    x: Tensor,
    *,
    stride: int = 1,
    padding: int = 0,
    residual: bool = False,
    extra: tuple[Tensor, Tensor] | None = None,
    mask: float = 1.0,
    add: Tensor | None = None,
) -> Tensor:
    """The gradient of a convolution's input `x`; the arguments are described in `ConvBackend`."""
    e = as_pending(e)
    taps = weight_as_taps(weight)
    if stride == 1:
        assert not residual or add is None, "not implemented together, as no op needs it"
        dx = padded_image(x, *x.shape)
        launch_conv(
            dx,
            e,
            taps,
            mode="back",
            padding=weight.shape[2] - 1 - padding,
            residual=e if residual else add,
            extra=None if extra is None else (extra[0], weight_as_taps(extra[1])),
            mask=None if mask == 1 else x,
            mask_slope=mask,
        )
        return dx
    assert (residual, extra, mask) == (False, None, 1), "not implemented for stride 2, as no op needs it"
    dx = empty_image(x, *x.shape)
    images = {"t_dx": dx} if add is None else {"t_dx": dx, "t_add": add}
    views = {
        f"{name}{place}": view if view.numel() else None
        for name, image in images.items()
        for place, view in zip(PARITIES, even_odd_views(image), strict=True)
    }
    key = tiling("stride_2_input_gradient", even_odd_views(dx)[0]), taps.shape, padding, e.slope
    launch(dx, _stride_2_input_gradient, key, t_g=e.gradient, t_act=e.activation_output, t_w=taps, **views)
    return dx


@lru_cache(PLANS)
def _stride_2_input_gradient(t: Tiling, weight: Sequence[int], padding: int, slope: float) -> Plan:
    """`t` is the tiling of the input's even rows and columns."""
    _, n, k = weight
    block_k, block_n = min(64, channel_block(k)), min(64, channel_block(n))
    return Plan(
        kernels.stride_2_input_gradient_kernel,
        (t.tiles, cdiv(n, block_n), 4),
        t.config.warps,
        {
            **dict.fromkeys(("t_g", "t_act"), t.pixels(block_k)),
            **{f"{name}{place}": t.pixels(block_n) for name in ("t_dx", "t_add") for place in PARITIES},
            "t_w": (1, block_n, block_k),
        },
        K=k,
        PADDING=padding,
        ACT_SLOPE=slope,
        BLOCK_K=block_k,
        BLOCK_N=block_n,
        STAGES=t.config.stages,
        **t.constants(),
    )


def weight_gradient(
    e: Tensor | PendingMask, x: Tensor, weight: Tensor, *, stride: int = 1, padding: int = 0
) -> tuple[PartialSums, PartialSums]:
    """The gradients of a convolution's weight and bias, 1x1 or 3x3."""
    g, activation_output, slope = as_pending(e)
    n, k, taps = weight.shape[:3]
    if stride == 1 and taps == 3 and activation_output is None and (programs := _ring_programs_for_pairs(g, k)):
        return _ring_weight_gradients([(g, x)], padding, programs)[0]
    t = tiling("weight_gradient", g)
    most = max(1, ROWS // (taps * taps * k * n))  # the kernel that adds them up counts all of them in 32 bits
    t = t._replace(config=t.config._replace(splits=min(t.config.splits, most)))
    dw, db = partial_sums(g, t.splits, (taps * taps, k, n)), partial_sums(g, t.splits, (n,))
    views = {f"t_x{place}": view for place, view in zip(PARITIES, _views(x, stride), strict=False)}
    key = t, k, 0, taps, stride, padding, slope
    launch(g, _weight_gradient, key, t_g=g, t_act=activation_output, p_dw=dw, p_db=db, **views)
    return of_taps(dw), PartialSums(db)


def weight_gradients(
    stages: Sequence[tuple[Tensor | PendingMask, Tensor | PendingMask, Tensor, Tensor, Tensor]],
) -> list[tuple[tuple[PartialSums, PartialSums], tuple[PartialSums, PartialSums]]]:
    """The gradients of weight and bias of a 3x3 and of a 1x1 convolution of each x, given by e, z, x and both weights:
    on Hopper, in one launch for the former, elsewhere in one for each x."""
    e, _, x, *_ = stages[0]
    if isinstance(e, Tensor) and _ring_programs_for_pairs(e, x.shape[1]):
        of_refine = weight_gradients_of_convs([(as_pending(e).gradient, x, refine) for e, _, x, refine, _ in stages])
        of_distil = [weight_gradient(z, x, distil) for _, z, x, _, distil in stages]
        return list(zip(of_refine, of_distil, strict=True))
    return [_weight_gradients_of_stage(*stage) for stage in stages]


def _weight_gradients_of_stage(
    e: Tensor | PendingMask, z: Tensor | PendingMask, x: Tensor, refine: Tensor, distil: Tensor
) -> tuple[tuple[PartialSums, PartialSums], tuple[PartialSums, PartialSums]]:
    (g, activation_output, slope), (g2, activation_output2, _) = as_pending(e), as_pending(z)
    n, k, n2 = *refine.shape[:2], len(distil)
    t = tiling("weight_gradient", g)
    dw, db = partial_sums(g, t.splits, (9, k, n)), partial_sums(g, t.splits, (n,))
    dw2, db2 = partial_sums(g, t.splits, (1, k, n2)), partial_sums(g, t.splits, (n2,))
    first = {"t_g": g, "t_act": activation_output, "p_dw": dw, "p_db": db}
    second = {"t_g2": g2, "t_act2": activation_output2, "p_dw2": dw2, "p_db2": db2}
    launch(g, _weight_gradient, (t, k, n2, 3, 1, 1, slope), t_x=x, **first, **second)
    return (of_taps(dw), PartialSums(db)), (of_taps(dw2), PartialSums(db2))


def _ring_programs_for_pairs(g: Tensor, k: int) -> int:
    """Programs of `ring_weight_gradient_kernel` for a gradient `g` and k input channels; 0 if it is not used."""
    fits = g.dtype.itemsize == 2 and channel_block(k) == 64 and channel_block(g.shape[1]) in (32, 64)
    return ring_programs(g.device) if in_use("ring_weight_gradient") and fits else 0


def weight_gradients_of_convs(
    convs: Sequence[tuple[Tensor, Tensor, Tensor]],
) -> list[tuple[PartialSums, PartialSums]]:
    """As `weight_gradient`, of at most three 3x3 convolutions with padding 1, each given by e, x and weight; on Hopper,
    in one launch if they have the same size."""
    e, x, _ = convs[0]
    of_one_size = len({(e.shape, x.shape) for e, x, _ in convs}) == 1
    if of_one_size and (programs := _ring_programs_for_pairs(e, x.shape[1])):
        return _ring_weight_gradients([(e, x) for e, x, _ in convs], 1, programs)
    return [weight_gradient(e, x, weight, padding=1) for e, x, weight in convs]


def _ring_weight_gradients(
    pairs: Sequence[tuple[Tensor, Tensor]], padding: int, programs: int
) -> list[tuple[PartialSums, PartialSums]]:
    """Of one to three pairs of g and x, which have the same size."""
    ring = import_module("lmfn_kernels.conv.gluon_kernels")  # only here, as not every Triton has Gluon
    g, x = pairs[0]
    (b, n, h, _), k, w = g.shape, x.shape[1], x.shape[3]
    splits = min(max(1, programs // len(pairs)), b * cdiv(h, ring.PAIRED_ROWS) * cdiv(w, ring.PAIRED_COLUMNS))
    dw, db = (partial_sums(g, len(pairs) * splits, shape) for shape in ((9, n, k), (n,)))
    images = {
        f"t_{name}{i if i > 1 else ''}": image
        for i, pair in enumerate(pairs, 1)
        for name, image in zip("gx", pair, strict=True)
    }
    launch(g, _ring_of_pairs, (len(pairs), splits, b, h, w, k, n, padding), **images, p_dw=dw, p_db=db)
    dw = dw.unflatten(1, (3, 3)).permute(0, 3, 4, 1, 2)
    return [
        (PartialSums(of_w), PartialSums(of_b)) for of_w, of_b in zip(dw.split(splits), db.split(splits), strict=True)
    ]


@lru_cache(PLANS)
def _ring_of_pairs(pairs: int, splits: int, b: int, h: int, w: int, k: int, n: int, padding: int) -> Plan:
    """Each pair has `splits` programs; `h` is the height of the output, `w` the width of the input; `k` and `n` are
    their channels."""
    ring = import_module("lmfn_kernels.conv.gluon_kernels")
    rows, columns = ring.PAIRED_ROWS, ring.PAIRED_COLUMNS
    return Plan(
        ring.ring_weight_gradient_kernel,
        (pairs * splits,),
        4,
        {
            **dict.fromkeys(("t_x", "t_x2", "t_x3"), (1, 2, columns, ring.CHANNELS)),
            **dict.fromkeys(("t_g", "t_g2", "t_g3"), (1, rows, columns, ring.CHANNELS)),
        },
        ring.descriptor,
        B=b,
        H=h,
        W=w,
        K=k,
        N=n,
        CONVS=pairs,
        PADDING=padding,
        BLOCK_H=rows,
        BLOCK_W=columns,
    )


def of_taps(partials: Tensor) -> PartialSums:
    """Partial sums [splits, taps, K, N] of the gradient of a weight [N, K, k, k]."""
    size = 1 if partials.shape[1] == 1 else 3
    return PartialSums(partials.unflatten(1, (size, size)).permute(0, 4, 3, 1, 2))


@lru_cache(PLANS)
def _weight_gradient(t: Tiling, k: int, n2: int, taps: int, stride: int, padding: int, slope: float) -> Plan:
    """`t` is the tiling of the output's gradient; `k` is the number of input channels, `n2` that of the outputs of a
    1x1 convolution of the same input, 0 if there is none."""
    b, n = t.size[:2]
    block_k, block_n = min(64, channel_block(k)), min(64, channel_block(max(n, n2)))
    assert n2 <= block_n, "not implemented, as the fused ops have at most 64 channels"
    return Plan(
        kernels.weight_gradient_kernel,
        (t.splits, taps + (n2 > 0), cdiv(k, block_k) * cdiv(n, block_n)),
        t.config.warps,
        {
            **{name: t.pixels(block_n) for name in ("t_g", "t_act", "t_g2", "t_act2")},
            **{f"t_x{i}": t.pixels(block_k) for i in PARITIES},
        },
        B=b,
        K=k,
        N=n,
        N2=n2,
        SPLITS=t.splits,
        TAPS=taps,
        STRIDE=stride,
        PADDING=padding,
        SLOPE=slope,
        BLOCK_K=block_k,
        BLOCK_N=block_n,
        STAGES=t.config.stages,
        **t.constants(),
    )
