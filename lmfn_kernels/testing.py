"""The test oracle: float64 references, the errors that rounding may cause, and a table of this package's ops.

`assert_correct` checks any function against its formula; docs/kernels.md has an example. Without a formula, the
reference is the function itself under `lmfn_kernels.backend("reference")`, where this package's ops compute their
formulas. `OPS` lists these ops with inputs of any size, for the benchmarks and the tests common to all ops.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

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
    layer_apply,
    layer_attention,
    layer_gram,
    residual_block,
    residual_blocks,
    rfdb,
    stem,
    upsample_add,
    upsampled_conv3x3,
)
from lmfn_kernels.runtime.torch_private import TorchDispatchMode, tree_map_only

aten = torch.ops.aten

# See `assert_within_rounding`.
ROUNDS = 8
ROUNDINGS = 3
TIMES = 1.5


class Reference(NamedTuple):
    """A float64 value, with the largest RMS and the largest value of the errors that rounding causes.

    These are per channel of an image or of a convolution's weight, otherwise over the whole tensor.
    """

    value: Tensor
    rms: Tensor
    largest: Tensor


def assert_correct(
    function: Callable[..., Any],
    inputs: Sequence[Tensor],
    needs: Sequence[bool] | None = None,
    *,
    formula: Callable[..., Any] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Check the results and gradients of a function with `assert_within_rounding`, and the dtypes of gradients.

    `inputs` are floating point tensors; `needs` selects those with gradients (default: all). `formula` takes
    the same tensors, in float64; default: the function under `backend("reference")`. Results have `dtype`, by default
    that of the first input.
    """
    expected, expected_gradients = reference_with_bounds(formula or function, inputs, needs)
    results, gradients = differentiate(function, inputs, needs)
    for i, (result, reference) in enumerate(zip(results, expected, strict=True)):
        assert result.dtype == (dtype or inputs[0].dtype), f"result {i} has dtype {result.dtype}"
        assert_within_rounding(f"result {i}", result, reference)
    for i, (gradient, of_gradient) in enumerate(zip(gradients, expected_gradients, strict=True)):
        assert (gradient is None) == (of_gradient is None)
        if gradient is not None and of_gradient is not None:
            assert gradient.dtype == inputs[i].dtype, f"gradient of input {i} has dtype {gradient.dtype}"
            assert_within_rounding(f"gradient of input {i} {tuple(gradient.shape)}", gradient, of_gradient)


def reference_with_bounds(
    formula: Callable[..., Any],
    inputs: Sequence[Tensor],
    needs: Sequence[bool] | None = None,
    rounds: int = ROUNDS,
) -> tuple[list[Reference], list[Reference | None]]:
    """`differentiate` of the formula in float64 under `backend("reference")`, with `assert_within_rounding`'s bounds.

    Allows for rounding in the dtype of the first of `inputs`. Fewer `rounds` give smaller bounds.
    """
    wide = [t.double() for t in inputs]
    errors: list[list[tuple[Tensor, Tensor]]] = []
    with backend("reference"):
        results, gradients = differentiate(formula, wide, needs)
        values = [*results, *(g for g in gradients if g is not None)]
        for seed in range(rounds):
            with _Rounded(inputs[0].dtype, seed) as rounded:
                r, g = differentiate(formula, wide, needs)
            others = [*r, *(one for one in g if one is not None)]
            errors.append([_sizes((o - v) / rounded.scale) for o, v in zip(others, values, strict=True)])
    found = [
        Reference(value, *(torch.stack(sizes).amax(0) for sizes in zip(*of_rounds, strict=True)))
        for value, of_rounds in zip(values, zip(*errors, strict=True), strict=True)
    ]
    rest = iter(found[len(results) :])
    return found[: len(results)], [None if g is None else next(rest) for g in gradients]


def assert_within_rounding(name: str, result: Tensor, reference: Reference) -> None:
    """Check that the error of a result is explained by rounding, per channel, in its RMS and its largest value.

    The bound is measured: the formula runs in float64, forward and backward, ROUNDS times, with the result of every
    operation perturbed at random by up to ROUNDINGS times the rounding error of the inputs' dtype, and the factors of
    every sum by sqrt(K) times the rounding error of the accumulator's dtype, where K is the number of products in the
    sum. The error may be TIMES the largest deviation that results. The bound is therefore eps sqrt(K) at the scale and
    with the condition number of each value: if terms cancel, the sum is small but the errors are those of the terms; if
    rounding moves a value across the kink of an activation, or changes which value is the maximum, the gradient jumps
    in the reference as well. No bound is widened for difficult ops.

    Why not sums of absolute products, the usual bound? Through several layers it becomes far too pessimistic. Why not
    perturbed inputs? Intermediate results are rounded as well, which causes most of the error in 16 bits. Why three
    roundings instead of one? Eight rounds must find a jump caused by a single unlucky rounding. An implementation that
    rounds less often than the formula has smaller errors, and one that rounds in other places similar ones.

    NaN is never close. Raises AssertionError naming the worst channel, its error and its bound.
    """
    value = reference.value
    assert result.shape == value.shape, f"{name}: shape {tuple(result.shape)}, expected {tuple(value.shape)}"
    for kind, sizes, natural in zip(("RMS", "largest"), _sizes(result.double() - value), reference[1:], strict=True):
        within = sizes <= TIMES * natural
        worst = int((sizes / natural).nan_to_num(0.0).masked_fill(within, -1).argmax())
        assert within.all(), (
            f"{name}: {kind} error {sizes[worst]:.3g} in channel {worst}, where rounding causes {natural[worst]:.3g}; "
            f"expected at most {TIMES} times that"
        )


def differentiate(
    function: Callable[..., Any],
    inputs: Sequence[Tensor],
    needs: Sequence[bool] | None = None,
    gradients: Sequence[Tensor] | None = None,
) -> tuple[list[Tensor], list[Tensor | None]]:
    """Results of a function, and gradients of its inputs, for fixed random gradients of the results.

    `needs` selects the inputs with gradients (default: all); the others have None. `gradients` are those of the
    results, by default `gradients_for` them, which takes longer to draw than a GPU to compute an op.
    """
    needs = [True] * len(inputs) if needs is None else needs
    leaves = [t.detach().requires_grad_(need) for t, need in zip(inputs, needs, strict=True)]
    results = function(*leaves)
    results = [results] if isinstance(results, Tensor) else list(results)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    if wanted:
        gradients = gradients_for(results) if gradients is None else gradients
        # Of several results that are independent in the formula, those without any such input have no gradient.
        of = [(r, g) for r, g in zip(results, gradients, strict=True) if r.requires_grad]
        found = iter(torch.autograd.grad([r for r, _ in of], wanted, [g for _, g in of]))
    return [r.detach() for r in results], [next(found) if need else None for need in needs]


def gradients_for(results: Sequence[Tensor]) -> list[Tensor]:
    """The same random gradients in every call, multiples of 1/32 and therefore exact in every dtype."""
    generator = torch.Generator().manual_seed(3)
    drawn = (torch.randn(r.shape, dtype=torch.float64, generator=generator) for r in results)
    return [(d * 32).round().div(32).to(r.device, r.dtype) for d, r in zip(drawn, results, strict=True)]


def saved_bytes(function: Callable[..., Any], inputs: Sequence[Tensor], uncounted: Iterable[Tensor] = ()) -> int:
    """Bytes that autograd holds after a call, each storage once, excluding those of `uncounted` tensors."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    own = {t.untyped_storage().data_ptr() for t in uncounted}
    held: dict[int, int] = {}

    def hold(t: Tensor) -> Tensor:
        memory = t.untyped_storage()
        if memory.data_ptr() not in own:
            held[memory.data_ptr()] = memory.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(hold, lambda t: t):
        results = function(*leaves)  # kept until everything is counted, since freed addresses are reused
    del results
    return sum(held.values())


def _sizes(error: Tensor) -> tuple[Tensor, Tensor]:
    """RMS and largest value per channel of an image or of a convolution's weight, otherwise over the whole tensor."""
    parts = error.movedim(1, 0).flatten(1) if error.ndim == 4 else error.reshape(1, -1)
    return parts.square().mean(1).sqrt(), parts.abs().amax(1)


class _Rounded(TorchDispatchMode):
    """Perturbs every float64 operation at random, as described in `assert_within_rounding`.

    Float64 cannot represent its own rounding errors, so for float64 they are enlarged by `scale`.
    """

    def __init__(self, dtype: torch.dtype, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seed = seed
        # One per device, since a function for another device may also compute on the CPU.
        self.generators: dict[torch.device, torch.Generator] = {}
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
        """The three gradients separately, since they sum different numbers of products."""
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
        """Perturb values by up to `eps` / 2, like rounding to nearest; subnormal values like the smallest normal
        number."""
        if not x.is_floating_point():
            return x
        if x.device not in self.generators:
            self.generators[x.device] = torch.Generator(x.device).manual_seed(self.seed)
        generator = self.generators[x.device]
        step = (x.abs() * eps).clamp_min(self.tiny * eps)
        return x + step * (torch.rand(x.shape, dtype=x.dtype, device=x.device, generator=generator) - 0.5)


MOVES = {aten.cat, aten.stack, aten.clone, aten.randn, aten.amax, aten.relu, aten.max_pool2d_with_indices}
"""Operations that copy, select or draw values, and therefore do not round."""


def _terms(op: Any, args: tuple[Any, ...]) -> int:
    """The number of products in the sum for one value of the result."""
    if op is aten.convolution:
        return int(args[1][0].numel())
    if op in (aten.mm, aten.bmm):
        return int(args[0].shape[-1])
    if op is aten.sum:
        over = range(args[0].ndim) if len(args) == 1 else args[1]
        return math.prod(args[0].shape[i] for i in over)
    if op in (aten.upsample_bilinear2d, aten.upsample_bilinear2d_backward):
        # PyTorch rounds positions among n rows in proportion to n, an error of n eps: sqrt(K) eps with K = n^2.
        return int(max((args[0].shape if op is aten.upsample_bilinear2d else args[2])[2:])) ** 2
    return 1


def random(shape: Sequence[int], dtype: torch.dtype = torch.float64, device: str = "cpu", scale: float = 1.0) -> Tensor:
    """Normal random numbers, drawn in float64 and rounded, so that they are the same in every dtype up to rounding."""
    return (torch.randn(tuple(shape), dtype=torch.float64) * scale).to(device=device, dtype=dtype)


def conv(outputs: int, inputs: int, size: int, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    """Random weight and bias of a convolution, such that its results are about as large as its inputs."""
    weight = random((outputs, inputs, size, size), dtype, device, (inputs * size * size) ** -0.5)
    return [weight, random((outputs,), dtype, device, 0.3)]


def rfdb_inputs(
    b: int, c: int, d: int, f: int, h: int, w: int, dtype: torch.dtype = torch.float64, device: str = "cpu"
) -> list[Tensor]:
    """The input and the weights, in the order of `rfdb_from_flat`'s arguments."""
    shapes = [(d, c, 1)] * 3 + [(c, c, 3)] * 3 + [(d, c, 3), (c, 4 * d, 1), (f, c, 1), (f, f, 1)] + [(f, f, 3)] * 4
    tensors = [random((b, c, h, w), dtype, device)]
    for n, k, size in [*shapes, (c, f, 1)]:
        tensors += conv(n, k, size, dtype, device)
    return tensors


def rfdb_from_flat(x: Tensor, *flat: Tensor, fixed_grid: bool = False) -> Tensor:
    convs = [Conv(*flat[i : i + 2]) for i in range(0, len(flat), 2)]
    distil, refine = (convs[0], convs[1], convs[2]), (convs[3], convs[4], convs[5])
    return rfdb(x, RFDBWeights(distil, refine, *convs[6:]), fixed_grid=fixed_grid)


def stage_inputs(b: int, c: int, d: int, h: int, w: int, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    return [random((b, c, h, w), dtype, device), *conv(d, c, 1, dtype, device), *conv(c, c, 3, dtype, device)]


def stage_from_flat(x: Tensor, *flat: Tensor) -> tuple[Tensor, Tensor]:
    return distill_stage(x, Conv(*flat[:2]), Conv(*flat[2:]))


def fuse_inputs(
    b: int, c: int, d: int, f: int, h: int, w: int, dtype: torch.dtype, device: str = "cpu"
) -> list[Tensor]:
    maps = [random((b, n, h, w), dtype, device) for n in (c, d, d, d)]
    return [*maps, *conv(d, c, 3, dtype, device), *conv(c, 4 * d, 1, dtype, device), *conv(f, c, 1, dtype, device)]


def fuse_from_flat(x: Tensor, d1: Tensor, d2: Tensor, d3: Tensor, *flat: Tensor) -> tuple[Tensor, Tensor]:
    return distill_fuse(x, (d1, d2, d3), Conv(*flat[:2]), Conv(*flat[2:4]), Conv(*flat[4:]))


def gate_inputs(
    b: int, c: int, f: int, h: int, w: int, low: tuple[int, int], dtype: torch.dtype, device: str = "cpu"
) -> list[Tensor]:
    maps = [random(shape, dtype, device) for shape in ((b, c, h, w), (b, f, h, w), (b, f, *low))]
    return [*maps, *conv(f, f, 1, dtype, device), *conv(c, f, 1, dtype, device)]


def gate_from_flat(y: Tensor, a: Tensor, v: Tensor, *flat: Tensor, fixed_grid: bool = False) -> Tensor:
    return esa_gate(y, a, v, Conv(*flat[:2]), Conv(*flat[2:]), fixed_grid=fixed_grid)


def conv_inputs(
    b: int, c: int, n: int, h: int, w: int, dtype: torch.dtype, device: str = "cpu", stride: int = 1, padding: int = 1
) -> list[Tensor]:
    low = [(size + 2 * padding - 3) // stride + 1 for size in (h, w)]
    return [random((b, c, h, w), dtype, device), *conv(n, c, 3, dtype, device), random((b, n, *low), dtype, device)]


def conv_from_flat(**options: Any) -> Callable[..., Tensor]:
    def call(x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        return conv3x3(x, weight, bias, residual, **options)

    return call


def attention_inputs(
    b: int, n: int, c: int, o: int, h: int, w: int, dtype: torch.dtype, device: str = "cpu", *, form: str = "channels"
) -> list[Tensor]:
    """n maps, whose rows have a squared length of about 2, theta, weight, bias, and for cosines a temperature.

    `form`: channels, layers, channels-cosine or layers-cosine.
    """
    scale = (2 / (h * w * (c if form.startswith("layers") else 1))) ** 0.5
    maps = [random((b, c, h, w), dtype, device, scale) for _ in range(n)]
    temperature = [random((1,), dtype, device, 0.1) + 2] if form.endswith("cosine") else []
    return [*maps, random((1,), dtype, device), *conv(o, n * c, 1, dtype, device), *temperature]


def attention_from_flat(
    form: str = "channels", slope: float = 0.05, window: int | None = None
) -> Callable[..., Tensor]:
    rows: Any = form.removesuffix("-cosine")

    def call(*tensors: Tensor) -> Tensor:
        n = len(tensors) - (4 if form.endswith("cosine") else 3)
        return layer_attention(tensors[:n], *tensors[n:], rows=rows, slope=slope, window=window)

    return call


def channel_gate_inputs(
    b: int, c: int, h: int, w: int, dtype: torch.dtype, device: str = "cpu", *, form: str = "pseudo3d"
) -> list[Tensor]:
    """x, alpha, the gate's weights, and `add`."""
    x, add = (random((b, c, h, w), dtype, device) for _ in range(2))
    if form == "full3d":
        weights = [random((3, 3, 3), dtype, device, 0.2), random((1,), dtype, device)]
    else:
        weights = [random((3, 3), dtype, device, 0.3), random((1,), dtype, device)]
        weights += [random((size,), dtype, device, 0.2).abs() for size in (3, 1)]
    return [x, random((1,), dtype, device).abs(), *weights, add]


def channel_gate_from_flat(form: str = "pseudo3d") -> Callable[..., Tensor]:
    size = 2 if form == "full3d" else 4

    def call(x: Tensor, alpha: Tensor, *tensors: Tensor) -> Tensor:
        gate = Full3D(*tensors[:size]) if form == "full3d" else Pseudo3D(*tensors[:size])
        return channel_gate(x, gate, alpha, *tensors[size:])

    return call


def merge_inputs(
    b: int, n: int, c: int, h: int, w: int, dtype: torch.dtype, device: str = "cpu", *, form: str = "pseudo3d"
) -> list[Tensor]:
    """The tensors of `channel_gate_inputs` without `add`, then those of `attention_inputs` with cosines in its
    place."""
    gate = channel_gate_inputs(b, c, h, w, dtype, device, form=form)[:-1]
    return [*gate, *attention_inputs(b, n, c, c, h, w, dtype, device, form="channels-cosine")]


def merge_from_flat(
    form: str = "pseudo3d", rows: Any = "channels", slope: float = 0.05, window: int | None = None
) -> Callable[..., Tensor]:
    size = 2 if form == "full3d" else 4

    def call(x: Tensor, alpha: Tensor, *tensors: Tensor) -> Tensor:
        *maps, theta, weight, bias, temperature = tensors[size:]
        gate = Full3D(*tensors[:size]) if form == "full3d" else Pseudo3D(*tensors[:size])
        attention = LayerAttention(maps, theta, weight, bias, temperature, rows, slope, window)
        return channel_gate(x, gate, alpha, attention)

    return call


def stem_inputs(b: int, c: int, n: int, h: int, w: int, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    """x, the convolutions' weights, and the mean."""
    convs = *conv(c, 3, 3, dtype, device), *conv(n, c, 3, dtype, device)
    return [random((b, 3, h, w), dtype, device), *convs, random((3,), dtype, device)]


def stem_from_flat(padding: int = 1) -> Callable[..., Tensor]:
    def call(x: Tensor, *flat: Tensor) -> Tensor:
        return stem(x, Conv(*flat[:2]), Conv(*flat[2:4]), padding=padding, mean=flat[4] if flat[4:] else None)

    return call


def block_inputs(b: int, c: int, m: int, h: int, w: int, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    return [random((b, c, h, w), dtype, device), *conv(m, c, 3, dtype, device), *conv(c, m, 3, dtype, device)]


def block_from_flat(**options: Any) -> Callable[..., Tensor]:
    def call(x: Tensor, *flat: Tensor) -> Tensor:
        return residual_block(x, Conv(*flat[:2]), Conv(*flat[2:]), **options)

    return call


def blocks_inputs(
    b: int, c: int, m: int, sizes: Sequence[tuple[int, int]], dtype: torch.dtype, device: str = "cpu"
) -> list[Tensor]:
    """The tensors of `block_inputs`, for a map of each size."""
    return [tensor for size in sizes for tensor in block_inputs(b, c, m, *size, dtype, device)]


def blocks_from_flat(*flat: Tensor, save_middle: bool = True) -> tuple[Tensor, ...]:
    convs1, convs2 = ([Conv(*flat[i : i + 2]) for i in range(first, len(flat), 5)] for first in (1, 3))
    return residual_blocks(flat[::5], convs1, convs2, save_middle=save_middle)


def upsample_add_inputs(
    b: int, c: int, h: int, w: int, low: tuple[int, int], dtype: torch.dtype, device: str = "cpu"
) -> list[Tensor]:
    return [random((b, c, h, w), dtype, device), random((b, c, *low), dtype, device)]


def upsampled_conv_inputs(
    b: int, c: int, n: int, h: int, w: int, dtype: torch.dtype, device: str = "cpu"
) -> list[Tensor]:
    """x, weight, bias and the residual."""
    residual = random((b, n, 2 * h, 2 * w), dtype, device)
    return [random((b, c, h, w), dtype, device), *conv(n, c, 3, dtype, device), residual]


def upsampled_conv_from_flat(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None) -> Tensor:
    return upsampled_conv3x3(x, Conv(weight, bias), residual)


class Size(NamedTuple):
    """`b` images of `c` channels, height `h` and width `w`; `n` maps of them for ops that take several."""

    b: int
    n: int
    c: int
    h: int
    w: int


class OpCase(NamedTuple):
    """One way to call an op, as a function of tensors alone, for inputs of any size."""

    function: Callable[..., Any]
    inputs: Callable[..., list[Tensor]]
    """`inputs(size, dtype, device)` draws random inputs; the default device is the CPU."""
    saved: Callable[[Size], int] = lambda _: 0
    """The maximum number of values saved for backward in addition to the inputs."""
    widths: tuple[int, int] = (1, 50)
    """Maps and channels in the network."""
    smallest: tuple[int, int] = (1, 1)
    """The minimum height and width."""
    result_dtype: Callable[[torch.dtype], torch.dtype] = lambda dtype: dtype
    """From the dtype of the inputs, as cast by autocast, to that of the results."""
    autocast: bool = True
    """Whether autocast changes the dtype of the results."""

    def draw(self, size: Sequence[int], dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
        """Random inputs of a `Size` made from `size`, at least as high and wide as the op needs."""
        b, n, c, h, w = size
        return self.inputs(Size(b, n, c, max(h, self.smallest[0]), max(w, self.smallest[1])), dtype, device)


def is_image(t: Tensor) -> bool:
    """Whether `t` is an image rather than a weight; images must be wider than 3."""
    return t.ndim == 4 and t.shape[3] > 3


def distilled(c: int) -> int:
    """The distilled channels of an RFDB with c channels, in the network's proportion of 25 to 50."""
    return max(1, c // 2)


def esa(c: int) -> int:
    """The channels in the ESA of an RFDB with c channels, in the network's proportion of 12 to 50."""
    return max(1, c // 4)


def esa_low(size: int) -> int:
    """The height or width of ESA's low-resolution maps."""
    return ((size - 3) // 2 + 1 - 7) // 3 + 1


def _half(size: int) -> int:
    return (size + 1) // 2


def _scales(s: Size, number: int) -> list[tuple[int, int]]:
    """Heights and widths of the encoder's maps, each half of the one before, and so wide that they are images."""
    sizes = [(s.h, s.w)]
    while len(sizes) < number:
        sizes.append((_half(sizes[-1][0]), max(4, _half(sizes[-1][1]))))
    return sizes


def _windows(size: int) -> int:
    """The number of windows of 32 pixels along an axis, each of which overlaps half of the next."""
    return max(1, (size + 15) // 16 - 1)


def _sums(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _rfdb_saved(s: Size) -> int:
    """The results of three stages, d4, ESA's first map, its four low-resolution maps, and the maxima's indices of at
    most 64 bits."""
    low = (4 + 4) * esa(s.c) * esa_low(s.h) * esa_low(s.w)
    return s.b * ((3 * s.c + distilled(s.c) + esa(s.c)) * s.h * s.w + low)


def _attention_saved(s: Size) -> int:
    """The result, for its signs, and F F^T, in at most twice the bytes per value of the inputs."""
    return s.b * (s.c * s.h * s.w + 2 * (s.n * s.c) ** 2)


def _apply_inputs(s: Size, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    tensors = attention_inputs(s.b, s.n, s.c, s.c, s.h, s.w, dtype, device)
    return [*tensors[: s.n], random((s.b, s.n * s.c, s.n * s.c), _sums(dtype), device), *tensors[s.n :]]


def _apply_from_flat(*tensors: Tensor) -> Tensor:
    *maps, gram, theta, weight, bias = tensors
    return layer_apply(maps, gram, theta, weight, bias)


def _shared_from_flat(alpha: Tensor, *tensors: Tensor) -> Tensor:
    """The merge as in the network, where x is the last of the maps."""
    return merge_from_flat("full3d", "layers")(tensors[-5], alpha, *tensors)


OPS: dict[str, OpCase] = {
    "conv3x3": OpCase(
        conv_from_flat(activation="leaky_relu"),
        lambda s, *on: conv_inputs(s.b, s.c, s.c, s.h, s.w, *on),
        lambda s: s.b * s.c * s.h * s.w,
        widths=(1, 64),
    ),
    "conv3x3-down": OpCase(
        conv_from_flat(stride=2, activation="leaky_relu", slope=0.1),
        lambda s, *on: conv_inputs(s.b, s.c, s.c, s.h, s.w, *on)[:3],
        lambda s: s.b * s.c * _half(s.h) * _half(s.w),
        widths=(1, 64),
    ),
    "conv3x3-reduce": OpCase(
        conv_from_flat(),
        lambda s, *on: conv_inputs(s.b, s.c, max(1, s.c * 25 // 32), s.h, s.w, *on)[:3],
        widths=(1, 64),
    ),
    "distill_stage": OpCase(
        stage_from_flat,
        lambda s, *on: stage_inputs(s.b, s.c, distilled(s.c), s.h, s.w, *on),
        lambda s: s.b * (s.c + distilled(s.c)) * s.h * s.w,
    ),
    "distill_fuse": OpCase(
        fuse_from_flat,
        lambda s, *on: fuse_inputs(s.b, s.c, distilled(s.c), esa(s.c), s.h, s.w, *on),
        lambda s: s.b * distilled(s.c) * s.h * s.w,
    ),
    "esa_gate": OpCase(
        gate_from_flat,
        lambda s, *on: gate_inputs(s.b, s.c, esa(s.c), s.h, s.w, (max(1, esa_low(s.h)), max(1, esa_low(s.w))), *on),
    ),
    "esa_gate-fixed_grid": OpCase(
        partial(gate_from_flat, fixed_grid=True),
        lambda s, *on: gate_inputs(s.b, s.c, esa(s.c), s.h, s.w, (max(1, esa_low(s.h)), max(1, esa_low(s.w))), *on),
    ),
    "rfdb": OpCase(
        rfdb_from_flat,
        lambda s, *on: rfdb_inputs(s.b, s.c, distilled(s.c), esa(s.c), s.h, s.w, *on),
        _rfdb_saved,
        smallest=(15, 15),
    ),
    "layer_attention": OpCase(
        attention_from_flat(),
        lambda s, *on: attention_inputs(s.b, s.n, s.c, s.c, s.h, s.w, *on),
        _attention_saved,
        widths=(4, 50),
    ),
    "layer_attention-layers": OpCase(
        attention_from_flat("layers-cosine"),
        lambda s, *on: attention_inputs(s.b, s.n, s.c, s.c, s.h, s.w, *on, form="layers-cosine"),
        lambda s: s.b * (s.c * s.h * s.w + 2 * s.n**2),
        widths=(4, 50),
    ),
    "layer_attention-windows": OpCase(
        attention_from_flat("channels-cosine", window=32),
        lambda s, *on: attention_inputs(s.b, s.n, s.c, s.c, s.h, s.w, *on, form="channels-cosine"),
        lambda s: s.b * (s.c * s.h * s.w + 2 * _windows(s.h) * _windows(s.w) * (s.n * s.c) ** 2),
        widths=(4, 50),
        smallest=(33, 1),
    ),
    "layer_gram": OpCase(
        lambda *maps: layer_gram(maps),
        lambda s, *on: attention_inputs(s.b, s.n, s.c, s.c, s.h, s.w, *on)[: s.n],
        widths=(4, 50),
        result_dtype=_sums,
    ),
    "layer_apply": OpCase(_apply_from_flat, _apply_inputs, lambda s: s.b * s.c * s.h * s.w, widths=(4, 50)),
    "channel_gate": OpCase(
        channel_gate_from_flat(),
        lambda s, *on: channel_gate_inputs(s.b, s.c, s.h, s.w, *on),
    ),
    "channel_gate-full3d": OpCase(
        channel_gate_from_flat("full3d"),
        lambda s, *on: channel_gate_inputs(s.b, s.c, s.h, s.w, *on, form="full3d")[:-1],
    ),
    "attention_merge": OpCase(
        merge_from_flat(),
        lambda s, *on: merge_inputs(s.b, s.n, s.c, s.h, s.w, *on),
        _attention_saved,
        widths=(4, 50),
    ),
    "attention_merge-shared": OpCase(
        _shared_from_flat,
        lambda s, *on: merge_inputs(s.b, s.n, s.c, s.h, s.w, *on, form="full3d")[1:],
        lambda s: s.b * (s.c * s.h * s.w + 2 * s.n**2),
        widths=(4, 50),
    ),
    "stem": OpCase(
        stem_from_flat(),
        lambda s, *on: stem_inputs(s.b, s.c, s.c, s.h, s.w, *on),
        lambda s: s.b * s.c * _half(s.h) * _half(s.w),
        widths=(1, 64),
    ),
    "stem-unpadded": OpCase(
        stem_from_flat(padding=0),
        lambda s, *on: stem_inputs(s.b, s.c, s.c, s.h, s.w, *on)[:-1],
        lambda s: s.b * s.c * _half(s.h - 2) * _half(s.w - 2),
        widths=(1, 64),
        smallest=(3, 3),
    ),
    "residual_block": OpCase(
        block_from_flat(),
        lambda s, *on: block_inputs(s.b, s.c, s.c, s.h, s.w, *on),
        lambda s: s.b * s.c * s.h * s.w,
        widths=(1, 64),
    ),
    "residual_block-recomputed": OpCase(
        block_from_flat(save_middle=False),
        lambda s, *on: block_inputs(s.b, s.c, s.c, s.h, s.w, *on),
        widths=(1, 64),
    ),
    "residual_block-up": OpCase(
        block_from_flat(upsample=True),
        lambda s, *on: block_inputs(s.b, s.c, s.c, _half(s.h), _half(s.w), *on),
        lambda s: 4 * s.b * s.c * _half(s.h) * _half(s.w),
    ),
    "residual_blocks": OpCase(
        blocks_from_flat,
        lambda s, *on: blocks_inputs(s.b, s.c, s.c, _scales(s, 3), *on),
        lambda s: s.b * s.c * sum(h * w for h, w in _scales(s, 3)),
        widths=(1, 64),
    ),
    "residual_blocks-two": OpCase(
        blocks_from_flat,
        lambda s, *on: blocks_inputs(s.b, s.c, s.c, _scales(s, 2), *on),
        lambda s: s.b * s.c * sum(h * w for h, w in _scales(s, 2)),
        widths=(1, 64),
    ),
    "upsample_add": OpCase(
        upsample_add,
        lambda s, *on: upsample_add_inputs(s.b, s.c, s.h, s.w, (_half(s.h), _half(s.w)), *on),
        widths=(1, 64),
    ),
    "upsampled_conv3x3": OpCase(
        upsampled_conv_from_flat,
        lambda s, *on: upsampled_conv_inputs(s.b, s.c, 3, _half(s.h), _half(s.w), *on),
        autocast=False,
    ),
}
"""Every public op, in all forms that differ in what they compute or save."""
