"""The formulas of the ops in plain PyTorch. Shapes as in `op.py`."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lmfn_kernels.upsample.grid import upsample
from lmfn_kernels.weights import RFDBWeights


def distill_stage(
    x: Tensor, distil: Tensor, distil_bias: Tensor, refine: Tensor, refine_bias: Tensor, slope: float
) -> tuple[Tensor, Tensor]:
    d = F.leaky_relu(F.conv2d(x, distil, distil_bias), slope)
    return F.leaky_relu(F.conv2d(x, refine, refine_bias, padding=1) + x, slope), d


def distill_fuse(
    x: Tensor,
    d: tuple[Tensor, Tensor, Tensor],
    last: Tensor,
    last_bias: Tensor,
    fuse: Tensor,
    fuse_bias: Tensor,
    squeeze: Tensor,
    squeeze_bias: Tensor,
    slope: float,
) -> tuple[Tensor, Tensor]:
    d4 = F.leaky_relu(F.conv2d(x, last, last_bias, padding=1), slope)
    y = F.conv2d(torch.cat([*d, d4], dim=1), fuse, fuse_bias)
    return y, F.conv2d(y, squeeze, squeeze_bias)


def esa_gate(
    y: Tensor,
    a: Tensor,
    v: Tensor,
    skip: Tensor,
    skip_bias: Tensor,
    expand: Tensor,
    expand_bias: Tensor,
    fixed_grid: bool = False,
) -> Tensor:
    v = upsample(v, y.shape[-2:], fixed_grid)
    return y * torch.sigmoid(F.conv2d(v + F.conv2d(a, skip, skip_bias), expand, expand_bias))


def rfdb(x: Tensor, w: RFDBWeights, slope: float, fixed_grid: bool = False) -> Tensor:
    d = []
    for distil, refine in zip(w.distil, w.refine, strict=True):
        x, d_j = distill_stage(x, *distil, *refine, slope)
        d.append(d_j)
    y, a = distill_fuse(x, (d[0], d[1], d[2]), *w.distil_last, *w.fuse, *w.conv1, slope)
    v = F.max_pool2d(F.conv2d(a, *w.conv2, stride=2), 7, stride=3)
    v = F.relu(F.conv2d(v, *w.conv_max, padding=1))
    v = F.relu(F.conv2d(v, *w.conv3, padding=1))
    v = F.conv2d(v, *w.conv3_, padding=1)
    return esa_gate(y, a, v, *w.conv_f, *w.conv4, fixed_grid)
