"""What the ops compute, in the shortest plain PyTorch. Shapes as in `op.py`."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lmfn_kernels.alfm.attention_matrix import attention


def rows(maps: Sequence[Tensor], by_layer: bool) -> Tensor:
    """F: a row a channel of a layer [B, NC, HW], or a row a layer [B, N, C*HW]."""
    return torch.stack(list(maps), 1).flatten(2) if by_layer else torch.cat(list(maps), 1).flatten(2)


def layer_gram(maps: Sequence[Tensor], by_layer: bool) -> Tensor:
    with torch.autocast(maps[0].device.type, enabled=False):
        f = rows(maps, by_layer)
        f = f.to(torch.promote_types(f.dtype, torch.float32))
        return f @ f.mT


def layer_apply(
    maps: Sequence[Tensor],
    gram: Tensor,
    theta: Tensor,
    weight: Tensor,
    bias: Tensor,
    temperature: Tensor | None,
    by_layer: bool,
    slope: float,
) -> Tensor:
    f = rows(maps, by_layer)
    mixed = theta * (attention(gram, temperature, by_layer).to(f.dtype) @ f) + f
    b, c, h, w = maps[0].shape
    return F.leaky_relu(F.conv2d(mixed.view(b, len(maps) * c, h, w), weight, bias), slope)
