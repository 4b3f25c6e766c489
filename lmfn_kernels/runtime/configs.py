"""Launch configs of kernels, and choice of backends of ops: a heuristic, overridden by a table per device.

A table is `configs/<device>.json` in this package, written by tuning; `<device>` is the name from `describe`, in lower
case with dashes for spaces. It is one object with two optional members:

    {
      "launch": {"conv/bfloat16/16": {"height": 8, "width": 16, "warps": 4, "stages": 3, "splits": 128}},
      "backend": {"rfdb/bfloat16/12": "torch"}
    }

`launch` maps `kernel/dtype/bits` to the fields of `Config`, with defaults for omitted ones. `kernel` is the name that
the launcher passes to `config`, `dtype` is float32, float16 or bfloat16, and `bits` is the number of binary digits of
B H W of the launcher's image, so that new crop sizes share the entry of similar ones.

`backend` maps `op/dtype/bits`, with the name of the public function (`attention_merge` for `channel_gate` with a
`LayerAttention`), the dtype it computes in and its first image, to `torch` if PyTorch's own kernels (cuDNN) are faster,
or to `triton`, the default. Only backend `auto` on a GPU consults it.

Nothing is tuned on a first call. Devices without a table, and deterministic mode (`torch.use_deterministic_algorithms`)
on any device, use the heuristic.
"""

import json
from collections.abc import Callable
from functools import cache, partial
from importlib import resources
from typing import NamedTuple

import torch
from torch import Tensor

from lmfn_kernels.runtime.autocast import compute_dtype
from lmfn_kernels.runtime.torch_private import FakeTensor, constant_when_compiled

TABLE_BACKENDS = ("triton", "torch")


class Config(NamedTuple):
    """Rows and columns of a tile of pixels, warps, pipeline stages, and the largest number of partial sums of a sum
    over pixels."""

    height: int = 8
    width: int = 16
    warps: int = 4
    stages: int = 3
    splits: int = 128


INTERPRETED = Config(stages=1, splits=3)


class Device(NamedTuple):
    """What of a device determines the configs of kernels on it."""

    name: str
    """As in the name of its table."""
    capability: int
    """Of an NVIDIA GPU, 90 for sm_90; 0 of another device."""
    shared: int
    """Bytes of shared memory available to one program."""


def config(kernel: str, x: Tensor) -> Config:
    """The config for a kernel on `x` [B, C, H, W].

    It depends only on shape, dtype and device, so that a call's result does not depend on earlier calls.
    """
    device = describe(x.device)
    if device.name == "cpu" or isinstance(x, FakeTensor):  # a fake has symbols for sizes, and launches nothing
        return INTERPRETED
    bits = (x.shape[0] * x.shape[2] * x.shape[3]).bit_length()
    table = {} if torch.are_deterministic_algorithms_enabled() else tuned(device.name).launch
    if table:
        key = f"{kernel}/{short(x.dtype)}/{bits}"
        if key in table:
            return table[key]
    return heuristic(kernel, x.dtype, device, bits)


def torch_is_faster(op: str, x: Tensor) -> bool:
    """Whether the table of the device of `x` [B, C, H, W] selects the `torch` backend for an op on it.

    Under autocast, the entries for its dtype count, in which the op computes.
    """
    if torch.are_deterministic_algorithms_enabled():
        return False
    # Compared, not converted: a compiler for any size turns this into a guard on a range of sizes.
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    return any(2 ** (bits - 1) <= pixels < 2**bits for bits in _faster_in_torch(op, compute_dtype(x), x.device))


@constant_when_compiled
def _faster_in_torch(op: str, dtype: torch.dtype, device: torch.device) -> tuple[int, ...]:
    """The `bits` of the table's entries that select PyTorch for the op in that dtype."""
    backend = tuned(describe(device).name).backend
    if not backend:
        return ()
    start = f"{op}/{short(dtype)}/"
    return tuple(int(key.removeprefix(start)) for key in backend if key.startswith(start) and backend[key] == "torch")


def short(dtype: torch.dtype) -> str:
    """The name of a dtype in tables."""
    return str(dtype).removeprefix("torch.")


@cache
def heuristic(kernel: str, dtype: torch.dtype, device: Device, bits: int) -> Config:
    """The config if nothing was measured; `bits` is the number of binary digits of B H W.

    `python -m bench resources` compiles each of them and reports spills and excessive shared memory.
    """
    return HEURISTICS[kernel](_Case(dtype.itemsize == 2, device.shared, device.capability, bits))


class _Case(NamedTuple):
    """What the heuristic of a kernel depends on."""

    short: bool
    """Whether values have 16 bits; otherwise they have more."""
    shared: int
    """As in `Device`, as is `capability`."""
    capability: int
    bits: int
    """The number of binary digits of B H W."""

    @property
    def big(self) -> bool:
        """Whether tiles fit that need the shared memory of sm_90."""
        return self.shared >= 200_000

    def warps(self, *, many_registers: bool = False) -> int:
        """On gfx942, 4 warps have 512 registers per lane, 8 have 256."""
        return 4 if (many_registers or not self.short) and self.shared <= 65_536 else 8


def _common(case: _Case, *, stages: int = 2, many_registers: bool = False) -> Config:
    """The config of kernels that need no other; `stages` is the most for 16 bits where there is less shared memory."""
    if case.big:
        return Config(stages=3 if case.short else 2)
    stages = stages if case.short and case.shared >= 100_000 else 1
    return Config(height=4 if case.short else 2, warps=case.warps(many_registers=many_registers), stages=stages)


def _conv(case: _Case) -> Config:
    if not case.big:
        return _common(case, stages=3)  # on sm_120, some spill with 2
    if case.short and case.bits > 15:
        return _conv_of_large_images()
    if case.capability >= 100:
        return Config(stages=2)  # with 3 stages, an input gradient spills in float16
    return _common(case)


def _conv_down(case: _Case) -> Config:
    # On sm_120, with the 3 stages of `_conv`, it spills.
    return _conv_of_large_images() if case.big and case.short and case.bits > 15 else _common(case)


def _conv_of_large_images() -> Config:
    # Of 11 tiles the fastest on an H100 at 1x180x320 and 16x64x64, 64 channels: 15.8 us; 8x16 took 18.8. With fewer of
    # them than multiprocessors, 8x16 is faster: 6.7 us, where 8x32 takes 8.4 (H200), at 1x90x160.
    return Config(width=32, warps=8)


def _stride_2_input_gradient(case: _Case) -> Config:
    return Config(stages=2) if case.big else _common(case)  # with 3 stages, it spills on sm_100 in float16


def _recompute(case: _Case) -> Config:
    found = _common(case)
    return found._replace(warps=4) if case.short and case.shared < 120_000 else found  # on sm_120, 8 warps spill


def _stem(case: _Case) -> Config:
    found = _common(case, many_registers=True)
    return found._replace(height=4, width=32) if case.big else found  # a warp loads 32 pixels of a row at once


def _stem_backward(case: _Case) -> Config:
    if not case.short:  # on sm_120, 2x8 spills
        return Config(height=1, width=16, warps=case.warps(many_registers=True), stages=1)
    if case.big:
        # Of five times 52 programs, two fit a multiprocessor of an H100 at a time, which has 132.
        return Config(height=8, width=8, stages=2, splits=52)
    return Config(height=4 if case.shared >= 120_000 else 2, width=8, stages=1)  # larger tiles spill


def _upsample_add(case: _Case) -> Config:
    return _common(case)._replace(height=4, warps=8) if case.big else _common(case)


def _upsampled_conv(case: _Case) -> Config:
    if not case.big:
        return _common(case)
    # In float32 on sm_100, tiles of 8x16 spill.
    return _common(case)._replace(height=4 if case.capability >= 100 and not case.short else 8, warps=8)


def _upsample_backward(case: _Case) -> Config:
    return Config(height=4 if case.short else 2)


def _of_partial_sums(case: _Case, *, stages: int) -> Config:
    """For sums over pixels, with `stages` where 16 bits and much shared memory allow it.

    Small tiles where there is less shared memory.
    """
    wide = case.big and case.short
    height = (8 if wide else 4) if case.big else 2
    return Config(height, width=8, warps=case.warps(), stages=stages if wide else 1)


def _weight_gradient(case: _Case) -> Config:
    return _of_partial_sums(case, stages=2)


def _fuse_backward(case: _Case) -> Config:
    found = _of_partial_sums(case, stages=3)
    return found if case.big else found._replace(warps=4)


def _gate_backward(case: _Case) -> Config:
    found = _of_partial_sums(case, stages=2)
    # Two programs of 4 warps, for 8 would compute every product twice; their partial sums are small.
    return found._replace(warps=4 if case.big and case.short else found.warps, splits=256)


def _small_maps(case: _Case) -> Config:
    """The smallest tiles that fill the rows of a matrix instruction, for as many programs as possible."""
    # In float32 on sm_80, `low_convs` spills with four warps.
    return Config(height=4, width=4, warps=2, stages=4 if case.short and case.shared >= 100_000 else 1)


def _conv_pool(case: _Case) -> Config:
    return _small_maps(case)._replace(width=9, warps=2 if case.short else 4)


def _low_convs_backward(case: _Case) -> Config:
    return _small_maps(case)._replace(warps=2 if case.short else 8)  # in float32 on sm_80, 2 and 4 spill


def _product(case: _Case) -> Config:
    side = 8 if case.big else 4
    # In float32, 64 pixels spill: the slots' transposes are in registers, in three parts each.
    height = side if case.short else 4
    # 128 splits by default: with 32, a single frame would occupy only 32 of an H100's 132 multiprocessors.
    return Config(height, width=side, warps=8, stages=3 if case.big and case.short else 1)


def _mix(case: _Case) -> Config:
    return _common(case) if case.short else Config(height=8 if case.big else 2, width=8, warps=8, stages=1)


def _channel_gate(case: _Case) -> Config:
    height = 8 if case.big and case.short else 4
    return Config(height, width=8, warps=case.warps(many_registers=True), stages=1, splits=512)


def _merge(case: _Case) -> Config:
    found = _channel_gate(case)
    if case.big:
        return found
    return found._replace(warps=4) if case.short else found._replace(height=2)  # with 8, it spills on sm_80


def _channel_gate_gradient(case: _Case, *, splits: int) -> Config:
    return Config(height=4 if case.short else 2, width=8, stages=1, splits=splits)


HEURISTICS: dict[str, Callable[[_Case], Config]] = {
    # Four of one's programs and three of the other's fit a multiprocessor of an H100 at a time, which has 132.
    "channel_gate_backward": partial(_channel_gate_gradient, splits=512),
    "channel_gate_input": partial(_channel_gate_gradient, splits=384),
    "channel_gate": _channel_gate,
    "conv": _conv,
    "conv_down": _conv_down,
    "conv_pool": _conv_pool,
    "edge_weight_gradient": _common,
    "fuse": _common,
    "fuse_backward": _fuse_backward,
    "gate": _common,
    "gate_backward": _gate_backward,
    "gram": _product,
    "low_convs": _small_maps,
    "low_convs_backward": _low_convs_backward,
    "merge": _merge,
    "mix": _mix,
    "pool_backward": _common,
    "product": _product,
    "recompute": _recompute,
    "stem": _stem,
    "stem_backward": _stem_backward,
    "stride_2_input_gradient": _stride_2_input_gradient,
    "upsample_add": _upsample_add,
    "upsample_backward": _upsample_backward,
    "upsampled_conv": _upsampled_conv,
    "weight_gradient": _weight_gradient,
}
"""By the name that the launcher passes to `config`."""


@cache
def describe(device: torch.device) -> Device:
    """What determines the configs on a device."""
    if device.type == "cpu":
        return Device("cpu", 0, 0)
    properties = torch.get_device_module(device).get_device_properties(device)
    shared = getattr(properties, "shared_memory_per_block_optin", 65536)
    nvidia = device.type == "cuda" and torch.version.hip is None
    capability = 10 * properties.major + properties.minor if nvidia else 0
    return Device(properties.name.lower().replace(" ", "-"), capability, shared)


@cache
def has_tf32(device: torch.device) -> bool:
    """Whether Triton has TF32 products for a device: of AMD's GPUs, for gfx942 alone."""
    if device.type != "cuda" or torch.version.hip is None:
        return True
    architecture: str = torch.cuda.get_device_properties(device).gcnArchName
    return architecture.startswith("gfx942")


class Table(NamedTuple):
    """The result of tuning for a device; the fields are the members of the file's object."""

    launch: dict[str, Config]
    backend: dict[str, str]


@cache
def tuned(device: str) -> Table:
    """The table of a device, empty if there is none.

    Raises ValueError naming the file and the entry that is wrong.
    """
    path = resources.files(__name__.partition(".")[0]) / "configs" / f"{device}.json"
    if not path.is_file():
        return Table({}, {})
    try:
        found = json.loads(path.read_text())
        for member in found.keys() - Table._fields:
            raise ValueError(f"{member!r} is none of {', '.join(Table._fields)}")
        launch = {key: _launch(key, fields) for key, fields in found.get("launch", {}).items()}
        backend = {key: _backend(key, name) for key, name in found.get("backend", {}).items()}
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: {error}; correct it, or remove the file to use the heuristic") from error
    return Table(launch, backend)


def _launch(key: str, fields: dict[str, int]) -> Config:
    _check_key(key)
    for name, value in fields.items():
        if name not in Config._fields or type(value) is not int or value < 1:
            raise ValueError(f"{key} has {name} = {value!r}; expected whole numbers for {', '.join(Config._fields)}")
    return Config(**fields)


def _backend(key: str, name: str) -> str:
    _check_key(key)
    if name not in TABLE_BACKENDS:
        raise ValueError(f"{key} is {name!r}; expected {' or '.join(TABLE_BACKENDS)}")
    return name


def _check_key(key: str) -> None:
    parts = key.split("/")
    if len(parts) != 3 or not parts[2].isdecimal():
        raise ValueError(f"an entry is named {key!r}; expected name/dtype/bits")
