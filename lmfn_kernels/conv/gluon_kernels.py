"""The 3x3 convolution of stride 1 for Hopper (sm_90), in Gluon: each pixel is loaded once, not once per tap.

Names as in `runtime/kernels.py`. A persistent program has one warp that loads tiles of pixels by TMA into a ring of
slots in shared memory, and two warpgroups that each take every second tile. All nine matrices of the weight stay in
shared memory. A slot has two barriers for the arrival of its tiles, used in turns, so that one warpgroup waits for all
phases of a barrier: with an odd number of slots, it would otherwise skip every second phase, and a barrier shows only
whether the number of its phase is even.

If both warpgroups multiply at once, each takes twice as long, and then both compute results while the tensor cores
idle. ORDERED, they take turns: one begins to multiply when the other has issued the last product of its tile, whose
results are computed meanwhile. Each has a barrier for its turns. The second output of a stage is multiplied after the
first row of taps, and computed during the others.

A tile is BLOCK_H + 2 rows of PITCH pixels of 64 channels. Its products are transposed, weight [outputs, inputs] times
pixels [inputs, BLOCK_H * PITCH], with the pixels of all rows in one sequence. The operand of tap (i, j) therefore is
the same memory from pixel i * PITCH + j on. This works for every j because Hopper's 128-byte swizzle depends on bits 7
to 9 of the address in shared memory and not on the start of a matrix. The last two columns of each row combine two rows
and are not stored, so a tile has BLOCK_W = PITCH - 2 columns of results. What Gluon itself loads from and stores to
shared memory must start at a multiple of 8 pixels, as it counts rows from the start.

Pixels are in 16 bits, or in 8 (e4m3). Then they are 64 bytes apart, with the 64-byte swizzle, which depends on bits 7
and 8, and weights are [outputs, inputs], as `wgmma` takes 8 bits only with the inputs contiguous. A stage that reads or
writes e4m3 adds its input as a tenth tap with a diagonal matrix. So the input and the sums may have different scales,
and the tile's center need not start at a multiple of 8 pixels, which it could not in 8 bits, since TMA needs the tile
to start at an even one.

The input gradient is the same convolution with the taps in reverse order and each matrix transposed. As the forward
pass transposes what it loads, [inputs, outputs], the input gradient multiplies by it as it lies.

In the weight gradient, the products sum over pixels: g transposed [outputs, pixels] times x [pixels, inputs]. Whether
such a matrix may start at any pixel is not known. So only a tap's row is an offset into the tile of x, a multiple of 8
pixels; for its column, g is loaded three times, one column apart each, and a tile of x has no columns around it. Every
product is counted once, as tiles divide the columns of x and not of g, and outside the images TMA loads zeros. Each of
three warpgroups sums a column of taps: it has g in registers, as the left operand of three products.
"""

# ruff: noqa: N803, SIM113  (names of constants are upper-case; Gluon has no enumerate)

from typing import Any

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from lmfn_kernels.runtime.gluon_private import allocate_pixels, async_load, async_store, part, thread_barrier, view
from lmfn_kernels.runtime.kernels import wait_for_previous_launch

PITCH = 32
ROWS = 4
"""With 8, registers spill if there is a residual."""
TILES = (ROWS, PITCH), (8, 16)
"""The second one for input gradients, where it is fewer turns: 64 columns take three tiles of 30, two thirds full."""
CHANNELS = 64
BOX = PITCH // 2
"""Pixels of a row that are stored at once: a power of two. The two boxes of a row overlap, with equal values."""
PAIRED_ROWS, PAIRED_COLUMNS = 8, 16
"""A tile of `ring_weight_gradient_kernel`."""
SHARED = 231_000
"""Bytes of shared memory for slots and weights; sm_90 has 232,448, and barriers take some."""

_CHANNELS, _SHARED = map(gl.constexpr, (CHANNELS, SHARED))


@gluon.jit
def matrix_at(
    pixels, O_P: gl.constexpr, DTYPE: gl.constexpr, PIXELS: gl.constexpr, CHANNELS: gl.constexpr = _CHANNELS
):  # fmt: skip
    """The memory from pixel O_P on as a matrix [CHANNELS, PIXELS] of that dtype."""
    BITS: gl.constexpr = DTYPE.primitive_bitwidth
    LAYOUT: gl.constexpr = gl.NVMMASharedLayout(CHANNELS * BITS // 8, BITS, rank=2)
    return view(pixels, O_P, DTYPE, [PIXELS, CHANNELS], LAYOUT).permute((1, 0))


@gluon.jit
def box_at(pixels, O_P: gl.constexpr, t_x):
    """The memory from pixel O_P on as a box of that descriptor."""
    SHAPE: gl.constexpr = t_x.block_type.shape
    LAYOUT: gl.constexpr = t_x.layout
    return view(pixels, O_P, t_x.dtype, SHAPE, LAYOUT)


@gluon.jit
def load_box(t_x, i_b, o_h, o_w, bar, pixels, O_P: gl.constexpr):
    async_load(t_x, [i_b, o_h, o_w, 0], bar, box_at(pixels, O_P, t_x))


@gluon.jit
def store_box(t_x, i_b, o_h, o_w, pixels, O_P: gl.constexpr):
    async_store(t_x, [i_b, o_h, o_w, 0], box_at(pixels, O_P, t_x))


@gluon.jit
def store_rows(
    t_x, i_b, o_h, o_w, pixels, O_P: gl.constexpr, BLOCK_H: gl.constexpr, BLOCK_W: gl.constexpr
):  # fmt: skip
    OURS: gl.constexpr = pixels.dtype.primitive_bitwidth
    ITS: gl.constexpr = t_x.dtype.primitive_bitwidth
    PITCH: gl.constexpr = BLOCK_W + 2
    SECOND: gl.constexpr = BLOCK_W - t_x.block_type.shape[2]
    for i in gl.static_range(BLOCK_H):
        store_box(t_x, i_b, o_h + i, o_w, pixels, O_P + i * PITCH * ITS // OURS)
        store_box(t_x, i_b, o_h + i, o_w + SECOND, pixels, O_P + (i * PITCH + SECOND) * ITS // OURS)


@gluon.jit
def tile_at(i_tile, n_h, n_w, BLOCK_H: gl.constexpr, BLOCK_W: gl.constexpr):
    """Image, first row and first column of tile `i_tile`."""
    i_row = i_tile // n_w  # of all images
    return i_row // n_h, i_row % n_h * BLOCK_H, (i_tile - i_row * n_w) * BLOCK_W


@gluon.jit
def load_weights(t_w, t_dw, weights, dw, loaded, MODE: gl.constexpr, ROW: gl.constexpr, TAPS: gl.constexpr):
    """Load a row of taps, with the first one the weight of the 1x1 convolution, with the last one a tenth tap."""
    LAST: gl.constexpr = TAPS if ROW == 2 else 3 * ROW + 3
    WITH_DW: gl.constexpr = t_dw is not None and ROW == 0
    bar = loaded.index(ROW)
    mbarrier.expect(bar, (LAST - 3 * ROW) * t_w.block_type.nbytes + (t_dw.block_type.nbytes if WITH_DW else 0))
    for i in gl.static_range(3 * ROW, LAST):
        async_load(t_w, [i if MODE == "same" else 8 - i, 0, 0], bar, weights.index(i))
    if WITH_DW:
        async_load(t_dw, [0, 0, 0], bar, dw)


@gluon.jit
def produce(
    t_x, t_residual, t_z, t_mask, t_w, t_dw, pixels, weights, dw, loaded, full, empty, i_program, programs,
    n_tiles, n_h, n_w,
    MODE: gl.constexpr, PADDING: gl.constexpr, BLOCK_H: gl.constexpr, BLOCK_W: gl.constexpr,
    SLOTS: gl.constexpr, SLOT: gl.constexpr, FIRST: gl.constexpr, RESIDUAL: gl.constexpr, Z: gl.constexpr,
    MASK: gl.constexpr, TAPS: gl.constexpr, AHEAD: gl.constexpr,
):  # fmt: skip
    """Load the tiles of this program, in order, each as soon as its slot is empty."""
    PITCH: gl.constexpr = BLOCK_W + 2
    TILE: gl.constexpr = (BLOCK_H + 2) * PITCH
    WITH_RESIDUAL: gl.constexpr = t_residual is not None and RESIDUAL == TILE
    BYTES: gl.constexpr = t_x.dtype.primitive_bitwidth // 8
    LOADED: gl.constexpr = (
        TILE * _CHANNELS * BYTES
        + (t_residual.block_type.nbytes if WITH_RESIDUAL else 0)
        + (t_z.block_type.nbytes if t_z is not None else 0)
        + (t_mask.block_type.nbytes if t_mask is not None else 0)
    )
    if not AHEAD:
        wait_for_previous_launch()
    load_weights(t_w, t_dw, weights, dw, loaded, MODE, 0, TAPS)
    if AHEAD:
        load_weights(t_w, t_dw, weights, dw, loaded, MODE, 1, TAPS)
        load_weights(t_w, t_dw, weights, dw, loaded, MODE, 2, TAPS)
        wait_for_previous_launch()
    i_turn = 0
    for i_tile in range(i_program, n_tiles, programs):
        i_slot = i_turn % SLOTS
        slot = part(pixels, i_slot, SLOT, SLOT)
        bar = full.index(i_turn % (2 * SLOTS))
        mbarrier.wait(empty.index(i_slot), (i_turn // SLOTS & 1) ^ 1)
        i_b, o_h, o_w = tile_at(i_tile, n_h, n_w, BLOCK_H, BLOCK_W)
        mbarrier.expect(bar, LOADED)
        for i in gl.static_range(0, BLOCK_H + 2, 2):
            load_box(t_x, i_b, o_h - PADDING + i, o_w - PADDING, bar, slot, FIRST + i * PITCH)
        if WITH_RESIDUAL:
            load_box(t_residual, i_b, o_h, o_w, bar, slot, RESIDUAL)
        if t_z is not None:
            load_box(t_z, i_b, o_h, o_w, bar, slot, Z)
        if t_mask is not None:
            load_box(t_mask, i_b, o_h, o_w, bar, slot, MASK)
        if not AHEAD and i_turn == 0:
            load_weights(t_w, t_dw, weights, dw, loaded, MODE, 1, TAPS)
            load_weights(t_w, t_dw, weights, dw, loaded, MODE, 2, TAPS)
        i_turn += 1


@gluon.jit
def product(b_w, b_x, b_out, MODE: gl.constexpr):
    """Add a tap [1, inputs, outputs] times pixels."""
    b_w = b_w.reshape([b_w.shape[1], b_w.shape[2]])
    if MODE == "same" and b_x.dtype.primitive_bitwidth == 16:
        b_w = b_w.permute((1, 0))
    return warpgroup_mma(b_w, b_x, b_out, is_async=True)


@gluon.jit
def load_channels(p_x, N, LAYOUT: gl.constexpr):
    """A value per channel, in float32."""
    o_n = gl.arange(0, _CHANNELS, layout=gl.SliceLayout(1, LAYOUT))
    return gl.load(p_x + o_n, mask=o_n < N, other=0.0).to(gl.float32)[:, None]


@gluon.jit
def leaky(b_x, SLOPE: gl.constexpr):
    """As in `runtime/kernels.py`; `tests/kernels/hopper.py` runs functions of Gluon alone."""
    if SLOPE == 1.0:
        return b_x
    if SLOPE == 0.0:
        return gl.where(b_x < 0, 0.0, b_x)
    return gl.where(b_x < 0, b_x * SLOPE, b_x)


@gluon.jit
def stage(pixels, O_P: gl.constexpr, b_x, N, DTYPE: gl.constexpr, PIXELS: gl.constexpr, LAYOUT: gl.constexpr):
    """Write a result to shared memory, with zeros after its N channels: there, infinity times a weight of 0 is NaN.

    What e4m3 cannot hold becomes its largest value.
    """
    o_n = gl.arange(0, _CHANNELS, layout=gl.SliceLayout(1, LAYOUT))
    if DTYPE.primitive_bitwidth == 16:
        # All bits or none, by an instruction for two values: from a comparison, the compiler makes one for each.
        m_n = ((o_n - N) >> 31).to(gl.int16)[:, None]
        b_x = (b_x.to(DTYPE).to(gl.int16, bitcast=True) & m_n).to(DTYPE, bitcast=True)
    else:
        b_x = gl.where((o_n < N)[:, None], b_x, 0.0).to(DTYPE)
    matrix_at(pixels, O_P, DTYPE, PIXELS).store(b_x)


@gluon.jit
def consume(
    t_out, t_d, p_factor, p_bias, p_dfactor, p_dbias, t_residual, t_z, t_mask, pixels, weights, dw, loaded, full, empty,
    turns, i_program, programs, n_tiles, n_h, n_w, N, D,
    GROUP: gl.constexpr, MODE: gl.constexpr, SLOPE: gl.constexpr, MASK_SLOPE: gl.constexpr,
    BLOCK_H: gl.constexpr, BLOCK_W: gl.constexpr, SLOTS: gl.constexpr, SLOT: gl.constexpr, FIRST: gl.constexpr,
    RESIDUAL: gl.constexpr, Z: gl.constexpr, MASK: gl.constexpr, TAPS: gl.constexpr,
):  # fmt: skip
    """Compute every second tile of this program; a result is staged in the tile's own slot."""
    wait_for_previous_launch()
    PITCH: gl.constexpr = BLOCK_W + 2
    PIXELS: gl.constexpr = BLOCK_H * PITCH
    BITS: gl.constexpr = pixels.dtype.primitive_bitwidth
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, PIXELS, 256 // BITS])
    EIGHT: gl.constexpr = BITS == 8
    STAGED: gl.constexpr = RESIDUAL if EIGHT and t_residual is not None and t_d is None else 0
    STAGED_D: gl.constexpr = SLOTS * SLOT + GROUP * PIXELS * (2 if EIGHT else 1)
    i_turn = GROUP
    for i_tile in range(i_program + GROUP * programs, n_tiles, 2 * programs):
        i_slot = i_turn % SLOTS
        slot = part(pixels, i_slot, SLOT, SLOT + 8)  # the last tap reads two pixels behind it
        i_b, o_h, o_w = tile_at(i_tile, n_h, n_w, BLOCK_H, BLOCK_W)
        b_out = gl.zeros([_CHANNELS, PIXELS], gl.float32, LAYOUT)
        mbarrier.wait(full.index(i_turn % (2 * SLOTS)), i_turn // (2 * SLOTS) & 1)
        if turns is not None:
            mbarrier.wait(turns.index(GROUP), (i_turn // 2 & 1) ^ (1 - GROUP))  # the first tile has its turn
        for i in gl.static_range(3):
            mbarrier.wait(loaded.index(i), 0)
            for j in gl.static_range(3):
                b_x = matrix_at(slot, FIRST + i * PITCH + j, pixels.dtype, PIXELS)
                b_out = product(weights.index(3 * i + j), b_x, b_out, MODE)
            if t_d is not None and i == 0:
                b_d = gl.zeros([_CHANNELS, PIXELS], gl.float32, LAYOUT)
                b_d = product(dw, matrix_at(slot, RESIDUAL, pixels.dtype, PIXELS), b_d, MODE)
        if t_z is not None:
            b_z = matrix_at(slot, Z, t_z.dtype, PIXELS, t_z.block_type.shape[3])
            b_out = product(dw, b_z, b_out, MODE)
        if TAPS == 10:
            b_out = product(weights.index(9), matrix_at(slot, RESIDUAL, pixels.dtype, PIXELS), b_out, MODE)
        if turns is not None:
            mbarrier.arrive(turns.index(1 - GROUP), count=1)
        if t_d is not None:
            # The products of the other rows go on while d is computed; those of the first one are done with it.
            b_d = warpgroup_mma_wait(num_outstanding=TAPS - 3 if turns is not None else 0, deps=(b_d,))
            if p_dfactor is not None:
                b_d *= load_channels(p_dfactor, D, LAYOUT)
            b_d = leaky(b_d + load_channels(p_dbias, D, LAYOUT), SLOPE)
            stage(pixels, STAGED_D, b_d, D, t_d.dtype, PIXELS, LAYOUT)
        b_out = warpgroup_mma_wait(num_outstanding=0, deps=(b_out,))
        if p_factor is not None:
            b_out *= load_channels(p_factor, N, LAYOUT)
        if p_bias is not None:
            b_out += load_channels(p_bias, N, LAYOUT)
        if t_residual is not None and TAPS == 9:
            b_out += matrix_at(slot, RESIDUAL, t_residual.dtype, PIXELS).load(LAYOUT).to(gl.float32)
        b_out = leaky(b_out, SLOPE)
        if t_mask is not None:
            b_mask = matrix_at(slot, MASK, t_mask.dtype, PIXELS).load(LAYOUT)
            b_out = gl.where(b_mask > 0, b_out, 0.0 if MASK_SLOPE == 0.0 else b_out * MASK_SLOPE)
        # A warp has waited for its own products; those of the others may still read the tile. Triton takes products for
        # done at the first barrier after their start, which may be that before the turn ends.
        thread_barrier()
        stage(slot, STAGED, b_out, N, t_out.dtype, PIXELS, LAYOUT)
        fence_async_shared()
        store_rows(t_out, i_b, o_h, o_w, slot, STAGED, BLOCK_H, BLOCK_W)
        if t_d is not None:
            store_rows(t_d, i_b, o_h, o_w, pixels, STAGED_D, BLOCK_H, BLOCK_W)
        tma.store_wait(0)
        mbarrier.arrive(empty.index(i_slot), count=1)
        i_turn += 2


@gluon.jit
def of_map(x, x2, x3, FIRST2, FIRST3):
    """What this program takes of two or three maps: from program FIRST2 on the second one, from FIRST3 on the third."""
    if x2 is not None and gl.program_id(0) >= FIRST2:
        x = x2
    if x3 is not None and gl.program_id(0) >= FIRST3:
        x = x3
    return x


@gluon.jit(do_not_specialize=["B", "H", "W", "B2", "H2", "W2", "B3", "H3", "W3", "FIRST2", "FIRST3", "N", "D"])
def ring_kernel(
    t_x, t_w, p_factor, p_bias, t_residual, t_z, t_mask, t_out, t_dw, p_dfactor, p_dbias, t_d,
    t_x2, t_w2, p_bias2, t_residual2, t_mask2, t_out2, t_x3, t_w3, p_bias3, t_residual3, t_mask3, t_out3,
    B, H, W, B2, H2, W2, B3, H3, W3, FIRST2, FIRST3, N, D,
    MODE: gl.constexpr, PADDING: gl.constexpr, SLOPE: gl.constexpr, MASK_SLOPE: gl.constexpr,
    BLOCK_H: gl.constexpr, BLOCK_W: gl.constexpr, ORDERED: gl.constexpr, AHEAD: gl.constexpr,
):  # fmt: skip
    """out = leaky(conv(x) + bias + residual), H x W, or an input gradient, with at most 64 channels before and after.

    MODE, `t_z`, `t_dw`, `t_mask` and `t_d` as in `conv_kernel`; with `t_dw`, the residual is x. Sums of products are
    multiplied by a factor per channel, if given. ORDERED: the products of two tiles are not mixed. A second and a third
    map of other sizes are computed as well, if given, each by the programs from FIRST2 and FIRST3 on. AHEAD:
    weights are loaded before the wait for the previous launch.
    """
    i_program = gl.program_id(0)
    programs = gl.num_programs(0)
    if t_x2 is not None:
        programs = of_map(FIRST2, FIRST3 - FIRST2, programs - FIRST3, FIRST2, FIRST3)
        i_program = of_map(i_program, i_program - FIRST2, i_program - FIRST3, FIRST2, FIRST3)
        t_x = of_map(t_x, t_x2, t_x3, FIRST2, FIRST3)
        t_w = of_map(t_w, t_w2, t_w3, FIRST2, FIRST3)
        t_out = of_map(t_out, t_out2, t_out3, FIRST2, FIRST3)
        if p_bias is not None:
            p_bias = of_map(p_bias, p_bias2, p_bias3, FIRST2, FIRST3)
        if t_residual is not None:
            t_residual = of_map(t_residual, t_residual2, t_residual3, FIRST2, FIRST3)
        if t_mask is not None:
            t_mask = of_map(t_mask, t_mask2, t_mask3, FIRST2, FIRST3)
        B = of_map(B, B2, B3, FIRST2, FIRST3)
        H = of_map(H, H2, H3, FIRST2, FIRST3)
        W = of_map(W, W2, W3, FIRST2, FIRST3)
    n_h = gl.cdiv(H, BLOCK_H)
    n_w = gl.cdiv(W, BLOCK_W)
    n_tiles = B * n_h * n_w
    PITCH: gl.constexpr = BLOCK_W + 2
    PIXELS: gl.constexpr = BLOCK_H * PITCH
    TILE: gl.constexpr = PIXELS + 2 * PITCH
    BITS: gl.constexpr = t_x.dtype.primitive_bitwidth
    EIGHT: gl.constexpr = BITS == 8
    TENTH: gl.constexpr = t_d is not None and (EIGHT or t_out.dtype.primitive_bitwidth == 8)
    # With a 1x1 convolution, the residual is the tile's own center: if loaded, it must start at a multiple of 8 pixels.
    FIRST: gl.constexpr = 0 if t_dw is None or TENTH else 7
    RESIDUAL: gl.constexpr = TILE if t_dw is None else FIRST + PITCH + 1
    # A residual and the result are in 16 bits, twice as large as pixels in 8.
    RESULT: gl.constexpr = 2 * PIXELS if EIGHT else PIXELS
    ALONE: gl.constexpr = RESULT if EIGHT else TILE if t_dw is None else TILE + 8
    Z: gl.constexpr = TILE + RESULT if t_residual is not None and t_dw is None else ALONE
    MASK: gl.constexpr = Z if t_z is None else Z + PIXELS * t_z.block_type.shape[3] // _CHANNELS
    SLOT: gl.constexpr = MASK if t_mask is None else MASK + PIXELS
    # Behind the slots: the second output is staged. The last tap reads two pixels of it, or of the next slot, for
    # columns that are not stored.
    REST: gl.constexpr = 8 if t_d is None else 2 * RESULT
    TAPS: gl.constexpr = 10 if TENTH else 9
    WEIGHTS: gl.constexpr = TAPS * t_w.block_type.nbytes + (t_dw.block_type.nbytes if t_dw is not None else 0)
    ROOM: gl.constexpr = (_SHARED - WEIGHTS) // (_CHANNELS * BITS // 8) - REST
    SLOTS: gl.constexpr = 4 if ROOM >= 4 * SLOT else ROOM // SLOT
    pixels = allocate_pixels(t_x.dtype, SLOTS * SLOT + REST, _CHANNELS)
    weights = gl.allocate_shared_memory(t_x.dtype, [TAPS, 1, _CHANNELS, _CHANNELS], t_w.layout)
    if t_dw is None:
        dw: gl.constexpr = None
    else:
        dw = gl.allocate_shared_memory(t_x.dtype, t_dw.block_type.shape, t_dw.layout)
    loaded = gl.allocate_shared_memory(gl.int64, [3, 1], mbarrier.MBarrierLayout())
    full = gl.allocate_shared_memory(gl.int64, [2 * SLOTS, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(3):
        mbarrier.init(loaded.index(i), count=1)
    for i in gl.static_range(SLOTS):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(full.index(SLOTS + i), count=1)
        mbarrier.init(empty.index(i), count=1)
    if not ORDERED:
        turns: gl.constexpr = None
    else:
        turns = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
        mbarrier.init(turns.index(0), count=1)
        mbarrier.init(turns.index(1), count=1)
    gl.warp_specialize(
        [
            (
                consume,
                (
                    t_out, t_d, p_factor, p_bias, p_dfactor, p_dbias, t_residual, t_z, t_mask, pixels, weights, dw,
                    loaded, full, empty, turns, i_program, programs, n_tiles, n_h, n_w, N, D,
                    0, MODE, SLOPE, MASK_SLOPE, BLOCK_H, BLOCK_W, SLOTS, SLOT, FIRST, RESIDUAL, Z, MASK, TAPS,
                ),
            ),
            (
                consume,
                (
                    t_out, t_d, p_factor, p_bias, p_dfactor, p_dbias, t_residual, t_z, t_mask, pixels, weights, dw,
                    loaded, full, empty, turns, i_program, programs, n_tiles, n_h, n_w, N, D,
                    1, MODE, SLOPE, MASK_SLOPE, BLOCK_H, BLOCK_W, SLOTS, SLOT, FIRST, RESIDUAL, Z, MASK, TAPS,
                ),
            ),
            (
                produce,
                (
                    t_x, t_residual, t_z, t_mask, t_w, t_dw, pixels, weights, dw, loaded, full, empty,
                    i_program, programs, n_tiles, n_h, n_w,
                    MODE, PADDING, BLOCK_H, BLOCK_W, SLOTS, SLOT, FIRST, RESIDUAL, Z, MASK, TAPS, AHEAD,
                ),
            ),
        ],
        [4, 1],
        [232, 40],
    )  # fmt: skip


@gluon.jit
def produce_pairs(
    t_g, t_x, i_split, splits, pixels, full, empty, n_tiles, n_h, n_w,
    PADDING: gl.constexpr, BLOCK_H: gl.constexpr, BLOCK_W: gl.constexpr, SLOTS: gl.constexpr,
):  # fmt: skip
    """Load the tiles of this program, in order, each as soon as its slot is empty: x, then g three times."""
    PIXELS: gl.constexpr = BLOCK_H * BLOCK_W
    TILE: gl.constexpr = PIXELS + 2 * BLOCK_W
    SLOT: gl.constexpr = TILE + 3 * PIXELS
    i_turn = 0
    for i_tile in range(i_split, n_tiles, splits):
        slot = part(pixels, i_turn % SLOTS, SLOT, SLOT)
        bar = full.index(i_turn % SLOTS)
        mbarrier.wait(empty.index(i_turn % SLOTS), (i_turn // SLOTS & 1) ^ 1)
        i_b, o_h, o_w = tile_at(i_tile, n_h, n_w, BLOCK_H, BLOCK_W)
        mbarrier.expect(bar, SLOT * _CHANNELS * 2)
        for i in gl.static_range(0, BLOCK_H + 2, 2):
            load_box(t_x, i_b, o_h - PADDING + i, o_w, bar, slot, i * BLOCK_W)
        for j in gl.static_range(3):
            load_box(t_g, i_b, o_h, o_w + PADDING - j, bar, slot, TILE + j * PIXELS)
        i_turn += 1


@gluon.jit
def produce_of_one(
    t_g, t_x, t_g2, t_x2, t_g3, t_x3, splits, pixels, full, empty, n_tiles, n_h, n_w,
    PADDING: gl.constexpr, BLOCK_H: gl.constexpr, BLOCK_W: gl.constexpr, SLOTS: gl.constexpr,
):  # fmt: skip
    """The first `splits` programs load from g and x, the next from g2 and x2, the last from g3 and x3, if given."""
    wait_for_previous_launch()
    i_split = gl.program_id(0)
    if t_g2 is None or i_split < splits:
        produce_pairs(
            t_g, t_x, i_split, splits, pixels, full, empty, n_tiles, n_h, n_w, PADDING, BLOCK_H, BLOCK_W, SLOTS
        )  # fmt: skip
    elif t_g3 is None or i_split < 2 * splits:
        produce_pairs(
            t_g2, t_x2, i_split - splits, splits, pixels, full, empty, n_tiles, n_h, n_w,
            PADDING, BLOCK_H, BLOCK_W, SLOTS,
        )  # fmt: skip
    else:
        produce_pairs(
            t_g3, t_x3, i_split - 2 * splits, splits, pixels, full, empty, n_tiles, n_h, n_w,
            PADDING, BLOCK_H, BLOCK_W, SLOTS,
        )  # fmt: skip


@gluon.jit
def add_column(
    p_dw, p_db, splits, pixels, full, empty, n_tiles, K, N,
    J: gl.constexpr, BLOCK_H: gl.constexpr, BLOCK_W: gl.constexpr, SLOTS: gl.constexpr,
):  # fmt: skip
    """The sums of the taps of column J, and with the middle one those of the bias."""
    wait_for_previous_launch()
    PIXELS: gl.constexpr = BLOCK_H * BLOCK_W
    TILE: gl.constexpr = PIXELS + 2 * BLOCK_W
    SLOT: gl.constexpr = TILE + 3 * PIXELS
    PART: gl.constexpr = PIXELS // 4
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, _CHANNELS, 16])
    LEFT: gl.constexpr = gl.DotOperandLayout(0, LAYOUT, 2)
    b_dw0 = gl.zeros([_CHANNELS, _CHANNELS], gl.float32, LAYOUT)
    b_dw1 = gl.zeros([_CHANNELS, _CHANNELS], gl.float32, LAYOUT)
    b_dw2 = gl.zeros([_CHANNELS, _CHANNELS], gl.float32, LAYOUT)
    b_db = gl.zeros([_CHANNELS], gl.float32, gl.SliceLayout(1, LEFT))
    i_turn = 0
    for _ in range(gl.program_id(0) % splits, n_tiles, splits):
        i_slot = i_turn % SLOTS
        slot = part(pixels, i_slot, SLOT, SLOT)
        mbarrier.wait(full.index(i_slot), i_turn // SLOTS & 1)
        for i_part in gl.static_range(4):
            b_g = matrix_at(slot, TILE + J * PIXELS + i_part * PART, pixels.dtype, PART).load(LEFT)
            b_x0 = matrix_at(slot, i_part * PART, pixels.dtype, PART).permute((1, 0))
            b_x1 = matrix_at(slot, i_part * PART + BLOCK_W, pixels.dtype, PART).permute((1, 0))
            b_x2 = matrix_at(slot, i_part * PART + 2 * BLOCK_W, pixels.dtype, PART).permute((1, 0))
            b_dw0 = warpgroup_mma(b_g, b_x0, b_dw0, is_async=True)
            b_dw1 = warpgroup_mma(b_g, b_x1, b_dw1, is_async=True)
            b_dw2 = warpgroup_mma(b_g, b_x2, b_dw2, is_async=True)
            if J == 1:
                b_db += gl.sum(b_g.to(gl.float32), axis=1)
            # These three go on while the next part is loaded; those before them are done with their registers.
            b_dw0, b_dw1, b_dw2 = warpgroup_mma_wait(num_outstanding=3, deps=(b_dw0, b_dw1, b_dw2))
        b_dw0, b_dw1, b_dw2 = warpgroup_mma_wait(num_outstanding=0, deps=(b_dw0, b_dw1, b_dw2))
        thread_barrier()  # one thread of the warpgroup arrives for all
        mbarrier.arrive(empty.index(i_slot), count=1)
        i_turn += 1
    o_n = gl.arange(0, _CHANNELS, layout=gl.SliceLayout(1, LAYOUT))
    o_k = gl.arange(0, _CHANNELS, layout=gl.SliceLayout(0, LAYOUT))
    m_w = (o_n < N)[:, None] & (o_k < K)[None, :]
    p_part = p_dw + (gl.program_id(0) * 9 + J) * N * K + o_n[:, None] * K + o_k[None, :]
    gl.store(p_part, b_dw0, mask=m_w)
    gl.store(p_part + 3 * N * K, b_dw1, mask=m_w)
    gl.store(p_part + 6 * N * K, b_dw2, mask=m_w)
    if J == 1:
        o_n = gl.arange(0, _CHANNELS, layout=gl.SliceLayout(1, LEFT))
        gl.store(p_db + gl.program_id(0) * N + o_n, b_db, mask=o_n < N)


@gluon.jit(do_not_specialize=["B", "H", "W", "K", "N"])
def ring_weight_gradient_kernel(
    t_g, t_x, t_g2, t_x2, t_g3, t_x3, p_dw, p_db, B, H, W, K, N,
    CONVS: gl.constexpr, PADDING: gl.constexpr, BLOCK_H: gl.constexpr, BLOCK_W: gl.constexpr,
):  # fmt: skip
    """What `weight_gradient_kernel` computes, for a 3x3 convolution of stride 1 with at most 64 channels, or for two or
    three of the same size, each by a part of the programs.

    H is the height of g, W the width of x. A partial sum of the weight's gradient is [taps, outputs, inputs].
    """
    splits = gl.num_programs(0) // CONVS
    n_h = gl.cdiv(H, BLOCK_H)
    n_w = gl.cdiv(W, BLOCK_W)
    n_tiles = B * n_h * n_w
    PIXELS: gl.constexpr = BLOCK_H * BLOCK_W
    SLOT: gl.constexpr = 4 * PIXELS + 2 * BLOCK_W
    SLOTS: gl.constexpr = _SHARED // (SLOT * _CHANNELS * 2)
    pixels = allocate_pixels(t_x.dtype, SLOTS * SLOT, _CHANNELS)
    full = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(SLOTS):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=3)
    gl.warp_specialize(
        [
            (add_column, (p_dw, p_db, splits, pixels, full, empty, n_tiles, K, N, 1, BLOCK_H, BLOCK_W, SLOTS)),
            (add_column, (p_dw, p_db, splits, pixels, full, empty, n_tiles, K, N, 0, BLOCK_H, BLOCK_W, SLOTS)),
            (add_column, (p_dw, p_db, splits, pixels, full, empty, n_tiles, K, N, 2, BLOCK_H, BLOCK_W, SLOTS)),
            (
                produce_of_one,
                (
                    t_g, t_x, t_g2, t_x2, t_g3, t_x3, splits, pixels, full, empty, n_tiles, n_h, n_w,
                    PADDING, BLOCK_H, BLOCK_W, SLOTS,
                ),
            ),
        ],
        [4, 4, 1],
        [152, 152, 32],
    )  # fmt: skip


def descriptor(x: Any, shape: list[int], strides: list[int], block: list[int]) -> TensorDescriptor:
    """A descriptor of blocks whose channels fill 32, 64 or 128 bytes, with the widest swizzle that they fill."""
    size = x.dtype.itemsize
    return TensorDescriptor(x, shape, strides, block, gl.NVMMASharedLayout(size * block[-1], 8 * size, rank=len(block)))
