"""Gradients with pending activation masks."""

from typing import NamedTuple

from torch import Tensor


class PendingMask(NamedTuple):
    """A gradient after a leaky ReLU, whose mask is applied by the kernel that loads it."""

    gradient: Tensor
    activation_output: Tensor | None
    """Output of the activation; None without an activation."""
    slope: float
