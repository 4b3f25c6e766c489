"""Bilinear resampling (align_corners False), its gradient, and a convolution of an upsampled map.

Names and conventions as in `runtime/kernels.py`; weights are [taps, inputs, outputs].
"""

# ruff: noqa: N803  (names of constants are upper-case)

import triton
import triton.language as tl

from lmfn_kernels.runtime.kernels import (
    load_pixels,
    load_weight,
    pixel_tile,
    store_padded,
    store_pixels,
    wait_for_previous_launch,
)


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
    INDEX: tl.constexpr, ACC: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """A tile [pixels, F] of v [LOW_H, LOW_W, F] upsampled to H x W, by which FROM rows and columns become TO."""
    o_p = tl.arange(0, BLOCK_H * BLOCK_W)
    o_y = o_h.to(INDEX) + o_p // BLOCK_W
    o_x = o_w.to(INDEX) + o_p % BLOCK_W
    o_f = tl.arange(0, BLOCK_F)
    m_v = ((o_y < H) & (o_x < W))[:, None] & (o_f < F)[None, :]
    o_y0, o_y1, b_y = bilinear_axis(o_y, TO_H, FROM_H, LOW_H, ACC)
    o_x0, o_x1, b_x = bilinear_axis(o_x, TO_W, FROM_W, LOW_W, ACC)
    p_f = p_v + i_b.to(tl.int64) * s_b + o_f[None, :]
    o_y0, o_y1 = o_y0.to(tl.int64) * s_h, o_y1.to(tl.int64) * s_h
    b_00 = tl.load(p_f + (o_y0 + o_x0 * s_w)[:, None], mask=m_v, other=0.0).to(ACC)
    b_01 = tl.load(p_f + (o_y0 + o_x1 * s_w)[:, None], mask=m_v, other=0.0).to(ACC)
    b_10 = tl.load(p_f + (o_y1 + o_x0 * s_w)[:, None], mask=m_v, other=0.0).to(ACC)
    b_11 = tl.load(p_f + (o_y1 + o_x1 * s_w)[:, None], mask=m_v, other=0.0).to(ACC)
    b_x = b_x[:, None]
    b_y = b_y[:, None]
    return (1 - b_y) * ((1 - b_x) * b_00 + b_x * b_01) + b_y * ((1 - b_x) * b_10 + b_x * b_11)


@triton.jit
def upsample_add_kernel(
    p_v, t_added, t_out, H, W, LOW_H, LOW_W, F, s_b, s_h, s_w,
    DOUBLES: tl.constexpr, PITCH: tl.constexpr, UNIT: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """out = v [LOW_H, LOW_W, F] upsampled to H x W, plus `added` unless it is None.

    With `DOUBLES`, which is true if H x W is twice as large, positions are computed without divisions. PITCH is F
    rounded up to 16 bytes, and the strides are in UNITs of 16 bytes, so that loads take 16 bytes.
    """
    wait_for_previous_launch()
    i_b, o_h, o_w = pixel_tile(tl.program_id(0), H, W, BLOCK_H, BLOCK_W)
    o_f = tl.program_id(1) * BLOCK_F
    s_b, s_h, s_w = tl.cast(s_b, tl.int64) * UNIT, s_h * UNIT, s_w * UNIT
    if DOUBLES:
        b_out = upsampled(
            p_v + o_f, i_b, o_h, o_w, H, W, LOW_H, LOW_W, 2, 1, 2, 1, PITCH - o_f, s_b, s_h, s_w,
            INDEX, ACC, BLOCK_H, BLOCK_W, BLOCK_F,
        )  # fmt: skip
    else:
        b_out = upsampled(
            p_v + o_f, i_b, o_h, o_w, H, W, LOW_H, LOW_W, H, LOW_H, W, LOW_W, PITCH - o_f, s_b, s_h, s_w,
            INDEX, ACC, BLOCK_H, BLOCK_W, BLOCK_F,
        )  # fmt: skip
    if t_added is not None:
        b_out += load_pixels(t_added, i_b, o_h, o_w, o_f).to(ACC)
    store_padded(t_out, i_b, o_h, o_w, o_f, F, b_out)


@triton.jit
def readers(i_x, SIZE, TO, FROM, LOW):
    """The positions, out of SIZE, that are interpolated from source pixel `i_x`: the first, and the end (exclusive).

    Positions before the first source pixel and after the last one belong to these two.
    """
    o_first = tl.where(i_x > 0, ((2 * i_x - 1) * TO + FROM) // (2 * FROM), 0)
    o_end = tl.where(i_x < LOW - 1, ((2 * i_x + 3) * TO + FROM - 1) // (2 * FROM), SIZE)
    return o_first, tl.minimum(o_end, SIZE)


@triton.jit
def share(o_x, i_x, TO, FROM, LOW, ACC: tl.constexpr):
    """The weight of source pixel `i_x` at position `o_x`."""
    o_x0, o_x1, b_x = bilinear_axis(o_x, TO, FROM, LOW, ACC)
    return tl.where(o_x0 == i_x, 1 - b_x, 0.0) + tl.where(o_x1 == i_x, b_x, 0.0)


@triton.jit
def upsample_backward_kernel(
    p_g, p_dv, B, H, W, F, LOW_H, LOW_W, TO_H, FROM_H, TO_W, FROM_W, s_gb, s_gh, s_gw, s_b, s_h, s_w,
    PITCH: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """The gradients of BLOCK_P pixels of v, gathered in a fixed order from the pixels of g that read each, BLOCK_W of
    a row at once.

    PITCH is F rounded up to 16 bytes, which one load reads.
    """
    wait_for_previous_launch()
    o_r = tl.arange(0, BLOCK_P * BLOCK_W)
    o_f = tl.arange(0, BLOCK_F)
    n_low = tl.cast(B, INDEX) * LOW_H * LOW_W
    i_first = tl.program_id(0).to(INDEX) * BLOCK_P
    i_low = tl.minimum(i_first + o_r // BLOCK_W, n_low - 1)
    i_y = i_low // LOW_W % LOW_H
    i_x = i_low % LOW_W
    o_top, o_end = readers(i_y, H, TO_H, FROM_H, LOW_H)
    o_first, o_last = readers(i_x, W, TO_W, FROM_W, LOW_W)
    p_image = p_g + (i_low // LOW_W // LOW_H).to(tl.int64) * s_gb
    b_dv = tl.zeros([BLOCK_P * BLOCK_W, BLOCK_F], ACC)
    for o_row in range(0, tl.max(o_end - o_top)):
        o_y = o_top + o_row
        b_y = share(o_y, i_y, TO_H, FROM_H, LOW_H, ACC)
        for o_column in range(0, tl.max(o_last - o_first), BLOCK_W):
            o_x = o_first + o_column + o_r % BLOCK_W
            b_x = share(o_x, i_x, TO_W, FROM_W, LOW_W, ACC)
            m_g = ((o_y < o_end) & (o_x < o_last))[:, None]
            if PITCH < BLOCK_F:
                m_g = m_g & (o_f < PITCH)[None, :]
            p_pixel = p_image + o_y.to(tl.int64) * s_gh + o_x * s_gw
            b_g = tl.load(p_pixel[:, None] + o_f[None, :], mask=m_g, other=0.0).to(ACC)
            b_dv += b_g * (b_x * b_y)[:, None]
    i_low = i_first + tl.arange(0, BLOCK_P)
    p_dv += (i_low // LOW_W // LOW_H).to(tl.int64)[:, None] * s_b
    p_dv += (i_low // LOW_W % LOW_H * s_h + i_low % LOW_W * s_w)[:, None] + o_f[None, :]
    b_dv = tl.sum(b_dv.reshape(BLOCK_P, BLOCK_W, BLOCK_F), axis=1)
    tl.store(p_dv, b_dv.to(p_dv.dtype.element_ty), mask=(i_low < n_low)[:, None] & (o_f < F)[None, :])


@triton.jit
def fold_upsampling_kernel(
    p_w, p_taps, p_out, SIZE, PITCH, K, N, s_n, s_k, s_h, s_w,
    TAPS: tl.constexpr, RESULTS: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Fold a weight [N, K, 3, 3] to out [TAPS^2, K, N RESULTS^2] of SIZE elements, rows PITCH apart with zeros between
    them, by a matrix [TAPS, RESULTS, 3] for both axes (`polyphase.py`)."""
    wait_for_previous_launch()
    o_out = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    o_result, o_k, o_tap = o_out % PITCH, o_out // PITCH % K, o_out // PITCH // K
    o_column, o_row, o_n = o_result % RESULTS, o_result // RESULTS % RESULTS, o_result // (RESULTS * RESULTS)
    m_out = (o_out < SIZE) & (o_n < N)
    o_row = (o_tap // TAPS * RESULTS + o_row) * 3
    o_column = (o_tap % TAPS * RESULTS + o_column) * 3
    b_out = tl.zeros([BLOCK], ACC)
    for i in tl.static_range(3):
        b_row = tl.load(p_taps + o_row + i, mask=m_out, other=0.0)
        for j in tl.static_range(3):
            b_w = tl.load(p_w + o_n * s_n + o_k * s_k + i * s_h + j * s_w, mask=m_out, other=0.0).to(ACC)
            b_out += b_row * tl.load(p_taps + o_column + j, mask=m_out, other=0.0) * b_w
    tl.store(p_out + o_out, b_out.to(p_out.dtype.element_ty), mask=o_out < SIZE)


@triton.jit
def load_of_quads(
    p_tile, o_y, o_x, m_x, i_row, i_column, o_k, H, W, s_h, s_w,
    READABLE: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One pixel per quad of a tile: the one `i_row` rows and `i_column` columns from its first, zeros unless `m_x`.

    `p_tile` is the first pixel of the tile; `o_y` and `o_x` are the positions of the quads' first pixels in the image.
    Loads through a descriptor cannot skip every other pixel.
    """
    o_p = tl.arange(0, BLOCK_H * BLOCK_W)
    o_c = o_k + tl.arange(0, BLOCK_K)
    m_x = m_x & (o_y + i_row >= 0) & (o_y + i_row < H) & (o_x + i_column >= 0) & (o_x + i_column < W)
    p_first = p_tile + (i_row * s_h + i_column * s_w)
    o_first = o_p // BLOCK_W * (2 * s_h) + o_p % BLOCK_W * (2 * s_w)
    return tl.load(
        p_first + (o_first[:, None] + o_c[None, :]), mask=m_x[:, None] & (o_c < READABLE)[None, :], other=0.0
    )


@triton.jit
def upsampled_conv_kernel(
    p_x, t_w, p_bias, p_residual, p_out, H, W, N, s_xb, s_xh, s_xw,
    s_rb, s_rn, s_rh, s_rw, s_b, s_n, s_h,
    K: tl.constexpr, READABLE: tl.constexpr, UNIT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """out = conv3x3(up2(x)) + bias + residual, from the weights that `fold_upsampling_kernel` folds by `BY_PAIRS`.

    A tile is of quads, 2x2 pixels of x. A quad has 4x4 pixels in each channel of out, which depend on the 4x4 pixels of
    x around it: one product per pixel of those, of BLOCK_N channels of out at once. Taps 4 to 6 along an axis correct
    the first and the last position; a tile that does not touch the edge of the image does not need them.

    `READABLE` is how many values of a pixel may be read: its K channels, and zeros after them. The strides of x are in
    UNITs of 16 bytes, so that the compiler knows that 16 bytes can be loaded at once.
    """
    wait_for_previous_launch()
    s_xb, s_xh, s_xw = tl.cast(s_xb, tl.int64) * UNIT, s_xh * UNIT, s_xw * UNIT
    i_b, o_h, o_w = pixel_tile(tl.program_id(0), tl.cdiv(H, 2), tl.cdiv(W, 2), BLOCK_H, BLOCK_W)
    o_n = tl.program_id(1) * BLOCK_N
    o_p = tl.arange(0, BLOCK_H * BLOCK_W)
    o_y, o_x = 2 * (o_h + o_p // BLOCK_W), 2 * (o_w + o_p % BLOCK_W)
    p_tile = p_x + (i_b.to(tl.int64) * s_xb + 2 * o_h.to(tl.int64) * s_xh + 2 * o_w.to(tl.int64) * s_xw)
    b_out = tl.zeros([BLOCK_H * BLOCK_W, 16 * BLOCK_N], ACC)
    n_k: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    for i in tl.range(0, 16 * n_k, num_stages=STAGES):
        i_row, i_column, o_k = i // n_k // 4, i // n_k % 4, i % n_k * BLOCK_K
        b_x = load_of_quads(
            p_tile, o_y, o_x, o_y < H, i_row - 1, i_column - 1, o_k, H, W, s_xh, s_xw,
            READABLE, BLOCK_H, BLOCK_W, BLOCK_K,
        )  # fmt: skip
        b_w = load_weight(t_w, i_row * 7 + i_column, o_k, 16 * o_n)
        b_out = tl.dot(b_x, b_w, b_out, input_precision=PRECISION, out_dtype=ACC)
    last_y, last_x = (H - 1) // 2, (W - 1) // 2
    top, bottom, left, right = o_h == 0, o_h + BLOCK_H > last_y, o_w == 0, o_w + BLOCK_W > last_x
    if top | bottom | left | right:
        for i in tl.range(0, 36 * n_k, num_stages=1):
            i_row, i_column, o_k = i // n_k // 6, i // n_k % 6, i % n_k * BLOCK_K
            here = (i_row >= 4) | (i_column >= 4)
            here = here & ((i_row != 4) | top) & ((i_row != 5) | bottom)
            here = here & ((i_column != 4) | left) & ((i_column != 5) | right)
            if here:
                m_x = ((i_row != 4) | (o_y == 0)) & ((i_row != 5) | (o_y == 2 * last_y))
                m_x = m_x & ((i_column != 4) | (o_x == 0)) & ((i_column != 5) | (o_x == 2 * last_x))
                o_row = tl.where(i_row < 4, i_row - 1, (i_row - 4) * (H - 1 - 2 * last_y))
                o_column = tl.where(i_column < 4, i_column - 1, (i_column - 4) * (W - 1 - 2 * last_x))
                b_x = load_of_quads(
                    p_tile, o_y, o_x, m_x, o_row, o_column, o_k, H, W, s_xh, s_xw,
                    READABLE, BLOCK_H, BLOCK_W, BLOCK_K,
                )  # fmt: skip
                # Tap 5 is the last position's of an even number, 6 that of an odd one.
                i_row, i_column = i_row + (i_row // 5) * (H % 2), i_column + (i_column // 5) * (W % 2)
                b_w = load_weight(t_w, i_row * 7 + i_column, o_k, 16 * o_n)
                b_out = tl.dot(b_x, b_w, b_out, input_precision=PRECISION, out_dtype=ACC)
    # From [quads, channels and 4x4 pixels] to rows of each channel, which are stored 16 bytes at a time.
    b_out = b_out.reshape(BLOCK_H, BLOCK_W, BLOCK_N, 4, 4).permute(2, 0, 3, 1, 4)
    b_out = b_out.reshape(BLOCK_N * BLOCK_H * 4, BLOCK_W * 4)
    o_line = tl.arange(0, BLOCK_N * BLOCK_H * 4)
    o_c, o_row = o_n + o_line // (4 * BLOCK_H), 4 * o_h + o_line % (4 * BLOCK_H)
    o_column = 4 * o_w + tl.arange(0, BLOCK_W * 4)
    b_out += tl.load(p_bias + o_c, mask=o_c < N, other=0.0).to(ACC)[:, None]
    m_out = ((o_c < N) & (o_row < 2 * H))[:, None] & (o_column < 2 * W)[None, :]
    if p_residual is not None:
        p_line = p_residual + (i_b.to(tl.int64) * s_rb + o_c.to(tl.int64) * s_rn + o_row.to(tl.int64) * s_rh)
        b_out += tl.load(p_line[:, None] + (o_column * s_rw)[None, :], mask=m_out, other=0.0).to(ACC)
    p_line = p_out + (i_b.to(tl.int64) * s_b + o_c.to(tl.int64) * s_n + o_row.to(tl.int64) * s_h)
    tl.store(p_line[:, None] + o_column[None, :], b_out.to(p_out.dtype.element_ty), mask=m_out)


@triton.jit
def unshuffle_kernel(
    p_g, p_e, PIXELS, H, W, C, PITCH, s_b, s_n, s_h, s_w, s_eb, s_eh, s_ew,
    INDEX: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Rearrange an image [B, C / 4, 2H, 2W] of any strides to pixels of C values, and zeros up to PITCH: channel
    4 n + 2 i + j is row i, column j of the 2x2 pixels of channel n."""
    wait_for_previous_launch()
    o_p = tl.program_id(0).to(INDEX) * BLOCK_P + tl.arange(0, BLOCK_P)
    o_c = tl.arange(0, BLOCK_C)
    o_b, o_y = (o_p // W // H).to(tl.int64), (o_p // W % H).to(tl.int64)
    m_p = (o_p < PIXELS)[:, None]
    p_pixel = p_g + o_b * s_b + 2 * o_y * s_h + 2 * (o_p % W) * s_w
    o_g = (o_c // 4).to(INDEX) * s_n + o_c // 2 % 2 * s_h + o_c % 2 * s_w
    b_g = tl.load(p_pixel[:, None] + o_g[None, :], mask=m_p & (o_c < C)[None, :], other=0.0)
    p_pixel = p_e + o_b * s_eb + o_y * s_eh + o_p % W * s_ew
    tl.store(p_pixel[:, None] + o_c[None, :], b_g.to(p_e.dtype.element_ty), mask=m_p & (o_c < PITCH)[None, :])


@triton.jit
def at_tap(i_tap, o_x, SIZE):
    """Whether tap 0 to 4 of an axis (`BY_TAPS`) exists at position `o_x` out of SIZE: 3 at the first, 4 at the last."""
    return (i_tap < 3) | ((i_tap == 3) & (o_x == 0)) | ((i_tap == 4) & (o_x == SIZE - 1))


@triton.jit
def load_row(
    p_e, p_w, i_row, i_b, o_h, o_w, o_first, o_n, H, W, N,
    AT_EDGE: tl.constexpr, PITCH: tl.constexpr, OF_ROW: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """What tap `i_row` of rows and all taps of columns multiply: e [pixels, taps and results], and the weights of that,
    [channels of x, taps and results].

    The taps of columns are 2, 1 and 0, whose pixels follow one another in memory, or, with `AT_EDGE`, 3 and 4.
    """
    TAPS: tl.constexpr = 2 if AT_EDGE else 3
    o_p = tl.arange(0, BLOCK_H * BLOCK_W)
    o_k = o_first + tl.arange(0, BLOCK_K)
    o_n = o_n + tl.arange(0, BLOCK_N)
    o_y, o_x = o_h + o_p // BLOCK_W, o_w + o_p % BLOCK_W
    o_from = o_y + tl.where(i_row < 3, 1 - i_row, 0)
    i_tap, o_result = o_k // PITCH, o_k % PITCH
    p_row = p_e + ((i_b * H + o_from).to(tl.int64) * W * PITCH)[:, None]
    m_e = ((o_from >= 0) & (o_from < H) & at_tap(i_row, o_y, H) & (o_x < W))[:, None] & (i_tap < TAPS)[None, :]
    if AT_EDGE:
        i_column = i_tap + 3
        m_e = m_e & at_tap(i_column[None, :], o_x[:, None], W)
        p_row += (o_x * PITCH)[:, None] + o_result[None, :]
    else:
        i_column = 2 - i_tap
        o_column = o_x[:, None] - 1 + i_tap[None, :]
        m_e = m_e & (o_column >= 0) & (o_column < W)
        p_row += ((o_x - 1) * PITCH)[:, None] + o_k[None, :]
    b_e = tl.load(p_row, mask=m_e, other=0.0)
    m_w = (o_n < N)[:, None] & ((i_tap < TAPS) & (o_result < OF_ROW))[None, :]
    p_w += o_n[:, None] * OF_ROW + ((i_row * 5 + i_column) * (N * OF_ROW) + o_result)[None, :]
    return b_e, tl.load(p_w, mask=m_w, other=0.0)


@triton.jit
def upsampled_conv_input_gradient_kernel(
    p_e, p_w, t_dx, H, W, N,
    PITCH: tl.constexpr, OF_ROW: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The gradient of x, of N channels, from the gradient `p_e` of the results per pixel of x, with the weights
    [25 taps, N, results] that `BY_TAPS` folds, rows OF_ROW apart.

    Through tap (i, j), pixel (h, w) receives the gradient of pixel (h + 1 - i, w + 1 - j), and through taps 3 and 4 its
    own. Pixels of e are PITCH apart, with zeros after the results, so three of a row are one row of a matrix: a tile
    takes three products, and up to seven more at the edge of the image.
    """
    wait_for_previous_launch()
    i_b, o_h, o_w = pixel_tile(tl.program_id(0), H, W, BLOCK_H, BLOCK_W)
    o_n = tl.program_id(1) * BLOCK_N
    b_dx = tl.zeros([BLOCK_H * BLOCK_W, BLOCK_N], ACC)
    top, bottom, beside = o_h == 0, o_h + BLOCK_H >= H, (o_w == 0) | (o_w + BLOCK_W >= W)
    for o_k in tl.static_range(0, 3 * PITCH, BLOCK_K):
        b_e0, b_w0 = load_row(
            p_e, p_w, 0, i_b, o_h, o_w, o_k, o_n, H, W, N, False, PITCH, OF_ROW, BLOCK_H, BLOCK_W, BLOCK_K, BLOCK_N
        )  # fmt: skip
        b_e1, b_w1 = load_row(
            p_e, p_w, 1, i_b, o_h, o_w, o_k, o_n, H, W, N, False, PITCH, OF_ROW, BLOCK_H, BLOCK_W, BLOCK_K, BLOCK_N
        )  # fmt: skip
        b_e2, b_w2 = load_row(
            p_e, p_w, 2, i_b, o_h, o_w, o_k, o_n, H, W, N, False, PITCH, OF_ROW, BLOCK_H, BLOCK_W, BLOCK_K, BLOCK_N
        )  # fmt: skip
        b_dx = tl.dot(b_e0, tl.trans(b_w0), b_dx, input_precision=PRECISION, out_dtype=ACC)
        b_dx = tl.dot(b_e1, tl.trans(b_w1), b_dx, input_precision=PRECISION, out_dtype=ACC)
        b_dx = tl.dot(b_e2, tl.trans(b_w2), b_dx, input_precision=PRECISION, out_dtype=ACC)
        for i_row in tl.range(3, 5, num_stages=1):
            if (top & (i_row == 3)) | (bottom & (i_row == 4)):
                b_e, b_w = load_row(
                    p_e, p_w, i_row, i_b, o_h, o_w, o_k, o_n, H, W, N,
                    False, PITCH, OF_ROW, BLOCK_H, BLOCK_W, BLOCK_K, BLOCK_N,
                )  # fmt: skip
                b_dx = tl.dot(b_e, tl.trans(b_w), b_dx, input_precision=PRECISION, out_dtype=ACC)
        if beside & (o_k < 2 * PITCH):
            for i_row in tl.range(0, 5, num_stages=1):
                if (i_row < 3) | (top & (i_row == 3)) | (bottom & (i_row == 4)):
                    b_e, b_w = load_row(
                        p_e, p_w, i_row, i_b, o_h, o_w, o_k, o_n, H, W, N,
                        True, PITCH, OF_ROW, BLOCK_H, BLOCK_W, BLOCK_K, BLOCK_N,
                    )  # fmt: skip
                    b_dx = tl.dot(b_e, tl.trans(b_w), b_dx, input_precision=PRECISION, out_dtype=ACC)
    store_pixels(t_dx, i_b, o_h, o_w, o_n, b_dx)


@triton.jit
def edge_weight_gradient_kernel(
    p_e, p_x, p_dw, B, H, W, K, N, SPLITS,
    PITCH_E: tl.constexpr, PITCH_X: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Partial sums [16 taps, K, N] of the gradients of the weights that `BY_TAPS` folds: of all taps that exist only at
    an edge, or a corner, of the image.

    A program has one tap, and BLOCK_P of its pixels at a time. Taps 0 to 5 are (0, 3), (0, 4), (1, 3), ... (2, 4), the
    others (3, 0) to (4, 4).
    """
    wait_for_previous_launch()
    i_split, i_tap = tl.program_id(0), tl.program_id(1)
    i_row = tl.where(i_tap < 6, i_tap // 2, 3 + (i_tap - 6) // 5)
    i_column = tl.where(i_tap < 6, 3 + i_tap % 2, (i_tap - 6) % 5)
    n_blocks = tl.cdiv(N, BLOCK_N)
    o_k = tl.program_id(2) // n_blocks * BLOCK_K + tl.arange(0, BLOCK_K)
    o_n = tl.program_id(2) % n_blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    n_h, n_w = tl.where(i_row < 3, H, 1), tl.where(i_column < 3, W, 1)
    b_dw = tl.zeros([BLOCK_K, BLOCK_N], ACC)
    for o_first in tl.range(i_split * BLOCK_P, B * n_h * n_w, SPLITS * BLOCK_P, num_stages=1):
        o_p = o_first + tl.arange(0, BLOCK_P)
        o_row = (o_p // (n_h * n_w)).to(tl.int64) * H
        o_y = o_p // n_w % n_h + tl.where(i_row == 4, H - 1, 0)
        o_x = o_p % n_w + tl.where(i_column == 4, W - 1, 0)
        m_e = (o_p < B * n_h * n_w)[:, None] & (o_n < PITCH_E)[None, :]
        b_e = tl.load(p_e + (((o_row + o_y) * W + o_x) * PITCH_E)[:, None] + o_n[None, :], mask=m_e, other=0.0)
        o_y += tl.where(i_row < 3, i_row - 1, 0)
        o_x += tl.where(i_column < 3, i_column - 1, 0)
        m_x = ((o_p < B * n_h * n_w) & (o_y >= 0) & (o_y < H) & (o_x >= 0) & (o_x < W))[:, None]
        m_x = m_x & (o_k < PITCH_X)[None, :]
        b_x = tl.load(p_x + (((o_row + o_y) * W + o_x) * PITCH_X)[:, None] + o_k[None, :], mask=m_x, other=0.0)
        b_dw = tl.dot(tl.trans(b_x), b_e, b_dw, input_precision=PRECISION, out_dtype=ACC)
    p_dw += (i_split.to(tl.int64) * 16 + i_tap) * K * N
    tl.store(p_dw + o_k[:, None] * N + o_n[None, :], b_dw, mask=(o_k < K)[:, None] & (o_n < N)[None, :])


@triton.jit
def unfold_gradient_kernel(
    p_everywhere, p_edges, p_of_bias, p_matrix, p_dweight, p_dbias, SPLITS, EDGE_SPLITS,
    s_s, s_n, s_k, s_h, s_w, s_dn, s_dk, s_dh, s_dw, ACC: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """The gradients of the weight [N, K, 3, 3] and the bias [N] from the partial sums of those of the folded ones.

    `p_everywhere` [SPLITS, 4N, K, 3, 3] are those of the taps that exist everywhere, of any strides, `p_edges`
    [EDGE_SPLITS, 16, K, 4N] those from `edge_weight_gradient_kernel`, `p_of_bias` [SPLITS, 4N]. A program computes all
    taps for one input and one output: the sums of all folded taps and results, times the matrix `OF_TAPS`.
    """
    wait_for_previous_launch()
    i_k, K = tl.program_id(0), tl.num_programs(0)
    i_n, N = tl.program_id(1), tl.num_programs(1)
    o_r = tl.arange(0, 128)  # 5 taps of rows, 5 of columns, 4 results
    i_row, i_column, o_result = o_r // 20, o_r // 4 % 5, o_r % 4
    m_everywhere, m_r = (i_row < 3) & (i_column < 3), o_r < 100
    i_edge = tl.where(i_row < 3, i_row * 2 + i_column - 3, 6 + (i_row - 3) * 5 + i_column)
    p_everywhere += (4 * i_n + o_result) * s_n + i_k * s_k + i_row * s_h + i_column * s_w
    p_edges += (i_edge * K + i_k) * 4 * N + 4 * i_n + o_result
    b_sum = tl.zeros([BLOCK_S, 128], ACC)
    for o_first in tl.range(0, tl.maximum(SPLITS, EDGE_SPLITS), BLOCK_S, num_stages=1):
        o_s = o_first + tl.arange(0, BLOCK_S)[:, None]
        m_s = (o_s < SPLITS) & m_everywhere[None, :]
        b_sum += tl.load(p_everywhere[None, :] + o_s * s_s, mask=m_s, other=0.0)
        m_s = (o_s < EDGE_SPLITS) & (m_r & ~m_everywhere)[None, :]
        b_sum += tl.load(p_edges[None, :] + o_s.to(tl.int64) * 16 * K * 4 * N, mask=m_s, other=0.0)
    o_w = tl.arange(0, 16)
    m_matrix = m_r[:, None] & (o_w < 9)[None, :]
    b_matrix = tl.load(p_matrix + o_r[:, None] * 9 + o_w[None, :], mask=m_matrix, other=0.0)
    b_dw = tl.sum(tl.sum(b_sum, axis=0)[:, None] * b_matrix, axis=0)
    p_dweight += i_n * s_dn + i_k * s_dk + o_w // 3 * s_dh + o_w % 3 * s_dw
    tl.store(p_dweight, b_dw.to(p_dweight.dtype.element_ty), mask=o_w < 9)
    if i_k == 0:
        o_c = tl.arange(0, 4)[None, :]
        b_db = tl.zeros([BLOCK_S, 4], ACC)
        for o_first in tl.range(0, SPLITS, BLOCK_S, num_stages=1):
            o_s = o_first + tl.arange(0, BLOCK_S)[:, None]
            b_db += tl.load(p_of_bias + (o_s * N + i_n) * 4 + o_c, mask=o_s < SPLITS, other=0.0)
        tl.store(p_dbias + i_n, tl.sum(b_db))
