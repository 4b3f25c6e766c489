"""Gradients with pending activation masks, and gradients as partial sums."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class PendingMask(NamedTuple):
    """A gradient after a leaky ReLU, whose mask is applied by the kernel that loads it."""

    gradient: Tensor
    activation_output: Tensor | None
    """Output of the activation; None without an activation."""
    slope: float


@dataclass(frozen=True)
class PartialSums:
    """The gradient of a small tensor, still to be summed: an op sums all of its gradients in one launch."""

    values: Tensor
    """[partial sums, *the tensor's shape], of any strides."""


Gradient = Tensor | PartialSums
ConvGradient = tuple[Gradient, Gradient]
"""Of weight and bias."""
