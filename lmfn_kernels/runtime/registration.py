"""How an op becomes known to PyTorch: its schemas, its autograd function and its fakes, from one declaration.

An op names its tensors and its options as the fields of two NamedTuples. From them `Op` makes the schemas that
`torch.library` registers, so that an exported program, a graph or an error names every argument, and both reach
`forward` and `backward` as the tuples they are. The same two functions, run on fake tensors, are the shape functions:
launches do nothing on those.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Generic, NamedTuple, TypeVar, get_type_hints

import torch
from torch import Tensor

InputsT = TypeVar("InputsT", bound=NamedTuple)
OptionsT = TypeVar("OptionsT", bound=NamedTuple)
BackendT = TypeVar("BackendT")

Field = Tensor | None | list[Tensor]
"""The value of one of an op's inputs."""

Gradients = dict[str, Any]
"""By the inputs' names: a tensor, or of a list of tensors a list."""

SCHEMA_TYPES: dict[Any, str] = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    list[Tensor]: "Tensor[]",
    bool: "bool",
    int: "int",
    float: "float",
    str: "str",
}

_library = torch.library.Library("lmfn", "FRAGMENT")


class Wanted:
    """Which gradients are asked for."""

    def __init__(self, by_name: Mapping[str, bool]) -> None:
        self._by_name = by_name

    def __call__(self, *names: str) -> bool:
        """Whether any of these inputs' is; for a list of tensors, any of theirs."""
        return any(self._by_name[name] for name in names)


class Op(Generic[InputsT, OptionsT, BackendT]):
    """An op with its own backward pass: `op(backend, Inputs(...), Options(...))` gives a tuple of its outputs."""

    def __init__(
        self,
        name: str,
        inputs: type[InputsT],
        options: type[OptionsT],
        implementation: Callable[[str], BackendT],
        forward: Callable[[BackendT, InputsT, OptionsT, bool], tuple[Sequence[Tensor], Sequence[Tensor]]],
        backward: Callable[
            [BackendT, Sequence[Tensor], Sequence[Tensor], InputsT, OptionsT, Wanted],
            Gradients,
        ],
        *,
        outputs: Sequence[str] = ("y",),
        saves_outputs: Callable[[OptionsT], bool] = lambda _options: False,
        unsaved_inputs: Sequence[str] = (),
    ) -> None:
        """Declare and register `lmfn::name` and `lmfn::name_backward`.

        `inputs` has a field per tensor (`Tensor`, `Tensor | None`) or list of tensors (`list[Tensor]`), the first of
        them never None; `options` has a field per `bool`, `int`, `float` or `str`. `implementation` maps a backend's
        name to its functions, which are the first argument of both passes:

        `forward(functions, inputs, options, save)` gives the outputs and, if `save`, what backward needs besides.

        `backward(functions, gradients, saved, inputs, options, wanted)` gives, by name, at least the wanted gradients
        of the inputs. `gradients` are those of the outputs, in the order of `outputs`, their names. `saved` is what
        forward gave; where `saves_outputs(options)`, the outputs come first. `unsaved_inputs` are None there.
        """
        self.name, self.inputs, self.options, self.outputs = name, inputs, options, tuple(outputs)
        self.saves_outputs, self.unsaved_inputs = saves_outputs, tuple(unsaved_inputs)
        self._implementation, self._forward, self._backward = implementation, forward, backward
        tensors, numbers = (
            {field: SCHEMA_TYPES[kind] for field, kind in get_type_hints(fields).items()}
            for fields in (inputs, options)
        )
        self._fields = tuple(tensors)
        saved = tensors | dict.fromkeys(self.unsaved_inputs, "Tensor?")
        gradients = {f"grad_{output}": "Tensor" for output in self.outputs}
        self.registered = _register(name, tensors | numbers | {"save": "bool"}, self._forward_flat)
        self.registered_backward = _register(
            f"{name}_backward",
            gradients | {"saved": "Tensor[]"} | saved | numbers | {"needs": "bool[]"},
            self._backward_flat,
        )
        # Named after the op, which so is the name of its entry in a profile and of its results' grad_fn.
        self.function: Any = type(f"lmfn::{name}", (_Forward,), {})
        self.backward_function: Any = type(f"lmfn::{name}_backward", (_Backward,), {})

    def __call__(self, backend: str, inputs: InputsT, options: OptionsT) -> tuple[Tensor, ...]:
        """Cast for autocast, once and here: all but vectors (biases), which the backends take in float32."""
        tensors, sizes = _flatten(inputs)
        first = tensors[0]
        if first is None or not _autocasts(first):
            return self._apply(backend, options, sizes, tensors)
        device = first.device.type
        dtype = torch.get_autocast_dtype(device)
        cast = [t.to(dtype) if t is not None and t.ndim > 1 and t.dtype != torch.float64 else t for t in tensors]
        with torch.autocast(device, enabled=False):
            return self._apply(backend, options, sizes, cast)

    def _apply(
        self, backend: str, options: OptionsT, sizes: tuple[int, ...], tensors: Sequence[Tensor | None]
    ) -> tuple[Tensor, ...]:
        save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
        if torch.compiler.is_compiling() and not save:
            # torch.compile would call the autograd function's forward with a context, which it does not take.
            results: Sequence[Tensor] = self.registered(backend, *_nest(tensors, sizes), *options, save)
        else:
            results = self.function.apply(self, backend, options, sizes, save, *tensors)
        return tuple(results[: len(self.outputs)])

    def forward(self, backend: str, inputs: Sequence[Field], options: OptionsT, save: bool) -> list[Tensor]:
        """The outputs, then what else is saved."""
        outputs, saved = self._forward(self._implementation(backend), self.inputs._make(inputs), options, save)
        return [*outputs, *saved]

    def backward(
        self,
        backend: str,
        gradients: Sequence[Tensor],
        saved: Sequence[Tensor],
        inputs: Sequence[Field],
        options: OptionsT,
        needs: Sequence[bool],
    ) -> list[Tensor]:
        """The gradients of those of the inputs' tensors that `needs` says, in order, each in its tensor's dtype."""
        left = iter(needs)
        named = {
            name: [next(left) for _ in value] if isinstance(value, list) else [next(left)]
            for name, value in zip(self._fields, inputs, strict=True)
        }
        wanted = Wanted({name: any(which) for name, which in named.items()})
        functions = self._implementation(backend)
        found = self._backward(functions, gradients, saved, self.inputs._make(inputs), options, wanted)
        ordered = []
        for (name, which), value in zip(named.items(), inputs, strict=True):
            if wanted(name):
                tensors, of_tensors = (v if isinstance(v, list) else [v] for v in (value, found[name]))
                for tensor, gradient, need in zip(tensors, of_tensors, which, strict=True):
                    if need:
                        ordered.append(gradient if tensor is None else gradient.to(tensor.dtype))
        return ordered

    def _forward_flat(self, backend: str, *arguments: Any) -> list[Tensor]:
        """As registered: field after field."""
        n = len(self._fields)
        return self.forward(backend, arguments[:n], self.options(*arguments[n:-1]), arguments[-1])

    def _backward_flat(self, backend: str, *arguments: Any) -> list[Tensor]:
        n, m = len(self.outputs), len(self.outputs) + 1 + len(self._fields)
        gradients, saved, inputs = arguments[:n], arguments[n], arguments[n + 1 : m]
        return self.backward(backend, gradients, saved, inputs, self.options(*arguments[m:-1]), arguments[-1])


def _autocasts(x: Tensor) -> bool:
    """Whether autocast is on where `x` is. Of meta tensors it may not even be asked."""
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


def _register(name: str, arguments: Mapping[str, str], function: Callable[..., list[Tensor]]) -> Callable[..., Any]:
    schema = ", ".join(f"{kind} {argument}" for argument, kind in {"backend": "str", **arguments}.items())
    _library.define(f"{name}({schema}) -> Tensor[]", tags=(torch.Tag.needs_exact_strides,))
    # Its gradients are the autograd function's: an exported program must not record the operations in it.
    _library.impl(name, torch.no_grad()(function), "CompositeExplicitAutograd")
    torch.library.register_fake(f"lmfn::{name}", function, lib=_library)
    registered: Callable[..., Any] = getattr(torch.ops.lmfn, name)
    return registered


def _flatten(inputs: Sequence[Field]) -> tuple[list[Tensor | None], tuple[int, ...]]:
    """All tensors, and how many there are to each field: -1 for one that is no list."""
    tensors: list[Tensor | None] = []
    for value in inputs:
        tensors += value if isinstance(value, list) else [value]
    return tensors, tuple(len(value) if isinstance(value, list) else -1 for value in inputs)


def _nest(tensors: Sequence[Any], sizes: Sequence[int]) -> list[Any]:
    """The fields again."""
    fields: list[Any] = []
    first = 0
    for size in sizes:
        fields.append(tensors[first] if size < 0 else list(tensors[first : first + size]))
        first += abs(size)
    return fields


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
    def forward(op: Any, backend: str, options: Any, sizes: Any, save: bool, *tensors: Any) -> Any:
        inputs = _nest(tensors, sizes)
        if torch.compiler.is_compiling():
            return tuple(op.registered(backend, *inputs, *options, save))
        return tuple(op.forward(backend, inputs, options, save))  # the dispatcher would only cost time

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        op, backend, options, sizes, save, *tensors = inputs
        ctx.op, ctx.backend, ctx.options, ctx.sizes = op, backend, options, sizes
        n = len(op.outputs)
        ctx.mark_non_differentiable(*output[n:])
        if save:
            saved = output if op.saves_outputs(options) else output[n:]
            ctx.saved = len(saved)
            fields = zip(op.inputs._fields, _nest(tensors, sizes), strict=True)
            kept, _ = _flatten([None if name in op.unsaved_inputs else value for name, value in fields])
            ctx.save_for_backward(*saved, *kept)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        op: Op[Any, Any, Any] = ctx.op
        needs = ctx.needs_input_grad[5:]
        gradients = gradients[: len(op.outputs)]
        saved = ctx.saved_tensors
        arguments = op, ctx.backend, ctx.options, ctx.sizes, needs, ctx.saved, *gradients, *saved
        # As forward was: a backward pass may be called with autocast on.
        with torch.autocast(gradients[0].device.type, enabled=False) if _autocasts(gradients[0]) else nullcontext():
            run = _Backward.forward if torch.compiler.is_compiling() else op.backward_function.apply
            found = iter(run(*arguments))
        return *[None] * 5, *[next(found) if need else None for need in needs]

    @staticmethod
    def vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
        return _one_by_one(arguments[0].function, info, in_dims, arguments)


class _Backward(torch.autograd.Function):
    """The backward pass, which has no gradients of its own.

    Not torch's once_differentiable: it lets a second pass through, short of a term, where the gradient that comes in
    happens to need none itself.
    """

    @staticmethod
    def forward(op: Any, backend: str, options: Any, sizes: Any, needs: Any, saved: int, *tensors: Any) -> Any:
        n = len(op.outputs)
        gradients, kept, inputs = tensors[:n], list(tensors[n : n + saved]), _nest(tensors[n + saved :], sizes)
        if torch.compiler.is_compiling():
            return tuple(op.registered_backward(backend, *gradients, kept, *inputs, *options, list(needs)))
        return tuple(op.backward(backend, gradients, kept, inputs, options, needs))

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
