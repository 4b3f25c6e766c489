"""FP8 for inference: which maps are stored as e4m3, and their scales.

Stored are the maps that one 3x3 convolution of 33 to 64 channels writes and only another one reads: those inside
residual blocks, and the results of the first two stages of RFDBs. They halve what the second convolution reads, and its
products take half the time. All other maps are in 16 bits.
"""

import copy
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmfn.network.blocks import DECODER_SLOPE, RB, RFDB, weight_and_bias
from lmfn.network.model import Network
from lmfn_kernels import distill_stage, power_of_two, scaled


def chart() -> Tensor:
    """An image `[1, 3, 256, 256]` with every frequency, direction, contrast and colour: noise, rings and stripes, from
    blurred to sharp."""
    draw = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, 256),) * 2, indexing="ij")
    rings = 0.5 + 0.5 * torch.cos(64 * (x * x + y * y) + torch.arange(3).view(3, 1, 1))
    noise = torch.zeros(3, 256, 256)
    for size in (4, 8, 16, 32, 64, 128, 256):
        coarse = torch.rand(1, 3, size, size, generator=draw)
        noise += F.interpolate(coarse, (256, 256), mode="nearest")[0] / 7
    noise = ((noise - 0.5) * 4 + 0.5).clamp(0, 1)
    stripes = ((x * 32).round() % 2).expand(3, 256, 256)
    parts = torch.where(y < -0.3, rings, torch.where(y < 0.4, noise, stripes))[None]
    return torch.where(x < 0, F.avg_pool2d(parts, (1, 9), 1, (0, 4)), parts)


@torch.no_grad()
def store_as_e4m3(model: Network, dtype: torch.dtype) -> None:
    """Let a network in float32 store these maps as e4m3, and all others in `dtype`. It then has no gradients.

    Their scales hold 8 times the values that they reach on `chart`. Raises ValueError if no map can be stored so.
    """
    blocks = {name: block for name, block in model.named_modules() if isinstance(block, (RB, RFDB))}
    blocks = {name: block for name, block in blocks.items() if 32 < inputs_of(block) <= 64}
    if not blocks:
        raise ValueError(
            f"FP8 needs 33 to 64 channels, and the network has {model.config.channels} and {model.config.features}; "
            "use bfloat16"
        )
    scales = calibrate(model, list(blocks))
    for name, block in blocks.items():
        if isinstance(block, RB):
            (s,) = scales[name]
            conv1, conv2 = map(weight_and_bias, (block.conv1, block.conv2))
            block.e4m3 = scaled(conv1, dtype, to=s), scaled(conv2, dtype, s)
            continue
        block.e4m3, of = [], None
        for distil, refine, to in zip(block.distil, block.refine, [*scales[name], 1.0], strict=True):
            convs = weight_and_bias(distil), weight_and_bias(refine)
            block.e4m3.append((scaled(convs[0], dtype, of), scaled(convs[1], dtype, of, to, residual=True)))
            of = to


def inputs_of(block: RB | RFDB) -> int:
    conv = block.conv1 if isinstance(block, RB) else cast(nn.Conv2d, block.refine[0])
    return conv.in_channels


@torch.no_grad()
def calibrate(model: Network, names: list[str]) -> dict[str, list[float]]:
    """The scales of the maps of the blocks of these names, on a CPU and so the same on every device."""
    scales: dict[str, list[float]] = {}
    model = copy.deepcopy(model).cpu()

    def scale_of(y: Tensor) -> float:
        return power_of_two(float(y.abs().max()))

    def look_into(name: str, block: RFDB, x: Tensor) -> None:
        scales[name] = []
        for distil, refine in list(zip(block.distil, block.refine, strict=True))[:2]:
            x, _ = distill_stage(x, weight_and_bias(distil), weight_and_bias(refine), DECODER_SLOPE)
            scales[name].append(scale_of(x))

    for name in names:
        block = model.get_submodule(name)
        if isinstance(block, RB):
            block.watch = lambda hidden, name=name: scales.update({name: [scale_of(hidden)]})
        else:
            block.register_forward_pre_hook(lambda block, given, name=name: look_into(name, block, given[0]))
    model(chart())
    return scales
