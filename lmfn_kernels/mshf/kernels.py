"""Kernels of the stem. Names and conventions as in `runtime/kernels.py`; weights are [taps, inputs, outputs].

f0 is the result of the first convolution, at full size. A tap of the second convolution, of stride 2, reads every
second row and column of f0. That tile is computed where it is needed, as one matrix product of the image's values under
the nine taps of the first convolution.
"""

# ruff: noqa: N803  (names of constants are upper-case)

import triton
import triton.language as tl

from lmfn_kernels.runtime.kernels import (
    leaky,
    leaky_gradient,
    load_bias,
    load_tile,
    load_weight,
    pixel_tile,
    store_pixels,
    wait_for_previous_launch,
)


@triton.jit
def pad_kernel(
    p_x, p_mean, p_out, H, W, SIZE, ROW, C, C_OUT, s_b, s_c, s_h, s_w, s_ob, s_oc, s_op,
    PADDING: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Copy an image of any strides and dtype, minus the mean of each channel unless that is None, with PADDING zeros
    around it.

    The result has C_OUT channels, zeros after the C of x, and SIZE pixels in rows of ROW, gaps included; by the strides
    of its images, channels and pixels, it is planes or packed pixels.
    """
    wait_for_previous_launch()
    n_blocks = tl.cdiv(SIZE, BLOCK)
    i_b = (tl.program_id(0) // n_blocks).to(tl.int64)
    o_p = tl.program_id(0) % n_blocks * BLOCK + tl.arange(0, BLOCK)
    o_c = tl.arange(0, BLOCK_C)
    o_y, o_x = o_p // ROW - PADDING, o_p % ROW - PADDING
    m_x = ((o_y >= 0) & (o_y < H) & (o_x >= 0) & (o_x < W))[:, None] & (o_c < C)[None, :]
    p_pixel = p_x + i_b * s_b + o_y.to(tl.int64) * s_h + o_x.to(tl.int64) * s_w
    b_x = tl.load(p_pixel[:, None] + (o_c * s_c)[None, :], mask=m_x, other=0.0)
    if p_mean is not None:
        b_mean = tl.load(p_mean + o_c, mask=o_c < C, other=0.0).to(ACC)
        b_x = tl.where(m_x, b_x.to(ACC) - b_mean[None, :], 0.0)
    p_pixel = p_out + i_b * s_ob + o_p * s_op
    m_out = ((o_p < SIZE) & (o_x < W + PADDING))[:, None] & (o_c < C_OUT)[None, :]
    tl.store(p_pixel[:, None] + (o_c * s_oc)[None, :], b_x.to(p_out.dtype.element_ty), mask=m_out)


@triton.jit
def f0_tile(
    p_x, b_w0, b_bias0, i_b, o_h, o_w, i_tap, H, W, s_b, s_c, s_h,
    INPUTS: tl.constexpr, SLOPE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The tile of f0 [H, W] that tap `i_tap` of the second convolution reads for a tile of outputs at (o_h, o_w).

    Returns the image's values [pixels, BLOCK_K] under the first convolution's taps, f0 [pixels, C], and the mask of the
    pixels inside f0; the others are the second convolution's padding. After the image's values comes a 1, whose weight
    is 0 here: multiplied by the gradient of f0, it yields the bias's gradient.

    `p_x` is from `pad_kernel`, so every pixel of f0 may read its nine taps: the mask is one per pixel, and the three
    columns of a row are at a constant distance.
    """
    o_p = tl.arange(0, BLOCK_H * BLOCK_W)
    o_y = 2 * (o_h + o_p // BLOCK_W) + i_tap // 3 - 1
    o_x = 2 * (o_w + o_p % BLOCK_W) + i_tap % 3 - 1
    m_f = (o_y >= 0) & (o_y < H) & (o_x >= 0) & (o_x < W)
    o_k = tl.arange(0, BLOCK_K)
    p_pixel = p_x + i_b.to(tl.int64) * s_b + (o_y * s_h + o_x)
    p_row = p_pixel[:, None] + (o_k % INPUTS * s_c + o_k // INPUTS // 3 * s_h)[None, :]
    m_x = m_f[:, None] & (o_k < 9 * INPUTS)[None, :]
    b_one = tl.where(o_k == 9 * INPUTS, 1.0, 0.0)
    b_x = tl.load(p_row + (o_k // INPUTS % 3)[None, :], mask=m_x, other=b_one[None, :])
    b_f = tl.dot(b_x, b_w0, input_precision=PRECISION, out_dtype=ACC) + b_bias0
    b_f = tl.maximum(b_f, b_f * SLOPE)  # two instructions, `leaky` has three
    if (o_h == 0) | (o_w == 0) | (2 * (o_h + BLOCK_H) > H) | (2 * (o_w + BLOCK_W) > W):
        b_f = tl.where(m_f[:, None], b_f, 0.0)
    return b_x, b_f.to(b_x.dtype), m_f


@triton.jit
def stem_kernel(
    p_x, t_w0, p_bias0, t_w, p_bias, t_out, H, W, OUT_H, OUT_W, C, N, s_b, s_c, s_h,
    INPUTS: tl.constexpr, SLOPE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
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
        _, b_f, _ = f0_tile(
            p_x, b_w0, b_bias0, i_b, o_h, o_w, i_tap, H, W, s_b, s_c, s_h,
            INPUTS, SLOPE, ACC, PRECISION, BLOCK_H, BLOCK_W, BLOCK_K,
        )  # fmt: skip
        b_out = tl.dot(b_f, load_weight(t_w, i_tap, 0, 0), b_out, input_precision=PRECISION, out_dtype=ACC)
    store_pixels(t_out, i_b, o_h, o_w, 0, leaky(b_out + load_bias(p_bias, 0, N, BLOCK_N, ACC), SLOPE))


@triton.jit
def load_gradient(
    p_g, p_act, i_b, o_h, o_w, H, W, C, PITCH: tl.constexpr, SLOPE: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A tile of the gradient before the last activation, of which `p_act` is the output unless it is the identity."""
    b_g = load_tile(p_g, i_b, o_h, o_w, H, W, C, PITCH, BLOCK_H, BLOCK_W, BLOCK_C)
    if p_act is not None:
        b_act = load_tile(p_act, i_b, o_h, o_w, H, W, C, PITCH, BLOCK_H, BLOCK_W, BLOCK_C)
        b_g = leaky_gradient(b_g, b_act, SLOPE)
    return b_g


@triton.jit
def stem_gradients(
    p_x, t_w0, p_bias0, t_w, p_g, p_act, p_dw0, p_dw, p_dbias,
    B, H, W, OUT_H, OUT_W, C, N, s_b, s_c, s_h, SPLITS, ODD: tl.constexpr,
    INPUTS: tl.constexpr, SLOPE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    PITCH: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """The part of `stem_backward_kernel` that the odd columns of f0 contribute, or the even ones."""
    i_split = tl.program_id(0)
    i_row = tl.program_id(1)
    i_tap = 3 * i_row + 1 + ODD
    b_w0 = load_weight(t_w0, 0, 0, 0)
    b_bias0 = load_bias(p_bias0, 0, C, BLOCK_C, ACC)
    # Products of 64 rows read weights from shared memory; those of fewer rows would keep them in registers, and spill.
    KEPT: tl.constexpr = BLOCK_H * BLOCK_W >= 64
    if KEPT:
        b_w = tl.trans(load_weight(t_w, i_tap, 0, 0))
        b_first_w = tl.trans(load_weight(t_w, 3 * i_row, 0, 0))
    b_dw0 = tl.zeros([BLOCK_C, BLOCK_K], ACC)
    b_dw = tl.zeros([BLOCK_C, BLOCK_N], ACC)
    b_first_dw = tl.zeros([BLOCK_C, BLOCK_N], ACC)
    b_dbias = tl.zeros([BLOCK_N], ACC)
    n_tiles = B * tl.cdiv(OUT_H, BLOCK_H) * tl.cdiv(OUT_W, BLOCK_W)
    for i_tile in tl.range(i_split, n_tiles, SPLITS, num_stages=STAGES):
        i_b, o_h, o_w = pixel_tile(i_tile, OUT_H, OUT_W, BLOCK_H, BLOCK_W)
        b_e = load_gradient(p_g, p_act, i_b, o_h, o_w, OUT_H, OUT_W, N, PITCH, SLOPE, BLOCK_H, BLOCK_W, BLOCK_N)
        if ODD:
            b_next = load_gradient(
                p_g, p_act, i_b, o_h, o_w + 1, OUT_H, OUT_W, N, PITCH, SLOPE, BLOCK_H, BLOCK_W, BLOCK_N
            )  # fmt: skip
        b_x, b_f, m_f = f0_tile(
            p_x, b_w0, b_bias0, i_b, o_h, o_w, i_tap, H, W, s_b, s_c, s_h,
            INPUTS, SLOPE, ACC, PRECISION, BLOCK_H, BLOCK_W, BLOCK_K,
        )  # fmt: skip
        b_dw = tl.dot(tl.trans(b_f), b_e, b_dw, input_precision=PRECISION, out_dtype=ACC)
        if not KEPT:
            b_w = tl.trans(load_weight(t_w, i_tap, 0, 0))
        b_e0 = tl.dot(b_e, b_w, input_precision=PRECISION, out_dtype=ACC)
        if ODD:
            b_first_dw = tl.dot(tl.trans(b_f), b_next, b_first_dw, input_precision=PRECISION, out_dtype=ACC)
            if not KEPT:
                b_first_w = tl.trans(load_weight(t_w, 3 * i_row, 0, 0))
            b_e0 = tl.dot(b_next, b_first_w, b_e0, input_precision=PRECISION, out_dtype=ACC)
        elif i_row == 0:
            b_dbias += tl.sum(b_e.to(ACC), axis=0)
        b_e0 = tl.where(m_f[:, None], leaky_gradient(b_e0, b_f, SLOPE), 0.0).to(b_x.dtype)
        b_dw0 = tl.dot(tl.trans(b_e0), b_x, b_dw0, input_precision=PRECISION, out_dtype=ACC)
    o_k = tl.arange(0, BLOCK_K)
    o_c = tl.arange(0, BLOCK_C)
    o_n = tl.arange(0, BLOCK_N)
    m_n = o_n < N
    m_dw = (o_c < C)[:, None] & m_n[None, :]
    p_dw0 += (i_split * 6 + i_row * 2 + ODD).to(tl.int64) * (9 * INPUTS + 1) * C
    m_dw0 = (o_c < C)[:, None] & (o_k <= 9 * INPUTS)[None, :]
    tl.store(p_dw0 + o_k[None, :] * C + o_c[:, None], b_dw0, mask=m_dw0)
    p_dw += (i_split * 9).to(tl.int64) * C * N + o_c[:, None] * N + o_n[None, :]
    tl.store(p_dw + i_tap * C * N, b_dw, mask=m_dw)
    if ODD:
        tl.store(p_dw + 3 * i_row * C * N, b_first_dw, mask=m_dw)
    elif i_row == 0:
        tl.store(p_dbias + i_split * N + o_n, b_dbias, mask=m_n)


@triton.jit
def stem_backward_kernel(
    p_x, t_w0, p_bias0, t_w, p_g, p_act, p_dw0, p_dw, p_dbias,
    B, H, W, OUT_H, OUT_W, C, N, s_b, s_c, s_h, SPLITS,
    INPUTS: tl.constexpr, SLOPE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    PITCH: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Gradients of weights and biases: per program, one row of taps of the second convolution, the odd or the even
    columns of f0, and one partial sum over tiles.

    An even column of f0 is read through the middle tap; an odd one through the last tap of one output and the first tap
    of the next. The gradient of f0 is a sum over taps; applying the activation's mask and multiplying by the image are
    linear. Therefore each row of taps computes its own part of dw0, and the gradient of f0 is never written to memory.
    """
    wait_for_previous_launch()
    if tl.program_id(2) == 0:
        stem_gradients(
            p_x, t_w0, p_bias0, t_w, p_g, p_act, p_dw0, p_dw, p_dbias,
            B, H, W, OUT_H, OUT_W, C, N, s_b, s_c, s_h, SPLITS, True,
            INPUTS, SLOPE, ACC, PRECISION, PITCH, BLOCK_H, BLOCK_W, BLOCK_K, BLOCK_C, BLOCK_N, STAGES,
        )  # fmt: skip
    else:
        stem_gradients(
            p_x, t_w0, p_bias0, t_w, p_g, p_act, p_dw0, p_dw, p_dbias,
            B, H, W, OUT_H, OUT_W, C, N, s_b, s_c, s_h, SPLITS, False,
            INPUTS, SLOPE, ACC, PRECISION, PITCH, BLOCK_H, BLOCK_W, BLOCK_K, BLOCK_C, BLOCK_N, STAGES,
        )  # fmt: skip
