"""Argument checks. Every error names the argument, the value, and the expectation."""

from collections.abc import Sequence

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def image(name: str, x: Tensor, smallest: int = 1) -> None:
    """`x` is a non-empty floating point `[B, C, H, W]` with H and W at least `smallest`."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} is a {type(x).__name__}; a tensor [B, C, H, W] is expected")
    if x.dtype not in DTYPES:
        raise TypeError(f"{name} has dtype {x.dtype}; expected is one of {', '.join(map(str, DTYPES))}")
    if x.ndim != 4 or min(x.shape) < 1:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; a non-empty [B, C, H, W] is expected")
    if min(x.shape[2:]) < smallest:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; height and width of at least {smallest} are expected")


def tensor(name: str, x: Tensor, shape: Sequence[int | None], like: Tensor) -> None:
    """`x` has this shape (None is any size), the device and the dtype of `like`; with autocast dtypes may differ."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} is a {type(x).__name__}; a tensor is expected")
    if x.shape != shape and (
        x.ndim != len(shape) or any(e is not None and s != e for s, e in zip(x.shape, shape, strict=True))
    ):
        expected = ", ".join("any" if e is None else str(e) for e in shape)
        raise ValueError(f"{name} has shape {tuple(x.shape)}; expected is ({expected})")
    if x.device != like.device:
        raise ValueError(f"{name} is on {x.device}; expected is {like.device}, where the input is")
    if x.dtype != like.dtype and not (torch.is_autocast_enabled(like.device.type) and x.is_floating_point()):
        raise TypeError(f"{name} has dtype {x.dtype}; expected is {like.dtype}, which the input has")


def slope(value: float) -> None:
    """The mask of a leaky ReLU is derived from the sign of its output, which needs a positive slope."""
    if not 0 < value <= 1:
        raise ValueError(f"slope is {value}; expected is a number above 0 and at most 1")
