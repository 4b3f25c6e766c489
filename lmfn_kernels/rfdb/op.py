"""The RFDB's ops: residual feature distillation block with enhanced spatial attention.

Zhang et al., "Image deblurring based on lightweight multi-information fusion network", ICIP 2021, arXiv 2101.05403,
section 2.2; ESA from Liu et al., "Residual feature distillation network", arXiv 2009.11551.

All ops take float32, float16, bfloat16 or float64 images `[B, C, H, W]` of any strides, all tensors of one dtype on one
device, sum in float32 (float64 for float64), and follow PyTorch's own TF32 setting for convolutions. Results are
channels-last, from the kernels with a pixel stride rounded up to 16 bytes. Under autocast, images and weights are cast
to its dtype. Gradients are of first order.
"""

# ruff: noqa: ARG001  (an op's forward and backward function have the same arguments for every op)

from collections.abc import Sequence

from torch import Tensor

from lmfn_kernels.conv.op import activated, check_conv, outputs_of
from lmfn_kernels.rfdb import reference
from lmfn_kernels.runtime import backend, checks
from lmfn_kernels.runtime.registration_by_offset import Gradients, Op, Tensors, given, pieces
from lmfn_kernels.weights import Conv, RFDBWeights

ESA_SMALLEST = 15  # what ESA's stride-2 convolution and its 7x7 pooling need
WIDEST = 64  # channels that one program of a fused kernel holds


def distill_stage(x: Tensor, distil: Conv, refine: Conv, slope: float = 0.05) -> tuple[Tensor, Tensor]:
    """One stage of an RFDB from one read of its input: LR(conv3x3(x) + x) and LR(conv1x1(x)), LR the leaky ReLU.

    `x` [B, C, H, W], `distil` C to d, `refine` C to C; gives [B, C, H, W] and [B, d, H, W]. Errors as in `conv3x3`.
    """
    checks.image("x", x)
    checks.slope(slope)
    c, d = x.shape[1], outputs_of(distil)
    check_conv("distil", distil, d, c, 1, x)
    check_conv("refine", refine, c, c, 3, x)
    body = backend.choose(x, _refusal(c, d), "distill_stage")
    if body == "reference":
        return reference.distill_stage(x, *distil, *refine, slope)
    y, distilled = _distill_stage(body, (x, *distil, *refine), (slope,))
    return y, distilled


def distill_fuse(
    x: Tensor, d: tuple[Tensor, Tensor, Tensor], last: Conv, fuse: Conv, squeeze: Conv, slope: float = 0.05
) -> tuple[Tensor, Tensor]:
    """The end of an RFDB: d4 = LR(conv3x3(x)), y = conv1x1 of (d1, d2, d3, d4), and ESA's first a = conv1x1(y).

    `x` [B, C, H, W], `d` three maps [B, d, H, W], `last` C to d (3x3), `fuse` 4d to C', `squeeze` C' to f; gives y
    [B, C', H, W] and a [B, f, H, W]. Of what it makes only d4 is kept. Errors as in `conv3x3`.
    """
    checks.image("x", x)
    checks.slope(slope)
    if len(d) != 3:
        raise ValueError(f"d has {len(d)} maps; expected are 3")
    n, c, f = outputs_of(last), outputs_of(fuse), outputs_of(squeeze)
    for j, d_j in enumerate(d):
        checks.tensor(f"d[{j}]", d_j, (x.shape[0], n, *x.shape[2:]), x)
    check_conv("last", last, n, x.shape[1], 3, x)
    check_conv("fuse", fuse, c, None if n is None else 4 * n, 1, x)
    check_conv("squeeze", squeeze, f, c, 1, x)
    body = backend.choose(x, _refusal(x.shape[1], n, c, f), "distill_fuse")
    if body == "reference":
        return reference.distill_fuse(x, d, *last, *fuse, *squeeze, slope)
    y, a = _distill_fuse(body, (x, *d, *last, *fuse, *squeeze), (slope,))
    return y, a


def esa_gate(y: Tensor, a: Tensor, v: Tensor, skip: Conv, expand: Conv) -> Tensor:
    """The end of ESA: y sigmoid(expand(up(v) + skip(a))), up the bilinear (align_corners False) to y's size.

    `y` [B, C, H, W], `a` [B, f, H, W], `v` [B, f, h, w], `skip` f to f (1x1), `expand` f to C (1x1); gives
    [B, C, H, W]. Errors as in `conv3x3`.
    """
    checks.image("y", y)
    f = a.shape[1] if isinstance(a, Tensor) and a.ndim == 4 else None
    checks.tensor("a", a, (y.shape[0], f, *y.shape[2:]), y)
    checks.tensor("v", v, (y.shape[0], f, None, None), y)
    checks.image("v", v)
    check_conv("skip", skip, f, f, 1, y)
    check_conv("expand", expand, y.shape[1], f, 1, y)
    body = backend.choose(y, _refusal(y.shape[1], f), "esa_gate")
    if body == "reference":
        return reference.esa_gate(y, a, v, *skip, *expand)
    return _esa_gate(body, (y, a, v, *skip, *expand), ())[0]


def rfdb(x: Tensor, weights: RFDBWeights, slope: float = 0.05) -> Tensor:
    """A whole residual feature distillation block, its ESA included, as one autograd function.

    `x` and the result [B, C, H, W], H and W at least 15. Kept for backward, beside `x` and the weights: the three
    stages' results, d4, ESA's first map and its low-resolution maps; with `x` itself at most 5.5 times the bytes of
    `x`. Errors as in `conv3x3`.
    """
    checks.image("x", x, ESA_SMALLEST)
    checks.slope(slope)
    c, d, f = x.shape[1], outputs_of(weights.distil_last), outputs_of(weights.conv1)
    for name in ("distil", "refine"):
        if len(getattr(weights, name)) != 3:
            raise ValueError(f"weights.{name} has {len(getattr(weights, name))} convolutions; expected are 3")
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
    body = backend.choose(x, _refusal(c, d, f), "rfdb")
    if body == "reference":
        return reference.rfdb(x, weights, slope)
    w = weights
    flat = [t for conv in (*w.distil, *w.refine, *w[2:]) for t in conv]
    return _rfdb(body, (x, *flat), (slope,))[0]


def _refusal(*channels: int | None) -> str | None:
    """Why the fused kernels cannot take so many channels, if so."""
    widest = max(c or 0 for c in channels)
    return f"it has {widest} channels, and the fused kernels hold at most {WIDEST}" if widest > WIDEST else None


def _distill_stage_forward(body: str, tensors: Tensors, options: Sequence[float], keep: bool) -> list[Tensor]:
    p = pieces("rfdb", body)
    x, *weights = given(tensors)
    return list(p.stage(p.layout(x), *weights, options[0]))


def _distill_stage_backward(
    body: str,
    gradients: Tensors,
    kept: Sequence[Tensor],
    tensors: Tensors,
    options: Sequence[float],
    needs: Sequence[bool],
) -> list[Tensor]:
    p, found = pieces("rfdb", body), Gradients(tensors, needs)
    x, distil, _, refine, _ = given(tensors)
    gy, gd = given(gradients)
    x, gy, gd = map(p.layout, (x, gy, gd))
    e, z = (p.masked(g, p.layout(of), options[0]) for g, of in zip((gy, gd), kept, strict=True)) if kept else (gy, gd)
    if found.wants(0):
        found.put(0, p.input_gradient(e, refine, x, padding=1, residual=True, extra=(p.written(z), distil)))
    if found.wants(1, 2):
        found.put(1, *p.weight_gradient(z, x, distil))
    if found.wants(3, 4):
        found.put(3, *p.weight_gradient(e, x, refine, padding=1))
    return found.list()


def _distill_fuse_forward(body: str, tensors: Tensors, options: Sequence[float], keep: bool) -> list[Tensor]:
    p = pieces("rfdb", body)
    x, d1, d2, d3, *weights = given(tensors)
    y, a, d4 = p.fuse(*map(p.layout, (x, d1, d2, d3)), *weights, options[0], keep)
    return [y, a, *given([d4])]


def _distill_fuse_backward(
    body: str,
    gradients: Tensors,
    kept: Sequence[Tensor],
    tensors: Tensors,
    options: Sequence[float],
    needs: Sequence[bool],
) -> list[Tensor]:
    p, found = pieces("rfdb", body), Gradients(tensors, needs)
    slope = options[0]
    x, d1, d2, d3, *weights = given(tensors)
    gy, ga = map(p.layout, given(gradients))
    x, d1, d2, d3 = map(p.layout, (x, d1, d2, d3))
    last, _, fuse, fuse_bias, squeeze, _ = weights
    d4 = p.layout(kept[0])
    y = p.fused(d1, d2, d3, d4, fuse, fuse_bias)
    z, fused = p.fuse_backward(gy, ga, y, d1, d2, d3, d4, fuse, squeeze, slope, 1.0)
    found.put(6, *fused)
    found.put(1, *z[:3])
    if found.wants(0):
        found.put(0, p.input_gradient(z[3], last, x, padding=1))
    if found.wants(4, 5):
        found.put(4, *p.weight_gradient(z[3], x, last, padding=1))
    return found.list()


def _esa_gate_forward(body: str, tensors: Tensors, options: Sequence[float], keep: bool) -> list[Tensor]:
    p = pieces("rfdb", body)
    y, a, v, *weights = given(tensors)
    return [p.gate(*map(p.layout, (y, a, v)), *weights)]


def _esa_gate_backward(
    body: str,
    gradients: Tensors,
    kept: Sequence[Tensor],
    tensors: Tensors,
    options: Sequence[float],
    needs: Sequence[bool],
) -> list[Tensor]:
    p, found = pieces("rfdb", body), Gradients(tensors, needs)
    y, a, v, *weights = given(tensors)
    g, y, a, v = map(p.layout, (*given(gradients), y, a, v))
    dy, da, dt, of_weights = p.gate_backward(g, y, a, v, *weights)
    found.put(0, dy, da)
    if found.wants(2):
        found.put(2, p.upsample_backward(dt, v))
    found.put(3, *of_weights)
    return found.list()


# Places of the block's tensors: the input, then weight and bias of each convolution in the order of RFDBWeights.
X, DISTIL, REFINE, LAST, FUSE, SQUEEZE, SKIP, CONV2, CONV_MAX, CONV3, CONV3_, EXPAND, END = (
    0, 1, 7, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
)  # fmt: skip


def _rfdb_forward(body: str, tensors: Tensors, options: Sequence[float], keep: bool) -> list[Tensor]:
    p, slope = pieces("rfdb", body), options[0]
    t = given(tensors)
    x = [p.layout(t[X])]
    d = []
    for j in range(3):
        distil, refine = DISTIL + 2 * j, REFINE + 2 * j
        x_j, d_j = p.stage(x[-1], *t[distil : distil + 2], *t[refine : refine + 2], slope)
        x = [*x, x_j] if keep else [x_j]
        d.append(d_j)
    y, a, d4 = p.fuse(x[-1], *d, *t[LAST:SKIP], slope, keep)
    del d
    pooled, index = p.pool(p.conv(a, *t[CONV2:CONV_MAX], stride=2))
    low1 = p.conv(pooled, *t[CONV_MAX:CONV3], padding=1, slope=0.0)
    low2 = p.conv(low1, *t[CONV3:CONV3_], padding=1, slope=0.0)
    v = p.conv(low2, *t[CONV3_:EXPAND], padding=1)
    out = p.gate(y, a, v, *t[SKIP:CONV2], *t[EXPAND:END])
    return [out, *x[1:], *given([d4]), a, index, pooled, low1, low2, v] if keep else [out]


def _rfdb_backward(
    body: str,
    gradients: Tensors,
    kept: Sequence[Tensor],
    tensors: Tensors,
    options: Sequence[float],
    needs: Sequence[bool],
) -> list[Tensor]:
    p, slope, found = pieces("rfdb", body), options[0], Gradients(tensors, needs)
    t = given(tensors)
    (g,) = given(gradients)
    # In their layout already, unless something between the passes, as a compiler may, laid them out anew.
    x1, x2, x3, d4, a, index, pooled, low1, low2, v = map(p.layout, kept)
    x = [p.layout(t[X]), x1, x2, x3]

    def weights(place: int, e: Tensor, x: Tensor, stride: int = 1, padding: int = 0) -> None:
        if found.wants(place, place + 1):
            found.put(place, *p.weight_gradient(e, x, t[place], stride=stride, padding=padding))

    d = [p.conv(x[j], *t[DISTIL + 2 * j : DISTIL + 2 * j + 2], slope=slope) for j in range(3)]
    y = p.fused(*d, d4, *t[FUSE:SQUEEZE])
    dy, da, dt, of_gate = p.gate_backward(p.layout(g), y, a, v, *t[SKIP:CONV2], *t[EXPAND:END])
    found.put(SKIP, *of_gate[:2])
    found.put(EXPAND, *of_gate[2:])

    # ESA's low branch.
    e = p.upsample_backward(dt, v)
    del dt
    weights(CONV3_, e, low2, padding=1)
    e = p.input_gradient(e, t[CONV3_], low2, padding=1, mask=0.0)
    weights(CONV3, e, low1, padding=1)
    e = p.input_gradient(e, t[CONV3], low1, padding=1, mask=0.0)
    weights(CONV_MAX, e, pooled, padding=1)
    e = p.input_gradient(e, t[CONV_MAX], pooled, padding=1)
    e = p.pool_backward(e, index, p.conv(a, *t[CONV2:CONV_MAX], stride=2))
    weights(CONV2, e, a, stride=2)
    da += p.input_gradient(e, t[CONV2], a, stride=2)

    z, of_fuse = p.fuse_backward(dy, da, y, *d, d4, t[FUSE], t[SQUEEZE], slope, slope)
    del dy, da, y, d
    found.put(FUSE, *of_fuse)
    weights(LAST, z[3], x[3], padding=1)
    e = p.input_gradient(z[3], t[LAST], x[3], padding=1, mask=slope)
    for j in (2, 1, 0):
        weights(REFINE + 2 * j, e, x[j], padding=1)
        weights(DISTIL + 2 * j, z[j], x[j])
        if j > 0 or found.wants(X):
            refine, distil = t[REFINE + 2 * j], t[DISTIL + 2 * j]
            mask = slope if j > 0 else 1.0
            e = p.input_gradient(e, refine, x[j], padding=1, residual=True, extra=(z[j], distil), mask=mask)
    found.put(X, e)
    return found.list()


_distill_stage = Op("distill_stage", 2, _distill_stage_forward, _distill_stage_backward, keeps_results=activated)
_distill_fuse = Op("distill_fuse", 2, _distill_fuse_forward, _distill_fuse_backward)
_esa_gate = Op("esa_gate", 1, _esa_gate_forward, _esa_gate_backward)
_rfdb = Op("rfdb", 1, _rfdb_forward, _rfdb_backward)
