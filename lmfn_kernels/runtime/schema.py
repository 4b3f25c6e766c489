"""Tensors and options of an op, declared as NamedTuples, and their flat form for schemas and autograd."""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, get_args, get_type_hints

from torch import Tensor

Argument = Tensor | None | list[Tensor]
"""A value with a single name in a schema."""

SCHEMA_TYPES: dict[Any, str] = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    list[Tensor]: "Tensor[]",
    bool: "bool",
    int: "int",
    float: "float",
    str: "str",
}


@cache
def _parts(kind: Any) -> dict[str, Any]:
    """The types of a NamedTuple's fields, by name, or of a tuple's elements."""
    if hasattr(kind, "_fields"):
        return get_type_hints(kind)
    return {str(i): inner for i, inner in enumerate(get_args(kind))}


def schema(kind: Any, name: str = "") -> dict[str, str]:
    """Names and schema types of the arguments for a value of this type.

    A NamedTuple is expanded into its fields, a tuple into its elements, prefixed by its name: a field `down` of type
    `Conv` becomes `down_weight` and `down_bias`.
    """
    if kind in SCHEMA_TYPES:
        return {name: SCHEMA_TYPES[kind]}
    found: dict[str, str] = {}
    for part, inner in _parts(kind).items():
        found |= schema(inner, f"{name}_{part}" if name else part)
    return found


def to_arguments(value: Any) -> list[Argument]:
    """Flatten a value into the arguments of its type's schema."""
    if not isinstance(value, tuple):
        return [value]
    return [argument for part in value for argument in to_arguments(part)]


def from_arguments(kind: Any, arguments: Iterator[Any]) -> Any:
    """Rebuild the value from its arguments."""
    if kind in SCHEMA_TYPES:
        return next(arguments)
    parts = (from_arguments(inner, arguments) for inner in _parts(kind).values())
    return kind(*parts) if hasattr(kind, "_fields") else tuple(parts)


def to_tensors(value: Any) -> list[Any]:
    """All elements of nested tuples and lists, in order."""
    if not isinstance(value, (tuple, list)):
        return [value]
    return [tensor for part in value for tensor in to_tensors(part)]


def sizes(arguments: Sequence[Argument]) -> tuple[int, ...]:
    """The lengths of the arguments that are lists, and -1 for each of the others."""
    return tuple(len(argument) if isinstance(argument, list) else -1 for argument in arguments)


def to_lists(tensors: Sequence[Any], lengths: Sequence[int]) -> list[Any]:
    """The inverse of `to_tensors`: the arguments, from all of their tensors and their `sizes`."""
    arguments: list[Any] = []
    first = 0
    for length in lengths:
        arguments.append(tensors[first] if length < 0 else list(tensors[first : first + length]))
        first += abs(length)
    return arguments
