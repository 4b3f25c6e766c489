"""Functions that kernels share, and the two kernels that take many small tensors (`multi_tensor.py`).

Names: `t_` tensor descriptors, `b_` block values, `p_` pointers, `o_` offsets, `i_` program ids, `m_` masks.

Images are read through descriptors `[B, H, W, C]`: elements outside the image or beyond the last channel read as exact
zeros, whatever memory contains there, and are never written. On GPUs without TMA, a descriptor is `Pointed` of
`launch.py`: Triton's own would be loaded value by value, as it does not know that 16 bytes of a pixel lie together.
"""

# ruff: noqa: N803  (names of constants are upper-case)

import triton
import triton.language as tl

from lmfn_kernels.runtime.overlap import can_overlap
from lmfn_kernels.runtime.target import capability
from lmfn_kernels.runtime.triton_private import constexpr_function


@triton.jit
def wait_for_previous_launch():
    """Every kernel's first statement, or in Gluon that of each partition of its warps: see `overlap.py`. Before it,
    these may load constant weights (`constant_weights.py`).

    It takes a few cycles if the launch is not a dependent one.
    """
    if can_overlap():
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@triton.jit
def pixel_tile(i_tile, H, W, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr):
    """Image, first row and first column of tile `i_tile`."""
    n_w = tl.cdiv(W, BLOCK_W)
    n_tiles = n_w * tl.cdiv(H, BLOCK_H)
    i_rest = i_tile % n_tiles
    return i_tile // n_tiles, i_rest // n_w * BLOCK_H, i_rest % n_w * BLOCK_W


@constexpr_function
def is_pointed(t_x):
    return isinstance(t_x, (tuple, tl.tuple))


@constexpr_function
def dtype_of(t_x):
    return t_x[0].dtype.element_ty if isinstance(t_x, (tuple, tl.tuple)) else t_x.dtype


@triton.jit
def point_to_pixels(t_x, i_b, o_h, o_w, o_c):
    """Of a tile of a `Pointed` image: pointers, which pixels are in the image, and the numbers of the channels."""
    BLOCK_H: tl.constexpr = t_x.block_shape[1]
    BLOCK_W: tl.constexpr = t_x.block_shape[2]
    UNIT: tl.constexpr = 128 // dtype_of(t_x).primitive_bitwidth
    s_b, s_h, s_w = tl.cast(t_x.units[0], tl.int64) * UNIT, t_x.units[1] * UNIT, t_x.units[2] * UNIT
    o_p = tl.arange(0, BLOCK_H * BLOCK_W)
    o_n = o_c + tl.arange(0, t_x.block_shape[3])
    o_y, o_x = o_h + o_p // BLOCK_W, o_w + o_p % BLOCK_W
    m_p = (o_y >= 0) & (o_y < t_x.shape[1]) & (o_x >= 0) & (o_x < t_x.shape[2])
    p_first = t_x.base + (i_b * s_b + o_h.to(tl.int64) * s_h + o_w * s_w)
    o_x = o_p // BLOCK_W * s_h + o_p % BLOCK_W * s_w
    return p_first + o_x[:, None] + o_n[None, :], m_p[:, None], o_n[None, :]


@triton.jit
def load_units(t_x, p_x, m_x, o_n, N):
    """Values of a `Pointed` tensor, zeros where not `m_x` and for numbers `o_n` from N on: 16 bytes have one mask, and
    what they contain after number N is replaced afterwards."""
    UNIT: tl.constexpr = 128 // dtype_of(t_x).primitive_bitwidth
    b_x = tl.load(p_x, mask=m_x & (o_n < (N + UNIT - 1) // UNIT * UNIT), other=0.0)
    if not t_x.whole:
        b_x = tl.where(o_n < N, b_x, 0.0)
    return b_x


@triton.jit
def load_pixels(t_x, i_b, o_h, o_w, o_c):
    """A tile of pixels as a matrix [pixels, channels]."""
    if is_pointed(t_x):
        p_x, m_p, o_n = point_to_pixels(t_x, i_b, o_h, o_w, o_c)
        b_x = load_units(t_x, p_x, m_p, o_n, t_x.shape[3])
    else:
        SHAPE: tl.constexpr = t_x.block_shape
        b_x = t_x.load([i_b, o_h, o_w, o_c]).reshape(SHAPE[1] * SHAPE[2], SHAPE[3])
    return b_x


@triton.jit
def store_pixels(t_x, i_b, o_h, o_w, o_c, b_x):
    if is_pointed(t_x):
        UNIT: tl.constexpr = 128 // dtype_of(t_x).primitive_bitwidth
        p_x, m_p, o_n = point_to_pixels(t_x, i_b, o_h, o_w, o_c)
        N = t_x.shape[3] // UNIT * UNIT if t_x.whole else t_x.shape[3]
        tl.store(p_x, b_x.to(dtype_of(t_x)), mask=m_p & (o_n < N))
    else:
        SHAPE: tl.constexpr = t_x.block_shape
        t_x.store([i_b, o_h, o_w, o_c], b_x.to(dtype_of(t_x)).reshape(SHAPE))


@triton.jit
def store_padded(t_x, i_b, o_h, o_w, o_c, C, b_x):
    """Store a tile of an image with C channels, and zeros after them: there, infinity times a weight of 0 is NaN."""
    o_x = o_c + tl.arange(0, t_x.block_shape[3])
    store_pixels(t_x, i_b, o_h, o_w, o_c, tl.where((o_x < C)[None, :], b_x, 0.0))


@triton.jit
def load_weight(t_w, i_tap, o_k, o_n):
    """The matrix [inputs, outputs] of one tap."""
    if is_pointed(t_w):
        UNIT: tl.constexpr = 128 // dtype_of(t_w).primitive_bitwidth
        o_row = o_k + tl.arange(0, t_w.block_shape[1])
        o_column = (o_n + tl.arange(0, t_w.block_shape[2]))[None, :]
        p_tap = t_w.base + tl.cast(i_tap, tl.int64) * t_w.units[0] * UNIT
        p_w = p_tap + (o_row * (t_w.units[1] * UNIT))[:, None] + o_column
        b_w = load_units(t_w, p_w, (o_row < t_w.shape[1])[:, None], o_column, t_w.shape[2])
    else:
        SHAPE: tl.constexpr = t_w.block_shape
        b_w = t_w.load([i_tap, o_k, o_n]).reshape(SHAPE[1], SHAPE[2])
    return b_w


@triton.jit
def load_pitched(
    p_x, i_b, o_h, o_w, H, W, PITCH: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr, o_first=0,
):  # fmt: skip
    """A tile, from channel `o_first` on, loaded by pointers from an image in the layout of `empty_image`, with pixels
    PITCH elements apart: zeros outside the image, and after the channels whatever memory contains there.

    Outside a loop, Triton waits for each load through a descriptor where it is issued; these loads overlap.
    """
    o_p = tl.arange(0, BLOCK_H * BLOCK_W)
    o_c = o_first + tl.arange(0, BLOCK_C)
    o_y, o_x = o_h + o_p // BLOCK_W, o_w + o_p % BLOCK_W
    m_x = ((o_y >= 0) & (o_y < H) & (o_x >= 0) & (o_x < W))[:, None]
    if PITCH % BLOCK_C != 0:
        m_x = m_x & (o_c < PITCH)[None, :]
    p_first = p_x + ((i_b * H + o_h).to(tl.int64) * W + o_w) * PITCH
    o_x = (o_p // BLOCK_W * W + o_p % BLOCK_W) * PITCH
    return tl.load(p_first + o_x[:, None] + o_c[None, :], mask=m_x, other=0.0)


@triton.jit
def store_pitched(
    p_x, m_c, i_b, o_h, o_w, H, W, s_b, PITCH: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, b_x
):  # fmt: skip
    """Store a tile by pointers, which nothing waits for, in images `s_b` apart with pixels PITCH elements apart.

    `p_x` points to the channels of the first pixel, those with `m_c` are written.
    """
    o_p = tl.arange(0, BLOCK_H * BLOCK_W)
    m_p = (o_h + o_p // BLOCK_W < H) & (o_w + o_p % BLOCK_W < W)
    o_first = i_b.to(tl.int64) * s_b + (o_h.to(tl.int64) * W + o_w) * PITCH
    p_pixel = p_x[None, :] + o_first + ((o_p // BLOCK_W * W + o_p % BLOCK_W) * PITCH)[:, None]
    tl.store(p_pixel, b_x.to(p_x.dtype.element_ty), mask=m_p[:, None] & m_c[None, :])


@triton.jit
def load_tile(
    p_x, i_b, o_h, o_w, H, W, C, PITCH: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The tile that `load_pixels` returns, by `load_pitched`."""
    b_x = load_pitched(p_x, i_b, o_h, o_w, H, W, PITCH, BLOCK_H, BLOCK_W, BLOCK_C)
    # Channels beyond C are masked here and not in the load, since a 16-byte load has a single mask.
    return tl.where((tl.arange(0, BLOCK_C) < C)[None, :], b_x, 0.0)


@triton.jit
def load_rows(p_w, K, PITCH: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr):
    """K rows PITCH elements apart, as in `weight_as_taps`, and rows of zeros up to BLOCK_K.

    Columns beyond the last one of a row are undefined.
    """
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
    """The gradient of a leaky ReLU's input, from the gradient `b_g` and the sign of its output `b_y`.

    Rounding the slope to 16 bits would bias every product alike, so they are computed in float32.
    """
    if SLOPE == 0.0:
        b_less = tl.zeros_like(b_g)
    elif b_g.dtype == tl.float64:
        b_less = b_g * SLOPE
    else:
        b_less = b_g.to(tl.float32) * SLOPE
    return tl.where(b_y > 0, b_g, b_less.to(b_g.dtype))


@triton.jit
def sigmoid(b_x):
    """1 / (1 + exp(-x)), on NVIDIA GPUs in float32 by the instructions to which Triton compiles that formula as well,
    without the scaling by which it keeps denormal numbers: the sum is at least 1, and far smaller terms round away."""
    if capability() > 0 and b_x.dtype == tl.float32:
        return tl.inline_asm_elementwise(
            """
            {
                .reg .f32 e;
                mul.f32 e, $1, 0fBFB8AA3B;  // -log2(e)
                ex2.approx.ftz.f32 e, e;
                add.f32 e, e, 0f3F800000;
                rcp.approx.ftz.f32 $0, e;
            }
            """,
            "=f,f",
            [b_x],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )
    return 1 / (1 + tl.exp(-b_x))


@triton.jit
def one_of(
    i,
    p_0, p_1, p_2, p_3, p_4, p_5, p_6, p_7, p_8, p_9, p_10, p_11, p_12, p_13, p_14, p_15, p_16, p_17, p_18, p_19, p_20,
    p_21, p_22, p_23, p_24, p_25, p_26, p_27, p_28, p_29, p_30, p_31,
):  # fmt: skip
    """The pointer number `i` of 4, 8, 16 or 32; the others are None."""
    p_x = tl.where(i == 1, p_1, p_0)
    p_x = tl.where(i == 2, p_2, p_x)
    p_x = tl.where(i == 3, p_3, p_x)
    if p_4 is not None:
        p_x = tl.where(i == 4, p_4, p_x)
        p_x = tl.where(i == 5, p_5, p_x)
        p_x = tl.where(i == 6, p_6, p_x)
        p_x = tl.where(i == 7, p_7, p_x)
    if p_8 is not None:
        p_x = tl.where(i == 8, p_8, p_x)
        p_x = tl.where(i == 9, p_9, p_x)
        p_x = tl.where(i == 10, p_10, p_x)
        p_x = tl.where(i == 11, p_11, p_x)
        p_x = tl.where(i == 12, p_12, p_x)
        p_x = tl.where(i == 13, p_13, p_x)
        p_x = tl.where(i == 14, p_14, p_x)
        p_x = tl.where(i == 15, p_15, p_x)
    if p_16 is not None:
        p_x = tl.where(i == 16, p_16, p_x)
        p_x = tl.where(i == 17, p_17, p_x)
        p_x = tl.where(i == 18, p_18, p_x)
        p_x = tl.where(i == 19, p_19, p_x)
        p_x = tl.where(i == 20, p_20, p_x)
        p_x = tl.where(i == 21, p_21, p_x)
        p_x = tl.where(i == 22, p_22, p_x)
        p_x = tl.where(i == 23, p_23, p_x)
        p_x = tl.where(i == 24, p_24, p_x)
        p_x = tl.where(i == 25, p_25, p_x)
        p_x = tl.where(i == 26, p_26, p_x)
        p_x = tl.where(i == 27, p_27, p_x)
        p_x = tl.where(i == 28, p_28, p_x)
        p_x = tl.where(i == 29, p_29, p_x)
        p_x = tl.where(i == 30, p_30, p_x)
        p_x = tl.where(i == 31, p_31, p_x)
    return p_x


@triton.jit
def lay_out_kernel(
    p_x0, p_x1, p_x2, p_x3, p_x4, p_x5, p_x6, p_x7, p_x8, p_x9, p_x10, p_x11, p_x12, p_x13, p_x14, p_x15, p_x16, p_x17,
    p_x18, p_x19, p_x20, p_x21, p_x22, p_x23, p_x24, p_x25, p_x26, p_x27, p_x28, p_x29, p_x30, p_x31,
    p_table, p_out, FIELDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Copy weights [N, K, k, k] of any strides to [taps, K, N], rows a pitch apart with zeros beyond N.

    A row of the table, per program (`multi_tensor.py`): index of the weight, first of the program's elements, offset
    and number of the weight's elements in `out`, K, N, pitch, k, and the weight's strides.
    """
    wait_for_previous_launch()
    p_row = p_table + tl.program_id(0) * FIELDS
    i_x = tl.load(p_row)
    p_x = one_of(
        i_x, p_x0, p_x1, p_x2, p_x3, p_x4, p_x5, p_x6, p_x7, p_x8, p_x9, p_x10, p_x11, p_x12, p_x13, p_x14, p_x15,
        p_x16, p_x17, p_x18, p_x19, p_x20, p_x21, p_x22, p_x23, p_x24, p_x25, p_x26, p_x27, p_x28, p_x29, p_x30, p_x31,
    )  # fmt: skip
    o_out = tl.load(p_row + 1) + tl.arange(0, BLOCK)
    o_begin, SIZE = tl.load(p_row + 2), tl.load(p_row + 3)
    K, N, PITCH, WIDTH = tl.load(p_row + 4), tl.load(p_row + 5), tl.load(p_row + 6), tl.load(p_row + 7)
    s_n, s_k, s_h, s_w = tl.load(p_row + 8), tl.load(p_row + 9), tl.load(p_row + 10), tl.load(p_row + 11)
    o_n, o_k, o_tap = o_out % PITCH, o_out // PITCH % K, o_out // PITCH // K
    o_x = o_n * s_n + o_k * s_k + o_tap // WIDTH * s_h + o_tap % WIDTH * s_w
    b_x = tl.load(p_x + o_x, mask=(o_out < SIZE) & (o_n < N), other=0.0)
    tl.store(p_out + o_begin + o_out, b_x.to(p_out.dtype.element_ty), mask=o_out < SIZE)


@triton.jit
def add_up(p_x, o_x, o_i, n_sums, n_values, s_value, ACC: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK: tl.constexpr):
    """The sums number `o_i`, of values `s_value` apart, of which the first ones are at `o_x`."""
    m_i = o_i < n_sums
    b_x = tl.zeros([BLOCK_S, BLOCK], ACC)
    for o_value in tl.range(0, n_values, BLOCK_S, num_stages=1):
        o_s = o_value + tl.arange(0, BLOCK_S)
        m_x = (o_s < n_values)[:, None] & m_i[None, :]
        b_x += tl.load(p_x + o_s[:, None] * s_value + o_x[None, :], mask=m_x, other=0.0).to(ACC)
    return tl.sum(b_x, axis=0)


@triton.jit
def sum_kernel(
    p_x0, p_x1, p_x2, p_x3, p_x4, p_x5, p_x6, p_x7, p_x8, p_x9, p_x10, p_x11, p_x12, p_x13, p_x14, p_x15, p_x16, p_x17,
    p_x18, p_x19, p_x20, p_x21, p_x22, p_x23, p_x24, p_x25, p_x26, p_x27, p_x28, p_x29, p_x30, p_x31,
    p_y0, p_y1, p_y2, p_y3, p_y4, p_y5, p_y6, p_y7, p_y8, p_y9, p_y10, p_y11, p_y12, p_y13, p_y14, p_y15, p_y16, p_y17,
    p_y18, p_y19, p_y20, p_y21, p_y22, p_y23, p_y24, p_y25, p_y26, p_y27, p_y28, p_y29, p_y30, p_y31,
    p_table, FIELDS: tl.constexpr, ACC: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum each tensor [values, s0, s1, s2, s3] over its first dimension into a tensor of its own.

    A row of the table, per program (`multi_tensor.py`): index of the tensor, first of the program's sums, number of
    sums, number of values per sum and their stride, s1, s2, s3, and the four strides of the values and of the sums. To
    the index 32 is added if the values of neighbouring sums are neighbours, and the sums' number and the values' stride
    are multiples of 4.
    """
    wait_for_previous_launch()
    p_row = p_table + tl.program_id(0) * FIELDS
    i_x = tl.load(p_row)
    in_order = i_x >= 32
    i_x %= 32
    p_x = one_of(
        i_x, p_x0, p_x1, p_x2, p_x3, p_x4, p_x5, p_x6, p_x7, p_x8, p_x9, p_x10, p_x11, p_x12, p_x13, p_x14, p_x15,
        p_x16, p_x17, p_x18, p_x19, p_x20, p_x21, p_x22, p_x23, p_x24, p_x25, p_x26, p_x27, p_x28, p_x29, p_x30, p_x31,
    )  # fmt: skip
    p_y = one_of(
        i_x, p_y0, p_y1, p_y2, p_y3, p_y4, p_y5, p_y6, p_y7, p_y8, p_y9, p_y10, p_y11, p_y12, p_y13, p_y14, p_y15,
        p_y16, p_y17, p_y18, p_y19, p_y20, p_y21, p_y22, p_y23, p_y24, p_y25, p_y26, p_y27, p_y28, p_y29, p_y30, p_y31,
    )  # fmt: skip
    o_first, n_sums = tl.load(p_row + 1), tl.load(p_row + 2)
    n_values, s_value = tl.load(p_row + 3), tl.load(p_row + 4)
    SIZE_1, SIZE_2, SIZE_3 = tl.load(p_row + 5), tl.load(p_row + 6), tl.load(p_row + 7)
    o_i = o_first + tl.arange(0, BLOCK)
    o_3, o_2 = o_i % SIZE_3, o_i // SIZE_3 % SIZE_2
    o_1, o_0 = o_i // SIZE_3 // SIZE_2 % SIZE_1, o_i // SIZE_3 // SIZE_2 // SIZE_1
    if in_order:  # multiples of 4, which the compiler sees here
        o_x = o_first // 4 * 4 + tl.arange(0, BLOCK)
        b_y = add_up(p_x, o_x, o_x, n_sums // 4 * 4, n_values, s_value // 4 * 4, ACC, BLOCK_S, BLOCK)
    else:
        o_x = o_0 * tl.load(p_row + 8) + o_1 * tl.load(p_row + 9) + o_2 * tl.load(p_row + 10)
        o_x += o_3 * tl.load(p_row + 11)
        b_y = add_up(p_x, o_x, o_i, n_sums, n_values, s_value, ACC, BLOCK_S, BLOCK)
    o_y = o_0 * tl.load(p_row + 12) + o_1 * tl.load(p_row + 13) + o_2 * tl.load(p_row + 14) + o_3 * tl.load(p_row + 15)
    tl.store(p_y + o_y, b_y.to(p_y.dtype.element_ty), mask=o_i < n_sums)
