"""The ACFM's op: a gate for every value of an image, computed from its neighbours in channel, height and width.

Zhang et al., "Image deblurring based on lightweight multi-information fusion network", ICIP 2021, arXiv 2101.05403,
section 2.3. The form with one 3x3x3 convolution is the one in the network that the authors released.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from lmfn_kernels.acfm import reference
from lmfn_kernels.acfm.backend import ACFMBackend, implementation
from lmfn_kernels.alfm import op as alfm
from lmfn_kernels.alfm.op import AttentionInputs, AttentionOptions, LayerAttention, layer_attention_backward
from lmfn_kernels.alfm.windows import Grid
from lmfn_kernels.runtime import checks
from lmfn_kernels.runtime.backend import choose
from lmfn_kernels.runtime.registration import Gradients, NoOptions, Op, Wanted
from lmfn_kernels.weights import Full3D, Gate, Pseudo3D

WIDEST = 64  # channels that one program of a kernel supports


def channel_gate(x: Tensor, gate: Gate, alpha: Tensor, add: Tensor | LayerAttention | None = None) -> Tensor:
    """x + alpha sigmoid(q) x + add, where q is a convolution of x over channel, height and width, padded with zeros.

    `x`, `add` and the result [B, C, H, W], float32, float16, bfloat16 or float64, of any strides; `gate` are the
    weights of q, whose type selects its form (`Pseudo3D`, `Full3D`); `alpha` [1]. All tensors have one dtype and
    device; sums are in float32 (float64 for float64). The result is channels-last, from the kernels with gaps between
    pixels (`pixel_pitch`). Under autocast, images are cast to its dtype, weights are not. Gradients are of first order.

    If `add` is a `LayerAttention`, this is the merge of both attentions, f_l + f_c, in one pass over the layers and x:
    f_l is computed on the fly, and written to memory only if backward needs its signs. Its shape must be that of x.

    Saved for backward: `x` and the gate's 14 or 28 weights; for a `LayerAttention` also what `layer_attention` saves.

    Raises TypeError or ValueError, naming the argument, before anything runs.
    """
    checks.image("x", x)
    if not isinstance(gate, (Pseudo3D, Full3D)):
        raise TypeError(f"gate is a {type(gate).__name__}; expected Pseudo3D or Full3D")
    shapes = ((3, 3), (1,), (3,), (1,)) if isinstance(gate, Pseudo3D) else ((3, 3, 3), (1,))
    for name, weight, shape in zip(gate._fields, gate, shapes, strict=True):
        checks.tensor(f"gate.{name}", weight, shape, x)
    checks.tensor("alpha", alpha, (1,), x)
    if isinstance(add, LayerAttention):
        return _merged(x, gate, alpha, add)
    if add is not None:
        checks.tensor("add", add, x.shape, x)
    backend = choose(x, _unsupported_reason(x), "channel_gate")
    if backend == "reference":
        return reference.channel_gate(x, gate, alpha, add)
    return CHANNEL_GATE(backend, GateInputs(x, add, alpha, _as_vectors(gate)), NoOptions())[0]


def _merged(x: Tensor, gate: Gate, alpha: Tensor, add: LayerAttention) -> Tensor:
    alfm.check_maps(add.maps, add.rows)
    checks.tensor("add.maps[0]", add.maps[0], x.shape, x)
    alfm.check_fusion(*add[:5], add.slope)
    checks.tensor("add.weight", add.weight, (x.shape[1], None, 1, 1), x)
    side = alfm.block_side(add.maps, add.window)
    if _unsupported_reason(x) or alfm.unsupported_reason(add.maps, side):
        return channel_gate(x, gate, alpha, add())  # each with the backend that can take it
    backend = choose(x, None, "attention_merge")
    if backend == "reference":
        return reference.channel_gate(x, gate, alpha, add())
    # If x is one of the maps, pass it once: PyTorch's compiler does not accept a tensor twice.
    x_index = next((i for i, f in enumerate(add.maps) if f is x), -1)
    inputs = MergeInputs(list(add.maps), x if x_index < 0 else None, alpha, _as_vectors(gate), *add[1:5])
    return ATTENTION_MERGE(backend, inputs, MergeOptions(x_index, add.rows == "layers", add.slope, side))[0]


def _unsupported_reason(x: Tensor) -> str | None:
    """The reason why the kernels cannot take this image, or None."""
    return f"it has {x.shape[1]} channels, and the kernels hold at most {WIDEST}" if x.shape[1] > WIDEST else None


def _as_vectors(gate: Gate) -> list[Tensor]:
    """The weights as vectors, which autocast does not cast."""
    return [weight.flatten() for weight in gate]


class GateInputs(NamedTuple):
    x: Tensor
    add: Tensor | None
    alpha: Tensor
    gate: list[Tensor]
    """The weights of `Pseudo3D` or `Full3D`, as vectors."""


def _channel_gate_forward(
    f: ACFMBackend, t: GateInputs, _options: NoOptions, _save: bool
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    return (f.gate(f.as_kernel_image(t.x), None if t.add is None else f.as_kernel_image(t.add), t.alpha, t.gate),), ()


def _channel_gate_backward(
    f: ACFMBackend,
    gradients: Sequence[Tensor],
    _saved: Sequence[Tensor],
    t: GateInputs,
    _options: NoOptions,
    _wanted: Wanted,
) -> Gradients:
    (g,) = gradients
    dx, dalpha, dgate = f.gate_backward(f.as_kernel_image(g), f.as_kernel_image(t.x), t.alpha, t.gate)
    return {"x": dx, "add": g, "alpha": dalpha, "gate": dgate}


class MergeInputs(NamedTuple):
    maps: list[Tensor]
    x: Tensor | None
    """None if x is one of the maps."""
    alpha: Tensor
    gate: list[Tensor]
    theta: Tensor
    weight: Tensor
    bias: Tensor
    temperature: Tensor | None


class MergeOptions(NamedTuple):
    x_index: int
    """Index of x among the maps, or -1."""
    by_layer: bool
    slope: float
    side: int
    """Side of a block of the attention's windows; 0 for the whole image."""


def _attention_merge_forward(
    f: ACFMBackend, t: MergeInputs, options: MergeOptions, save: bool
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    x = t.maps[options.x_index] if t.x is None else t.x
    maps, grid = [f.as_kernel_image(one) for one in t.maps], Grid.of(x, options.side)
    e = f.gram(maps, options.by_layer, grid, of_windows=True)
    matrix = f.fold_into_weight(e, t.theta, t.weight, t.temperature, options.by_layer, x.dtype)
    of_signs = save and options.slope != 1  # backward needs the signs of f_l only for its activation
    y, added = f.merge(f.as_kernel_image(x), t.alpha, t.gate, maps, matrix, grid, t.bias, options.slope, of_signs)
    return (y,), () if not save else (e,) if added is None else (added, e)


def _attention_merge_backward(
    f: ACFMBackend,
    gradients: Sequence[Tensor],
    saved: Sequence[Tensor],
    t: MergeInputs,
    options: MergeOptions,
    wanted: Wanted,
) -> Gradients:
    found: Gradients = {}
    if wanted("maps", "theta", "weight", "bias", "temperature"):
        attention = AttentionInputs(t.maps, None, *t[4:])
        of_attention = AttentionOptions(options.by_layer, options.slope, options.side)
        found |= layer_attention_backward(f, gradients, saved, attention, of_attention, wanted)
    if wanted("x", "alpha", "gate") or (t.x is None and wanted("maps")):
        x = t.maps[options.x_index] if t.x is None else t.x
        through_attention = found["maps"][options.x_index] if t.x is None and wanted("maps") else None
        dx, found["alpha"], found["gate"] = f.gate_backward(
            f.as_kernel_image(gradients[0]), f.as_kernel_image(x), t.alpha, t.gate, through_attention
        )
        if t.x is not None:
            found["x"] = dx
        elif through_attention is not None:
            found["maps"][options.x_index] = dx
    return found


CHANNEL_GATE = Op(
    "channel_gate",
    GateInputs,
    NoOptions,
    implementation,
    _channel_gate_forward,
    _channel_gate_backward,
    unsaved_inputs=("add",),
)
ATTENTION_MERGE = Op(
    "attention_merge",
    MergeInputs,
    MergeOptions,
    implementation,
    _attention_merge_forward,
    _attention_merge_backward,
    lays_out_weights=False,
)
