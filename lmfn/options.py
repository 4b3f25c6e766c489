"""Option values of the command line, without importing PyTorch, which takes seconds, so that `lmfn --help` is quick."""

import math
import re
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Literal, Self, get_args

Precision = Literal["fp32", "bf16", "fp16"]
"""fp32, or autocast to one of the 16-bit dtypes."""

InferencePrecision = Literal["fp32", "bf16", "fp16", "fp8"]
"""fp8: some maps in FP8, the others in bf16, for Hopper GPUs; simulated elsewhere."""

ExportFormat = Literal["onnx", "ncnn", "darktable"]
"""What `lmfn export` writes."""

ExportType = Literal["float32", "float16"]
"""Dtype of the weights and the convolutions in an exported network."""

Frames = Literal["all", "first"]
"""The images to use from a file with several (pages, frames)."""

Guard = Literal["warn", "input", "off"]
"""Treatment of implausible outputs, or parts of outputs: `warn` keeps them, `input` restores the input, each with a
warning; `off` skips the check."""

Variant = Literal["blur", "blur_gamma"]
"""One of GoPro's two kinds of blurred images: the mean of the frames, or their mean with a gamma of 2.2 undone."""

BlurKind = Literal[
    "shake", "uneven", "comb", "curve", "zoom", "object", "depth", "sharp", "soft", "jpeg", "text", "pattern", "flat"
]
"""The fields of `BlurKinds`."""


@dataclass(frozen=True)
class BlurKinds:
    """Relative frequency of each kind of image made from photographs; 0 excludes a kind.

    Raises ValueError for a share that is negative or not finite, naming the field, and if all are 0.
    """

    shake: float = 1.0
    """A hand-held camera: a smooth path at varying speed, with a rotation."""
    uneven: float = 1.0
    """The same with pauses, during which light accumulates at a point, and jerks, at which the direction jumps."""
    comb: float = 0.6
    """The mean of a few discrete positions along the path, as from multiple exposures and flickering light."""
    curve: float = 0.4
    """Paths that turn by up to one and a half circles."""
    zoom: float = 0.4
    """Rotation and zoom about a point."""
    object: float = 0.7
    """An object cut from another part of the photograph that moves in front of a background, which may stand still."""
    depth: float = 0.6
    """A camera path whose effect depends on depth: distant things move less."""
    sharp: float = 0.25
    """To be left alone: the photograph as it is."""
    soft: float = 0.15
    """To be left alone: the photograph out of focus by about a pixel and compressed, like a video frame."""
    jpeg: float = 0.1
    """To be left alone: the photograph with JPEG artefacts."""
    text: float = 0.1
    """To be left alone: text."""
    pattern: float = 0.2
    """To be left alone: checks, bars, gratings, dots, lines, zone plates, stars, on all or part of the photograph."""
    flat: float = 0.1
    """To be left alone: borders and areas of one colour, mostly white or black."""

    def __post_init__(self) -> None:
        for kind in fields(self):
            share = getattr(self, kind.name)
            if not _is_number(share) or share < 0:
                raise ValueError(f"BlurKinds.{kind.name} is {share!r}; it must be a share, 0 or more")
        if not any(self.shares):
            raise ValueError("every share of BlurKinds is 0; at least one kind must have a share above 0")

    @property
    def shares(self) -> tuple[float, ...]:
        """In the order of `BlurKind`."""
        return tuple(getattr(self, kind) for kind in get_args(BlurKind))

    @classmethod
    def moving(cls) -> Self:
        """The kinds that blur a photograph, in their default shares, without those that are to be left alone."""
        return cls(sharp=0, soft=0, jpeg=0, text=0, pattern=0, flat=0)

    @classmethod
    def only(cls, *kinds: BlurKind) -> Self:
        """Only these kinds, in equal shares. Raises ValueError for an unknown one."""
        known = get_args(BlurKind)
        for kind in kinds:
            if kind not in known:
                raise ValueError(f"unknown kind of blur {kind!r}; there are {', '.join(known)}")
        return cls(**{kind: float(kind in kinds) for kind in known})


@dataclass(frozen=True)
class BlurOptions:
    """The ranges from which synthetic blur is drawn, each (minimum, maximum); equal ends fix a value.

    Raises ValueError for a range or a probability that is not one, naming the field.
    """

    kinds: BlurKinds = field(default_factory=BlurKinds)
    """The kinds of images made from photographs."""
    length: tuple[float, float] = (2.0, 24.0)
    """Length in pixels of the path that the image or object travels during the exposure; for `zoom`, that of the corner
    that travels farthest."""
    curvature: tuple[float, float] = (0.0, 180.0)
    """Degrees between the extreme directions of that path: 0 is a straight line, 180 a hook or a wave. The kind `curve`
    always has 180 to 540."""
    rotation: tuple[float, float] = (0.0, 8.0)
    """Pixels that a corner of the photograph travels by rotation about the centre."""
    teeth: tuple[int, int] = (5, 9)
    """Number of positions of a `comb`."""
    highlights: tuple[float, float] = (1.0, 2.0)
    """Factor by which the light of a clipped value (255) exceeded white, so that its streak stays white;
    1 with text on the photograph, whose paper is white."""
    contrast: tuple[float, float] = (0.0, 0.4)
    """Share of an S-shaped curve in the tone curve of the camera that took the photograph: 0 is the sRGB curve."""
    labels: float = 0.08
    """Probability of text in a blurred photograph."""
    frames: tuple[int, int] = (7, 13)
    """Number of consecutive frames whose mean is a blurred image; odd, so that there is a middle one."""
    linear_light: float = 0.5
    """Probability that frames are averaged with a gamma of 2.2 undone (as in GoPro's `blur_gamma`), not as they are."""
    shot_noise: tuple[float, float] = (0.0, 3e-4)
    """Variance of the noise in linear light that grows with the light: at value x in [0, 1] it is shot_noise * x."""
    read_noise: tuple[float, float] = (0.0, 5e-4)
    """Standard deviation of the noise in linear light that does not depend on the light."""
    mosaic: float = 0.5
    """Probability that noise is added to the raw values of a Bayer sensor, which are then white-balanced, demosaiced
    and converted to sRGB as in a camera. Otherwise it is added to each channel independently."""
    jpeg: float = 0.3
    """Probability that a blurred image is compressed by JPEG."""
    jpeg_quality: tuple[int, int] = (50, 95)
    """JPEG quality on the usual scale of 1 to 100 (of the Independent JPEG Group)."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name == "kinds":
                if not isinstance(value, BlurKinds):
                    raise ValueError(f"BlurOptions.kinds is {value!r}; it must be BlurKinds")
                continue
            if each.type is float:
                if not _is_number(value) or not 0 <= value <= 1:
                    raise ValueError(f"BlurOptions.{each.name} is {value!r}; it must be a probability from 0 to 1")
                continue
            if not isinstance(value, tuple | list) or len(value) != 2 or not all(map(_is_number, value)):
                raise ValueError(f"BlurOptions.{each.name} is {value!r}; it must be two numbers (least, most)")
            floor = {"highlights": 1, "frames": 1, "teeth": 1, "jpeg_quality": 1}.get(each.name, 0)
            ceiling = {"contrast": 0.5, "jpeg_quality": 100}.get(each.name, math.inf)
            if not floor <= value[0] <= value[1] <= ceiling:
                limits = f"from {floor} on" if ceiling == math.inf else f"within {floor} and {ceiling}"
                raise ValueError(
                    f"BlurOptions.{each.name} is {value!r}; it must rise from its least to its most, {limits}"
                )
            if each.type == tuple[int, int] and not all(isinstance(n, Integral) for n in value):
                raise ValueError(f"BlurOptions.{each.name} is {value!r}; both ends must be whole numbers")
        if any(n % 2 == 0 for n in self.frames):
            raise ValueError(f"BlurOptions.frames is {self.frames!r}; both ends must be odd whole numbers")

    @property
    def margin(self) -> int:
        """Pixels around a crop of a photograph that the longest path, or softness, may bring into it."""
        return math.ceil(self.length[1] + self.rotation[1]) + 6


def parse_bytes(text: str) -> int:
    """Bytes, from a text such as 2GB, 1.5 GiB or 800M. Raises ValueError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([kMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    if found is None:
        raise ValueError(f"{text!r} is no amount of memory; write it as 2GB, 1.5GiB or 800MB")
    number, prefix, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** " kmgt".index(prefix.lower() or " "))


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
