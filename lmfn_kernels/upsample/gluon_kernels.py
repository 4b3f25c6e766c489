"""`upsampled_conv_kernel` for Hopper (sm_90), in Gluon: a ring of tiles as in `conv/gluon_kernels.py`, which explains
the layout.

The convolution of the upsampled image is a 3x3 convolution with four results per output and pixel of x, and corrections
at the edges (`polyphase.py`). So few results make pixels the left operand, which may start at any pixel as well. The
warpgroups multiply in turns, except for the corrections. All folded weights stay in shared memory, those of the
corrections included.
"""

# ruff: noqa: N803, SIM113  (names of constants are upper-case; Gluon has no enumerate)

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, warpgroup_mma, warpgroup_mma_wait

from lmfn_kernels.conv import gluon_kernels as ring
from lmfn_kernels.conv.gluon_kernels import load_box, matrix_at, tile_at
from lmfn_kernels.runtime.gluon_private import allocate_pixels, async_load, part, thread_barrier
from lmfn_kernels.runtime.kernels import wait_for_previous_launch

ROWS = 4
RESULTS = 16
"""Results per pixel in registers: 12 for RGB."""
WEIGHTS = 25
"""Matrices: nine taps, three for each edge, and one for each corner."""

_PITCH, _CHANNELS, _SHARED = map(gl.constexpr, (ring.PITCH, ring.CHANNELS, ring.SHARED))
_RESULTS, _WEIGHTS = map(gl.constexpr, (RESULTS, WEIGHTS))


@gluon.jit
def load_weights_of_edges(t_w, weights, bar):
    """Those of the left, right, upper and lower edge, then those of the corners. Along each axis they have the taps of
    `BY_TAPS`, of which 3 is for the first position and 4 for the last."""
    mbarrier.expect(bar, 16 * t_w.block_type.nbytes)
    for i in range(6):
        edge, tap = 3 + i // 3, i % 3
        async_load(t_w, [tap * 5 + edge, 0, 0], bar, weights.index(9 + i))
        async_load(t_w, [edge * 5 + tap, 0, 0], bar, weights.index(15 + i))
    for i in range(4):
        row, column = 3 + i // 2, 3 + i % 2
        async_load(t_w, [row * 5 + column, 0, 0], bar, weights.index(21 + i))


@gluon.jit
def produce(
    t_x, t_w, pixels, weights, loaded, full, empty, n_tiles, n_h, n_w,
    BLOCK_H: gl.constexpr, BLOCK_W: gl.constexpr, SLOTS: gl.constexpr, AHEAD: gl.constexpr,
):  # fmt: skip
    """Load the tiles of this program, in order, each as soon as its slot is empty, and the weights with the first."""
    TILE: gl.constexpr = (BLOCK_H + 2) * _PITCH
    if not AHEAD:
        wait_for_previous_launch()
    mbarrier.expect(loaded.index(0), 9 * t_w.block_type.nbytes)
    for i_w in range(9):
        async_load(t_w, [i_w // 3 * 5 + i_w % 3, 0, 0], loaded.index(0), weights.index(i_w))
    if AHEAD:
        wait_for_previous_launch()
    i_turn = 0
    for i_tile in range(gl.program_id(0), n_tiles, gl.num_programs(0)):
        i_slot = i_turn % SLOTS
        slot = part(pixels, i_slot, TILE, TILE)
        bar = full.index(i_turn % (2 * SLOTS))
        mbarrier.wait(empty.index(i_slot), (i_turn // SLOTS & 1) ^ 1)
        i_b, o_h, o_w = tile_at(i_tile, n_h, n_w, BLOCK_H, BLOCK_W)
        mbarrier.expect(bar, TILE * _CHANNELS * 2)
        for i in gl.static_range(0, BLOCK_H + 2, 2):
            load_box(t_x, i_b, o_h - 1 + i, o_w - 1, bar, slot, i * _PITCH)
        if i_turn == 0:
            load_weights_of_edges(t_w, weights, loaded.index(1))
        i_turn += 1
    # Without tiles at an edge nobody else waits for these, and memory of a program that has ended may be another's.
    mbarrier.wait(loaded.index(1), 0)


@gluon.jit
def product(pixels, O_P: gl.constexpr, weights, i_w, b_out, PIXELS: gl.constexpr):
    b_x = matrix_at(pixels, O_P, pixels.dtype, PIXELS).permute((1, 0))
    return warpgroup_mma(b_x, weights.index(i_w).reshape([_CHANNELS, _RESULTS]), b_out, is_async=True)


@gluon.jit
def add_edges(
    b_out, slot, weights, loaded, o_y, o_x, top, bottom, left, right, H, W,
    PIXELS: gl.constexpr, LAYOUT: gl.constexpr,
):  # fmt: skip
    """`b_out` plus the corrections of the edges and corners that a tile contains.

    In the order of the weights, and in loops that are not unrolled, as descriptors of all matrices would not fit the
    registers.
    """
    mbarrier.wait(loaded.index(1), 0)
    for i_place in range(8):
        corner = i_place >= 4
        in_column, in_row = (i_place < 2) | corner, i_place >= 2
        last_row, last_column = gl.where(corner, i_place // 2 % 2, i_place % 2), i_place % 2
        here = ~in_column | gl.where(last_column == 1, right, left)
        if here & (~in_row | gl.where(last_row == 1, bottom, top)):
            m_place = ~in_column | (o_x == last_column * (W - 1))
            m_place = m_place & (~in_row | (o_y == last_row * (H - 1)))
            i_w = gl.where(corner, 17 + i_place, 9 + 3 * i_place)
            b_place = gl.zeros([PIXELS, _RESULTS], gl.float32, LAYOUT)
            for i in range(gl.where(corner, 1, 3)):
                rows = part(slot, gl.where(in_row, 1, i), _PITCH, PIXELS + 2)
                tap = part(rows, gl.where(in_column, 1, i), 1, PIXELS)
                b_place = product(tap, 0, weights, i_w + i, b_place, PIXELS)
                b_place = warpgroup_mma_wait(num_outstanding=0, deps=(b_place,))
            b_out += gl.where(m_place[:, None], b_place, 0.0)
    return b_out


@gluon.jit
def consume(
    p_bias, p_residual, p_out, pixels, weights, loaded, full, empty, turns, n_tiles, n_h, n_w,
    H, W, N, s_rb, s_rn, s_rh, s_rw, GROUP: gl.constexpr, BLOCK_H: gl.constexpr, BLOCK_W: gl.constexpr,
    SLOTS: gl.constexpr,
):  # fmt: skip
    """Compute every second tile of this program."""
    wait_for_previous_launch()
    PIXELS: gl.constexpr = BLOCK_H * _PITCH
    TILE: gl.constexpr = PIXELS + 2 * _PITCH
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, _RESULTS, 16])
    o_p = gl.arange(0, PIXELS, layout=gl.SliceLayout(1, LAYOUT))
    o_n = gl.arange(0, _RESULTS, layout=gl.SliceLayout(0, LAYOUT))
    m_n = o_n < 4 * N
    b_bias = gl.load(p_bias + o_n // 4, mask=m_n, other=0.0).to(gl.float32)
    mbarrier.wait(loaded.index(0), 0)
    i_turn = GROUP
    for i_tile in range(gl.program_id(0) + GROUP * gl.num_programs(0), n_tiles, 2 * gl.num_programs(0)):
        i_slot = i_turn % SLOTS
        slot = part(pixels, i_slot, TILE, TILE + 8)  # the last tap reads two pixels behind it
        i_b, o_h, o_w = tile_at(i_tile, n_h, n_w, BLOCK_H, BLOCK_W)
        o_y, o_x = o_h + o_p // _PITCH, o_w + o_p % _PITCH
        b_out = gl.zeros([PIXELS, _RESULTS], gl.float32, LAYOUT)
        mbarrier.wait(full.index(i_turn % (2 * SLOTS)), i_turn // (2 * SLOTS) & 1)
        mbarrier.wait(turns.index(GROUP), (i_turn // 2 & 1) ^ (1 - GROUP))  # the first tile has its turn
        for i in gl.static_range(9):
            b_out = product(slot, i // 3 * _PITCH + i % 3, weights, i, b_out, PIXELS)
        mbarrier.arrive(turns.index(1 - GROUP), count=1)
        b_out = warpgroup_mma_wait(num_outstanding=0, deps=(b_out,))
        top, bottom, left, right = o_h == 0, o_h + BLOCK_H >= H, o_w == 0, o_w + BLOCK_W >= W
        if top | bottom | left | right:
            b_out = add_edges(
                b_out, slot, weights, loaded, o_y, o_x, top, bottom, left, right, H, W,
                PIXELS, LAYOUT,
            )  # fmt: skip
        thread_barrier()  # one thread of the warpgroup arrives for all
        mbarrier.arrive(empty.index(i_slot), count=1)
        # Result 4 n + 2 i + j of a pixel is row i, column j of its 2x2 pixels of channel n.
        m_out = ((o_p % _PITCH < BLOCK_W) & (o_y < H) & (o_x < W))[:, None] & m_n[None, :]
        b_out += b_bias[None, :]
        o_row, o_column = (2 * o_y)[:, None] + (o_n // 2 % 2)[None, :], (2 * o_x)[:, None] + (o_n % 2)[None, :]
        if p_residual is not None:
            o_r = (o_n // 4 * s_rn)[None, :] + o_row * s_rh + o_column * s_rw
            b_out += gl.load(p_residual + i_b.to(gl.int64) * s_rb + o_r, mask=m_out, other=0.0).to(gl.float32)
        o_out = ((o_n // 4 * H * 2)[None, :] + o_row) * (W * 2) + o_column
        p_image = p_out + i_b.to(gl.int64) * (4 * N * H) * W
        gl.store(p_image + o_out, b_out.to(p_out.dtype.element_ty), mask=m_out)
        i_turn += 2


@gluon.jit(do_not_specialize=["B", "H", "W"])
def ring_upsampled_conv_kernel(
    t_x, t_w, p_bias, p_residual, p_out, B, H, W, N, s_rb, s_rn, s_rh, s_rw,
    BLOCK_H: gl.constexpr, BLOCK_W: gl.constexpr, AHEAD: gl.constexpr,
):  # fmt: skip
    """What `upsampled_conv_kernel` computes, with at most 64 channels of x and 4 of out, which is contiguous.
    AHEAD, for the taps that exist everywhere, as in `ring_kernel`."""
    n_h = gl.cdiv(H, BLOCK_H)
    n_w = gl.cdiv(W, BLOCK_W)
    n_tiles = B * n_h * n_w
    TILE: gl.constexpr = (BLOCK_H + 2) * _PITCH
    SLOTS: gl.constexpr = (_SHARED - _WEIGHTS * _CHANNELS * _RESULTS * 2) // (TILE * _CHANNELS * 2)
    # The last tap reads two pixels behind its tile, for columns that are not stored.
    pixels = allocate_pixels(t_x.dtype, SLOTS * TILE + 8, _CHANNELS)
    weights = gl.allocate_shared_memory(t_x.dtype, [_WEIGHTS, 1, _CHANNELS, _RESULTS], t_w.layout)
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
                    p_bias, p_residual, p_out, pixels, weights, loaded, full, empty, turns, n_tiles, n_h, n_w,
                    H, W, N, s_rb, s_rn, s_rh, s_rw, 0, BLOCK_H, BLOCK_W, SLOTS,
                ),
            ),
            (
                consume,
                (
                    p_bias, p_residual, p_out, pixels, weights, loaded, full, empty, turns, n_tiles, n_h, n_w,
                    H, W, N, s_rb, s_rn, s_rh, s_rw, 1, BLOCK_H, BLOCK_W, SLOTS,
                ),
            ),
            (
                produce,
                (t_x, t_w, pixels, weights, loaded, full, empty, n_tiles, n_h, n_w, BLOCK_H, BLOCK_W, SLOTS, AHEAD),
            ),
        ],
        [4, 1],
        [232, 40],
    )  # fmt: skip
