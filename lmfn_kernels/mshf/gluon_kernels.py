"""`stem_kernel` for Hopper (sm_90), in Gluon: every pixel of f0 is computed once per tile, not once per tap.

Shared memory holds a tile of f0 by the parity of its rows and columns. A tap of the second convolution, of stride 2,
reads one such quarter from some pixel on, which is an operand as in `conv/gluon_kernels.py`. Two warpgroups compute f0,
each for one of two slots, and a third one the second convolution of every tile.

A tile is BLOCK_H rows of PITCH - 1 results. Its quarters lie one after the other in rows of PITCH pixels: even rows
with even and odd columns, then odd rows, one more, with even and odd columns.
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
from lmfn_kernels.conv.gluon_kernels import (
    load_channels,
    matrix_at,
    product,
    stage,
    store_rows,
    tile_at,
)
from lmfn_kernels.runtime.gluon_private import allocate_pixels, async_load, part, thread_barrier
from lmfn_kernels.runtime.kernels import wait_for_previous_launch

ROWS = 4
PACK = 4
"""Values of a packed pixel of the image: its three channels and a 1, whose weight is zero here."""
BLOCK = 64
"""Pixels of f0 that a warpgroup computes at once."""

_PITCH, _CHANNELS, _PACK, _BLOCK = map(gl.constexpr, (ring.PITCH, ring.CHANNELS, PACK, BLOCK))


@gluon.jit
def load_first_weight(p_w0, first, C, PITCH_C: gl.constexpr):
    """The first convolution's weight [9 taps of 3 channels, C] as three matrices [4 pixels of 4 values, outputs], one
    for each row of taps, with zeros for the fourth pixel and value."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    o_k = gl.arange(0, 4 * _PACK, layout=gl.SliceLayout(1, LAYOUT))
    o_c = gl.arange(0, _CHANNELS, layout=gl.SliceLayout(0, LAYOUT))
    o_tap, o_value = o_k // _PACK, o_k % _PACK
    m_w = ((o_tap < 3) & (o_value < 3))[:, None] & (o_c < C)[None, :]
    for i in gl.static_range(3):
        o_row = (3 * i + o_tap) * 3 + o_value
        first.index(i).store(gl.load(p_w0 + o_row[:, None] * PITCH_C + o_c[None, :], mask=m_w, other=0.0))


@gluon.jit
def position(i_block, o_h, o_w, BLOCK_H: gl.constexpr, LAYOUT: gl.constexpr):
    """Rows and columns in f0 of the pixels of a block, for a tile of results at (o_h, o_w)."""
    o_p = i_block * _BLOCK + gl.arange(0, _BLOCK, layout=LAYOUT)
    odd_row = gl.where(o_p >= 2 * BLOCK_H * _PITCH, 1, 0)
    o_half = o_p // _PITCH - 2 * BLOCK_H * odd_row
    odd_column = gl.where(o_half >= BLOCK_H + odd_row, 1, 0)
    o_row = o_half - (BLOCK_H + odd_row) * odd_column
    return 2 * (o_h + o_row) - odd_row, 2 * (o_w + o_p % _PITCH) - odd_column


@gluon.jit
def load_image(
    p_x, i_block, i_b, o_h, o_w, H, W, SIZE, ROW, BLOCK_H: gl.constexpr, LEFT: gl.constexpr,
):  # fmt: skip
    """Per pixel of a block, the image's values under three rows of taps, [pixels, 4 pixels of 4 values] each, as left
    operands of products."""
    o_y, o_x = position(i_block, o_h, o_w, BLOCK_H, gl.SliceLayout(1, LEFT))
    o_k = gl.arange(0, 4 * _PACK, layout=gl.SliceLayout(0, LEFT))
    m_x = ((o_y >= 0) & (o_y < H) & (o_x >= 0) & (o_x < W))[:, None] & (o_k < 3 * _PACK)[None, :]
    p_row = p_x + (i_b.to(gl.int64) * SIZE * _PACK + ((o_y * ROW + o_x) * _PACK)[:, None] + o_k[None, :])
    b_x0 = gl.load(p_row, mask=m_x, other=0.0)
    b_x1 = gl.load(p_row + ROW * _PACK, mask=m_x, other=0.0)
    b_x2 = gl.load(p_row + 2 * ROW * _PACK, mask=m_x, other=0.0)
    return b_x0, b_x1, b_x2


@gluon.jit
def produce(
    p_x, p_w0, p_bias0, pixels, first, loaded, full, empty, n_tiles, n_h, n_w, H, W, SIZE, ROW, C,
    GROUP: gl.constexpr, PITCH_C: gl.constexpr, SLOPE: gl.constexpr, BLOCK_H: gl.constexpr, BLOCK_W: gl.constexpr,
    SLOT: gl.constexpr,
):  # fmt: skip
    """Compute f0 for every second tile of this program, in the slot GROUP. The image's values are loaded one block
    ahead."""
    wait_for_previous_launch()
    OF_F: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, _CHANNELS, 16])
    LEFT: gl.constexpr = gl.DotOperandLayout(0, OF_F, 2)
    BLOCKS: gl.constexpr = SLOT // _BLOCK
    slot = part(pixels, GROUP, SLOT, SLOT)
    o_c = gl.arange(0, _CHANNELS, layout=gl.SliceLayout(0, OF_F))
    b_bias = gl.load(p_bias0 + o_c, mask=o_c < C, other=0.0).to(gl.float32)[None, :]
    if GROUP == 0:
        load_first_weight(p_w0, first, C, PITCH_C)
        fence_async_shared()
        thread_barrier()  # one thread of the warpgroup arrives for all
        mbarrier.arrive(loaded.index(1), count=1)
    mbarrier.wait(loaded.index(1), 0)
    i_turn = 0
    for i_tile in range(gl.program_id(0) + GROUP * gl.num_programs(0), n_tiles, 2 * gl.num_programs(0)):
        i_b, o_h, o_w = tile_at(i_tile, n_h, n_w, BLOCK_H, BLOCK_W)
        b_x0, b_x1, b_x2 = load_image(p_x, 0, i_b, o_h, o_w, H, W, SIZE, ROW, BLOCK_H, LEFT)
        edge = (o_h == 0) | (o_w == 0) | (2 * (o_h + BLOCK_H) > H) | (2 * (o_w + _PITCH) > W)
        mbarrier.wait(empty.index(GROUP), (i_turn & 1) ^ 1)
        for i_block in range(BLOCKS):
            b_f = gl.zeros([_BLOCK, _CHANNELS], gl.float32, OF_F) + b_bias
            b_f = warpgroup_mma(b_x0, first.index(0), b_f, is_async=True)
            b_f = warpgroup_mma(b_x1, first.index(1), b_f, is_async=True)
            b_f = warpgroup_mma(b_x2, first.index(2), b_f, is_async=True)
            b_next0, b_next1, b_next2 = load_image(
                p_x, i_block + 1, i_b, o_h, o_w, H, W, SIZE, ROW, BLOCK_H, LEFT
            )  # fmt: skip
            b_f = warpgroup_mma_wait(num_outstanding=0, deps=(b_f,))
            b_f = gl.maximum(b_f, b_f * SLOPE)  # two instructions, `leaky` has three
            if edge:
                o_y, o_x = position(i_block, o_h, o_w, BLOCK_H, gl.SliceLayout(1, OF_F))
                m_f = (o_y >= 0) & (o_y < H) & (o_x >= 0) & (o_x < W)
                b_f = gl.where(m_f[:, None], b_f, 0.0)
            to = matrix_at(part(slot, i_block, _BLOCK, _BLOCK), 0, pixels.dtype, _BLOCK).permute((1, 0))
            to.store(b_f.to(pixels.dtype))
            b_x0, b_x1, b_x2 = b_next0, b_next1, b_next2
        fence_async_shared()
        thread_barrier()
        mbarrier.arrive(full.index(GROUP), count=1)
        i_turn += 1


@gluon.jit
def consume(
    t_w, t_out, p_bias, pixels, weights, loaded, full, empty, n_tiles, n_h, n_w, OUT_H, N,
    SLOPE: gl.constexpr, BLOCK_H: gl.constexpr, BLOCK_W: gl.constexpr, SLOT: gl.constexpr, AHEAD: gl.constexpr,
):  # fmt: skip
    """The second convolution of every tile of this program; a result is staged in its slot."""
    PIXELS: gl.constexpr = BLOCK_H * _PITCH
    ODD_ROWS: gl.constexpr = 2 * PIXELS
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, PIXELS, 16])
    if not AHEAD:
        wait_for_previous_launch()
    mbarrier.expect(loaded.index(0), 9 * t_w.block_type.nbytes)
    for i_tap in range(9):
        async_load(t_w, [i_tap, 0, 0], loaded.index(0), weights.index(i_tap))
    if AHEAD:
        wait_for_previous_launch()
    mbarrier.wait(loaded.index(0), 0)
    i_turn = 0
    for i_tile in range(gl.program_id(0), n_tiles, gl.num_programs(0)):
        slot = part(pixels, i_turn % 2, SLOT, SLOT + 8)  # the last tap reads pixels behind it
        i_b, o_h, o_w = tile_at(i_tile, n_h, n_w, BLOCK_H, BLOCK_W)
        b_out = gl.zeros([_CHANNELS, PIXELS], gl.float32, LAYOUT)
        mbarrier.wait(full.index(i_turn % 2), i_turn // 2 & 1)
        for j in gl.static_range(3):  # the middle row of taps reads even rows of f0, its middle column even columns
            b_above = matrix_at(slot, ODD_ROWS + (0 if j == 1 else PIXELS + _PITCH + j // 2), pixels.dtype, PIXELS)
            b_middle = matrix_at(slot, 0 if j == 1 else PIXELS + j // 2, pixels.dtype, PIXELS)
            b_below = matrix_at(
                slot, ODD_ROWS + _PITCH + (0 if j == 1 else PIXELS + _PITCH + j // 2), pixels.dtype, PIXELS
            )
            b_out = product(weights.index(j), b_above, b_out, "same")
            b_out = product(weights.index(3 + j), b_middle, b_out, "same")
            b_out = product(weights.index(6 + j), b_below, b_out, "same")
        b_out = warpgroup_mma_wait(num_outstanding=0, deps=(b_out,))
        thread_barrier()  # the products of other warps may still read what the result overwrites
        b_out += load_channels(p_bias, N, LAYOUT)
        stage(slot, 0, gl.maximum(b_out, b_out * SLOPE), N, t_out.dtype, PIXELS, LAYOUT)
        fence_async_shared()
        for i_row in range(min(BLOCK_H, OUT_H - o_h)):  # not unrolled: too many uniform registers
            store_rows(t_out, i_b, o_h + i_row, o_w, part(slot, i_row, _PITCH, _PITCH), 0, 1, BLOCK_W)
        tma.store_wait(0)
        mbarrier.arrive(empty.index(i_turn % 2), count=1)
        i_turn += 1


@gluon.jit(do_not_specialize=["B", "H", "W", "OUT_H", "OUT_W", "SIZE", "ROW", "C", "N"])
def quartered_stem_kernel(
    p_x, p_w0, p_bias0, t_w, p_bias, t_out, B, H, W, OUT_H, OUT_W, SIZE, ROW, C, N,
    PITCH_C: gl.constexpr, SLOPE: gl.constexpr, BLOCK_H: gl.constexpr, BLOCK_W: gl.constexpr, AHEAD: gl.constexpr,
):  # fmt: skip
    """What `stem_kernel` computes, with at most 64 channels, from an image of three channels whose pixels are packed;
    H and W are those of f0. AHEAD, for the second weight, as in `ring_kernel`."""
    n_h = gl.cdiv(OUT_H, BLOCK_H)
    n_w = gl.cdiv(OUT_W, BLOCK_W)
    n_tiles = B * n_h * n_w
    DTYPE: gl.constexpr = p_x.dtype.element_ty
    SLOT: gl.constexpr = (4 * BLOCK_H + 2) * _PITCH
    # The last tap reads pixels behind its quarter, for columns that are not stored.
    pixels = allocate_pixels(DTYPE, 2 * SLOT + 8, _CHANNELS)
    weights = gl.allocate_shared_memory(DTYPE, [9, 1, _CHANNELS, _CHANNELS], t_w.layout)
    first = gl.allocate_shared_memory(DTYPE, [3, 4 * _PACK, _CHANNELS], gl.NVMMASharedLayout(128, 16, rank=2))
    loaded = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(2):
        mbarrier.init(loaded.index(i), count=1)
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=1)
    gl.warp_specialize(
        [
            (
                consume,
                (
                    t_w, t_out, p_bias, pixels, weights, loaded, full, empty, n_tiles, n_h, n_w, OUT_H, N,
                    SLOPE, BLOCK_H, BLOCK_W, SLOT, AHEAD,
                ),
            ),
            (
                produce,
                (
                    p_x, p_w0, p_bias0, pixels, first, loaded, full, empty, n_tiles, n_h, n_w, H, W, SIZE, ROW, C,
                    0, PITCH_C, SLOPE, BLOCK_H, BLOCK_W, SLOT,
                ),
            ),
            (
                produce,
                (
                    p_x, p_w0, p_bias0, pixels, first, loaded, full, empty, n_tiles, n_h, n_w, H, W, SIZE, ROW, C,
                    1, PITCH_C, SLOPE, BLOCK_H, BLOCK_W, SLOT,
                ),
            ),
        ],
        [4, 4],
        [168, 168],
    )  # fmt: skip
