"""Weights of the ops: convolutions and groups of them, with the shapes of `torch.nn` modules."""

from typing import NamedTuple

import torch
from torch import Tensor

E4M3 = torch.float8_e4m3fn
"""One sign bit, 4 bits of exponent, 3 of mantissa; at most 448."""


class Conv(NamedTuple):
    """Weight `[outputs, inputs, k, k]` and bias `[outputs]` of a convolution."""

    weight: Tensor
    bias: Tensor


class FoldedConv(NamedTuple):
    """A 3x3 convolution of an upsampled image, with its weight folded with the upsampling beforehand, from `folded`."""

    weight: Tensor
    """[N, C, 3, 3]"""
    bias: Tensor
    """[N]"""
    by_upsampling: Tensor
    """The folded weight, as `backend` takes it; another one folds `weight` itself."""
    backend: str


class ScaledConv(NamedTuple):
    """A convolution whose input or output is stored as e4m3, from `scaled`: (sums of products) factor + bias.

    `weight` is `[taps, inputs, outputs]` in the input's dtype, or, for an input in e4m3, `[taps, outputs, 64]` in e4m3
    with zeros after the inputs. There is one tap, or nine, or ten: the last is the residual's, on the pixel itself.
    `factor` (None is 1) and `bias` are `[outputs]` in float32.
    """

    weight: Tensor
    factor: Tensor | None
    bias: Tensor


class RFDBWeights(NamedTuple):
    """The convolutions of an RFDB with C channels, d distilled and f in its ESA."""

    distil: tuple[Conv, Conv, Conv]
    """1x1, C to d, applied to the block's input and to the results of the first two stages."""
    refine: tuple[Conv, Conv, Conv]
    """3x3, C to C."""
    distil_last: Conv
    """3x3, C to d."""
    fuse: Conv
    """1x1, 4d to C."""
    conv1: Conv
    """ESA: 1x1, C to f."""
    conv_f: Conv
    """ESA: 1x1, f to f."""
    conv2: Conv
    """ESA: 3x3, f to f, stride 2, padding 0."""
    conv_max: Conv
    """ESA: 3x3, f to f."""
    conv3: Conv
    """ESA: 3x3, f to f."""
    conv3_: Conv
    """ESA: 3x3, f to f."""
    conv4: Conv
    """ESA: 1x1, f to C."""


class Pseudo3D(NamedTuple):
    """q = relu(conv3x1x1(relu(conv1x3x3(x)))), over (channel, height, width), one channel in and out (the paper)."""

    spatial_weight: Tensor
    """[3, 3]"""
    spatial_bias: Tensor
    """[1]"""
    channel_weight: Tensor
    """[3]"""
    channel_bias: Tensor
    """[1]"""


class Full3D(NamedTuple):
    """q = conv3x3x3(x), over (channel, height, width), one channel in and out (the released network)."""

    weight: Tensor
    """[3, 3, 3]"""
    bias: Tensor
    """[1]"""


Gate = Pseudo3D | Full3D
