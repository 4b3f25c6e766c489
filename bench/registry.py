"""The ops that are measured: their inputs, and the minimum arithmetic and memory traffic of a call.

Minimum traffic is the number of values, except weights, that must be read and written if nothing stays on chip between
the unavoidable passes over the image. Backward reads the gradient of each result and each input, and writes the
gradient of each input; it takes twice the arithmetic of forward.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench import network
from bench.rows import Shape
from lmfn_kernels import cases
from lmfn_kernels.cases import distilled, esa


class WorkEstimate(NamedTuple):
    """The operations of one call, and the values that it reads and writes."""

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


def _rfdb_work(s: Shape) -> tuple[float, float, float]:
    """Three stages, the fusion and the gate: six passes, since ESA needs the surroundings of a pixel."""
    c, d, f = s.c, distilled(s.c), esa(s.c)
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


def _op(name: str, per_pixel: Callable[[Shape], tuple[float, float, float]], case: str = "") -> BenchOp:
    """An op from the table of `lmfn_kernels/cases.py`, where its name is `case`, or `name` if that is empty."""
    found = cases.OPS[case or name]
    return BenchOp(
        name,
        lambda s, dtype, device: found.inputs(cases.Size(*s.all()), dtype, device),
        lambda _: found.function,
        per_pixel,
        found.widths,
    )


OPS: dict[str, BenchOp] = {
    op.name: op
    for op in (
        _op("rfdb", _rfdb_work),
        _op("layer_attention", _attention_work),
        _op("channel_gate", lambda s: (2 * 12 * s.c, *_passed(2 * s.c, s.c))),
        _op("attention_merge", _merge_work),
        _op(
            "distill_stage",
            lambda s: (2 * (9 * s.c**2 + s.c * distilled(s.c)), *_passed(s.c, s.c + distilled(s.c))),
        ),
        _op(
            "distill_fuse",
            lambda s: (
                2 * (9 * s.c * distilled(s.c) + 4 * distilled(s.c) * s.c + s.c * esa(s.c)),
                *_passed(s.c + 3 * distilled(s.c), s.c + esa(s.c)),
            ),
        ),
        _op("esa_gate", lambda s: (2 * (esa(s.c) ** 2 + esa(s.c) * s.c), *_passed(s.c + esa(s.c), s.c))),
        _op("conv3x3", lambda s: (2 * 9 * s.c**2, *_passed(2 * s.c, s.c))),
        _op("stem", lambda s: (2 * (27 * s.c + 9 * s.c**2 / 4), *_passed(3, s.c / 4))),
        _op("residual_block", lambda s: (2 * 2 * 9 * s.c**2, *_passed(s.c, s.c))),
        _op("upsample_add", lambda s: (8 * s.c, *_passed(1.25 * s.c, s.c))),
        _op("upsampled_conv3x3", lambda s: (4 * (2 * 9 * s.c * 3 + 7 * s.c), s.c + 4 * 6, 2 * s.c + 4 * 3)),
        BenchOp("lmfn", network.tensors, network.function, network.per_pixel, widths=(4, 50)),
    )
}
"""The RFDB and the attentions come first, in case time runs out."""

PARTS: dict[str, BenchOp] = {
    op.name: op
    for op in (
        _op(
            "residual_block_up",
            lambda s: (4 * (2 * 2 * 9 * s.c**2 + 7 * s.c), *_passed(s.c, 4 * s.c)),
            "residual_block-up",
        ),
        _op("conv3x3_down", lambda s: (2 * 9 * s.c**2 / 4, *_passed(s.c, s.c / 4)), "conv3x3-down"),
        _op("conv3x3_reduce", lambda s: (2 * 9 * s.c * 50, *_passed(s.c, 50)), "conv3x3-reduce"),
    )
}
"""Ops of `OPS` as other parts of the network use them, measured only as parts of a photograph (`bench/units.py`)."""
