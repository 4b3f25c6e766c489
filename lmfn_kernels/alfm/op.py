"""The ALFM's ops: attention between the channels of several layers, and the 1x1 convolution that fuses them.

Zhang et al., "Image deblurring based on lightweight multi-information fusion network", ICIP 2021, arXiv 2101.05403,
section 2.3. The form with whole layers as rows is the one in the network that the authors released.

All ops take N maps [B, C, H, W], float32, float16, bfloat16 or float64, of any strides, all tensors of one dtype on one
device, and sum in float32 (float64 for float64). Apart from the gradients of the maps, nothing as large as all maps
together is allocated. Float32 products follow PyTorch's TF32 setting for matrix products. Results are channels-last,
from the kernels with gaps between pixels (`pixel_pitch`); in PyTorch, contiguous if the first map is. Under autocast,
maps and weight are cast to its dtype. Gradients are of first order.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lmfn_kernels.alfm import attention_matrix as algebra
from lmfn_kernels.alfm import reference
from lmfn_kernels.alfm.backend import ALFMBackend, implementation
from lmfn_kernels.alfm.windows import Grid, window_sums, window_sums_backward
from lmfn_kernels.runtime import checks, configs
from lmfn_kernels.runtime.backend import choose
from lmfn_kernels.runtime.gradients import PendingMask
from lmfn_kernels.runtime.registration import Gradients, Op, Wanted

MOST_MAPS = 8  # maps that a kernel supports
MOST_CHANNELS = 512  # of all maps together
TILE = 16  # pixels; the kernels need blocks whose side is a multiple, so that no tile spans two blocks

Rows = Literal["channels", "layers"]


class LayerAttention(NamedTuple):
    """A deferred `layer_attention`: `channel_gate` adds it without writing it to memory; calling it computes it.

    Shapes, dtypes and errors are those of `layer_attention`; arguments are checked when it is used.
    """

    maps: Sequence[Tensor]
    """N maps [B, C, H, W]."""
    theta: Tensor
    """[1]"""
    weight: Tensor
    """[O, NC, 1, 1]; O = C for `channel_gate`."""
    bias: Tensor
    """[O]"""
    temperature: Tensor | None = None
    """[1]"""
    rows: Rows = "channels"
    slope: float = 0.05
    window: int | None = None

    def __call__(self) -> Tensor:
        """Compute the attention, [B, O, H, W]."""
        return layer_attention(*self[:5], rows=self.rows, slope=self.slope, window=self.window)


def layer_attention(
    maps: Sequence[Tensor],
    theta: Tensor,
    weight: Tensor,
    bias: Tensor,
    temperature: Tensor | None = None,
    *,
    rows: Rows = "channels",
    slope: float = 0.05,
    window: int | None = None,
) -> Tensor:
    """LR(conv1x1(theta M F + F)), F the maps as rows, M their attention, LR the leaky ReLU.

    `maps` N of [B, C, H, W], `theta` [1], `weight` [O, NC, 1, 1], `bias` [O]; returns [B, O, H, W]. With `rows`
    "channels", F is [NC, HW] and M = softmax(F F^T) over each row (the paper); with "layers", F is [N, C*HW] and
    M = softmax(rowmax(E) - E), E = F F^T (as released). With a `temperature` [1], E is the cosine of each pair
    of rows times it, which does not depend on the image size; a row of zeros has cosine 0.

    With a `window`, an even number of pixels, M is computed not for whole maps but for windows of window x window
    pixels that overlap by half, starting at the upper left corner; every pixel is interpolated bilinearly between the
    results of the four windows around it. If the maps fit into one window, the result is bit-identical to that without
    a window. (Windows are not in the paper. With them, images of any size get the attention that the network was
    trained with on patches, and results of tiles are exact.)

    Saved for backward: the maps, the weights, the result (for its signs) and F F^T per window.

    Raises TypeError or ValueError, naming the argument, before anything runs.
    """
    check_maps(maps, rows)
    check_fusion(maps, theta, weight, bias, temperature, slope)
    by_layer, side = rows == "layers", block_side(maps, window)
    backend = choose(maps[0], unsupported_reason(maps, side), "layer_attention")
    if backend == "reference":
        e = reference.layer_gram(maps, by_layer, side)
        return reference.layer_apply(maps, e, theta, weight, bias, temperature, by_layer, slope, side)
    inputs = AttentionInputs(list(maps), None, theta, weight, bias, temperature)
    return LAYER_ATTENTION(backend, inputs, AttentionOptions(by_layer, slope, side))[0]


def layer_gram(maps: Sequence[Tensor], *, rows: Rows = "channels", window: int | None = None) -> Tensor:
    """F F^T, an input of `layer_apply`: [B, NC, NC] or, with `rows` "layers", [B, N, N], in float32 (or float64).

    It is a sum over pixels, so that of an image is the sum of those of its tiles. With a `window` smaller than the
    maps, there is one per block of half a window's side, [B, rows, columns, NC, NC]. Arguments and errors as in
    `layer_attention`.
    """
    check_maps(maps, rows)
    by_layer, side = rows == "layers", block_side(maps, window)
    backend = choose(maps[0], unsupported_reason(maps, side), "layer_gram")
    if backend == "reference":
        return reference.layer_gram(maps, by_layer, side)
    (gram,) = LAYER_GRAM(backend, GramInputs(list(maps)), GramOptions(by_layer, side))
    grid = Grid.of(maps[0], side)
    return gram if side == 0 else gram.unflatten(0, (-1, grid.rows, grid.columns))


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
    window: int | None = None,
) -> Tensor:
    """`layer_attention` with a given F F^T, e.g. one summed over tiles or processes.

    `gram` as from `layer_gram`; the other arguments and the errors as in `layer_attention`.
    """
    check_maps(maps, rows)
    check_fusion(maps, theta, weight, bias, temperature, slope)
    by_layer, side, (b, c) = rows == "layers", block_side(maps, window), maps[0].shape[:2]
    size, grid = len(maps) * (1 if by_layer else c), Grid.of(maps[0], side)
    blocks = () if side == 0 else (grid.rows, grid.columns)
    sums = torch.empty((), dtype=torch.promote_types(maps[0].dtype, torch.float32), device=maps[0].device)
    checks.tensor("gram", gram, (b, *blocks, size, size), sums)
    backend = choose(maps[0], unsupported_reason(maps, side), "layer_apply")
    if backend == "reference":
        return reference.layer_apply(maps, gram, theta, weight, bias, temperature, by_layer, slope, side)
    # As a vector, since autocast does not cast vectors.
    inputs = AttentionInputs(list(maps), gram.flatten(), theta, weight, bias, temperature)
    return LAYER_ATTENTION(backend, inputs, AttentionOptions(by_layer, slope, side))[0]


def attention_matrix(gram: Tensor, temperature: Tensor | None = None, *, rows: Rows = "channels") -> Tensor:
    """M, the attention of `layer_attention`, in the shape and dtype of `gram`, [B, NC, NC] or [B, N, N] (`layer_gram`).

    `temperature` and `rows` as in `layer_attention`. Differentiable any number of times.

    Raises TypeError or ValueError, naming the argument, before anything runs.
    """
    check_gram(gram, temperature, rows)
    return reference.attention_matrix(gram, temperature, rows == "layers")


def fold_into_weight(
    gram: Tensor, theta: Tensor, weight: Tensor, temperature: Tensor | None = None, *, rows: Rows = "channels"
) -> Tensor:
    """P = W (theta M + I), [B, O, NC] in the dtype of `gram`: `layer_attention` is LR(P F + bias) for each image.

    `gram` as from `layer_gram`; the other arguments as in `layer_attention`. Differentiable any number of times.

    Raises TypeError or ValueError, naming the argument, before anything runs.
    """
    check_gram(gram, temperature, rows)
    checks.tensor("theta", theta, (1,), theta)
    checks.tensor("weight", weight, (None, gram.shape[1] if rows == "channels" else None, 1, 1), theta)
    if weight.shape[1] % gram.shape[1]:
        raise ValueError(f"weight has {weight.shape[1]} inputs; expected a multiple of the {gram.shape[1]} maps")
    return algebra.fold_into_weight(gram, theta, weight, temperature, rows == "layers")


def check_maps(maps: Sequence[Tensor], rows: str) -> None:
    if not isinstance(maps, (list, tuple)):
        raise TypeError(f"maps is a {type(maps).__name__}; expected a list or tuple of maps [B, C, H, W]")
    if not maps:
        raise ValueError("maps is empty; expected one map or more")
    checks.image("maps[0]", maps[0])
    for j, x in enumerate(maps[1:], 1):
        checks.tensor(f"maps[{j}]", x, maps[0].shape, maps[0])
    check_rows(rows)


def check_rows(rows: str) -> None:
    if rows not in ("channels", "layers"):
        raise ValueError(f"rows is {rows!r}; expected channels or layers")


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


def block_side(maps: Sequence[Tensor], window: int | None) -> int:
    """Side of a block in pixels; 0 if the maps fit into one window."""
    if window is None:
        return 0
    if not isinstance(window, int) or isinstance(window, bool):
        raise TypeError(f"window is {window!r}; expected a whole number of pixels, or None")
    if window < 2 or window % 2:
        raise ValueError(f"window is {window}; expected an even number of pixels, 2 or more")
    return 0 if max(maps[0].shape[2:]) <= window else window // 2


def holds_windows(x: Tensor) -> bool:
    """Whether the kernels with windows compile without spills, as they do on GPUs with descriptors in hardware."""
    return not x.is_cuda or configs.describe(x.device).shared >= 200_000


def unsupported_reason(maps: Sequence[Tensor], side: int) -> str | None:
    """The reason why the kernels cannot take these maps, or None."""
    n, size = len(maps), len(maps) * maps[0].shape[1]
    if side % TILE:
        return f"its windows of {2 * side} pixels are not a multiple of {2 * TILE}, as the kernels' tiles require"
    if side and not holds_windows(maps[0]):
        return "its windows spill registers on this GPU; the kernels need sm_90 or newer"
    if n <= MOST_MAPS and size <= MOST_CHANNELS:
        return None
    return f"it has {n} maps of {size} channels together, and the kernels take {MOST_MAPS} maps of {MOST_CHANNELS}"


class GramInputs(NamedTuple):
    maps: list[Tensor]


class GramOptions(NamedTuple):
    by_layer: bool
    side: int
    """Side of a block; 0 for the whole image."""


def _layer_gram_forward(
    f: ALFMBackend, t: GramInputs, options: GramOptions, _save: bool
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    grid = Grid.of(t.maps[0], options.side)
    maps = [f.as_kernel_image(x) for x in t.maps]
    return (f.gram(maps, options.by_layer, grid, of_windows=False),), ()


def _layer_gram_backward(
    f: ALFMBackend,
    gradients: Sequence[Tensor],
    _saved: Sequence[Tensor],
    t: GramInputs,
    options: GramOptions,
    _wanted: Wanted,
) -> Gradients:
    (de,) = gradients
    maps = [f.as_kernel_image(x) for x in t.maps]
    grid = Grid.of(maps[0], options.side)
    return {"maps": f.mix(maps, len(maps), grid, block_matrix=f.both_sides(de.contiguous(), maps))}


class AttentionInputs(NamedTuple):
    maps: list[Tensor]
    gram: Tensor | None
    """F F^T as a vector, or None if the op computes it."""
    theta: Tensor
    weight: Tensor
    bias: Tensor
    temperature: Tensor | None


class AttentionOptions(NamedTuple):
    by_layer: bool
    slope: float
    side: int
    """Side of a block; 0 for the whole image."""


def _layer_attention_forward(
    f: ALFMBackend, t: AttentionInputs, options: AttentionOptions, save: bool
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    by_layer, slope, side = options
    maps, grid = [f.as_kernel_image(x) for x in t.maps], Grid.of(t.maps[0], side)
    if t.gram is None:
        e = f.gram(maps, by_layer, grid, of_windows=True)
    else:
        e = window_sums(_square(t.gram, maps, by_layer), grid)
    matrix = f.fold_into_weight(e, t.theta, t.weight, t.temperature, by_layer, maps[0].dtype)
    (y,) = f.mix(maps, 1, grid, window_matrix=matrix.mT[:, None], bias=t.bias, slope=slope)
    return (y,), (e,) if save and t.gram is None else ()


def layer_attention_backward(
    f: ALFMBackend,
    gradients: Sequence[Tensor],
    saved: Sequence[Tensor],
    t: AttentionInputs,
    options: AttentionOptions,
    wanted: Wanted,
) -> Gradients:
    by_layer, slope, side = options
    maps, g = [f.as_kernel_image(x) for x in t.maps], f.as_kernel_image(gradients[0])
    grid = Grid.of(g, side)
    gradient = PendingMask(g, f.as_kernel_image(saved[0]) if slope != 1 else None, slope)
    e = saved[-1] if t.gram is None else window_sums(_square(t.gram, maps, by_layer), grid)
    dp, dbias = f.products(gradient, maps, grid)
    de, dtheta, dweight, dtemperature, matrix = f.fold_into_weight_backward(
        dp, e, t.theta, t.weight, t.temperature, by_layer, maps if wanted("maps") else []
    )
    of_blocks = window_sums_backward(de, grid)
    found: Gradients = {
        "gram": of_blocks.flatten(),
        "theta": dtheta,
        "weight": dweight,
        "bias": dbias,
        "temperature": dtemperature,
    }
    if matrix is not None:
        # P^T g and, unless F F^T was given, (dE + dE^T) F, in one pass over the maps.
        of_maps = f.both_sides(of_blocks, maps) if t.gram is None else None
        seen = maps if t.gram is None else []
        found["maps"] = f.mix(seen, len(maps), grid, window_matrix=matrix, block_matrix=of_maps, gradient=gradient)
    return found


def _square(gram: Tensor, maps: Sequence[Tensor], by_layer: bool) -> Tensor:
    size = len(maps) * (1 if by_layer else maps[0].shape[1])
    return gram.view(-1, size, size)


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
    saves_outputs=lambda options: options.slope != 1,  # backward needs the output's signs
    lays_out_weights=False,
)
