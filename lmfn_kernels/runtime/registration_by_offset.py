"""How an op becomes known to PyTorch: `torch.library` for the compiler, one autograd function for everything else.

An op is a pair of plain functions on tensors. `forward(body, tensors, options, keep)` gives the results and, where
`keep` is set, what backward needs after them. `backward(body, gradients, kept, tensors, options, needs)` gives the
gradients of those tensors that `needs` names, in order. The same functions, run on fake tensors, are the shape
functions: launches do nothing on those.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

Tensors = Sequence[Tensor | None]
Forward = Callable[[str, Tensors, Sequence[float], bool], list[Tensor]]
Backward = Callable[[str, Tensors, Sequence[Tensor], Tensors, Sequence[float], Sequence[bool]], list[Tensor]]

_library = torch.library.Library("lmfn", "FRAGMENT")


class Op:
    """An op with its own backward pass: `Op(...)(body, tensors, options)` gives a tuple of `results` tensors."""

    def __init__(
        self,
        name: str,
        results: int,
        forward: Forward,
        backward: Backward,
        keeps_results: Callable[[Sequence[float]], bool] = lambda _options: False,
        forgets: Sequence[int] = (),
    ) -> None:
        """`keeps_results`, given the options: whether the results themselves go before what else is kept.

        `forgets`: places of tensors that backward gets None for, because it does not need them.
        """
        self.name, self.results, self.keeps_results, self.forgets = name, results, keeps_results, forgets
        self.forward = _register(name, "str body, Tensor?[] tensors, float[] options, bool keep", forward)
        self.backward = _register(
            f"{name}_backward",
            "str body, Tensor?[] gradients, Tensor[] kept, Tensor?[] tensors, float[] options, bool[] needs",
            backward,
        )

    def __call__(self, body: str, tensors: Tensors, options: Sequence[float]) -> tuple[Tensor, ...]:
        """Cast for autocast, once and here: all but biases (vectors), which the bodies take in float32."""
        first = tensors[0]
        assert first is not None
        if not _autocasts(first):
            return self._apply(body, options, tensors)
        device = first.device.type
        dtype = torch.get_autocast_dtype(device)
        cast = [t.to(dtype) if t is not None and t.ndim > 1 and t.dtype != torch.float64 else t for t in tensors]
        with torch.autocast(device, enabled=False):
            return self._apply(body, options, cast)

    def _apply(self, body: str, options: Sequence[float], tensors: Tensors) -> tuple[Tensor, ...]:
        return tuple(_Function.apply(self, body, tuple(options), *tensors))  # type: ignore[no-untyped-call]


def _autocasts(x: Tensor) -> bool:
    """Whether autocast is on where `x` is. Of meta tensors it may not even be asked."""
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


def _register(name: str, arguments: str, function: Callable[..., list[Tensor]]) -> Callable[..., list[Tensor]]:
    """The function itself in eager mode, where the dispatcher would only cost time; the registered op in a graph."""
    _library.define(f"{name}({arguments}) -> Tensor[]", tags=(torch.Tag.needs_exact_strides,))
    # Its gradients are `_Function`'s: what it is made of, an exported program must not record.
    _library.impl(name, torch.no_grad()(function), "CompositeExplicitAutograd")
    torch.library.register_fake(f"lmfn::{name}", function, lib=_library)
    registered = getattr(torch.ops.lmfn, name)

    def call(*args: Any) -> list[Tensor]:
        result: list[Tensor] = registered(*args) if torch.compiler.is_compiling() else function(*args)
        return result

    return call


def pieces(part: str, body: str) -> ModuleType:
    """What a body's ops are made of: `torch_backend.py` or `triton_backend.py` of that part of the network.

    Triton's are imported when first asked for: there are machines without it.
    """
    return import_module(f"lmfn_kernels.{part}.{'torch_backend' if body == 'torch' else 'triton_backend'}")


def given(tensors: Tensors) -> list[Tensor]:
    """Those that are there; for the type checker, too, which does not know what a public function has made sure of."""
    return [t for t in tensors if t is not None]


class Gradients:
    """The gradients asked for, by place among the op's tensors, each in its tensor's dtype."""

    def __init__(self, tensors: Tensors, needs: Sequence[bool]) -> None:
        self.tensors, self.needs = tensors, needs
        self.found: dict[int, Tensor] = {}

    def wants(self, *which: int) -> bool:
        return any(self.needs[i] for i in which)

    def put(self, first: int, *gradients: Tensor | None) -> None:
        """Those of the tensors at `first` and after it; None where there is none to give."""
        for i, gradient in enumerate(gradients, first):
            tensor = self.tensors[i]
            if tensor is not None and gradient is not None and self.needs[i]:
                self.found[i] = gradient.to(tensor.dtype)

    def list(self) -> list[Tensor]:
        return [self.found[i] for i, need in enumerate(self.needs) if need]


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        # As one parameter: where nothing needs a gradient, torch.compile counts, and leaves ctx out of a call whose
        # arguments without it are as many as the signature's parameters with it.
        op, body, options, *tensors = arguments
        keep = any(ctx.needs_input_grad)
        results = op.forward(body, tensors, list(options), keep)
        ctx.op, ctx.body, ctx.options = op, body, options
        if keep:
            kept = results if op.keeps_results(options) else results[op.results :]
            ctx.kept = len(kept)
            ctx.save_for_backward(*kept, *(None if i in op.forgets else t for i, t in enumerate(tensors)))
        return tuple(results[: op.results])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        op: Op = ctx.op
        # Not torch's once_differentiable: it lets a second pass through, short of a term, where the gradient that
        # comes in happens to need none itself.
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                f"lmfn_kernels.{op.name} has no second-order gradients (create_graph=True); "
                'compute it under lmfn_kernels.backend("reference"), which has them'
            )
        saved = ctx.saved_tensors
        kept, tensors = list(saved[: ctx.kept]), list(saved[ctx.kept :])
        needs = list(ctx.needs_input_grad[3:])
        g = next(g for g in gradients if g is not None)
        # As forward was: a backward pass may be called with autocast on.
        with torch.autocast(g.device.type, enabled=False) if _autocasts(g) else nullcontext():
            found = iter(op.backward(ctx.body, list(gradients), kept, tensors, list(ctx.options), needs))
        return None, None, None, *[next(found) if need else None for need in needs]
