"""LMFN: a lightweight multi-information fusion network for image deblurring.

Zhang et al., "Image deblurring based on lightweight multi-information fusion network", ICIP 2021, arXiv 2101.05403.

The file reads as the paper does: the encoder (`MSHF`), the distillation block (`RFDB`, with its `ESA` gate), the two
attentions (`ALFM` between layers, `ACFM` between channels), and the network (`LMFN`) that joins them. Every part is a
module of its own that can be put into somebody else's network, and runs on the fused ops of `lmfn_kernels`.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Self, cast, get_args

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from lmfn import checkpoint
from lmfn.config import LMFNConfig, preset
from lmfn_kernels import (
    Conv,
    Full3D,
    LayerAttention,
    Pseudo3D,
    RFDBWeights,
    attention_matrix,
    channel_gate,
    conv3x3,
    esa_gate,
    layer_gram,
    residual_block,
    rfdb,
    stem,
    upsample_add,
    upsampled_conv3x3,
)

Memory = Literal["normal", "lean"]
RGB_MEAN = (0.4488, 0.4371, 0.4040)
ENCODER_SLOPE = 0.1
DECODER_SLOPE = 0.05
MULTIPLE = 16  # the encoder halves four times
SMALLEST = 64  # ESA's pooling needs a decoder map of 15 x 15, and the decoder runs at a quarter of the image


def weight_and_bias(conv: nn.Module) -> Conv:
    """As the fused ops take a convolution."""
    return Conv(cast(Tensor, conv.weight), cast(Tensor, conv.bias))


def keep_scale(*convs: nn.Module) -> None:
    """Kaiming-normal weights and no bias: features keep their size through the layers, which torch's initial weights
    shrink tenfold before the head (no source says what the paper used; `docs/measured.md` has what this gained)."""
    for conv in convs:
        nn.init.kaiming_normal_(cast(Tensor, conv.weight), a=ENCODER_SLOPE, nonlinearity="leaky_relu")
        nn.init.zeros_(cast(Tensor, conv.bias))


def start_small(conv: nn.Conv2d) -> None:
    """A tenth of the initial weights, and no bias: what the convolution adds to a skip begins near nothing."""
    with torch.no_grad():
        conv.weight.mul_(0.1)
        cast(Tensor, conv.bias).zero_()


class RB(nn.Module):
    """Residual block: x + conv3x3(relu(conv3x3(x))). `[B, C, H, W]` to the same shape."""

    lean: bool = False
    """Whether backward computes the map between the convolutions again."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        for conv in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(conv.weight)
            start_small(conv)

    def forward(self, x: Tensor, upsample: bool = False) -> Tensor:
        """With `upsample`, the block of x at twice its size."""
        convs = weight_and_bias(self.conv1), weight_and_bias(self.conv2)
        return residual_block(x, *convs, upsample=upsample, keep_middle=not self.lean)


class MSHF(nn.Module):
    """Multi-scale hierarchical fusion encoder (the paper's section 2.1): down to 1/16, and back to 1/4, fusing scales.

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

    def forward(self, x: Tensor) -> Tensor:
        def step(x: Tensor, conv: nn.Module) -> Tensor:
            return conv3x3(x, *weight_and_bias(conv), stride=2, activation="leaky_relu", slope=ENCODER_SLOPE)

        convs = weight_and_bias(self.conv0), weight_and_bias(self.down1)
        l1 = step(stem(x, *convs, ENCODER_SLOPE, padding=self.stem_padding), self.down2)
        l2 = step(l1, self.down3)
        l3 = step(l2, self.down4)
        l2 = self.rb_8th[1](upsample_add(self.rb_8th[0](l2), self.rb_16th(l3)))
        l1 = upsample_add(self.rb_4th[1](self.rb_4th[0](l1)), l2)
        return cast(Tensor, self.rb_4th[4](self.rb_4th[3](self.rb_4th[2](l1))))


class ESA(nn.Module):
    """Enhanced spatial attention: y times a gate from a small, wide-sighted branch (RFDN, arXiv 2009.11551).

    `[B, C, H, W]` to the same shape; H and W >= 15, which the stride-2 convolution and the 7x7 pooling need.
    Raises ValueError for a smaller map.
    """

    def __init__(self, features: int = 50, esa: int = 12) -> None:
        super().__init__()
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
        v = F.max_pool2d(self.conv2(a), 7, stride=3)
        v = F.relu(self.conv_max(v), inplace=True)
        v = F.relu(self.conv3(v), inplace=True)
        return esa_gate(y, a, self.conv3_(v), weight_and_bias(self.conv_f), weight_and_bias(self.conv4))


class RFDB(nn.Module):
    """Residual feature distillation block (the paper's section 2.2). `[B, C, H, W]` to the same shape, H, W >= 15."""

    lean: bool = False
    """Whether backward computes the block again, from its input alone."""

    def __init__(self, features: int = 50, distilled: int = 25, esa: int = 12) -> None:
        super().__init__()
        self.distil = nn.ModuleList([nn.Conv2d(features, distilled, 1) for _ in range(3)])
        self.refine = nn.ModuleList([nn.Conv2d(features, features, 3, padding=1) for _ in range(3)])
        self.distil_last = nn.Conv2d(features, distilled, 3, padding=1)
        self.fuse = nn.Conv2d(4 * distilled, features, 1)
        keep_scale(*self.distil, self.distil_last, self.fuse)
        self.esa = ESA(features, esa)

    def forward(self, x: Tensor) -> Tensor:
        (d1, d2, d3), (r1, r2, r3) = map(weight_and_bias, self.distil), map(weight_and_bias, self.refine)
        e = self.esa
        rest = (self.distil_last, self.fuse, e.conv1, e.conv_f, e.conv2, e.conv_max, e.conv3, e.conv3_, e.conv4)
        weights = RFDBWeights((d1, d2, d3), (r1, r2, r3), *map(weight_and_bias, rest))
        if self.lean and torch.is_grad_enabled():
            return cast(Tensor, recomputed(rfdb, x, weights, DECODER_SLOPE, use_reentrant=False))
        return rfdb(x, weights, DECODER_SLOPE)


class ALFM(nn.Module):
    """Attention between layers, then a 1x1 fusion (the paper's section 2.3).

    N maps `[B, C, H, W]` to one `[B, C, H, W]`: with F the maps as rows, L = theta * softmax(F F^T) F + F and
    LR(conv1x1(L)). `rows="channels"`: NC rows of WH values (the paper). `rows="layers"`: N rows of C*H*W values and
    softmax(rowmax(E) - E), as released. theta starts at 0, where the attention is the identity. The scores are summed
    in float32 whatever the input's type: they pass 2.6e5 at 720p, more than float16 holds.

    Raises ValueError when the number of maps is not `layers`.
    """

    def __init__(
        self,
        features: int = 50,
        layers: int = 4,
        rows: Literal["channels", "layers"] = "channels",
        similarity: Literal["dot", "cosine"] = "dot",
    ) -> None:
        super().__init__()
        self.rows, self.layers, self.similarity = rows, layers, similarity
        self.theta = nn.Parameter(torch.zeros(1))
        self.temperature = nn.Parameter(torch.full((1,), 10.0)) if similarity == "cosine" else None
        self.fuse = nn.Conv2d(layers * features, features, 1)
        keep_scale(self.fuse)

    def attention(self, maps: Sequence[Tensor]) -> Tensor:
        """The attention matrix M, float32 (float64 for float64): `[B, NC, NC]` or `[B, N, N]`."""
        return attention_matrix(layer_gram(maps, rows=self.rows), self.temperature, rows=self.rows)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return self.deferred(maps)()

    def deferred(self, maps: Sequence[Tensor]) -> LayerAttention:
        """What ACFM adds without its being written first. Within LMFN, so, hooks on this module see no call."""
        if len(maps) != self.layers:
            raise ValueError(f"ALFM was made for {self.layers} layers, got {len(maps)} maps")
        return LayerAttention(
            maps, self.theta, *weight_and_bias(self.fuse), self.temperature, rows=self.rows, slope=DECODER_SLOPE
        )


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
            # Positive at first: with one channel, an unlucky sign would leave a ReLU, and the gate, dead for ever.
            self.spatial_weight, self.spatial_bias = uniform(0, 1 / 3, 3, 3), uniform(0, 1 / 3, 1)
            self.channel_weight, self.channel_bias = uniform(0, 3**-0.5, 3), uniform(0, 3**-0.5, 1)
        else:
            self.weight, self.bias = uniform(-(27**-0.5), 27**-0.5, 3, 3, 3), uniform(-(27**-0.5), 27**-0.5, 1)

    def forward(self, x: Tensor, add: Tensor | LayerAttention | None = None) -> Tensor:
        """The gated x, plus `add` where given: the merge of the two attentions."""
        gate: Pseudo3D | Full3D
        if self.form == "pseudo3d":
            gate = Pseudo3D(self.spatial_weight, self.spatial_bias, self.channel_weight, self.channel_bias)
        else:
            gate = Full3D(self.weight, self.bias)
        return channel_gate(x, gate, self.alpha, add)


def uniform(low: float, high: float, *shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape).uniform_(low, high))


class BilinearHead(nn.Module):
    """RB, up, RB, up, conv (the paper's figure 1). `[B, C, H, W]` to `[B, 3, 4H, 4W]`."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.rb1, self.rb2 = RB(features), RB(features)
        self.conv = nn.Conv2d(features, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return upsampled_conv3x3(self.rb2(self.rb1(x), upsample=True), weight_and_bias(self.conv))


class PixelShuffleHead(nn.Module):
    """One convolution and a pixel shuffle (released). `[B, C, H, W]` to `[B, 3, 4H, 4W]`."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(features, 48, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(conv3x3(x, *weight_and_bias(self.conv)), 4)


class LMFN(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="lmfn",
    tags=["image-deblurring", "image-to-image"],
    license="apache-2.0",
    paper_url="https://arxiv.org/abs/2101.05403",
):
    """The network: blurred `[B, 3, H, W]` to sharp `[B, 3, H, W]`, RGB in [0, 1] (not clipped), any H and W >= 1.

    Padded by reflection (replication where the image is smaller than the pad) on the right and the bottom to a multiple
    of 16 and to at least 64, and cropped back.

    Raises TypeError for an input that is not floating point, ValueError for one that is not `[B, 3, H, W]`.
    """

    mean: Tensor

    def __init__(self, config: LMFNConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or LMFNConfig()
        self.register_buffer("mean", torch.tensor(RGB_MEAN), persistent=False)
        from lmfn import ablations  # made of this module's parts

        self.encoder: nn.Module
        if c.encoder == "mshf":
            self.encoder = MSHF(c.channels, c.stem_padding)
        else:
            self.encoder = ablations.encoder(c.encoder, c.channels)
        self.reduce = nn.Conv2d(c.channels, c.features, 3, padding=1)
        keep_scale(self.reduce)
        self.rfdbs = nn.ModuleList([RFDB(c.features, c.distilled, c.esa) for _ in range(c.rfdbs)])
        self.alfm: nn.Module | None = None
        if c.alfm in ("channels", "layers"):
            self.alfm = ALFM(c.features, c.rfdbs, c.alfm, c.similarity)
        elif c.alfm != "none":
            self.alfm = ablations.FUSIONS[c.alfm](c.features, c.rfdbs)
        self.acfm = ACFM(c.acfm) if c.acfm != "none" else None
        self.merge = nn.Conv2d(2 * c.features, c.features, 3, padding=1) if c.merge == "concat" else None
        self.head = BilinearHead(c.features) if c.head == "bilinear" else PixelShuffleHead(c.features)
        if c.skip == "image":  # so that an untrained network is near the identity
            start_small(self.head.conv)

    @property
    def memory(self) -> Memory:
        """What training keeps for backward: `lean` is half as much, and more is computed again. Same weights."""
        return "lean" if self.rfdbs[0].lean else "normal"

    @memory.setter
    def memory(self, value: Memory) -> None:
        if value not in get_args(Memory):
            raise ValueError(f"memory is {value!r}; it must be one of {', '.join(get_args(Memory))}")
        for module in self.modules():
            if isinstance(module, (RB, RFDB)):
                module.lean = value == "lean"

    def forward(self, blurred: Tensor) -> Tensor:
        if blurred.ndim != 4 or blurred.shape[1] != 3 or min(blurred.shape[2:]) < 1:
            raise ValueError(f"LMFN takes images [B, 3, H, W], got a tensor of shape {tuple(blurred.shape)}")
        if not blurred.is_floating_point():
            raise TypeError(f"LMFN takes floating point images in [0, 1], got {blurred.dtype}")
        if blurred.shape[0] == 0:
            return blurred.clone()
        height, width = blurred.shape[2:]
        mean = self.mean.view(3, 1, 1)
        x = pad(blurred - mean)
        f = conv3x3(self.encoder(x), *weight_and_bias(self.reduce))
        out: list[Tensor] = []
        for block in self.rfdbs:
            out.append(block(out[-1] if out else f))
        fused = self.alfm if isinstance(self.alfm, ALFM) and self.acfm is not None and self.merge is None else None
        f_l = self.alfm(out) if self.alfm is not None and fused is None else None
        if self.acfm is None:
            y = out[-1] if f_l is None else f_l
        elif self.merge is None:
            y = self.acfm(out[-1], add=fused.deferred(out) if fused else f_l)
        else:
            both = torch.cat([cast(Tensor, f_l), self.acfm(out[-1])], dim=1)
            y = conv3x3(both, *weight_and_bias(self.merge), residual=f if self.config.skip == "feature" else None)
        if self.config.skip == "feature" and self.merge is None:
            y = y + f
        sharp = self.head(y)[..., :height, :width]
        return cast(Tensor, sharp + blurred if self.config.skip == "image" else sharp + mean)

    @classmethod
    def from_preset(cls, name: str = "lmfn", **overrides: Any) -> Self:
        """An untrained network: `LMFN.from_preset("lmfn", skip="feature")`. Raises ValueError as `preset` does."""
        return cls(preset(name, **overrides))

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write `model.safetensors` (weights and config), `config.json` and a model card into a folder, made if needed.

        The options are `huggingface_hub.PyTorchModelHubMixin`'s (`push_to_hub`, `repo_id`).
        """
        return super().save_pretrained(save_directory, **(options | {"config": asdict(self.config)}))

    def _save_pretrained(self, save_directory: Path) -> None:
        checkpoint.write(save_directory / "model.safetensors", self.state_dict(), {"config": asdict(self.config)})

    @classmethod
    def from_pretrained(cls, name: str | Path = "lmfn", **options: Any) -> Self:  # type: ignore[override]
        """A trained network, in evaluation mode, on the CPU, float32.

        `name` is `lmfn` or `lmfn-released`, whose weights come with this package (`lmfn.weights`), a folder that
        `save_pretrained` or train.py wrote, one of its `.safetensors` files, or the name `owner/model` of a repository
        on the Hugging Face Hub (the options are then `hf_hub_download`'s).

        Raises FileNotFoundError where there is no such thing, ValueError where the file is broken or does not fit.
        """
        path = checkpoint.locate(name, **options)
        tensors, metadata = checkpoint.read(path)
        if "config" not in metadata:
            raise ValueError(f"{path} holds no network's weights; its metadata has {', '.join(metadata) or 'nothing'}")
        model = cls(preset("lmfn", **metadata["config"]))
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:
            raise ValueError(f"{path} does not fit its own config: {error}") from error
        return model.eval()

    def for_inference(
        self, device: str | torch.device | None = None, dtype: torch.dtype | None = None
    ) -> Callable[[Tensor], Tensor]:
        """As a function that is faster than the network and has no gradients: see `lmfn.inference.for_inference`."""
        from lmfn.inference import for_inference  # made of this module's parts

        return for_inference(self, device, dtype)


def pad(x: Tensor) -> Tensor:
    """Pad on the right and the bottom to a multiple of 16 and at least 64; by replication where reflection cannot."""
    height, width = x.shape[-2:]
    bottom = max(SMALLEST, -(-height // MULTIPLE) * MULTIPLE) - height
    right = max(SMALLEST, -(-width // MULTIPLE) * MULTIPLE) - width
    if right:
        x = F.pad(x, (0, right, 0, 0), mode="reflect" if right < width else "replicate")
    if bottom:
        x = F.pad(x, (0, 0, 0, bottom), mode="reflect" if bottom < height else "replicate")
    return x
