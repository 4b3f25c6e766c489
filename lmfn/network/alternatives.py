"""Replacements for parts of the network in the paper's ablations.

The paper names these but does not specify them: each is built as in the publication that introduced it, at the
encoder's 64 or the decoder's 50 channels.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmfn.network.blocks import DECODER_SLOPE, ENCODER_SLOPE, RB, keep_scale


def convolution(inputs: int, outputs: int, size: int = 3, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    """A convolution that keeps height and width (halves them with stride 2) and, with the leaky ReLU, the scale."""
    conv = nn.Conv2d(inputs, outputs, size, stride, padding=dilation * (size // 2), dilation=dilation)
    keep_scale(conv)
    return conv


def lrelu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, ENCODER_SLOPE, inplace=True)


class StridedEncoder(nn.Module):
    """Replaces MSHF: four times a stride-2 convolution and two RBs down, three times up2, a convolution and two RBs
    up, no fusion of scales. `[B, 3, H, W]` to `[B, channels, H/4, W/4]`, H and W multiples of 4.

    Inferred: the paper says only that stride-2 convolutions with two residual blocks each cost 0.55 M parameters more,
    which this does (553,920), with a first convolution that also halves, so that the decoder runs at 1/4.
    """

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        self.stem = convolution(3, channels, stride=2)
        self.down = nn.ModuleList([_scale(channels, stride=2) for _ in range(4)])
        self.up = nn.ModuleList([_scale(channels, stride=1) for _ in range(3)])

    def forward(self, x: Tensor, mean: Tensor) -> Tensor:
        """`mean` [3] is subtracted from x."""
        quarter = x.shape[2] // 4, x.shape[3] // 4
        x = lrelu(self.stem(x - mean[:, None, None]))
        for scale in self.down:
            x = scale(x)
        for scale in self.up:
            x = scale(F.interpolate(x, scale_factor=2, mode="bilinear"))
        return x[:, :, : quarter[0], : quarter[1]]  # 1/32 of a multiple of 16 was rounded up


def _scale(channels: int, stride: int) -> nn.Sequential:
    conv = convolution(channels, channels, stride=stride)
    return nn.Sequential(conv, nn.LeakyReLU(ENCODER_SLOPE, inplace=True), RB(channels), RB(channels))


class QuarterEncoder(nn.Module):
    """MSHF without its scales below 1/4: three convolutions down, two RBs, a `context` in place of the smaller
    scales, three RBs. `[B, 3, H, W]` to `[B, channels, ceil(H/4), ceil(W/4)]`."""

    def __init__(self, channels: int, context: nn.Module) -> None:
        super().__init__()
        self.conv0 = convolution(3, channels)
        self.down1, self.down2 = convolution(channels, channels, stride=2), convolution(channels, channels, stride=2)
        self.before = nn.Sequential(RB(channels), RB(channels))
        self.context = context
        self.after = nn.Sequential(RB(channels), RB(channels), RB(channels))

    def forward(self, x: Tensor, mean: Tensor) -> Tensor:
        """`mean` [3] is subtracted from x."""
        x = lrelu(self.conv0(x - mean[:, None, None]))
        x = lrelu(self.down2(lrelu(self.down1(x))))
        return cast(Tensor, self.after(self.context(self.before(x))))


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling (DeepLab v3, arXiv 1706.05587, section 3.3): a 1x1 convolution, three 3x3 with
    rates 6, 12 and 18, and the image's mean, side by side and fused by a 1x1. `[B, C, H, W]` to the same shape."""

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        branches = [convolution(channels, channels, 1)]
        branches += [convolution(channels, channels, dilation=rate) for rate in (6, 12, 18)]
        self.branches = nn.ModuleList(branches)
        self.mean = convolution(channels, channels, 1)
        self.fuse = convolution(5 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        mean = lrelu(self.mean(x.mean((2, 3), keepdim=True))).expand_as(x)
        return lrelu(self.fuse(torch.cat([*(lrelu(branch(x)) for branch in self.branches), mean], dim=1)))


class PyramidPooling(nn.Module):
    """Pyramid pooling (PSPNet, arXiv 1612.01105, section 3.2): the means over 1, 2x2, 3x3 and 6x6 parts of the image,
    a quarter of the channels each, beside x and fused by a 3x3. `[B, C, H, W]` to the same shape."""

    PARTS = (1, 2, 3, 6)

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        self.reduce = nn.ModuleList([convolution(channels, channels // 4, 1) for _ in self.PARTS])
        self.fuse = convolution(channels + 4 * (channels // 4), channels)

    def forward(self, x: Tensor) -> Tensor:
        pools = zip(self.PARTS, self.reduce, strict=True)
        means = [lrelu(reduce(F.adaptive_avg_pool2d(x, parts))) for parts, reduce in pools]
        spread = [F.interpolate(mean, size=x.shape[2:], mode="bilinear") for mean in means]
        return lrelu(self.fuse(torch.cat([x, *spread], dim=1)))


def encoder(name: str, channels: int) -> nn.Module:
    """The encoder that `LMFNConfig.encoder` calls `unfused`, `strided`, `aspp` or `pyramid`."""
    if name == "strided":
        return StridedEncoder(channels)
    if name == "unfused":
        return QuarterEncoder(channels, nn.Identity())
    return QuarterEncoder(channels, ASPP(channels) if name == "aspp" else PyramidPooling(channels))


class Concat(nn.Module):
    """Replaces ALFM: LR(conv1x1(concatenated layers)), no attention. N maps `[B, C, H, W]` to one."""

    def __init__(self, features: int = 50, layers: int = 4) -> None:
        super().__init__()
        self.fuse = convolution(layers * features, features, 1)

    def gate(self, x: Tensor) -> Tensor:
        """The concatenated layers `[B, NC, H, W]`, weighted by the attention, if any."""
        return x

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return F.leaky_relu(self.fuse(self.gate(torch.cat(list(maps), dim=1))), DECODER_SLOPE, inplace=True)


class PooledAttention(Concat):
    """Replaces ALFM: channels weighted by a function of the means of all channels (squeeze and excitation, arXiv
    1709.01507, reduction 16), then `Concat`."""

    def __init__(self, features: int = 50, layers: int = 4) -> None:
        super().__init__(features, layers)
        channels = layers * features
        self.squeeze = nn.Conv2d(channels, max(1, channels // 16), 1)
        self.excite = nn.Conv2d(max(1, channels // 16), channels, 1)

    def gate(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.excite(F.relu(self.squeeze(means))))


class SpatialAttention(Concat):
    """Replaces ALFM: pixels weighted by a 7x7 convolution over the channels' mean and maximum (CBAM, arXiv
    1807.06521, section 3), then `Concat`."""

    def __init__(self, features: int = 50, layers: int = 4) -> None:
        super().__init__(features, layers)
        self.conv = nn.Conv2d(2, 1, 7, padding=3)

    def gate(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.conv(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)))


FUSIONS: dict[str, type[Concat]] = {"concat": Concat, "pooled": PooledAttention, "spatial": SpatialAttention}
"""Replacements of ALFM by name in `LMFNConfig.alfm`."""
