"""Every kernel at the sizes at which tensors fill the memory of a GPU: no integer overflows, every address lies in the
memory of a tensor, and every grid is one that GPUs launch.

Kernels run in Triton's interpreter on memory of which nothing is allocated but what is written to: the programs at the
corners of their grids, and of long loops the first and the last turns. There, indices are smallest and largest.
"""

import math
import mmap
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter  # noqa: TID251 (only tests run the interpreter)

import lmfn_kernels
from lmfn_kernels import Conv, conv3x3, upsampled_conv3x3
from lmfn_kernels.cases import OPS, OpCase, is_image
from lmfn_kernels.conv import triton_backend as convolution
from lmfn_kernels.runtime import configs, launch, trials
from lmfn_kernels.runtime.layout import pixel_pitch
from lmfn_kernels.runtime.torch_private import FakeTensorMode
from lmfn_kernels.testing import differentiate
from tests.kernels.test_bounds import FOLDERS
from tests.kernels.test_memory import within_memory

MEMORY = 141 * 10**9
"""Bytes of the largest GPU's memory."""
TURNS = 4
"""Of a long loop, at its beginning and at its end."""
PROGRAMS = 2**31 - 1, 2**16 - 1, 2**16 - 1
"""The largest grid that NVIDIA's GPUs launch."""
DTYPE = torch.float16


class Layout(NamedTuple):
    """A tensor without its memory."""

    bytes: int
    size: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    dtype: torch.dtype

    @classmethod
    def of(cls, t: Tensor) -> "Layout":
        return cls(t.untyped_storage().nbytes(), tuple(t.shape), t.stride(), t.storage_offset(), t.dtype)

    def tensor(self) -> Tensor:
        """In memory that is allocated where it is written to."""
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
        memory = torch.frombuffer(mmap.mmap(-1, self.bytes, flags=flags), dtype=torch.uint8)
        return (
            memory[: self.bytes // self.dtype.itemsize * self.dtype.itemsize]
            .view(self.dtype)
            .as_strided(self.size, self.strides, self.offset)
        )


Launch = tuple[launch.Plan, tuple[tuple[str, Layout | None], ...]]


def launches(function: Callable[..., Any], draw: Callable[[], list[Tensor]]) -> dict[Launch, None]:
    """What an op launches in both passes, each launch once."""
    found: dict[Launch, None] = {}

    def noted(_: Tensor, plan_of: Callable[..., launch.Plan], key: tuple[Any, ...], **tensors: Tensor | None) -> None:
        layouts = tuple((name, None if t is None else Layout.of(t)) for name, t in tensors.items())
        found[plan_of(*key), layouts] = None

    with pytest.MonkeyPatch.context() as patch:
        for name in [f"{folder}.triton_backend" for folder in FOLDERS] + ["runtime.multi_tensor"]:
            patch.setattr(import_module(f"lmfn_kernels.{name}"), "launch", noted, raising=False)
        with FakeTensorMode(), lmfn_kernels.backend("triton"):
            inputs = draw()
            with torch.no_grad():
                function(*inputs)
            differentiate(function, inputs)
    return found


def turns(*bounds: Any) -> Iterator[Any]:
    """The turns of a loop, of a long one some, with the type that its variable has when compiled."""
    numbers, types = range(*map(int, bounds)), [bound.dtype for bound in bounds if isinstance(bound, tl.tensor)]
    if not types:  # all are constants
        return iter(numbers)
    dtype = tl.int64 if tl.int64 in types else tl.int32
    if dtype == tl.int32 and len(numbers) and numbers[-1] + numbers.step >= 2**31:
        raise OverflowError("int32 loop")
    short = numbers if len(numbers) <= 2 * TURNS else (*numbers[:TURNS], *numbers[-TURNS:])
    handles = (interpreter.TensorHandle(np.array([i], str(dtype)), dtype) for i in short)
    return (tl.tensor(handle, dtype) for handle in handles)


def run_corners(found: dict[Launch, None], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run the programs at the corners of the grid of each launch; returns the names of the kernels."""
    builder = interpreter.interpreter_builder
    set_dim, set_index = builder.set_grid_dim, builder.set_grid_idx

    def at_corners(launch: Callable[..., Any], kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any]) -> None:
        grid = (*grid, 1, 1)[:3]
        assert all(side <= most for side, most in zip(grid, PROGRAMS, strict=True)), (kernel.__name__, grid)
        monkeypatch.setattr(builder, "set_grid_dim", lambda *_: set_dim(*grid))
        for program in product(*({0, side - 1} for side in grid)):
            monkeypatch.setattr(builder, "set_grid_idx", lambda *_, program=program: set_index(*program))
            launch(kernel, (1,), arguments)

    monkeypatch.setattr("interpreter.loop", turns)
    monkeypatch.setattr(interpreter.GridExecutor, "_init_args_hst", lambda _, args, kwargs: (args, kwargs))
    monkeypatch.setattr(interpreter.GridExecutor, "_restore_args_dev", lambda *_: None)
    with launch.intercepting(at_corners), within_memory(monkeypatch) as names:
        for plan, layouts in found:
            tensors = {name: None if layout is None else layout.tensor() for name, layout in layouts}
            launch._as_documented(plan, next(t for t in tensors.values() if t is not None), tensors)
    return names


def pixels(op: OpCase, channels: int) -> int:
    """Of the images whose inputs and results fill the memory."""
    with FakeTensorMode(), lmfn_kernels.backend("torch"), torch.no_grad():
        inputs = op.draw((1, 2, channels, 64, 64), DTYPE)
        found = op.function(*inputs)
    images = filter(is_image, [*inputs, *([found] if isinstance(found, Tensor) else found)])
    return int(MEMORY * 64 * 64 / sum(image.numel() * image.itemsize for image in images))


@pytest.mark.parametrize("shape", ["square-3", "below-2^31-3", "wide-3", "many-3", "square-50"])
@pytest.mark.parametrize("name", OPS)
def test_images_that_fill_the_memory(name: str, shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above 2^31, a size itself is a 64-bit integer, in which a kernel then counts; below, its products overflow."""
    shape, _, channels = shape.rpartition("-")
    op, c = OPS[name], int(channels)
    most = pixels(op, c)
    side = math.isqrt(most) | 1  # odd, so that no map is twice as large as another one
    below = math.isqrt(min(most, 2**31)) // 2 * 2 - 301
    columns = launch.LONGEST // pixel_pitch(c, DTYPE)
    sizes = {
        "square": (1, side, side),
        "below-2^31": (1, below, below),
        "wide": (1, most // columns, columns),
        "many": (most // (20 * 21), 20, 21),
    }
    b, h, w = sizes[shape]
    assert run_corners(launches(op.function, lambda: op.draw((b, 2, c, h, w), DTYPE)), monkeypatch)


@pytest.mark.parametrize("name", ["conv3x3", "conv3x3-down", "residual_block"])
def test_many_channels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Partial sums are added up by `sum_kernel`, which counts them in 32 bits, so there are fewer of large weights."""
    monkeypatch.setattr(configs, "INTERPRETED", configs.INTERPRETED._replace(splits=128))
    for channels, splits in ((64, 128), (1500, 106), (4096, 14)):
        found = launches(OPS[name].function, lambda c=channels: OPS[name].draw((16, 2, c, 64, 64), DTYPE))
        sizes = [layout.size for _, layouts in found for argument, layout in layouts if layout and argument == "p_dw"]
        assert {size[0] for size in sizes} == {splits}
        assert all(math.prod(size) < 2**31 for size in sizes)


@pytest.mark.parametrize(("most", "is_copied"), [(launch.ROWS, False), (79, True)])
def test_columns_that_are_far_apart(most: int, is_copied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a large image that was turned: kernels that take any strides count to the last one in 32 bits."""
    monkeypatch.setattr(import_module("lmfn_kernels.upsample.triton_backend"), "ROWS", most)
    x, residual, g = torch.zeros(1, 3, 4, 5), torch.zeros(1, 2, 10, 8).mT, torch.zeros(1, 2, 10, 8).mT
    steps = []

    def noted(launch: Callable[..., Any], kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any]) -> None:
        steps.extend(t.stride(3) for name in ("p_residual", "p_g") if (t := arguments.get(name)) is not None)
        launch(kernel, grid, arguments)

    with launch.intercepting(noted), lmfn_kernels.backend("triton"):
        conv = Conv(torch.zeros(2, 3, 3, 3), torch.zeros(2))
        upsampled_conv3x3(x.requires_grad_(), conv, residual).backward(g)
    assert steps == ([1, 1] if is_copied else [8, 8])


def test_larger_images_are_refused() -> None:
    x = torch.zeros(1).expand(1, 50, 2, 2**20 + 1)
    row = 64 * x.shape[3]
    as_kernels_read = Layout(4 * row, tuple(x.shape), (2 * row, 1, row, 64), 0, DTYPE).tensor()
    conv = Conv(torch.zeros(3, 50, 3, 3, dtype=DTYPE), torch.zeros(3, dtype=DTYPE))
    with lmfn_kernels.backend("triton"), pytest.raises(ValueError, match=r"at most 1048576 columns.*tiles"):
        upsampled_conv3x3(as_kernels_read, conv)
    with (
        lmfn_kernels.backend("triton"),
        pytest.raises(ValueError, match=r"2 x 1048577 .* at most 1048576 columns.*tiles"),
    ):
        conv3x3(x, torch.zeros(50, 50, 3, 3))
    with pytest.raises(ValueError, match=r"rows in all images; divide them into tiles, or into several batches"):
        launch.empty_image(torch.empty(0), 2**31, 1, 1, 1)


@pytest.mark.parametrize(("name", "kernel"), [("stem", "quartered_stem"), ("upsampled_conv3x3", "ring_upsampled_conv")])
def test_larger_images_than_a_kernel_counts_are_refused(
    name: str, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolution, "ring_programs", lambda _: 132)

    def kernels(side: int) -> set[str]:
        found = launches(OPS[name].function, lambda: OPS[name].draw((1, 1, 50, side, side), DTYPE))
        return {plan.kernel.__name__ for plan, _ in found}

    with trials.trying(kernel):
        assert f"{kernel}_kernel" in kernels(16_000)
        with pytest.raises(ValueError, match=rf"too large for {kernel}.*tiles"):
            kernels(30_000)


def test_a_missing_cast_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = import_module("lmfn_kernels.upsample.triton_backend")
    monkeypatch.setattr(backend, "index_type", lambda *_: tl.int32)
    for launcher in ("_upsample_add", "_upsample_backward"):  # without the plans of other tests
        monkeypatch.setattr(backend, launcher, getattr(backend, launcher).__wrapped__)
    with pytest.raises(Exception, match="OverflowError"):
        test_images_that_fill_the_memory("upsample_add", "below-2^31-3", monkeypatch)
