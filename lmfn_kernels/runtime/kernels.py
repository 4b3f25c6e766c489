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
