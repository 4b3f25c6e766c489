"""What kernels share.

Names: `t_` tensor descriptors, `b_` block values, `p_` pointers, `o_` offsets, `i_` program ids, `m_` masks.

Images are read through descriptors `[B, H, W, C]`: what lies outside the image, or beyond the last channel, reads as an
exact 0 whatever is in memory there, and is left alone when written.
"""

# ruff: noqa: N803  (constants are capital)

import triton
import triton.language as tl


@triton.jit
def pixel_tile(i_tile, H, W, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr):
    """Image, first row and first column of tile `i_tile`."""
    n_w = tl.cdiv(W, BLOCK_W)
    n_tiles = n_w * tl.cdiv(H, BLOCK_H)
    i_rest = i_tile % n_tiles
    return i_tile // n_tiles, i_rest // n_w * BLOCK_H, i_rest % n_w * BLOCK_W


@triton.jit
def load_pixels(t_x, i_b, o_h, o_w, o_c):
    """A tile of pixels as a matrix [pixels, channels]."""
    SHAPE: tl.constexpr = t_x.block_shape
    return t_x.load([i_b, o_h, o_w, o_c]).reshape(SHAPE[1] * SHAPE[2], SHAPE[3])


@triton.jit
def store_pixels(t_x, i_b, o_h, o_w, o_c, b_x):
    SHAPE: tl.constexpr = t_x.block_shape
    t_x.store([i_b, o_h, o_w, o_c], b_x.to(t_x.dtype).reshape(SHAPE))


@triton.jit
def load_weight(t_w, i_tap, o_k, o_n):
    """The matrix [inputs, outputs] of one tap."""
    SHAPE: tl.constexpr = t_w.block_shape
    return t_w.load([i_tap, o_k, o_n]).reshape(SHAPE[1], SHAPE[2])


@triton.jit
def load_bias(p_bias, o_n, N, BLOCK: tl.constexpr, ACC: tl.constexpr):
    o_c = o_n + tl.arange(0, BLOCK)
    return tl.load(p_bias + o_c, mask=o_c < N, other=0.0).to(ACC)[None, :]


@triton.jit
def leaky(b_x, SLOPE: tl.constexpr):
    """Slope 1 is the identity; slope 0 is ReLU, which must not multiply an infinity by 0."""
    if SLOPE == 1.0:
        return b_x
    if SLOPE == 0.0:
        return tl.where(b_x < 0, 0.0, b_x)
    return tl.where(b_x < 0, b_x * SLOPE, b_x)


@triton.jit
def leaky_gradient(b_g, b_y, SLOPE: tl.constexpr):
    """The gradient before a leaky ReLU from that after it, and from its output's sign.

    A slope of 16 bits would be off by the same part everywhere, so the product is made in float32.
    """
    if SLOPE == 0.0:
        b_less = tl.zeros_like(b_g)
    elif b_g.dtype == tl.float64:
        b_less = b_g * SLOPE
    else:
        b_less = b_g.to(tl.float32) * SLOPE
    return tl.where(b_y > 0, b_g, b_less.to(b_g.dtype))


@triton.jit
def weight_gradient_kernel(
    t_g,
    t_by,
    t_x,
    t_x01,
    t_x10,
    t_x11,
    p_dw,
    p_db,
    B,
    H,
    W,
    K,
    N,
    SPLITS,
    TAPS: tl.constexpr,
    ROW: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    SLOPE: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
):
    """X^T G over pixels for one row of taps, and the sum of G: a partial sum a program, over tiles a fixed step apart.

    `t_g` [B, H, W, N] is the gradient after the activation whose output is `t_by` (None: no activation), `t_x` the
    input; with stride 2 its four descriptors hold the even and odd rows and columns: a tap is a tile of one of them.
    """
    i_split = tl.program_id(0)
    i_row = tl.program_id(1) if STRIDE == 1 else ROW
    n_blocks = tl.cdiv(N, BLOCK_N)
    o_k = tl.program_id(2) // n_blocks * BLOCK_K
    o_n = tl.program_id(2) % n_blocks * BLOCK_N
    b_dw0 = tl.zeros([BLOCK_K, BLOCK_N], ACC)
    b_dw1 = tl.zeros([BLOCK_K, BLOCK_N], ACC)
    b_dw2 = tl.zeros([BLOCK_K, BLOCK_N], ACC)
    b_db = tl.zeros([BLOCK_N], ACC)
    n_tiles = B * tl.cdiv(H, BLOCK_H) * tl.cdiv(W, BLOCK_W)
    for i_tile in tl.range(i_split, n_tiles, SPLITS, num_stages=STAGES):
        i_b, o_h, o_w = pixel_tile(i_tile, H, W, BLOCK_H, BLOCK_W)
        b_g = load_pixels(t_g, i_b, o_h, o_w, o_n)
        if t_by is not None:
            b_g = leaky_gradient(b_g, load_pixels(t_by, i_b, o_h, o_w, o_n), SLOPE)
        if STRIDE == 1:
            o_x = o_h + i_row - PADDING
            b_x = load_pixels(t_x, i_b, o_x, o_w - PADDING, o_k)
            b_dw0 = tl.dot(tl.trans(b_x), b_g, b_dw0, input_precision=PRECISION, out_dtype=ACC)
            if TAPS == 3:
                b_x = load_pixels(t_x, i_b, o_x, o_w + 1 - PADDING, o_k)
                b_dw1 = tl.dot(tl.trans(b_x), b_g, b_dw1, input_precision=PRECISION, out_dtype=ACC)
                b_x = load_pixels(t_x, i_b, o_x, o_w + 2 - PADDING, o_k)
                b_dw2 = tl.dot(tl.trans(b_x), b_g, b_dw2, input_precision=PRECISION, out_dtype=ACC)
        else:
            # Tap (i, j) of output (h, w) is pixel (2h + i - PADDING, 2w + j - PADDING).
            o_x = o_h + (ROW - PADDING) // 2
            if (ROW - PADDING) % 2 == 0:
                t_even, t_odd = t_x, t_x01
            else:
                t_even, t_odd = t_x10, t_x11
            if PADDING == 0:
                b_x0 = load_pixels(t_even, i_b, o_x, o_w, o_k)
                b_x1 = load_pixels(t_odd, i_b, o_x, o_w, o_k)
                b_x2 = load_pixels(t_even, i_b, o_x, o_w + 1, o_k)
            else:
                b_x0 = load_pixels(t_odd, i_b, o_x, o_w - 1, o_k)
                b_x1 = load_pixels(t_even, i_b, o_x, o_w, o_k)
                b_x2 = load_pixels(t_odd, i_b, o_x, o_w, o_k)
            b_dw0 = tl.dot(tl.trans(b_x0), b_g, b_dw0, input_precision=PRECISION, out_dtype=ACC)
            b_dw1 = tl.dot(tl.trans(b_x1), b_g, b_dw1, input_precision=PRECISION, out_dtype=ACC)
            b_dw2 = tl.dot(tl.trans(b_x2), b_g, b_dw2, input_precision=PRECISION, out_dtype=ACC)
        b_db += tl.sum(b_g.to(ACC), axis=0)
    o_ck = o_k + tl.arange(0, BLOCK_K)
    o_cn = o_n + tl.arange(0, BLOCK_N)
    m_w = (o_ck < K)[:, None] & (o_cn < N)[None, :]
    o_w0 = i_row * TAPS * K * N + o_ck[:, None] * N + o_cn[None, :]
    p_part = p_dw + i_split.to(tl.int64) * TAPS * TAPS * K * N
    tl.store(p_part + o_w0, b_dw0, mask=m_w)
    if TAPS == 3:
        tl.store(p_part + o_w0 + K * N, b_dw1, mask=m_w)
        tl.store(p_part + o_w0 + 2 * K * N, b_dw2, mask=m_w)
    if (i_row == 0) & (o_k == 0):
        tl.store(p_db + i_split * N + o_cn, b_db, mask=o_cn < N)
