"""Triton's interpreter, several times as fast.

It does the same again for every value of a kernel: types, shapes and tables that do not depend on the value. Here each
is made once. It also computes whether integers overflow, which takes a third of its time, and ignores the result; here
an overflow is an error.
"""

import math
import operator
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from triton.language import core
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter  # noqa: TID251 (only these tests run the interpreter)

OPERATIONS = {"add": operator.add, "sub": operator.sub, "mul": operator.mul}


def patch() -> None:
    _patch_language_once()
    core.pointer_type.__hash__ = core.block_type.__hash__ = core.dtype.__hash__  # by name
    interpreter._get_np_dtype = cache(interpreter._get_np_dtype)
    core.block_type.__init__ = _block_type
    core.tensor.__init__ = _tensor
    core.tuple.__eq__ = lambda self, other: core.constexpr(self.values == [*other])
    TritonSemantic.binary_op_sanitize_overflow_impl = _no_overflow


def _patch_language_once() -> None:
    """Otherwise it is done at each call of each function in a kernel."""
    replace, replaced = interpreter._patch_lang, set()

    def replace_once(function: Callable[..., Any]) -> Any:
        if function.__module__ not in replaced:
            replaced.add(function.__module__)
            replace(function)
        return interpreter._LangPatchScope()  # restores nothing

    interpreter._patch_lang = replace_once


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


def _no_overflow(_: Any, left: Any, right: Any, operation: Callable[..., Any]) -> None:
    bits = left.type.scalar.int_bitwidth
    if bits < 64:
        exact = OPERATIONS[operation.__name__](left.handle.data.astype(np.int64), right.handle.data.astype(np.int64))
        least, most = left.type.scalar.get_int_min_value(), left.type.scalar.get_int_max_value()
        if exact.min() < least or exact.max() > most:
            raise OverflowError(f"{left.type.scalar} {operation.__name__}")
