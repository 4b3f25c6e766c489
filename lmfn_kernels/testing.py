"""The test oracle: float64 references, and the errors that rounding may cause.

`assert_correct` checks any function against its formula; docs/kernels.md has an example. Without a formula, the
reference is the function itself under `lmfn_kernels.backend("reference")`, where this package's ops (`cases.py`)
compute their formulas.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lmfn_kernels import backend
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
