"""The parts of LMFN (Zhang et al., ICIP 2021, arXiv 2101.05403), in the paper's order.

The encoder (`MSHF`), the distillation block (`RFDB`, with its `ESA` gate), the two attentions (`ALFM` between layers,
`ACFM` between channels) and the heads. Each part is a module on the fused ops of `lmfn_kernels` that can also be used
in other networks. `lmfn.network.model` combines them.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from lmfn_kernels import (
    Conv,
    FoldedConv,
    Full3D,
    LayerAttention,
    Pseudo3D,
    RFDBWeights,
    ScaledConv,
    attention_matrix,
    channel_gate,
    conv3x3,
    conv3x3_and_input,
    esa_gate,
    layer_gram,
    residual_block,
    residual_block_e4m3,
    residual_blocks,
    rfdb_e4m3,
    rfdb_for_two_uses,
    stem,
    upsample_add,
    upsampled_conv3x3,
)

ENCODER_SLOPE = 0.1
DECODER_SLOPE = 0.05
MULTIPLE = 16  # the encoder halves four times
SMALLEST = 64  # ESA's pooling needs a decoder map of 15 x 15, and the decoder runs at a quarter of the image


def weight_and_bias(conv: nn.Module) -> Conv:
    """A convolution's parameters in the form that the fused ops take."""
    return Conv(cast(Tensor, conv.weight), cast(Tensor, conv.bias))


def keep_scale(*convs: nn.Module) -> None:
    """Kaiming-normal weights and no bias, which preserve the scale of features through the layers. PyTorch's default
    initialisation reduces it tenfold before the head. The paper does not state its initialisation;
    experiments/short-runs has the gain."""
    for conv in convs:
        draw(cast(Tensor, conv.weight), a=ENCODER_SLOPE, nonlinearity="leaky_relu")
        nn.init.zeros_(cast(Tensor, conv.bias))


def draw(weight: Tensor, **options: Any) -> None:
    """Kaiming-normal values. Skipped on the meta device, where PyTorch takes two seconds although there are no
    values."""
    if not weight.is_meta:
        nn.init.kaiming_normal_(weight, **options)


def start_small(conv: nn.Conv2d) -> None:
    """A tenth of the initial weights and no bias: what the convolution adds to a skip connection starts near zero."""
    with torch.no_grad():
        conv.weight.mul_(0.1)
        cast(Tensor, conv.bias).zero_()


class RB(nn.Module):
    """Residual block: x + conv3x3(relu(conv3x3(x))). `[B, C, H, W]` to the same shape."""

    recompute: bool = False
    """Whether backward recomputes the map between the convolutions instead of saving it."""
    e4m3: tuple[ScaledConv, ScaledConv] | None = None
    """Both convolutions with the map between them stored as e4m3, for inference (`lmfn.fp8`)."""
    watch: Callable[[Tensor], None] | None = None
    """Called in every forward pass with the map between the convolutions, which is computed once more for this."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        # conv1 keeps its full initial scale: at a tenth of it, the first steps of Adam, whose size does not depend on
        # that of the weights, would permanently drive most hidden units below zero.
        draw(self.conv1.weight)
        draw(self.conv2.weight)
        nn.init.zeros_(cast(Tensor, self.conv1.bias))
        start_small(self.conv2)

    def forward(self, x: Tensor, upsample: bool = False) -> Tensor:
        """With `upsample`, the block is applied to x upsampled to twice its size."""
        self.show(x, upsample)
        if self.e4m3 is not None:
            return residual_block_e4m3(x, *self.e4m3, upsample=upsample)
        convs = weight_and_bias(self.conv1), weight_and_bias(self.conv2)
        return residual_block(x, *convs, upsample=upsample, save_middle=not self.recompute)

    def show(self, x: Tensor, upsample: bool = False) -> None:
        """Show `watch`, if there is one, the map that `forward` has between the convolutions."""
        if self.watch is not None:
            x = F.interpolate(x, scale_factor=2, mode="bilinear") if upsample else x
            self.watch(conv3x3(x, *weight_and_bias(self.conv1), activation="relu"))


def across_scales(blocks: Sequence[nn.Module], maps: Sequence[Tensor]) -> Sequence[Tensor]:
    """What calls of residual blocks (`RB`), each with a map of its own, return, bit by bit, in fewer launches.

    The blocks agree on `recompute`, and all of them store e4m3 or none. Hooks of the blocks are not run.
    """
    rbs = cast(Sequence[RB], blocks)
    for rb, x in zip(rbs, maps, strict=True):
        rb.show(x)
    e4m3 = [rb.e4m3 for rb in rbs if rb.e4m3 is not None]
    if e4m3:
        return [residual_block_e4m3(x, *convs) for x, convs in zip(maps, e4m3, strict=True)]
    convs1, convs2 = [weight_and_bias(rb.conv1) for rb in rbs], [weight_and_bias(rb.conv2) for rb in rbs]
    return residual_blocks(maps, convs1, convs2, save_middle=not rbs[0].recompute)


class MSHF(nn.Module):
    """Multi-scale hierarchical fusion encoder (the paper's section 2.1): down to 1/16, then back to 1/4, fusing scales.

    `[B, 3, H, W]` to `[B, channels, ceil(H/4), ceil(W/4)]`, any H and W >= 1 (H, W >= 3 with `stem_padding=0`).
    """

    def __init__(self, channels: int = 64, stem_padding: int = 1) -> None:
        super().__init__()
        self.stem_padding = stem_padding
        self.conv0 = nn.Conv2d(3, channels, 3, padding=stem_padding)
        self.down1 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.down2 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.down3 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.down4 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        keep_scale(self.conv0, self.down1, self.down2, self.down3, self.down4)
        self.rb_16th = RB(channels)
        self.rb_8th = nn.ModuleList([RB(channels), RB(channels)])
        self.rb_4th = nn.ModuleList([RB(channels) for _ in range(5)])

    def forward(self, x: Tensor, mean: Tensor | None = None) -> Tensor:
        """`mean` [3], 0 by default, is subtracted from x."""
        l1, l2, l3 = self.halve(x, mean)
        l1, l2, l3 = across_scales((self.rb_4th[0], self.rb_8th[0], self.rb_16th), (l1, l2, l3))
        l1, l2 = across_scales((self.rb_4th[1], self.rb_8th[1]), (l1, upsample_add(l2, l3)))
        x = upsample_add(l1, l2)
        del l1, l2, l3  # the blocks that follow need the memory
        return self._last_blocks(x)

    def halve(self, x: Tensor, mean: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The maps at 1/4, 1/8 and 1/16 of the image's size."""

        def step(x: Tensor, conv: nn.Module) -> tuple[Tensor, Tensor]:
            return conv3x3_and_input(x, *weight_and_bias(conv), stride=2, activation="leaky_relu", slope=ENCODER_SLOPE)

        convs = weight_and_bias(self.conv0), weight_and_bias(self.down1)
        l1, _ = step(stem(x, *convs, ENCODER_SLOPE, padding=self.stem_padding, mean=mean), self.down2)
        l2, l1 = step(l1, self.down3)
        l3, l2 = step(l2, self.down4)
        return l1, l2, l3

    def fuse_8th(self, l2: Tensor, l3: Tensor) -> Tensor:
        """The map at 1/8 with the one at 1/16, as in `forward`; strips have them before that at 1/4."""
        return cast(Tensor, self.rb_8th[1](upsample_add(self.rb_8th[0](l2), self.rb_16th(l3))))

    def fuse_4th(self, l1: Tensor, l2: Tensor) -> Tensor:
        """The result, from the map at 1/4 and that of `fuse_8th`."""
        return self._last_blocks(upsample_add(self.rb_4th[1](self.rb_4th[0](l1)), l2))

    def _last_blocks(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.rb_4th[4](self.rb_4th[3](self.rb_4th[2](x))))


class ESA(nn.Module):
    """Enhanced spatial attention: y times a gate from a low-resolution branch with a large receptive field (RFDN, arXiv
    2009.11551).

    `[B, C, H, W]` to the same shape; H and W >= 15, which the stride-2 convolution and the 7x7 pooling need. The branch
    is resized to the size of y (the paper) or upsampled on a `fixed_grid` (`lmfn_kernels.esa_gate`). Raises ValueError
    for a smaller map.
    """

    def __init__(self, features: int = 50, esa: int = 12, fixed_grid: bool = False) -> None:
        super().__init__()
        self.fixed_grid = fixed_grid
        self.conv1 = nn.Conv2d(features, esa, 1)
        self.conv_f = nn.Conv2d(esa, esa, 1)
        self.conv2 = nn.Conv2d(esa, esa, 3, stride=2)
        self.conv_max = nn.Conv2d(esa, esa, 3, padding=1)
        self.conv3 = nn.Conv2d(esa, esa, 3, padding=1)
        self.conv3_ = nn.Conv2d(esa, esa, 3, padding=1)
        self.conv4 = nn.Conv2d(esa, features, 1)

    def forward(self, y: Tensor) -> Tensor:
        if min(y.shape[-2:]) < 15:
            raise ValueError(f"ESA needs a map of at least 15 x 15, got {tuple(y.shape)}; pad it first")
        a = self.conv1(y)
        convs = weight_and_bias(self.conv_f), weight_and_bias(self.conv4)
        return esa_gate(y, a, self.low_branch(self.pool(a)), *convs, fixed_grid=self.fixed_grid)

    def pool(self, a: Tensor) -> Tensor:
        return F.max_pool2d(self.conv2(a), 7, stride=3)

    def low_branch(self, v: Tensor) -> Tensor:
        v = F.relu(self.conv_max(v), inplace=True)
        v = F.relu(self.conv3(v), inplace=True)
        return cast(Tensor, self.conv3_(v))


class RFDB(nn.Module):
    """Residual feature distillation block (the paper's section 2.2). `[B, C, H, W]` to the same shape, H, W >= 15."""

    recompute: bool = False
    """Whether backward recomputes the block from its input, which alone is saved."""
    e4m3: list[tuple[ScaledConv, ScaledConv]] | None = None
    """`distil` and `refine` with the results of the first two stages stored as e4m3, for inference (`lmfn.fp8`)."""

    def __init__(self, features: int = 50, distilled: int = 25, esa: int = 12, fixed_grid: bool = False) -> None:
        super().__init__()
        self.distil = nn.ModuleList([nn.Conv2d(features, distilled, 1) for _ in range(3)])
        self.refine = nn.ModuleList([nn.Conv2d(features, features, 3, padding=1) for _ in range(3)])
        self.distil_last = nn.Conv2d(features, distilled, 3, padding=1)
        self.fuse = nn.Conv2d(4 * distilled, features, 1)
        keep_scale(*self.distil, self.distil_last, self.fuse)
        self.esa = ESA(features, esa, fixed_grid)

    def forward(self, x: Tensor, kept: list[Tensor] | None = None) -> Tensor:
        """With `kept`, the result is also appended to this list, for another use, with a gradient of its own that
        backward adds. The two are the same memory."""
        (d1, d2, d3), (r1, r2, r3) = map(weight_and_bias, self.distil), map(weight_and_bias, self.refine)
        e = self.esa
        rest = (self.distil_last, self.fuse, e.conv1, e.conv_f, e.conv2, e.conv_max, e.conv3, e.conv3_, e.conv4)
        weights = RFDBWeights((d1, d2, d3), (r1, r2, r3), *map(weight_and_bias, rest))
        if self.e4m3 is not None:
            y = again = rfdb_e4m3(x, weights, self.e4m3, DECODER_SLOPE, fixed_grid=e.fixed_grid)
        else:
            block: Any = partial(rfdb_for_two_uses, fixed_grid=e.fixed_grid)
            if self.recompute and torch.is_grad_enabled():
                block = partial(recomputed, block, use_reentrant=False)
            y, again = block(x, weights, DECODER_SLOPE)
        if kept is not None:
            kept.append(again)
        return y


class ALFM(nn.Module):
    """Attention between layers, then a 1x1 fusion (the paper's section 2.3).

    N maps `[B, C, H, W]` to one `[B, C, H, W]`: with F the maps as rows, L = theta * softmax(F F^T) F + F and
    LR(conv1x1(L)). `rows="channels"`: NC rows of WH values (the paper). `rows="layers"`: N rows of C*H*W values and
    softmax(rowmax(E) - E), as released. theta starts at 0, where the attention is the identity. The scores are summed
    in float32 whatever the input's dtype: they exceed 2.6e5 at 720p, beyond the range of float16. With a `window`, an
    even number of pixels of the maps, attention is computed within windows of this side
    (`lmfn_kernels.layer_attention`).

    Raises ValueError if the number of maps is not `layers`, or for a window that is not even.
    """

    def __init__(
        self,
        features: int = 50,
        layers: int = 4,
        rows: Literal["channels", "layers"] = "channels",
        similarity: Literal["dot", "cosine"] = "dot",
        window: int | None = None,
    ) -> None:
        super().__init__()
        if window is not None and (window < 2 or window % 2):
            raise ValueError(f"ALFM's window is {window}; it must be an even number of pixels, 2 or more")
        self.rows, self.layers, self.similarity, self.window = rows, layers, similarity, window
        self.theta = nn.Parameter(torch.zeros(1))
        self.temperature = nn.Parameter(torch.full((1,), 10.0)) if similarity == "cosine" else None
        self.fuse = nn.Conv2d(layers * features, features, 1)
        keep_scale(self.fuse)

    def attention(self, maps: Sequence[Tensor]) -> Tensor:
        """The attention matrix M over the whole maps, `[B, NC, NC]` or `[B, N, N]`; float32, or float64 for float64."""
        return attention_matrix(layer_gram(maps, rows=self.rows), self.temperature, rows=self.rows)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return self.deferred(maps)()

    def deferred(self, maps: Sequence[Tensor]) -> LayerAttention:
        """The same in a form that ACFM adds without writing it to memory. Calling this instead of the module does not
        run the module's hooks."""
        if len(maps) != self.layers:
            raise ValueError(f"ALFM was made for {self.layers} layers, got {len(maps)} maps")
        fusion = self.theta, *weight_and_bias(self.fuse), self.temperature
        return LayerAttention(maps, *fusion, rows=self.rows, slope=DECODER_SLOPE, window=self.window)


class ACFM(nn.Module):
    """Attention between channels by a convolution over (channel, height, width) (the paper's section 2.3).

    `[B, C, H, W]` to the same shape: x + alpha * w * x, with w = sigmoid(relu(conv3x1x1(relu(conv1x3x3(x)))))
    (`pseudo3d`, the paper) or w = sigmoid(conv3x3x3(x)) (`full3d`, as released). alpha starts at 0.
    """

    def __init__(self, form: Literal["pseudo3d", "full3d"] = "pseudo3d") -> None:
        super().__init__()
        self.form = form
        self.alpha = nn.Parameter(torch.zeros(1))
        # Not nn.Conv3d, whose five-dimensional weights make Module.to(memory_format=torch.channels_last) fail.
        if form == "pseudo3d":
            # Initially positive: there is a single channel, and a negative weight could leave the ReLU, and with it the
            # gate, permanently at zero.
            self.spatial_weight, self.spatial_bias = uniform(0, 1 / 3, 3, 3), uniform(0, 1 / 3, 1)
            self.channel_weight, self.channel_bias = uniform(0, 3**-0.5, 3), uniform(0, 3**-0.5, 1)
        else:
            self.weight, self.bias = uniform(-(27**-0.5), 27**-0.5, 3, 3, 3), uniform(-(27**-0.5), 27**-0.5, 1)

    def in_2d(self, channels: int) -> list[Conv]:
        """The gate's 3D convolutions as 2D ones of this many channels, which every runtime supports: a depthwise 3x3
        (weight `[C, 1, 3, 3]`) followed by a 1x1, or a single 3x3.

        A convolution over channels is a product with a banded matrix.
        """
        # [3, out, in]: tap t connects a channel to the one at distance t - 1.
        eye = torch.eye(channels + 2, dtype=self.alpha.dtype, device=self.alpha.device)
        taps = torch.stack([eye[t : t + channels, 1:-1] for t in range(3)])
        if self.form == "full3d":
            return [Conv(torch.einsum("thw,toi->oihw", self.weight, taps), self.bias.expand(channels))]
        mixing = torch.einsum("t,toi->oi", self.channel_weight, taps)[:, :, None, None]
        return [
            Conv(self.spatial_weight.expand(channels, 1, 3, 3), self.spatial_bias.expand(channels)),
            Conv(mixing, self.channel_bias.expand(channels)),
        ]

    def forward(self, x: Tensor, add: Tensor | LayerAttention | None = None) -> Tensor:
        """The gated x, plus `add` if given, which merges the two attentions."""
        gate: Pseudo3D | Full3D
        if self.form == "pseudo3d":
            gate = Pseudo3D(self.spatial_weight, self.spatial_bias, self.channel_weight, self.channel_bias)
        else:
            gate = Full3D(self.weight, self.bias)
        return channel_gate(x, gate, self.alpha, add)


def uniform(low: float, high: float, *shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape).uniform_(low, high))


class BilinearHead(nn.Module):
    """RB, upsampling, RB, upsampling, convolution (the paper's figure 1), plus a residual.

    `[B, C, H, W]` to `[B, 3, 4H, 4W]`, the shape of the residual, in whose dtype it is added.
    """

    folded: FoldedConv | None = None
    """The convolution folded with the upsampling, for inference (`lmfn.inference`)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.rb1, self.rb2 = RB(features), RB(features)
        self.conv = nn.Conv2d(features, 3, 3, padding=1)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        conv = self.folded or weight_and_bias(self.conv)
        return upsampled_conv3x3(self.rb2(self.rb1(x), upsample=True), conv, residual)


class PixelShuffleHead(nn.Module):
    """A convolution and a pixel shuffle (as released), plus a residual. Shapes as in `BilinearHead`."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(features, 48, 3, padding=1)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        y = F.pixel_shuffle(conv3x3(x, *weight_and_bias(self.conv)), 4)
        return (y + residual).to(residual.dtype)


def pad(x: Tensor) -> Tensor:
    """Pad on the right and the bottom to a multiple of 16, at least 64: by reflection, or replication if the image is
    too small for that."""
    height, width = x.shape[-2:]
    bottom = max(SMALLEST, -(-height // MULTIPLE) * MULTIPLE) - height
    right = max(SMALLEST, -(-width // MULTIPLE) * MULTIPLE) - width
    if right:
        x = F.pad(x, (0, right, 0, 0), mode="reflect" if right < width else "replicate")
    if bottom:
        x = F.pad(x, (0, 0, 0, bottom), mode="reflect" if bottom < height else "replicate")
    return x
