"""The head's kernel. Names and conventions as in `runtime/kernels.py`; weights are [taps, inputs, outputs]."""

# ruff: noqa: N803  (constants are capital)

import triton
import triton.language as tl

from lmfn_kernels.runtime.kernels import load_pixels, load_weight, pixel_tile


@triton.jit
def at_place(i_place, o_x, SIZE):
    """Whether positions `o_x` of SIZE are at place 0 (everywhere), 1 (the first) or 2 (the last)."""
    return (i_place == 0) | ((i_place == 1) & (o_x == 0)) | ((i_place == 2) & (o_x == SIZE - 1))


@triton.jit
def upsampled_conv_kernel(
    t_x, t_w, p_bias, p_out, H, W, N, s_b, s_n, s_h, s_w,
    K: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """out = conv3x3(up2(x)) + bias, from the folded weights of the nine parts.

    Result (n, a, b) of pixel (h, w) is out's channel n at (2h + a, 2w + b). A tile within the image meets only
    the part that holds everywhere.
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
