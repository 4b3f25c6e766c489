"""The whole network as an op whose tensors are the image and all parameters."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import lmfn_kernels
from bench.rows import Shape
from lmfn.network import Network
from lmfn_kernels.runtime.torch_private import FakeTensorMode


def network(shape: Shape, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Network:
    """A network with `shape.n` RFDBs and `shape.c` channels in the decoder.

    Its attention weights, which are initialised to 0, are set to 0.1 to have an effect.
    """
    made = Network.from_preset("lmfn", rfdbs=shape.n, features=shape.c, distilled=max(1, shape.c // 2))
    for name, parameter in made.named_parameters():
        if name.endswith((".theta", ".alpha")):
            torch.nn.init.constant_(parameter, 0.1)
    return made.to(device, dtype).eval()


def image(shape: Shape, dtype: torch.dtype, device: str) -> Tensor:
    return torch.rand(shape.b, 3, shape.h, shape.w, dtype=torch.float64).to(device, dtype)


def tensors(shape: Shape, dtype: torch.dtype, device: str) -> list[Tensor]:
    """The image, the parameters, and the only buffer, the RGB mean."""
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
    """Per pixel: operations of the formula, counted at 256x256, and values that forward and backward move at least:
    three read and three written, and half as much again."""
    small, mode = replace(shape, b=1, h=256, w=256), FakeTensorMode(allow_non_fake_inputs=True)
    call = function(small)
    on = [mode.from_tensor(t) for t in tensors(small, torch.float32, "cpu")]
    with mode, lmfn_kernels.backend("reference"), FlopCounterMode(display=False) as counter:
        call(*on)
    return counter.get_total_flops() / (small.h * small.w), 6, 9
