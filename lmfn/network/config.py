"""The configuration of a network, and the two presets.

The paper and the network that its authors released later differ; both are presets: `lmfn` and `lmfn-released`.
"""

import reprlib
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args


@dataclass(frozen=True)
class LMFNConfig:
    """Configuration of a network. The defaults are the paper's network (preset `lmfn`)."""

    channels: int = 64
    """Channels of the encoder."""
    features: int = 50
    """Channels of the decoder (nf)."""
    distilled: int = 25
    """Channels that each stage of an RFDB distils (d)."""
    esa: int = 12
    """Channels inside ESA (f)."""
    esa_grid: Literal["stretched", "fixed"] = "stretched"
    """How ESA's small branch is upsampled to its map: stretched to fit (the paper), or every pixel to 6x6 from the
    upper left corner, so that a tile that starts on this grid sees the same as the whole image."""
    rfdbs: int = 4
    """Number of residual feature distillation blocks (N), 1 to 8."""
    encoder: Literal["mshf", "unfused", "strided", "aspp", "pyramid"] = "mshf"
    """The paper's encoder, that without its smaller scales (`unfused`), or a replacement for ablations
    (`lmfn.network.alternatives`)."""
    stem_padding: int = 1
    """Padding of the very first convolution of `mshf`: 1, or 0 as in the released network."""
    alfm: Literal["channels", "layers", "concat", "pooled", "spatial", "none"] = "channels"
    """Rows of the attention between layers: every channel of every layer (NC x NC, the paper), every layer (N x N, the
    released network). `concat` fuses the layers without attention, `pooled` and `spatial` with another one
    (`lmfn.network.alternatives`); `none` uses only the last RFDB's output."""
    similarity: Literal["dot", "cosine"] = "dot"
    """Similarity of two rows in ALFM. `dot` grows with the image; `cosine` does not depend on its size."""
    alfm_window: int | None = None
    """Side, in pixels of the image, of the windows in which ALFM attends: a multiple of 8, or None for the whole image
    (the paper). With windows, a network trained on patches sees the same attention on larger images."""
    acfm: Literal["pseudo3d", "full3d", "none"] = "pseudo3d"
    """Attention between channels: 1x3x3 then 3x1x1 (the paper), one 3x3x3 convolution (released), or none."""
    merge: Literal["add", "concat"] = "add"
    """How the results of the two attentions are merged: a sum (the paper), or concatenation and a 3x3 convolution."""
    head: Literal["bilinear", "pixelshuffle"] = "bilinear"
    """RB, up, RB, up, conv (the paper), or one convolution and PixelShuffle(4) (released)."""
    skip: Literal["image", "feature", "none"] = "image"
    """Where the long skip is added: the input image to the output, the encoder's features before the head, nowhere."""

    def __post_init__(self) -> None:
        window, shown = self.alfm_window, reprlib.repr(self.alfm_window)  # a file may contain anything, of any length
        if window is not None and (not isinstance(window, int) or isinstance(window, bool)):
            raise TypeError(f"LMFNConfig.alfm_window is {shown}; it must be a whole number or None")
        if window is not None and (window % 8 or not 64 <= window <= 2**20):
            raise ValueError(f"LMFNConfig.alfm_window is {shown}; it must be a multiple of 8 from 64 to {2**20}")
        for field in fields(self):
            if field.name == "alfm_window":
                continue
            value = getattr(self, field.name)
            shown = reprlib.repr(value)
            choices = get_args(field.type)
            low, high = {"rfdbs": (1, 8), "stem_padding": (0, 1)}.get(field.name, (1, 1024))
            if choices and value not in choices:
                raise ValueError(f"LMFNConfig.{field.name} is {shown}; it must be one of {', '.join(choices)}")
            if not choices and (not isinstance(value, int) or isinstance(value, bool)):
                raise TypeError(f"LMFNConfig.{field.name} is {shown}; it must be a whole number")
            if not choices and not low <= value <= high:
                raise ValueError(f"LMFNConfig.{field.name} is {shown}; it must be from {low} to {high}")
        if self.merge == "concat" and "none" in (self.alfm, self.acfm):
            raise ValueError('LMFNConfig.merge="concat" joins two attentions, but alfm or acfm is "none"; use "add"')


PRESETS: dict[str, LMFNConfig] = {
    "lmfn": LMFNConfig(),
    "lmfn-released": LMFNConfig(
        stem_padding=0, alfm="layers", acfm="full3d", merge="concat", head="pixelshuffle", skip="feature"
    ),
}


def preset(name: str, **overrides: Any) -> LMFNConfig:
    """The config of that name (`lmfn`, `lmfn-released`) with some fields replaced.

    Raises ValueError for an unknown preset, field or value.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}")
    known = [field.name for field in fields(LMFNConfig)]
    unknown = [key for key in overrides if key not in known]
    if unknown:
        raise ValueError(f"unknown field of LMFNConfig: {', '.join(unknown)[:100]}; there are {', '.join(known)}")
    return replace(PRESETS[name], **overrides)
