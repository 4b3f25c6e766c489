"""Every public op of this package, in all its forms, as functions of tensors alone, with inputs of any size.

`OPS` is the table from which the tests common to all ops and the benchmarks are made.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lmfn_kernels import (
    Conv,
    Full3D,
    LayerAttention,
    Pseudo3D,
    RFDBWeights,
    channel_gate,
    conv3x3,
    distill_fuse,
    distill_stage,
    esa_gate,
    layer_apply,
    layer_attention,
    layer_gram,
    residual_block,
    residual_blocks,
    rfdb,
    stem,
    upsample_add,
    upsampled_conv3x3,
)
from lmfn_kernels.testing import random


def conv(outputs: int, inputs: int, size: int, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    """Random weight and bias of a convolution, such that its results are about as large as its inputs."""
    weight = random((outputs, inputs, size, size), dtype, device, (inputs * size * size) ** -0.5)
    return [weight, random((outputs,), dtype, device, 0.3)]


def convs(flat: Sequence[Tensor]) -> list[Conv]:
    """Convolutions from their weights and biases in turn."""
    return [Conv(*flat[i : i + 2]) for i in range(0, len(flat), 2)]


def rfdb_inputs(
    b: int, c: int, d: int, f: int, h: int, w: int, dtype: torch.dtype = torch.float64, device: str = "cpu"
) -> list[Tensor]:
    """The input and the weights, in the order of `rfdb_from_flat`'s arguments."""
    shapes = [(d, c, 1)] * 3 + [(c, c, 3)] * 3 + [(d, c, 3), (c, 4 * d, 1), (f, c, 1), (f, f, 1)] + [(f, f, 3)] * 4
    tensors = [random((b, c, h, w), dtype, device)]
    for n, k, size in [*shapes, (c, f, 1)]:
        tensors += conv(n, k, size, dtype, device)
    return tensors


def rfdb_weights(flat: Sequence[Tensor]) -> RFDBWeights:
    """From the tensors of `rfdb_inputs` after the first."""
    d1, d2, d3, r1, r2, r3, *others = convs(flat)
    return RFDBWeights((d1, d2, d3), (r1, r2, r3), *others)


def rfdb_from_flat(x: Tensor, *flat: Tensor, fixed_grid: bool = False) -> Tensor:
    return rfdb(x, rfdb_weights(flat), fixed_grid=fixed_grid)


def stage_inputs(b: int, c: int, d: int, h: int, w: int, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    return [random((b, c, h, w), dtype, device), *conv(d, c, 1, dtype, device), *conv(c, c, 3, dtype, device)]


def stage_from_flat(x: Tensor, *flat: Tensor) -> tuple[Tensor, Tensor]:
    distil, refine = convs(flat)
    return distill_stage(x, distil, refine)


def fuse_inputs(
    b: int, c: int, d: int, f: int, h: int, w: int, dtype: torch.dtype, device: str = "cpu"
) -> list[Tensor]:
    maps = [random((b, n, h, w), dtype, device) for n in (c, d, d, d)]
    return [*maps, *conv(d, c, 3, dtype, device), *conv(c, 4 * d, 1, dtype, device), *conv(f, c, 1, dtype, device)]


def fuse_from_flat(x: Tensor, d1: Tensor, d2: Tensor, d3: Tensor, *flat: Tensor) -> tuple[Tensor, Tensor]:
    last, fuse, squeeze = convs(flat)
    return distill_fuse(x, (d1, d2, d3), last, fuse, squeeze)


def gate_inputs(
    b: int, c: int, f: int, h: int, w: int, low: tuple[int, int], dtype: torch.dtype, device: str = "cpu"
) -> list[Tensor]:
    maps = [random(shape, dtype, device) for shape in ((b, c, h, w), (b, f, h, w), (b, f, *low))]
    return [*maps, *conv(f, f, 1, dtype, device), *conv(c, f, 1, dtype, device)]


def gate_from_flat(y: Tensor, a: Tensor, v: Tensor, *flat: Tensor, fixed_grid: bool = False) -> Tensor:
    return esa_gate(y, a, v, *convs(flat), fixed_grid=fixed_grid)


def conv_inputs(
    b: int, c: int, n: int, h: int, w: int, dtype: torch.dtype, device: str = "cpu", stride: int = 1, padding: int = 1
) -> list[Tensor]:
    low = [(size + 2 * padding - 3) // stride + 1 for size in (h, w)]
    return [random((b, c, h, w), dtype, device), *conv(n, c, 3, dtype, device), random((b, n, *low), dtype, device)]


def attention_inputs(
    b: int, n: int, c: int, o: int, h: int, w: int, dtype: torch.dtype, device: str = "cpu", *, form: str = "channels"
) -> list[Tensor]:
    """n maps, whose rows have a squared length of about 2, theta, weight, bias, and for cosines a temperature.

    `form`: channels, layers, channels-cosine or layers-cosine.
    """
    scale = (2 / (h * w * (c if form.startswith("layers") else 1))) ** 0.5
    maps = [random((b, c, h, w), dtype, device, scale) for _ in range(n)]
    temperature = [random((1,), dtype, device, 0.1) + 2] if form.endswith("cosine") else []
    return [*maps, random((1,), dtype, device), *conv(o, n * c, 1, dtype, device), *temperature]


def attention_from_flat(
    form: str = "channels", slope: float = 0.05, window: int | None = None
) -> Callable[..., Tensor]:
    rows: Any = form.removesuffix("-cosine")

    def call(*tensors: Tensor) -> Tensor:
        n = len(tensors) - (4 if form.endswith("cosine") else 3)
        return layer_attention(tensors[:n], *tensors[n:], rows=rows, slope=slope, window=window)

    return call


GATES: dict[str, type[Pseudo3D] | type[Full3D]] = {"pseudo3d": Pseudo3D, "full3d": Full3D}


def channel_gate_inputs(
    b: int, c: int, h: int, w: int, dtype: torch.dtype, device: str = "cpu", *, form: str = "pseudo3d"
) -> list[Tensor]:
    """x, alpha, the gate's weights, and `add`."""
    x, add = (random((b, c, h, w), dtype, device) for _ in range(2))
    if form == "full3d":
        weights = [random((3, 3, 3), dtype, device, 0.2), random((1,), dtype, device)]
    else:
        weights = [random((3, 3), dtype, device, 0.3), random((1,), dtype, device)]
        weights += [random((size,), dtype, device, 0.2).abs() for size in (3, 1)]
    return [x, random((1,), dtype, device).abs(), *weights, add]


def channel_gate_from_flat(form: str = "pseudo3d") -> Callable[..., Tensor]:
    kind, size = GATES[form], len(GATES[form]._fields)

    def call(x: Tensor, alpha: Tensor, *tensors: Tensor) -> Tensor:
        return channel_gate(x, kind(*tensors[:size]), alpha, *tensors[size:])

    return call


def merge_inputs(
    b: int, n: int, c: int, h: int, w: int, dtype: torch.dtype, device: str = "cpu", *, form: str = "pseudo3d"
) -> list[Tensor]:
    """The tensors of `channel_gate_inputs` without `add`, then those of `attention_inputs` with cosines in its
    place."""
    gate = channel_gate_inputs(b, c, h, w, dtype, device, form=form)[:-1]
    return [*gate, *attention_inputs(b, n, c, c, h, w, dtype, device, form="channels-cosine")]


def merge_from_flat(
    form: str = "pseudo3d", rows: Any = "channels", slope: float = 0.05, window: int | None = None
) -> Callable[..., Tensor]:
    kind, size = GATES[form], len(GATES[form]._fields)

    def call(x: Tensor, alpha: Tensor, *tensors: Tensor) -> Tensor:
        *maps, theta, weight, bias, temperature = tensors[size:]
        attention = LayerAttention(maps, theta, weight, bias, temperature, rows, slope, window)
        return channel_gate(x, kind(*tensors[:size]), alpha, attention)

    return call


def stem_inputs(b: int, c: int, n: int, h: int, w: int, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    """x, the convolutions' weights, and the mean."""
    convs = *conv(c, 3, 3, dtype, device), *conv(n, c, 3, dtype, device)
    return [random((b, 3, h, w), dtype, device), *convs, random((3,), dtype, device)]


def stem_from_flat(padding: int = 1) -> Callable[..., Tensor]:
    def call(x: Tensor, *flat: Tensor) -> Tensor:
        conv0, down = convs(flat[:4])
        return stem(x, conv0, down, padding=padding, mean=flat[4] if flat[4:] else None)

    return call


def block_inputs(b: int, c: int, m: int, h: int, w: int, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    return [random((b, c, h, w), dtype, device), *conv(m, c, 3, dtype, device), *conv(c, m, 3, dtype, device)]


def block_from_flat(**options: Any) -> Callable[..., Tensor]:
    def call(x: Tensor, *flat: Tensor) -> Tensor:
        return residual_block(x, *convs(flat), **options)

    return call


def blocks_inputs(
    b: int, c: int, m: int, sizes: Sequence[tuple[int, int]], dtype: torch.dtype, device: str = "cpu"
) -> list[Tensor]:
    """The tensors of `block_inputs`, for a map of each size."""
    return [tensor for size in sizes for tensor in block_inputs(b, c, m, *size, dtype, device)]


def blocks_from_flat(*flat: Tensor, save_middle: bool = True) -> tuple[Tensor, ...]:
    convs1, convs2 = ([Conv(*flat[i : i + 2]) for i in range(first, len(flat), 5)] for first in (1, 3))
    return residual_blocks(flat[::5], convs1, convs2, save_middle=save_middle)


def upsample_add_inputs(
    b: int, c: int, h: int, w: int, low: tuple[int, int], dtype: torch.dtype, device: str = "cpu"
) -> list[Tensor]:
    return [random((b, c, h, w), dtype, device), random((b, c, *low), dtype, device)]


def upsampled_conv_inputs(
    b: int, c: int, n: int, h: int, w: int, dtype: torch.dtype, device: str = "cpu"
) -> list[Tensor]:
    """x, weight, bias and the residual."""
    residual = random((b, n, 2 * h, 2 * w), dtype, device)
    return [random((b, c, h, w), dtype, device), *conv(n, c, 3, dtype, device), residual]


def upsampled_conv_from_flat(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None) -> Tensor:
    return upsampled_conv3x3(x, Conv(weight, bias), residual)


class Size(NamedTuple):
    """`b` images of `c` channels, height `h` and width `w`; `n` maps of them for ops that take several."""

    b: int
    n: int
    c: int
    h: int
    w: int


class OpCase(NamedTuple):
    """One way to call an op, as a function of tensors alone, for inputs of any size."""

    function: Callable[..., Any]
    inputs: Callable[..., list[Tensor]]
    """`inputs(size, dtype, device)` draws random inputs; the default device is the CPU."""
    saved: Callable[[Size], int] = lambda _: 0
    """The maximum number of values saved for backward in addition to the inputs."""
    widths: tuple[int, int] = (1, 50)
    """Maps and channels in the network."""
    smallest: tuple[int, int] = (1, 1)
    """The minimum height and width."""
    result_dtype: Callable[[torch.dtype], torch.dtype] = lambda dtype: dtype
    """From the dtype of the inputs, as cast by autocast, to that of the results."""
    autocast: bool = True
    """Whether autocast changes the dtype of the results."""

    def draw(self, size: Sequence[int], dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
        """Random inputs of a `Size` made from `size`, at least as high and wide as the op needs."""
        b, n, c, h, w = size
        return self.inputs(Size(b, n, c, max(h, self.smallest[0]), max(w, self.smallest[1])), dtype, device)


def is_image(t: Tensor) -> bool:
    """Whether `t` is an image rather than a weight; images must be wider than 3."""
    return t.ndim == 4 and t.shape[3] > 3


def distilled(c: int) -> int:
    """The distilled channels of an RFDB with c channels, in the network's proportion of 25 to 50."""
    return max(1, c // 2)


def esa(c: int) -> int:
    """The channels in the ESA of an RFDB with c channels, in the network's proportion of 12 to 50."""
    return max(1, c // 4)


def esa_low(size: int) -> int:
    """The height or width of ESA's low-resolution maps."""
    return ((size - 3) // 2 + 1 - 7) // 3 + 1


def _half(size: int) -> int:
    return (size + 1) // 2


def _scales(s: Size, number: int) -> list[tuple[int, int]]:
    """Heights and widths of the encoder's maps, each half of the one before, and so wide that they are images."""
    sizes = [(s.h, s.w)]
    while len(sizes) < number:
        sizes.append((_half(sizes[-1][0]), max(4, _half(sizes[-1][1]))))
    return sizes


def _windows(size: int) -> int:
    """The number of windows of 32 pixels along an axis, each of which overlaps half of the next."""
    return max(1, (size + 15) // 16 - 1)


def _sums(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _rfdb_saved(s: Size) -> int:
    """The results of three stages, d4, ESA's first map, its four low-resolution maps, and the maxima's indices of at
    most 64 bits."""
    low = (4 + 4) * esa(s.c) * esa_low(s.h) * esa_low(s.w)
    return s.b * ((3 * s.c + distilled(s.c) + esa(s.c)) * s.h * s.w + low)


def _attention_saved(s: Size) -> int:
    """The result, for its signs, and F F^T, in at most twice the bytes per value of the inputs."""
    return s.b * (s.c * s.h * s.w + 2 * (s.n * s.c) ** 2)


def _apply_inputs(s: Size, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    tensors = attention_inputs(s.b, s.n, s.c, s.c, s.h, s.w, dtype, device)
    return [*tensors[: s.n], random((s.b, s.n * s.c, s.n * s.c), _sums(dtype), device), *tensors[s.n :]]


def _apply_from_flat(*tensors: Tensor) -> Tensor:
    *maps, gram, theta, weight, bias = tensors
    return layer_apply(maps, gram, theta, weight, bias)


def _shared_from_flat(alpha: Tensor, *tensors: Tensor) -> Tensor:
    """The merge as in the network, where x is the last of the maps."""
    return merge_from_flat("full3d", "layers")(tensors[-5], alpha, *tensors)


OPS: dict[str, OpCase] = {
    "conv3x3": OpCase(
        partial(conv3x3, activation="leaky_relu"),
        lambda s, *on: conv_inputs(s.b, s.c, s.c, s.h, s.w, *on),
        lambda s: s.b * s.c * s.h * s.w,
        widths=(1, 64),
    ),
    "conv3x3-down": OpCase(
        partial(conv3x3, stride=2, activation="leaky_relu", slope=0.1),
        lambda s, *on: conv_inputs(s.b, s.c, s.c, s.h, s.w, *on)[:3],
        lambda s: s.b * s.c * _half(s.h) * _half(s.w),
        widths=(1, 64),
    ),
    "conv3x3-reduce": OpCase(
        conv3x3,
        lambda s, *on: conv_inputs(s.b, s.c, max(1, s.c * 25 // 32), s.h, s.w, *on)[:3],
        widths=(1, 64),
    ),
    "distill_stage": OpCase(
        stage_from_flat,
        lambda s, *on: stage_inputs(s.b, s.c, distilled(s.c), s.h, s.w, *on),
        lambda s: s.b * (s.c + distilled(s.c)) * s.h * s.w,
    ),
    "distill_fuse": OpCase(
        fuse_from_flat,
        lambda s, *on: fuse_inputs(s.b, s.c, distilled(s.c), esa(s.c), s.h, s.w, *on),
        lambda s: s.b * (s.c + distilled(s.c) + esa(s.c)) * s.h * s.w,
    ),
    "esa_gate": OpCase(
        gate_from_flat,
        lambda s, *on: gate_inputs(s.b, s.c, esa(s.c), s.h, s.w, (max(1, esa_low(s.h)), max(1, esa_low(s.w))), *on),
    ),
    "esa_gate-fixed_grid": OpCase(
        partial(gate_from_flat, fixed_grid=True),
        lambda s, *on: gate_inputs(s.b, s.c, esa(s.c), s.h, s.w, (max(1, esa_low(s.h)), max(1, esa_low(s.w))), *on),
    ),
    "rfdb": OpCase(
        rfdb_from_flat,
        lambda s, *on: rfdb_inputs(s.b, s.c, distilled(s.c), esa(s.c), s.h, s.w, *on),
        _rfdb_saved,
        smallest=(15, 15),
    ),
    "layer_attention": OpCase(
        attention_from_flat(),
        lambda s, *on: attention_inputs(s.b, s.n, s.c, s.c, s.h, s.w, *on),
        _attention_saved,
        widths=(4, 50),
    ),
    "layer_attention-layers": OpCase(
        attention_from_flat("layers-cosine"),
        lambda s, *on: attention_inputs(s.b, s.n, s.c, s.c, s.h, s.w, *on, form="layers-cosine"),
        lambda s: s.b * (s.c * s.h * s.w + 2 * s.n**2),
        widths=(4, 50),
    ),
    "layer_attention-windows": OpCase(
        attention_from_flat("channels-cosine", window=32),
        lambda s, *on: attention_inputs(s.b, s.n, s.c, s.c, s.h, s.w, *on, form="channels-cosine"),
        lambda s: s.b * (s.c * s.h * s.w + 2 * _windows(s.h) * _windows(s.w) * (s.n * s.c) ** 2),
        widths=(4, 50),
        smallest=(33, 1),
    ),
    "layer_gram": OpCase(
        lambda *maps: layer_gram(maps),
        lambda s, *on: attention_inputs(s.b, s.n, s.c, s.c, s.h, s.w, *on)[: s.n],
        widths=(4, 50),
        result_dtype=_sums,
    ),
    "layer_apply": OpCase(_apply_from_flat, _apply_inputs, lambda s: s.b * s.c * s.h * s.w, widths=(4, 50)),
    "channel_gate": OpCase(
        channel_gate_from_flat(),
        lambda s, *on: channel_gate_inputs(s.b, s.c, s.h, s.w, *on),
    ),
    "channel_gate-full3d": OpCase(
        channel_gate_from_flat("full3d"),
        lambda s, *on: channel_gate_inputs(s.b, s.c, s.h, s.w, *on, form="full3d")[:-1],
    ),
    "attention_merge": OpCase(
        merge_from_flat(),
        lambda s, *on: merge_inputs(s.b, s.n, s.c, s.h, s.w, *on),
        _attention_saved,
        widths=(4, 50),
    ),
    "attention_merge-shared": OpCase(
        _shared_from_flat,
        lambda s, *on: merge_inputs(s.b, s.n, s.c, s.h, s.w, *on, form="full3d")[1:],
        lambda s: s.b * (s.c * s.h * s.w + 2 * s.n**2),
        widths=(4, 50),
    ),
    "stem": OpCase(
        stem_from_flat(),
        lambda s, *on: stem_inputs(s.b, s.c, s.c, s.h, s.w, *on),
        lambda s: s.b * s.c * _half(s.h) * _half(s.w),
        widths=(1, 64),
    ),
    "stem-unpadded": OpCase(
        stem_from_flat(padding=0),
        lambda s, *on: stem_inputs(s.b, s.c, s.c, s.h, s.w, *on)[:-1],
        lambda s: s.b * s.c * _half(s.h - 2) * _half(s.w - 2),
        widths=(1, 64),
        smallest=(3, 3),
    ),
    "residual_block": OpCase(
        block_from_flat(),
        lambda s, *on: block_inputs(s.b, s.c, s.c, s.h, s.w, *on),
        lambda s: s.b * s.c * s.h * s.w,
        widths=(1, 64),
    ),
    "residual_block-recomputed": OpCase(
        block_from_flat(save_middle=False),
        lambda s, *on: block_inputs(s.b, s.c, s.c, s.h, s.w, *on),
        widths=(1, 64),
    ),
    "residual_block-up": OpCase(
        block_from_flat(upsample=True),
        lambda s, *on: block_inputs(s.b, s.c, s.c, _half(s.h), _half(s.w), *on),
        lambda s: 4 * s.b * s.c * _half(s.h) * _half(s.w),
    ),
    "residual_blocks": OpCase(
        blocks_from_flat,
        lambda s, *on: blocks_inputs(s.b, s.c, s.c, _scales(s, 3), *on),
        lambda s: s.b * s.c * sum(h * w for h, w in _scales(s, 3)),
        widths=(1, 64),
    ),
    "residual_blocks-two": OpCase(
        blocks_from_flat,
        lambda s, *on: blocks_inputs(s.b, s.c, s.c, _scales(s, 2), *on),
        lambda s: s.b * s.c * sum(h * w for h, w in _scales(s, 2)),
        widths=(1, 64),
    ),
    "upsample_add": OpCase(
        upsample_add,
        lambda s, *on: upsample_add_inputs(s.b, s.c, s.h, s.w, (_half(s.h), _half(s.w)), *on),
        widths=(1, 64),
    ),
    "upsampled_conv3x3": OpCase(
        upsampled_conv_from_flat,
        lambda s, *on: upsampled_conv_inputs(s.b, s.c, 3, _half(s.h), _half(s.w), *on),
        autocast=False,
    ),
}
"""Every public op, in all forms that differ in what they compute or save."""
