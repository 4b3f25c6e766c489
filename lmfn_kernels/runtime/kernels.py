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
def load_tile(
    p_x, i_b, o_h, o_w, H, W, C, PITCH: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """What `load_pixels` gives, by addresses: of an image as `empty_image` makes it, pixels PITCH apart.

    Outside a loop Triton waits for a descriptor's load where it stands; all of these are on their way at once.
    """
    o_p = tl.arange(0, BLOCK_H * BLOCK_W)
    o_c = tl.arange(0, BLOCK_C)
    m_x = ((o_h + o_p // BLOCK_W < H) & (o_w + o_p % BLOCK_W < W))[:, None]
    if PITCH < BLOCK_C:
        m_x = m_x & (o_c < PITCH)[None, :]
    p_first = p_x + ((i_b * H + o_h).to(tl.int64) * W + o_w) * PITCH
    o_x = (o_p // BLOCK_W * W + o_p % BLOCK_W) * PITCH
    b_x = tl.load(p_first + o_x[:, None] + o_c[None, :], mask=m_x, other=0.0)
    # Only here, since a load of 16 bytes has one mask.
    return tl.where((o_c < C)[None, :], b_x, 0.0)


@triton.jit
def load_rows(p_w, K, PITCH: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr):
    """K rows PITCH apart, as `weight_as_taps` lays them, and zeros. Beyond a row's last column may be anything."""
    o_k = tl.arange(0, BLOCK_K)
    o_n = tl.arange(0, BLOCK_N)
    m_w = (o_k < K)[:, None]
    if PITCH < BLOCK_N:
        m_w = m_w & (o_n < PITCH)[None, :]
    return tl.load(p_w + o_k[:, None] * PITCH + o_n[None, :], mask=m_w, other=0.0)


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
