"""Bilinear resampling's gradient on a Triton kernel. The same piece as in `plain.py`."""

from torch import Tensor

from lmfn_kernels.bilinear import kernels
from lmfn_kernels.runtime.configs import config
from lmfn_kernels.runtime.launch import arithmetic, block, empty, run


def strides(name: str, x: Tensor) -> dict[str, int]:
    return {f"s_{name}b": x.stride(0), f"s_{name}h": x.stride(2), f"s_{name}w": x.stride(3)}


def upsample_backward(g: Tensor, v: Tensor) -> Tensor:
    dv = empty(v, *v.shape)
    c = config("upsample_backward", g)
    run(
        kernels.upsample_backward_kernel,
        g,
        (v.shape[0] * v.shape[2] * v.shape[3],),
        c,
        p_g=g,
        p_dv=dv,
        H=g.shape[2],
        W=g.shape[3],
        F=g.shape[1],
        LOW_H=v.shape[2],
        LOW_W=v.shape[3],
        **strides("g", g),
        **strides("", dv),
        ACC=arithmetic(g)["ACC"],
        BLOCK_W=c.width,
        BLOCK_F=block(g.shape[1]),
    )
    return dv
