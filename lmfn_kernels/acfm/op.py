"""The ACFM's op: a gate for every value of an image from its neighbours in channel, height and width.

Zhang et al., "Image deblurring based on lightweight multi-information fusion network", ICIP 2021, arXiv 2101.05403,
section 2.3. The form with one 3x3x3 convolution is that of the network its authors released.
"""

# ruff: noqa: ARG001  (an op's forward and backward function have the same arguments for every op)

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from lmfn_kernels.acfm import reference
from lmfn_kernels.runtime import backend, checks
from lmfn_kernels.runtime.registration import Gradients, Op, Tensors, pieces

WIDEST = 64  # channels that one program of a kernel holds


class Pseudo3D(NamedTuple):
    """q = relu(conv3x1x1(relu(conv1x3x3(x)))), over (channel, height, width), one channel in and out: the paper's."""

    spatial_weight: Tensor
    """[3, 3]"""
    spatial_bias: Tensor
    """[1]"""
    channel_weight: Tensor
    """[3]"""
    channel_bias: Tensor
    """[1]"""


class Full3D(NamedTuple):
    """q = conv3x3x3(x), over (channel, height, width), one channel in and out: the released network's."""

    weight: Tensor
    """[3, 3, 3]"""
    bias: Tensor
    """[1]"""


Gate = Pseudo3D | Full3D


def channel_gate(x: Tensor, gate: Gate, alpha: Tensor, add: Tensor | None = None) -> Tensor:
    """x + alpha sigmoid(q) x + add, with q from the neighbours of each value in channel, height and width.

    `x`, `add` and the result [B, C, H, W], float32, float16, bfloat16 or float64, of any strides, zero beyond the
    borders; `gate` the weights of q, whose type says its form; `alpha` [1]. All tensors of one dtype on one device;
    computed in float32 (float64 for float64). The result is channels-last, from the kernels with a pixel stride rounded
    up to 16 bytes. Under autocast, images are cast to its dtype, weights left as they are. First-order gradients only.

    Kept for backward: `x`, and the 14 or 28 weights.

    Raises TypeError or ValueError, naming the argument, before anything runs.
    """
    checks.image("x", x)
    if not isinstance(gate, (Pseudo3D, Full3D)):
        raise TypeError(f"gate is a {type(gate).__name__}; expected is Pseudo3D or Full3D")
    shapes = ((3, 3), (1,), (3,), (1,)) if isinstance(gate, Pseudo3D) else ((3, 3, 3), (1,))
    for name, weight, shape in zip(gate._fields, gate, shapes, strict=True):
        checks.tensor(f"gate.{name}", weight, shape, x)
    checks.tensor("alpha", alpha, (1,), x)
    if add is not None:
        checks.tensor("add", add, x.shape, x)
    body = backend.choose(x, _refusal(x), "channel_gate")
    if body == "reference":
        return reference.channel_gate(x, gate, alpha, add)
    # As vectors, because autocast leaves vectors in float32.
    return _channel_gate(body, (x, add, alpha, *(weight.flatten() for weight in gate)), ())[0]


def _refusal(x: Tensor) -> str | None:
    """Why the kernels cannot take this image, if so."""
    return f"it has {x.shape[1]} channels, and the kernels hold at most {WIDEST}" if x.shape[1] > WIDEST else None


def _channel_gate_forward(body: str, tensors: Tensors, options: Sequence[float], keep: bool) -> list[Tensor]:
    p, (x, add, alpha, *gate) = pieces("acfm", body), tensors
    return [p.gate(p.layout(x), None if add is None else p.layout(add), alpha, gate)]


def _channel_gate_backward(
    body: str,
    gradients: Tensors,
    kept: Sequence[Tensor],
    tensors: Tensors,
    options: Sequence[float],
    needs: Sequence[bool],
) -> list[Tensor]:
    p, (x, _, alpha, *gate), (g,) = pieces("acfm", body), tensors, gradients
    assert g is not None
    dx, dalpha, dgate = p.gate_backward(p.layout(g), p.layout(x), alpha, gate)
    found = Gradients([x, g, alpha, *gate], needs)
    found.put(0, dx, g.clone() if needs[1] else None, dalpha, *dgate)  # its own memory, as an op's result must have
    return found.list()


_channel_gate = Op("channel_gate", 1, _channel_gate_forward, _channel_gate_backward, forgets=(1,))
