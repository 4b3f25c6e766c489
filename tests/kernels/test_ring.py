"""Models of the Gluon kernels' tiles in NumPy, as the kernels need a Hopper GPU, and where they are used."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lmfn_kernels.conv import triton_backend
from lmfn_kernels.conv.gluon_kernels import BOX, PITCH, ROWS
from lmfn_kernels.rfdb import triton_backend as rfdb_backend
from lmfn_kernels.runtime.configs import Config
from lmfn_kernels.runtime.launch import Tiling, as_kernel_image, intercepting
from lmfn_kernels.weights import Conv

COLUMNS = PITCH - 2
Array = np.ndarray


class Memory:
    """Shared memory in chunks of 16 bytes, of which this model keeps one number each; NaN at first.

    A pixel has 8 chunks in 16 bits, and 4 in 8 bits. TMA and wgmma find chunk c of a pixel at chunk c ^ bits 7 to 9 of
    its address, in 8 bits c ^ bits 7 and 8. Gluon's own loads and stores count from the start of a matrix instead.
    """

    def __init__(self, chunks: int) -> None:
        self.chunks = np.full(chunks, np.nan)

    @staticmethod
    def at(first: int, n: int, width: int, start: int = 0) -> Array:
        pixels = first + np.arange(n)[:, None] * width
        return pixels + (np.arange(width) ^ (pixels - start) // 8 % width)

    def load(self, first: int, n: int, width: int) -> Array:
        return self.chunks[self.at(first, n, width)]

    def load_box(self, first: int, n: int, width: int) -> Array:
        assert first % 8 == 0, "TMA needs 128 bytes"
        return self.load(first, n, width)

    def store_box(self, first: int, x: Array) -> None:
        assert first % 8 == 0, "TMA needs 128 bytes"
        self.chunks[self.at(first, *x.shape)] = x

    def load_matrix(self, first: int, n: int, width: int) -> Array:
        return self.chunks[self.at(first, n, width, first)]

    def store_matrix(self, first: int, x: Array) -> None:
        self.chunks[self.at(first, *x.shape, first)] = x


def box(x: Array, i_b: int, o_h: int, o_w: int, height: int) -> Array:
    """What TMA loads: zeros outside the image."""
    found = np.zeros((height, PITCH, x.shape[3]))
    for i in range(height):
        for j in range(PITCH):
            if 0 <= o_h + i < x.shape[1] and 0 <= o_w + j < x.shape[2]:
                found[i, j] = x[i_b, o_h + i, o_w + j]
    return found.reshape(-1, x.shape[3])


def store_rows(out: Array, i_b: int, o_h: int, o_w: int, memory: Memory, first: int) -> None:
    width = out.shape[3]
    for i in range(min(ROWS, out.shape[1] - o_h)):
        for j in (0, COLUMNS - BOX):
            n = max(0, min(BOX, out.shape[2] - o_w - j))
            stored = memory.load_box(first + (i * PITCH + j) * width, BOX, width)
            out[i_b, o_h + i, o_w + j : o_w + j + n] = stored[:n]


def model(x: Array, w: Array, residual: Array | None, dw: Array | None, padding: int) -> tuple[Array, Array]:
    """The walk of `ring_kernel` with one program and its two groups' turns, one after the other.

    The last dimension of images and weights is chunks: 8 for maps in 16 bits, 4 for those in 8.
    """
    width, wide, stage = x.shape[3], w.shape[2], dw is not None
    pixels, tile, slots = ROWS * PITCH, (ROWS + 2) * PITCH, 3
    result = pixels * 8 // width
    first = 7 if stage and len(w) == 9 else 0
    of_residual = first + PITCH + 1 if stage else tile
    slot = tile + (8 if stage else 0) if width == 8 else result
    if residual is not None and not stage:
        slot = tile + result
    staged_at = of_residual if width == 4 and residual is not None and not stage else 0
    memory = Memory(width * (slots * slot + (2 * result if stage else 8)))
    b, h, columns = x.shape[0], x.shape[1] + 2 * padding - 2, x.shape[2] + 2 * padding - 2
    out, d = np.full((b, h, columns, wide), np.nan), np.full((b, h, columns, 8), np.nan)
    n_h, n_w = -(-h // ROWS), -(-columns // COLUMNS)
    for i_turn in range(b * n_h * n_w):
        o_p = i_turn % slots * slot
        i_b, o_h, o_w = i_turn // (n_w * n_h), i_turn // n_w % n_h * ROWS, i_turn % n_w * COLUMNS
        for i in range(0, ROWS + 2, 2):
            memory.store_box(width * (o_p + first + i * PITCH), box(x, i_b, o_h - padding + i, o_w - padding, 2))
        if residual is not None and not stage:
            memory.store_box(width * (o_p + of_residual), box(residual, i_b, o_h, o_w, ROWS))
        taps = [o_p + first + tap // 3 * PITCH + tap % 3 for tap in range(9)] + [o_p + of_residual]
        y = sum(memory.load(width * place, pixels, width) @ w_tap for place, w_tap in zip(taps, w, strict=False))
        staged = slots * slot + i_turn % 2 * result
        if dw is not None:
            memory.store_matrix(width * staged, memory.load(width * (o_p + of_residual), pixels, width) @ dw)
        if residual is not None:
            y = y + memory.load_matrix(width * (o_p + of_residual), pixels, 8)
        memory.store_matrix(width * (o_p + staged_at), y)
        store_rows(out, i_b, o_h, o_w, memory, width * (o_p + staged_at))
        if dw is not None:
            store_rows(d, i_b, o_h, o_w, memory, width * staged)
    return out, d


KINDS = {
    "plain": (8, 8, False, False),
    "residual": (8, 8, True, False),
    "stage": (8, 8, True, True),
    "to 8 bits": (8, 4, False, False),
    "from 8 bits, residual": (4, 8, True, False),
    "stage to 8 bits": (8, 4, False, True),
    "stage in 8 bits": (4, 4, False, True),
    "stage from 8 bits": (4, 8, False, True),
}
"""Chunks of a pixel before and after, whether a residual is loaded, and whether there is a second output."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("b", "h", "width", "padding"), [(1, 1, 1, 1), (2, 9, 33, 1), (1, 14, 47, 0), (1, 4, 60, 1)])
def test_every_pixel_is_right(kind: str, b: int, h: int, width: int, padding: int) -> None:
    """And computed from nothing that was never loaded, although columns that are not stored may be."""
    draw = np.random.default_rng(0).normal
    before, after, with_residual, stage = KINDS[kind]
    padding = 1 if stage else padding
    taps = 10 if stage and not with_residual else 9
    x, w = draw(size=(b, h, width, before)), draw(size=(taps, before, after))
    dw = draw(size=(before, 8)) if stage else None
    rows, columns = h + 2 * padding - 2, width + 2 * padding - 2
    residual = None if not with_residual else x if stage else draw(size=(b, rows, columns, 8))
    out, d = model(x, w, residual, dw, padding)
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    expected = sum(padded[:, t // 3 : t // 3 + rows, t % 3 : t % 3 + columns] @ w[t] for t in range(9))
    if taps == 10:
        expected = expected + x @ w[9]
    np.testing.assert_allclose(out, expected if residual is None else expected + residual, atol=1e-12)
    if dw is not None:
        np.testing.assert_allclose(d, x @ dw, atol=1e-12)


def fuse_model(x: Array, d: list[Array], last: Array, fuse: list[Array], squeeze: Array) -> tuple[Array, Array, Array]:
    """The walk of `ring_fuse_kernel`, likewise: d4, y and a."""
    pixels, tile, slots = ROWS * PITCH, (ROWS + 2) * PITCH, 3
    memory, maps = Memory(8 * (slots * tile + 8)), Memory(4 * slots * 3 * pixels)
    b, h, width = x.shape[:3]
    d4, y, a = (np.full((b, h, width, n), np.nan) for n in (4, 8, 2))
    n_h, n_w = -(-h // ROWS), -(-width // COLUMNS)
    for i_turn in range(b * n_h * n_w):
        o_p, o_m = i_turn % slots * tile, i_turn % slots * 3 * pixels
        i_b, o_h, o_w = i_turn // (n_w * n_h), i_turn // n_w % n_h * ROWS, i_turn % n_w * COLUMNS
        for i in range(0, ROWS + 2, 2):
            memory.store_box(8 * (o_p + i * PITCH), box(x, i_b, o_h - 1 + i, o_w - 1, 2))
        for j in range(3):
            maps.store_box(4 * (o_m + j * pixels), box(d[j], i_b, o_h, o_w, ROWS))
        b_d4 = sum(memory.load(8 * (o_p + tap // 3 * PITCH + tap % 3), pixels, 8) @ last[tap] for tap in range(9))
        b_y = sum(maps.load(4 * (o_m + j * pixels), pixels, 4) @ fuse[j] for j in range(3)) + b_d4 @ fuse[3]
        memory.store_matrix(8 * o_p, b_y)
        maps.store_matrix(4 * o_m, b_d4)
        store_rows(y, i_b, o_h, o_w, memory, 8 * o_p)
        store_rows(d4, i_b, o_h, o_w, maps, 4 * o_m)
        rows, columns = min(ROWS, h - o_h), min(COLUMNS, width - o_w)
        b_a = (b_y @ squeeze).reshape(ROWS, PITCH, 2)
        a[i_b, o_h : o_h + rows, o_w : o_w + columns] = b_a[:rows, :columns]
    return d4, y, a


@pytest.mark.parametrize(("b", "h", "width"), [(1, 1, 1), (2, 9, 33), (1, 14, 47), (1, 4, 60)])
def test_every_pixel_of_fuse_is_right(b: int, h: int, width: int) -> None:
    draw = np.random.default_rng(0).normal
    x, d = draw(size=(b, h, width, 8)), [draw(size=(b, h, width, 4)) for _ in range(3)]
    last, fuse, squeeze = draw(size=(9, 8, 4)), [draw(size=(4, 8)) for _ in range(4)], draw(size=(8, 2))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    d4 = sum(padded[:, t // 3 : t // 3 + h, t % 3 : t % 3 + width] @ last[t] for t in range(9))
    y = sum(of_map @ part for of_map, part in zip([*d, d4], fuse, strict=True))
    for found, expected in zip(fuse_model(x, d, last, fuse, squeeze), (d4, y, y @ squeeze), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "kernel"),
    [
        ({}, "ring_fuse_kernel"),
        ({"has_run": False}, "fuse_kernel"),
        ({"dtype": torch.float16}, "ring_fuse_kernel"),
        ({"dtype": torch.float32}, "fuse_kernel"),
        ({"programs": 0}, "fuse_kernel"),
        ({"c": 65}, "fuse_kernel"),
        ({"d": 33}, "fuse_kernel"),
        ({"f": 17}, "fuse_kernel"),
    ],
)
def test_where_it_fuses(monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], kernel: str) -> None:
    usual = {"dtype": torch.bfloat16, "c": 50, "d": 25, "f": 12, "programs": 132, "has_run": True}
    dtype, c, d, f, programs, has_run = (usual | change).values()
    monkeypatch.setattr(triton_backend, "ring_programs", lambda _: programs)
    monkeypatch.setattr(rfdb_backend, "RING_FUSE_HAS_RUN", has_run)
    launched: list[str] = []
    with intercepting(lambda _launch, kernel, _grid, _arguments: launched.append(kernel.__name__)):
        x, maps = torch.zeros(1, c, 4, 4, dtype=dtype), [torch.zeros(1, d, 4, 4, dtype=dtype)] * 3
        weights = [torch.zeros(shape, dtype=dtype) for shape in ((d, c, 3, 3), (c, 4 * d, 1, 1), (f, c, 1, 1))]
        convs = [Conv(weight, weight.new_zeros(len(weight))) for weight in weights]
        rfdb_backend.fuse(as_kernel_image(x), [as_kernel_image(m) for m in maps], *convs, 0.05, False)
    assert launched == [kernel]


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
