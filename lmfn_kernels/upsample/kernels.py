"""Bilinear resampling (align_corners False), its gradient, and a convolution of an upsampled map.

Names and conventions as in `runtime/kernels.py`; weights are [taps, inputs, outputs].
"""

# ruff: noqa: N803  (names of constants are upper-case)

import triton
import triton.language as tl

from lmfn_kernels.runtime.kernels import load_pixels, load_weight, pixel_tile, store_pixels


@triton.jit
def bilinear_axis(o_x, TO, FROM, LOW, ACC: tl.constexpr):
    """The two source pixels, out of LOW, of position `o_x`, and the weight of the second (align_corners False).

    FROM pixels become TO. The source position (o_x + 1/2) FROM / TO - 1/2 is computed as a fraction of integers, so
    only the weight is rounded. It is clamped to the first and last pixels.
    """
    o_twice = tl.maximum((2 * o_x + 1) * FROM - TO, 0)
    o_first = tl.minimum(o_twice // (2 * TO), LOW - 1)
    b_weight = (o_twice % (2 * TO)).to(ACC) / (2 * TO)
    return o_first, tl.minimum(o_first + 1, LOW - 1), b_weight


@triton.jit
def upsampled(
    p_v, i_b, o_h, o_w, H, W, LOW_H, LOW_W, TO_H, FROM_H, TO_W, FROM_W, F, s_b, s_h, s_w,
    ACC: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """A tile [pixels, F] of v [LOW_H, LOW_W, F] upsampled to H x W, by which FROM rows and columns become TO."""
    o_p = tl.arange(0, BLOCK_H * BLOCK_W)
    o_y = o_h + o_p // BLOCK_W
    o_x = o_w + o_p % BLOCK_W
    o_f = tl.arange(0, BLOCK_F)
    m_v = ((o_y < H) & (o_x < W))[:, None] & (o_f < F)[None, :]
    o_y0, o_y1, b_y = bilinear_axis(o_y, TO_H, FROM_H, LOW_H, ACC)
    o_x0, o_x1, b_x = bilinear_axis(o_x, TO_W, FROM_W, LOW_W, ACC)
    p_f = p_v + i_b.to(tl.int64) * s_b + o_f[None, :]
    b_00 = tl.load(p_f + (o_y0 * s_h + o_x0 * s_w)[:, None], mask=m_v, other=0.0).to(ACC)
    b_01 = tl.load(p_f + (o_y0 * s_h + o_x1 * s_w)[:, None], mask=m_v, other=0.0).to(ACC)
    b_10 = tl.load(p_f + (o_y1 * s_h + o_x0 * s_w)[:, None], mask=m_v, other=0.0).to(ACC)
    b_11 = tl.load(p_f + (o_y1 * s_h + o_x1 * s_w)[:, None], mask=m_v, other=0.0).to(ACC)
    b_x = b_x[:, None]
    b_y = b_y[:, None]
    return (1 - b_y) * ((1 - b_x) * b_00 + b_x * b_01) + b_y * ((1 - b_x) * b_10 + b_x * b_11)


@triton.jit
def upsample_add_kernel(
    p_v, t_added, t_out, H, W, LOW_H, LOW_W, F, s_b, s_h, s_w,
    ACC: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """out = v [LOW_H, LOW_W, F] upsampled to H x W, plus `added` unless it is None."""
    i_b, o_h, o_w = pixel_tile(tl.program_id(0), H, W, BLOCK_H, BLOCK_W)
    o_f = tl.program_id(1) * BLOCK_F
    b_out = upsampled(
        p_v + o_f, i_b, o_h, o_w, H, W, LOW_H, LOW_W, H, LOW_H, W, LOW_W, F - o_f, s_b, s_h, s_w,
        ACC, BLOCK_H, BLOCK_W, BLOCK_F,
    )  # fmt: skip
    if t_added is not None:
        b_out += load_pixels(t_added, i_b, o_h, o_w, o_f).to(ACC)
    store_pixels(t_out, i_b, o_h, o_w, o_f, b_out)


@triton.jit
def upsample_backward_kernel(
    p_g, p_dv, H, W, F, LOW_H, LOW_W, TO_H, FROM_H, TO_W, FROM_W, s_gb, s_gh, s_gw, s_b, s_h, s_w,
    ACC: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """The gradient of one pixel of v, gathered in a fixed order from the pixels of g that the pixel contributed to."""
    i_b = (tl.program_id(0) // (LOW_H * LOW_W)).to(tl.int64)
    i_y = tl.program_id(0) // LOW_W % LOW_H
    i_x = tl.program_id(0) % LOW_W
    o_f = tl.arange(0, BLOCK_F)
    # Positions before the first source pixel and after the last one belong to these two.
    o_first = tl.where(i_x > 0, tl.maximum((2 * i_x - 1) * TO_W // (2 * FROM_W) - 1, 0), 0)
    o_last = tl.where(i_x < LOW_W - 1, tl.minimum((2 * i_x + 3) * TO_W // (2 * FROM_W) + 1, W), W)
    o_top = tl.where(i_y > 0, tl.maximum((2 * i_y - 1) * TO_H // (2 * FROM_H) - 1, 0), 0)
    o_end = tl.where(i_y < LOW_H - 1, tl.minimum((2 * i_y + 3) * TO_H // (2 * FROM_H) + 1, H), H)
    b_dv = tl.zeros([BLOCK_W, BLOCK_F], ACC)
    for o_y in range(o_top, o_end):
        o_y0, o_y1, b_y = bilinear_axis(o_y, TO_H, FROM_H, LOW_H, ACC)
        b_y = tl.where(o_y0 == i_y, 1 - b_y, 0.0) + tl.where(o_y1 == i_y, b_y, 0.0)
        for o_start in range(o_first, o_last, BLOCK_W):
            o_x = o_start + tl.arange(0, BLOCK_W)
            o_x0, o_x1, b_x = bilinear_axis(o_x, TO_W, FROM_W, LOW_W, ACC)
            b_x = tl.where(o_x0 == i_x, 1 - b_x, 0.0) + tl.where(o_x1 == i_x, b_x, 0.0)
            m_g = (o_x < o_last)[:, None] & (o_f < F)[None, :]
            p_row = p_g + i_b * s_gb + tl.cast(o_y, tl.int64) * s_gh
            b_g = tl.load(p_row + o_x[:, None] * s_gw + o_f[None, :], mask=m_g, other=0.0).to(ACC)
            b_dv += b_g * (b_x * b_y)[:, None]
    p_pixel = p_dv + i_b * s_b + i_y * s_h + i_x * s_w + o_f
    tl.store(p_pixel, tl.sum(b_dv, axis=0).to(p_dv.dtype.element_ty), mask=o_f < F)


@triton.jit
def at_place(i_place, o_x, SIZE):
    """Whether positions `o_x` out of SIZE belong to place 0 (all of them), 1 (the first) or 2 (the last)."""
    return (i_place == 0) | ((i_place == 1) & (o_x == 0)) | ((i_place == 2) & (o_x == SIZE - 1))


@triton.jit
def upsampled_conv_kernel(
    t_x, t_w, p_bias, p_out, H, W, N, s_b, s_n, s_h, s_w,
    K: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """out = conv3x3(up2(x)) + bias, from the folded weights of the nine parts.

    Result (n, a, b) of pixel (h, w) is channel n of out at (2h + a, 2w + b). A tile that does not touch the edge of the
    image needs only the first part.
    """
    i_b, o_h, o_w = pixel_tile(tl.program_id(0), H, W, BLOCK_H, BLOCK_W)
    o_n = tl.program_id(1) * BLOCK_N
    o_p = tl.arange(0, BLOCK_H * BLOCK_W)
    o_y = o_h + o_p // BLOCK_W
    o_x = o_w + o_p % BLOCK_W
    b_out = tl.zeros([BLOCK_H * BLOCK_W, BLOCK_N], ACC)
    n_k: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    for i in tl.range(0, 9 * n_k, num_stages=STAGES):
        i_tap = i // n_k
        b_x = load_pixels(t_x, i_b, o_h + i_tap // 3 - 1, o_w + i_tap % 3 - 1, i % n_k * BLOCK_K)
        b_w = load_weight(t_w, i_tap, i % n_k * BLOCK_K, o_n)
        b_out = tl.dot(b_x, b_w, b_out, input_precision=PRECISION, out_dtype=ACC)
    if (o_h == 0) | (o_h + BLOCK_H >= H) | (o_w == 0) | (o_w + BLOCK_W >= W):
        for i in tl.range(9 * n_k, 81 * n_k, num_stages=1):
            i_tap = i // n_k
            m_x = at_place(i_tap // 27, o_y, H) & at_place(i_tap // 9 % 3, o_x, W)
            b_x = load_pixels(t_x, i_b, o_h + i_tap % 9 // 3 - 1, o_w + i_tap % 3 - 1, i % n_k * BLOCK_K)
            b_w = load_weight(t_w, i_tap, i % n_k * BLOCK_K, o_n)
            b_x = tl.where(m_x[:, None], b_x, 0.0).to(b_x.dtype)
            b_out = tl.dot(b_x, b_w, b_out, input_precision=PRECISION, out_dtype=ACC)
    o_r = o_n + tl.arange(0, BLOCK_N)
    b_out += tl.load(p_bias + o_r // 4, mask=o_r < N, other=0.0).to(ACC)[None, :]
    p_pixel = p_out + i_b.to(tl.int64) * s_b + (2 * o_y * s_h + 2 * o_x * s_w)[:, None]
    p_pixel += (o_r // 4 * s_n + o_r // 2 % 2 * s_h + o_r % 2 * s_w)[None, :]
    m_out = ((o_y < H) & (o_x < W))[:, None] & (o_r < N)[None, :]
    tl.store(p_pixel, b_out.to(p_out.dtype.element_ty), mask=m_out)


@triton.jit
def upsampled_conv_input_gradient_kernel(
    t_e, t_w, t_dx, H, W,
    K: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The gradient of x from that of the K results per pixel of x, `t_e`, with the folded weights of the nine parts.

    Through tap (i, j), pixel (h, w) receives the gradient of pixel (h + 1 - i, w + 1 - j), in those parts whose place
    includes that pixel.
    """
    i_b, o_h, o_w = pixel_tile(tl.program_id(0), H, W, BLOCK_H, BLOCK_W)
    o_n = tl.program_id(1) * BLOCK_N
    o_p = tl.arange(0, BLOCK_H * BLOCK_W)
    b_dx = tl.zeros([BLOCK_H * BLOCK_W, BLOCK_N], ACC)
    n_k: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    for i in tl.range(0, 9 * n_k, num_stages=STAGES):
        i_tap = i // n_k
        b_e = load_pixels(t_e, i_b, o_h + 1 - i_tap // 3, o_w + 1 - i_tap % 3, i % n_k * BLOCK_K)
        b_w = tl.trans(load_weight(t_w, i_tap, o_n, i % n_k * BLOCK_K))
        b_dx = tl.dot(b_e, b_w, b_dx, input_precision=PRECISION, out_dtype=ACC)
    if (o_h <= 1) | (o_h + BLOCK_H + 1 >= H) | (o_w <= 1) | (o_w + BLOCK_W + 1 >= W):
        for i in tl.range(9 * n_k, 81 * n_k, num_stages=1):
            i_tap = i // n_k
            o_y, o_x = o_h + 1 - i_tap % 9 // 3, o_w + 1 - i_tap % 3
            m_e = at_place(i_tap // 27, o_y + o_p // BLOCK_W, H) & at_place(i_tap // 9 % 3, o_x + o_p % BLOCK_W, W)
            b_e = load_pixels(t_e, i_b, o_y, o_x, i % n_k * BLOCK_K)
            b_e = tl.where(m_e[:, None], b_e, 0.0).to(b_e.dtype)
            b_w = tl.trans(load_weight(t_w, i_tap, o_n, i % n_k * BLOCK_K))
            b_dx = tl.dot(b_e, b_w, b_dx, input_precision=PRECISION, out_dtype=ACC)
    store_pixels(t_dx, i_b, o_h, o_w, o_n, b_dx)


@triton.jit
def edge_weight_gradient_kernel(
    t_e, t_x, p_dw, B, H, W, K, N, SPLITS,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Partial sums [72 taps, K, N] of the folded weights' gradients: taps 9 to 80, those of the eight edge parts.

    A program computes one row of taps of one part, from the tiles that touch its place.
    """
    i_split = tl.program_id(0)
    i_part, i_row = 1 + tl.program_id(1) // 3, tl.program_id(1) % 3
    n_blocks = tl.cdiv(N, BLOCK_N)
    o_k = tl.program_id(2) // n_blocks * BLOCK_K
    o_n = tl.program_id(2) % n_blocks * BLOCK_N
    o_p = tl.arange(0, BLOCK_H * BLOCK_W)
    b_dw0 = tl.zeros([BLOCK_K, BLOCK_N], ACC)
    b_dw1 = tl.zeros([BLOCK_K, BLOCK_N], ACC)
    b_dw2 = tl.zeros([BLOCK_K, BLOCK_N], ACC)
    i_place_h, i_place_w = i_part // 3, i_part % 3
    n_tiles = B * tl.cdiv(H, BLOCK_H) * tl.cdiv(W, BLOCK_W)
    for i_tile in tl.range(i_split, n_tiles, SPLITS, num_stages=1):
        i_b, o_h, o_w = pixel_tile(i_tile, H, W, BLOCK_H, BLOCK_W)
        here = (i_place_h == 0) | ((i_place_h == 1) & (o_h == 0)) | ((i_place_h == 2) & (o_h + BLOCK_H >= H))
        here = here & ((i_place_w == 0) | ((i_place_w == 1) & (o_w == 0)) | ((i_place_w == 2) & (o_w + BLOCK_W >= W)))
        if here:
            m_e = at_place(i_place_h, o_h + o_p // BLOCK_W, H) & at_place(i_place_w, o_w + o_p % BLOCK_W, W)
            b_e = load_pixels(t_e, i_b, o_h, o_w, o_n)
            b_e = tl.where(m_e[:, None], b_e, 0.0).to(b_e.dtype)
            b_x = load_pixels(t_x, i_b, o_h + i_row - 1, o_w - 1, o_k)
            b_dw0 = tl.dot(tl.trans(b_x), b_e, b_dw0, input_precision=PRECISION, out_dtype=ACC)
            b_x = load_pixels(t_x, i_b, o_h + i_row - 1, o_w, o_k)
            b_dw1 = tl.dot(tl.trans(b_x), b_e, b_dw1, input_precision=PRECISION, out_dtype=ACC)
            b_x = load_pixels(t_x, i_b, o_h + i_row - 1, o_w + 1, o_k)
            b_dw2 = tl.dot(tl.trans(b_x), b_e, b_dw2, input_precision=PRECISION, out_dtype=ACC)
    o_ck = o_k + tl.arange(0, BLOCK_K)
    o_cn = o_n + tl.arange(0, BLOCK_N)
    m_w = (o_ck < K)[:, None] & (o_cn < N)[None, :]
    p_first = p_dw + (i_split.to(tl.int64) * 72 + (i_part - 1) * 9 + i_row * 3) * K * N
    p_first += o_ck[:, None] * N + o_cn[None, :]
    tl.store(p_first, b_dw0, mask=m_w)
    tl.store(p_first + K * N, b_dw1, mask=m_w)
    tl.store(p_first + 2 * K * N, b_dw2, mask=m_w)
