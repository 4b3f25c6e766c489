"""Print what FP8 (e4m3) in the 3x3 convolutions costs, simulated in float32 with the shipped weights.

python experiments/kernels/fp8.py DATA    # a folder with blur/ and sharp/

Weights have a scale per output channel, maps one each: twice their largest value in one other frame of DATA, or, with
`--exact`, the largest in the image itself; all are rounded up to powers of two. For every form: the PSNR of three
frames and of a zone plate, and what it loses: the mean of the frames, and the zone plate.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import lmfn_kernels
from lmfn import LMFN, images
from lmfn.network import blocks
from lmfn_kernels import Conv, RFDBWeights

LARGEST = torch.finfo(torch.float8_e4m3fn).max
FORMS = {
    "float32": ("", "", "float32"),
    "bfloat16": ("", "", "bfloat16"),
    "hidden maps and the first two results of RFDBs": ("hidden", "between", "float32"),
    "the same, all else in bfloat16": ("hidden", "between", "bfloat16"),
    "hidden maps of residual blocks": ("hidden", "", "float32"),
    "the first two results of RFDBs": ("", "between", "float32"),
    "operands of all": ("operands", "operands", "float32"),
    "only e4m3 kept, all": ("kept", "kept", "float32"),
}
"""How residual blocks and RFDBs use e4m3, and the dtype of everything else."""


def power_of_two(x: Any) -> Any:
    """The next one, and for 0 a small one."""
    return torch.as_tensor(x).log2().ceil().clamp(min=-20).exp2()


class Simulation:
    """The ops of the network with e4m3 in the given places. Scales are by the order of the maps within a frame."""

    def __init__(self, residual_blocks: str, rfdbs: str) -> None:
        self.residual_blocks, self.rfdbs = residual_blocks, rfdbs
        self.largest: list[float] = []
        self.place: int | None = None

    def map(self, x: Tensor) -> Tensor:
        """`x` as e4m3 holds it; while the scales are still unknown, `x` itself."""
        if self.place is None:
            self.largest.append(float(x.abs().max()))
            return x
        scale = power_of_two(self.largest[self.place] / LARGEST)
        self.place += 1
        found: Tensor = (x / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn).float() * scale
        return found.to(x.dtype)

    def conv(self, x: Tensor, conv: Conv) -> Tensor:
        scale = power_of_two(conv.weight.abs().amax((1, 2, 3), keepdim=True) / LARGEST)
        weight = (conv.weight / scale).to(torch.float8_e4m3fn).float() * scale
        return F.conv2d(x, weight if self.place is not None else conv.weight, conv.bias, padding=weight.shape[2] // 2)

    def residual_block(self, x: Tensor, conv1: Conv, conv2: Conv, upsample: bool, **_: object) -> Tensor:
        if upsample:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        if self.residual_blocks == "hidden":
            return x + self.conv(self.map(F.relu(F.conv2d(x, *conv1, padding=1))), conv2)
        q = self.map(x)
        y = self.conv(self.map(F.relu(self.conv(q, conv1))), conv2)
        return y + (q if self.residual_blocks == "kept" else x)

    def rfdb(self, x: Tensor, w: RFDBWeights, slope: float, **options: bool) -> Tensor:
        maps = [x]
        for j, (distil, refine) in enumerate(zip(w.distil, w.refine, strict=True)):
            if j == 0 and self.rfdbs == "between":
                x, d = lmfn_kernels.distill_stage(x, distil, refine, slope)
            else:
                q = self.map(x)
                residual = x if self.rfdbs == "operands" else q
                d = F.leaky_relu(self.conv(q, distil), slope)
                x = F.leaky_relu(self.conv(q, refine) + residual, slope)
            maps[-1:] = d, x
        y, a = lmfn_kernels.distill_fuse(maps[-1], (maps[0], maps[1], maps[2]), w.distil_last, w.fuse, w.conv1, slope)
        v = F.relu(F.conv2d(F.max_pool2d(F.conv2d(a, *w.conv2, stride=2), 7, stride=3), *w.conv_max, padding=1))
        v = F.conv2d(F.relu(F.conv2d(v, *w.conv3, padding=1)), *w.conv3_, padding=1)
        return lmfn_kernels.esa_gate(y, a, v, w.conv_f, w.conv4, **options)

    def run(self, model: LMFN, blurred: Tensor) -> Tensor:
        block: Any = self.residual_block if self.residual_blocks else lmfn_kernels.residual_block
        rfdb: Any = self.rfdb if self.rfdbs else lmfn_kernels.rfdb

        def each(maps: Sequence[Tensor], *convs: Sequence[Conv], **_: bool) -> list[Tensor]:
            return [block(x, *of_one, upsample=False) for x, *of_one in zip(maps, *convs, strict=True)]

        def twice(*given: Any, **options: bool) -> tuple[Tensor, Tensor]:
            y = rfdb(*given, **options)
            return y, y

        with mock.patch.multiple(blocks, residual_block=block, residual_blocks=each, rfdb_for_two_uses=twice):
            sharp: Tensor = model(blurred)
        return sharp


def pair(path: Path | None) -> tuple[Tensor, Tensor]:
    """Blurred and sharp; None is a zone plate, whose frequency grows to an eighth of a cycle per pixel at its border,
    and its mean along a path of 9 pixels."""
    if path is None:
        y, x = torch.meshgrid(*(torch.linspace(-1, 1, 512),) * 2, indexing="ij")
        sharp = (0.5 + 0.45 * torch.cos(32 * torch.pi * (x * x + y * y))).expand(1, 3, 512, 512)
        return torch.stack([sharp.roll((i // 2, i), (2, 3)) for i in range(-4, 5)]).mean(0), sharp
    paths = path, path.parents[1] / "sharp" / path.name
    blurred, sharp = (torch.from_numpy(images.read(p).pixels.astype("float32")).permute(2, 0, 1)[None] for p in paths)
    return blurred, sharp


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--exact", action="store_true")
    options = parser.parse_args()
    paths = sorted((options.data / "blur").glob("*"))
    model, of_float32 = LMFN.from_pretrained(), None
    for form, (residual_blocks, rfdbs, dtype) in FORMS.items():
        simulation, found = Simulation(residual_blocks, rfdbs), []
        for path in (paths[2], *paths[0:13:6], None):
            blurred, sharp = pair(path)
            if options.exact or path == paths[2]:
                simulation.place, simulation.largest = None, []
                simulation.run(model, blurred)
                simulation.largest = [largest * (1 if options.exact else 2) for largest in simulation.largest]
            if path == paths[2]:
                continue
            simulation.place = 0
            with torch.autocast("cpu", enabled=dtype != "float32"):
                y = simulation.run(model, blurred).float().clamp(0, 1)
            found.append(float(-10 * torch.log10((y - sharp).square().mean())))
        of_float32 = of_float32 or found
        lost = np.subtract(of_float32, found)
        print(f"{form:46}", *(f"{p:.3f}" for p in found), f"lost {lost[:3].mean():.4f} {lost[3]:.4f}", flush=True)


if __name__ == "__main__":
    main()
