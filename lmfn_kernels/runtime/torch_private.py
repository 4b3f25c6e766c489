"""All private names of PyTorch that this project uses: any version may change them, so only this module imports them.

All of them exist in PyTorch 2.11 and 2.13. If one is missing, importing or calling it fails with an error that names
it, unless stated otherwise below; no result changes silently.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

__all__ = [
    "FakeTensor",  # a tensor without memory, in shape functions: nothing is launched, and it has no address
    "FakeTensorMode",  # to count the operations of a network without computing it
    "TorchDispatchMode",  # to observe every operation: the test oracle, counting launches
    "constant_when_compiled",
    "is_transformed",
    "missing_onednn_ops",
    "profiled_events",
    "schema_text",
    "sleep_on_gpu",
    "tree_iter",  # for results of operations, which are tensors in nested tuples and lists
    "tree_map_only",
]

Function = TypeVar("Function", bound=Callable[..., Any])


def constant_when_compiled(function: Function) -> Function:
    """Decorator: `torch.compile` calls the function while it traces, and keeps the result as a constant.

    This is `torch.compiler.assume_constant_result` without the import of the compiler, which takes a second. A version
    of PyTorch that ignores the mark traces the function instead, and gives the same results.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def is_transformed() -> bool:
    """Whether `torch.func` or forward-mode differentiation is active, which must see even ops without gradients."""
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def schema_text(op: Any) -> str | None:
    """The schema of `torch.ops.<namespace>.<op>.<overload>` as text, or None if `op` has no schema."""
    schema = getattr(op, "_schema", None)
    return None if schema is None else str(schema)


ONEDNN_SCHEMAS = {
    "_convolution_pointwise.default": (
        "mkldnn::_convolution_pointwise(Tensor X, Tensor W, Tensor? B, int[] padding, int[] stride, int[] dilation, "
        "int groups, str attr, Scalar?[] scalars, str? algorithm) -> Tensor Y"
    ),
    "_convolution_pointwise.binary": (
        "mkldnn::_convolution_pointwise.binary(Tensor X, Tensor other, Tensor W, Tensor? B, int[] padding, "
        "int[] stride, int[] dilation, int groups, str binary_attr, Scalar? alpha, str? unary_attr, "
        "Scalar?[] unary_scalars, str? unary_algorithm) -> Tensor Y"
    ),
    "_convolution_pointwise_.binary": (
        "mkldnn::_convolution_pointwise_.binary(Tensor(a!) other, Tensor X, Tensor W, Tensor? B, int[] padding, "
        "int[] stride, int[] dilation, int groups, str binary_attr, Scalar? alpha, str? unary_attr, "
        "Scalar?[] unary_scalars, str? unary_algorithm) -> Tensor(a!) Y"
    ),
    "_reorder_convolution_weight.default": (
        "mkldnn::_reorder_convolution_weight(Tensor self, int[2] padding=0, int[2] stride=1, int[2] dilation=1, "
        "int groups=1, int[]? input_size=None) -> Tensor Y"
    ),
    "_is_mkldnn_bf16_supported.default": "mkldnn::_is_mkldnn_bf16_supported() -> bool _0",
}
"""The operators of PyTorch's oneDNN binding that are used, with their schemas."""


@cache
def missing_onednn_ops() -> list[str]:
    """The names in `ONEDNN_SCHEMAS` that this PyTorch lacks or declares otherwise."""
    packets = {name: name.split(".") for name in ONEDNN_SCHEMAS}
    found = {name: getattr(getattr(torch.ops.mkldnn, op, None), of, None) for name, (op, of) in packets.items()}
    return [name for name, schema in ONEDNN_SCHEMAS.items() if schema_text(found[name]) != schema]


def sleep_on_gpu(cuda: Any, cycles: int) -> None:
    """Block the current stream for that many clock cycles, so that the work after it is queued before it runs.

    `cuda` is `torch.cuda`, or its replacement in a test.
    """
    cuda._sleep(cycles)


def profiled_events(profile: torch.profiler.profile) -> list[Any]:
    """The events of a finished profile as Kineto recorded them, with sizes of allocations and times in nanoseconds."""
    assert profile.profiler is not None
    assert profile.profiler.kineto_results is not None
    return list(profile.profiler.kineto_results.events())
