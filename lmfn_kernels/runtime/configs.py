"""How a kernel is launched: a heuristic, and over it a table a device that tuning writes.

A table is `configs/<device>.json` in this package, the device's name in lower case with dashes, and maps
`kernel/dtype/bits` to the fields of `Config`; bits is the number of binary digits of B H W, so that a new crop size
finds the entry of its like. Nothing tunes at a first call; a device without a table gets the heuristic.
"""

import json
from functools import cache
from importlib import resources
from typing import NamedTuple

import torch
from torch import Tensor


class Config(NamedTuple):
    """Rows and columns of a tile of pixels, warps, pipeline stages, partial sums that a sum over pixels is split in."""

    height: int = 8
    width: int = 16
    warps: int = 4
    stages: int = 3
    splits: int = 128


def config(kernel: str, x: Tensor) -> Config:
    """The config for a kernel on `x` [B, C, H, W].

    Shape, dtype and device alone decide, so that a call's result does not depend on what ran before.
    """
    name, shared = describe(x.device)
    if name == "cpu":
        return Config(stages=1, splits=3)
    table = {} if torch.are_deterministic_algorithms_enabled() else tuned(name)
    bits = int(x.shape[0] * x.shape[2] * x.shape[3]).bit_length() if table else 0
    key = f"{kernel}/{str(x.dtype).removeprefix('torch.')}/{bits}"
    return table[key] if key in table else heuristic(kernel, x.dtype, shared)


def heuristic(kernel: str, dtype: torch.dtype, shared: int) -> Config:
    """What to do without a measurement, given a multiprocessor's shared memory in bytes.

    `python -m bench resources` compiles each: what spills or needs too much memory is a fault there.
    """
    big = shared >= 200_000
    if kernel in ("gram", "product"):
        # Triton 3.6 cannot pipeline `product` for sm_100.
        stages = 3 if big and dtype.itemsize == 2 and kernel == "gram" else 1
        return Config(height=8 if big else 2, width=8, warps=8, stages=stages, splits=32)
    if kernel == "mix" and dtype.itemsize == 4:
        return Config(height=8 if big else 2, width=8, warps=8, stages=1)
    if kernel in ("channel_gate", "channel_gate_backward"):
        small = 2 if kernel == "channel_gate_backward" else 4
        large = 8 if dtype.itemsize == 2 else 4
        return Config(height=large if big else small, width=8, warps=8, stages=1, splits=512)
    if kernel in ("gate_backward", "fuse_backward", "weight_gradient"):
        # Where there is no TMA, every element's address is in a register: small tiles.
        pipelined = big and dtype.itemsize == 2 and kernel != "fuse_backward"
        warps = 4 if big and kernel == "fuse_backward" else 8
        height = 2 if not big else 8 if dtype.itemsize == 2 else 4
        return Config(height, width=8, warps=warps, stages=2 if pipelined else 1)
    if not big:
        short = dtype.itemsize == 2
        return Config(height=4 if short else 2, width=16, warps=8, stages=2 if short and shared >= 100_000 else 1)
    return Config(stages=3 if dtype.itemsize == 2 else 2)


@cache
def describe(device: torch.device) -> tuple[str, int]:
    """A device's name as tables are called, and the bytes of shared memory that one program can have."""
    if device.type == "cpu":
        return "cpu", 0
    properties = torch.get_device_module(device).get_device_properties(device)
    shared = getattr(properties, "shared_memory_per_block_optin", 65536)
    return properties.name.lower().replace(" ", "-"), shared


@cache
def tuned(device: str) -> dict[str, Config]:
    path = resources.files("lmfn_kernels") / "configs" / f"{device}.json"
    if not path.is_file():
        return {}
    return {key: Config(**fields) for key, fields in json.loads(path.read_text()).items()}
