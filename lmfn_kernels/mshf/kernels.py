"""Kernels of the stem. Names and conventions as in `runtime/kernels.py`; weights are [taps, inputs, outputs].

f0 is the result of the first convolution, at full size. A tap of the second convolution, of stride 2, reads every
second row and column of f0. That tile is computed where it is needed, as one matrix product of the first convolution's
weight and the image's values: those under the nine taps forward, those of a window of packed pixels backward.
"""

# ruff: noqa: N803  (names of constants are upper-case)

import triton
import triton.language as tl

from lmfn_kernels.runtime.kernels import (
    leaky,
    leaky_gradient,
    load_bias,
    load_weight,
    pixel_tile,
    store_pixels,
    wait_for_previous_launch,
)


@triton.jit
def pad_kernel(
    p_x, p_mean, p_out, H, W, SIZE, ROW, C, C_OUT, ONE, s_b, s_c, s_h, s_w, s_ob, s_oc, s_op, BLOCKS,
    PADDING: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Copy an image of any strides and dtype, minus the mean of each channel unless that is None, with PADDING zeros
    around it.

    The result has C_OUT channels, zeros after the C of x but 1 in channel ONE, and SIZE pixels in rows of ROW, gaps
    included; by the strides of its images, channels and pixels, it is planes or packed pixels. An image takes BLOCKS
    programs.
    """
    wait_for_previous_launch()
    i_b = (tl.program_id(0) // BLOCKS).to(tl.int64)
    o_p = (tl.program_id(0) % BLOCKS).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    o_c = tl.arange(0, BLOCK_C)
    o_y, o_x = o_p // ROW - PADDING, o_p % ROW - PADDING
    m_x = ((o_y >= 0) & (o_y < H) & (o_x >= 0) & (o_x < W))[:, None] & (o_c < C)[None, :]
    p_pixel = p_x + i_b * s_b + o_y.to(tl.int64) * s_h + o_x.to(tl.int64) * s_w
    b_x = tl.load(p_pixel[:, None] + (o_c.to(INDEX) * s_c)[None, :], mask=m_x, other=0.0)
    if p_mean is not None:
        b_mean = tl.load(p_mean + o_c, mask=o_c < C, other=0.0).to(ACC)
        b_x = tl.where(m_x, b_x.to(ACC) - b_mean[None, :], 0.0)
    b_x = tl.where((o_c == ONE)[None, :], 1.0, b_x)
    p_pixel = p_out + i_b * s_ob + o_p * s_op
    m_out = (o_p < SIZE)[:, None] & (o_c < C_OUT)[None, :]
    tl.store(p_pixel[:, None] + (o_c.to(INDEX) * s_oc)[None, :], b_x.to(p_out.dtype.element_ty), mask=m_out)


@triton.jit
def f0_tile(
    p_x, b_w0, b_bias0, i_b, o_h, o_w, i_tap, H, W, s_b, s_c, s_h,
    INPUTS: tl.constexpr, INDEX: tl.constexpr, SLOPE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The tile of f0 [H, W] that tap `i_tap` of the second convolution reads for a tile of outputs at (o_h, o_w).

    Pixels outside f0 are the second convolution's padding. `p_x` is from `pad_kernel`, so every pixel of f0 may read
    its nine taps: the mask is one per pixel, and the three columns of a row are at a constant distance.
    """
    o_p = tl.arange(0, BLOCK_H * BLOCK_W)
    o_first = 2 * o_h + i_tap // 3 - 1
    o_down = 2 * (o_p // BLOCK_W)
    o_y, o_x = o_first + o_down, 2 * (o_w + o_p % BLOCK_W) + i_tap % 3 - 1
    m_f = (o_y >= 0) & (o_y < H) & (o_x >= 0) & (o_x < W)
    o_k = tl.arange(0, BLOCK_K)
    p_pixel = p_x + (i_b.to(tl.int64) * s_b + o_first.to(tl.int64) * s_h) + (o_down * s_h + o_x)
    p_row = p_pixel[:, None] + ((o_k % INPUTS).to(INDEX) * s_c + o_k // INPUTS // 3 * s_h)[None, :]
    m_x = m_f[:, None] & (o_k < 9 * INPUTS)[None, :]
    b_x = tl.load(p_row + (o_k // INPUTS % 3)[None, :], mask=m_x, other=0.0)
    b_f = tl.dot(b_x, b_w0, input_precision=PRECISION, out_dtype=ACC) + b_bias0
    b_f = tl.maximum(b_f, b_f * SLOPE)  # two instructions, `leaky` has three
    if (o_h == 0) | (o_w == 0) | (2 * (o_h + BLOCK_H) > H) | (2 * (o_w + BLOCK_W) > W):
        b_f = tl.where(m_f[:, None], b_f, 0.0)
    return b_f.to(b_x.dtype)


@triton.jit
def stem_kernel(
    p_x, t_w0, p_bias0, t_w, p_bias, t_out, H, W, OUT_H, OUT_W, C, N, s_b, s_c, s_h,
    INPUTS: tl.constexpr, INDEX: tl.constexpr, SLOPE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """out = leaky(conv3x3 of stride 2 (leaky(conv3x3(x)))); H and W are those of f0."""
    wait_for_previous_launch()
    i_b, o_h, o_w = pixel_tile(tl.program_id(0), OUT_H, OUT_W, BLOCK_H, BLOCK_W)
    b_w0 = load_weight(t_w0, 0, 0, 0)
    b_bias0 = load_bias(p_bias0, 0, C, BLOCK_C, ACC)
    b_out = tl.zeros([BLOCK_H * BLOCK_W, BLOCK_N], ACC)
    for i_tap in tl.range(0, 9, num_stages=STAGES):
        b_f = f0_tile(
            p_x, b_w0, b_bias0, i_b, o_h, o_w, i_tap, H, W, s_b, s_c, s_h,
            INPUTS, INDEX, SLOPE, ACC, PRECISION, BLOCK_H, BLOCK_W, BLOCK_K,
        )  # fmt: skip
        b_out = tl.dot(b_f, load_weight(t_w, i_tap, 0, 0), b_out, input_precision=PRECISION, out_dtype=ACC)
    store_pixels(t_out, i_b, o_h, o_w, 0, leaky(b_out + load_bias(p_bias, 0, N, BLOCK_N, ACC), SLOPE))


@triton.jit
def mask_gradient_kernel(
    p_g, p_act, p_e, p_dbias, SIZE, N, SPLITS,
    INDEX: tl.constexpr, SLOPE: tl.constexpr, ACC: tl.constexpr,
    G_PITCH: tl.constexpr, ACT_PITCH: tl.constexpr, PITCH: tl.constexpr, BLOCK: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """e = the gradient before the last activation, of which `p_act` is the output unless it is the identity, and per
    program one partial sum of it over pixels: the last bias's gradient.

    All images have SIZE pixels; of e, all PITCH values are written, with zeros after the N channels.
    """
    wait_for_previous_launch()
    i_split = tl.program_id(0)
    o_n = tl.arange(0, BLOCK_N)
    b_sum = tl.zeros([BLOCK, BLOCK_N], ACC)
    for o_first in tl.range((i_split * BLOCK).to(INDEX), SIZE, SPLITS * BLOCK):
        o_p = o_first + tl.arange(0, BLOCK)
        m_p = (o_p < SIZE)[:, None]
        m_g = m_p & (o_n < N)[None, :]
        o_p = o_p.to(tl.int64)[:, None]
        b_e = tl.load(p_g + o_p * G_PITCH + o_n[None, :], mask=m_g, other=0.0)
        if p_act is not None:
            b_act = tl.load(p_act + o_p * ACT_PITCH + o_n[None, :], mask=m_g, other=0.0)
            b_e = leaky_gradient(b_e, b_act, SLOPE)
        tl.store(p_e + o_p * PITCH + o_n[None, :], b_e, mask=m_p & (o_n < PITCH)[None, :])
        b_sum += b_e.to(ACC)
    tl.store(p_dbias + i_split * N + o_n, tl.sum(b_sum, axis=0), mask=o_n < N)


@triton.jit
def stem_gradients(
    p_x, p_w0, p_bias0, p_w, p_e, p_dw0, p_dw,
    B, H, W, OUT_H, OUT_W, C, N, s_b, s_h, s_w0, s_tap, s_w, SPLITS, TAPS: tl.constexpr,
    INPUTS: tl.constexpr, SLOPE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    PITCH: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """The part of `stem_backward_kernel` whose pixels of f0 are read through two taps, or through one."""
    i_split = tl.program_id(0)
    i_part = tl.program_id(1)
    odd = tl.where(i_part < 3, 1, 0)
    i_row = tl.where(i_part < 3, i_part, 5 - i_part)
    o_c = tl.arange(0, BLOCK_C)
    m_c = (o_c < C)[:, None]
    # The columns of both taps are those of one matrix; the second tap reads f0 for the next output, right or below.
    o_tap = tl.arange(0, TAPS * BLOCK_N) // BLOCK_N
    o_n = tl.arange(0, TAPS * BLOCK_N) % BLOCK_N
    o_down, o_right = o_tap * (1 - odd), o_tap * odd
    o_tap = 3 * i_row + 1 + odd - 6 * o_down - 2 * o_right
    m_w = m_c & (o_n < N)[None, :]
    b_w = tl.load(p_w + (o_tap * s_tap + o_n)[None, :] + (o_c * s_w)[:, None], mask=m_w, other=0.0)
    # A window of 4x4 pixels of four values; the taps are its first three rows, and its first three columns or its last.
    o_k = tl.arange(0, 64)
    o_row, o_column, o_value = o_k // 16, o_k % 16 // 4 - odd, o_k % 4
    m_k = (o_row < 3) & (o_column >= 0) & (o_column < 3)
    o_w0 = (3 * o_row + o_column) * INPUTS + o_value
    m_w0 = m_c & (m_k & (o_value < INPUTS))[None, :]
    b_w0 = tl.load(p_w0 + (o_w0 * s_w0)[None, :] + o_c[:, None], mask=m_w0, other=0.0)
    b_bias0 = tl.load(p_bias0 + o_c, mask=o_c < C, other=0.0).to(ACC)[:, None]
    b_dw0 = tl.zeros([BLOCK_C, 64], ACC)
    b_dw = tl.zeros([BLOCK_C, TAPS * BLOCK_N], ACC)
    o_p = tl.arange(0, BLOCK_H * BLOCK_W)
    n_tiles = B * tl.cdiv(OUT_H, BLOCK_H) * tl.cdiv(OUT_W, BLOCK_W)
    for i_tile in tl.range(i_split, n_tiles, SPLITS, num_stages=STAGES):
        i_b, o_h, o_w = pixel_tile(i_tile, OUT_H, OUT_W, BLOCK_H, BLOCK_W)
        o_y, o_x = o_h + o_p // BLOCK_W, o_w + o_p % BLOCK_W
        o_first, o_lower = 2 * o_h + i_row - 1, 2 * (o_p // BLOCK_W)
        o_f = o_first + o_lower
        m_f = (o_f >= 0) & (o_f < H) & (2 * o_x + odd < W)
        p_pixel = p_x + (i_b.to(tl.int64) * s_b + o_first.to(tl.int64) * s_h) * 8 + (o_lower * s_h + o_x) * 8
        p_window = p_pixel[:, None] + (o_row * s_h * 8 + o_k % 16)[None, :]
        b_x = tl.load(p_window, mask=m_f[:, None], other=0.0)
        m_e = (o_y[:, None] + o_down[None, :] < OUT_H) & (o_x[:, None] + o_right[None, :] < OUT_W)
        if PITCH < BLOCK_N:
            m_e = m_e & (o_n < PITCH)[None, :]
        o_pixel = ((i_b * OUT_H + o_y).to(tl.int64) * OUT_W + o_x) * PITCH
        o_next = (o_down * OUT_W + o_right) * PITCH + o_n
        b_e = tl.load(p_e + o_pixel[:, None] + o_next[None, :], mask=m_e, other=0.0)
        b_f = tl.dot(b_w0, tl.trans(b_x), input_precision=PRECISION, out_dtype=ACC) + b_bias0
        b_f = tl.maximum(b_f, b_f * SLOPE)  # two instructions, `leaky` has three
        if (o_h == 0) | (2 * (o_h + BLOCK_H) > H) | (2 * (o_w + BLOCK_W) > W):
            b_f = tl.where(m_f[None, :], b_f, 0.0)
        b_f = b_f.to(b_x.dtype)
        b_dw = tl.dot(b_f, b_e, b_dw, input_precision=PRECISION, out_dtype=ACC)
        b_e0 = tl.dot(b_w, tl.trans(b_e), input_precision=PRECISION, out_dtype=ACC)
        b_e0 = leaky_gradient(b_e0, b_f, SLOPE).to(b_x.dtype)
        b_dw0 = tl.dot(b_e0, b_x, b_dw0, input_precision=PRECISION, out_dtype=ACC)
    p_dw += i_split.to(tl.int64) * 9 * C * N
    tl.store(p_dw + (o_tap * C * N + o_n)[None, :] + (o_c * N)[:, None], b_dw, mask=m_w)
    # The last row is the bias's gradient, that of the weight of the 1 in a pixel.
    p_dw0 += (i_split * 5 + i_part).to(tl.int64) * (9 * INPUTS + 1) * C
    o_dw0 = tl.where(o_value < INPUTS, o_w0, 9 * INPUTS)
    m_dw0 = m_k & ((o_value < INPUTS) | ((o_value == 3) & (o_row == 0) & (o_column == 0)))
    tl.store(p_dw0 + (o_dw0 * C)[None, :] + o_c[:, None], b_dw0, mask=m_c & m_dw0[None, :])


@triton.jit
def stem_backward_kernel(
    p_x, p_w0, p_bias0, p_w, p_e, p_dw0, p_dw,
    B, H, W, OUT_H, OUT_W, C, N, s_b, s_h, s_w0, s_tap, s_w, SPLITS,
    INPUTS: tl.constexpr, SLOPE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    PITCH: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Gradients of the weights and of the first bias, from the gradient e before the last activation: per program, one
    of five parts and one partial sum over tiles.

    The outputs read an odd column of f0 through the last tap and the next output's first tap of a row: three parts, one
    for each row of taps. They read an even column through the middle one: odd rows again through two taps, even rows
    through one. The gradient of f0 is a sum over taps; applying the activation's mask and multiplying by the image are
    linear. Therefore each part has its own part of dw0, and the gradient of f0 is never written to memory.

    Channels of f0 are the rows of all products, so f0 and its gradient are in the registers in which the next product
    reads them. `p_x` has packed pixels (`pad_kernel`), in which outside f0 nothing is read: what is multiplied by it is
    not masked.
    """
    wait_for_previous_launch()
    if tl.program_id(1) < 4:
        stem_gradients(
            p_x, p_w0, p_bias0, p_w, p_e, p_dw0, p_dw,
            B, H, W, OUT_H, OUT_W, C, N, s_b, s_h, s_w0, s_tap, s_w, SPLITS, 2,
            INPUTS, SLOPE, ACC, PRECISION, PITCH, BLOCK_H, BLOCK_W, BLOCK_C, BLOCK_N, STAGES,
        )  # fmt: skip
    else:
        stem_gradients(
            p_x, p_w0, p_bias0, p_w, p_e, p_dw0, p_dw,
            B, H, W, OUT_H, OUT_W, C, N, s_b, s_h, s_w0, s_tap, s_w, SPLITS, 1,
            INPUTS, SLOPE, ACC, PRECISION, PITCH, BLOCK_H, BLOCK_W, BLOCK_C, BLOCK_N, STAGES,
        )  # fmt: skip
