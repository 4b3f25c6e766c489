"""The matrix P by which every pixel is multiplied, from F F^T, and its gradient.

Applying the attention is linear in F and is followed by a 1x1 convolution with weight W, so theta M + I is folded into
the weight: W (theta M F + F) = P F with P = W (theta M + I). With layers as rows, M [N, N] stands for the Kronecker
product of M and I_C, [NC, NC]. E is F F^T.
"""

import torch
from torch import Tensor

from lmfn_kernels.alfm.reference import SHORTEST, attention_matrix, inverse_lengths


def fold_into_weight(gram: Tensor, theta: Tensor, weight: Tensor, temperature: Tensor | None, by_layer: bool) -> Tensor:
    """P [B, O, NC], from E [B, NC, NC] or [B, N, N] and the weight [O, NC, 1, 1]."""
    return _rows(weight, gram) @ _mixing(attention_matrix(gram, temperature, by_layer), theta, weight)


def fold_into_weight_backward(
    dp: Tensor, gram: Tensor, theta: Tensor, weight: Tensor, temperature: Tensor | None, by_layer: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of E, theta, the weight (with its strides) and the temperature, from the gradient `dp` of P."""
    m = attention_matrix(gram, temperature, by_layer)
    of_weight = (dp @ _mixing(m, theta, weight).mT).sum(0)
    dweight = torch.empty_like(weight).copy_(of_weight.view(weight.shape))
    d_mixing = layers(_rows(weight, gram).mT @ dp, gram.shape[1])
    dtheta = (d_mixing * m).sum().view(1)
    dm = theta.to(gram.dtype) * d_mixing
    de = m * (dm - (dm * m).sum(-1, keepdim=True))
    if by_layer:
        de = -de  # rowmax(E) receives the sum of the row's gradients, which is 0
    if temperature is None:
        return de, dtheta, dweight, None
    length = inverse_lengths(gram)
    scale = length[:, :, None] * length[:, None, :]
    dtemperature = (de * gram * scale).sum().view(1)
    de = temperature.to(gram.dtype) * de
    through = de * gram
    dlength = (through * length[:, None, :]).sum(2) + (through * length[:, :, None]).sum(1)
    longer = gram.diagonal(dim1=1, dim2=2) >= SHORTEST
    return de * scale + torch.diag_embed(longer * dlength * length**3 / -2), dtheta, dweight, dtemperature


def channels(matrix: Tensor, size: int) -> Tensor:
    """[B, R, R] as [B, size, size]: with layers as rows, each entry becomes a block, itself times the identity."""
    b, n, c = matrix.shape[0], matrix.shape[1], size // matrix.shape[1]
    if c == 1:
        return matrix
    identity = torch.eye(c, dtype=matrix.dtype, device=matrix.device)
    spread: Tensor = matrix[:, :, None, :, None] * identity[:, None, :]
    return spread.reshape(b, n * c, n * c)


def layers(matrix: Tensor, n: int) -> Tensor:
    """[B, NC, NC] as [B, n, n]: each block becomes its trace. The transpose of `channels`."""
    c = matrix.shape[1] // n
    return matrix.unflatten(2, (n, c)).unflatten(1, (n, c)).diagonal(dim1=2, dim2=4).sum(-1)  # type: ignore[no-any-return]


def both_sides(de: Tensor, size: int) -> Tensor:
    """dE + dE^T [B, NC, NC], from the gradient dE of E; times F it is the gradient of F. NC is `size`."""
    return channels(de + de.mT, size)


def by_maps(matrix: Tensor, maps: int) -> Tensor:
    """[B, inputs, NC] as [B, N, inputs, C], a matrix per map."""
    found: Tensor = matrix.unflatten(2, (maps, -1))
    return found.transpose(1, 2)


def _mixing(m: Tensor, theta: Tensor, weight: Tensor) -> Tensor:
    """theta M + I [B, NC, NC]."""
    size = weight.shape[1]
    return channels(theta.to(m.dtype) * m, size) + torch.eye(size, dtype=m.dtype, device=m.device)


def _rows(weight: Tensor, gram: Tensor) -> Tensor:
    """The weight as [B, O, NC]. It is expanded, since for a single matrix the algorithm of matmul, and therefore the
    bits, depend on whether it requires a gradient."""
    return weight.flatten(1).to(gram.dtype).expand(gram.shape[0], -1, -1)
