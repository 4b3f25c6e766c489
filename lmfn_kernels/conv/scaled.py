"""Weights of convolutions between maps in 16 bits and maps that are stored as e4m3, with one scale per map."""

import torch

from lmfn_kernels.runtime.layout import pitch
from lmfn_kernels.weights import E4M3, Conv, ScaledConv

LARGEST = torch.finfo(E4M3).max


def scaled(
    conv: Conv, dtype: torch.dtype, of: float | None = None, to: float = 1.0, *, residual: bool = False
) -> ScaledConv:
    """`conv` for an input in `dtype`, or in e4m3 with the scale `of`, and an output that is divided by the scale `to`.

    The scales must be powers of two, so that only e4m3 itself rounds. With `residual`, the input is part of the sums.
    """
    weight, bias = conv.weight.detach().float(), conv.bias.detach().float() / to
    if of is None:
        taps, factor = weight / to, None
        diagonal = torch.full_like(bias, 1 / to)
    else:
        # e4m3 holds the diagonal, 1 / scale, exactly: a power of two, at most 256.
        scale = (weight.abs().amax((1, 2, 3)) / LARGEST).log2().ceil().clamp(min=-8).exp2()
        taps, factor = weight / scale[:, None, None, None], scale * (of / to)
        diagonal = 1 / scale
    n, k = weight.shape[:2]
    taps = taps.flatten(2).permute(2, 0, 1)
    if residual:
        taps = torch.cat([taps, torch.diag(diagonal)[None]])
    if of is None:
        stored = taps.new_zeros((len(taps), k, pitch(n, dtype)), dtype=dtype)[..., :n]
        return ScaledConv(stored.copy_(taps.transpose(1, 2)), factor, bias)
    padded = taps.new_zeros((len(taps), n, 64))
    padded[..., :k] = taps
    return ScaledConv(padded.to(E4M3), factor, bias)


def power_of_two(largest: float) -> float:
    """The scale of a map whose values reached `largest`: e4m3 then holds values at least 8 times as large.

    The margin costs no accuracy: the relative error of e4m3 is the same from 1/64 to 448. A map of zeros has a small
    scale, as it may not be zero on another image.
    """
    return float(torch.tensor(8 * largest / LARGEST).log2().ceil().clamp(min=-20).exp2())
