"""The ACFM's op: a gate for every value of an image from its neighbours in channel, height and width.

Zhang et al., "Image deblurring based on lightweight multi-information fusion network", ICIP 2021, arXiv 2101.05403,
section 2.3. The form with one 3x3x3 convolution is that of the network its authors released.
"""

# ruff: noqa: ARG001  (an op's forward and backward function have the same arguments for every op)

from collections.abc import Sequence

from torch import Tensor

from lmfn_kernels.acfm import reference
from lmfn_kernels.alfm import op as alfm
from lmfn_kernels.alfm.op import LayerAttention
from lmfn_kernels.runtime import backend, checks
from lmfn_kernels.runtime.registration import Gradients, Op, Tensors, given, pieces
from lmfn_kernels.weights import Full3D, Gate, Pseudo3D

WIDEST = 64  # channels that one program of a kernel holds


def channel_gate(x: Tensor, gate: Gate, alpha: Tensor, add: Tensor | LayerAttention | None = None) -> Tensor:
    """x + alpha sigmoid(q) x + add, with q from the neighbours of each value in channel, height and width.

    `x`, `add` and the result [B, C, H, W], float32, float16, bfloat16 or float64, of any strides, zero beyond the
    borders; `gate` the weights of q, whose type says its form; `alpha` [1]. All tensors of one dtype on one device;
    computed in float32 (float64 for float64). The result is channels-last, from the kernels with a pixel stride rounded
    up to 16 bytes. Under autocast, images are cast to its dtype, weights left as they are. First-order gradients only.

    A `LayerAttention` as `add` is computed on the way, and written only where backward needs its signs: the merge of
    the two attentions, f_l + f_c, in one pass over the layers and x. It gives [B, C, H, W] as x has them.

    Kept for backward: `x`, and the 14 or 28 weights; with a `LayerAttention` what `layer_attention` keeps, too.

    Raises TypeError or ValueError, naming the argument, before anything runs.
    """
    checks.image("x", x)
    if not isinstance(gate, (Pseudo3D, Full3D)):
        raise TypeError(f"gate is a {type(gate).__name__}; expected is Pseudo3D or Full3D")
    shapes = ((3, 3), (1,), (3,), (1,)) if isinstance(gate, Pseudo3D) else ((3, 3, 3), (1,))
    for name, weight, shape in zip(gate._fields, gate, shapes, strict=True):
        checks.tensor(f"gate.{name}", weight, shape, x)
    checks.tensor("alpha", alpha, (1,), x)
    if isinstance(add, LayerAttention):
        return _merged(x, gate, alpha, add)
    if add is not None:
        checks.tensor("add", add, x.shape, x)
    body = backend.choose(x, _refusal(x), "channel_gate")
    if body == "reference":
        return reference.channel_gate(x, gate, alpha, add)
    # As vectors, because autocast leaves vectors in float32.
    return _channel_gate(body, (x, add, alpha, *(weight.flatten() for weight in gate)), ())[0]


def _merged(x: Tensor, gate: Gate, alpha: Tensor, add: LayerAttention) -> Tensor:
    alfm.check_maps(add.maps, add.rows)
    checks.tensor("add.maps[0]", add.maps[0], x.shape, x)
    alfm.check_fusion(*add[:5], add.slope)
    checks.tensor("add.weight", add.weight, (x.shape[1], None, 1, 1), x)
    if _refusal(x) or alfm.refusal(add.maps):
        return channel_gate(x, gate, alpha, add())  # each with the body that can take it
    body = backend.choose(x, None, "attention_merge")
    if body == "reference":
        return reference.channel_gate(x, gate, alpha, add())
    weights = [weight.flatten() for weight in gate]
    # Once where it is one of the maps: PyTorch's compiler takes no tensor twice.
    place = next((i for i, f in enumerate(add.maps) if f is x), -1)
    tensors = (*add.maps, x if place < 0 else None, alpha, *weights, *[None] * (4 - len(weights)), *add[1:5])
    return _attention_merge(body, tensors, (float(add.rows == "layers"), add.slope, place))[0]


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


OTHERS = 10  # tensors of the merge that are no maps: x, alpha, the gate's four, theta, weight, bias, temperature


def _of_gate(tensors: Tensors, place: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    x, alpha = tensors[-OTHERS] if place < 0 else tensors[place], tensors[1 - OTHERS]
    assert x is not None
    assert alpha is not None
    return x, alpha, given(tensors[2 - OTHERS : 6 - OTHERS])


def _merge_forward(body: str, tensors: Tensors, options: Sequence[float], keep: bool) -> list[Tensor]:
    p, q = pieces("acfm", body), pieces("alfm", body)
    by_layer, slope = options[0] == 1, options[1]
    x, alpha, gate = _of_gate(tensors, int(options[2]))
    *_, theta, weight, bias, temperature = tensors
    maps = [q.layout(f) for f in given(tensors[:-OTHERS])]
    e = q.gram(maps, by_layer)
    matrix = q.fold_into_weight(e, theta, weight, temperature, by_layer)
    y, added = p.merge(p.layout(x), alpha, gate, maps, matrix, bias, slope, keep)
    return [y, added, e] if keep else [y]


def _merge_backward(
    body: str,
    gradients: Tensors,
    kept: Sequence[Tensor],
    tensors: Tensors,
    options: Sequence[float],
    needs: Sequence[bool],
) -> list[Tensor]:
    place = int(options[2])
    x, alpha, gate = _of_gate(tensors, place)
    needs_x = needs[-OTHERS] if place < 0 else needs[place]
    of_gate = [needs_x, False, *needs[1 - OTHERS : 2 - OTHERS + len(gate)]]
    of_attention = [*needs[:-OTHERS], False, *needs[-4:]]
    found = _channel_gate_backward(body, gradients, [], [x, None, alpha, *gate], [], of_gate) if any(of_gate) else []
    others: list[Tensor] = []
    if any(of_attention):
        attention = [*tensors[:-OTHERS], None, *tensors[-4:]]
        others = alfm.layer_attention_backward(body, gradients, kept, attention, options, of_attention)
    if needs_x and place >= 0:
        others[sum(needs[:place])] += found.pop(0)
    maps = sum(needs[:-OTHERS])
    return [*others[:maps], *found, *others[maps:]]


_attention_merge = Op("attention_merge", 1, _merge_forward, _merge_backward)
