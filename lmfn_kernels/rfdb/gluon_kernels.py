"""`fuse_kernel` for Hopper (sm_90), in Gluon: a ring of tiles as in `conv/gluon_kernels.py`, which explains the layout.

The warpgroups multiply in turns, but for what needs d4 or y first. Unlike there, pixels are the rows of every product:
what a warpgroup computes for its pixels lies in its registers as the left operand of the next product, so that d4 and y
are not exchanged through shared memory.
"""

# ruff: noqa: N803, SIM113  (names of constants are upper-case; Gluon has no enumerate)

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from lmfn_kernels.conv import gluon_kernels as ring
from lmfn_kernels.conv.gluon_kernels import leaky, load_box, matrix_at, store_rows, tile_at
from lmfn_kernels.runtime.gluon_private import allocate_pixels, async_load, part, thread_barrier, view
from lmfn_kernels.runtime.kernels import wait_for_previous_launch

DISTILLED, SQUEEZED = 32, 16
"""Channels of a distilled map, and of ESA's a, in shared memory and registers."""

_PITCH, _CHANNELS, _SHARED = map(gl.constexpr, (ring.PITCH, ring.CHANNELS, ring.SHARED))
_DISTILLED, _SQUEEZED = map(gl.constexpr, (DISTILLED, SQUEEZED))


@gluon.jit
def load_bias(p_bias, N: gl.constexpr, BLOCK: gl.constexpr, LAYOUT: gl.constexpr):
    o_n = gl.arange(0, BLOCK, layout=gl.SliceLayout(0, LAYOUT))
    return gl.load(p_bias + o_n, mask=o_n < N, other=0.0).to(gl.float32)[None, :]


@gluon.jit
def rounded(b_x, N: gl.constexpr, BLOCK: gl.constexpr, DTYPE: gl.constexpr, LAYOUT: gl.constexpr):
    """In 16 bits, with zeros after the N channels: there, infinity times a weight of 0 is NaN."""
    o_n = gl.arange(0, BLOCK, layout=gl.SliceLayout(0, LAYOUT))
    return gl.where((o_n < N)[None, :], b_x, 0.0).to(DTYPE)


@gluon.jit
def store_tile(
    p_x, i_b, o_h, o_w, H, W, b_x, C: gl.constexpr, PITCH: gl.constexpr, BLOCK: gl.constexpr,
    BLOCK_H: gl.constexpr, BLOCK_W: gl.constexpr, LAYOUT: gl.constexpr,
):  # fmt: skip
    """Store a tile of C channels by pointers, to an image in the layout of `empty_image` with pixels PITCH elements
    apart: TMA cannot start at every pixel of 32 bytes."""
    o_p = gl.arange(0, BLOCK_H * _PITCH, layout=gl.SliceLayout(1, LAYOUT))
    o_c = gl.arange(0, BLOCK, layout=gl.SliceLayout(0, LAYOUT))
    o_y, o_x = o_p // _PITCH, o_p % _PITCH
    m_x = ((o_x < BLOCK_W) & (o_h + o_y < H) & (o_w + o_x < W))[:, None] & (o_c < C)[None, :]
    p_first = p_x + ((i_b * H + o_h).to(gl.int64) * W + o_w) * PITCH
    gl.store(p_first + ((o_y * W + o_x) * PITCH)[:, None] + o_c[None, :], b_x.to(p_x.dtype.element_ty), mask=m_x)


@gluon.jit
def map_at(maps, O_P: gl.constexpr, PIXELS: gl.constexpr):
    """The pixels of distilled maps from O_P on as a matrix [PIXELS, channels]."""
    LAYOUT: gl.constexpr = gl.NVMMASharedLayout(64, 16, rank=2)
    return view(maps, O_P, maps.dtype, [PIXELS, _DISTILLED], LAYOUT)


@gluon.jit
def load_other_weights(t_fuse, t_squeeze, fuse, squeeze, bar, D: gl.constexpr):
    """Those of the 1x1 convolutions. The last rows of a map's part are the next map's: they meet zeros in its tile."""
    mbarrier.expect(bar, 4 * t_fuse.block_type.nbytes + t_squeeze.block_type.nbytes)
    for i in range(4):
        async_load(t_fuse, [0, i * D, 0], bar, fuse.index(i))
    async_load(t_squeeze, [0, 0, 0], bar, squeeze.index(0))


@gluon.jit
def produce(
    t_x, t_d1, t_d2, t_d3, t_last, t_fuse, t_squeeze, pixels, maps, last, fuse, squeeze, loaded, full, empty,
    n_tiles, n_h, n_w, D: gl.constexpr, BLOCK_H: gl.constexpr, BLOCK_W: gl.constexpr, SLOTS: gl.constexpr,
    AHEAD: gl.constexpr,
):  # fmt: skip
    """Load the tiles of this program, in order, each as soon as its slot is empty, and the weights with the first."""
    PIXELS: gl.constexpr = BLOCK_H * _PITCH
    TILE: gl.constexpr = PIXELS + 2 * _PITCH
    if not AHEAD:
        wait_for_previous_launch()
    mbarrier.expect(loaded.index(0), 9 * t_last.block_type.nbytes)
    for i_tap in range(9):
        async_load(t_last, [i_tap, 0, 0], loaded.index(0), last.index(i_tap))
    if AHEAD:
        load_other_weights(t_fuse, t_squeeze, fuse, squeeze, loaded.index(1), D)
        wait_for_previous_launch()
    i_turn = 0
    for i_tile in range(gl.program_id(0), n_tiles, gl.num_programs(0)):
        i_slot = i_turn % SLOTS
        slot, distilled = part(pixels, i_slot, TILE, TILE), part(maps, i_slot, 3 * PIXELS, 3 * PIXELS)
        bar = full.index(i_turn % (2 * SLOTS))
        mbarrier.wait(empty.index(i_slot), (i_turn // SLOTS & 1) ^ 1)
        i_b, o_h, o_w = tile_at(i_tile, n_h, n_w, BLOCK_H, BLOCK_W)
        mbarrier.expect(bar, (TILE * _CHANNELS + 3 * PIXELS * _DISTILLED) * 2)
        for i in gl.static_range(0, BLOCK_H + 2, 2):
            load_box(t_x, i_b, o_h - 1 + i, o_w - 1, bar, slot, i * _PITCH)
        load_box(t_d1, i_b, o_h, o_w, bar, distilled, 0)
        load_box(t_d2, i_b, o_h, o_w, bar, distilled, PIXELS)
        load_box(t_d3, i_b, o_h, o_w, bar, distilled, 2 * PIXELS)
        if not AHEAD and i_turn == 0:
            load_other_weights(t_fuse, t_squeeze, fuse, squeeze, loaded.index(1), D)
        i_turn += 1


@gluon.jit
def consume(
    p_last_bias, p_fuse_bias, p_squeeze_bias, t_d4, t_y, p_a, pixels, maps, last, fuse, squeeze, loaded, full, empty,
    turns, n_tiles, n_h, n_w, H, W, GROUP: gl.constexpr, C: gl.constexpr, D: gl.constexpr, F: gl.constexpr,
    PITCH_F: gl.constexpr, SLOPE: gl.constexpr, BLOCK_H: gl.constexpr, BLOCK_W: gl.constexpr, SLOTS: gl.constexpr,
):  # fmt: skip
    """Compute every second tile of this program; y and d4 are staged in the tile's own slot."""
    wait_for_previous_launch()
    PIXELS: gl.constexpr = BLOCK_H * _PITCH
    TILE: gl.constexpr = PIXELS + 2 * _PITCH
    OF_D: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, _DISTILLED, 16])
    OF_Y: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, _CHANNELS, 16])
    OF_A: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, _SQUEEZED, 16])
    mbarrier.wait(loaded.index(0), 0)
    i_turn = GROUP
    for i_tile in range(gl.program_id(0) + GROUP * gl.num_programs(0), n_tiles, 2 * gl.num_programs(0)):
        i_slot = i_turn % SLOTS
        slot = part(pixels, i_slot, TILE, TILE + 8)  # the last tap reads two pixels behind it
        distilled = part(maps, i_slot, 3 * PIXELS, 3 * PIXELS)
        i_b, o_h, o_w = tile_at(i_tile, n_h, n_w, BLOCK_H, BLOCK_W)
        b_d4 = gl.zeros([PIXELS, _DISTILLED], gl.float32, OF_D)
        b_y = gl.zeros([PIXELS, _CHANNELS], gl.float32, OF_Y)
        mbarrier.wait(full.index(i_turn % (2 * SLOTS)), i_turn // (2 * SLOTS) & 1)
        mbarrier.wait(turns.index(GROUP), (i_turn // 2 & 1) ^ (1 - GROUP))  # the first tile has its turn
        for i in gl.static_range(9):
            b_x = matrix_at(slot, i // 3 * _PITCH + i % 3, pixels.dtype, PIXELS).permute((1, 0))
            b_w = last.index(i).reshape([_CHANNELS, _DISTILLED])
            b_d4 = warpgroup_mma(b_x, b_w, b_d4, is_async=True)
        mbarrier.wait(loaded.index(1), 0)
        for i in gl.static_range(3):
            b_w = fuse.index(i).reshape([_DISTILLED, _CHANNELS])
            b_y = warpgroup_mma(map_at(distilled, i * PIXELS, PIXELS), b_w, b_y, is_async=True)
        mbarrier.arrive(turns.index(1 - GROUP), count=1)
        b_d4 = warpgroup_mma_wait(num_outstanding=3, deps=(b_d4,))
        b_d4 = leaky(b_d4 + load_bias(p_last_bias, D, _DISTILLED, OF_D), SLOPE)
        b_d4 = rounded(b_d4, D, _DISTILLED, pixels.dtype, OF_D)
        b_left = gl.convert_layout(b_d4, gl.DotOperandLayout(0, OF_Y, 2))
        b_y = warpgroup_mma(b_left, fuse.index(3).reshape([_DISTILLED, _CHANNELS]), b_y, is_async=True)
        b_y = warpgroup_mma_wait(num_outstanding=0, deps=(b_y,))
        b_y = rounded(b_y + load_bias(p_fuse_bias, C, _CHANNELS, OF_Y), C, _CHANNELS, pixels.dtype, OF_Y)
        # A warp has waited for its own products; those of the others may still read the tile. Triton adds such barriers
        # where it sees the need, but takes products for done at the first barrier after their start, that before
        # `loaded`.
        thread_barrier()
        matrix_at(slot, 0, pixels.dtype, PIXELS).permute((1, 0)).store(b_y)
        if t_d4 is not None:
            map_at(distilled, 0, PIXELS).store(b_d4)
        fence_async_shared()
        # Not unrolled, which would need more uniform registers than there are.
        for i_row in range(min(BLOCK_H, H - o_h)):
            store_rows(t_y, i_b, o_h + i_row, o_w, part(slot, i_row, _PITCH, _PITCH), 0, 1, BLOCK_W)
            if t_d4 is not None:
                store_rows(t_d4, i_b, o_h + i_row, o_w, part(distilled, i_row, _PITCH, _PITCH), 0, 1, BLOCK_W)
        b_left = gl.convert_layout(b_y, gl.DotOperandLayout(0, OF_A, 2))
        b_a = gl.zeros([PIXELS, _SQUEEZED], gl.float32, OF_A)
        b_a = warpgroup_mma(b_left, squeeze.index(0).reshape([_CHANNELS, _SQUEEZED]), b_a, is_async=True)
        b_a = warpgroup_mma_wait(num_outstanding=0, deps=(b_a,))
        b_a += load_bias(p_squeeze_bias, F, _SQUEEZED, OF_A)
        store_tile(p_a, i_b, o_h, o_w, H, W, b_a, F, PITCH_F, _SQUEEZED, BLOCK_H, BLOCK_W, OF_A)
        tma.store_wait(0)
        mbarrier.arrive(empty.index(i_slot), count=1)
        i_turn += 2


@gluon.jit(do_not_specialize=["B", "H", "W"])
def ring_fuse_kernel(
    t_x, t_d1, t_d2, t_d3, t_last, p_last_bias, t_fuse, p_fuse_bias, t_squeeze, p_squeeze_bias, t_d4, t_y, p_a, B, H, W,
    C: gl.constexpr, D: gl.constexpr, F: gl.constexpr, PITCH_F: gl.constexpr,
    SLOPE: gl.constexpr, BLOCK_H: gl.constexpr, BLOCK_W: gl.constexpr, AHEAD: gl.constexpr,
):  # fmt: skip
    """What `fuse_kernel` computes, with at most 64 channels of x and y, 32 of d1 to d4, and 16 of a; AHEAD as in
    `ring_kernel`."""
    n_h = gl.cdiv(H, BLOCK_H)
    n_w = gl.cdiv(W, BLOCK_W)
    n_tiles = B * n_h * n_w
    PIXELS: gl.constexpr = BLOCK_H * _PITCH
    TILE: gl.constexpr = PIXELS + 2 * _PITCH
    WEIGHTS: gl.constexpr = 13 * _CHANNELS * _DISTILLED + _CHANNELS * _SQUEEZED
    SLOTS: gl.constexpr = (_SHARED - WEIGHTS * 2) // (TILE * _CHANNELS * 2 + 3 * PIXELS * _DISTILLED * 2)
    # The last tap reads two pixels behind its tile, for columns that are not stored.
    pixels = allocate_pixels(t_x.dtype, SLOTS * TILE + 8, _CHANNELS)
    maps = allocate_pixels(t_x.dtype, SLOTS * 3 * PIXELS, _DISTILLED)
    last = gl.allocate_shared_memory(t_x.dtype, [9, 1, _CHANNELS, _DISTILLED], t_last.layout)
    fuse = gl.allocate_shared_memory(t_x.dtype, [4, 1, _DISTILLED, _CHANNELS], t_fuse.layout)
    squeeze = gl.allocate_shared_memory(t_x.dtype, [1, 1, _CHANNELS, _SQUEEZED], t_squeeze.layout)
    loaded = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    full = gl.allocate_shared_memory(gl.int64, [2 * SLOTS, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    turns = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(2):
        mbarrier.init(loaded.index(i), count=1)
        mbarrier.init(turns.index(i), count=1)
    for i in gl.static_range(SLOTS):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(full.index(SLOTS + i), count=1)
        mbarrier.init(empty.index(i), count=1)
    gl.warp_specialize(
        [
            (
                consume,
                (
                    p_last_bias, p_fuse_bias, p_squeeze_bias, t_d4, t_y, p_a, pixels, maps, last, fuse, squeeze,
                    loaded, full, empty, turns, n_tiles, n_h, n_w, H, W, 0, C, D, F, PITCH_F, SLOPE,
                    BLOCK_H, BLOCK_W, SLOTS,
                ),
            ),
            (
                consume,
                (
                    p_last_bias, p_fuse_bias, p_squeeze_bias, t_d4, t_y, p_a, pixels, maps, last, fuse, squeeze,
                    loaded, full, empty, turns, n_tiles, n_h, n_w, H, W, 1, C, D, F, PITCH_F, SLOPE,
                    BLOCK_H, BLOCK_W, SLOTS,
                ),
            ),
            (
                produce,
                (
                    t_x, t_d1, t_d2, t_d3, t_last, t_fuse, t_squeeze, pixels, maps, last, fuse, squeeze,
                    loaded, full, empty, n_tiles, n_h, n_w, D, BLOCK_H, BLOCK_W, SLOTS, AHEAD,
                ),
            ),
        ],
        [4, 1],
        [232, 40],
    )  # fmt: skip
