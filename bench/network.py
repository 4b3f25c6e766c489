"""The whole network, as an op among ops: its tensors are the image and then all parameters."""

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import lmfn_kernels
from bench.rows import Shape

if TYPE_CHECKING:
    from lmfn import LMFN

FOR_FILES = (
    "OpenImageIO",
    "huggingface_hub",
    "huggingface_hub.errors",
    "safetensors",
    "safetensors.torch",
    "tqdm",
    "tyro",
)
"""What `lmfn` imports to read and write files, and a machine that only measures may not have."""


class _StandIn(ModuleType):
    """In the place of a package that is not called here. Its names are classes that can be inherited from."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Exception,) if name.endswith("Error") else (), {"__init_subclass__": lambda _cls, **_: None})


def lmfn() -> ModuleType:
    """The package, also where what it needs for files alone is not installed."""
    missing = [name for name in FOR_FILES if name not in sys.modules and not _installed(name.partition(".")[0])]
    sys.modules.update({name: _StandIn(name) for name in missing})
    return importlib.import_module("lmfn")


def _installed(package: str) -> bool:
    return package in sys.modules or importlib.util.find_spec(package) is not None


def network(shape: Shape, dtype: torch.dtype = torch.float32, device: str = "cpu") -> "LMFN":
    """`shape`: n RFDBs, c channels in the decoder. Attentions that start at 0 are set to 0.1, so that they count."""
    made: LMFN = lmfn().LMFN.from_preset("lmfn", rfdbs=shape.n, features=shape.c, distilled=max(1, shape.c // 2))
    for name, parameter in made.named_parameters():
        if name.endswith((".theta", ".alpha")):
            torch.nn.init.constant_(parameter, 0.1)
    return made.to(device, dtype).eval()


def image(shape: Shape, dtype: torch.dtype, device: str) -> Tensor:
    return torch.rand(shape.b, 3, shape.h, shape.w, dtype=torch.float64).to(device, dtype)


def tensors(shape: Shape, dtype: torch.dtype, device: str) -> list[Tensor]:
    """The image, and the network's parameters and its one buffer, the mean of RGB."""
    made = network(shape, dtype, device)
    return [image(shape, dtype, device), *(t.detach() for t in (*made.parameters(), *made.buffers()))]


def function(shape: Shape) -> Callable[..., Tensor]:
    made = network(shape, device="meta")
    names = [name for name, _ in (*made.named_parameters(), *made.named_buffers())]

    def call(x: Tensor, *of: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(made, dict(zip(names, of, strict=True)), (x,))
        return result

    return call


@cache
def per_pixel(shape: Shape) -> tuple[float, float, float]:
    """Operations of the written formula at 256x256, and three values in and three out: the least that there are."""
    small, mode = replace(shape, b=1, h=256, w=256), FakeTensorMode(allow_non_fake_inputs=True)
    call = function(small)
    on = [mode.from_tensor(t) for t in tensors(small, torch.float32, "cpu")]
    with mode, lmfn_kernels.backend("reference"), FlopCounterMode(display=False) as counter:
        call(*on)
    return counter.get_total_flops() / (small.h * small.w), 6, 9
