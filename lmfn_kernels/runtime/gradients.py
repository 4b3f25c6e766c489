"""Gradients with pending activation masks, and gradients as partial sums."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class PendingMask(NamedTuple):
    """A gradient with respect to a leaky ReLU's output; the kernel that loads it applies the activation's mask."""

    gradient: Tensor
    activation_output: Tensor | None
    """Output of the activation; None without an activation."""
    slope: float


@dataclass(frozen=True)
class PartialSums:
    """The gradient of a small tensor as partial sums: an op adds up those of all its gradients in one launch."""

    values: Tensor
    """[number of partial sums, *shape of the tensor], with any strides."""


Gradient = Tensor | PartialSums
ConvGradient = tuple[Gradient, Gradient]
"""Gradients of a convolution's weight and bias."""
