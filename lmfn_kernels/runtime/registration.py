"""Registration of an op with PyTorch: its schemas, autograd function and fake implementations, from one declaration.

An op declares its tensors and its options as the fields of two NamedTuples. From these, `Op` derives the schemas that
`torch.library` registers, so that exported programs, graphs and errors name every argument; `forward` and `backward`
receive both as typed tuples. Run on fake tensors, on which nothing is launched, the same two functions are the shape
functions.
"""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from lmfn_kernels.runtime import autocast
from lmfn_kernels.runtime.gradients import Gradient, PartialSums
from lmfn_kernels.runtime.layout import compact_pixels
from lmfn_kernels.runtime.schema import Argument, from_arguments, schema, sizes, to_arguments, to_lists, to_tensors
from lmfn_kernels.runtime.torch_private import is_transformed

InputsT = TypeVar("InputsT", bound=NamedTuple)
OptionsT = TypeVar("OptionsT", bound=NamedTuple)
BackendT = TypeVar("BackendT")

Gradients = dict[str, Any]
"""Gradients by the names of the inputs, each structured like its input: a tensor or its `PartialSums`, or a tuple or
list of them."""

ROOT = __name__.partition(".")[0]
NAMESPACE = "lmfn" if ROOT == "lmfn_kernels" else ROOT
"""Namespace of the registered ops: a copy of this package under another name (`lmfn_kernels.hub`) has its own."""
_library = torch.library.Library(NAMESPACE, "FRAGMENT")


class NoOptions(NamedTuple):
    """Of an op that has none."""


class Wanted:
    """Which gradients are requested."""

    def __init__(self, by_name: Mapping[str, bool]) -> None:
        self._by_name = by_name

    def __call__(self, *names: str) -> bool:
        """Whether the gradient of any tensor of these inputs is requested."""
        return any(self._by_name[name] for name in names)


class Op(Generic[InputsT, OptionsT, BackendT]):
    """An op with its own backward pass: `op(backend, Inputs(...), Options(...))` returns a tuple of its outputs."""

    def __init__(
        self,
        name: str,
        inputs: type[InputsT],
        options: type[OptionsT],
        implementation: Callable[[str], BackendT],
        forward: Callable[[BackendT, InputsT, OptionsT, bool], tuple[Sequence[Tensor], Sequence[Tensor]]],
        backward: Callable[[BackendT, Any, Sequence[Tensor], InputsT, OptionsT, Wanted], Gradients],
        *,
        outputs: Sequence[str] = ("y",),
        saves_outputs: Callable[[OptionsT], bool] = lambda _options: False,
        unsaved_inputs: Sequence[str] = (),
        lays_out_weights: bool = True,
        uncast_inputs: Sequence[str] = (),
        transposed: Callable[[InputsT], Sequence[Tensor]] = lambda _inputs: (),
        second_use: Literal["", "output", "input"] = "",
    ) -> None:
        """Declare and register `lmfn::name` and `lmfn::name_backward`.

        `inputs` has fields of type `Tensor`, `Tensor | None`, `list[Tensor]`, or tuples of those like `Conv`; the first
        tensor is never None. `options` has fields of type `bool`, `int`, `float` or `str`. `implementation` maps a
        backend's name to its functions, which are the first argument of both passes:

        `forward(functions, inputs, options, save)` returns the outputs and, if `save`, the other tensors to save.

        `backward(functions, gradients, saved, inputs, options, wanted)` returns, by name, at least the wanted
        gradients of the inputs. `gradients` are those of the outputs, in the order of `outputs`, which are their names.
        `saved` are the tensors to save that forward returned, preceded by the outputs if `saves_outputs(options)`.
        `unsaved_inputs` are not saved for backward, and are None there.

        Weights, i.e. arguments named `weight` or `..._weight`, keep their own dtype under autocast, and so do their
        gradients; so do `uncast_inputs`. With `lays_out_weights`, both passes receive them in the first tensor's dtype
        and in the backend's layout. The kernels' layout is written once, in a forward pass that saves for backward, and
        saved beside the weights themselves, by which PyTorch notices if they change between the passes. Backward also
        receives the views of weights [N, K, k, k] that `transposed(inputs)` returns, in the same layout, at the end of
        `saved`. Vectors, such as biases, are dense in both passes.

        `second_use`, for an op with one output, is what `two_uses` returns beside it: the output once more, or the
        first tensor. `gradients` are then two, the other one None if the op was not called for two uses: the output's
        two gradients, whose sum is to be taken, or the output's and one to be added to the first tensor's.
        """
        self.name, self.inputs, self.options, self.outputs = name, inputs, options, tuple(outputs)
        self.saves_outputs, self.second_use = saves_outputs, second_use
        self._implementation, self._forward, self._backward = implementation, forward, backward
        self._transposed = transposed
        tensors, numbers = schema(inputs), schema(options)
        self.saves = [argument not in unsaved_inputs for argument in tensors]
        self.arguments = list(tensors)
        self.is_weight = [argument.split("_")[-1] == "weight" for argument in tensors]
        self.keeps_dtype = [w or a in uncast_inputs for a, w in zip(tensors, self.is_weight, strict=True)]
        self.weights = [i for i, weight in enumerate(self.is_weight) if weight and lays_out_weights]
        self.others = [i for i, weight in enumerate(self.is_weight) if not weight]
        saved = tensors | dict.fromkeys(unsaved_inputs, "Tensor?")
        gradients = {f"grad_{output}": "Tensor" for output in self.outputs}
        gradients |= {"grad_of_second_use": "Tensor?"} if second_use else {}
        self.gradients = len(gradients)
        self.registered = _register(name, tensors | numbers | {"save": "bool"}, self._forward_flat)
        self.registered_backward = _register(
            f"{name}_backward",
            gradients | {"saved": "Tensor[]"} | saved | numbers | {"needs": "bool[]"},
            self._backward_flat,
        )
        # The class name is the op's name in a profile and in its results' grad_fn.
        self.function: Any = type(f"{NAMESPACE}::{name}", (_Forward,), {})
        self.backward_function: Any = type(f"{NAMESPACE}::{name}_backward", (_Backward,), {})

    def two_uses(self, backend: str, inputs: InputsT, options: OptionsT) -> tuple[Tensor, Tensor]:
        """The output of an op with a `second_use`, and the tensor for that use, in the same memory as the output or the
        first tensor: backward adds their gradients as it computes, while autograd would write the sum to memory.

        Compilers and transforms get one output, and add the gradients themselves.
        """
        y, *again = self(backend, inputs, options, uses=2)
        return y, again[0] if again else y if self.second_use == "output" else inputs[0]

    def __call__(self, backend: str, inputs: InputsT, options: OptionsT, uses: int = 1) -> tuple[Tensor, ...]:
        """Run the op. Under autocast, images are cast here, once; vectors (biases) and weights keep their dtype."""
        first = inputs[0] if isinstance(inputs[0], Tensor) else inputs[0][0]
        casts = autocast.is_enabled(first)
        if not (torch.is_grad_enabled() or torch.compiler.is_compiling() or is_transformed() or casts):
            return tuple(
                self._forward(self._implementation(backend), self.laid_out(backend, inputs), options, False)[0]
            )
        arguments = to_arguments(inputs)
        tensors, lengths = to_tensors(arguments), sizes(arguments)
        if not casts:
            return self._apply(backend, options, lengths, tensors, uses)
        device = first.device.type
        dtype = torch.get_autocast_dtype(device)
        kept = to_tensors([[k] * max(n, 1) for k, n in zip(self.keeps_dtype, lengths, strict=True)])
        cast = [
            t.to(dtype) if t is not None and t.ndim > 1 and t.dtype != torch.float64 and not keeps else t
            for t, keeps in zip(tensors, kept, strict=True)
        ]
        if self.second_use == "input" and cast[0] is not tensors[0]:
            uses = 1  # the second use is of the tensor itself, not of its copy in another dtype
        with torch.autocast(device, enabled=False):
            return self._apply(backend, options, lengths, cast, uses)

    def _apply(
        self, backend: str, options: OptionsT, lengths: tuple[int, ...], tensors: Sequence[Tensor | None], uses: int
    ) -> tuple[Tensor, ...]:
        save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
        if torch.compiler.is_compiling() and not save:
            # Not the autograd function: torch.compile would pass its forward a context, which it does not take.
            results: Sequence[Tensor] = self.registered(backend, *to_lists(tensors, lengths), *options, save)
        elif save or is_transformed():
            if torch.compiler.is_compiling() or is_transformed():
                uses = 1
            results = self.function.apply(self, backend, options, lengths, save, uses, *tensors)
            if uses == 2:
                return results[0], results[-1]
        else:  # calling the autograd function would take as long as some kernels
            results = self.forward(backend, to_lists(tensors, lengths), options, save)
        return tuple(results[: len(self.outputs)])

    def forward(self, backend: str, arguments: Sequence[Argument], options: OptionsT, save: bool) -> list[Tensor]:
        """The outputs, followed by the other tensors to save; with the kernels, the last is the laid-out weights."""
        inputs = self._typed(arguments)
        copies: list[Tensor] = []
        if save and self._copies_weights(backend):
            inputs, copy = self._with_copied_weights(inputs)
            copies.append(copy)
        else:
            inputs = self.laid_out(backend, inputs)
        # Compact where images are saved for backward; others are read faster with pixels further apart.
        with compact_pixels() if save else nullcontext():
            outputs, saved = self._forward(self._implementation(backend), inputs, options, save)
        return [*outputs, *saved, *copies]

    def backward(
        self,
        backend: str,
        gradients: Sequence[Tensor | None],
        saved: Sequence[Tensor],
        arguments: Sequence[Argument],
        options: OptionsT,
        needs: Sequence[bool],
    ) -> list[Tensor]:
        """The gradients of the inputs' tensors for which `needs` is true, in order, each in its tensor's dtype."""
        inputs = self._typed(arguments)
        tensors = {name: to_tensors(value) for name, value in inputs._asdict().items()}
        left = iter(needs)
        which = {name: [next(left) for _ in of_name] for name, of_name in tensors.items()}
        wanted = Wanted({name: any(needed) for name, needed in which.items()})
        if self._copies_weights(backend):
            inputs, transposed = self._from_copied_weights(inputs, saved[-1])
            saved = [*saved[:-1], *transposed]
        else:
            inputs = self.laid_out(backend, inputs)
            saved = [*saved, *self._transposed(inputs)]
        found = self._backward(self._implementation(backend), gradients, saved, inputs, options, wanted)
        asked: list[tuple[Tensor | None, Gradient]] = [
            (tensor, gradient)
            for name in tensors
            if wanted(name)
            for tensor, gradient, need in zip(tensors[name], to_tensors(found[name]), which[name], strict=True)
            if need
        ]
        sums = _summed([(g, t) for t, g in asked if isinstance(g, PartialSums) and t is not None])
        return [next(sums) if isinstance(g, PartialSums) else g if t is None else g.to(t.dtype) for t, g in asked]

    def laid_out(self, backend: str, inputs: InputsT) -> InputsT:
        """The inputs, with the weights in the dtype and layout that the backend's functions take, and dense vectors."""
        arguments: list[Any] = to_arguments(inputs)
        found = self._dense(arguments)
        if self.weights:
            dtype, weights = self._dtype_and_weights(arguments)
            for i, weight in zip(self.weights, _lay_out(backend, weights, dtype), strict=True):
                found[i] = weight
        return inputs if all(map(operator.is_, found, arguments)) else self._typed(found)

    def _copies_weights(self, backend: str) -> bool:
        """Whether a forward pass that saves for backward writes a copy of the weights for both passes."""
        return backend == "triton" and bool(self.weights)

    def _with_copied_weights(self, inputs: InputsT) -> tuple[InputsT, Tensor]:
        """The inputs with laid-out weights, and the copy in which they lie, with what is `transposed` of them.

        Weights that lie as they should are copied, too: something between the passes, such as a compiler, may change
        their strides, by which backward could not tell what the copy holds.
        """
        from lmfn_kernels.runtime import multi_tensor

        dtype, weights = self._dtype_and_weights(to_arguments(inputs))
        copy = multi_tensor.laid_out_copy([*weights, *self._transposed(inputs)], dtype)
        return self._with_weights(inputs, multi_tensor.laid_out_in(copy, weights)), copy

    def _from_copied_weights(self, inputs: InputsT, copy: Tensor) -> tuple[InputsT, Sequence[Tensor]]:
        """In backward: the inputs with laid-out weights, and what is `transposed` of them."""
        from lmfn_kernels.runtime import multi_tensor

        _, weights = self._dtype_and_weights(to_arguments(inputs))
        found = multi_tensor.laid_out_in(copy, [*weights, *self._transposed(inputs)])
        return self._with_weights(inputs, found[: len(weights)]), found[len(weights) :]

    def _dtype_and_weights(self, arguments: list[Any]) -> tuple[torch.dtype, list[Tensor]]:
        for i in self.weights:
            if arguments[i] is None:  # PyTorch's dispatcher accepts None for a tensor
                raise RuntimeError(f"lmfn::{self.name} needs a tensor for argument '{self.arguments[i]}', and got None")
        return arguments[0].dtype, [arguments[i] for i in self.weights]

    def _with_weights(self, inputs: InputsT, weights: Sequence[Tensor]) -> InputsT:
        arguments = self._dense(to_arguments(inputs))
        for i, weight in zip(self.weights, weights, strict=True):
            arguments[i] = weight
        return self._typed(arguments)

    def _dense(self, arguments: list[Argument]) -> list[Argument]:
        """The arguments, with vectors, such as biases, as kernels read them: each value next to the one before."""
        found = arguments.copy()
        for i in self.others:
            found[i] = _with_dense_vectors(arguments[i])
        return found

    def _typed(self, arguments: Sequence[Argument]) -> InputsT:
        found: InputsT = from_arguments(self.inputs, iter(arguments))
        return found

    def _forward_flat(self, backend: str, *arguments: Any) -> list[Tensor]:
        """`forward` with the arguments of the registered schema."""
        n = len(self.saves)
        return self.forward(backend, arguments[:n], self.options(*arguments[n:-1]), arguments[-1])

    def _backward_flat(self, backend: str, *arguments: Any) -> list[Tensor]:
        """`backward` with the arguments of the registered schema."""
        n, m = self.gradients, self.gradients + 1 + len(self.saves)
        gradients, saved, inputs = arguments[:n], arguments[n], arguments[n + 1 : m]
        found = self.backward(backend, gradients, saved, inputs, self.options(*arguments[m:-1]), arguments[-1])
        # The results of a registered op must own their memory.
        return [f.clone() if any(f is g for g in gradients) else f for f in found]


def _with_dense_vectors(argument: Argument) -> Argument:
    if isinstance(argument, list):
        found: list[Any] = list(map(_with_dense_vectors, argument))
        return argument if all(map(operator.is_, found, argument)) else found
    return argument.contiguous() if argument is not None and argument.ndim == 1 else argument


def _lay_out(backend: str, weights: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    if backend != "triton":
        return [weight.to(dtype) for weight in weights]
    from lmfn_kernels.runtime import multi_tensor

    return multi_tensor.lay_out(weights, dtype)


def _summed(gradients: list[tuple[PartialSums, Tensor]]) -> Iterator[Tensor]:
    """The sums in order, each in its tensor's dtype and strides."""
    if not gradients:
        return iter(())
    from lmfn_kernels.runtime import multi_tensor

    return iter(multi_tensor.sum_gradients(*zip(*gradients, strict=True)))


def _register(name: str, arguments: Mapping[str, str], function: Callable[..., list[Tensor]]) -> Callable[..., Any]:
    schema = ", ".join(f"{kind} {argument}" for argument, kind in {"backend": "str", **arguments}.items())
    _library.define(f"{name}({schema}) -> Tensor[]", tags=(torch.Tag.needs_exact_strides,))
    # The autograd function computes the gradients, so autograd records neither this op nor the operations within it.
    _library.impl(name, torch.no_grad()(function), "CompositeExplicitAutograd")
    _library.impl(name, torch.library.fallthrough_kernel, "Autograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", function, lib=_library)
    registered: Callable[..., Any] = getattr(getattr(torch.ops, NAMESPACE), name)
    return registered


def _one_by_one(function: Any, info: Any, in_dims: Sequence[Any], arguments: Sequence[Any]) -> Any:
    """`torch.vmap` of an autograd function: a call per element, as the kernels have no batch of weights."""
    found = [
        function.apply(
            *(
                a if d is None or not isinstance(a, Tensor) else a.select(d, i)
                for a, d in zip(arguments, in_dims, strict=True)
            )
        )
        for i in range(info.batch_size)
    ]
    stacked = tuple(torch.stack(results) for results in zip(*found, strict=True))
    return stacked, (0,) * len(stacked)


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(op: Any, backend: str, options: Any, lengths: Any, save: bool, uses: int, *tensors: Any) -> Any:
        arguments = to_lists(tensors, lengths)
        if torch.compiler.is_compiling():
            return tuple(op.registered(backend, *arguments, *options, save))
        found = op.forward(backend, arguments, options, save)  # directly: the dispatcher only costs time
        again = found[0] if op.second_use == "output" else tensors[0]
        return (*found, again.detach()) if uses == 2 else tuple(found)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        op, backend, options, lengths, save, uses, *tensors = inputs
        ctx.op, ctx.backend, ctx.options, ctx.lengths, ctx.uses = op, backend, options, lengths, uses
        n = len(op.outputs)
        output = output[: len(output) + 1 - uses]
        ctx.mark_non_differentiable(*output[n:])
        if not torch.compiler.is_compiling():
            # Otherwise autograd would allocate zero gradients for tensors that are only saved; a compiler removes them.
            ctx.set_materialize_grads(False)
            ctx.zeros = [partial(torch.zeros, o.shape, dtype=o.dtype, device=o.device) for o in output[:n]]
        if save:
            saved = output if op.saves_outputs(options) else output[n:]
            ctx.saved = len(saved)
            arguments = zip(to_lists(tensors, lengths), op.saves, strict=True)
            ctx.save_for_backward(*saved, *to_tensors([value if saves else None for value, saves in arguments]))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        op: Op[Any, Any, Any] = ctx.op
        needs = ctx.needs_input_grad[6:]
        second = gradients[-1] if ctx.uses == 2 else None
        gradients = gradients[: len(op.outputs)]
        if second is not None and gradients[0] is None and op.second_use == "output":
            gradients, second = (second,), None
        if not torch.compiler.is_compiling():
            gradients = tuple(zeros() if g is None else g for g, zeros in zip(gradients, ctx.zeros, strict=True))
        gradients = (*gradients, second)[: op.gradients]
        arguments = op, ctx.backend, ctx.options, ctx.lengths, needs, ctx.saved, *gradients, *ctx.saved_tensors
        # Without autocast, as in forward: a backward pass may be called with autocast enabled.
        g = gradients[0]
        with torch.autocast(g.device.type, enabled=False) if autocast.is_enabled(g) else nullcontext():
            run = _Backward.forward if torch.compiler.is_compiling() else op.backward_function.apply
            found = iter(run(*arguments))
        return *[None] * 6, *[next(found) if need else None for need in needs]

    @staticmethod
    def vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
        return _one_by_one(arguments[0].function, info, in_dims, arguments)


class _Backward(torch.autograd.Function):
    """The backward pass, which is not differentiable.

    PyTorch's once_differentiable does not do: if the incoming gradient requires no gradient, it silently lets a second
    differentiation through, with a term missing.
    """

    @staticmethod
    def forward(op: Any, backend: str, options: Any, lengths: Any, needs: Any, saved: int, *tensors: Any) -> Any:
        n = op.gradients
        gradients, kept = tensors[:n], list(tensors[n : n + saved])
        arguments = to_lists(tensors[n + saved :], lengths)
        if torch.compiler.is_compiling():
            return tuple(op.registered_backward(backend, *gradients, kept, *arguments, *options, list(needs)))
        return tuple(op.backward(backend, gradients, kept, arguments, options, needs))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, _output: Any) -> None:
        ctx.name = inputs[0].name

    @staticmethod
    def backward(ctx: Any, *_gradients: Any) -> Any:
        raise RuntimeError(
            f"lmfn_kernels.{ctx.name} has no second-order gradients; "
            'compute it under lmfn_kernels.backend("reference"), which has them'
        )

    @staticmethod
    def vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
        return _one_by_one(arguments[0].backward_function, info, in_dims, arguments)
