"""Kernels of the ACFM. Names and conventions as in `runtime/kernels.py`.

A depthwise 3x3 convolution yields u, which is three maps u_0, u_1, u_2 in the 3x3x3 form. Neighbouring channels are
combined by a product with a banded matrix, since Triton cannot shift a block by one channel.
"""

# ruff: noqa: N803  (names of constants are upper-case)

import triton
import triton.language as tl

from lmfn_kernels.alfm.kernels import pixel_shares, windows_of_block
from lmfn_kernels.runtime.kernels import (
    leaky,
    load_bias,
    load_pitched,
    load_pixels,
    load_rows,
    load_tile,
    pixel_tile,
    sigmoid,
    store_padded,
    store_pixels,
    wait_for_previous_launch,
)


@triton.jit
def stencil(t_x, p_w, i_b, o_h, o_w, MAPS: tl.constexpr, BACK: tl.constexpr, ACC: tl.constexpr):
    """A depthwise 3x3 convolution with one weight or three (`MAPS`); with `BACK`, its transpose."""
    SHAPE: tl.constexpr = t_x.block_shape
    PIXELS: tl.constexpr = SHAPE[1] * SHAPE[2]
    CHANNELS: tl.constexpr = SHAPE[3]
    b_0 = tl.zeros([PIXELS, CHANNELS], ACC)
    b_1 = tl.zeros([PIXELS, CHANNELS], ACC)
    b_2 = tl.zeros([PIXELS, CHANNELS], ACC)
    for k in tl.range(0, 9, num_stages=1):
        i_tap = 8 - k if BACK else k
        b_x = load_pixels(t_x, i_b, o_h + i_tap // 3 - 1, o_w + i_tap % 3 - 1, 0).to(ACC)
        b_0 += b_x * tl.load(p_w + k).to(ACC)
        if MAPS == 3:
            b_1 += b_x * tl.load(p_w + 9 + k).to(ACC)
            b_2 += b_x * tl.load(p_w + 18 + k).to(ACC)
    return b_0, b_1, b_2


@triton.jit
def band_product(b_x, b_before, b_same, b_after, C, dtype: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr):
    """Channel c of the result is `b_before` x[c - 1] + `b_same` x[c] + `b_after` x[c + 1]."""
    o_i = tl.arange(0, b_x.shape[1])[:, None]
    o_j = tl.arange(0, b_x.shape[1])[None, :]
    b_band = tl.where(o_i == o_j, b_same, 0.0)
    b_band = tl.where(o_i == o_j - 1, b_before, b_band)
    b_band = tl.where(o_i == o_j + 1, b_after, b_band)
    b_band = tl.where((o_i < C) & (o_j < C), b_band, 0.0)
    return tl.dot(b_x.to(dtype), b_band.to(dtype), input_precision=PRECISION, out_dtype=ACC)


@triton.jit
def gate_of(
    t_x, p_spatial, p_spatial_bias, p_channel, p_bias, i_b, o_h, o_w, C,
    MAPS: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """u, which only the pseudo-3D form uses, and q."""
    b_u, b_1, b_2 = stencil(t_x, p_spatial, i_b, o_h, o_w, MAPS, False, ACC)
    return across_channels(b_u, b_1, b_2, p_spatial_bias, p_channel, p_bias, C, t_x.dtype, MAPS, ACC, PRECISION)


@triton.jit
def across_channels(
    b_u, b_1, b_2, p_spatial_bias, p_channel, p_bias, C,
    dtype: tl.constexpr, MAPS: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """As `gate_of`, from the results of `stencil`."""
    b_bias = tl.load(p_bias).to(ACC)
    if MAPS == 3:
        b_q = band_product(b_u, 1.0, 0.0, 0.0, C, dtype, ACC, PRECISION) + b_1
        b_q += band_product(b_2, 0.0, 0.0, 1.0, C, dtype, ACC, PRECISION) + b_bias
    else:
        b_u = leaky(b_u + tl.load(p_spatial_bias).to(ACC), 0.0)
        b_before, b_same, b_after = load_three(p_channel, ACC)
        b_q = leaky(band_product(b_u, b_before, b_same, b_after, C, dtype, ACC, PRECISION) + b_bias, 0.0)
    return b_u, b_q


@triton.jit
def load_three(p_channel, ACC: tl.constexpr):
    return tl.load(p_channel).to(ACC), tl.load(p_channel + 1).to(ACC), tl.load(p_channel + 2).to(ACC)


@triton.jit
def channel_gate_kernel(
    t_x, t_add, t_out, p_alpha, p_spatial, p_spatial_bias, p_channel, p_bias, H, W, C,
    MAPS: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """out = x + alpha sigmoid(q) x + add."""
    wait_for_previous_launch()
    i_b, o_h, o_w = pixel_tile(tl.program_id(0), H, W, BLOCK_H, BLOCK_W)
    _, b_q = gate_of(t_x, p_spatial, p_spatial_bias, p_channel, p_bias, i_b, o_h, o_w, C, MAPS, ACC, PRECISION)
    b_y = load_pixels(t_x, i_b, o_h, o_w, 0).to(ACC) * (1 + tl.load(p_alpha).to(ACC) * sigmoid(b_q))
    if t_add is not None:
        b_y += load_pixels(t_add, i_b, o_h, o_w, 0).to(ACC)
    store_pixels(t_out, i_b, o_h, o_w, 0, b_y)


@triton.jit
def pitched_stencil(
    p_x, p_w, i_b, o_h, o_w, H, W, C, PITCH: tl.constexpr, MAPS: tl.constexpr, ACC: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """`stencil` of an image in the layout of `empty_image`: the three loads of a row are under way at once."""
    b_0 = tl.zeros([BLOCK_H * BLOCK_W, BLOCK_C], ACC)
    b_1 = tl.zeros([BLOCK_H * BLOCK_W, BLOCK_C], ACC)
    b_2 = tl.zeros([BLOCK_H * BLOCK_W, BLOCK_C], ACC)
    for i in tl.range(0, 3, num_stages=1):
        for j in tl.static_range(3):
            b_x = load_pitched(p_x, i_b, o_h + i - 1, o_w + j - 1, H, W, PITCH, BLOCK_H, BLOCK_W, BLOCK_C).to(ACC)
            p_tap = p_w + i * 3 + j
            b_0 += b_x * tl.load(p_tap).to(ACC)
            if MAPS == 3:
                b_1 += b_x * tl.load(p_tap + 9).to(ACC)
                b_2 += b_x * tl.load(p_tap + 18).to(ACC)
    m_c = (tl.arange(0, BLOCK_C) < C)[None, :]
    return tl.where(m_c, b_0, 0.0), tl.where(m_c, b_1, 0.0), tl.where(m_c, b_2, 0.0)


@triton.jit
def load_map(
    p_f, i_b, o_h, o_w, H, W, C, PITCH: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A tile of a layer; None if there is no such layer."""
    b_f = None
    if p_f is not None:
        b_f = load_tile(p_f, i_b, o_h, o_w, H, W, C, PITCH, BLOCK_H, BLOCK_W, BLOCK_C)
    return b_f


@triton.jit
def load_matrix(b_f, p_w, i_w, C, OF_ROW: tl.constexpr, BLOCK_C: tl.constexpr):
    """Matrix `i_w`; None if there is no such layer."""
    b_w = None
    if b_f is not None:
        b_w = load_rows(p_w + i_w.to(tl.int64) * (C * OF_ROW), C, OF_ROW, BLOCK_C, BLOCK_C)
    return b_w


@triton.jit
def add_product(b_y, b_f, b_w, ACC: tl.constexpr, PRECISION: tl.constexpr):
    """`b_y` plus a layer times its matrix, or `b_y` if there is no such layer."""
    if b_f is not None:
        b_y = tl.dot(b_f, b_w, b_y, input_precision=PRECISION, out_dtype=ACC)
    return b_y


@triton.jit
def add_four(
    b_y, b_f0, b_f1, b_f2, b_f3, p_w, i_w, C,
    OF_ROW: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """`b_y` plus up to four layers, each times its matrix: all matrices are loaded before the first product."""
    b_w0 = load_matrix(b_f0, p_w, i_w, C, OF_ROW, BLOCK_C)
    b_w1 = load_matrix(b_f1, p_w, i_w + 1, C, OF_ROW, BLOCK_C)
    b_w2 = load_matrix(b_f2, p_w, i_w + 2, C, OF_ROW, BLOCK_C)
    b_w3 = load_matrix(b_f3, p_w, i_w + 3, C, OF_ROW, BLOCK_C)
    b_y = add_product(b_y, b_f0, b_w0, ACC, PRECISION)
    b_y = add_product(b_y, b_f1, b_w1, ACC, PRECISION)
    b_y = add_product(b_y, b_f2, b_w2, ACC, PRECISION)
    return add_product(b_y, b_f3, b_w3, ACC, PRECISION)


@triton.jit
def attend(
    b_y, p_f0, p_f1, p_f2, p_f3, p_w, i_first, i_b, o_h, o_w, H, W, C, SIDE_H, SIDE_W, ROWS, COLUMNS,
    WINDOWED: tl.constexpr, LAYERS: tl.constexpr, PITCH: tl.constexpr, OF_ROW: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """`b_y` plus up to four layers, from number `i_first` on, each times its matrix.

    A layer's tile is loaded once, for all of the up to four windows that contain it.
    """
    b_f0 = load_map(p_f0, i_b, o_h, o_w, H, W, C, PITCH, BLOCK_H, BLOCK_W, BLOCK_C)
    b_f1 = load_map(p_f1, i_b, o_h, o_w, H, W, C, PITCH, BLOCK_H, BLOCK_W, BLOCK_C)
    b_f2 = load_map(p_f2, i_b, o_h, o_w, H, W, C, PITCH, BLOCK_H, BLOCK_W, BLOCK_C)
    b_f3 = load_map(p_f3, i_b, o_h, o_w, H, W, C, PITCH, BLOCK_H, BLOCK_W, BLOCK_C)
    if not WINDOWED:
        i_w = i_b * LAYERS + i_first
        b_y = add_four(b_y, b_f0, b_f1, b_f2, b_f3, p_w, i_w, C, OF_ROW, ACC, PRECISION, BLOCK_C)
    elif p_f0 is not None:
        n_h, n_w = tl.maximum(ROWS - 1, 1), tl.maximum(COLUMNS - 1, 1)
        o_i, o_j, n_i, n_j = windows_of_block(o_h // SIDE_H, o_w // SIDE_W, n_h, n_w)
        for i_near in tl.range(0, n_i * n_j, num_stages=1):
            i_h, i_w = o_i + i_near // n_j, o_j + i_near % n_j
            i_m = ((i_b * n_h + i_h) * n_w + i_w) * LAYERS + i_first
            b_part = tl.zeros([BLOCK_H * BLOCK_W, BLOCK_C], ACC)
            b_part = add_four(b_part, b_f0, b_f1, b_f2, b_f3, p_w, i_m, C, OF_ROW, ACC, PRECISION, BLOCK_C)
            b_share = pixel_shares(o_h, o_w, i_h, i_w, SIDE_H, SIDE_W, ROWS, COLUMNS, ACC, BLOCK_H, BLOCK_W)
            b_y += b_share * b_part
    return b_y


@triton.jit
def merge_kernel(
    p_x, p_f0, p_f1, p_f2, p_f3, p_f4, p_f5, p_f6, p_f7, p_w, p_mix_bias, t_added, t_out,
    p_alpha, p_spatial, p_spatial_bias, p_channel, p_bias, H, W, C, SIDE_H, SIDE_W, ROWS, COLUMNS,
    WINDOWED: tl.constexpr, LAYERS: tl.constexpr, SLOPE: tl.constexpr, MAPS: tl.constexpr,
    PITCH: tl.constexpr, OF_ROW: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, MIX_PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out = x + alpha sigmoid(q) x + f_l, with f_l = LR(P F + bias) of the layers `p_f`, also written to `t_added`
    unless it is None. Rows of the matrices `p_w` are OF_ROW elements apart."""
    wait_for_previous_launch()
    i_b, o_h, o_w = pixel_tile(tl.program_id(0), H, W, BLOCK_H, BLOCK_W)
    b_y = tl.zeros([BLOCK_H * BLOCK_W, BLOCK_C], ACC)
    # In 32 bits, and beside the three sums of a 3x3x3 gate, four layers at once would need too many registers.
    if t_out.dtype.primitive_bitwidth > 16 or MAPS == 3:
        b_y = attend(
            b_y, p_f0, p_f1, None, None, p_w, 0, i_b, o_h, o_w, H, W, C, SIDE_H, SIDE_W, ROWS, COLUMNS,
            WINDOWED, LAYERS, PITCH, OF_ROW, ACC, MIX_PRECISION, BLOCK_H, BLOCK_W, BLOCK_C,
        )  # fmt: skip
        b_y = attend(
            b_y, p_f2, p_f3, None, None, p_w, 2, i_b, o_h, o_w, H, W, C, SIDE_H, SIDE_W, ROWS, COLUMNS,
            WINDOWED, LAYERS, PITCH, OF_ROW, ACC, MIX_PRECISION, BLOCK_H, BLOCK_W, BLOCK_C,
        )  # fmt: skip
        b_y = attend(
            b_y, p_f4, p_f5, None, None, p_w, 4, i_b, o_h, o_w, H, W, C, SIDE_H, SIDE_W, ROWS, COLUMNS,
            WINDOWED, LAYERS, PITCH, OF_ROW, ACC, MIX_PRECISION, BLOCK_H, BLOCK_W, BLOCK_C,
        )  # fmt: skip
        b_y = attend(
            b_y, p_f6, p_f7, None, None, p_w, 6, i_b, o_h, o_w, H, W, C, SIDE_H, SIDE_W, ROWS, COLUMNS,
            WINDOWED, LAYERS, PITCH, OF_ROW, ACC, MIX_PRECISION, BLOCK_H, BLOCK_W, BLOCK_C,
        )  # fmt: skip
    else:
        b_y = attend(
            b_y, p_f0, p_f1, p_f2, p_f3, p_w, 0, i_b, o_h, o_w, H, W, C, SIDE_H, SIDE_W, ROWS, COLUMNS,
            WINDOWED, LAYERS, PITCH, OF_ROW, ACC, MIX_PRECISION, BLOCK_H, BLOCK_W, BLOCK_C,
        )  # fmt: skip
        b_y = attend(
            b_y, p_f4, p_f5, p_f6, p_f7, p_w, 4, i_b, o_h, o_w, H, W, C, SIDE_H, SIDE_W, ROWS, COLUMNS,
            WINDOWED, LAYERS, PITCH, OF_ROW, ACC, MIX_PRECISION, BLOCK_H, BLOCK_W, BLOCK_C,
        )  # fmt: skip
    b_y = leaky(b_y + load_bias(p_mix_bias, 0, C, BLOCK_C, ACC), SLOPE)
    if t_added is not None:
        store_pixels(t_added, i_b, o_h, o_w, 0, b_y)
    b_u, b_1, b_2 = pitched_stencil(
        p_x, p_spatial, i_b, o_h, o_w, H, W, C, PITCH, MAPS, ACC, BLOCK_H, BLOCK_W, BLOCK_C
    )  # fmt: skip
    _, b_q = across_channels(
        b_u, b_1, b_2, p_spatial_bias, p_channel, p_bias, C, p_x.dtype.element_ty, MAPS, ACC, PRECISION
    )  # fmt: skip
    b_x = load_pitched(p_x, i_b, o_h, o_w, H, W, PITCH, BLOCK_H, BLOCK_W, BLOCK_C).to(ACC)
    b_y += b_x * (1 + tl.load(p_alpha).to(ACC) * sigmoid(b_q))
    store_padded(t_out, i_b, o_h, o_w, 0, C, b_y)


@triton.jit
def channel_gate_backward_kernel(
    t_g, t_x, t_dx, t_e, p_alpha, p_spatial, p_spatial_bias, p_channel, p_bias, p_sums,
    B, H, W, C, SPLITS,
    MAPS: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """The part of the gradient of x that bypasses the gate (`t_dx`), the gradient of u, or of q in the 3x3x3 form
    (`t_e`), and partial sums of the gradients of the weights, in their order, followed by alpha.

    Outside the image g reads as 0, and every term contains that factor.
    """
    wait_for_previous_launch()
    i_split = tl.program_id(0)
    b_alpha = tl.load(p_alpha).to(ACC)
    o_sum = tl.arange(0, SUMS)
    b_sums = tl.zeros([SUMS], ACC)
    n_tiles = B * tl.cdiv(H, BLOCK_H) * tl.cdiv(W, BLOCK_W)
    for i_tile in tl.range(i_split, n_tiles, SPLITS, num_stages=1):
        i_b, o_h, o_w = pixel_tile(i_tile, H, W, BLOCK_H, BLOCK_W)
        b_u, b_q = gate_of(t_x, p_spatial, p_spatial_bias, p_channel, p_bias, i_b, o_h, o_w, C, MAPS, ACC, PRECISION)
        b_w = sigmoid(b_q)
        b_g = load_pixels(t_g, i_b, o_h, o_w, 0).to(ACC)
        store_pixels(t_dx, i_b, o_h, o_w, 0, b_g * (1 + b_alpha * b_w))
        b_g *= load_pixels(t_x, i_b, o_h, o_w, 0).to(ACC) * b_w
        b_q = tl.where(b_q > 0, 1.0, 0.0) * sigmoid(-b_q) if MAPS == 1 else sigmoid(-b_q)
        b_dq = b_alpha * b_g * b_q
        if MAPS == 1:
            b_before, b_same, b_after = load_three(p_channel, ACC)
            b_du = band_product(b_dq, b_after, b_same, b_before, C, t_x.dtype, ACC, PRECISION)
            b_du = tl.where(b_u > 0, b_du, 0.0)
            b_sums += tl.where(o_sum == 9, tl.sum(b_du), 0.0)
            b_u1 = band_product(b_u, 1.0, 0.0, 0.0, C, t_x.dtype, ACC, PRECISION)
            b_sums += tl.where(o_sum == 10, tl.sum(b_u1 * b_dq), 0.0)
            b_sums += tl.where(o_sum == 11, tl.sum(b_u * b_dq), 0.0)
            b_u1 = band_product(b_u, 0.0, 0.0, 1.0, C, t_x.dtype, ACC, PRECISION)
            b_sums += tl.where(o_sum == 12, tl.sum(b_u1 * b_dq), 0.0)
            store_pixels(t_e, i_b, o_h, o_w, 0, b_du)
        else:
            # In the forward pass, tap d of channel c contributes to q of channel c + 1 - d.
            b_du = band_product(b_dq, 0.0, 0.0, 1.0, C, t_x.dtype, ACC, PRECISION)
            b_du2 = band_product(b_dq, 1.0, 0.0, 0.0, C, t_x.dtype, ACC, PRECISION)
            store_pixels(t_e, i_b, o_h, o_w, 0, b_dq)
        for k in tl.range(0, 9, num_stages=1):
            b_x = load_pixels(t_x, i_b, o_h + k // 3 - 1, o_w + k % 3 - 1, 0).to(ACC)
            b_sums += tl.where(o_sum == k, tl.sum(b_du * b_x), 0.0)
            if MAPS == 3:
                b_sums += tl.where(o_sum == 9 + k, tl.sum(b_dq * b_x), 0.0)
                b_sums += tl.where(o_sum == 18 + k, tl.sum(b_du2 * b_x), 0.0)
        b_sums += tl.where(o_sum == (13 if MAPS == 1 else 27), tl.sum(b_dq), 0.0)
        b_sums += tl.where(o_sum == (14 if MAPS == 1 else 28), tl.sum(b_g), 0.0)
    tl.store(p_sums + i_split * SUMS + o_sum, b_sums)


@triton.jit
def channel_gate_input_kernel(
    t_e, t_dx, t_add, p_spatial, H, W, C,
    MAPS: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Add to `t_dx` the part of the gradient of x that passes through the gate, and `t_add` unless it is None."""
    wait_for_previous_launch()
    i_b, o_h, o_w = pixel_tile(tl.program_id(0), H, W, BLOCK_H, BLOCK_W)
    b_dx, b_1, b_2 = stencil(t_e, p_spatial, i_b, o_h, o_w, MAPS, True, ACC)
    if MAPS == 3:
        b_dx = band_product(b_dx, 0.0, 0.0, 1.0, C, t_e.dtype, ACC, PRECISION) + b_1
        b_dx += band_product(b_2, 1.0, 0.0, 0.0, C, t_e.dtype, ACC, PRECISION)
    b_dx += load_pixels(t_dx, i_b, o_h, o_w, 0).to(ACC)
    if t_add is not None:
        b_dx += load_pixels(t_add, i_b, o_h, o_w, 0).to(ACC)
    store_pixels(t_dx, i_b, o_h, o_w, 0, b_dx)
