"""What is saved for backward, and the peak memory of a call."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import lmfn_kernels
from lmfn_kernels.cases import OPS, Size, distilled, esa
from lmfn_kernels.testing import saved_bytes

STATUS = Path("/proc/self/status")
SIZE = Size(1, 2, 16, 16, 16)  # pixels without padding


LAID_OUT = {
    "conv3x3", "stem", "residual_block", "residual_blocks", "distill_stage", "distill_fuse", "esa_gate", "rfdb",
}  # fmt: skip
"""Ops whose kernels read weights in a layout of their own."""


def laid_out_values(name: str, inputs: list[Tensor], c: int) -> int:
    """The values of the weights, and again of two whose inputs and outputs backward exchanges. Nothing is added to rows
    of these channels; images are one, and weights have several outputs."""
    op = name.split("-")[0]
    again = (4 * distilled(c) + esa(c)) * c if op in ("distill_fuse", "rfdb") else 0
    return again + sum(t.numel() for t in inputs if t.ndim == 4 and len(t) > 1) if op in LAID_OUT else 0


@pytest.mark.parametrize("name", OPS)
def test_saved_beside_the_inputs(name: str, backend: str) -> None:
    size = SIZE._replace(h=max(SIZE.h, OPS[name].smallest[0]))
    inputs = OPS[name].inputs(size, torch.float32)
    copied = laid_out_values(name, inputs, size.c) if backend == "triton" else 0
    saved, most = saved_bytes(OPS[name].function, inputs, inputs) / 4 - copied, OPS[name].saved(size)
    assert 0.8 * most <= saved <= most


def test_the_formula_saves_more() -> None:
    """Checks the measure used above."""
    for name in ("rfdb", "layer_attention", "stem"):
        inputs = OPS[name].inputs(SIZE, torch.float32)
        with lmfn_kernels.backend("reference"):
            assert saved_bytes(OPS[name].function, inputs, inputs) / 4 > 2 * OPS[name].saved(SIZE)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rfdb_of_the_network(dtype: torch.dtype) -> None:
    """At most 5.5 times the bytes of its input, including the input itself and the padding of pixels, but not the
    laid-out weights: that is by how much a larger image saves more."""
    small, large = (OPS["rfdb"].inputs(Size(1, 1, 50, size, 16), dtype) for size in (16, 22))
    saved = [saved_bytes(OPS["rfdb"].function, [x, *weights], weights) for x, *weights in (small, large)]
    assert 4 <= (saved[1] - saved[0]) / (large[0].nbytes - small[0].nbytes) <= 5.5


def test_rfdb_under_autocast() -> None:
    """In bytes of the float32 input, which is also saved in 16 bits."""
    x, *weights = OPS["rfdb"].inputs(Size(1, 1, 50, 32, 40), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert saved_bytes(OPS["rfdb"].function, [x, *weights], weights) / x.nbytes <= 5.5 / 2 + 0.5


def peak() -> int:
    """Peak resident bytes of the process."""
    return next(int(line.split()[1]) * 1024 for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))


@pytest.mark.skipif(not STATUS.exists(), reason="only Linux counts the memory of a part of a process")
@pytest.mark.parametrize(
    ("name", "order", "least", "most"),
    [
        ("torch", torch.contiguous_format, -1, 16),
        ("torch", torch.channels_last, -1, 16),
        ("reference", torch.contiguous_format, 250, 1e9),
    ],
)
def test_peak_memory_of_attention(name: str, order: torch.memory_format, least: float, most: float) -> None:
    """MiB in addition to the inputs (176) and the output (44); the formula makes three copies of the inputs."""
    n, c, h, w = 4, 50, 360, 640
    weights = torch.zeros(1), torch.ones(c, n * c, 1, 1) / 200, torch.zeros(c)
    small = [torch.full((1, c, 8, 8), 0.01) for _ in range(n)]
    maps = [torch.empty(1, c, h, w, memory_format=order).fill_(0.01) for _ in range(n)]
    with lmfn_kernels.backend(name), torch.no_grad():
        lmfn_kernels.layer_attention(small, *weights)
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak to the present value
        before = peak()
        y = lmfn_kernels.layer_attention(maps, *weights)
        found = (peak() - before - y.nbytes) / 2**20
    print(f"{name}, {order}: {found:.1f} MiB")  # shown by `pytest -s`
    assert least <= found <= most
