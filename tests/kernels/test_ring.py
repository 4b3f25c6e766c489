"""`ring_kernel` needs a Hopper GPU. Here, its tiles as a model in NumPy, and where it is used."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lmfn_kernels.conv import triton_backend
from lmfn_kernels.conv.gluon_kernels import BOX, PITCH, ROWS
from lmfn_kernels.runtime.configs import Config
from lmfn_kernels.runtime.launch import Tiling

COLUMNS = PITCH - 2
Array = np.ndarray


class Memory:
    """Shared memory of pixels with 8 chunks of 16 bytes, of which this model keeps one number each; NaN at first.

    TMA and wgmma find chunk c of pixel p at chunk c ^ p % 8, by the address. Gluon's own loads and stores count p from
    the start of a matrix.
    """

    def __init__(self, pixels: int) -> None:
        self.chunks = np.full((pixels, 8), np.nan)

    def at(self, first: int, n: int, start: int = 0) -> tuple[Array, Array]:
        o_p = np.arange(first, first + n)[:, None]
        return o_p, np.arange(8) ^ (o_p - start) % 8

    def load(self, first: int, n: int) -> Array:
        return self.chunks[self.at(first, n)]

    def store(self, first: int, x: Array) -> None:
        self.chunks[self.at(first, len(x))] = x

    def load_matrix(self, first: int, n: int) -> Array:
        return self.chunks[self.at(first, n, first)]

    def store_matrix(self, first: int, x: Array) -> None:
        self.chunks[self.at(first, len(x), first)] = x


def box(x: Array, i_b: int, o_h: int, o_w: int, height: int) -> Array:
    """What TMA loads: zeros outside the image."""
    found = np.zeros((height, PITCH, 8))
    for i in range(height):
        for j in range(PITCH):
            if 0 <= o_h + i < x.shape[1] and 0 <= o_w + j < x.shape[2]:
                found[i, j] = x[i_b, o_h + i, o_w + j]
    return found.reshape(-1, 8)


def store_rows(out: Array, i_b: int, o_h: int, o_w: int, memory: Memory, first: int) -> None:
    for i in range(min(ROWS, out.shape[1] - o_h)):
        for j in (0, COLUMNS - BOX):
            n = max(0, min(BOX, out.shape[2] - o_w - j))
            out[i_b, o_h + i, o_w + j : o_w + j + n] = memory.load(first + i * PITCH + j, BOX)[:n]


def model(x: Array, w: Array, residual: Array | None, dw: Array | None, padding: int) -> tuple[Array, Array]:
    """The walk of `ring_kernel` with one program and its two groups' turns, one after the other."""
    pixels, tile = ROWS * PITCH, (ROWS + 2) * PITCH
    first, of_residual = (0, tile) if dw is None else (7, 7 + PITCH + 1)
    slot, slots = tile + (8 if dw is not None else pixels if residual is not None else 0), 3
    memory = Memory(slots * slot + (8 if dw is None else 2 * pixels))
    b, h, width = x.shape[0], x.shape[1] + 2 * padding - 2, x.shape[2] + 2 * padding - 2
    out, d = np.full((2, b, h, width, 8), np.nan)
    n_h, n_w = -(-h // ROWS), -(-width // COLUMNS)
    for i_turn in range(b * n_h * n_w):
        o_p = i_turn % slots * slot
        i_b, o_h, o_w = i_turn // (n_w * n_h), i_turn // n_w % n_h * ROWS, i_turn % n_w * COLUMNS
        for i in range(0, ROWS + 2, 2):
            memory.store(o_p + first + i * PITCH, box(x, i_b, o_h - padding + i, o_w - padding, 2))
        if residual is not None and dw is None:
            memory.store(o_p + of_residual, box(residual, i_b, o_h, o_w, ROWS))
        y = sum(memory.load(o_p + first + tap // 3 * PITCH + tap % 3, pixels) @ w[tap] for tap in range(9))
        staged = slots * slot + i_turn % 2 * pixels
        if dw is not None:
            memory.store_matrix(staged, memory.load(o_p + of_residual, pixels) @ dw)
        if residual is not None:
            y = y + memory.load_matrix(o_p + of_residual, pixels)
        memory.store_matrix(o_p, y)
        store_rows(out, i_b, o_h, o_w, memory, o_p)
        if dw is not None:
            store_rows(d, i_b, o_h, o_w, memory, staged)
    return out, d


@pytest.mark.parametrize("kind", ["plain", "residual", "stage"])
@pytest.mark.parametrize(("b", "h", "width", "padding"), [(1, 1, 1, 1), (2, 9, 33, 1), (1, 14, 47, 0), (1, 4, 60, 1)])
def test_every_pixel_is_right(kind: str, b: int, h: int, width: int, padding: int) -> None:
    """And computed from nothing that was never loaded, although columns that are not stored may be."""
    draw = np.random.default_rng(0).normal
    stage = kind == "stage"
    padding = 1 if stage else padding
    x, w, dw = draw(size=(b, h, width, 8)), draw(size=(9, 8, 8)), draw(size=(8, 8)) if stage else None
    rows, columns = h + 2 * padding - 2, width + 2 * padding - 2
    residual = x if stage else draw(size=(b, rows, columns, 8)) if kind == "residual" else None
    out, d = model(x, w, residual, dw, padding)
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    expected = sum(padded[:, t // 3 : t // 3 + rows, t % 3 : t % 3 + columns] @ w[t] for t in range(9))
    np.testing.assert_allclose(out, expected if residual is None else expected + residual, atol=1e-12)
    if dw is not None:
        np.testing.assert_allclose(d, x @ dw, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "kernel"),
    [
        ({}, "ring_kernel"),
        ({"weight": (9, 50, 64)}, "ring_kernel"),
        ({"dtype": torch.float16}, "ring_kernel"),
        ({"programs": 0}, "conv_kernel"),
        ({"dtype": torch.float32}, "conv_kernel"),
        ({"weight": (9, 64, 65)}, "conv_kernel"),
        ({"weight": (9, 12, 64)}, "conv_kernel"),
        ({"weight": (1, 64, 64)}, "conv_kernel"),
        ({"mode": "back"}, "conv_kernel"),
        ({"mode": "down"}, "conv_kernel"),
    ],
)
def test_where_it_is_used(change: dict[str, object], kernel: str) -> None:
    usual = {"dtype": torch.bfloat16, "weight": (9, 64, 64), "mode": "same", "programs": 132}
    dtype, weight, mode, programs = (usual | change).values()
    t = Tiling(Config(), (1, 64, 180, 320), dtype, "ieee")
    plan = triton_backend._convolution(t, weight, 1, 1, mode, 1, (1.0, 1.0, 1.0), programs)
    assert plan.kernel.__name__ == kernel
    if kernel == "ring_kernel":
        assert plan.grid == (132,)
        small = triton_backend._convolution(t._replace(size=(2, 64, 9, 31)), weight, 1, 1, mode, 1, (1.0,) * 3, 132)
        assert small.grid == (2 * 3 * 2,), "no more programs than tiles"


@pytest.mark.parametrize(
    ("capability", "triton", "programs"), [((9, 0), True, 132), ((9, 0), False, 0), ((10, 0), True, 0)]
)
def test_only_on_hopper(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], triton: bool, programs: int
) -> None:
    major, minor = capability
    properties = SimpleNamespace(multi_processor_count=132, major=major, minor=minor)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(triton_backend, "HAS_RING", triton)
    assert triton_backend.ring_programs.__wrapped__(torch.device("cuda", 0)) == programs
    assert triton_backend.ring_programs.__wrapped__(torch.device("cpu")) == 0
