"""Argument checks. Every error names the argument, the value, and the expectation."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lmfn_kernels.runtime import autocast

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def image(name: str, x: Tensor, smallest: int = 1) -> None:
    """Raise TypeError or ValueError unless `x` is a non-empty floating point `[B, C, H, W]`, H and W at least
    `smallest`."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} is a {type(x).__name__}; expected a tensor [B, C, H, W]")
    _check_dtype(name, x)
    if x.ndim != 4 or min(x.shape) < 1:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; expected a non-empty [B, C, H, W]")
    if min(x.shape[2:]) < smallest:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; expected height and width of at least {smallest}")


def tensor(name: str, x: Tensor, shape: Sequence[int | None], like: Tensor) -> None:
    """Raise TypeError or ValueError unless `x` has this shape, and the device and dtype of `like`.

    None is any size but 0. Under autocast, dtypes may differ. If `like` is `x` itself, its dtype must be one of
    `DTYPES`.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} is a {type(x).__name__}; expected a tensor")
    if x.shape != shape and (
        x.ndim != len(shape) or any(s < 1 if e is None else s != e for s, e in zip(x.shape, shape, strict=True))
    ):
        expected = ", ".join("any" if e is None else str(e) for e in shape)
        raise ValueError(f"{name} has shape {tuple(x.shape)}; expected ({expected})")
    if x.device != like.device:
        raise ValueError(f"{name} is on {x.device}; expected {like.device}, where the input is")
    if like is x:
        _check_dtype(name, x)
    elif x.dtype != like.dtype and not (autocast.is_enabled(like) and x.is_floating_point()):
        raise TypeError(f"{name} has dtype {x.dtype}; expected {like.dtype}, which the input has")


def _check_dtype(name: str, x: Tensor) -> None:
    if x.dtype not in DTYPES:
        raise TypeError(f"{name} has dtype {x.dtype}; expected one of {', '.join(map(str, DTYPES))}")


def slope(value: float) -> None:
    """Raise ValueError unless the slope is positive: backward derives the mask from the sign of the output."""
    if not 0 < value <= 1:
        raise ValueError(f"slope is {value}; expected a number above 0 and at most 1")
