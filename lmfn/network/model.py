"""LMFN: a lightweight multi-information fusion network for image deblurring.

Zhang et al., "Image deblurring based on lightweight multi-information fusion network", ICIP 2021, arXiv 2101.05403.
Needs only PyTorch and `lmfn_kernels`; `lmfn.network.pretrained` adds files and the Hugging Face Hub.
"""

from collections.abc import Callable
from typing import Any, Literal, Self, cast, get_args

import torch
from torch import Tensor, nn

from lmfn.network.alternatives import FUSIONS, encoder
from lmfn.network.blocks import (
    ACFM,
    ALFM,
    MSHF,
    RB,
    RFDB,
    BilinearHead,
    PixelShuffleHead,
    keep_scale,
    pad,
    start_small,
    weight_and_bias,
)
from lmfn.network.config import LMFNConfig, preset
from lmfn_kernels import LayerAttention, conv3x3
from lmfn_kernels.runtime.torch_private import FakeTensor

Memory = Literal["normal", "lean"]
RGB_MEAN = (0.4488, 0.4371, 0.4040)


class Network(nn.Module):
    """The network: blurred `[B, 3, H, W]` to sharp `[B, 3, H, W]`, RGB in [0, 1] (not clipped), any H and W >= 1.

    The input is padded on the right and the bottom to a multiple of 16, at least 64, by reflection (replication if it
    is smaller than the padding), and the result cropped to its size.

    Raises TypeError for an input that is not floating point, ValueError for one that is not `[B, 3, H, W]`.
    """

    def __init__(self, config: LMFNConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or LMFNConfig()
        self._means: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self.encoder: nn.Module
        if c.encoder == "mshf":
            self.encoder = MSHF(c.channels, c.stem_padding)
        else:
            self.encoder = encoder(c.encoder, c.channels)
        self.reduce = nn.Conv2d(c.channels, c.features, 3, padding=1)
        keep_scale(self.reduce)
        self.rfdbs = nn.ModuleList(
            [RFDB(c.features, c.distilled, c.esa, c.esa_grid == "fixed") for _ in range(c.rfdbs)]
        )
        self.alfm: nn.Module | None = None
        if c.alfm in ("channels", "layers"):
            self.alfm = ALFM(c.features, c.rfdbs, c.alfm, c.similarity, c.alfm_window and c.alfm_window // 4)
        elif c.alfm != "none":
            self.alfm = FUSIONS[c.alfm](c.features, c.rfdbs)
        self.acfm = ACFM(c.acfm) if c.acfm != "none" else None
        self.merge = nn.Conv2d(2 * c.features, c.features, 3, padding=1) if c.merge == "concat" else None
        self.head = BilinearHead(c.features) if c.head == "bilinear" else PixelShuffleHead(c.features)
        if c.skip == "image":  # so that an untrained network is near the identity
            start_small(self.head.conv)

    @property
    def memory(self) -> Memory:
        """What training saves for backward: `lean` saves half as much and recomputes the rest. The weights are the
        same."""
        return "lean" if self.rfdbs[0].recompute else "normal"

    @memory.setter
    def memory(self, value: Memory) -> None:
        if value not in get_args(Memory):
            raise ValueError(f"memory is {value!r}; it must be one of {', '.join(get_args(Memory))}")
        for module in self.modules():
            if isinstance(module, (RB, RFDB)):
                module.recompute = value == "lean"

    def forward(self, blurred: Tensor) -> Tensor:
        if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            raise RuntimeError(
                "torch.jit.trace would keep one image's size and branches for all; use torch.export, or lmfn export"
            )
        if blurred.ndim != 4 or blurred.shape[1] != 3 or min(blurred.shape[2:]) < 1:
            raise ValueError(f"LMFN takes images [B, 3, H, W], got a tensor of shape {tuple(blurred.shape)}")
        if not blurred.is_floating_point():
            raise TypeError(f"LMFN takes floating point images in [0, 1], got {blurred.dtype}")
        if blurred.shape[0] == 0:
            return blurred.clone()
        height, width = blurred.shape[2:]
        x, mean = pad(blurred), self.mean_like(blurred)
        f = conv3x3(self.encoder(x, mean), *weight_and_bias(self.reduce))
        out: list[Tensor] = []
        y = f
        for block in self.rfdbs:
            y = block(y, out)
        fused = self.alfm if isinstance(self.alfm, ALFM) and self.acfm is not None and self.merge is None else None
        f_l = self.alfm(out) if self.alfm is not None and fused is None else None
        y = self.attend(fused.deferred(out) if fused else f_l, out[-1], f)
        del f, out, f_l  # the head needs most memory
        sharp: Tensor = self.head(y, x if self.config.skip == "image" else mean[:, None, None].expand_as(x))
        return sharp[..., :height, :width]

    def attend(self, f_l: Tensor | LayerAttention | None, last: Tensor, f: Tensor) -> Tensor:
        """ACFM and the merge: from ALFM's result, the last RFDB's and the encoder's to the input of the head."""
        if self.acfm is None:
            y = last if f_l is None else cast(Tensor, f_l)
        elif self.merge is None:
            y = self.acfm(last, add=f_l)
        else:
            both = torch.cat([cast(Tensor, f_l), self.acfm(last)], dim=1)
            y = conv3x3(both, *weight_and_bias(self.merge), residual=f if self.config.skip == "feature" else None)
        if self.config.skip == "feature" and self.merge is None:
            y = y + f
        return y

    def mean_like(self, x: Tensor) -> Tensor:
        """`RGB_MEAN` as `[3]`, with the dtype and on the device of `x`.

        It is not a buffer: weight files do not contain it, so `to_empty` would leave a buffer unset. It is copied to a
        device once and kept there: copying in every call would wait for the device, and a CUDA graph could not capture
        it.
        """
        if torch.compiler.is_compiling() or isinstance(x, FakeTensor):
            return x.new_tensor(RGB_MEAN)
        if (x.device, x.dtype) not in self._means:
            with torch.inference_mode(False):  # a tensor made in inference mode could not be saved for backward later
                self._means[x.device, x.dtype] = torch.tensor(RGB_MEAN, dtype=x.dtype, device=x.device)
        return self._means[x.device, x.dtype]

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles make the mean anew: one made within `torch.func` is a wrapper that cannot be copied."""
        return self.__dict__ | {"_means": {}}

    @classmethod
    def from_preset(cls, name: str = "lmfn", **overrides: Any) -> Self:
        """An untrained network: `LMFN.from_preset("lmfn", skip="feature")`. Raises ValueError as `preset` does."""
        return cls(preset(name, **overrides))

    def for_inference(
        self, device: str | torch.device | None = None, dtype: torch.dtype | None = None
    ) -> Callable[[Tensor], Tensor]:
        """The network as a faster function without gradients: see `lmfn.inference.for_inference`."""
        # Imported here, the one exception to the order of the packages, since `inference` is built on this module.
        from lmfn.inference import for_inference

        return for_inference(self, device, dtype)
