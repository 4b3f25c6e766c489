"""Bilinear upsampling (align_corners False), with another map added, or fused into a convolution, so that the upsampled
map is never materialised.

Images are float32, float16, bfloat16 or float64 `[B, C, H, W]` of any strides, all tensors of one dtype on one device.
Sums are in float32 (float64 for float64), and follow PyTorch's own TF32 setting for convolutions; folded weights are
rounded to the images' dtype. The result of `upsample_add` is channels-last, from the kernels with gaps between
pixels (`pixel_pitch`), and it saves nothing for backward. Under autocast, images and weights are cast to its dtype.
Gradients are of first order.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from lmfn_kernels.conv.op import check_conv, outputs_of
from lmfn_kernels.runtime import checks
from lmfn_kernels.runtime.backend import choose
from lmfn_kernels.runtime.layout import weight_layout
from lmfn_kernels.runtime.registration import Gradients, NoOptions, Op, Wanted
from lmfn_kernels.upsample import reference
from lmfn_kernels.upsample.backend import UpsampleBackend, UpsampledConvBackend, implementation
from lmfn_kernels.weights import Conv, FoldedConv


def upsample_add(a: Tensor, b: Tensor) -> Tensor:
    """a plus b upsampled to the size of a: `a` and the result [B, C, H, W], `b` [B, C, h, w].

    Errors as in `conv3x3`.
    """
    checks.image("a", a)
    checks.image("b", b)
    checks.tensor("b", b, (*a.shape[:2], None, None), a)
    backend = choose(a, None, "upsample_add")
    if backend == "reference":
        return reference.upsample_add(a, b)
    return UPSAMPLE_ADD(backend, AddInputs(a, b), NoOptions())[0]


def upsampled_conv3x3(x: Tensor, conv: Conv | FoldedConv, residual: Tensor | None = None) -> Tensor:
    """conv3x3(up2(x)) + residual, where up2 is bilinear upsampling to twice the size (align_corners False).

    `x` [B, C, H, W], `conv` C to N with padding 1; `residual`, 0 by default, and the result are [B, N, 2H, 2W]. Under
    autocast the residual is not cast, and the result has its dtype; the kernels add before they round. The upsampled
    map is materialised neither in forward nor in backward: the op is a convolution of x with four times as many outputs
    (`polyphase.py`), whose weight is computed in every call unless `conv` is from `folded`. Errors as in `conv3x3`.
    """
    checks.image("x", x)
    prepared = conv if isinstance(conv, FoldedConv) else None
    conv = Conv(conv[0], conv[1])
    check_conv("conv", conv, outputs_of(conv), x.shape[1], 3, x)
    if residual is not None:
        checks.tensor("residual", residual, (x.shape[0], len(conv.weight), 2 * x.shape[2], 2 * x.shape[3]), x)
    backend = choose(x, None, "upsampled_conv3x3")
    if backend == "reference":
        return reference.upsampled_conv3x3(x, *conv, residual)
    by_upsampling = prepared.by_upsampling if prepared is not None and prepared.backend == backend else None
    return UPSAMPLED_CONV3X3(backend, ConvInputs(x, conv, residual, by_upsampling), NoOptions())[0]


def folded(conv: Conv) -> FoldedConv:
    """`conv`, C to N, with its weight folded with the upsampling, which `upsampled_conv3x3` otherwise does in every
    call.

    The weight is float32, float16, bfloat16 or float64, in the dtype of the images, which may have any size. Use it for
    weights that no longer change: all its tensors are copies without gradients, on the same device. The kernel is
    chosen here, as each takes a weight folded in its own way; one that is on trial (`runtime/trials.py`) computes with
    the result also when the trial is over. Raises TypeError or ValueError if `conv` is not such a convolution.
    """
    checks.tensor("conv.weight", conv.weight, (None, None, 3, 3), conv.weight)
    checks.tensor("conv.bias", conv.bias, (outputs_of(conv),), conv.bias)
    weight = weight_layout(conv.weight.detach())
    backend = choose(weight, None, "upsampled_conv3x3")
    if backend == "reference":
        backend = "torch"
    by_upsampling = implementation(backend).fold_upsampling(weight, weight.dtype)
    return FoldedConv(weight, conv.bias.detach().clone(), by_upsampling, backend)


class AddInputs(NamedTuple):
    a: Tensor
    b: Tensor


def _upsample_add_forward(
    f: UpsampleBackend, t: AddInputs, _options: NoOptions, _save: bool
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    a, b = f.as_kernel_image(t.a), f.as_kernel_image(t.b)
    # Backward needs only the size of b, which an empty tensor carries.
    return (f.upsample_add(b, a.shape[2:], a),), (b.new_empty((*b.shape[2:], 0)),)


def _upsample_add_backward(
    f: UpsampleBackend,
    gradients: Sequence[Tensor],
    saved: Sequence[Tensor],
    _inputs: AddInputs,
    _options: NoOptions,
    wanted: Wanted,
) -> Gradients:
    (g,), (size,), found = gradients, saved, Gradients()
    if wanted("a"):
        found["a"] = g
    if wanted("b"):
        b = g.new_empty(()).expand(*g.shape[:2], *size.shape[:2])
        found["b"] = f.upsample_backward(f.as_kernel_image(g), b)
    return found


class ConvInputs(NamedTuple):
    x: Tensor
    conv: Conv
    residual: Tensor | None
    folded: Tensor | None


def _upsampled_conv3x3_forward(
    f: UpsampledConvBackend, t: ConvInputs, _options: NoOptions, _save: bool
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    weight = t.folded
    if weight is None or weight.dtype != t.x.dtype:
        weight = f.fold_upsampling(t.conv.weight, t.x.dtype)
    return (f.upsampled_conv(f.as_kernel_image(t.x), weight, t.conv.bias, t.residual),), ()


def _upsampled_conv3x3_backward(
    f: UpsampledConvBackend,
    gradients: Sequence[Tensor],
    _saved: Sequence[Tensor],
    t: ConvInputs,
    _options: NoOptions,
    wanted: Wanted,
) -> Gradients:
    (g,), x, found = gradients, f.as_kernel_image(t.x), Gradients()
    if wanted("x", "conv"):
        found["x"], found["conv"] = f.upsampled_conv_backward(g, x, t.conv.weight, wanted("x"), wanted("conv"))
    return found | {"residual": g}


UPSAMPLE_ADD = Op(
    "upsample_add",
    AddInputs,
    NoOptions,
    implementation,
    _upsample_add_forward,
    _upsample_add_backward,
    unsaved_inputs=("a", "b"),
)
UPSAMPLED_CONV3X3 = Op(
    "upsampled_conv3x3",
    ConvInputs,
    NoOptions,
    implementation,
    _upsampled_conv3x3_forward,
    _upsampled_conv3x3_backward,
    unsaved_inputs=("residual", "folded"),
    uncast_inputs=("residual", "folded"),
    lays_out_weights=False,  # the backends fold the weight in float32 first
)
