"""Kernels of the ALFM. Names and conventions as in `runtime/kernels.py`; windows and shares as in `windows.py`.

A slot is up to 64 channels of one map: `p_x` is the map's pointer, `o_c` the slot's first channel, and `o_r` its first
row among the NC rows of F.
"""

# ruff: noqa: N803  (names of constants are upper-case)

import triton
import triton.language as tl

from lmfn_kernels.runtime.kernels import (
    leaky,
    leaky_gradient,
    load_bias,
    load_pitched,
    load_pixels,
    load_weight,
    pixel_tile,
    store_pixels,
    wait_for_previous_launch,
)


@triton.jit
def store_block(p_out, o_row, o_column, ROWS, COLUMNS, SIZE, b_x):
    """A block of a matrix with SIZE columns, of which ROWS x COLUMNS are valid."""
    o_i = tl.arange(0, b_x.shape[0])[:, None]
    o_j = tl.arange(0, b_x.shape[1])[None, :]
    tl.store(p_out + (o_row + o_i) * SIZE + o_column + o_j, b_x, mask=(o_i < ROWS) & (o_j < COLUMNS))


@triton.jit
def image_block(i_block, SIDE_H, SIDE_W, ROWS, COLUMNS):
    """Image, first row and first column of a block."""
    i_rest = i_block % (ROWS * COLUMNS)
    return i_block // (ROWS * COLUMNS), i_rest // COLUMNS * SIDE_H, i_rest % COLUMNS * SIDE_W


@triton.jit
def axis_share(o_x, SIDE, i_window, COUNT, ACC: tl.constexpr):
    """The share of window `i_window` of COUNT along an axis, centred at (i_window + 1) * SIDE, at pixels `o_x`."""
    b_near = tl.minimum(tl.maximum((o_x.to(ACC) + 0.5) / SIDE - 1.0, 0.0), COUNT - 1.0)
    return tl.maximum(1.0 - tl.abs(b_near - i_window), 0.0)


@triton.jit
def windows_of_block(i_h, i_w, n_h, n_w):
    """The windows that contain block (i_h, i_w), of n_h x n_w windows: the first one, and how many along each axis."""
    o_h, o_w = tl.maximum(i_h - 1, 0), tl.maximum(i_w - 1, 0)
    return o_h, o_w, tl.minimum(i_h, n_h - 1) - o_h + 1, tl.minimum(i_w, n_w - 1) - o_w + 1


@triton.jit
def pixel_shares(
    o_h, o_w, i_h, i_w, SIDE_H, SIDE_W, ROWS, COLUMNS, ACC: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr
):  # fmt: skip
    """The shares of window (i_h, i_w) at the pixels of a tile, [pixels, 1]; 0 if there is no such window."""
    o_p = tl.arange(0, BLOCK_H * BLOCK_W)
    b_down = axis_share(o_h + o_p // BLOCK_W, SIDE_H, i_h, tl.maximum(ROWS - 1, 1), ACC)
    b_across = axis_share(o_w + o_p % BLOCK_W, SIDE_W, i_w, tl.maximum(COLUMNS - 1, 1), ACC)
    return (b_down * b_across)[:, None]


@triton.jit
def gram_kernel(
    p_x0, p_x1, p_x2, p_x3, o_c0, o_c1, o_c2, o_c3, o_r0, o_r1, o_r2, o_r3, p_out,
    H, W, SIDE_H, SIDE_W, ROWS, COLUMNS, C, SIZE, SPLITS,
    PITCH: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Products of up to four slots with each other over the pixels of one block of an image: a partial sum per program.

    Every tile is read once and contributes to up to ten blocks of the upper half of F F^T. By pointers, since the
    transpose of a tile loaded through a descriptor goes through registers, and each product then waits for the one
    before. Channels after the last one contribute to rows and columns that are not stored.
    """
    wait_for_previous_launch()
    i_block, i_split = tl.program_id(0), tl.program_id(1)
    i_b, o_top, o_left = image_block(i_block, SIDE_H, SIDE_W, ROWS, COLUMNS)
    b_00 = tl.zeros([BLOCK_C, BLOCK_C], ACC)
    b_01 = tl.zeros([BLOCK_C, BLOCK_C], ACC)
    b_02 = tl.zeros([BLOCK_C, BLOCK_C], ACC)
    b_03 = tl.zeros([BLOCK_C, BLOCK_C], ACC)
    b_11 = tl.zeros([BLOCK_C, BLOCK_C], ACC)
    b_12 = tl.zeros([BLOCK_C, BLOCK_C], ACC)
    b_13 = tl.zeros([BLOCK_C, BLOCK_C], ACC)
    b_22 = tl.zeros([BLOCK_C, BLOCK_C], ACC)
    b_23 = tl.zeros([BLOCK_C, BLOCK_C], ACC)
    b_33 = tl.zeros([BLOCK_C, BLOCK_C], ACC)
    n_tiles = tl.cdiv(SIDE_H, BLOCK_H) * tl.cdiv(SIDE_W, BLOCK_W)
    for i_tile in tl.range(i_split, n_tiles, SPLITS, num_stages=STAGES):
        _, o_h, o_w = pixel_tile(i_tile, SIDE_H, SIDE_W, BLOCK_H, BLOCK_W)
        o_h += o_top
        o_w += o_left
        b_x0 = load_pitched(p_x0, i_b, o_h, o_w, H, W, PITCH, BLOCK_H, BLOCK_W, BLOCK_C, o_c0)
        b_t0 = tl.trans(b_x0)
        b_00 = tl.dot(b_t0, b_x0, b_00, input_precision=PRECISION, out_dtype=ACC)
        if p_x1 is not None:
            b_x1 = load_pitched(p_x1, i_b, o_h, o_w, H, W, PITCH, BLOCK_H, BLOCK_W, BLOCK_C, o_c1)
            b_t1 = tl.trans(b_x1)
            b_01 = tl.dot(b_t0, b_x1, b_01, input_precision=PRECISION, out_dtype=ACC)
            b_11 = tl.dot(b_t1, b_x1, b_11, input_precision=PRECISION, out_dtype=ACC)
        if p_x2 is not None:
            b_x2 = load_pitched(p_x2, i_b, o_h, o_w, H, W, PITCH, BLOCK_H, BLOCK_W, BLOCK_C, o_c2)
            b_t2 = tl.trans(b_x2)
            b_02 = tl.dot(b_t0, b_x2, b_02, input_precision=PRECISION, out_dtype=ACC)
            b_12 = tl.dot(b_t1, b_x2, b_12, input_precision=PRECISION, out_dtype=ACC)
            b_22 = tl.dot(b_t2, b_x2, b_22, input_precision=PRECISION, out_dtype=ACC)
        if p_x3 is not None:
            b_x3 = load_pitched(p_x3, i_b, o_h, o_w, H, W, PITCH, BLOCK_H, BLOCK_W, BLOCK_C, o_c3)
            b_03 = tl.dot(b_t0, b_x3, b_03, input_precision=PRECISION, out_dtype=ACC)
            b_13 = tl.dot(b_t1, b_x3, b_13, input_precision=PRECISION, out_dtype=ACC)
            b_23 = tl.dot(b_t2, b_x3, b_23, input_precision=PRECISION, out_dtype=ACC)
            b_33 = tl.dot(tl.trans(b_x3), b_x3, b_33, input_precision=PRECISION, out_dtype=ACC)
    p_part = p_out + (i_split * tl.num_programs(0) + i_block).to(tl.int64) * SIZE * SIZE
    n_0, n_1, n_2, n_3 = C - o_c0, C - o_c1, C - o_c2, C - o_c3
    store_block(p_part, o_r0, o_r0, n_0, n_0, SIZE, b_00)
    if p_x1 is not None:
        store_block(p_part, o_r0, o_r1, n_0, n_1, SIZE, b_01)
        store_block(p_part, o_r1, o_r1, n_1, n_1, SIZE, b_11)
    if p_x2 is not None:
        store_block(p_part, o_r0, o_r2, n_0, n_2, SIZE, b_02)
        store_block(p_part, o_r1, o_r2, n_1, n_2, SIZE, b_12)
        store_block(p_part, o_r2, o_r2, n_2, n_2, SIZE, b_22)
    if p_x3 is not None:
        store_block(p_part, o_r0, o_r3, n_0, n_3, SIZE, b_03)
        store_block(p_part, o_r1, o_r3, n_1, n_3, SIZE, b_13)
        store_block(p_part, o_r2, o_r3, n_2, n_3, SIZE, b_23)
        store_block(p_part, o_r3, o_r3, n_3, n_3, SIZE, b_33)


@triton.jit
def sum_of_block(p_parts, i_block, BLOCKS, o_x, m_x, SIZE, SPLITS, UNROLL: tl.constexpr):
    """The sum of a block's partial sums at the offsets `o_x`; UNROLL of them are loaded at once."""
    b_sum = tl.zeros(o_x.shape, p_parts.dtype.element_ty)
    for o_split in tl.range(0, SPLITS, UNROLL, num_stages=1):
        for i in tl.static_range(UNROLL):
            p_part = p_parts + ((o_split + i) * BLOCKS + i_block).to(tl.int64) * SIZE * SIZE
            b_sum += tl.load(p_part + o_x, mask=m_x & (o_split + i < SPLITS), other=0.0)
    return b_sum


@triton.jit
def gram_sum_kernel(
    p_parts, p_out, ROWS, COLUMNS, BLOCKS, SIZE, SPLITS,
    TALL: tl.constexpr, WIDE: tl.constexpr, UNROLL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """F F^T of a window, which is two blocks high if `TALL` and two wide if `WIDE`, from the partial sums of the
    BLOCKS blocks of all images, in the order of `window_sums`.

    Of the partial sums, the upper half is read. A program has a tile of the upper half and its mirror image.
    """
    wait_for_previous_launch()
    o_i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[:, None]
    o_j = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)[None, :]
    m_x = (o_i <= o_j) & (o_j < SIZE)
    o_x = o_i * SIZE + o_j
    n_h = ROWS - 1 if TALL else ROWS
    n_w = COLUMNS - 1 if WIDE else COLUMNS
    i_out = tl.program_id(0)
    i_block = i_out // (n_h * n_w) * ROWS * COLUMNS + i_out // n_w % n_h * COLUMNS + i_out % n_w
    if tl.program_id(1) <= tl.program_id(2):
        b_e = sum_of_block(p_parts, i_block, BLOCKS, o_x, m_x, SIZE, SPLITS, UNROLL)
        if TALL:
            b_e += sum_of_block(p_parts, i_block + COLUMNS, BLOCKS, o_x, m_x, SIZE, SPLITS, UNROLL)
        if WIDE:
            b_beside = sum_of_block(p_parts, i_block + 1, BLOCKS, o_x, m_x, SIZE, SPLITS, UNROLL)
            if TALL:
                b_beside += sum_of_block(p_parts, i_block + COLUMNS + 1, BLOCKS, o_x, m_x, SIZE, SPLITS, UNROLL)
            b_e += b_beside
        p_out += i_out.to(tl.int64) * SIZE * SIZE
        tl.store(p_out + o_x, b_e, mask=m_x)
        tl.store(p_out + tl.trans(o_j * SIZE + o_i), tl.trans(b_e), mask=tl.trans(m_x))


@triton.jit
def product_kernel(
    p_g, p_act, p_x0, p_x1, p_x2, p_x3, o_c0, o_c1, o_c2, o_c3, o_r0, o_r1, o_r2, o_r3, p_out, p_sum,
    H, W, SIDE_H, SIDE_W, ROWS, COLUMNS, C, G, SIZE, SPLITS,
    PITCH: tl.constexpr, PITCH_G: tl.constexpr, PITCH_ACT: tl.constexpr,
    WINDOWED: tl.constexpr, SLOPE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_G: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Products of a gradient of G channels with up to four slots over the pixels of a block, and the gradient's sum.

    `p_g` is the gradient of the activation's output `p_act` (None: no activation). With `WINDOWED`, there are four
    programs per block, each of which applies the shares of one of the four windows that may contain the block. By
    pointers, as in `gram_kernel`, and with the slots on the left: of a gradient that was multiplied in registers, the
    transpose would stay there, and each product wait for the one before.
    """
    wait_for_previous_launch()
    i_part, i_split = tl.program_id(0), tl.program_id(1)
    i_block = i_part // 4 if WINDOWED else i_part
    i_b, o_top, o_left = image_block(i_block, SIDE_H, SIDE_W, ROWS, COLUMNS)
    o_g = tl.program_id(2) * BLOCK_G
    b_0 = tl.zeros([BLOCK_C, BLOCK_G], ACC)
    b_1 = tl.zeros([BLOCK_C, BLOCK_G], ACC)
    b_2 = tl.zeros([BLOCK_C, BLOCK_G], ACC)
    b_3 = tl.zeros([BLOCK_C, BLOCK_G], ACC)
    b_sum = tl.zeros([BLOCK_H * BLOCK_W, BLOCK_G], ACC)
    n_tiles = tl.cdiv(SIDE_H, BLOCK_H) * tl.cdiv(SIDE_W, BLOCK_W)
    for i_tile in tl.range(i_split, n_tiles, SPLITS, num_stages=STAGES):
        _, o_h, o_w = pixel_tile(i_tile, SIDE_H, SIDE_W, BLOCK_H, BLOCK_W)
        o_h += o_top
        o_w += o_left
        b_g = load_pitched(p_g, i_b, o_h, o_w, H, W, PITCH_G, BLOCK_H, BLOCK_W, BLOCK_G, o_g)
        if p_act is not None:
            b_act = load_pitched(p_act, i_b, o_h, o_w, H, W, PITCH_ACT, BLOCK_H, BLOCK_W, BLOCK_G, o_g)
            b_g = leaky_gradient(b_g, b_act, SLOPE)
        if WINDOWED:
            i_quarter = i_part % 4
            i_h, i_w = o_h // SIDE_H - 1 + i_quarter // 2, o_w // SIDE_W - 1 + i_quarter % 2
            b_share = pixel_shares(o_h, o_w, i_h, i_w, SIDE_H, SIDE_W, ROWS, COLUMNS, ACC, BLOCK_H, BLOCK_W)
            b_g = (b_g.to(ACC) * b_share).to(b_g.dtype)
        b_x = load_pitched(p_x0, i_b, o_h, o_w, H, W, PITCH, BLOCK_H, BLOCK_W, BLOCK_C, o_c0)
        b_0 = tl.dot(tl.trans(b_x), b_g, b_0, input_precision=PRECISION, out_dtype=ACC)
        if p_x1 is not None:
            b_x = load_pitched(p_x1, i_b, o_h, o_w, H, W, PITCH, BLOCK_H, BLOCK_W, BLOCK_C, o_c1)
            b_1 = tl.dot(tl.trans(b_x), b_g, b_1, input_precision=PRECISION, out_dtype=ACC)
        if p_x2 is not None:
            b_x = load_pitched(p_x2, i_b, o_h, o_w, H, W, PITCH, BLOCK_H, BLOCK_W, BLOCK_C, o_c2)
            b_2 = tl.dot(tl.trans(b_x), b_g, b_2, input_precision=PRECISION, out_dtype=ACC)
        if p_x3 is not None:
            b_x = load_pitched(p_x3, i_b, o_h, o_w, H, W, PITCH, BLOCK_H, BLOCK_W, BLOCK_C, o_c3)
            b_3 = tl.dot(tl.trans(b_x), b_g, b_3, input_precision=PRECISION, out_dtype=ACC)
        b_sum += b_g.to(ACC)
    i_sum = (i_split * tl.num_programs(0) + i_part).to(tl.int64)
    p_part = p_out + i_sum * G * SIZE
    store_block(p_part, o_g, o_r0, G - o_g, C - o_c0, SIZE, tl.trans(b_0))
    if p_x1 is not None:
        store_block(p_part, o_g, o_r1, G - o_g, C - o_c1, SIZE, tl.trans(b_1))
    if p_x2 is not None:
        store_block(p_part, o_g, o_r2, G - o_g, C - o_c2, SIZE, tl.trans(b_2))
    if p_x3 is not None:
        store_block(p_part, o_g, o_r3, G - o_g, C - o_c3, SIZE, tl.trans(b_3))
    o_n = o_g + tl.arange(0, BLOCK_G)
    tl.store(p_sum + i_sum * G + o_n, tl.sum(b_sum, axis=0), mask=o_n < G)


@triton.jit
def add_product(
    b_out, t_x, t_act, t_w, i_w, i_b, o_h, o_w, o_n, CHANNELS: tl.constexpr, BLOCK_K: tl.constexpr,
    SLOPE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`b_out` plus a map times its matrix, or `b_out` if the map is None."""
    if t_x is not None:
        for o_k in tl.static_range(0, CHANNELS, BLOCK_K):
            b_x = load_pixels(t_x, i_b, o_h, o_w, o_k)
            if t_act is not None:
                b_x = leaky_gradient(b_x, load_pixels(t_act, i_b, o_h, o_w, o_k), SLOPE)
            b_w = load_weight(t_w, i_w, o_k, o_n)
            b_out = tl.dot(b_x, b_w, b_out, input_precision=PRECISION, out_dtype=ACC)
    return b_out


@triton.jit
def add_layers(
    b_out, t_x0, t_x1, t_x2, t_x3, t_x4, t_x5, t_x6, t_x7, t_w, i_w, i_b, o_h, o_w, o_n,
    CHANNELS: tl.constexpr, BLOCK_K: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`b_out` plus up to eight maps, each times its matrix. Triton cannot loop over a list of descriptors."""
    b_out = add_product(b_out, t_x0, None, t_w, i_w, i_b, o_h, o_w, o_n, CHANNELS, BLOCK_K, 1.0, ACC, PRECISION)
    b_out = add_product(b_out, t_x1, None, t_w, i_w + 1, i_b, o_h, o_w, o_n, CHANNELS, BLOCK_K, 1.0, ACC, PRECISION)
    b_out = add_product(b_out, t_x2, None, t_w, i_w + 2, i_b, o_h, o_w, o_n, CHANNELS, BLOCK_K, 1.0, ACC, PRECISION)
    b_out = add_product(b_out, t_x3, None, t_w, i_w + 3, i_b, o_h, o_w, o_n, CHANNELS, BLOCK_K, 1.0, ACC, PRECISION)
    b_out = add_product(b_out, t_x4, None, t_w, i_w + 4, i_b, o_h, o_w, o_n, CHANNELS, BLOCK_K, 1.0, ACC, PRECISION)
    b_out = add_product(b_out, t_x5, None, t_w, i_w + 5, i_b, o_h, o_w, o_n, CHANNELS, BLOCK_K, 1.0, ACC, PRECISION)
    b_out = add_product(b_out, t_x6, None, t_w, i_w + 6, i_b, o_h, o_w, o_n, CHANNELS, BLOCK_K, 1.0, ACC, PRECISION)
    return add_product(b_out, t_x7, None, t_w, i_w + 7, i_b, o_h, o_w, o_n, CHANNELS, BLOCK_K, 1.0, ACC, PRECISION)


@triton.jit
def store_one(t_out, here, i_b, o_h, o_w, o_n, b_out):
    """Store the tile if `here`; `t_out` None is an output that does not exist."""
    if t_out is not None:  # noqa: SIM102  (a condition at compile time, the other one at run time)
        if here:
            store_pixels(t_out, i_b, o_h, o_w, o_n, b_out)


@triton.jit
def mix_kernel(
    t_g, t_act, t_x0, t_x1, t_x2, t_x3, t_x4, t_x5, t_x6, t_x7, t_wg, t_w, p_bias,
    t_out0, t_out1, t_out2, t_out3, t_out4, t_out5, t_out6, t_out7,
    H, W, N, OUTPUTS, SIDE_H, SIDE_W, ROWS, COLUMNS,
    WINDOWED: tl.constexpr, WINDOWED_MAPS: tl.constexpr,
    MAPS: tl.constexpr, C: tl.constexpr, G: tl.constexpr, SLOPE: tl.constexpr, ACT_SLOPE: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One of OUTPUTS images: the products of the maps, and of a gradient of G channels, with their matrices, summed.

    With `WINDOWED`, the gradient has a matrix per window, whose products are weighted by the shares, and the maps have
    matrices per block; with `WINDOWED_MAPS` as well, the maps' matrices are per window and there is no gradient. The
    programs for all outputs of a tile are adjacent, so that they find the tile in the cache.
    """
    wait_for_previous_launch()
    i_out = tl.program_id(0) % OUTPUTS
    i_b, o_h, o_w = pixel_tile(tl.program_id(0) // OUTPUTS, H, W, BLOCK_H, BLOCK_W)
    o_n = tl.program_id(1) * BLOCK_N
    b_out = tl.zeros([BLOCK_H * BLOCK_W, BLOCK_N], ACC)
    if WINDOWED:
        n_h, n_w = tl.maximum(ROWS - 1, 1), tl.maximum(COLUMNS - 1, 1)
        o_i, o_j, n_i, n_j = windows_of_block(o_h // SIDE_H, o_w // SIDE_W, n_h, n_w)
        for i_near in tl.range(0, n_i * n_j, num_stages=1):
            i_h, i_w = o_i + i_near // n_j, o_j + i_near % n_j
            i_g = ((i_b * n_h + i_h) * n_w + i_w) * OUTPUTS + i_out
            b_part = tl.zeros([BLOCK_H * BLOCK_W, BLOCK_N], ACC)
            if WINDOWED_MAPS:
                b_part = add_layers(
                    b_part, t_x0, t_x1, t_x2, t_x3, t_x4, t_x5, t_x6, t_x7, t_w, i_g * MAPS, i_b, o_h, o_w, o_n,
                    C, BLOCK_K, ACC, PRECISION,
                )  # fmt: skip
            else:
                b_part = add_product(
                    b_part, t_g, t_act, t_wg, i_g, i_b, o_h, o_w, o_n, G, BLOCK_G, ACT_SLOPE, ACC, PRECISION
                )  # fmt: skip
            b_out += b_part * pixel_shares(
                o_h, o_w, i_h, i_w, SIDE_H, SIDE_W, ROWS, COLUMNS, ACC, BLOCK_H, BLOCK_W
            )  # fmt: skip
        i_block = i_b * ROWS * COLUMNS + o_h // SIDE_H * COLUMNS + o_w // SIDE_W
    else:
        i_block = i_b
        i_g = i_b * OUTPUTS + i_out
        b_out = add_product(b_out, t_g, t_act, t_wg, i_g, i_b, o_h, o_w, o_n, G, BLOCK_G, ACT_SLOPE, ACC, PRECISION)
    if not (WINDOWED and WINDOWED_MAPS):
        i_w = (i_block * OUTPUTS + i_out) * MAPS
        b_out = add_layers(
            b_out, t_x0, t_x1, t_x2, t_x3, t_x4, t_x5, t_x6, t_x7, t_w, i_w, i_b, o_h, o_w, o_n,
            C, BLOCK_K, ACC, PRECISION,
        )  # fmt: skip
    if p_bias is not None:
        b_out += load_bias(p_bias, o_n, N, BLOCK_N, ACC)
    b_out = leaky(b_out, SLOPE)
    store_one(t_out0, i_out == 0, i_b, o_h, o_w, o_n, b_out)
    store_one(t_out1, i_out == 1, i_b, o_h, o_w, o_n, b_out)
    store_one(t_out2, i_out == 2, i_b, o_h, o_w, o_n, b_out)
    store_one(t_out3, i_out == 3, i_b, o_h, o_w, o_n, b_out)
    store_one(t_out4, i_out == 4, i_b, o_h, o_w, o_n, b_out)
    store_one(t_out5, i_out == 5, i_b, o_h, o_w, o_n, b_out)
    store_one(t_out6, i_out == 6, i_b, o_h, o_w, o_n, b_out)
    store_one(t_out7, i_out == 7, i_b, o_h, o_w, o_n, b_out)


@triton.jit
def inverse_length(p_e, o_r, R, SHORTEST: tl.constexpr):
    """The inverse length of row `o_r` of F; its square is on the diagonal of E."""
    return 1.0 / tl.sqrt(tl.maximum(tl.load(p_e + o_r * (R + 1), mask=o_r < R, other=1.0), SHORTEST))


@triton.jit
def attention_kernel(
    p_e, p_temperature, p_out, R,
    BY_LAYER: tl.constexpr, SHORTEST: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """A row of M: softmax(E), or by layers softmax(rowmax(E) - E). With a temperature, E is replaced by its cosines
    times that."""
    wait_for_previous_launch()
    i_r = tl.program_id(1)
    o_b = tl.program_id(0).to(tl.int64) * R * R
    o_j = tl.arange(0, BLOCK_R)
    m_j = o_j < R
    b_e = tl.load(p_e + o_b + i_r * R + o_j, mask=m_j, other=0.0)
    if p_temperature is not None:
        b_e *= tl.load(p_temperature).to(p_e.dtype.element_ty) * inverse_length(p_e + o_b, i_r, R, SHORTEST)
        b_e *= inverse_length(p_e + o_b, o_j, R, SHORTEST)
    if BY_LAYER:
        b_e = tl.max(tl.where(m_j, b_e, float("-inf")), axis=0) - b_e
    b_e = tl.where(m_j, b_e, float("-inf"))
    b_m = tl.exp(b_e - tl.max(b_e, axis=0))
    tl.store(p_out + o_b + i_r * R + o_j, b_m / tl.sum(b_m, axis=0), mask=m_j)


@triton.jit
def fold_kernel(
    p_x, p_m, p_theta, p_out, s_b, s_o, s_k, s_out_b, s_out_o, s_out_j, s_out_k, WIDTH, ROWS, R, C,
    BACK: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """X (theta M + I), or with `BACK` X (theta M + I)^T, for each image.

    X [ROWS, R] is a view of a matrix [O, SIZE] with strides s_b of images, s_o and s_k: C is the number of channels
    per row of M (1, or those of a layer), ROWS = O * C, R = SIZE / C. The result [images, O, parts, WIDTH] has strides
    s_out.
    """
    wait_for_previous_launch()
    o_k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)[:, None]
    o_j = tl.program_id(2) * BLOCK_R + tl.arange(0, BLOCK_R)[None, :]
    i_b = tl.program_id(0).to(tl.int64)
    p_x += i_b * s_b + o_k // C * s_o + o_k % C * s_k
    p_m += i_b * R * R
    b_out = tl.zeros([BLOCK_K, BLOCK_R], ACC)
    for o_r in tl.range(0, R, BLOCK_R, num_stages=1):
        o_i = o_r + tl.arange(0, BLOCK_R)
        b_x = tl.load(p_x + o_i[None, :] * (C * s_k), mask=(o_k < ROWS) & (o_i[None, :] < R), other=0.0).to(ACC)
        o_m = o_j * R + o_i[:, None] if BACK else o_i[:, None] * R + o_j
        b_m = tl.load(p_m + o_m, mask=(o_i[:, None] < R) & (o_j < R), other=0.0)
        b_out = tl.dot(b_x, b_m, b_out, input_precision=PRECISION, out_dtype=ACC)
    m_out = (o_k < ROWS) & (o_j < R)
    b_out = tl.load(p_x + o_j * (C * s_k), mask=m_out, other=0.0).to(ACC) + tl.load(p_theta).to(ACC) * b_out
    o_column = o_k % C + o_j * C
    o_out = i_b * s_out_b + o_k // C * s_out_o + o_column // WIDTH * s_out_j + o_column % WIDTH * s_out_k
    tl.store(p_out + o_out, b_out.to(p_out.dtype.element_ty), mask=m_out)


@triton.jit
def both_sides_kernel(p_de, p_out, R, OF_ROW, SIZE, C, PITCH, BLOCK: tl.constexpr):
    """dE + dE^T of each image, [R, R], as [SIZE / C, SIZE, C], rows PITCH apart: with layers as rows, each entry
    becomes a block of OF_ROW rows, itself times the identity."""
    wait_for_previous_launch()
    o_i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[:, None]
    o_j = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)[None, :]
    i_b = tl.program_id(0).to(tl.int64)
    m_out = (o_i < SIZE) & (o_j < SIZE)
    m_de = m_out & (o_i % OF_ROW == o_j % OF_ROW)
    p_de += i_b * R * R
    o_row, o_column = o_i // OF_ROW, o_j // OF_ROW
    b_out = tl.load(p_de + o_row * R + o_column, mask=m_de, other=0.0)
    b_out += tl.load(p_de + o_column * R + o_row, mask=m_de, other=0.0)
    p_out += (i_b * (SIZE // C) * SIZE + o_j // C * SIZE + o_i) * PITCH + o_j % C
    tl.store(p_out, b_out.to(p_out.dtype.element_ty), mask=m_out)


@triton.jit
def attention_backward_kernel(
    p_dp, p_w, p_m, p_e, p_theta, p_temperature, p_de, p_dtheta, p_dtemperature, ROWS, R, C, SIZE,
    BY_LAYER: tl.constexpr, SHORTEST: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """A row of the gradient of E from that of P, `p_dp`, and its part of the gradients of theta and the temperature.

    ROWS, R and C as in `fold_kernel`, SIZE = R * C. The gradient through the rows' lengths is not included.
    """
    wait_for_previous_launch()
    i_r = tl.program_id(1)
    i_b = tl.program_id(0).to(tl.int64)
    o_b = i_b * R * R
    o_j = tl.arange(0, BLOCK_R)
    m_j = o_j < R
    b_d = tl.zeros([BLOCK_R], p_e.dtype.element_ty)
    for o_first in tl.range(0, ROWS, BLOCK_K, num_stages=1):
        o_k = o_first + tl.arange(0, BLOCK_K)[:, None]
        o_x = o_k // C * SIZE + o_k % C
        b_w = tl.load(p_w + o_x + i_r * C, mask=o_k < ROWS, other=0.0).to(p_e.dtype.element_ty)
        b_dp = tl.load(
            p_dp + i_b * (ROWS // C) * SIZE + o_x + o_j[None, :] * C, mask=(o_k < ROWS) & m_j[None, :], other=0.0
        )
        b_d += tl.sum(b_w * b_dp, axis=0)
    b_m = tl.load(p_m + o_b + i_r * R + o_j, mask=m_j, other=0.0)
    b_all = tl.sum(b_d * b_m, axis=0)
    o_part = i_b * R + i_r
    tl.store(p_dtheta + o_part, b_all)
    b_de = tl.load(p_theta).to(p_e.dtype.element_ty) * b_m * (b_d - b_all)
    if BY_LAYER:
        b_de = -b_de
    if p_temperature is not None:
        b_de *= inverse_length(p_e + o_b, i_r, R, SHORTEST) * inverse_length(p_e + o_b, o_j, R, SHORTEST)
        b_e = tl.load(p_e + o_b + i_r * R + o_j, mask=m_j, other=0.0)
        tl.store(p_dtemperature + o_part, tl.sum(b_de * b_e, axis=0))
        b_de *= tl.load(p_temperature).to(p_e.dtype.element_ty)
    tl.store(p_de + o_b + i_r * R + o_j, b_de, mask=m_j)


@triton.jit
def length_backward_kernel(p_e, p_de, R, SHORTEST: tl.constexpr, BLOCK_R: tl.constexpr):
    """Add the gradient through the length of row `i_r` of F, used by all cosines of that row and column, to the
    diagonal of the gradient of E."""
    wait_for_previous_launch()
    i_r = tl.program_id(1)
    o_b = tl.program_id(0).to(tl.int64) * R * R
    o_j = tl.arange(0, BLOCK_R)
    m_j = o_j < R
    o_row, o_column, o_own = o_b + i_r * R + o_j, o_b + o_j * R + i_r, o_b + i_r * (R + 1)
    b_sum = tl.load(p_e + o_row, mask=m_j, other=0.0) * tl.load(p_de + o_row, mask=m_j, other=0.0)
    b_sum += tl.load(p_e + o_column, mask=m_j, other=0.0) * tl.load(p_de + o_column, mask=m_j, other=0.0)
    b_own, b_square = tl.load(p_de + o_own), tl.load(p_e + o_own)
    b_through = tl.sum(b_sum, axis=0) / (-2.0 * tl.maximum(b_square, SHORTEST))
    tl.store(p_de + o_own, tl.where(b_square >= SHORTEST, b_own + b_through, b_own))
