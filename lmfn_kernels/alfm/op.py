"""The ALFM's ops: attention between the channels of several layers, and the 1x1 convolution that fuses them.

Zhang et al., "Image deblurring based on lightweight multi-information fusion network", ICIP 2021, arXiv 2101.05403,
section 2.3. The form with whole layers as rows is that of the network its authors released.

All ops take N maps [B, C, H, W], float32, float16, bfloat16 or float64, of any strides, all tensors of one dtype on one
device, and sum in float32 (float64 for float64). Nothing of the size of the N maps together is made but their
gradients. Float32 products follow PyTorch's TF32 setting for matrix products. Results are channels-last, from the
kernels with a pixel stride rounded up to 16 bytes; in plain PyTorch, contiguous where the first map is. Under autocast,
maps and weight are cast to its dtype. Gradients are of first order.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lmfn_kernels.alfm import attention_matrix as algebra
from lmfn_kernels.alfm import reference
from lmfn_kernels.alfm.backend import ALFMBackend, implementation
from lmfn_kernels.runtime import checks
from lmfn_kernels.runtime.backend import choose
from lmfn_kernels.runtime.gradients import PendingMask
from lmfn_kernels.runtime.registration import Gradients, Op, Wanted

MOST_MAPS = 8  # that a kernel takes
MOST_CHANNELS = 512  # of all maps together

Rows = Literal["channels", "layers"]


class LayerAttention(NamedTuple):
    """`layer_attention` of these, not computed yet: `channel_gate` adds it without writing it.

    Shapes, dtypes and errors are those of `layer_attention`; errors come from where it is used.
    """

    maps: Sequence[Tensor]
    """N of [B, C, H, W]."""
    theta: Tensor
    """[1]"""
    weight: Tensor
    """[O, NC, 1, 1]; for `channel_gate` O is C."""
    bias: Tensor
    """[O]"""
    temperature: Tensor | None = None
    """[1]"""
    rows: Rows = "channels"
    slope: float = 0.05

    def __call__(self) -> Tensor:
        """Computed now, [B, O, H, W]."""
        return layer_attention(*self[:5], rows=self.rows, slope=self.slope)


def layer_attention(
    maps: Sequence[Tensor],
    theta: Tensor,
    weight: Tensor,
    bias: Tensor,
    temperature: Tensor | None = None,
    *,
    rows: Rows = "channels",
    slope: float = 0.05,
) -> Tensor:
    """LR(conv1x1(theta M F + F)), F the maps as rows, M their attention, LR the leaky ReLU.

    `maps` N of [B, C, H, W], `theta` [1], `weight` [O, NC, 1, 1], `bias` [O]; gives [B, O, H, W]. With `rows`
    "channels", F is [NC, HW] and M = softmax(F F^T) over each row (the paper); with "layers", F is [N, C*HW] and
    M = softmax(rowmax(E) - E), E = F F^T (as released). With a `temperature` [1], E is the cosine of each two rows
    times that, which does not depend on the image's size; a row of zeros has cosine 0.

    Kept for backward: the maps, the result (for its signs) and F F^T.

    Raises TypeError or ValueError, naming the argument, before anything runs.
    """
    check_maps(maps, rows)
    check_fusion(maps, theta, weight, bias, temperature, slope)
    by_layer = rows == "layers"
    backend = choose(maps[0], unsupported_reason(maps), "layer_attention")
    if backend == "reference":
        e = reference.layer_gram(maps, by_layer)
        return reference.layer_apply(maps, e, theta, weight, bias, temperature, by_layer, slope)
    inputs = AttentionInputs(list(maps), None, theta, weight, bias, temperature)
    return LAYER_ATTENTION(backend, inputs, AttentionOptions(by_layer, slope))[0]


def layer_gram(maps: Sequence[Tensor], *, rows: Rows = "channels") -> Tensor:
    """F F^T, which `layer_apply` takes: [B, NC, NC] or, with `rows` "layers", [B, N, N], in float32 (or float64).

    It is a sum over pixels: that of an image is the sum of those of its tiles. Arguments and errors as in
    `layer_attention`.
    """
    check_maps(maps, rows)
    by_layer = rows == "layers"
    backend = choose(maps[0], unsupported_reason(maps), "layer_gram")
    if backend == "reference":
        return reference.layer_gram(maps, by_layer)
    return LAYER_GRAM(backend, GramInputs(list(maps)), GramOptions(by_layer))[0]


def layer_apply(
    maps: Sequence[Tensor],
    gram: Tensor,
    theta: Tensor,
    weight: Tensor,
    bias: Tensor,
    temperature: Tensor | None = None,
    *,
    rows: Rows = "channels",
    slope: float = 0.05,
) -> Tensor:
    """`layer_attention` with its F F^T given: summed over tiles, or over processes.

    `gram` as `layer_gram` gives it; the other arguments and the errors as in `layer_attention`.
    """
    check_maps(maps, rows)
    check_fusion(maps, theta, weight, bias, temperature, slope)
    by_layer, (b, c) = rows == "layers", maps[0].shape[:2]
    size = len(maps) * (1 if by_layer else c)
    sums = torch.empty((), dtype=torch.promote_types(maps[0].dtype, torch.float32), device=maps[0].device)
    checks.tensor("gram", gram, (b, size, size), sums)
    backend = choose(maps[0], unsupported_reason(maps), "layer_apply")
    if backend == "reference":
        return reference.layer_apply(maps, gram, theta, weight, bias, temperature, by_layer, slope)
    # As a vector, because autocast leaves vectors in float32.
    inputs = AttentionInputs(list(maps), gram.flatten(), theta, weight, bias, temperature)
    return LAYER_ATTENTION(backend, inputs, AttentionOptions(by_layer, slope))[0]


def attention_matrix(gram: Tensor, temperature: Tensor | None = None, *, rows: Rows = "channels") -> Tensor:
    """M, the attention of `layer_attention`, from F F^T as `layer_gram` gives it, in the same shape and dtype.

    `temperature` and `rows` as in `layer_attention`. It has gradients of any order.

    Raises TypeError or ValueError, naming the argument, before anything runs.
    """
    check_gram(gram, temperature, rows)
    return reference.attention_matrix(gram, temperature, rows == "layers")


def fold_into_weight(
    gram: Tensor, theta: Tensor, weight: Tensor, temperature: Tensor | None = None, *, rows: Rows = "channels"
) -> Tensor:
    """P = W (theta M + I), [B, O, NC] in the dtype of `gram`: `layer_attention` is LR(P F + bias), image by image.

    `gram` as `layer_gram` gives it; the other arguments as in `layer_attention`. It has gradients of any order.

    Raises TypeError or ValueError, naming the argument, before anything runs.
    """
    check_gram(gram, temperature, rows)
    checks.tensor("theta", theta, (1,), theta)
    checks.tensor("weight", weight, (None, gram.shape[1] if rows == "channels" else None, 1, 1), theta)
    if weight.shape[1] % gram.shape[1]:
        raise ValueError(f"weight has {weight.shape[1]} inputs; expected is a multiple of the {gram.shape[1]} maps")
    return algebra.fold_into_weight(gram, theta, weight, temperature, rows == "layers")


def check_maps(maps: Sequence[Tensor], rows: str) -> None:
    if not isinstance(maps, (list, tuple)):
        raise TypeError(f"maps is a {type(maps).__name__}; a list or tuple of maps [B, C, H, W] is expected")
    if not maps:
        raise ValueError("maps is empty; one map or more are expected")
    checks.image("maps[0]", maps[0])
    for j, x in enumerate(maps[1:], 1):
        checks.tensor(f"maps[{j}]", x, maps[0].shape, maps[0])
    check_rows(rows)


def check_rows(rows: str) -> None:
    if rows not in ("channels", "layers"):
        raise ValueError(f"rows is {rows!r}; expected is channels or layers")


def check_gram(gram: Tensor, temperature: Tensor | None, rows: str) -> None:
    check_rows(rows)
    checks.tensor("gram", gram, (None, None, None), gram)
    checks.tensor("gram", gram, (None, gram.shape[1], gram.shape[1]), gram)
    if temperature is not None:
        checks.tensor("temperature", temperature, (1,), temperature)


def check_fusion(
    maps: Sequence[Tensor], theta: Tensor, weight: Tensor, bias: Tensor, temperature: Tensor | None, slope: float
) -> None:
    x = maps[0]
    checks.tensor("theta", theta, (1,), x)
    checks.tensor("weight", weight, (None, len(maps) * x.shape[1], 1, 1), x)
    checks.tensor("bias", bias, (weight.shape[0],), x)
    if temperature is not None:
        checks.tensor("temperature", temperature, (1,), x)
    checks.slope(slope)


def unsupported_reason(maps: Sequence[Tensor]) -> str | None:
    """Why the kernels cannot take these maps, if so."""
    n, size = len(maps), len(maps) * maps[0].shape[1]
    if n <= MOST_MAPS and size <= MOST_CHANNELS:
        return None
    return f"it has {n} maps of {size} channels together, and the kernels take {MOST_MAPS} maps of {MOST_CHANNELS}"


class GramInputs(NamedTuple):
    maps: list[Tensor]


class GramOptions(NamedTuple):
    by_layer: bool


def _layer_gram_forward(
    f: ALFMBackend, t: GramInputs, options: GramOptions, _save: bool
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    return (f.gram([f.layout(x) for x in t.maps], options.by_layer),), ()


def _layer_gram_backward(
    f: ALFMBackend,
    gradients: Sequence[Tensor],
    _saved: Sequence[Tensor],
    t: GramInputs,
    _options: GramOptions,
    _wanted: Wanted,
) -> Gradients:
    (de,) = gradients
    maps = [f.layout(x) for x in t.maps]
    return {"maps": f.mix(maps, _of_rows(de, maps), len(maps))}


class AttentionInputs(NamedTuple):
    maps: list[Tensor]
    gram: Tensor | None
    """A vector, or None: then it is computed."""
    theta: Tensor
    weight: Tensor
    bias: Tensor
    temperature: Tensor | None


class AttentionOptions(NamedTuple):
    by_layer: bool
    slope: float


def _layer_attention_forward(
    f: ALFMBackend, t: AttentionInputs, options: AttentionOptions, save: bool
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    by_layer, slope = options
    maps = [f.layout(x) for x in t.maps]
    e = f.gram(maps, by_layer) if t.gram is None else _square(t.gram, maps, by_layer)
    matrix = f.fold_into_weight(e, t.theta, t.weight, t.temperature, by_layer)
    (y,) = f.mix(maps, matrix.mT, 1, bias=t.bias, slope=slope)
    return (y,), (e,) if save and t.gram is None else ()


def layer_attention_backward(
    f: ALFMBackend,
    gradients: Sequence[Tensor],
    saved: Sequence[Tensor],
    t: AttentionInputs,
    options: AttentionOptions,
    wanted: Wanted,
) -> Gradients:
    by_layer, slope = options
    maps, g = [f.layout(x) for x in t.maps], f.layout(gradients[0])
    gradient = PendingMask(g, f.layout(saved[0]) if slope != 1 else None, slope)
    e = saved[-1] if t.gram is None else _square(t.gram, maps, by_layer)
    dp, dbias = f.products(gradient, maps)
    de, dtheta, dweight, dtemperature = f.fold_into_weight_backward(dp, e, t.theta, t.weight, t.temperature, by_layer)
    found: Gradients = {
        "gram": de.flatten(),
        "theta": dtheta,
        "weight": dweight,
        "bias": dbias,
        "temperature": dtemperature,
    }
    if wanted("maps"):
        # P^T g and, where F F^T was not given, (dE + dE^T) F: one pass.
        matrix = f.fold_into_weight(e, t.theta, t.weight, t.temperature, by_layer)
        if t.gram is None:
            matrix = torch.cat([matrix, _of_rows(de, maps)], dim=1)
        found["maps"] = f.mix(maps if t.gram is None else [], matrix, len(maps), gradient=gradient)
    return found


def _square(gram: Tensor, maps: Sequence[Tensor], by_layer: bool) -> Tensor:
    b, c = maps[0].shape[:2]
    size = len(maps) * (1 if by_layer else c)
    return gram.view(b, size, size)


def _of_rows(de: Tensor, maps: Sequence[Tensor]) -> Tensor:
    """What the maps are multiplied with for their gradient, given that of F F^T: dE + dE^T, [B, NC, NC]."""
    return algebra.channels(de + de.mT, len(maps) * maps[0].shape[1])


LAYER_GRAM = Op(
    "layer_gram",
    GramInputs,
    GramOptions,
    implementation,
    _layer_gram_forward,
    _layer_gram_backward,
    outputs=("gram",),
)
LAYER_ATTENTION = Op(
    "layer_attention",
    AttentionInputs,
    AttentionOptions,
    implementation,
    _layer_attention_forward,
    layer_attention_backward,
    saves_outputs=lambda options: options.slope != 1,  # backward needs their signs
)
