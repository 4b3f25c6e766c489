"""Kernels of the ACFM. Names and conventions as in `runtime/kernels.py`.

A depthwise 3x3 convolution yields u, which is three maps u_0, u_1, u_2 in the 3x3x3 form. Then neighbouring channels
are combined (`beside`).
"""

# ruff: noqa: N803  (names of constants are upper-case)

import triton
import triton.language as tl

from lmfn_kernels.alfm.kernels import pixel_shares, windows_of_block
from lmfn_kernels.runtime.kernels import (
    dtype_of,
    leaky,
    load_bias,
    load_pitched,
    load_pixels,
    load_rows,
    load_tile,
    pixel_tile,
    sigmoid,
    store_padded,
    store_pixels,
    wait_for_previous_launch,
)


@triton.jit
def stencil(
    p_x, p_w, i_b, o_h, o_w, H, W, PITCH: tl.constexpr, MAPS: tl.constexpr, ACC: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A depthwise 3x3 convolution with one weight or three (`MAPS`): the three loads of a row are under way at once."""
    b_0 = tl.zeros([BLOCK_H * BLOCK_W, BLOCK_C], ACC)
    b_1 = tl.zeros([BLOCK_H * BLOCK_W, BLOCK_C], ACC)
    b_2 = tl.zeros([BLOCK_H * BLOCK_W, BLOCK_C], ACC)
    for i in tl.range(0, 3, num_stages=1):
        for j in tl.static_range(3):
            b_x = load_pitched(p_x, i_b, o_h + i - 1, o_w + j - 1, H, W, PITCH, BLOCK_H, BLOCK_W, BLOCK_C).to(ACC)
            p_tap = p_w + i * 3 + j
            b_0 += b_x * tl.load(p_tap).to(ACC)
            if MAPS == 3:
                b_1 += b_x * tl.load(p_tap + 9).to(ACC)
                b_2 += b_x * tl.load(p_tap + 18).to(ACC)
    return b_0, b_1, b_2


@triton.jit
def beside(b_x, STEP: tl.constexpr, UNIT: tl.constexpr):
    """Channel c of the result is channel c + STEP of `b_x`, with STEP -1 or 1; zeros before the first and after the
    last one.

    The channel after an even one is odd, so the odd channels are half of the result, and the other half is the same
    question about the even ones. A thread that has loaded 16 bytes, UNIT values, answers it by renaming registers;
    only one value in UNIT comes from another thread.
    """
    PIXELS: tl.constexpr = b_x.shape[0]
    CHANNELS: tl.constexpr = b_x.shape[1]
    if UNIT == 1:
        o_c = tl.arange(0, CHANNELS)[None, :] + STEP
        m_c = (o_c >= 0) & (o_c < CHANNELS)
        o_c = tl.broadcast_to(tl.where(m_c, o_c, 0), [PIXELS, CHANNELS])
        b_found = tl.where(m_c, tl.gather(b_x, o_c, axis=1), 0.0)
    else:
        b_even, b_odd = tl.split(b_x.reshape(PIXELS, CHANNELS // 2, 2))
        if STEP == 1:
            b_both = tl.join(b_odd, beside(b_even, STEP, UNIT // 2))
        else:
            b_both = tl.join(beside(b_odd, STEP, UNIT // 2), b_even)
        b_found = b_both.reshape(PIXELS, CHANNELS)
    return b_found


@triton.jit
def gate_of(
    p_x, p_spatial, p_spatial_bias, p_channel, p_bias, i_b, o_h, o_w, H, W, C,
    PITCH: tl.constexpr, UNIT: tl.constexpr, MAPS: tl.constexpr, ACC: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """u, which only the pseudo-3D form uses, and q; u is zero after the last channel, and q not NaN."""
    b_u, b_1, b_2 = stencil(p_x, p_spatial, i_b, o_h, o_w, H, W, PITCH, MAPS, ACC, BLOCK_H, BLOCK_W, BLOCK_C)
    m_c = (tl.arange(0, BLOCK_C) < C)[None, :]
    if MAPS == 3:
        b_u, b_1, b_2 = tl.where(m_c, b_u, 0.0), tl.where(m_c, b_1, 0.0), tl.where(m_c, b_2, 0.0)
        b_q = beside(b_u, -1, UNIT) + b_1 + beside(b_2, 1, UNIT) + tl.load(p_bias).to(ACC)
    else:
        b_u = tl.where(m_c, leaky(b_u + tl.load(p_spatial_bias).to(ACC), 0.0), 0.0)
        b_before, b_same, b_after = load_three(p_channel, ACC)
        b_q = b_before * beside(b_u, -1, UNIT) + b_same * b_u + b_after * beside(b_u, 1, UNIT)
        b_q = leaky(b_q + tl.load(p_bias).to(ACC), 0.0)
    return b_u, b_q


@triton.jit
def load_three(p_channel, ACC: tl.constexpr):
    return tl.load(p_channel).to(ACC), tl.load(p_channel + 1).to(ACC), tl.load(p_channel + 2).to(ACC)


@triton.jit
def channel_gate_kernel(
    p_x, t_add, t_out, p_alpha, p_spatial, p_spatial_bias, p_channel, p_bias, H, W, C,
    PITCH: tl.constexpr, UNIT: tl.constexpr, MAPS: tl.constexpr, ACC: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out = x + alpha sigmoid(q) x + add."""
    wait_for_previous_launch()
    i_b, o_h, o_w = pixel_tile(tl.program_id(0), H, W, BLOCK_H, BLOCK_W)
    _, b_q = gate_of(
        p_x, p_spatial, p_spatial_bias, p_channel, p_bias, i_b, o_h, o_w, H, W, C,
        PITCH, UNIT, MAPS, ACC, BLOCK_H, BLOCK_W, BLOCK_C,
    )  # fmt: skip
    b_x = load_pitched(p_x, i_b, o_h, o_w, H, W, PITCH, BLOCK_H, BLOCK_W, BLOCK_C).to(ACC)
    b_y = b_x * (1 + tl.load(p_alpha).to(ACC) * sigmoid(b_q))
    if t_add is not None:
        b_y += load_pixels(t_add, i_b, o_h, o_w, 0).to(ACC)
    store_pixels(t_out, i_b, o_h, o_w, 0, b_y)


@triton.jit
def load_map(
    p_f, i_b, o_h, o_w, H, W, C, PITCH: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A tile of a layer; None if there is no such layer."""
    b_f = None
    if p_f is not None:
        b_f = load_tile(p_f, i_b, o_h, o_w, H, W, C, PITCH, BLOCK_H, BLOCK_W, BLOCK_C)
    return b_f


@triton.jit
def load_matrix(b_f, p_w, i_w, C, OF_ROW: tl.constexpr, BLOCK_C: tl.constexpr):
    """Matrix `i_w`; None if there is no such layer."""
    b_w = None
    if b_f is not None:
        b_w = load_rows(p_w + i_w.to(tl.int64) * (C * OF_ROW), C, OF_ROW, BLOCK_C, BLOCK_C)
    return b_w


@triton.jit
def add_product(b_y, b_f, b_w, ACC: tl.constexpr, PRECISION: tl.constexpr):
    """`b_y` plus a layer times its matrix, or `b_y` if there is no such layer."""
    if b_f is not None:
        b_y = tl.dot(b_f, b_w, b_y, input_precision=PRECISION, out_dtype=ACC)
    return b_y


@triton.jit
def add_four(
    b_y, b_f0, b_f1, b_f2, b_f3, p_w, i_w, C,
    OF_ROW: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """`b_y` plus up to four layers, each times its matrix: all matrices are loaded before the first product."""
    b_w0 = load_matrix(b_f0, p_w, i_w, C, OF_ROW, BLOCK_C)
    b_w1 = load_matrix(b_f1, p_w, i_w + 1, C, OF_ROW, BLOCK_C)
    b_w2 = load_matrix(b_f2, p_w, i_w + 2, C, OF_ROW, BLOCK_C)
    b_w3 = load_matrix(b_f3, p_w, i_w + 3, C, OF_ROW, BLOCK_C)
    b_y = add_product(b_y, b_f0, b_w0, ACC, PRECISION)
    b_y = add_product(b_y, b_f1, b_w1, ACC, PRECISION)
    b_y = add_product(b_y, b_f2, b_w2, ACC, PRECISION)
    return add_product(b_y, b_f3, b_w3, ACC, PRECISION)


@triton.jit
def attend(
    b_y, p_f0, p_f1, p_f2, p_f3, p_w, i_first, i_b, o_h, o_w, H, W, C, SIDE_H, SIDE_W, ROWS, COLUMNS,
    WINDOWED: tl.constexpr, LAYERS: tl.constexpr, PITCH: tl.constexpr, OF_ROW: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """`b_y` plus up to four layers, from number `i_first` on, each times its matrix.

    A layer's tile is loaded once, for all of the up to four windows that contain it.
    """
    b_f0 = load_map(p_f0, i_b, o_h, o_w, H, W, C, PITCH, BLOCK_H, BLOCK_W, BLOCK_C)
    b_f1 = load_map(p_f1, i_b, o_h, o_w, H, W, C, PITCH, BLOCK_H, BLOCK_W, BLOCK_C)
    b_f2 = load_map(p_f2, i_b, o_h, o_w, H, W, C, PITCH, BLOCK_H, BLOCK_W, BLOCK_C)
    b_f3 = load_map(p_f3, i_b, o_h, o_w, H, W, C, PITCH, BLOCK_H, BLOCK_W, BLOCK_C)
    if not WINDOWED:
        i_w = i_b * LAYERS + i_first
        b_y = add_four(b_y, b_f0, b_f1, b_f2, b_f3, p_w, i_w, C, OF_ROW, ACC, PRECISION, BLOCK_C)
    elif p_f0 is not None:
        n_h, n_w = tl.maximum(ROWS - 1, 1), tl.maximum(COLUMNS - 1, 1)
        o_i, o_j, n_i, n_j = windows_of_block(o_h // SIDE_H, o_w // SIDE_W, n_h, n_w)
        for i_near in tl.range(0, n_i * n_j, num_stages=1):
            i_h, i_w = o_i + i_near // n_j, o_j + i_near % n_j
            i_m = ((i_b * n_h + i_h) * n_w + i_w) * LAYERS + i_first
            b_part = tl.zeros([BLOCK_H * BLOCK_W, BLOCK_C], ACC)
            b_part = add_four(b_part, b_f0, b_f1, b_f2, b_f3, p_w, i_m, C, OF_ROW, ACC, PRECISION, BLOCK_C)
            b_share = pixel_shares(o_h, o_w, i_h, i_w, SIDE_H, SIDE_W, ROWS, COLUMNS, ACC, BLOCK_H, BLOCK_W)
            b_y += b_share * b_part
    return b_y


@triton.jit
def merge_kernel(
    p_x, p_f0, p_f1, p_f2, p_f3, p_f4, p_f5, p_f6, p_f7, p_w, p_mix_bias, t_added, t_out,
    p_alpha, p_spatial, p_spatial_bias, p_channel, p_bias, H, W, C, SIDE_H, SIDE_W, ROWS, COLUMNS,
    WINDOWED: tl.constexpr, LAYERS: tl.constexpr, SLOPE: tl.constexpr, MAPS: tl.constexpr,
    PITCH: tl.constexpr, UNIT: tl.constexpr, OF_ROW: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out = x + alpha sigmoid(q) x + f_l, with f_l = LR(P F + bias) of the layers `p_f`, also written to `t_added`
    unless it is None. Rows of the matrices `p_w` are OF_ROW elements apart."""
    wait_for_previous_launch()
    i_b, o_h, o_w = pixel_tile(tl.program_id(0), H, W, BLOCK_H, BLOCK_W)
    b_y = tl.zeros([BLOCK_H * BLOCK_W, BLOCK_C], ACC)
    # In 32 bits, and beside the three sums of a 3x3x3 gate, four layers at once would need too many registers.
    if dtype_of(t_out).primitive_bitwidth > 16 or MAPS == 3:
        b_y = attend(
            b_y, p_f0, p_f1, None, None, p_w, 0, i_b, o_h, o_w, H, W, C, SIDE_H, SIDE_W, ROWS, COLUMNS,
            WINDOWED, LAYERS, PITCH, OF_ROW, ACC, PRECISION, BLOCK_H, BLOCK_W, BLOCK_C,
        )  # fmt: skip
        b_y = attend(
            b_y, p_f2, p_f3, None, None, p_w, 2, i_b, o_h, o_w, H, W, C, SIDE_H, SIDE_W, ROWS, COLUMNS,
            WINDOWED, LAYERS, PITCH, OF_ROW, ACC, PRECISION, BLOCK_H, BLOCK_W, BLOCK_C,
        )  # fmt: skip
        b_y = attend(
            b_y, p_f4, p_f5, None, None, p_w, 4, i_b, o_h, o_w, H, W, C, SIDE_H, SIDE_W, ROWS, COLUMNS,
            WINDOWED, LAYERS, PITCH, OF_ROW, ACC, PRECISION, BLOCK_H, BLOCK_W, BLOCK_C,
        )  # fmt: skip
        b_y = attend(
            b_y, p_f6, p_f7, None, None, p_w, 6, i_b, o_h, o_w, H, W, C, SIDE_H, SIDE_W, ROWS, COLUMNS,
            WINDOWED, LAYERS, PITCH, OF_ROW, ACC, PRECISION, BLOCK_H, BLOCK_W, BLOCK_C,
        )  # fmt: skip
    else:
        b_y = attend(
            b_y, p_f0, p_f1, p_f2, p_f3, p_w, 0, i_b, o_h, o_w, H, W, C, SIDE_H, SIDE_W, ROWS, COLUMNS,
            WINDOWED, LAYERS, PITCH, OF_ROW, ACC, PRECISION, BLOCK_H, BLOCK_W, BLOCK_C,
        )  # fmt: skip
        b_y = attend(
            b_y, p_f4, p_f5, p_f6, p_f7, p_w, 4, i_b, o_h, o_w, H, W, C, SIDE_H, SIDE_W, ROWS, COLUMNS,
            WINDOWED, LAYERS, PITCH, OF_ROW, ACC, PRECISION, BLOCK_H, BLOCK_W, BLOCK_C,
        )  # fmt: skip
    b_y = leaky(b_y + load_bias(p_mix_bias, 0, C, BLOCK_C, ACC), SLOPE)
    if t_added is not None:
        store_pixels(t_added, i_b, o_h, o_w, 0, b_y)
    _, b_q = gate_of(
        p_x, p_spatial, p_spatial_bias, p_channel, p_bias, i_b, o_h, o_w, H, W, C,
        PITCH, UNIT, MAPS, ACC, BLOCK_H, BLOCK_W, BLOCK_C,
    )  # fmt: skip
    b_x = load_pitched(p_x, i_b, o_h, o_w, H, W, PITCH, BLOCK_H, BLOCK_W, BLOCK_C).to(ACC)
    b_y += b_x * (1 + tl.load(p_alpha).to(ACC) * sigmoid(b_q))
    store_padded(t_out, i_b, o_h, o_w, 0, C, b_y)


@triton.jit
def in_units(b_x, UNIT: tl.constexpr):
    """Sums over each UNIT channels, which a thread has, so that threads exchange nothing."""
    return tl.sum(b_x.reshape(b_x.shape[0], b_x.shape[1] // UNIT, UNIT), axis=2)


@triton.jit
def channel_gate_backward_kernel(
    p_g, p_x, t_dx, t_e, p_alpha, p_spatial, p_spatial_bias, p_channel, p_bias, p_sums,
    B, H, W, C, SPLITS, SUMS,
    PITCH_G: tl.constexpr, PITCH: tl.constexpr, UNIT: tl.constexpr, MAPS: tl.constexpr, ACC: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The part of the gradient of x that bypasses the gate (`t_dx`), the gradient of u, or of q in the 3x3x3 form
    (`t_e`, with zeros after the channels), and SUMS partial sums: the gradients of all weights but the first, and of
    alpha.

    Outside the image g reads as 0, and every term contains that factor. Threads exchange sums after the last tile.
    """
    wait_for_previous_launch()
    b_alpha = tl.load(p_alpha).to(ACC)
    b_zero = tl.zeros([BLOCK_H * BLOCK_W, BLOCK_C // UNIT], ACC)
    b_dalpha, b_dbias, b_dbefore, b_dsame, b_dafter, b_dspatial_bias = b_zero, b_zero, b_zero, b_zero, b_zero, b_zero
    n_tiles = B * tl.cdiv(H, BLOCK_H) * tl.cdiv(W, BLOCK_W)
    for i_tile in tl.range(tl.program_id(0), n_tiles, SPLITS, num_stages=1):
        i_b, o_h, o_w = pixel_tile(i_tile, H, W, BLOCK_H, BLOCK_W)
        b_u, b_q = gate_of(
            p_x, p_spatial, p_spatial_bias, p_channel, p_bias, i_b, o_h, o_w, H, W, C,
            PITCH, UNIT, MAPS, ACC, BLOCK_H, BLOCK_W, BLOCK_C,
        )  # fmt: skip
        b_w = sigmoid(b_q)
        b_g = load_pitched(p_g, i_b, o_h, o_w, H, W, PITCH_G, BLOCK_H, BLOCK_W, BLOCK_C).to(ACC)
        store_pixels(t_dx, i_b, o_h, o_w, 0, b_g * (1 + b_alpha * b_w))
        b_g *= load_pitched(p_x, i_b, o_h, o_w, H, W, PITCH, BLOCK_H, BLOCK_W, BLOCK_C).to(ACC) * b_w
        b_g = tl.where((tl.arange(0, BLOCK_C) < C)[None, :], b_g, 0.0)
        b_dalpha += in_units(b_g, UNIT)
        b_dq = b_alpha * b_g * sigmoid(-b_q)
        if MAPS == 1:
            b_dq = tl.where(b_q > 0, b_dq, 0.0)
            b_last, b_next = beside(b_dq, -1, UNIT), beside(b_dq, 1, UNIT)
            b_dbefore += in_units(b_u * b_next, UNIT)
            b_dsame += in_units(b_u * b_dq, UNIT)
            b_dafter += in_units(b_u * b_last, UNIT)
            b_before, b_same, b_after = load_three(p_channel, ACC)
            b_du = tl.where(b_u > 0, b_before * b_next + b_same * b_dq + b_after * b_last, 0.0)
            b_dspatial_bias += in_units(b_du, UNIT)
            store_pixels(t_e, i_b, o_h, o_w, 0, b_du)
        else:
            store_pixels(t_e, i_b, o_h, o_w, 0, b_dq)
        b_dbias += in_units(b_dq, UNIT)
    p_sums += tl.program_id(0) * SUMS
    if MAPS == 1:
        tl.store(p_sums, tl.sum(b_dspatial_bias))
        tl.store(p_sums + 1, tl.sum(b_dbefore))
        tl.store(p_sums + 2, tl.sum(b_dsame))
        tl.store(p_sums + 3, tl.sum(b_dafter))
    tl.store(p_sums + SUMS - 2, tl.sum(b_dbias))
    tl.store(p_sums + SUMS - 1, tl.sum(b_dalpha))


@triton.jit
def channel_gate_input_kernel(
    p_e, p_x, p_dx, t_dx, p_add, p_spatial, p_sums, B, H, W, C, SPLITS,
    PITCH: tl.constexpr, PITCH_X: tl.constexpr, UNIT: tl.constexpr, MAPS: tl.constexpr, ACC: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Add to `t_dx` the part of the gradient of x that passes through the gate, and `p_add` unless it is None; and
    partial sums of the gradient of the spatial weight.

    Tap k of a pixel's convolution reads x at a distance from it, so both need e at that distance in the opposite
    direction. Threads exchange sums after the last tile.
    """
    wait_for_previous_launch()
    sums = (tl.zeros([BLOCK_H * BLOCK_W, BLOCK_C // UNIT], ACC),) * (9 * MAPS)
    n_tiles = B * tl.cdiv(H, BLOCK_H) * tl.cdiv(W, BLOCK_W)
    for i_tile in tl.range(tl.program_id(0), n_tiles, SPLITS, num_stages=1):
        i_b, o_h, o_w = pixel_tile(i_tile, H, W, BLOCK_H, BLOCK_W)
        b_x = load_tile(p_x, i_b, o_h, o_w, H, W, C, PITCH_X, BLOCK_H, BLOCK_W, BLOCK_C).to(ACC)
        b_dx = load_pitched(p_dx, i_b, o_h, o_w, H, W, PITCH, BLOCK_H, BLOCK_W, BLOCK_C).to(ACC)
        if p_add is not None:
            b_dx += load_pitched(p_add, i_b, o_h, o_w, H, W, PITCH, BLOCK_H, BLOCK_W, BLOCK_C).to(ACC)
        if MAPS == 3:
            b_last, b_next = beside(b_x, -1, UNIT), beside(b_x, 1, UNIT)
            b_0 = tl.zeros([BLOCK_H * BLOCK_W, BLOCK_C], ACC)
            b_2 = tl.zeros([BLOCK_H * BLOCK_W, BLOCK_C], ACC)
        of_0, of_1, of_2 = sums[:0], sums[:0], sums[:0]
        for k in tl.static_range(9):
            b_e = load_pitched(
                p_e, i_b, o_h + 1 - k // 3, o_w + 1 - k % 3, H, W, PITCH, BLOCK_H, BLOCK_W, BLOCK_C
            ).to(ACC)  # fmt: skip
            if MAPS == 1:
                b_dx += b_e * tl.load(p_spatial + k).to(ACC)
                of_0 += (sums[k] + in_units(b_e * b_x, UNIT),)
            else:
                # Tap d of channel c contributes to q of channel c + 1 - d.
                b_0 += b_e * tl.load(p_spatial + k).to(ACC)
                b_dx += b_e * tl.load(p_spatial + 9 + k).to(ACC)
                b_2 += b_e * tl.load(p_spatial + 18 + k).to(ACC)
                of_0 += (sums[k] + in_units(b_e * b_last, UNIT),)
                of_1 += (sums[9 + k] + in_units(b_e * b_x, UNIT),)
                of_2 += (sums[18 + k] + in_units(b_e * b_next, UNIT),)
        sums = of_0 + of_1 + of_2
        if MAPS == 3:
            b_dx += beside(b_0, 1, UNIT) + beside(b_2, -1, UNIT)
        store_pixels(t_dx, i_b, o_h, o_w, 0, b_dx)
    for i in tl.static_range(9 * MAPS):
        tl.store(p_sums + tl.program_id(0) * (9 * MAPS) + i, tl.sum(sums[i]))
