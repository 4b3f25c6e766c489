"""Bilinear upsampling (align_corners False), added to another map.

Images are float32, float16, bfloat16 or float64 `[B, C, H, W]` of any strides, of one dtype on one device. Sums are in
float32 (float64 for float64). The result is channels-last, from the kernels with a pixel stride rounded up to 16 bytes.
Nothing is kept for backward. Under autocast, images are cast to its dtype. Gradients are of first order.
"""

# ruff: noqa: ARG001  (an op's forward and backward function have the same arguments for every op)

from collections.abc import Sequence

from torch import Tensor

from lmfn_kernels.bilinear import reference
from lmfn_kernels.runtime import backend, checks
from lmfn_kernels.runtime.registration import Op, Tensors, given, pieces


def upsample_add(a: Tensor, b: Tensor) -> Tensor:
    """a + b brought up to the size of a: `a` and the result [B, C, H, W], `b` [B, C, h, w]. Errors as in `conv3x3`."""
    checks.image("a", a)
    checks.image("b", b)
    checks.tensor("b", b, (*a.shape[:2], None, None), a)
    body = backend.choose(a, None, "upsample_add")
    return reference.upsample_add(a, b) if body == "reference" else _upsample_add(body, (a, b), ())[0]


def _upsample_add_forward(body: str, tensors: Tensors, options: Sequence[float], keep: bool) -> list[Tensor]:
    p = pieces("bilinear", body)
    a, b = map(p.layout, given(tensors))
    # Backward needs the size of b alone, and this has it without a byte.
    return [p.upsample_add(b, a.shape[2:], a), b.new_empty((*b.shape[2:], 0))]


def _upsample_add_backward(
    body: str,
    gradients: Tensors,
    kept: Sequence[Tensor],
    tensors: Tensors,
    options: Sequence[float],
    needs: Sequence[bool],
) -> list[Tensor]:
    p, (g,), (size,) = pieces("bilinear", body), given(gradients), kept
    found = [g.clone()] if needs[0] else []  # its own memory, as an op's result must have
    if needs[1]:
        b = g.new_empty(()).expand(*g.shape[:2], *size.shape[:2])
        found.append(p.upsample_backward(p.layout(g), b))
    return found


_upsample_add = Op("upsample_add", 1, _upsample_add_forward, _upsample_add_backward, forgets=(0, 1))
