"""Autocast: whether it applies to a tensor, and the dtype in which an op then computes."""

import torch
from torch import Tensor


def is_enabled(x: Tensor) -> bool:
    """Whether autocast is enabled on the device of `x`. For the meta device, even asking raises an error."""
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which an op computes with `x`: that of autocast if it is enabled, except for float64."""
    return torch.get_autocast_dtype(x.device.type) if is_enabled(x) and x.dtype != torch.float64 else x.dtype
