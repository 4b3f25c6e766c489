"""Tensors to kernels: memory layout, descriptors, and the launch itself.

A launcher describes each of its kernels once per shape, as a `Plan`, which `lru_cache` keeps. Triton's own launch path,
which finds or compiles the kernel, is taken once per plan and kind of tensors; later launches only look at the tensors.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import lru_cache, partial
from typing import Any, NamedTuple
from weakref import ref

import torch
import triton.language as tl
from torch import Tensor
from triton import knobs
from triton.tools.tensor_descriptor import TensorDescriptor

from lmfn_kernels.runtime import configs, overlap
from lmfn_kernels.runtime.assembler import compiler_options
from lmfn_kernels.runtime.configs import Config, config, has_tf32
from lmfn_kernels.runtime.constant_weights import is_constant
from lmfn_kernels.runtime.gradients import PendingMask
from lmfn_kernels.runtime.layout import pitch, pixel_pitch
from lmfn_kernels.runtime.torch_private import FakeTensor
from lmfn_kernels.runtime.trials import in_use
from lmfn_kernels.runtime.triton_private import driver

PLANS = 1024
"""Plans kept per launcher: one per image size, and a few more in training."""

Block = tuple[int, ...]


def as_pending(e: Tensor | PendingMask) -> PendingMask:
    return e if isinstance(e, PendingMask) else PendingMask(e, None, 1.0)


LONGEST, ROWS = 2**26, 2**31 - 2**16
"""The most elements in a row of an image, and the most rows in all images: within a tile, which is at most 16 rows
high, kernels count elements in 32 bits, and beyond it in 64."""


def index_type(*most: int) -> Any:
    """The type in which a kernel counts up to `most`, and on to the end of a tile: 64 bits only for as large an image,
    since divisions take several times as long."""
    return tl.int64 if max(most) >= ROWS else tl.int32


def hold_to_int32(kernel: str, elements: int) -> None:
    """For kernels that count all elements of an image in 32 bits: raise ValueError if there are more."""
    if elements >= ROWS:
        raise ValueError(
            f"an image of {elements} elements is too large for {kernel}, which takes {ROWS}; divide it into tiles"
        )


def empty_image(like: Tensor, b: int, c: int, h: int, w: int, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised image `[b, c, h, w]` in the layout that kernels write: channels-last, pixels a `pixel_pitch`
    apart.

    Raises ValueError if there are more than `LONGEST` elements in a row, or `ROWS` rows.
    """
    s = pixel_pitch(c, dtype or like.dtype)
    strides = _image_strides(like, b, h, w, s)
    return torch.empty_strided((b, c, h, w), strides, dtype=dtype or like.dtype, device=like.device)


def _image_strides(like: Tensor, b: int, h: int, w: int, s: int) -> Block:
    """Of images with pixels `s` elements apart."""
    row = w * s
    if not isinstance(like, FakeTensor) and (row > LONGEST or b * h > ROWS):  # a fake's sizes may be symbols
        raise ValueError(
            f"{b} images of {h} x {w} pixels, {s} elements each, are too large for the kernels: they take at most "
            f"{LONGEST // s} columns, and {ROWS} rows in all images; divide them into tiles, or into several batches"
        )
    return h * row, 1, row, s


def padded_image(like: Tensor, b: int, c: int, h: int, w: int, dtype: torch.dtype | None = None) -> Tensor:
    """`empty_image` for a kernel that writes all of it (`store_padded`): if pixels are a multiple of 32 values apart,
    with zeros after the channels of each."""
    s = pixel_pitch(c, dtype or like.dtype)
    if s == c or s % 32 or isinstance(like, FakeTensor):
        return empty_image(like, b, c, h, w, dtype)
    shape, strides = (b, c, h, w), _image_strides(like, b, h, w, s)
    out = torch.empty_strided((b, s, h, w), strides, dtype=dtype or like.dtype, device=like.device)
    out.as_strided_(shape, strides)  # in place: no view, and the memory includes the zeros of the last pixel
    key = id(out)
    _padded[key] = ref(out, lambda _: _padded.pop(key, None)), shape, strides, out.data_ptr(), _writes(out)
    return out


_padded: dict[int, tuple[ref[Tensor], Block, Block, int, int | None]] = {}
"""By id, the images with zeros after the channels of each pixel: size, strides, address and writes when they were made.

Strides do not prove that there are zeros: a slice of a larger tensor has the same ones, and a NaN there times a weight
of 0 is NaN. An attribute of the tensor would be copied with it, to memory that has none.
"""


def _writes(x: Tensor) -> int | None:
    """How often PyTorch wrote to `x` or to a view of it, which kernels do not count; None in inference mode."""
    return None if x.is_inference() else x._version


def padded_channels(x: Tensor, shape: Block, strides: Block) -> int:
    """How many values of each pixel of `x` kernels may read: the channels, and any zeros that a kernel wrote after."""
    found = _padded.get(id(x))
    if found is None or found[0]() is not x or found[1:] != (shape, strides, x.data_ptr(), _writes(x)):
        return shape[1]
    return strides[3]


def as_kernel_image(x: Tensor) -> Tensor:
    """`x` itself if kernels can read its memory through a descriptor, otherwise a copy that they can."""
    step, (from_b, from_c, from_h, from_w) = 16 // x.dtype.itemsize, x.stride()
    aligned = from_b % step == 0 and from_h % step == 0 and from_w % step == 0
    inside = from_w >= x.shape[1] and from_h > 0 and from_b > 0
    if from_c == 1 and aligned and inside and (isinstance(x, FakeTensor) or _is_reachable(x.data_ptr(), from_h)):
        return x
    return empty_image(x, *x.shape).copy_(x)


def _is_reachable(address: int, from_h: int) -> bool:
    """Whether descriptors can begin at that address, and kernels can count in 32 bits within rows that far apart."""
    return address % 16 == 0 and from_h <= LONGEST


def pitch_of_pixels(x: Tensor) -> int | None:
    """Elements from one pixel of `x` to the next, None if an image or a row does not begin right after the one before,
    or if that many elements from the last pixel on may be beyond the memory.

    `x` is from `as_kernel_image`.
    """
    (b, _, h, w), (from_b, _, from_h, from_w) = x.shape, x.stride()
    dense = (h == 1 or from_h == w * from_w) and (b == 1 or from_b == h * w * from_w)
    return from_w if dense and _begins_with_pixel(x, from_w) else None


def as_pitched_image(x: Tensor) -> Tensor:
    """`x` itself if it has the layout of `empty_image`, otherwise a copy in it, for kernels that read by pointers."""
    if isinstance(x, FakeTensor):  # its sizes may be symbols, and nothing reads it
        return x
    b, c, h, w = x.shape
    s = pixel_pitch(c, x.dtype)
    lies = x.stride() == (h * w * s, 1, w * s, s) and _begins_with_pixel(x, s)
    return x if lies else empty_image(x, b, c, h, w).copy_(x)


def _begins_with_pixel(x: Tensor, pitch: int) -> bool:
    """Whether `x` does not begin within a pixel of its memory: the last channels of a larger image end with the memory,
    and kernels that read whole pixels would read beyond it."""
    return isinstance(x, FakeTensor) or x.storage_offset() % pitch == 0


def with_pitch(x: Tensor) -> tuple[Tensor, int]:
    """`x`, from `as_kernel_image`, or a copy of it whose images and rows follow one another, and the elements from one
    pixel to the next: for kernels that read by pointers."""
    found = pitch_of_pixels(x)
    return (as_pitched_image(x), pixel_pitch(x.shape[1], x.dtype)) if found is None else (x, found)


def cdiv(a: int, b: int) -> int:
    """ceil(a / b). `triton.cdiv` takes longer than a launch."""
    return -(-a // b)


def channel_block(size: int) -> int:
    """Channels in a kernel's block: a power of two, and at least 16, the minimum of a matrix instruction."""
    return max(16, 1 << (int(size) - 1).bit_length())


PARITIES = ("", "01", "10", "11")
"""Suffixes of the names of the four kernel arguments for `even_odd_views`, in the same order."""


def even_odd_views(x: Tensor) -> list[Tensor]:
    """Even rows' even and odd columns, then odd rows' even and odd columns."""
    return [x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)]


def lies_as_taps(weight: Tensor) -> bool:
    """Whether a weight `[N, K, k, k]` is stored tap by tap, rows of N a `pitch` apart, as by `weight_layout`."""
    return _taps(weight) is not None


def weight_as_taps(weight: Tensor) -> Tensor:
    """A weight `[N, K, k, k]` as `[taps, K, N]`, rows a `pitch` apart: a view if `lies_as_taps`, otherwise a copy."""
    if (view := _taps(weight)) is not None:
        return weight.as_strided(*view)
    n, k = weight.shape[:2]
    s = pitch(n, weight.dtype)
    taps = weight.flatten(2).permute(2, 1, 0)
    out = torch.empty_strided(taps.shape, (k * s, s, 1), dtype=weight.dtype, device=weight.device)
    return out.copy_(taps)


def _taps(weight: Tensor) -> tuple[Block, Block] | None:
    """Size and strides of the view `[taps, K, N]` of a weight, or None if it is not stored tap by tap."""
    if isinstance(weight, FakeTensor):  # not cached, as its sizes may be symbols
        return _view_of_taps.__wrapped__(weight.shape, weight.stride(), weight.dtype)
    return _view_of_taps(weight.shape, weight.stride(), weight.dtype) if weight.data_ptr() % 16 == 0 else None


@lru_cache(PLANS)
def _view_of_taps(shape: Block, strides: Block, dtype: torch.dtype) -> tuple[Block, Block] | None:
    n, k, height, width = shape
    from_n, from_k, from_row, from_tap = strides
    s = pitch(n, dtype)
    lies = (
        from_n == 1
        and from_k == s
        and (width == 1 or (from_tap >= k * s and from_tap % s == 0))
        and (height == 1 or from_row == width * from_tap)
    )
    return ((height * width, k, n), (from_tap if width > 1 else k * s, s, 1)) if lies else None


def accumulator_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which the values of `x` are summed."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def accumulator(dtype: torch.dtype) -> Any:
    """`accumulator_dtype` of images of that dtype, as a Triton type."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def precision(x: Tensor) -> str:
    """`tl.dot`'s precision of float32 products, by PyTorch's own setting for convolutions."""
    tf32 = x.dtype == torch.float32 and torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]
    return "tf32" if tf32 and has_tf32(x.device) else "ieee"


class Tiling(NamedTuple):
    """How a kernel divides an image into tiles: all that a plan depends on, except channels and options."""

    config: Config
    size: tuple[int, ...]
    """[B, C, H, W]"""
    dtype: torch.dtype
    precision: str

    @property
    def tiles(self) -> int:
        """Number of tiles in all images."""
        b, _, h, w = self.size
        return b * cdiv(h, self.config.height) * cdiv(w, self.config.width)

    @property
    def splits(self) -> int:
        """Number of partial sums of a sum over all pixels."""
        return min(self.config.splits, self.tiles)

    def pixels(self, channels: int) -> Block:
        """The block of a tile of this image, or of another image of the same size, with that many channels."""
        return 1, self.config.height, self.config.width, channels

    def constants(self) -> dict[str, Any]:
        """The kernel's constants that depend only on the tiling, by the names of its arguments."""
        return {
            "H": self.size[2],
            "W": self.size[3],
            "BLOCK_H": self.config.height,
            "BLOCK_W": self.config.width,
            "ACC": accumulator(self.dtype),
            "PRECISION": self.precision,
        }


def tiling(kernel: str, x: Tensor) -> Tiling:
    return Tiling(config(kernel, x), x.shape, x.dtype, precision(x))


class Plan:
    """A kernel at one shape: its grid and constants, and the compiled kernels for the tensors seen so far.

    `blocks` maps the arguments that are descriptors to their block shapes: [1, height, width, channels] for an image
    [B, H, W, C], [1, inputs, outputs] for a weight [taps, inputs, outputs]; `descriptor` makes one from a tensor, its
    size, its strides and its block. A plan holds no tensors and no addresses, so it never becomes stale.

    `ahead` names the arguments that the kernel loads before it waits for the previous launch if its constant AHEAD is
    true: if all of them that are given are constant (`constant_weights.py`).
    """

    def __init__(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        warps: int,
        blocks: Mapping[str, Block],
        descriptor: Any = TensorDescriptor,
        *ahead: str,
        **constants: Any,
    ) -> None:
        self.kernel, self.grid, self.blocks, self.descriptor, self.ahead = kernel, grid, blocks, descriptor, ahead
        self.constants = {**constants, "num_warps": warps}
        self.compiled: dict[tuple[Any, ...], _Compiled] = {}

    def constants_for(self, tensors: Mapping[str, Tensor | None]) -> dict[str, Any]:
        """The constants in a launch with these tensors."""
        return self.constants | {"AHEAD": self.loads_ahead(tensors)} if self.ahead else self.constants

    def loads_ahead(self, tensors: Mapping[str, Tensor | None]) -> bool:
        if not (self.ahead and in_use("weights_ahead") and in_use("overlap")):
            return False
        return all(is_constant(t) for t in map(tensors.get, self.ahead) if t is not None)


class _Compiled(NamedTuple):
    """A kernel compiled for one combination of dtypes and alignments, with what `JITFunction.run` passes to it."""

    launch: Callable[..., Any]
    grid: tuple[int, ...]
    function: tuple[Any, ...]
    """The launcher's arguments between the stream and the kernel's own arguments."""
    arguments: list[Any]
    """All arguments of the kernel, None in place of tensors."""
    tensors: list[tuple[str, int, Callable[[Tensor], Any] | None]]
    """Per tensor that is not None: its name, its index among the kernel's arguments, what makes its descriptor if it
    has one."""


def _triton_launch(kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any]) -> Any:
    return kernel[grid](**arguments)


_launcher: Callable[[Any, tuple[int, ...], dict[str, Any]], Any] = _triton_launch


@contextmanager
def intercepting(function: Callable[..., Any]) -> Iterator[None]:
    """Call `function(launch, kernel, grid, arguments)` in place of every launch within the context.

    `launch(kernel, grid, arguments)` performs the launch and returns the compiled kernel.
    """
    global _launcher
    inner = _launcher
    _launcher = partial(function, inner)
    try:
        yield
    finally:
        _launcher = inner


def launch(on: Tensor, plan_of: Callable[..., Plan], key: tuple[Hashable, ...], **tensors: Tensor | None) -> None:
    """Launch `plan_of(*key)` on the device of `on`, whichever device is current; omitted `tensors` are None.

    If `on` is a fake tensor, which has only a shape, nothing is launched.
    """
    if isinstance(on, FakeTensor):
        return
    plan, device = plan_of(*key), on.get_device()
    # Everything Triton specialises a kernel on, in addition to the plan's constants.
    types = [None if t is None else (t.dtype, t.data_ptr() % 16) for t in tensors.values()]
    kind: tuple[Any, ...] = device, in_use("overlap"), plan.loads_ahead(tensors), *tensors, *types
    if _by_pointers(on.device):
        views = [_Described(t) for name, t in tensors.items() if t is not None and name in plan.blocks]
        kind += tuple((view.shape, view.strides) for view in views)
    compiled = plan.compiled.get(kind)
    if compiled is None or _launcher is not _triton_launch or _observed():
        found = _as_documented(plan, on, tensors)
        if _launcher is _triton_launch and getattr(found, "metadata", None) and found.metadata.target.backend == "cuda":
            plan.compiled[kind] = _for_next_time(plan, found, tensors, by_pointers=_by_pointers(on.device))
    elif driver.active.get_current_device() == device:
        _again(compiled, device, tensors)
    else:
        with torch.get_device_module(on.device).device(device):
            _again(compiled, device, tensors)


def _observed() -> bool:
    """Whether a profiler has installed launch hooks; only Triton's own launch path calls them."""
    enter, leave = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
    return bool(getattr(enter, "calls", True) or getattr(leave, "calls", True))


def _as_documented(plan: Plan, on: Tensor, tensors: Mapping[str, Tensor | None]) -> Any:
    """Launch through Triton's public interface, with all of its checks; returns what the launcher returns."""
    arguments: dict[str, Any] = dict.fromkeys(plan.kernel.arg_names)
    for name, tensor in tensors.items():
        arguments[name] = tensor
        if tensor is not None and name in plan.blocks:
            view, block = _Described(tensor), plan.blocks[name]
            arguments[name] = (
                _pointed(block, tensor)
                if _by_pointers(on.device)
                else plan.descriptor(tensor, list(view.shape), list(view.strides), list(block))
            )
    guard = nullcontext() if on.device.type == "cpu" else torch.get_device_module(on.device).device(on.device)
    with guard:
        options = compiler_options() | overlap.launch_options()
        return _launcher(plan.kernel, plan.grid, arguments | plan.constants_for(tensors) | options)


def _for_next_time(plan: Plan, found: Any, tensors: Mapping[str, Tensor | None], *, by_pointers: bool) -> _Compiled:
    names: list[str] = plan.kernel.arg_names
    constants = plan.constants_for(tensors)
    described = {name: partial(_pointed, block) if by_pointers else _Described for name, block in plan.blocks.items()}
    return _Compiled(
        found.run,
        (*plan.grid, 1, 1)[:3],
        (found.function, found.packed_metadata, None, None, None),
        [constants.get(name) for name in names],
        [(name, names.index(name), described.get(name)) for name in tensors if tensors[name] is not None],
    )


def _again(compiled: _Compiled, device: int, tensors: Mapping[str, Any]) -> None:
    launch, grid, function, arguments, places = compiled
    arguments = arguments.copy()
    for name, place, described in places:
        arguments[place] = tensors[name] if described is None else described(tensors[name])
    launch(*grid, driver.active.get_current_stream(device), *function, *arguments)


class _Described:
    """A tensor descriptor with the fields that Triton's launcher reads, without the checks of `TensorDescriptor`, which
    the driver repeats."""

    __slots__ = ("base", "shape", "strides")
    padding, round_f32_to_tf32 = "zero", False

    def __init__(self, x: Tensor) -> None:
        self.base = x
        shape, strides = x.shape, x.stride()
        self.shape, self.strides = _channels_last(shape, strides, padded_channels(x, shape, strides))


class Pointed(NamedTuple):
    """A tensor for a kernel's argument that is a descriptor, on GPUs without TMA (`kernels.py`)."""

    base: Tensor
    shape: Block
    """Of an image [B, H, W, channels], of a weight as it is."""
    units: Block
    """Strides of all dimensions but the last, whose values are neighbours, in units of 16 bytes, of which all of them
    are multiples."""
    block_shape: tuple[tl.constexpr, ...]
    whole: tl.constexpr
    """Whether the last dimension is a multiple of 16 bytes."""


def _pointed(block: Block, x: Tensor) -> Pointed:
    view, unit = _Described(x), 16 // x.dtype.itemsize
    units = tuple(stride // unit for stride in view.strides[:-1])
    return Pointed(x, view.shape, units, tuple(map(tl.constexpr, block)), tl.constexpr(view.shape[-1] % unit == 0))


def _by_pointers(device: torch.device) -> bool:
    """Whether a GPU has no TMA: NVIDIA's before Hopper, and AMD's."""
    found = configs.describe(device)
    return found.name != "cpu" and device.type != "xpu" and found.capability < 90


@lru_cache(PLANS)
def _channels_last(shape: Block, strides: Block, channels: int) -> tuple[Block, Block]:
    """Size and strides of an image as [B, H, W, channels], of a weight as they are."""
    if len(shape) != 4:
        return shape, strides
    (b, _, h, w), (from_b, from_c, from_h, from_w) = shape, strides
    return (b, h, w, channels), (from_b, from_h, from_w, from_c)


def partial_sums(like: Tensor, splits: int, shape: Sequence[int]) -> Tensor:
    """Uninitialised memory `[splits, *shape]` for one partial sum per program; they are added in a fixed order, so that
    the bits of the sum never vary."""
    return torch.empty((splits, *shape), dtype=accumulator_dtype(like), device=like.device)
