"""Gradients on their way through activations."""

from typing import NamedTuple

from torch import Tensor


class PendingMask(NamedTuple):
    """A gradient after a leaky ReLU, which whoever loads it takes to before: its sign mask is still to be applied."""

    gradient: Tensor
    activation_output: Tensor | None
    """None: there is no activation."""
    slope: float
