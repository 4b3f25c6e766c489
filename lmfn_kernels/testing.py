"""Random inputs for the ops, and the one bound that results are held to."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from lmfn_kernels import (
    Conv,
    Full3D,
    LayerAttention,
    Pseudo3D,
    RFDBWeights,
    backend,
    channel_gate,
    conv3x3,
    distill_fuse,
    distill_stage,
    esa_gate,
    layer_attention,
    residual_block,
    rfdb,
    stem,
    upsampled_conv3x3,
)


def random(shape: Sequence[int], dtype: torch.dtype = torch.float64, device: str = "cpu", scale: float = 1.0) -> Tensor:
    """Drawn in float64 and rounded, so that every dtype sees the same numbers to its own precision."""
    return (torch.randn(tuple(shape), dtype=torch.float64) * scale).to(device=device, dtype=dtype)


def conv(outputs: int, inputs: int, size: int, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    """Weight and bias."""
    weight = random((outputs, inputs, size, size), dtype, device, (inputs * size * size) ** -0.5)
    return [weight, random((outputs,), dtype, device, 0.3)]


def rfdb_case(
    b: int, c: int, d: int, f: int, h: int, w: int, dtype: torch.dtype = torch.float64, device: str = "cpu"
) -> list[Tensor]:
    """The input, then the weights as `rfdb_flat` takes them."""
    shapes = [(d, c, 1)] * 3 + [(c, c, 3)] * 3 + [(d, c, 3), (c, 4 * d, 1), (f, c, 1), (f, f, 1)] + [(f, f, 3)] * 4
    tensors = [random((b, c, h, w), dtype, device)]
    for n, k, size in [*shapes, (c, f, 1)]:
        tensors += conv(n, k, size, dtype, device)
    return tensors


def rfdb_flat(x: Tensor, *flat: Tensor, slope: float = 0.05, fixed_grid: bool = False) -> Tensor:
    convs = [Conv(*flat[i : i + 2]) for i in range(0, len(flat), 2)]
    distil, refine = (convs[0], convs[1], convs[2]), (convs[3], convs[4], convs[5])
    return rfdb(x, RFDBWeights(distil, refine, *convs[6:]), slope, fixed_grid=fixed_grid)


def stage_case(b: int, c: int, d: int, h: int, w: int, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    return [random((b, c, h, w), dtype, device), *conv(d, c, 1, dtype, device), *conv(c, c, 3, dtype, device)]


def stage_flat(x: Tensor, *flat: Tensor) -> tuple[Tensor, Tensor]:
    return distill_stage(x, Conv(*flat[:2]), Conv(*flat[2:]))


def fuse_case(b: int, c: int, d: int, f: int, h: int, w: int, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    maps = [random((b, n, h, w), dtype, device) for n in (c, d, d, d)]
    return [*maps, *conv(d, c, 3, dtype, device), *conv(c, 4 * d, 1, dtype, device), *conv(f, c, 1, dtype, device)]


def fuse_flat(x: Tensor, d1: Tensor, d2: Tensor, d3: Tensor, *flat: Tensor) -> tuple[Tensor, Tensor]:
    return distill_fuse(x, (d1, d2, d3), Conv(*flat[:2]), Conv(*flat[2:4]), Conv(*flat[4:]))


def gate_case(
    b: int, c: int, f: int, h: int, w: int, low: tuple[int, int], dtype: torch.dtype, device: str = "cpu"
) -> list[Tensor]:
    maps = [random(shape, dtype, device) for shape in ((b, c, h, w), (b, f, h, w), (b, f, *low))]
    return [*maps, *conv(f, f, 1, dtype, device), *conv(c, f, 1, dtype, device)]


def gate_flat(y: Tensor, a: Tensor, v: Tensor, *flat: Tensor, fixed_grid: bool = False) -> Tensor:
    return esa_gate(y, a, v, Conv(*flat[:2]), Conv(*flat[2:]), fixed_grid=fixed_grid)


def conv_case(
    b: int, c: int, n: int, h: int, w: int, dtype: torch.dtype, device: str = "cpu", stride: int = 1, padding: int = 1
) -> list[Tensor]:
    low = [(size + 2 * padding - 3) // stride + 1 for size in (h, w)]
    return [random((b, c, h, w), dtype, device), *conv(n, c, 3, dtype, device), random((b, n, *low), dtype, device)]


def conv_flat(**options: Any) -> Callable[..., Tensor]:
    def call(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        return conv3x3(x, weight, bias, residual, **options)

    return call


def attention_case(
    b: int, n: int, c: int, o: int, h: int, w: int, dtype: torch.dtype, device: str = "cpu", *, form: str = "channels"
) -> list[Tensor]:
    """n maps whose rows have a squared length of about 2, theta, weight, bias, and for cosines their temperature.

    `form`: channels, layers, channels-cosine or layers-cosine.
    """
    scale = (2 / (h * w * (c if form.startswith("layers") else 1))) ** 0.5
    maps = [random((b, c, h, w), dtype, device, scale) for _ in range(n)]
    temperature = [random((1,), dtype, device, 0.1) + 2] if form.endswith("cosine") else []
    return [*maps, random((1,), dtype, device), *conv(o, n * c, 1, dtype, device), *temperature]


def attention_flat(form: str = "channels", slope: float = 0.05, window: int | None = None) -> Callable[..., Tensor]:
    rows: Any = form.removesuffix("-cosine")

    def call(*tensors: Tensor) -> Tensor:
        n = len(tensors) - (4 if form.endswith("cosine") else 3)
        return layer_attention(tensors[:n], *tensors[n:], rows=rows, slope=slope, window=window)

    return call


def channel_gate_case(
    b: int, c: int, h: int, w: int, dtype: torch.dtype, device: str = "cpu", *, form: str = "pseudo3d"
) -> list[Tensor]:
    """x, alpha, the weights, and what is added."""
    x, add = (random((b, c, h, w), dtype, device) for _ in range(2))
    if form == "full3d":
        weights = [random((3, 3, 3), dtype, device, 0.2), random((1,), dtype, device)]
    else:
        weights = [random((3, 3), dtype, device, 0.3), random((1,), dtype, device)]
        weights += [random((size,), dtype, device, 0.2).abs() for size in (3, 1)]
    return [x, random((1,), dtype, device).abs(), *weights, add]


def channel_gate_flat(form: str = "pseudo3d") -> Callable[..., Tensor]:
    def call(x: Tensor, alpha: Tensor, *tensors: Tensor) -> Tensor:
        *weights, add = tensors
        return channel_gate(x, Full3D(*weights) if form == "full3d" else Pseudo3D(*weights), alpha, add)

    return call


def merge_case(
    b: int, n: int, c: int, h: int, w: int, dtype: torch.dtype, device: str = "cpu", *, form: str = "pseudo3d"
) -> list[Tensor]:
    """What `channel_gate_case` gives but for what is added, and what `attention_case` gives for that. Cosines."""
    gate = channel_gate_case(b, c, h, w, dtype, device, form=form)[:-1]
    return [*gate, *attention_case(b, n, c, c, h, w, dtype, device, form="channels-cosine")]


def merge_flat(
    form: str = "pseudo3d", rows: Any = "channels", slope: float = 0.05, window: int | None = None
) -> Callable[..., Tensor]:
    size = 2 if form == "full3d" else 4

    def call(x: Tensor, alpha: Tensor, *tensors: Tensor) -> Tensor:
        *maps, theta, weight, bias, temperature = tensors[size:]
        gate = Full3D(*tensors[:size]) if form == "full3d" else Pseudo3D(*tensors[:size])
        attention = LayerAttention(maps, theta, weight, bias, temperature, rows, slope, window)
        return channel_gate(x, gate, alpha, attention)

    return call


def stem_case(b: int, c: int, n: int, h: int, w: int, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    return [random((b, 3, h, w), dtype, device), *conv(c, 3, 3, dtype, device), *conv(n, c, 3, dtype, device)]


def stem_flat(padding: int = 1) -> Callable[..., Tensor]:
    def call(x: Tensor, *flat: Tensor) -> Tensor:
        return stem(x, Conv(*flat[:2]), Conv(*flat[2:]), padding=padding)

    return call


def block_case(b: int, c: int, m: int, h: int, w: int, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    return [random((b, c, h, w), dtype, device), *conv(m, c, 3, dtype, device), *conv(c, m, 3, dtype, device)]


def block_flat(**options: Any) -> Callable[..., Tensor]:
    def call(x: Tensor, *flat: Tensor) -> Tensor:
        return residual_block(x, Conv(*flat[:2]), Conv(*flat[2:]), **options)

    return call


def upsample_add_case(
    b: int, c: int, h: int, w: int, low: tuple[int, int], dtype: torch.dtype, device: str = "cpu"
) -> list[Tensor]:
    return [random((b, c, h, w), dtype, device), random((b, c, *low), dtype, device)]


def upsampled_conv_case(
    b: int, c: int, n: int, h: int, w: int, dtype: torch.dtype, device: str = "cpu"
) -> list[Tensor]:
    return [random((b, c, h, w), dtype, device), *conv(n, c, 3, dtype, device)]


def upsampled_conv_flat(x: Tensor, *flat: Tensor) -> Tensor:
    return upsampled_conv3x3(x, Conv(*flat))


def differentiate(
    function: Callable[..., Any], tensors: Sequence[Tensor], needs: Sequence[bool] | None = None
) -> tuple[list[Tensor], list[Tensor | None]]:
    """Results, and gradients of the inputs for fixed random gradients of the results."""
    needs = [True] * len(tensors) if needs is None else needs
    leaves = [t.detach().requires_grad_(need) for t, need in zip(tensors, needs, strict=True)]
    results = function(*leaves)
    results = [results] if isinstance(results, Tensor) else list(results)
    gradients = gradients_for(results)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    found = iter(torch.autograd.grad(results, wanted, gradients)) if wanted else iter(())
    return [r.detach() for r in results], [next(found) if need else None for need in needs]


def gradients_for(results: Sequence[Tensor]) -> list[Tensor]:
    """Fixed random gradients in steps of 1/32, which every dtype holds."""
    generator = torch.Generator().manual_seed(3)
    drawn = (torch.randn(r.shape, dtype=torch.float64, generator=generator) for r in results)
    return [(d * 32).round().div(32).to(r.device, r.dtype) for d, r in zip(drawn, results, strict=True)]


aten = torch.ops.aten

ROUNDS = 8
ROUNDINGS = 3
TIMES = 1.5


class Exact(NamedTuple):
    """A value in float64, and what roundings alone make of it: the largest RMS and the largest value of their errors.

    Those are of each channel of an image or of a convolution's weight, else of the whole.
    """

    value: Tensor
    rms: Tensor
    largest: Tensor


def exactly(
    function: Callable[..., Any],
    tensors: Sequence[Tensor],
    needs: Sequence[bool] | None = None,
    rounds: int = ROUNDS,
) -> tuple[list[Exact], list[Exact | None]]:
    """`differentiate` by the written formula in float64, with the errors that `assert_rounded` allows."""
    wide = [t.double() for t in tensors]
    errors: list[list[tuple[Tensor, Tensor]]] = []
    with backend("reference"):
        results, gradients = differentiate(function, wide, needs)
        values = [*results, *(g for g in gradients if g is not None)]
        for seed in range(rounds):
            with _Rounded(tensors[0].dtype, seed) as rounded:
                r, g = differentiate(function, wide, needs)
            others = [*r, *(one for one in g if one is not None)]
            errors.append([_sizes((o - v) / rounded.scale) for o, v in zip(others, values, strict=True)])
    found = [
        Exact(value, *(torch.stack(sizes).amax(0) for sizes in zip(*of_rounds, strict=True)))
        for value, of_rounds in zip(values, zip(*errors, strict=True), strict=True)
    ]
    rest = iter(found[len(results) :])
    return found[: len(results)], [None if g is None else next(rest) for g in gradients]


def assert_rounded(name: str, result: Tensor, exact: Exact) -> None:
    """Hold a result to what roundings alone may do to it, channel by channel, in its RMS error and its largest.

    What they may do is measured: the written formula runs in float64, forward and backward, ROUNDS times, with every
    operation's result off at random by up to ROUNDINGS times what rounding it to the dtype of the inputs does, and a
    sum's factors off by sqrt(K) times what rounding in the type of sums does, K the number of its products. The error
    may be TIMES the largest that came of it. So the bound is eps sqrt(K), for each value at its own scale and with its
    own condition: where terms cancel the sum is small and the errors are those of the terms; where a rounding carries
    a value across an activation's kink, or past another maximum, the gradient jumps here as it does there. Nobody
    counts terms, and nothing is widened for an op that is hard.

    Why not the sums of the absolute products, the usual bound: through several layers it is pessimistic without end.
    Why not inputs that are off: intermediate results are rounded too, and in 16 bits that is most of the error. Why
    three roundings and not one: a jump that one rounding makes, by chance, must be found in eight rounds. A method
    that rounds less often than the formula errs less; one that rounds in other places, alike.

    NaN is never close.
    """
    value = exact.value
    assert result.shape == value.shape, f"{name}: shape {tuple(result.shape)}, expected {tuple(value.shape)}"
    for kind, sizes, natural in zip(("RMS", "largest"), _sizes(result.double() - value), exact[1:], strict=True):
        within = sizes <= TIMES * natural
        worst = int((sizes / natural).nan_to_num(0.0).masked_fill(within, -1).argmax())
        assert within.all(), (
            f"{name}: {kind} error {sizes[worst]:.3g} in channel {worst}, where roundings make {natural[worst]:.3g}; "
            f"at most {TIMES} times that is expected"
        )


def _sizes(error: Tensor) -> tuple[Tensor, Tensor]:
    """RMS and largest value of each channel of an image or of a convolution's weight, else of the whole."""
    parts = error.movedim(1, 0).flatten(1) if error.ndim == 4 else error.reshape(1, -1)
    return parts.square().mean(1).sqrt(), parts.abs().amax(1)


class _Rounded(TorchDispatchMode):
    """Every operation in float64 is off at random, as `assert_rounded` says.

    Float64 cannot show roundings of its own; there they are larger than they are by `scale`.
    """

    def __init__(self, dtype: torch.dtype, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # One per device: what a function draws or computes on the CPU may be off, too.
        self.generators: dict[torch.device, torch.Generator] = {}
        self.seed = seed
        eps, summed = (torch.finfo(d).eps for d in (dtype, torch.promote_types(dtype, torch.float32)))
        self.scale = max(1.0, 2.0**-32 / eps)
        self.eps, self.summed = (ROUNDINGS * self.scale * e for e in (eps, summed))
        self.tiny = torch.finfo(dtype).tiny

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        op = func.overloadpacket
        if op is aten.convolution_backward:
            return self._convolution_backward(*args)
        terms = _terms(op, args)
        found = func(*(args if terms == 1 else self._factors(args, terms)), **(kwargs or {}))
        return found if func.is_view or op in MOVES else tree_map_only(Tensor, lambda t: self._off(t, self.eps), found)

    def _convolution_backward(self, gradient: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> list[Tensor | None]:
        """The three gradients apart, which sum different numbers of products."""
        *options, wanted = rest
        pixels = gradient[:, 0].numel()
        found: list[Tensor | None] = [None, None, None]
        for i, terms in enumerate((weight[:, 0].numel(), pixels, pixels)):
            if wanted[i]:
                factors = self._factors((gradient, x, weight), terms)
                one = aten.convolution_backward(*factors, *options, [i == j for j in range(3)])[i]
                found[i] = self._off(one, self.eps)
        return found

    def _factors(self, args: Any, terms: int) -> Any:
        return tree_map_only(Tensor, lambda t: self._off(t, self.summed * terms**0.5), args)

    def _off(self, x: Tensor, eps: float) -> Tensor:
        """Off by up to half of `eps`, as rounding to the nearest is; below the smallest normal number, of that."""
        if not x.is_floating_point():
            return x
        if x.device not in self.generators:
            self.generators[x.device] = torch.Generator(x.device).manual_seed(self.seed)
        generator = self.generators[x.device]
        step = (x.abs() * eps).clamp_min(self.tiny * eps)
        return x + step * (torch.rand(x.shape, dtype=x.dtype, device=x.device, generator=generator) - 0.5)


MOVES = {aten.cat, aten.stack, aten.clone, aten.randn, aten.amax, aten.relu, aten.max_pool2d_with_indices}
"""Operations that copy values or choose among them, which is exact."""


def _terms(op: Any, args: tuple[Any, ...]) -> int:
    """The number of products that one value of the result sums."""
    if op is aten.convolution:
        return int(args[1][0].numel())
    if op in (aten.mm, aten.bmm):
        return int(args[0].shape[-1])
    if op is aten.sum:
        over = range(args[0].ndim) if len(args) == 1 else args[1]
        return math.prod(args[0].shape[i] for i in over)
    if op in (aten.upsample_bilinear2d, aten.upsample_bilinear2d_backward):
        # PyTorch's place among so many rows is off by the rounding of a number as large: that is n sqrt(1).
        return int(max((args[0].shape if op is aten.upsample_bilinear2d else args[2])[2:])) ** 2
    return 1
