"""The measured ops: their inputs, and the minimum that a call has to compute and move.

Minimum traffic is what has to be read and written, without weights, if nothing stays on chip between the unavoidable
passes over the image. Backward reads the gradient of each result and each input, and writes the gradient of each input;
it takes twice the arithmetic of forward.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench import network
from bench.rows import Shape
from lmfn_kernels import conv3x3, testing, upsample_add


class WorkEstimate(NamedTuple):
    """Of one call: operations, and values read and written."""

    flop: float
    values: float

    @classmethod
    def of(cls, mode: str, pixels: int, flop: float, forward: float, backward: float) -> "WorkEstimate":
        """From operations and values per pixel of the forward and backward pass."""
        passes = {"infer": (1, 0), "fwd": (1, 0), "bwd": (0, 1)}.get(mode, (1, 1))
        return cls(pixels * flop * (passes[0] + 2 * passes[1]), pixels * (forward * passes[0] + backward * passes[1]))


@dataclass(frozen=True)
class BenchOp:
    """`make(shape, dtype, device)` gives the tensors that `function(shape)` takes."""

    name: str
    make: Callable[[Shape, torch.dtype, str], list[Tensor]]
    function: Callable[[Shape], Callable[..., Any]]
    per_pixel: Callable[[Shape], tuple[float, float, float]]
    """Per pixel: operations of forward, and values that forward and backward move."""
    widths: tuple[int, int] = (1, 50)
    """Maps and channels in the network."""

    def shape(self, b: int, h: int, w: int) -> Shape:
        return Shape(b, *self.widths, h, w)

    def work(self, shape: Shape, mode: str) -> WorkEstimate:
        return WorkEstimate.of(mode, shape.b * shape.h * shape.w, *self.per_pixel(shape))


def _passed(values_in: float, values_out: float) -> tuple[float, float]:
    """Traffic of forward and backward for an op that is one pass over its inputs."""
    return values_in + values_out, 2 * values_in + values_out


def _widths(c: int) -> tuple[int, int]:
    """Distilled and ESA channels in the network's proportions: 25 and 12 for 50."""
    return max(1, c // 2), max(1, c // 4)


def _low(size: int) -> int:
    """A height or width on ESA's low-resolution maps."""
    return ((size - 3) // 2 + 1 - 7) // 3 + 1


def _rfdb_work(s: Shape) -> tuple[float, float, float]:
    """Three stages, the fusion and the gate: six passes, since ESA needs the surroundings of a pixel."""
    c, (d, f) = s.c, _widths(s.c)
    flop = 2 * (3 * (9 * c * c + c * d) + 9 * c * d + 4 * d * c + c * f + f * f + f * c + 9 * f * f / 4)
    passes = [_passed(c, c + d)] * 3 + [_passed(c + 3 * d, c + f), _passed(c + f, c)]
    return flop, sum(p[0] for p in passes), sum(p[1] for p in passes)


def _attention_work(s: Shape) -> tuple[float, float, float]:
    """The scores need the whole image before the first pixel of the result: forward and backward read F twice."""
    size = s.n * s.c
    return 2 * (size * (size + 1) / 2 + size * s.c), 2 * size + s.c, 3 * size + 2 * s.c


def _merge_work(s: Shape) -> tuple[float, float, float]:
    """x counts as one of the maps, as in the network: the passes of the attention, with the arithmetic of the gate."""
    flop, forward, backward = _attention_work(s)
    return flop + 2 * 12 * s.c, forward, backward


OPS: dict[str, BenchOp] = {
    op.name: op
    for op in (
        BenchOp(
            "rfdb",
            lambda s, dtype, device: testing.rfdb_case(s.b, s.c, *_widths(s.c), s.h, s.w, dtype, device),
            lambda _: testing.rfdb_flat,
            _rfdb_work,
        ),
        BenchOp(
            "layer_attention",
            lambda s, dtype, device: testing.attention_case(s.b, s.n, s.c, s.c, s.h, s.w, dtype, device),
            lambda _: testing.attention_flat(),
            _attention_work,
            widths=(4, 50),
        ),
        BenchOp(
            "channel_gate",
            lambda s, dtype, device: testing.channel_gate_case(s.b, s.c, s.h, s.w, dtype, device),
            lambda _: testing.channel_gate_flat(),
            lambda s: (2 * 12 * s.c, *_passed(2 * s.c, s.c)),
        ),
        BenchOp(
            "attention_merge",
            lambda s, dtype, device: testing.merge_case(s.b, s.n, s.c, s.h, s.w, dtype, device),
            lambda _: testing.merge_flat(),
            _merge_work,
            widths=(4, 50),
        ),
        BenchOp(
            "distill_stage",
            lambda s, dtype, device: testing.stage_case(s.b, s.c, _widths(s.c)[0], s.h, s.w, dtype, device),
            lambda _: testing.stage_flat,
            lambda s: (2 * (9 * s.c**2 + s.c * _widths(s.c)[0]), *_passed(s.c, s.c + _widths(s.c)[0])),
        ),
        BenchOp(
            "distill_fuse",
            lambda s, dtype, device: testing.fuse_case(s.b, s.c, *_widths(s.c), s.h, s.w, dtype, device),
            lambda _: testing.fuse_flat,
            lambda s: (
                2 * (9 * s.c * _widths(s.c)[0] + 4 * _widths(s.c)[0] * s.c + s.c * _widths(s.c)[1]),
                *_passed(s.c + 3 * _widths(s.c)[0], s.c + _widths(s.c)[1]),
            ),
        ),
        BenchOp(
            "esa_gate",
            lambda s, dtype, device: testing.gate_case(
                s.b, s.c, _widths(s.c)[1], s.h, s.w, (_low(s.h), _low(s.w)), dtype, device
            ),
            lambda _: testing.gate_flat,
            lambda s: (2 * (_widths(s.c)[1] ** 2 + _widths(s.c)[1] * s.c), *_passed(s.c + _widths(s.c)[1], s.c)),
        ),
        BenchOp(
            "conv3x3",
            lambda s, dtype, device: testing.conv_case(s.b, s.c, s.c, s.h, s.w, dtype, device),
            lambda _: testing.conv_flat(activation="leaky_relu"),
            lambda s: (2 * 9 * s.c**2, *_passed(2 * s.c, s.c)),
            widths=(1, 64),
        ),
        BenchOp(
            "stem",
            lambda s, dtype, device: testing.stem_case(s.b, s.c, s.c, s.h, s.w, dtype, device),
            lambda _: testing.stem_flat(),
            lambda s: (2 * (27 * s.c + 9 * s.c**2 / 4), *_passed(3, s.c / 4)),
            widths=(1, 64),
        ),
        BenchOp(
            "residual_block",
            lambda s, dtype, device: testing.block_case(s.b, s.c, s.c, s.h, s.w, dtype, device),
            lambda _: testing.block_flat(),
            lambda s: (2 * 2 * 9 * s.c**2, *_passed(s.c, s.c)),
            widths=(1, 64),
        ),
        BenchOp(
            "upsample_add",
            lambda s, dtype, device: testing.upsample_add_case(
                s.b, s.c, s.h, s.w, (-(-s.h // 2), -(-s.w // 2)), dtype, device
            ),
            lambda _: upsample_add,
            lambda s: (8 * s.c, *_passed(1.25 * s.c, s.c)),
            widths=(1, 64),
        ),
        BenchOp(
            "upsampled_conv3x3",
            lambda s, dtype, device: testing.upsampled_conv_case(s.b, s.c, 3, s.h, s.w, dtype, device),
            lambda _: testing.upsampled_conv_flat,
            lambda s: (4 * (2 * 9 * s.c * 3 + 7 * s.c), *_passed(s.c, 4 * 3)),
        ),
        BenchOp("lmfn", network.tensors, network.function, network.per_pixel, widths=(4, 50)),
    )
}
"""The block and the attentions first, in case time runs out."""

PARTS: dict[str, BenchOp] = {
    op.name: op
    for op in (
        BenchOp(
            "residual_block_up",
            lambda s, dtype, device: testing.block_case(s.b, s.c, s.c, s.h, s.w, dtype, device),
            lambda _: testing.block_flat(upsample=True),
            lambda s: (4 * (2 * 2 * 9 * s.c**2 + 7 * s.c), *_passed(s.c, 4 * s.c)),
        ),
        BenchOp(
            "conv3x3_down",
            lambda s, dtype, device: testing.conv_case(s.b, s.c, s.c, s.h, s.w, dtype, device)[:-1],
            lambda _: partial(conv3x3, stride=2, activation="leaky_relu", slope=0.1),
            lambda s: (2 * 9 * s.c**2 / 4, *_passed(s.c, s.c / 4)),
            widths=(1, 64),
        ),
        BenchOp(
            "conv3x3_reduce",
            lambda s, dtype, device: testing.conv_case(s.b, s.c, 50, s.h, s.w, dtype, device)[:-1],
            lambda _: conv3x3,
            lambda s: (2 * 9 * s.c * 50, *_passed(s.c, 50)),
            widths=(1, 64),
        ),
    )
}
"""Ops of `OPS` as other parts of the network use them, measured only as parts of a photograph (`bench/units.py`)."""
