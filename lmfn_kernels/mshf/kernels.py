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
    load_pixels,
    load_weight,
    pixel_tile,
    store_pixels,
)


@triton.jit
def f0_tile(
    p_x, b_w0, b_bias0, i_b, o_h, o_w, i_tap, H, W, s_b, s_c, s_h, s_w, TYPE: tl.constexpr,
    INPUTS: tl.constexpr, PADDING: tl.constexpr, SLOPE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The tile of f0 that tap `i_tap` of the second convolution reads for a tile of outputs at (o_h, o_w).

    Returns the image's values [pixels, BLOCK_K] under the first convolution's taps, f0 [pixels, C], and the mask of the
    pixels inside f0; the others are the second convolution's padding.
    """
    o_p = tl.arange(0, BLOCK_H * BLOCK_W)
    o_y = 2 * (o_h + o_p // BLOCK_W) + i_tap // 3 - 1
    o_x = 2 * (o_w + o_p % BLOCK_W) + i_tap % 3 - 1
    m_f = (o_y >= 0) & (o_y < H + 2 * PADDING - 2) & (o_x >= 0) & (o_x < W + 2 * PADDING - 2)
    o_k = tl.arange(0, BLOCK_K)
    o_r = o_y[:, None] + (o_k // INPUTS // 3 - PADDING)[None, :]
    o_s = o_x[:, None] + (o_k // INPUTS % 3 - PADDING)[None, :]
    m_x = (o_k < 9 * INPUTS)[None, :] & m_f[:, None] & (o_r >= 0) & (o_r < H) & (o_s >= 0) & (o_s < W)
    p_tap = p_x + i_b.to(tl.int64) * s_b + (o_k % INPUTS * s_c)[None, :]
    b_x = tl.load(p_tap + (o_r * s_h + o_s * s_w), mask=m_x, other=0.0)
    b_f = leaky(tl.dot(b_x, b_w0, input_precision=PRECISION, out_dtype=ACC) + b_bias0, SLOPE)
    return b_x, tl.where(m_f[:, None], b_f, 0.0).to(TYPE), m_f


@triton.jit
def stem_kernel(
    p_x, t_w0, p_bias0, t_w, p_bias, t_out, H, W, OUT_H, OUT_W, C, N, s_b, s_c, s_h, s_w,
    INPUTS: tl.constexpr, PADDING: tl.constexpr, SLOPE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """out = leaky(conv3x3 of stride 2 (leaky(conv3x3(x))))."""
    i_b, o_h, o_w = pixel_tile(tl.program_id(0), OUT_H, OUT_W, BLOCK_H, BLOCK_W)
    b_w0 = load_weight(t_w0, 0, 0, 0)
    b_bias0 = load_bias(p_bias0, 0, C, BLOCK_C, ACC)
    b_out = tl.zeros([BLOCK_H * BLOCK_W, BLOCK_N], ACC)
    for i_tap in tl.range(0, 9, num_stages=STAGES):
        _, b_f, _ = f0_tile(
            p_x, b_w0, b_bias0, i_b, o_h, o_w, i_tap, H, W, s_b, s_c, s_h, s_w, t_out.dtype,
            INPUTS, PADDING, SLOPE, ACC, PRECISION, BLOCK_H, BLOCK_W, BLOCK_K,
        )  # fmt: skip
        b_out = tl.dot(b_f, load_weight(t_w, i_tap, 0, 0), b_out, input_precision=PRECISION, out_dtype=ACC)
    store_pixels(t_out, i_b, o_h, o_w, 0, leaky(b_out + load_bias(p_bias, 0, N, BLOCK_N, ACC), SLOPE))


@triton.jit
def stem_backward_kernel(
    p_x, t_w0, p_bias0, t_w, t_g, t_act, p_dw0, p_dbias0, p_dw, p_dbias,
    B, H, W, OUT_H, OUT_W, C, N, s_b, s_c, s_h, s_w, SPLITS,
    INPUTS: tl.constexpr, PADDING: tl.constexpr, SLOPE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Gradients of weights and biases: per program, one tap of the second convolution and one partial sum over tiles.

    The gradient of f0 is a sum over taps; applying the activation's mask and multiplying by the image are linear.
    Therefore each tap computes its own part of dw0, and the gradient of f0 is never written to memory.
    """
    i_split = tl.program_id(0)
    i_tap = tl.program_id(1)
    b_w0 = load_weight(t_w0, 0, 0, 0)
    b_bias0 = load_bias(p_bias0, 0, C, BLOCK_C, ACC)
    b_dw0 = tl.zeros([BLOCK_K, BLOCK_C], ACC)
    b_dbias0 = tl.zeros([BLOCK_C], ACC)
    b_dw = tl.zeros([BLOCK_C, BLOCK_N], ACC)
    b_dbias = tl.zeros([BLOCK_N], ACC)
    n_tiles = B * tl.cdiv(OUT_H, BLOCK_H) * tl.cdiv(OUT_W, BLOCK_W)
    for i_tile in tl.range(i_split, n_tiles, SPLITS, num_stages=STAGES):
        i_b, o_h, o_w = pixel_tile(i_tile, OUT_H, OUT_W, BLOCK_H, BLOCK_W)
        b_e = leaky_gradient(load_pixels(t_g, i_b, o_h, o_w, 0), load_pixels(t_act, i_b, o_h, o_w, 0), SLOPE)
        b_x, b_f, m_f = f0_tile(
            p_x, b_w0, b_bias0, i_b, o_h, o_w, i_tap, H, W, s_b, s_c, s_h, s_w, t_g.dtype,
            INPUTS, PADDING, SLOPE, ACC, PRECISION, BLOCK_H, BLOCK_W, BLOCK_K,
        )  # fmt: skip
        b_dw = tl.dot(tl.trans(b_f), b_e, b_dw, input_precision=PRECISION, out_dtype=ACC)
        b_dbias += tl.sum(b_e.to(ACC), axis=0)
        b_e0 = tl.dot(b_e, tl.trans(load_weight(t_w, i_tap, 0, 0)), input_precision=PRECISION, out_dtype=ACC)
        b_e0 = tl.where(m_f[:, None], leaky_gradient(b_e0, b_f, SLOPE), 0.0)
        b_dbias0 += tl.sum(b_e0, axis=0)
        b_dw0 = tl.dot(tl.trans(b_x), b_e0.to(b_x.dtype), b_dw0, input_precision=PRECISION, out_dtype=ACC)
    o_k = tl.arange(0, BLOCK_K)
    o_c = tl.arange(0, BLOCK_C)
    o_n = tl.arange(0, BLOCK_N)
    i_part = (i_split * 9 + i_tap).to(tl.int64)
    m_c = o_c < C
    m_n = o_n < N
    p_part = p_dw0 + i_part * 9 * INPUTS * C + o_k[:, None] * C + o_c[None, :]
    tl.store(p_part, b_dw0, mask=(o_k < 9 * INPUTS)[:, None] & m_c[None, :])
    tl.store(p_dbias0 + i_part * C + o_c, b_dbias0, mask=m_c)
    tl.store(p_dw + i_part * C * N + o_c[:, None] * N + o_n[None, :], b_dw, mask=m_c[:, None] & m_n[None, :])
    if i_tap == 0:
        tl.store(p_dbias + i_split * N + o_n, b_dbias, mask=m_n)
