"""What a frame and a training step launch by default, at their sizes, op by op, each launch waited for: an error names
the kernel, and a wrong result those of the op."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import lmfn_kernels
from lmfn_kernels import conv3x3_and_input, rfdb_for_two_uses, upsample_add
from lmfn_kernels.cases import OPS, Size, is_image, merge_from_flat, merge_inputs, rfdb_from_flat, rfdb_weights
from lmfn_kernels.runtime.launch import intercepting
from lmfn_kernels.runtime.layout import compact_pixels
from lmfn_kernels.testing import assert_within_rounding, differentiate, reference_with_bounds
from tests.gpu.conftest import DEVICE, DTYPES

WINDOW = 96  # of the maps at 1/4, as in the network's weights


class Part(NamedTuple):
    """A part of the network: its op, as it is called there, and its input in a frame of 1280x720 and in a step of
    16x3x256x256."""

    function: Callable[..., Any]
    inputs: Callable[..., list[Tensor]]
    frame: Size
    step: Size
    frozen: tuple[int, ...] = ()
    """Numbers of the inputs that need no gradient in a step."""


def of_table(name: str, frame: Size, step: Size, **options: Any) -> Part:
    return Part(OPS[name].function, OPS[name].inputs, frame, step, **options)


def rfdb_twice(x: Tensor, *flat: Tensor) -> tuple[Tensor, Tensor]:
    return rfdb_for_two_uses(x, rfdb_weights(flat), fixed_grid=True)


def merge_with_last_map(alpha: Tensor, *tensors: Tensor, window: int | None = None) -> Tensor:
    return merge_from_flat(window=window)(tensors[-5], alpha, *tensors)


def merge_inputs_of(s: Size, dtype: torch.dtype, device: str) -> list[Tensor]:
    return merge_inputs(*s, dtype, device)[1:]


MERGE_IN_WINDOWS = partial(merge_with_last_map, window=WINDOW)
PARTS = {
    "stem": of_table("stem", Size(1, 1, 64, 720, 1280), Size(16, 1, 64, 256, 256), frozen=(0, 5)),
    "conv3x3_and_input": Part(
        partial(conv3x3_and_input, stride=2, activation="leaky_relu", slope=0.1),
        OPS["conv3x3-down"].inputs,
        Size(1, 1, 64, 360, 640),
        Size(16, 1, 64, 128, 128),
    ),
    "conv3x3-down": of_table("conv3x3-down", Size(1, 1, 64, 90, 160), Size(16, 1, 64, 64, 64)),
    "residual_block": of_table("residual_block", Size(1, 1, 64, 180, 320), Size(16, 1, 64, 64, 64)),
    "residual_block at 1/16": of_table("residual_block", Size(1, 1, 64, 45, 80), Size(16, 1, 64, 16, 16)),
    "upsample_add": of_table("upsample_add", Size(1, 1, 64, 180, 320), Size(16, 1, 64, 64, 64)),
    "conv3x3": of_table("conv3x3-reduce", Size(1, 1, 64, 180, 320), Size(16, 1, 64, 64, 64)),
    "rfdb": Part(
        partial(rfdb_from_flat, fixed_grid=True),
        OPS["rfdb"].inputs,
        Size(1, 1, 50, 180, 320),
        Size(16, 1, 50, 64, 64),
    ),
    "rfdb_for_two_uses": Part(rfdb_twice, OPS["rfdb"].inputs, Size(1, 1, 50, 45, 80), Size(16, 1, 50, 64, 64)),
    "attention_merge": Part(merge_with_last_map, merge_inputs_of, Size(1, 4, 50, 180, 320), Size(16, 4, 50, 64, 64)),
    "attention_merge in windows": Part(  # a step with patches larger than a window
        MERGE_IN_WINDOWS, merge_inputs_of, Size(1, 4, 50, 180, 320), Size(2, 4, 50, 100, 144)
    ),
    "residual_block-up": of_table("residual_block-up", Size(1, 1, 50, 360, 640), Size(16, 1, 50, 128, 128)),
    "upsampled_conv3x3": of_table("upsampled_conv3x3", Size(1, 1, 50, 720, 1280), Size(16, 1, 50, 256, 256)),
}


def by_a_kernel(t: Tensor) -> Tensor:
    """The same values where a kernel would have written them, if it is a map of the network."""
    return upsample_add(t, t.new_zeros((*t.shape[:2], 1, 1))) if is_image(t) and t.shape[1] > 3 else t


def run(part: Part, mode: str, inputs: list[Tensor]) -> tuple[list[Tensor], list[Tensor | None]]:
    """Results, and in a step the gradients of what is not frozen."""
    if mode == "step":
        with compact_pixels():
            inputs = [by_a_kernel(t) for t in inputs]
        return differentiate(part.function, inputs, [i not in part.frozen for i in range(len(inputs))])
    with torch.no_grad():
        found = part.function(*map(by_a_kernel, inputs))
    return [found] if isinstance(found, Tensor) else list(found), [None] * len(inputs)


@contextmanager
def one_by_one() -> Iterator[list[str]]:
    """Wait for every launch; the list gets the names of the kernels."""
    names: list[str] = []

    def wait(launch: Callable[..., Any], kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any]) -> Any:
        names.append(kernel.__name__)
        try:
            found = launch(kernel, grid, arguments)
            torch.cuda.synchronize()
        except RuntimeError as error:
            raise RuntimeError(f"{kernel.__name__}, {grid} programs: {error}") from error
        return found

    with intercepting(wait):
        yield names


def leave_in_memory(value: float) -> None:
    """Fill the memory that is allocated next."""
    for elements, times in ((2**28, 1), (2**17, 128)):  # PyTorch keeps blocks of up to 1 MiB apart
        made = [torch.full((elements,), value, device=DEVICE) for _ in range(times)]
        del made


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mode", ["frame", "step"])
@pytest.mark.parametrize("name", PARTS)
def test_default_kernels(name: str, mode: str, dtype: torch.dtype) -> None:
    """Within rounding, with the same bits whatever memory contained before. Float32 is with TF32, PyTorch's default,
    which rounds what it multiplies to the 10 bits of float16."""
    torch.manual_seed(0)
    part = PARTS[name]
    inputs = part.inputs(getattr(part, mode), torch.float16 if dtype == torch.float32 else dtype, DEVICE)
    needs = [mode == "step" and i not in part.frozen for i in range(len(inputs))]
    expected, of_gradients = reference_with_bounds(part.function, inputs, needs)
    inputs = [t.to(dtype) for t in inputs]
    with lmfn_kernels.backend("triton"), one_by_one() as names:
        leave_in_memory(float("nan"))
        results, gradients = run(part, mode, inputs)
        leave_in_memory(1.0)
        again = run(part, mode, inputs)
    launched = ", ".join(dict.fromkeys(names))
    pairs = zip([*results, *gradients], [*expected, *of_gradients], [*again[0], *again[1]], strict=True)
    for i, (found, reference, second) in enumerate(pairs):
        if found is not None and reference is not None:
            assert_within_rounding(f"result or gradient {i}, by {launched}", found, reference)
            assert torch.equal(found, second), f"result or gradient {i} depends on what memory contained: {launched}"
