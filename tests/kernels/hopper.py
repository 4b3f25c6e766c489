"""A multiprocessor of sm_90 that runs the source of Gluon kernels on the CPU, in PyTorch.

Shared memory is bytes at addresses, NaN at first. Everything asynchronous happens as late as the kernel permits, and
does its damage as early as possible: a TMA load leaves NaN in its destination from its launch until its data arrives,
which is when no warp can go on. Stores and products read their memory at launch and again when they are waited for:
what changed in between, or was written without a fence, they have read as NaN. So a missing wait or fence, and a slot
that is overwritten too early, give NaN or wrong values, and warps that wait for each other raise `AssertionError`, as
does a partition that, before its `wait_for_previous_launch`, reads or writes anything but constant weights by TMA.

A partition is one thread here. What the compiler does is taken for granted, namely layouts of registers, and barriers
among the warps of a partition where one loads what another has stored. Those that it leaves to the kernel must be
there: before a store to what a product of the other warps may still read, and before one thread arrives for all.
`launch` takes the place of Triton's launch, as `with lmfn_kernels.runtime.launch.intercepting(hopper.launch): ...`.
"""

import __future__

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from types import CodeType, SimpleNamespace
from typing import Any, NamedTuple

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from lmfn_kernels.runtime import gluon_private
from lmfn_kernels.runtime.constant_weights import is_constant
from lmfn_kernels.runtime.kernels import wait_for_previous_launch

SHARED = 232_448
UNKNOWN = torch.full((16,), 0xFF, dtype=torch.uint8).view(torch.complex128)
"""A chunk of 16 bytes, which are NaN in every dtype; complex numbers stand for chunks."""
DTYPES = {
    gl.int16: torch.int16,
    gl.int32: torch.int32,
    gl.int64: torch.int64,
    gl.float16: torch.float16,
    gl.bfloat16: torch.bfloat16,
    gl.float32: torch.float32,
    gl.float8e4nv: torch.float8_e4m3fn,
}
OF_TORCH = {of_torch: dtype for dtype, of_torch in DTYPES.items()}
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


class Value(torch.Tensor):
    """Values in registers."""

    def to(self, dtype: Any, bitcast: bool = False) -> "Value":  # type: ignore[override]
        x = self.as_subclass(Tensor)
        if bitcast:
            return x.view(DTYPES[dtype]).as_subclass(Value)
        x = x.clamp(-448, 448) if dtype == gl.float8e4nv else x
        return x.to(DTYPES[dtype]).as_subclass(Value)


def value(x: Any) -> Value:
    return torch.as_tensor(x).as_subclass(Value)


class Pointer:
    """Addresses of elements of a tensor, as offsets from its first element."""

    def __init__(self, x: Tensor, offsets: Any = 0) -> None:
        self.x, self.offsets, self.dtype = x, offsets, SimpleNamespace(element_ty=OF_TORCH[x.dtype])

    def __add__(self, offsets: Any) -> "Pointer":
        return Pointer(self.x, self.offsets + offsets)

    def at(self, mask: Any) -> tuple[Tensor, Tensor, Tensor]:
        """All of the tensor's memory, and offsets and mask; where the mask is false, offsets are 0."""
        mask = torch.as_tensor(mask)
        memory = self.x.as_strided((self.x.untyped_storage().nbytes() // self.x.itemsize,), (1,), 0)
        offsets, mask = torch.broadcast_tensors(torch.as_tensor(self.offsets), mask)
        offsets = torch.where(mask, offsets + self.x.storage_offset(), 0).long()
        last = self.x.storage_offset() + sum((n - 1) * s for n, s in zip(self.x.shape, self.x.stride(), strict=True))
        assert not mask.any() or self.x.storage_offset() <= offsets[mask].min() <= offsets[mask].max() <= last
        return memory, offsets.as_subclass(Tensor), mask.as_subclass(Tensor)


def load(p: Pointer, mask: Any = True, other: float = 0.0) -> Value:
    memory, offsets, mask = p.at(mask)
    return value(torch.where(mask, memory[offsets], torch.tensor(other, dtype=memory.dtype)))


def store(p: Pointer, x: Value, mask: Any = True) -> None:
    memory, offsets, mask = p.at(mask)
    memory[offsets[mask]] = x.as_subclass(Tensor).broadcast_to(mask.shape)[mask].to(memory.dtype)


class Descriptor:
    """A kernel's argument made from a TMA descriptor."""

    def __init__(self, of: TensorDescriptor) -> None:
        size = of.base.itemsize
        assert of.base.data_ptr() % 16 == 0
        assert all(stride * size % 16 == 0 for stride in of.strides[:-1])
        assert of.strides[-1] == 1
        assert max(of.block_shape) <= 256
        self.image = of.base.as_strided(of.shape, of.strides)
        self.constant = is_constant(of.base)
        self.dtype, self.layout = OF_TORCH[of.base.dtype], of.layout
        nbytes = math.prod(of.block_shape) * size
        self.block_type = SimpleNamespace(shape=list(of.block_shape), nbytes=nbytes, element_ty=self.dtype)

    def box(self, coordinates: Sequence[Any]) -> tuple[Tensor, tuple[slice, ...]]:
        """The part of a block that is inside the image, as a view of it, and its place in the block."""
        first = [int(i) for i in coordinates]
        ends = [min(n, i + k) for i, k, n in zip(first, self.block_type.shape, self.image.shape, strict=True)]
        inside = [slice(max(i, 0), max(i, 0, end)) for i, end in zip(first, ends, strict=True)]
        place = tuple(slice(s.start - i, s.stop - i) for s, i in zip(inside, first, strict=True))
        return self.image[tuple(inside)], place


class Barrier:
    """An mbarrier: `phases` counts those that are complete."""

    def __init__(self) -> None:
        self.count = self.pending = self.bytes = self.phases = 0

    def arrive(self, count: int, nbytes: int = 0) -> None:
        self.bytes += nbytes
        self.pending -= count
        assert self.pending >= 0, "more arrivals at a barrier than it counts"
        if not self.pending and not self.bytes:
            self.phases, self.pending = self.phases + 1, self.count


class Barriers(list[Barrier]):
    def index(self, i: Any) -> Barrier:  # type: ignore[override]
        return self[i]


@lru_cache(4096)
def _chunks(rows: int, columns: int, width: int, first: int, start: int) -> tuple[Tensor, int]:
    """Addresses of [rows, columns] chunks of 16 bytes in panels `width` chunks wide, from chunk `first` on, and the
    largest of them. 2, 4 or 8 chunks lie in a pattern: bits 7 to 9 of an address, counted from `start` chunks before
    the first one, are added to bits 4 to 6."""
    row, column = torch.arange(rows)[:, None], torch.arange(columns)
    linear = start + (column // width * rows + row) * width + column % width
    found = first - start + (linear ^ (linear >> 3) % width)
    return found, int(found.max())


class Shared:
    """A view of shared memory as a matrix in rows, of which the dimensions of `shape` before the last are one."""

    def __init__(
        self, sm: "Multiprocessor", room: range, dtype: Any, shape: Sequence[int], layout: Any, swapped: bool = False
    ) -> None:
        self.sm, self.room, self.dtype, self.shape, self.swapped = sm, room, dtype, list(shape), swapped
        self.size, self.layout = dtype.primitive_bitwidth // 8, layout

    def _with(self, at: int = 0, **changes: Any) -> "Shared":
        fields = {"dtype": self.dtype, "shape": self.shape, "layout": self.layout, "swapped": self.swapped}
        return Shared(self.sm, self.room[at:], **fields | changes)

    def index(self, i: Any) -> "Shared":
        return self._with(int(i) * math.prod(self.shape[1:]) * self.size, shape=self.shape[1:])

    def slice(self, start: int, length: int) -> "Shared":
        """As only Triton 3.9 and newer can view it: nothing beyond its end is read or written."""
        found = self._with(start * math.prod(self.shape[1:]) * self.size, shape=[length, *self.shape[1:]])
        found.room = found.room[: math.prod(found.shape) * self.size]
        return found

    def reinterpret(self, dtype: Any, shape: Sequence[int], layout: Any) -> "Shared":
        return self._with(dtype=dtype, shape=list(shape), layout=layout)

    def reshape(self, shape: Sequence[int]) -> "Shared":
        assert math.prod(shape) == math.prod(self.shape)
        assert shape[-1] == self.shape[-1], "not implemented: rows of another length"
        return self._with(shape=list(shape))

    def permute(self, order: Sequence[int]) -> "Shared":
        assert (tuple(order), len(self.shape)) == ((1, 0), 2), "not implemented: other orders"
        return self._with(swapped=not self.swapped)

    def chunks(self, own: bool) -> Tensor:
        """Addresses of the matrix's chunks: those of TMA and wgmma or, if `own`, those of Gluon's loads and stores,
        which count rows from the start of the matrix."""
        rows, columns = math.prod(self.shape[:-1]), self.shape[-1] * self.size // 16
        width = self.layout.swizzle_byte_width // 16
        assert width in (2, 4, 8), "not implemented: no swizzle"
        first, start = self.room.start // 16, 0 if own else self.room.start // 16 % 64
        found, last = _chunks(rows, columns, min(columns, width), first, start)
        assert last < self.room.stop // 16, "beyond the end of the allocation"
        return found

    def read(self, own: bool = False) -> Tensor:
        chunks = self.chunks(own)
        found = self.sm.memory[chunks]
        if not own and self.sm.is_unfenced(chunks):
            found = torch.where(self.sm.unfenced[chunks] > 0, UNKNOWN, found)
        matrix = found.view(DTYPES[self.dtype]).view(self.shape)
        return matrix.T if self.swapped else matrix

    def write(self, x: Tensor, own: bool = False) -> None:
        x = (x.T if self.swapped else x).contiguous()
        assert OF_TORCH[x.dtype] == self.dtype
        chunks = self.chunks(own)
        assert own or not self.sm.is_unfenced(chunks), "TMA overwrites what was written without a fence"
        assert not self.sm.read[chunks].any(), "products of other warps may still read what is overwritten"
        self.sm.memory[chunks] = x.view(torch.complex128).view(chunks.shape)
        if own:
            self.sm.unfenced[chunks] = self.sm.partition.number
            self.sm.any_unfenced = True

    def load(self, _layout: Any) -> Value:
        self.sm.step()
        self.sm.partition.together = False
        return value(self.read(own=True))

    def store(self, x: Value) -> None:
        self.sm.step()
        self.sm.partition.together = False
        self.write(x.as_subclass(Tensor), own=True)


def unless_changed(before: Tensor, after: Tensor) -> Tensor:
    """`before`, with NaN where the bits of the two differ."""
    bits = INTEGERS[before.itemsize]
    found, now = before.contiguous().view(bits), after.contiguous().view(bits)
    if torch.equal(found, now):
        return before
    return torch.where(found == now, found, -1 if bits.is_signed else 0xFF).view(before.dtype)


class Product:
    """A sum of products that `wgmma` computes while the warps go on."""

    def __init__(self, left: Any, right: Shared, to: "Value | Product") -> None:
        self.operands = [(x.read(), x) if isinstance(x, Shared) else (x, None) for x in (left, right)]
        if right.size == 1:
            assert right.swapped, "wgmma takes 8 bits only with the summed dimension contiguous"
        self.to, self.result = to, None

    def finish(self) -> None:
        for _, of in self.operands:
            if of is not None:
                of.sm.partition.together = False
                # Without the last rows: those behind a tile are read for columns that are not stored.
                of.sm.read[of.chunks(own=False)[:-2]] = of.sm.partition.number
        left, right = (x if of is None else unless_changed(x, of.read()) for x, of in self.operands)
        to = self.to.result if isinstance(self.to, Product) else self.to
        self.result = value(left.as_subclass(Tensor).float() @ right.float() + to)


class Partition(greenlet):
    """Warps that run the same code, with their own asynchronous operations."""

    def __init__(self, number: int, run: Callable[[], None]) -> None:
        super().__init__(run)
        self.number, self.ready, self.doing, self.waited = number, lambda: True, "starts", False
        self.together = True  # none of the warps is behind in shared memory
        self.products: list[Product] = []
        self.stores: list[tuple[Tensor, Tensor, Shared, tuple[slice, ...]]] = []


class Order(NamedTuple):
    """What a GPU leaves open."""

    partitions: int
    """Which one runs if several can: 1 for the first, -1 for the last."""
    load: int
    """Which load arrives first: 0 for the oldest, -1 for the newest."""
    programs: int
    """1 or -1: from the first or from the last."""


ORDERS = Order(-1, 0, 1), Order(1, -1, -1)


class Multiprocessor:
    """What runs one program."""

    def __init__(self, program: int, programs: int, order: Order) -> None:
        self.program, self.programs, self.order = program, programs, order
        self.memory = UNKNOWN.repeat(SHARED // 16)
        self.unfenced = torch.zeros(SHARED // 16, dtype=torch.uint8)  # by which partition
        self.any_unfenced = False
        self.read = torch.zeros(SHARED // 16, dtype=torch.uint8)  # by products of which partition, since its barrier
        self.used = 0
        self.loads: list[tuple[Barrier, Shared, Tensor]] = []
        self.issued: list[int] = []  # the partition of each product
        self.partitions: list[Partition] = []

    @property
    def partition(self) -> Partition:
        found = getcurrent()
        assert isinstance(found, Partition)
        return found

    def run(self, kernel: Callable[[], None]) -> None:
        self.partitions = [Partition(1, kernel)]
        while alive := [p for p in self.partitions if not p.dead]:
            ready = [p for p in alive if p.ready()]
            if ready:
                min(ready, key=lambda p: self.order.partitions * p.number).switch()
            else:
                assert self.loads, "deadlock: " + ", ".join(f"partition {p.number} {p.doing}" for p in alive)
                barrier, to, x = self.loads.pop(self.order.load)
                to.write(x)
                barrier.arrive(0, -x.nbytes)
        assert not self.loads, "the kernel ends while a load is in flight"
        unfinished = [p for p in self.partitions if p.stores or p.products]
        assert not unfinished, "the kernel ends while a store or a product is in flight"

    def step(self, ready: Callable[[], bool] = lambda: True, doing: str = "runs") -> None:
        """Let other warps run, at least until this one is ready."""
        self.partition.ready, self.partition.doing = ready, doing
        self.partition.parent.switch()

    def is_unfenced(self, chunks: Tensor) -> bool:
        """Whether one of these chunks was written without a fence since."""
        return self.any_unfenced and bool(self.unfenced[chunks].any())

    # What kernels call, by the names in Gluon.

    def wait_for_previous_launch(self) -> None:
        self.step()
        self.partition.waited = True

    def load(self, p: Pointer, **mask: Any) -> Value:
        assert self.partition.waited, "a load before the previous launch has ended"
        return load(p, **mask)

    def store(self, p: Pointer, x: Value, **mask: Any) -> None:
        assert self.partition.waited, "a store before the previous launch has ended"
        store(p, x, **mask)

    def allocate_shared_memory(self, dtype: Any, shape: Sequence[int], layout: Any) -> Any:
        if isinstance(layout, hopper.mbarrier.MBarrierLayout):
            return Barriers(Barrier() for _ in range(shape[0]))
        first = -(-self.used // 1024) * 1024
        self.used = first + math.prod(shape) * dtype.primitive_bitwidth // 8
        assert self.used <= SHARED, f"{self.used} bytes of shared memory"
        return Shared(self, range(first, self.used), dtype, shape, layout)

    def warp_specialize(self, partitions: Sequence[tuple[Any, Any]], _warps: Any, _registers: Any) -> None:
        new = [Partition(i, lambda f=f, a=a: f(*a)) for i, (f, a) in enumerate(partitions, 1)]
        self.partitions += new
        self.step(lambda: all(p.dead for p in new), "waits for its partitions")

    def init(self, bar: Barrier, count: int) -> None:
        bar.count = bar.pending = count

    def expect(self, bar: Barrier, nbytes: int) -> None:
        self.step()
        bar.arrive(1, nbytes)

    def arrive(self, bar: Barrier, *, count: int = 1) -> None:
        self.step()
        assert self.partition.together, "one thread arrives before the other warps are done"
        bar.arrive(count)

    def wait(self, bar: Barrier, phase: Any) -> None:
        self.step(lambda: bar.phases % 2 != phase, f"waits for phase {int(phase)} of a barrier in phase {bar.phases}")

    def async_load(self, of: Descriptor, coordinates: Sequence[Any], bar: Barrier, to: Shared) -> None:
        self.step()
        assert self.partition.waited or of.constant, "a load before the previous launch has ended"
        assert to.room.start % 128 == 0, "TMA needs 128 bytes"
        assert (of.dtype, math.prod(of.block_type.shape)) == (to.dtype, math.prod(to.shape))
        x = torch.zeros(of.block_type.shape, dtype=of.image.dtype)
        inside, place = of.box(coordinates)
        x[place] = inside
        to.write(UNKNOWN.repeat(x.nbytes // 16).view(x.dtype).view(to.shape))
        self.loads.append((bar, to, x.view(to.shape)))

    def async_store(self, to: Descriptor, coordinates: Sequence[Any], of: Shared) -> None:
        self.step()
        assert self.partition.waited, "a store before the previous launch has ended"
        assert of.room.start % 128 == 0, "TMA needs 128 bytes"
        assert (of.dtype, math.prod(of.shape)) == (to.dtype, math.prod(to.block_type.shape))
        inside, place = to.box(coordinates)
        self.partition.stores.append((inside, of.read(), of, place))

    def store_wait(self, pendings: int) -> None:
        self.step()
        stores = self.partition.stores
        while len(stores) > pendings:
            inside, before, of, place = stores.pop(0)
            inside.copy_(unless_changed(before, of.read())[place])
        self.thread_barrier()  # which Triton adds

    def warpgroup_mma(self, a: Any, b: Shared, acc: Any, *, is_async: bool = False) -> Any:
        self.step()
        product = Product(a, b, acc)
        self.issued.append(self.partition.number)
        self.partition.products.append(product)
        return product if is_async else self.warpgroup_mma_wait(0, (product,))

    def warpgroup_mma_wait(self, num_outstanding: int = 0, deps: Sequence[Any] = ()) -> Any:
        self.step()
        while len(self.partition.products) > num_outstanding:
            self.partition.products.pop(0).finish()
        # What is still in flight can be added to, and nothing else.
        found = tuple(x.result if isinstance(x, Product) and x.result is not None else x for x in deps)
        return found if len(found) > 1 else found[0]

    def thread_barrier(self) -> None:
        self.partition.together = True
        self.read[self.read == self.partition.number] = 0

    def fence_async_shared(self) -> None:
        self.step()
        self.unfenced[self.unfenced == self.partition.number] = 0
        self.any_unfenced = bool(self.unfenced.any())


class Overlay:
    """A module of Gluon with some of its names replaced: dtypes and layouts remain."""

    def __init__(self, real: Any, **ours: Any) -> None:
        self.real = real
        vars(self).update(ours)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


def language(sm: Multiprocessor) -> Overlay:
    def integer(x: int) -> Value:
        return value(torch.tensor(x, dtype=torch.int32))

    return Overlay(
        gl,
        program_id=lambda axis: integer((sm.program, 0, 0)[axis]),
        num_programs=lambda axis: integer((sm.programs, 1, 1)[axis]),
        cdiv=lambda a, b: -(-a // b),
        static_range=range,
        arange=lambda start, end, layout=None: value(torch.arange(start, end, dtype=torch.int32)),  # noqa: ARG005
        zeros=lambda shape, dtype, layout=None: value(torch.zeros(shape, dtype=DTYPES[dtype])),  # noqa: ARG005
        where=torch.where,
        maximum=torch.maximum,
        sum=lambda x, axis: x.sum(axis),
        convert_layout=lambda x, layout: x,  # noqa: ARG005
        load=sm.load,
        store=sm.store,
        allocate_shared_memory=sm.allocate_shared_memory,
        warp_specialize=sm.warp_specialize,
    )


def _range(*limits: Any) -> Iterator[Value]:
    return (value(torch.tensor(i, dtype=torch.int32)) for i in range(*limits))


@lru_cache(None)
def _code(source: str, path: str) -> CodeType:
    return compile(source, path, "exec", __future__.annotations.compiler_flag)


def _in_python(kernel: Any, sm: Multiprocessor, edit: Callable[[str], str]) -> Callable[..., Any]:
    """The kernel and all that it calls as functions of Python, from their source after `edit`."""
    replaced = {
        id(gl): language(sm),
        id(hopper.mbarrier): Overlay(hopper.mbarrier, init=sm.init, expect=sm.expect, arrive=sm.arrive, wait=sm.wait),
        id(hopper.tma): Overlay(
            hopper.tma,
            store_wait=sm.store_wait,
        ),
        id(hopper.warpgroup_mma): sm.warpgroup_mma,
        id(hopper.warpgroup_mma_wait): sm.warpgroup_mma_wait,
        id(hopper.fence_async_shared): sm.fence_async_shared,
        id(gluon_private.async_load): sm.async_load,
        id(gluon_private.async_store): sm.async_store,
        id(gluon_private.reinterpret): Shared.reinterpret,
        id(gluon_private.thread_barrier): sm.thread_barrier,
        id(wait_for_previous_launch): sm.wait_for_previous_launch,
    }
    modules: dict[int, dict[str, Any]] = {}

    def translated(x: Any) -> Any:
        if isinstance(x, gl.constexpr):
            return x.value
        return replaced[id(x)] if id(x) in replaced else function(x) if hasattr(x, "is_gluon") else x

    def function(jit: Any) -> Callable[..., Any]:
        real = jit.fn.__globals__
        if id(real) not in modules:
            names = modules[id(real)] = {"range": _range}
            ours = {name: x for name, x in real.items() if not name.startswith("__")}
            names |= {name: x.value for name, x in ours.items() if isinstance(x, gl.constexpr)}  # defaults of functions
            names |= {name: translated(x) for name, x in ours.items()}
        names = modules[id(real)]
        if getattr(names.get(jit.__name__), "of", None) is not jit:
            code = jit.fn.__code__
            source = "\n" * code.co_firstlineno + edit(jit.src)  # an error names the line
            exec(_code(source, code.co_filename), names)
            names[jit.__name__].of = jit
        return names[jit.__name__]

    return function(kernel)


def launch(
    otherwise: Any,
    kernel: Any,
    grid: tuple[int, ...],
    arguments: dict[str, Any],
    *,
    order: Order = ORDERS[0],
    edit: Callable[[str], str] = lambda source: source,
    issued: list[list[int]] | None = None,
) -> None:
    """Run all programs of a Gluon kernel, one after the other; launch other kernels as usual.

    For each program, the partitions of its products are added to `issued`, in their order.
    """
    if not hasattr(kernel, "is_gluon"):
        otherwise(kernel, grid, arguments)
        return

    def argument(name: str) -> Any:
        x = arguments[name]
        if isinstance(x, TensorDescriptor):
            return Descriptor(x)
        if isinstance(x, Tensor):
            return Pointer(x)
        constant = kernel.params[kernel.arg_names.index(name)].is_constexpr
        return x if constant or not isinstance(x, int) else value(torch.tensor(x, dtype=torch.int32))

    for program in range(grid[0])[:: order.programs]:
        sm = Multiprocessor(program, grid[0], order)
        run = _in_python(kernel, sm, edit)
        sm.run(lambda run=run: run(**{name: argument(name) for name in kernel.arg_names}))
        if issued is not None:
            issued.append(sm.issued)
