"""Triton's interpreter, many times as fast.

It does the same again for every value of a kernel: types, shapes and tables that do not depend on the value. Here each
is made once, and an operation is decided once per types of its operands: from then on NumPy alone computes it. It also
computes whether integers overflow, which takes a third of its time, and ignores the result; here an overflow is an
error.
"""

import math
import operator
from collections.abc import Callable
from functools import cache, partial, wraps
from typing import Any

import numpy as np
from triton.language import core
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter  # noqa: TID251 (only these tests run the interpreter)

OPERATIONS = {"add": operator.add, "sub": operator.sub, "mul": operator.mul}
ELEMENTWISE = (
    "add", "sub", "mul", "truediv", "floordiv", "mod", "and_", "or_", "xor_", "greater_than", "greater_equal",
    "less_than", "less_equal", "equal", "not_equal", "minimum", "maximum", "where",
)  # fmt: skip
CONVERTED_BY_NUMPY = {
    "int1", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "fp16", "fp32", "fp64",
}  # fmt: skip
"""Types of Triton that are types of NumPy; the others are kept as bits."""


def patch() -> None:
    _patch_language_once()
    interpreter.range = _looped  # Triton copies it to the module of a kernel that it runs for the first time, for good
    core.pointer_type.__hash__ = core.block_type.__hash__ = core.dtype.__hash__  # by name
    interpreter._implicit_cvt = _converted
    interpreter._get_np_dtype = cache(interpreter._get_np_dtype)
    core._unwrap_if_constexpr = _unwrapped
    core.block_type.__init__ = _block_type
    core.tensor.__init__ = _tensor
    core.tuple.__eq__ = lambda self, other: core.constexpr(self.values == [*other])
    interpreter.TensorDescHandle.materialize_pointers = _pointers
    TritonSemantic.binary_op_sanitize_overflow_impl = _no_overflow
    builder = interpreter.InterpreterBuilder
    builder.binary_op = _noting(builder.binary_op, lambda *operands: operands[-1])
    builder.ternary_op = _noting(builder.ternary_op, lambda *operands: operands[-1])
    builder.create_idiv = _noting(builder.create_idiv, lambda *_: _quotient)
    builder.create_addptr = _noting(builder.create_addptr, lambda pointer, _: partial(_moved, _width(pointer)))
    for name in ELEMENTWISE:
        setattr(TritonSemantic, name, _replayed(getattr(TritonSemantic, name)))


loop: Callable[..., Any] = range
"""Over what the loops of kernels run; a test may replace it."""


def _looped(*bounds: Any) -> Any:
    return loop(*bounds)


def _patch_language_once() -> None:
    """Otherwise it is done at each call of each function in a kernel."""
    replace, replaced = interpreter._patch_lang, set()

    def replace_once(function: Callable[..., Any]) -> Any:
        if function.__module__ not in replaced:
            replaced.add(function.__module__)
            replace(function)
        return interpreter._LangPatchScope()  # restores nothing

    interpreter._patch_lang = replace_once
    interpreter._patch_attr = _patch_attr


def _patch_attr(where: Any, name: str, member: Any, builder: Any, scope: Any) -> None:
    semantic, function = TritonSemantic(builder), getattr(member, "__wrapped__", member)

    def call(*arguments: Any, **options: Any) -> Any:
        options["_semantic"] = semantic
        return function(*arguments, **options)

    scope.set_attr(where, name, call)


_usual_converted = interpreter._implicit_cvt


def _converted(argument: Any) -> Any:
    """Triton gives integers of 32 bits and no sign the type int64, but computes with 32 bits."""
    if type(argument) is not int or not 2**31 <= argument < 2**32:
        return _usual_converted(argument)
    return core.tensor(interpreter.TensorHandle(np.array([argument]), core.int64), core.int64)


_usual_unwrapped = core._unwrap_if_constexpr


def _unwrapped(value: Any) -> Any:
    kind = type(value)
    if kind is core.constexpr:
        return value.value
    return value if kind is core.tensor or kind is int else _usual_unwrapped(value)


def _tensor(self: Any, handle: Any, type: Any) -> None:
    self.handle, self.type, self.dtype = handle, type, type.scalar
    self.numel, self.shape = _size(*(type.shape.values if type.is_block() else ()))


@cache
def _size(*shape: int) -> tuple[Any, Any]:
    return core.constexpr(math.prod(shape)), core.tuple([core.constexpr(side) for side in shape])


_usual_block_type = core.block_type.__init__


def _block_type(self: Any, element_ty: Any, shape: Any) -> None:
    self.__dict__.update(_block_attributes(element_ty, tuple(core._unwrap_if_constexpr(side) for side in shape)))


@cache
def _block_attributes(element_ty: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    made = object.__new__(core.block_type)
    _usual_block_type(made, element_ty, list(shape))
    return made.__dict__


def _pointers(self: Any, offsets: list[Any]) -> tuple[Any, Any]:
    """The pointers of a block of an image, and which are inside it, dimension by dimension from the outer one: only the
    last sum is as large as the block."""
    width = _width(self.base)
    assert (offsets[-1].data * width) % 16 == 0
    pointers, inside = self.base.data.reshape(()), np.True_
    for offset, size, stride, side in zip(offsets, self.shape, self.strides, self.block_shape, strict=True):
        places = offset.data + np.arange(side)
        pointers = pointers[..., None] + (width * places * stride.data).astype(np.uint64)
        inside = inside[..., None] & (places >= 0) & (places < size.data)
    return interpreter.TensorHandle(pointers, self.base.dtype.scalar), interpreter.TensorHandle(inside, core.int1)


def _no_overflow(_: Any, left: Any, right: Any, operation: Callable[..., Any]) -> None:
    bits = left.type.scalar.int_bitwidth
    if bits < 64:
        if _noted is not None:
            _noted.may_overflow = True
        exact = OPERATIONS[operation.__name__](left.handle.data.astype(np.int64), right.handle.data.astype(np.int64))
        least, most = left.type.scalar.get_int_min_value(), left.type.scalar.get_int_max_value()
        if exact.min() < least or exact.max() > most:
            raise OverflowError(f"{left.type.scalar} {operation.__name__}")


class _Noted:
    """What one operation of Triton has NumPy compute."""

    def __init__(self) -> None:
        self.computed: list[tuple[Callable[..., Any], list[Any], Any]] = []
        """Functions, with their operands and results."""
        self.may_overflow = False


_noted: _Noted | None = None


def _noting(compute: Callable[..., Any], function_of: Callable[..., Any]) -> Callable[..., Any]:
    def computed(self: Any, *operands: Any) -> Any:
        made = compute(self, *operands)
        if _noted is not None:
            handles = [operand for operand in operands if type(operand) is interpreter.TensorHandle]
            _noted.computed.append((function_of(*operands), handles, made))
        return made

    return computed


def _quotient(left: Any, right: Any) -> Any:
    return (left - np.fmod(left, right)) // right


def _moved(width: int, pointer: Any, offset: Any) -> Any:
    return pointer + width * offset.astype(np.uint64)


def _width(pointer: Any) -> int:
    """Bytes from one element to the next."""
    return max(1, pointer.get_element_ty().primitive_bitwidth // 8)


def _replayed(operation: Callable[..., Any]) -> Callable[..., Any]:
    """The first time as Triton computes it, and again for operands of the same types, or the same constants."""
    recipes: dict[tuple[Any, ...], Callable[..., Any] | None] = {}

    @wraps(operation)
    def replayed(semantic: Any, *operands: Any, **options: Any) -> Any:
        global _noted
        if options or _noted is not None:  # within an operation that is noted, all that it computes has to be
            return operation(semantic, *operands, **options)
        key = tuple([o.type.name if type(o) is core.tensor else (type(o), o) for o in operands])  # 1 is not True
        recipe = recipes.get(key)
        if recipe is not None:
            return recipe(operands)
        if key in recipes:
            return operation(semantic, *operands)
        _noted = _Noted()
        try:
            result = operation(semantic, *operands)
            recipes[key] = _recipe(operation.__name__, operands, result, _noted)
        finally:
            _noted = None
        return result

    return replayed


def _recipe(name: str, operands: Any, result: Any, noted: _Noted) -> Callable[..., Any] | None:
    """What computes the same from other operands of these types; None for what is not one function of NumPy."""
    if len(noted.computed) != 1:
        return None
    function, handles, made = noted.computed[0]
    if made is not result.handle or any(type(o) is core.tensor for o in operands[len(handles) :]):
        return None
    ways: list[Any] = []  # a constant, a type to cast to, or None
    for operand, handle in zip(operands, handles, strict=False):
        if type(operand) is not core.tensor:
            ways.append(handle.data.ravel()[:1])
        elif operand.handle.data.dtype == handle.data.dtype:
            ways.append(None)
        elif {operand.dtype.name, handle.dtype.name} <= CONVERTED_BY_NUMPY:
            ways.append(handle.data.dtype)
        else:
            return None
    kept = {attribute: value for attribute, value in result.__dict__.items() if attribute != "handle"}
    may_overflow, dtype, stored = noted.may_overflow, made.dtype, made.data.dtype

    def recipe(operands: Any) -> Any:
        values = [
            o.handle.data if way is None else way if type(way) is np.ndarray else o.handle.data.astype(way)
            for o, way in zip(operands, ways)  # noqa: B905 (there may be options after the operands)
        ]
        data = function(*values)
        if may_overflow and (function(*values, dtype=np.int64) != data).any():
            raise OverflowError(f"{result.dtype} {name}")
        handle = object.__new__(interpreter.TensorHandle)
        handle.__dict__ = {"data": data if data.dtype is stored else data.astype(stored), "dtype": dtype, "attr": {}}
        value = object.__new__(core.tensor)
        value.__dict__ = {"handle": handle, **kept}
        return value

    np.testing.assert_array_equal(recipe(operands).handle.data, made.data, strict=True)
    return recipe
