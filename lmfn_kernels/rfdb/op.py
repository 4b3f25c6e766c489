"""The RFDB's ops: residual feature distillation block with enhanced spatial attention.

Zhang et al., "Image deblurring based on lightweight multi-information fusion network", ICIP 2021, arXiv 2101.05403,
section 2.2; ESA from Liu et al., "Residual feature distillation network", arXiv 2009.11551.

All ops take float32, float16, bfloat16 or float64 images `[B, C, H, W]` of any strides, all tensors of one dtype on one
device, sum in float32 (float64 for float64), and follow PyTorch's own TF32 setting for convolutions. Results are
channels-last, from the kernels with gaps between pixels (`pixel_pitch`). Under autocast, images and weights are cast
to its dtype. Gradients are of first order.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lmfn_kernels.conv.backend import PendingT, check_scaled, choose_for_e4m3
from lmfn_kernels.conv.op import check_conv, outputs_of
from lmfn_kernels.rfdb import reference
from lmfn_kernels.rfdb.backend import RFDBBackend, implementation
from lmfn_kernels.runtime import checks
from lmfn_kernels.runtime.backend import choose
from lmfn_kernels.runtime.registration import Gradients, Op, Wanted
from lmfn_kernels.weights import E4M3, Conv, RFDBWeights, ScaledConv

ESA_SMALLEST = 15  # minimum size for ESA's stride-2 convolution and its 7x7 pooling
WIDEST = 64  # channels that one program of a fused kernel supports
ESA_WIDEST = 16  # those of ESA's low-resolution maps, as a program holds all weights of three convolutions


def distill_stage(x: Tensor, distil: Conv, refine: Conv, slope: float = 0.05) -> tuple[Tensor, Tensor]:
    """One stage of an RFDB from one read of its input: LR(conv3x3(x) + x) and LR(conv1x1(x)), LR the leaky ReLU.

    `x` [B, C, H, W], `distil` C to d, `refine` C to C; returns [B, C, H, W] and [B, d, H, W]. Errors as in `conv3x3`.
    """
    checks.image("x", x)
    checks.slope(slope)
    c, d = x.shape[1], outputs_of(distil)
    check_conv("distil", distil, d, c, 1, x)
    check_conv("refine", refine, c, c, 3, x)
    backend = choose(x, _unsupported_reason(c, d), "distill_stage")
    if backend == "reference":
        return reference.distill_stage(x, *distil, *refine, slope)
    y, distilled = DISTILL_STAGE(backend, StageInputs(x, distil, refine), Options(slope))
    return y, distilled


def distill_fuse(
    x: Tensor, d: tuple[Tensor, Tensor, Tensor], last: Conv, fuse: Conv, squeeze: Conv, slope: float = 0.05
) -> tuple[Tensor, Tensor]:
    """The end of an RFDB: d4 = LR(conv3x3(x)), y = conv1x1(d1, d2, d3, d4), and ESA's first map a = conv1x1(y).

    `x` [B, C, H, W], `d` three maps [B, d, H, W], `last` C to d, `fuse` 4d to C', `squeeze` C' to f; returns y
    [B, C', H, W] and a [B, f, H, W]. Besides inputs and outputs only d4 is saved for backward. Errors as in `conv3x3`.
    """
    checks.image("x", x)
    checks.slope(slope)
    if len(d) != 3:
        raise ValueError(f"d has {len(d)} maps; expected 3")
    n, c, f = outputs_of(last), outputs_of(fuse), outputs_of(squeeze)
    for j, d_j in enumerate(d):
        checks.tensor(f"d[{j}]", d_j, (x.shape[0], n, *x.shape[2:]), x)
    check_conv("last", last, n, x.shape[1], 3, x)
    check_conv("fuse", fuse, c, None if n is None else 4 * n, 1, x)
    check_conv("squeeze", squeeze, f, c, 1, x)
    backend = choose(x, _unsupported_reason(x.shape[1], n, c, f), "distill_fuse")
    if backend == "reference":
        return reference.distill_fuse(x, d, *last, *fuse, *squeeze, slope)
    y, a = DISTILL_FUSE(backend, FuseInputs(x, *d, last, fuse, squeeze), Options(slope))
    return y, a


def esa_gate(y: Tensor, a: Tensor, v: Tensor, skip: Conv, expand: Conv, *, fixed_grid: bool = False) -> Tensor:
    """The end of ESA: y sigmoid(expand(up(v) + skip(a))), up the bilinear (align_corners False) to y's size.

    `y` [B, C, H, W], `a` [B, f, H, W], `v` [B, f, h, w], `skip` f to f (1x1), `expand` f to C (1x1); returns [B, C, H,
    W]. With `fixed_grid`, each pixel of v becomes 6x6 pixels, starting at the upper left corner, for any sizes; the
    result is then cropped to y's size, or its last row and column are repeated. Errors as in `conv3x3`.
    """
    checks.image("y", y)
    f = a.shape[1] if isinstance(a, Tensor) and a.ndim == 4 else None
    checks.tensor("a", a, (y.shape[0], f, *y.shape[2:]), y)
    checks.tensor("v", v, (y.shape[0], f, None, None), y)
    checks.image("v", v)
    check_conv("skip", skip, f, f, 1, y)
    check_conv("expand", expand, y.shape[1], f, 1, y)
    backend = choose(y, _unsupported_reason(y.shape[1], f), "esa_gate")
    if backend == "reference":
        return reference.esa_gate(y, a, v, *skip, *expand, fixed_grid)
    return ESA_GATE(backend, GateInputs(y, a, v, skip, expand), GateOptions(fixed_grid))[0]


def rfdb(x: Tensor, weights: RFDBWeights, slope: float = 0.05, *, fixed_grid: bool = False) -> Tensor:
    """A residual feature distillation block including its ESA, as one autograd function.

    `x` and the result [B, C, H, W], H and W at least 15; `fixed_grid` as in `esa_gate`. Saved for backward, in addition
    to `x` and the weights: the results of the three stages, d4, ESA's first map and its low-resolution maps; with `x`
    itself at most 5.5 times the bytes of `x`; from the kernels also a copy of the weights. Errors as in `conv3x3`.
    """
    backend = _backend_of_rfdb(x, weights, slope)
    if backend == "reference":
        return reference.rfdb(x, weights, slope, fixed_grid)
    return RFDB(backend, Inputs(x, *weights), BlockOptions(slope, fixed_grid))[0]


def rfdb_for_two_uses(
    x: Tensor, weights: RFDBWeights, slope: float = 0.05, *, fixed_grid: bool = False
) -> tuple[Tensor, Tensor]:
    """`rfdb`, whose result is returned twice, for two uses: backward adds the gradients of both as it reads them, where
    autograd would first write the sum to memory.

    Both are the same memory, which must not be written to. Shapes and errors as in `rfdb`.
    """
    backend = _backend_of_rfdb(x, weights, slope)
    if backend == "reference":
        y = reference.rfdb(x, weights, slope, fixed_grid)
        return y, y
    return RFDB.two_uses(backend, Inputs(x, *weights), BlockOptions(slope, fixed_grid))


def _backend_of_rfdb(x: Tensor, weights: RFDBWeights, slope: float) -> str:
    """The backend for a block with these arguments, which are checked."""
    return choose(x, _unsupported_block(*_check_rfdb(x, weights, slope)), "rfdb")


def _check_rfdb(x: Tensor, weights: RFDBWeights, slope: float) -> tuple[int, int | None, int | None]:
    """The channels of the block, of its distilled maps and in its ESA. Raises TypeError or ValueError for arguments
    that do not fit."""
    checks.image("x", x, ESA_SMALLEST)
    checks.slope(slope)
    c, d, f = x.shape[1], outputs_of(weights.distil_last), outputs_of(weights.conv1)
    for name in ("distil", "refine"):
        if len(getattr(weights, name)) != 3:
            raise ValueError(f"weights.{name} has {len(getattr(weights, name))} convolutions; expected 3")
    for j in range(3):
        check_conv(f"weights.distil[{j}]", weights.distil[j], d, c, 1, x)
        check_conv(f"weights.refine[{j}]", weights.refine[j], c, c, 3, x)
    check_conv("weights.distil_last", weights.distil_last, d, c, 3, x)
    check_conv("weights.fuse", weights.fuse, c, None if d is None else 4 * d, 1, x)
    check_conv("weights.conv1", weights.conv1, f, c, 1, x)
    check_conv("weights.conv_f", weights.conv_f, f, f, 1, x)
    for name in ("conv2", "conv_max", "conv3", "conv3_"):
        check_conv(f"weights.{name}", getattr(weights, name), f, f, 3, x)
    check_conv("weights.conv4", weights.conv4, c, f, 1, x)
    return c, d, f


def distill_stages_e4m3(
    x: Tensor, stages: Sequence[tuple[ScaledConv, ScaledConv]], slope: float = 0.05
) -> tuple[Tensor, list[Tensor]]:
    """Stages one after the other, each with its `distil` and `refine` from `scaled`; all results but the last are
    stored as e4m3. For inference alone.

    `x` [B, C, H, W] is float16 or bfloat16, with C from 33 to 64. Returns the last result, [B, C, H, W], and the
    distilled maps, [B, d, H, W], in the dtype of `x`. Errors as in `residual_block_e4m3`.
    """
    checks.image("x", x)
    f = implementation(choose_for_e4m3(x, (x.shape[1],), "distill_stages_e4m3"))
    checks.slope(slope)
    for j, (distil, refine) in enumerate(stages):
        if len(distil.bias) > WIDEST:
            raise ValueError(f"distil of stage {j} has {len(distil.bias)} outputs; expected at most {WIDEST}")
        check_scaled(f"distil of stage {j}", distil, 1, len(distil.bias), x, stored=j > 0)
        check_scaled(f"refine of stage {j}", refine, 10, x.shape[1], x, stored=j > 0)
    with torch.autocast(x.device.type, enabled=False):
        y, d = f.as_kernel_image(x), []
        for j, (distil, refine) in enumerate(stages, 1):
            y, d_j = f.scaled_stage(y, distil, refine, slope, E4M3 if j < len(stages) else x.dtype, x.dtype)
            d.append(d_j)
    return y, d


def rfdb_e4m3(
    x: Tensor,
    weights: RFDBWeights,
    stages: Sequence[tuple[ScaledConv, ScaledConv]],
    slope: float = 0.05,
    *,
    fixed_grid: bool = False,
) -> Tensor:
    """`rfdb` with its stages as in `distill_stages_e4m3`, in place of those of `weights`. For inference alone.

    Errors as in `rfdb` and `distill_stages_e4m3`.
    """
    if reason := _unsupported_block(*_check_rfdb(x, weights, slope)):
        raise ValueError(f"rfdb_e4m3 has no kernels for this block: {reason}")
    outputs = len(weights.distil_last.bias)
    if [len(distil.bias) for distil, _ in stages] != [outputs] * 3:
        raise ValueError(f"expected 3 stages whose distil has {outputs} outputs, as that of `weights`")
    y, d = distill_stages_e4m3(x, stages, slope)
    backend = choose_for_e4m3(x, (x.shape[1],), "rfdb_e4m3")
    with torch.autocast(x.device.type, enabled=False):
        t = RFDB.laid_out(backend, Inputs(x, *weights))
        return _after_stages(implementation(backend), y, d, t, BlockOptions(slope, fixed_grid), save=False)[0]


def _unsupported_reason(*channels: int | None) -> str | None:
    """The reason why the fused kernels cannot take these channels, or None."""
    widest = max(c or 0 for c in channels)
    return f"it has {widest} channels, and the fused kernels hold at most {WIDEST}" if widest > WIDEST else None


def _unsupported_block(c: int, d: int | None, f: int | None) -> str | None:
    """The same for a whole block, with f channels in ESA."""
    if f is not None and f > ESA_WIDEST:
        return f"its ESA has {f} channels, and the kernels of small maps hold at most {ESA_WIDEST}"
    return _unsupported_reason(c, d, f)


class Options(NamedTuple):
    slope: float


class GateOptions(NamedTuple):
    fixed_grid: bool


class BlockOptions(NamedTuple):
    slope: float
    fixed_grid: bool


class StageInputs(NamedTuple):
    x: Tensor
    distil: Conv
    refine: Conv


def _distill_stage_forward(
    f: RFDBBackend[PendingT], t: StageInputs, options: Options, _save: bool
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    return f.stage(f.as_kernel_image(t.x), t.distil, t.refine, options.slope), ()


def _distill_stage_backward(
    f: RFDBBackend[PendingT],
    gradients: Sequence[Tensor],
    saved: Sequence[Tensor],
    t: StageInputs,
    options: Options,
    wanted: Wanted,
) -> Gradients:
    x, found, images = f.as_kernel_image(t.x), Gradients(), [f.as_kernel_image(g) for g in gradients]
    masked = (f.mask_gradient(g, f.as_kernel_image(y), options.slope) for g, y in zip(images, saved, strict=True))
    e, z = masked if saved else images
    if wanted("x"):
        extra = f.materialize(z), t.distil.weight
        found["x"] = f.input_gradient(e, t.refine.weight, x, padding=1, residual=True, extra=extra)
    if wanted("refine") or wanted("distil"):
        ((found["refine"], found["distil"]),) = f.weight_gradients([(e, z, x, t.refine.weight, t.distil.weight)])
    return found


def _transposed(fuse: Tensor, squeeze: Tensor) -> list[Tensor]:
    """The weight of `squeeze`, then the parts of that of `fuse` for d1 to d4, as `fuse_backward` takes them."""
    return [weight.transpose(0, 1) for weight in (squeeze, *fuse.chunk(4, dim=1))]


class FuseInputs(NamedTuple):
    x: Tensor
    d1: Tensor
    d2: Tensor
    d3: Tensor
    last: Conv
    fuse: Conv
    squeeze: Conv


def _distill_fuse_forward(
    f: RFDBBackend[PendingT], t: FuseInputs, options: Options, save: bool
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    x, *d = map(f.as_kernel_image, (t.x, t.d1, t.d2, t.d3))
    y, a, d4 = f.fuse(x, d, t.last, t.fuse, t.squeeze, options.slope, save)
    return (y, a), () if d4 is None else (d4,)


def _distill_fuse_backward(
    f: RFDBBackend[PendingT],
    gradients: Sequence[Tensor],
    saved: Sequence[Tensor],
    t: FuseInputs,
    options: Options,
    wanted: Wanted,
) -> Gradients:
    gy, ga = map(f.as_kernel_image, gradients)
    y, _, d4, *transposed = saved
    x, y, *d = map(f.as_kernel_image, (t.x, y, t.d1, t.d2, t.d3, d4))
    z, dfuse, dsqueeze = f.fuse_backward(gy, ga, y, d, t.fuse.weight, t.squeeze.weight, transposed, options.slope, 1.0)
    found: Gradients = {"d1": z[0], "d2": z[1], "d3": z[2], "fuse": dfuse, "squeeze": dsqueeze}
    if wanted("x"):
        found["x"] = f.input_gradient(z[3], t.last.weight, x, padding=1)
    if wanted("last"):
        found["last"] = f.weight_gradient(z[3], x, t.last.weight, padding=1)
    return found


class GateInputs(NamedTuple):
    y: Tensor
    a: Tensor
    v: Tensor
    skip: Conv
    expand: Conv


def _esa_gate_forward(
    f: RFDBBackend[PendingT], t: GateInputs, options: GateOptions, _save: bool
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    y, a, v = map(f.as_kernel_image, (t.y, t.a, t.v))
    return (f.gate(y, a, v, t.skip, t.expand, options.fixed_grid),), ()


def _esa_gate_backward(
    f: RFDBBackend[PendingT],
    gradients: Sequence[Tensor],
    _saved: Sequence[Tensor],
    t: GateInputs,
    options: GateOptions,
    wanted: Wanted,
) -> Gradients:
    g, y, a, v = map(f.as_kernel_image, (gradients[0], t.y, t.a, t.v))
    dy, da, dt, dskip, dexpand = f.gate_backward([g], y, a, v, t.skip, t.expand, options.fixed_grid)
    found: Gradients = {"y": dy, "a": da, "skip": dskip, "expand": dexpand}
    if wanted("v"):
        found["v"] = f.upsample_backward(dt, v, options.fixed_grid)
    return found


class Inputs(NamedTuple):
    """The input, and the fields of `RFDBWeights`."""

    x: Tensor
    distil: tuple[Conv, Conv, Conv]
    refine: tuple[Conv, Conv, Conv]
    distil_last: Conv
    fuse: Conv
    conv1: Conv
    conv_f: Conv
    conv2: Conv
    conv_max: Conv
    conv3: Conv
    conv3_: Conv
    conv4: Conv


def _rfdb_forward(
    f: RFDBBackend[PendingT], t: Inputs, options: BlockOptions, save: bool
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    x = [f.as_kernel_image(t.x)]
    d = []
    for distil, refine in zip(t.distil, t.refine, strict=True):
        x_j, d_j = f.stage(x[-1], distil, refine, options.slope)
        x = [*x, x_j] if save else [x_j]
        d.append(d_j)
    out, *saved = _after_stages(f, x[-1], d, t, options, save)
    return (out,), (*x[1:], *saved) if saved else ()


def _after_stages(
    f: RFDBBackend[PendingT], x: Tensor, d: list[Tensor], t: Inputs, options: BlockOptions, save: bool
) -> list[Tensor]:
    """The block's result from those of its stages, and what is to be saved; `d` is emptied."""
    y, a, d4 = f.fuse(x, d, t.distil_last, t.fuse, t.conv1, options.slope, save)
    d.clear()
    pooled, index = f.conv_pool(a, t.conv2, save)
    v, low = f.low_convs(pooled, t.conv_max, t.conv3, t.conv3_, save)
    out = f.gate(y, a, v, t.conv_f, t.conv4, options.fixed_grid)
    return [out] if d4 is None or index is None else [out, d4, a, index, pooled, *low, v]


def _rfdb_backward(
    f: RFDBBackend[PendingT],
    gradients: tuple[Tensor, Tensor | None],
    saved: Sequence[Tensor],
    t: Inputs,
    options: BlockOptions,
    wanted: Wanted,
) -> Gradients:
    (slope, fixed_grid), found = options, Gradients()
    # They have the kernels' layout already, unless something between the passes, such as a compiler, changed it.
    x1, x2, x3, d4, a, index, pooled, low1, low2, v = map(f.as_kernel_image, saved[:10])
    x = f.as_kernel_image(t.x), x1, x2, x3
    (d1, d2, d3), y = f.recomputed(x[:3], t.distil, d4, t.fuse, slope)
    g = [f.as_kernel_image(gradient) for gradient in gradients if gradient is not None]
    dy, da, dt, found["conv_f"], found["conv4"] = f.gate_backward(g, y, a, v, t.conv_f, t.conv4, fixed_grid)

    # ESA's low-resolution branch.
    e = f.upsample_backward(dt, v, fixed_grid)
    del dt
    of_low = t.conv_max.weight, t.conv3.weight, t.conv3_.weight
    e, (found["conv_max"], found["conv3"], found["conv3_"]) = f.low_convs_backward(e, pooled, (low1, low2), of_low)
    e = f.pool_backward(e, index, [(size - 3) // 2 + 1 for size in a.shape[2:]])
    if wanted("conv2"):
        found["conv2"] = f.weight_gradient(e, a, t.conv2.weight, stride=2)
    da = f.input_gradient(e, t.conv2.weight, a, stride=2, add=da)

    z, found["fuse"], found["conv1"] = f.fuse_backward(
        dy, da, y, (d1, d2, d3, d4), t.fuse.weight, t.conv1.weight, saved[10:], slope, slope
    )
    del dy, da, y, d1, d2, d3
    if wanted("distil_last"):
        found["distil_last"] = f.weight_gradient(z[3], x3, t.distil_last.weight, padding=1)
    e = f.input_gradient(z[3], t.distil_last.weight, x3, padding=1, mask=slope)
    stages = []
    for j in (2, 1, 0):
        distil, refine = t.distil[j].weight, t.refine[j].weight
        stages.append((e, z[j], x[j], refine, distil))
        if j > 0 or wanted("x"):
            mask = slope if j > 0 else 1.0
            e = f.input_gradient(e, refine, x[j], padding=1, residual=True, extra=(z[j], distil), mask=mask)
    found["x"] = e
    if wanted("refine") or wanted("distil"):
        found["refine"], found["distil"] = zip(*f.weight_gradients(stages[::-1]), strict=True)
    return found


DISTILL_STAGE = Op(
    "distill_stage",
    StageInputs,
    Options,
    implementation,
    _distill_stage_forward,
    _distill_stage_backward,
    outputs=("y", "d"),
    saves_outputs=lambda options: options.slope != 1,  # backward needs the outputs' signs
)
DISTILL_FUSE = Op(
    "distill_fuse",
    FuseInputs,
    Options,
    implementation,
    _distill_fuse_forward,
    _distill_fuse_backward,
    outputs=("y", "a"),
    saves_outputs=lambda _options: True,  # as the op that reads them does; computing y again would take longer
    transposed=lambda t: _transposed(t.fuse.weight, t.squeeze.weight),
)
ESA_GATE = Op("esa_gate", GateInputs, GateOptions, implementation, _esa_gate_forward, _esa_gate_backward)
RFDB = Op(
    "rfdb",
    Inputs,
    BlockOptions,
    implementation,
    _rfdb_forward,
    _rfdb_backward,
    transposed=lambda t: _transposed(t.fuse.weight, t.conv1.weight),
    second_use="output",
)
