"""Kernels of the RFDB. Names and conventions as in `runtime/kernels.py`; weights are [taps, inputs, outputs]."""

# ruff: noqa: N803  (names of constants are upper-case)

import triton
import triton.language as tl

from lmfn_kernels.runtime.kernels import (
    dtype_of,
    leaky,
    leaky_gradient,
    load_bias,
    load_pitched,
    load_pixels,
    load_rows,
    load_tile,
    load_weight,
    pixel_tile,
    sigmoid,
    store_padded,
    store_pitched,
    store_pixels,
    wait_for_previous_launch,
)
from lmfn_kernels.upsample.kernels import upsampled


@triton.jit
def fuse_kernel(
    t_x, p_d1, p_d2, p_d3, t_last, p_last_bias, p_fuse, p_fuse_bias, p_squeeze, p_squeeze_bias, t_d4, t_y, t_a,
    H, W, C, D, F,
    PITCH_C: tl.constexpr, PITCH_D: tl.constexpr, PITCH_F: tl.constexpr,
    SLOPE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_F: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """d4 = leaky(conv3x3(x)), y = conv1x1(d1, ..., d4), a = conv1x1(y). d4 is written only if `t_d4` is given.

    y and d4 are rounded to the images' dtype before use, so that backward, which reads them, sees the same values.
    """
    wait_for_previous_launch()
    i_b, o_h, o_w = pixel_tile(tl.program_id(0), H, W, BLOCK_H, BLOCK_W)
    b_d4 = tl.zeros([BLOCK_H * BLOCK_W, BLOCK_D], ACC)
    for i_tap in tl.range(0, 9, num_stages=STAGES):
        b_x = load_pixels(t_x, i_b, o_h + i_tap // 3 - 1, o_w + i_tap % 3 - 1, 0)
        b_d4 = tl.dot(b_x, load_weight(t_last, i_tap, 0, 0), b_d4, input_precision=PRECISION, out_dtype=ACC)
    # The remaining loads are issued together and waited for once.
    b_d1 = load_tile(p_d1, i_b, o_h, o_w, H, W, D, PITCH_D, BLOCK_H, BLOCK_W, BLOCK_D)
    b_d2 = load_tile(p_d2, i_b, o_h, o_w, H, W, D, PITCH_D, BLOCK_H, BLOCK_W, BLOCK_D)
    b_d3 = load_tile(p_d3, i_b, o_h, o_w, H, W, D, PITCH_D, BLOCK_H, BLOCK_W, BLOCK_D)
    b_w1 = load_rows(p_fuse, D, PITCH_C, BLOCK_D, BLOCK_C)
    b_w2 = load_rows(p_fuse + D * PITCH_C, D, PITCH_C, BLOCK_D, BLOCK_C)
    b_w3 = load_rows(p_fuse + 2 * D * PITCH_C, D, PITCH_C, BLOCK_D, BLOCK_C)
    b_w4 = load_rows(p_fuse + 3 * D * PITCH_C, D, PITCH_C, BLOCK_D, BLOCK_C)
    b_squeeze = load_rows(p_squeeze, C, PITCH_F, BLOCK_C, BLOCK_F)
    b_d4 = leaky(b_d4 + load_bias(p_last_bias, 0, D, BLOCK_D, ACC), SLOPE).to(dtype_of(t_y))
    if t_d4 is not None:
        store_pixels(t_d4, i_b, o_h, o_w, 0, b_d4)
    b_y = tl.dot(b_d4, b_w4, input_precision=PRECISION, out_dtype=ACC)
    b_y = tl.dot(b_d1, b_w1, b_y, input_precision=PRECISION, out_dtype=ACC)
    b_y = tl.dot(b_d2, b_w2, b_y, input_precision=PRECISION, out_dtype=ACC)
    b_y = tl.dot(b_d3, b_w3, b_y, input_precision=PRECISION, out_dtype=ACC)
    b_y += load_bias(p_fuse_bias, 0, C, BLOCK_C, ACC)
    b_y = tl.where((tl.arange(0, BLOCK_C) < C)[None, :], b_y, 0.0).to(dtype_of(t_y))
    store_pixels(t_y, i_b, o_h, o_w, 0, b_y)
    b_a = tl.dot(b_y, b_squeeze, input_precision=PRECISION, out_dtype=ACC)
    store_pixels(t_a, i_b, o_h, o_w, 0, b_a + load_bias(p_squeeze_bias, 0, F, BLOCK_F, ACC))


@triton.jit
def distilled_again(
    t_x, t_w, p_bias, t_d, i_b, o_h, o_w, D,
    SLOPE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """d = leaky(conv1x1(x)), stored, and returned with zeros beyond its channels."""
    b_x = load_pixels(t_x, i_b, o_h, o_w, 0)
    b_d = tl.dot(b_x, load_weight(t_w, 0, 0, 0), input_precision=PRECISION, out_dtype=ACC)
    b_d = leaky(b_d + load_bias(p_bias, 0, D, BLOCK_D, ACC), SLOPE)
    b_d = tl.where((tl.arange(0, BLOCK_D) < D)[None, :], b_d, 0.0).to(dtype_of(t_d))
    store_pixels(t_d, i_b, o_h, o_w, 0, b_d)
    return b_d


@triton.jit
def recompute_kernel(
    t_x1, t_x2, t_x3, p_d4, t_w1, p_bias1, t_w2, p_bias2, t_w3, p_bias3, p_fuse, p_fuse_bias, t_d1, t_d2, t_d3, t_y,
    H, W, C, D,
    PITCH_C: tl.constexpr, PITCH_D: tl.constexpr, SLOPE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """d1 to d3, each leaky(conv1x1) of an image, and y = conv1x1(d1, ..., d4), rounded as in `fuse_kernel`."""
    wait_for_previous_launch()
    i_b, o_h, o_w = pixel_tile(tl.program_id(0), H, W, BLOCK_H, BLOCK_W)
    b_d = load_tile(p_d4, i_b, o_h, o_w, H, W, D, PITCH_D, BLOCK_H, BLOCK_W, BLOCK_D)
    b_w = load_rows(p_fuse + 3 * D * PITCH_C, D, PITCH_C, BLOCK_D, BLOCK_C)
    b_y = tl.dot(b_d, b_w, input_precision=PRECISION, out_dtype=ACC)
    b_d = distilled_again(t_x1, t_w1, p_bias1, t_d1, i_b, o_h, o_w, D, SLOPE, ACC, PRECISION, BLOCK_D)
    b_w = load_rows(p_fuse, D, PITCH_C, BLOCK_D, BLOCK_C)
    b_y = tl.dot(b_d, b_w, b_y, input_precision=PRECISION, out_dtype=ACC)
    b_d = distilled_again(t_x2, t_w2, p_bias2, t_d2, i_b, o_h, o_w, D, SLOPE, ACC, PRECISION, BLOCK_D)
    b_w = load_rows(p_fuse + D * PITCH_C, D, PITCH_C, BLOCK_D, BLOCK_C)
    b_y = tl.dot(b_d, b_w, b_y, input_precision=PRECISION, out_dtype=ACC)
    b_d = distilled_again(t_x3, t_w3, p_bias3, t_d3, i_b, o_h, o_w, D, SLOPE, ACC, PRECISION, BLOCK_D)
    b_w = load_rows(p_fuse + 2 * D * PITCH_C, D, PITCH_C, BLOCK_D, BLOCK_C)
    b_y = tl.dot(b_d, b_w, b_y, input_precision=PRECISION, out_dtype=ACC)
    store_padded(t_y, i_b, o_h, o_w, 0, C, b_y + load_bias(p_fuse_bias, 0, C, BLOCK_C, ACC))


@triton.jit
def pointers_to_maps(p_1, p_2, p_3, p_4, i_map, o_d):
    """Pointers to channels `o_d` of maps `i_map`, 0 to 3.

    As distances from the first map, since Triton's compiler for AMD cannot choose between pointers.
    """
    BYTES: tl.constexpr = p_1.dtype.element_ty.primitive_bitwidth // 8
    i_1 = p_1.to(tl.int64)
    o_map = tl.where(i_map == 1, p_2.to(tl.int64) - i_1, 0)
    o_map = tl.where(i_map == 2, p_3.to(tl.int64) - i_1, o_map)
    o_map = tl.where(i_map == 3, p_4.to(tl.int64) - i_1, o_map)
    return p_1 + tl.multiple_of(o_map // BYTES, 16 // BYTES) + o_d


@triton.jit
def fuse_backward_kernel(
    p_gy, p_ga, p_y, p_d1, p_d2, p_d3, p_d4, p_squeeze, p_fuse1, p_fuse2, p_fuse3, p_fuse4, p_z1, p_z2, p_z3, p_z4,
    p_dfuse, p_dfuse_bias, p_dsqueeze, p_dsqueeze_bias,
    B, H, W, C, D, F, SPLITS, s_z,
    PITCH_C: tl.constexpr, PITCH_D: tl.constexpr, PITCH_F: tl.constexpr, WRITTEN: tl.constexpr,
    PITCH_SQUEEZE: tl.constexpr, PITCH_FUSE: tl.constexpr,
    SLOPE: tl.constexpr, D_SLOPE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, MAPS: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_F: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Backward of `fuse_kernel` without the convolution for d4; a program takes MAPS of d1 to d4 as one matrix.

    From the gradients of y and a, computes z, the gradients of the inputs of the maps' activations, and partial sums of
    the gradients of both 1x1 convolutions. By pointers, so that a tile is loaded while the one before is computed, and
    waited for once. z is written up to channel WRITTEN; `s_z` is the distance of its images.
    """
    wait_for_previous_launch()
    i_split = tl.program_id(0)
    o_c = tl.arange(0, BLOCK_C)
    o_f = tl.arange(0, BLOCK_F)
    o_n = tl.arange(0, MAPS * BLOCK_D)
    i_map, o_d = tl.program_id(1) * MAPS + o_n // BLOCK_D, o_n % BLOCK_D
    p_d = pointers_to_maps(p_d1, p_d2, p_d3, p_d4, i_map, o_d)[None, :]
    p_z = pointers_to_maps(p_z1, p_z2, p_z3, p_z4, i_map, o_d)
    p_w = pointers_to_maps(p_fuse1, p_fuse2, p_fuse3, p_fuse4, i_map, o_d)[None, :]
    b_squeeze = load_rows(p_squeeze, F, PITCH_SQUEEZE, BLOCK_F, BLOCK_C)
    b_w = tl.load(p_w + o_c[:, None] * PITCH_FUSE, mask=(o_c < C)[:, None] & (o_d < PITCH_FUSE)[None, :], other=0.0)
    b_w = tl.where((o_d < D)[None, :], b_w, 0.0)
    b_dw = tl.zeros([MAPS * BLOCK_D, BLOCK_C], ACC)
    b_db = tl.zeros([BLOCK_H * BLOCK_W, BLOCK_C], ACC)
    b_ds = tl.zeros([BLOCK_C, BLOCK_F], ACC)
    b_dsb = tl.zeros([BLOCK_H * BLOCK_W, BLOCK_F], ACC)
    n_tiles = B * tl.cdiv(H, BLOCK_H) * tl.cdiv(W, BLOCK_W)
    for i_tile in tl.range(i_split, n_tiles, SPLITS, num_stages=STAGES, disable_licm=True):
        i_b, o_h, o_w = pixel_tile(i_tile, H, W, BLOCK_H, BLOCK_W)
        b_ga = load_pitched(p_ga, i_b, o_h, o_w, H, W, PITCH_F, BLOCK_H, BLOCK_W, BLOCK_F)
        b_y = load_pitched(p_y, i_b, o_h, o_w, H, W, PITCH_C, BLOCK_H, BLOCK_W, BLOCK_C)
        b_gy = load_pitched(p_gy, i_b, o_h, o_w, H, W, PITCH_C, BLOCK_H, BLOCK_W, BLOCK_C)
        o_p = tl.arange(0, BLOCK_H * BLOCK_W)
        m_p = ((o_h + o_p // BLOCK_W < H) & (o_w + o_p % BLOCK_W < W))[:, None]
        o_p = ((o_p // BLOCK_W * W + o_p % BLOCK_W) * PITCH_D)[:, None]
        o_first = ((i_b * H + o_h).to(tl.int64) * W + o_w) * PITCH_D
        b_d = tl.load(p_d + o_first + o_p, mask=m_p & (o_d < PITCH_D)[None, :], other=0.0)
        # What memory contains after the channels must not be multiplied: NaN times a weight of 0 is NaN.
        b_ga = tl.where((o_f < F)[None, :], b_ga, 0.0)
        b_dy = tl.dot(b_ga, b_squeeze, input_precision=PRECISION, out_dtype=ACC)
        b_dy = tl.where((o_c < C)[None, :], b_dy + b_gy.to(ACC), 0.0)
        b_db += b_dy
        b_dsb += b_ga.to(ACC)
        b_dy = b_dy.to(b_gy.dtype)
        b_z = tl.dot(b_dy, b_w, input_precision=PRECISION, out_dtype=ACC)
        b_dw = tl.dot(tl.trans(b_d), b_dy, b_dw, input_precision=PRECISION, out_dtype=ACC)
        b_ds = tl.dot(tl.trans(b_y), b_ga, b_ds, input_precision=PRECISION, out_dtype=ACC)
        b_g = leaky_gradient(b_z, b_d, D_SLOPE)
        if SLOPE != D_SLOPE:
            b_g = tl.where((i_map < 3)[None, :], b_g, leaky_gradient(b_z, b_d, SLOPE))
        b_g = tl.where((o_d < D)[None, :], b_g, 0.0)
        store_pitched(p_z, o_d < WRITTEN, i_b, o_h, o_w, H, W, s_z, PITCH_D, BLOCK_H, BLOCK_W, b_g)
    p_dw = p_dfuse + i_split * 4 * D * C + ((i_map * D + o_d) * C)[:, None] + o_c[None, :]
    tl.store(p_dw, b_dw, mask=(o_d < D)[:, None] & (o_c < C)[None, :])
    if tl.program_id(1) == 0:
        tl.store(p_dfuse_bias + i_split * C + o_c, tl.sum(b_db, axis=0), mask=o_c < C)
        p_ds = p_dsqueeze + i_split * C * F + (o_c * F)[:, None] + o_f[None, :]
        tl.store(p_ds, b_ds, mask=(o_c < C)[:, None] & (o_f < F)[None, :])
        tl.store(p_dsqueeze_bias + i_split * F + o_f, tl.sum(b_dsb, axis=0), mask=o_f < F)


@triton.jit
def gate_kernel(
    t_y, t_a, p_v, t_skip, p_skip_bias, t_expand, p_expand_bias, t_out,
    H, W, C, LOW_H, LOW_W, TO_H, FROM_H, TO_W, FROM_W, s_b, s_h, s_w,
    F: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """out = y sigmoid(expand(up(v) + skip(a))). F is a constant, so that v is not loaded value by value."""
    wait_for_previous_launch()
    i_b, o_h, o_w = pixel_tile(tl.program_id(0), H, W, BLOCK_H, BLOCK_W)
    b_t = upsampled(
        p_v, i_b, o_h, o_w, H, W, LOW_H, LOW_W, TO_H, FROM_H, TO_W, FROM_W, F, s_b, s_h, s_w,
        INDEX, ACC, BLOCK_H, BLOCK_W, BLOCK_F,
    )  # fmt: skip
    b_a = load_pixels(t_a, i_b, o_h, o_w, 0)
    b_t = tl.dot(b_a, load_weight(t_skip, 0, 0, 0), b_t, input_precision=PRECISION, out_dtype=ACC)
    b_t = (b_t + load_bias(p_skip_bias, 0, F, BLOCK_F, ACC)).to(dtype_of(t_y))
    b_s = tl.dot(b_t, load_weight(t_expand, 0, 0, 0), input_precision=PRECISION, out_dtype=ACC)
    b_s += load_bias(p_expand_bias, 0, C, BLOCK_C, ACC)
    store_padded(t_out, i_b, o_h, o_w, 0, C, load_pixels(t_y, i_b, o_h, o_w, 0).to(ACC) * sigmoid(b_s))


@triton.jit
def gate_backward_kernel(
    p_g, p_more_g, p_y, p_a, p_v, p_skip, p_skip_bias, p_expand, p_expand_bias,
    p_dy, p_da, p_dt, p_dskip, p_dskip_bias, p_dexpand, p_dexpand_bias,
    B, H, W, C, LOW_H, LOW_W, TO_H, FROM_H, TO_W, FROM_W, s_b, s_h, s_w, s_dy, s_da, SPLITS,
    F: tl.constexpr, PITCH_C: tl.constexpr, PITCH_F: tl.constexpr, WRITTEN: tl.constexpr,
    PITCH_SKIP: tl.constexpr, PITCH_EXPAND: tl.constexpr,
    INDEX: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_F: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Gradients of y, of a (through `skip`), and of the upsampled v (`p_dt`); partial sums for both convolutions.

    The result's gradient is g, or the sum of g and more_g. Outside the image it reads as 0, and every term contains
    that factor. By pointers, as in `fuse_backward_kernel`; dy is written up to channel WRITTEN. `s_dy` and `s_da` are
    the distances of the images of dy, and of those of da and dt. The gradient of a bias is one more column of that of
    its weight, whose input, channel F, is 1.
    """
    wait_for_previous_launch()
    i_split = tl.program_id(0)
    o_c = tl.arange(0, BLOCK_C)
    o_f = tl.arange(0, BLOCK_F)
    b_skip = load_rows(p_skip, F, PITCH_SKIP, BLOCK_F, BLOCK_F)
    b_expand = load_rows(p_expand, F, PITCH_EXPAND, BLOCK_F, BLOCK_C)
    b_skip = tl.where((o_f < F)[None, :], b_skip, 0.0)
    b_expand = tl.where((o_c < C)[None, :], b_expand, 0.0)
    b_skip_bias = load_bias(p_skip_bias, 0, F, BLOCK_F, ACC)
    b_one = tl.where(o_f == F, 1.0, 0.0)[None, :]
    b_expand_bias = load_bias(p_expand_bias, 0, C, BLOCK_C, ACC)
    b_ds = tl.zeros([BLOCK_F, BLOCK_F], ACC)
    b_de = tl.zeros([BLOCK_C, BLOCK_F], ACC)
    n_tiles = B * tl.cdiv(H, BLOCK_H) * tl.cdiv(W, BLOCK_W)
    for i_tile in tl.range(i_split, n_tiles, SPLITS, num_stages=STAGES, disable_licm=True):
        i_b, o_h, o_w = pixel_tile(i_tile, H, W, BLOCK_H, BLOCK_W)
        b_a = load_pitched(p_a, i_b, o_h, o_w, H, W, PITCH_F, BLOCK_H, BLOCK_W, BLOCK_F)
        b_g = load_pitched(p_g, i_b, o_h, o_w, H, W, PITCH_C, BLOCK_H, BLOCK_W, BLOCK_C).to(ACC)
        if p_more_g is not None:
            b_g += load_pitched(p_more_g, i_b, o_h, o_w, H, W, PITCH_C, BLOCK_H, BLOCK_W, BLOCK_C).to(ACC)
        b_y = load_pitched(p_y, i_b, o_h, o_w, H, W, PITCH_C, BLOCK_H, BLOCK_W, BLOCK_C)
        b_t = upsampled(
            p_v, i_b, o_h, o_w, H, W, LOW_H, LOW_W, TO_H, FROM_H, TO_W, FROM_W, F, s_b, s_h, s_w,
            INDEX, ACC, BLOCK_H, BLOCK_W, BLOCK_F,
        )  # fmt: skip
        b_a = tl.where((o_f < F)[None, :], b_a, b_one.to(p_a.dtype.element_ty))
        b_t = tl.dot(b_a, b_skip, b_t, input_precision=PRECISION, out_dtype=ACC)
        b_t = (b_t + (b_skip_bias + b_one)).to(p_y.dtype.element_ty)
        b_s = sigmoid(tl.dot(b_t, b_expand, input_precision=PRECISION, out_dtype=ACC) + b_expand_bias)
        b_g = tl.where((o_c < C)[None, :], b_g * b_s, 0.0)
        store_pitched(p_dy + o_c, o_c < WRITTEN, i_b, o_h, o_w, H, W, s_dy, PITCH_C, BLOCK_H, BLOCK_W, b_g)
        b_gs = tl.where((o_c < C)[None, :], b_g * b_y.to(ACC) * (1 - b_s), 0.0)
        b_gs = b_gs.to(p_y.dtype.element_ty)
        b_de = tl.dot(tl.trans(b_gs), b_t, b_de, input_precision=PRECISION, out_dtype=ACC)
        b_dt = tl.dot(b_gs, tl.trans(b_expand), input_precision=PRECISION, out_dtype=ACC)
        b_dt = b_dt.to(p_y.dtype.element_ty)
        store_pitched(p_dt + o_f, o_f < F, i_b, o_h, o_w, H, W, s_da, PITCH_F, BLOCK_H, BLOCK_W, b_dt)
        b_ds = tl.dot(tl.trans(b_dt), b_a, b_ds, input_precision=PRECISION, out_dtype=ACC)
        b_da = tl.dot(b_dt, tl.trans(b_skip), input_precision=PRECISION, out_dtype=ACC)
        store_pitched(p_da + o_f, o_f < F, i_b, o_h, o_w, H, W, s_da, PITCH_F, BLOCK_H, BLOCK_W, b_da)
    m_f = o_f < F
    p_ds = p_dskip + i_split * F * F + o_f[:, None] * F + o_f[None, :]
    tl.store(p_ds, b_ds, mask=m_f[:, None] & m_f[None, :])
    tl.store(p_dskip_bias + i_split * F + o_f, tl.sum(b_ds * b_one, axis=1), mask=m_f)
    p_de = p_dexpand + i_split * C * F + o_c[:, None] * F + o_f[None, :]
    tl.store(p_de, b_de, mask=(o_c < C)[:, None] & m_f[None, :])
    tl.store(p_dexpand_bias + i_split * C + o_c, tl.sum(b_de * b_one, axis=1), mask=o_c < C)


@triton.jit
def load_square(p_w, F: tl.constexpr, PITCH: tl.constexpr, BLOCK_F: tl.constexpr):
    """A matrix of a weight, and zeros around it."""
    o_f = tl.arange(0, BLOCK_F)
    m_w = (o_f < F)[:, None] & (o_f < F)[None, :]
    return tl.load(p_w + o_f[:, None] * PITCH + o_f[None, :], mask=m_w, other=0.0)


@triton.jit
def load_taps(p_w, s_tap, F: tl.constexpr, PITCH_W: tl.constexpr, BLOCK_F: tl.constexpr):
    """The nine matrices of a 3x3 convolution."""
    return (
        load_square(p_w, F, PITCH_W, BLOCK_F),
        load_square(p_w + s_tap, F, PITCH_W, BLOCK_F),
        load_square(p_w + 2 * s_tap, F, PITCH_W, BLOCK_F),
        load_square(p_w + 3 * s_tap, F, PITCH_W, BLOCK_F),
        load_square(p_w + 4 * s_tap, F, PITCH_W, BLOCK_F),
        load_square(p_w + 5 * s_tap, F, PITCH_W, BLOCK_F),
        load_square(p_w + 6 * s_tap, F, PITCH_W, BLOCK_F),
        load_square(p_w + 7 * s_tap, F, PITCH_W, BLOCK_F),
        load_square(p_w + 8 * s_tap, F, PITCH_W, BLOCK_F),
    )


@triton.jit
def conv_pool_kernel(
    p_x, p_w, p_bias, p_out, p_index, WIDTH, LOW_H, LOW_W, s_xb, s_xh, s_b, s_h, s_w, s_ib, s_ih, s_iw, s_tap,
    F: tl.constexpr, PITCH: tl.constexpr, PITCH_W: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_W: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_F: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Maximum over 7x7 at stride 3 of a 3x3 convolution at stride 2 without padding.

    A program computes the seven rows, BLOCK_W of their WIDTH columns, that a row of maxima needs. Nothing of the
    convolution is written. `p_index` gets the maximum's index among the 49, unless it is None: the first of equal
    values, or a NaN. F and PITCH, the distance of the input's pixels, are constants for the sake of long loads.
    """
    wait_for_previous_launch()
    COLUMNS: tl.constexpr = (BLOCK_W - 4) // 3
    n_w = tl.cdiv(LOW_W, COLUMNS)
    i_b = (tl.program_id(0) // (LOW_H * n_w)).to(tl.int64)
    i_y = tl.program_id(0) // n_w % LOW_H
    i_x = tl.program_id(0) % n_w * COLUMNS
    o_x = 3 * i_x + tl.arange(0, BLOCK_W)
    o_f = tl.arange(0, BLOCK_F)
    m_x = (o_x < WIDTH)[:, None] & (o_f < F)[None, :]
    p_first = p_x + i_b * s_xb + (6 * i_y).to(tl.int64) * s_xh + (2 * PITCH * o_x)[:, None] + o_f[None, :]
    b_w = load_taps(p_w, s_tap, F, PITCH_W, BLOCK_F)
    b_bias = load_bias(p_bias, 0, F, BLOCK_F, ACC)
    b_max = tl.full([BLOCK_W, BLOCK_F], float("-inf"), ACC)
    b_row = tl.zeros([BLOCK_W, BLOCK_F], tl.int32)
    for i in tl.range(0, 7, num_stages=STAGES):
        b_c = tl.zeros([BLOCK_W, BLOCK_F], ACC)
        for i_row in tl.static_range(3):
            b_r = tl.zeros([BLOCK_W, BLOCK_F], ACC)  # a sum of its own, so that the three do not wait for each other
            for i_column in tl.static_range(3):
                b_x = tl.load(p_first + (2 * i + i_row) * s_xh + i_column * PITCH, mask=m_x, other=0.0)
                b_r = tl.dot(b_x, b_w[3 * i_row + i_column], b_r, input_precision=PRECISION, out_dtype=ACC)
            b_c += b_r
        m_more = (b_c > b_max) | (b_c != b_c)
        b_max = tl.where(m_more, b_c, b_max)
        if p_index is not None:
            b_row = tl.where(m_more, 7 * i, b_row)
    o_p = tl.arange(0, BLOCK_P)
    o_first = tl.minimum(3 * o_p, BLOCK_W - 7)[:, None] + tl.zeros([1, BLOCK_F], tl.int32)
    b_out = tl.gather(b_max, o_first, 0)
    if p_index is not None:
        b_index = tl.gather(b_row, o_first, 0)
    for i in tl.static_range(1, 7):
        b_c = tl.gather(b_max, o_first + i, 0)
        m_more = (b_c > b_out) | (b_c != b_c)
        if p_index is not None:
            b_i = tl.gather(b_row, o_first + i, 0) + i
            m_more = m_more | ((b_c == b_out) & (b_i < b_index))
            b_index = tl.where(m_more, b_i, b_index)
        b_out = tl.where(m_more, b_c, b_out)
    m_out = ((o_p < COLUMNS) & (i_x + o_p < LOW_W))[:, None] & (o_f < F)[None, :]
    p_o = p_out + i_b * s_b + i_y.to(tl.int64) * s_h + ((i_x + o_p) * s_w)[:, None] + o_f[None, :]
    tl.store(p_o, (b_out + b_bias).to(p_out.dtype.element_ty), mask=m_out)
    if p_index is not None:
        p_i = p_index + i_b * s_ib + i_y.to(tl.int64) * s_ih + ((i_x + o_p) * s_iw)[:, None] + o_f[None, :]
        tl.store(p_i, b_index.to(tl.int8), mask=m_out)


@triton.jit
def conv_of_tile(b_x, b_w, b_bias, BLOCK_W: tl.constexpr, PRECISION: tl.constexpr):
    """A 3x3 convolution of a tile in registers. A pixel at the tile's edge gets what belongs to the opposite edge."""
    SIZE: tl.constexpr = b_x.shape[0]
    o_p = tl.arange(0, SIZE)[:, None] + tl.zeros([1, b_x.shape[1]], tl.int32)
    b_out = b_bias + tl.zeros(b_x.shape, b_bias.dtype)
    for i in tl.static_range(9):
        b_tap = tl.gather(b_x, (o_p + (i // 3 - 1) * BLOCK_W + i % 3 - 1 + SIZE) % SIZE, 0)
        b_out = tl.dot(b_tap, b_w[i], b_out, input_precision=PRECISION, out_dtype=b_bias.dtype)
    return b_out


@triton.jit
def low_convs_kernel(
    p_x, p_w1, p_bias1, p_w2, p_bias2, p_w3, p_bias3, p_low1, p_low2, p_out,
    H, W, s_xb, s_xh, s_b, s_h, s_w, s_tap1, s_tap2, s_tap3,
    F: tl.constexpr, PITCH: tl.constexpr, PITCH_W: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_F: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """out = conv3(low2), low2 = relu(conv2(low1)), low1 = relu(conv1(x)), 3x3 with padding 1.

    A program computes all three for a tile that reaches two pixels beyond its results on each side. Both maps between
    stay in registers, and are written only if `p_low1` and `p_low2` are given.
    """
    wait_for_previous_launch()
    n_w = tl.cdiv(W, BLOCK_W - 4)
    n_tiles = n_w * tl.cdiv(H, BLOCK_H - 4)
    i_b = (tl.program_id(0) // n_tiles).to(tl.int64)
    i_tile = tl.program_id(0) % n_tiles
    o_h, o_w = i_tile // n_w * (BLOCK_H - 4) - 2, i_tile % n_w * (BLOCK_W - 4) - 2
    o_p = tl.arange(0, BLOCK_H * BLOCK_W)
    o_down, o_right = o_p // BLOCK_W, o_p % BLOCK_W
    o_y, o_x = o_h + o_down, o_w + o_right
    o_f = tl.arange(0, BLOCK_F)
    m_f = (o_f < F)[None, :]
    p_first = p_x + (i_b * s_xb + o_h.to(tl.int64) * s_xh + o_w * PITCH)
    # All weights but the first convolution's are loaded here, so that none is waited for between the convolutions.
    b_w2 = load_taps(p_w2, s_tap2, F, PITCH_W, BLOCK_F)
    b_w3 = load_taps(p_w3, s_tap3, F, PITCH_W, BLOCK_F)
    b_bias1 = load_bias(p_bias1, 0, F, BLOCK_F, ACC)
    b_bias2 = load_bias(p_bias2, 0, F, BLOCK_F, ACC)
    b_bias3 = load_bias(p_bias3, 0, F, BLOCK_F, ACC)
    b_c = b_bias1 + tl.zeros([BLOCK_H * BLOCK_W, BLOCK_F], ACC)
    for i_row in tl.range(0, 3, num_stages=STAGES):
        o_r = o_y + i_row - 1
        for i_column in tl.static_range(3):
            o_c = o_x + i_column - 1
            m_x = ((o_r >= 0) & (o_r < H) & (o_c >= 0) & (o_c < W))[:, None] & m_f
            o_pixel = (o_down + i_row - 1) * s_xh + (o_right + i_column - 1) * PITCH
            b_x = tl.load(p_first + o_pixel[:, None] + o_f[None, :], mask=m_x, other=0.0)
            b_w = load_square(p_w1 + (3 * i_row + i_column) * s_tap1, F, PITCH_W, BLOCK_F)
            b_c = tl.dot(b_x, b_w, b_c, input_precision=PRECISION, out_dtype=ACC)
    # Outside the image the next convolution reads zeros, not what this one would be there.
    m_image = ((o_y >= 0) & (o_y < H) & (o_x >= 0) & (o_x < W))[:, None] & m_f
    b_low1 = tl.where(m_image, leaky(b_c, 0.0), 0.0).to(p_out.dtype.element_ty)
    b_c = conv_of_tile(b_low1, b_w2, b_bias2, BLOCK_W, PRECISION)
    b_low2 = tl.where(m_image, leaky(b_c, 0.0), 0.0).to(p_out.dtype.element_ty)
    b_c = conv_of_tile(b_low2, b_w3, b_bias3, BLOCK_W, PRECISION)
    m_rows = (o_p // BLOCK_W >= 2) & (o_p // BLOCK_W < BLOCK_H - 2)
    m_out = m_image & (m_rows & (o_p % BLOCK_W >= 2) & (o_p % BLOCK_W < BLOCK_W - 2))[:, None]
    o_out = i_b * s_b + o_h.to(tl.int64) * s_h + (o_down * s_h + o_x * s_w)[:, None] + o_f[None, :]
    if p_low1 is not None:
        tl.store(p_low1 + o_out, b_low1, mask=m_out)
        tl.store(p_low2 + o_out, b_low2, mask=m_out)
    tl.store(p_out + o_out, b_c.to(p_out.dtype.element_ty), mask=m_out)


@triton.jit
def tap_backward(
    b_g, b_w, b_x, b_dx, p_dw, F: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """Add one tap's part of the gradient of a convolution's input to `b_dx`, and store X^T G, that of its weight."""
    o_f = tl.arange(0, b_g.shape[1])
    b_dw = tl.dot(b_x, b_g, input_precision=PRECISION, out_dtype=ACC)
    tl.store(p_dw + o_f[:, None] * F + o_f[None, :], b_dw, mask=(o_f < F)[:, None] & (o_f < F)[None, :])
    return tl.dot(b_g, tl.trans(b_w), b_dx, input_precision=PRECISION, out_dtype=ACC)


@triton.jit
def conv_of_tile_backward(
    b_g, p_w, s_tap, b_x, p_dw, F: tl.constexpr, PITCH_W: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_W: tl.constexpr,
):  # fmt: skip
    """The gradient of the input of `conv_of_tile` from that of its result, and its weight's, which is stored."""
    SIZE: tl.constexpr = b_g.shape[0]
    o_p = tl.arange(0, SIZE)[:, None] + tl.zeros([1, b_g.shape[1]], tl.int32)
    b_dx = tl.zeros(b_g.shape, ACC)
    AT_ONCE: tl.constexpr = b_g.dtype.primitive_bitwidth == 16  # in 32 bits, nine matrices would spill
    if AT_ONCE:
        b_all = load_taps(p_w, s_tap, F, PITCH_W, b_g.shape[1])
    for i in tl.static_range(9):
        b_tap = tl.gather(b_g, (o_p - (i // 3 - 1) * BLOCK_W - (i % 3 - 1) + SIZE) % SIZE, 0)
        b_w = b_all[i] if AT_ONCE else load_square(p_w + i * s_tap, F, PITCH_W, b_g.shape[1])
        b_dx = tap_backward(b_tap, b_w, b_x, b_dx, p_dw + i * F * F, F, ACC, PRECISION)
    return b_dx


@triton.jit
def low_convs_backward_kernel(
    p_g, p_x, p_low1, p_low2, p_w1, p_w2, p_w3, p_dx, p_dw1, p_db1, p_dw2, p_db2, p_dw3, p_db3,
    H, W, s_b, s_tap1, s_tap2, s_tap3,
    F: tl.constexpr, PITCH: tl.constexpr, PITCH_W: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_F: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Backward of `low_convs_kernel`: the gradient of x, and one partial sum per program of all weights and biases.

    The same tiles as there; the gradients between the convolutions stay in registers. What a tap contributes to the
    input's gradient and to its weight's is multiplied by the same shifted tile of the result's gradient. Sums are over
    the pixels of x that are the program's own. `s_b` is the distance of the images of dx.
    """
    wait_for_previous_launch()
    n_w = tl.cdiv(W, BLOCK_W - 4)
    n_tiles = n_w * tl.cdiv(H, BLOCK_H - 4)
    i_b = (tl.program_id(0) // n_tiles).to(tl.int64)
    i_tile = tl.program_id(0) % n_tiles
    o_h, o_w = i_tile // n_w * (BLOCK_H - 4) - 2, i_tile % n_w * (BLOCK_W - 4) - 2
    o_p = tl.arange(0, BLOCK_H * BLOCK_W)
    o_f = tl.arange(0, BLOCK_F)
    m_rows = (o_p // BLOCK_W >= 2) & (o_p // BLOCK_W < BLOCK_H - 2)
    m_own = (m_rows & (o_p % BLOCK_W >= 2) & (o_p % BLOCK_W < BLOCK_W - 2))[:, None]
    b_low2 = load_tile(p_low2, i_b, o_h, o_w, H, W, F, PITCH, BLOCK_H, BLOCK_W, BLOCK_F)
    b_g = load_tile(p_g, i_b, o_h, o_w, H, W, F, PITCH, BLOCK_H, BLOCK_W, BLOCK_F)
    p_dw1 += tl.program_id(0).to(tl.int64) * 9 * F * F
    p_dw2 += tl.program_id(0).to(tl.int64) * 9 * F * F
    p_dw3 += tl.program_id(0).to(tl.int64) * 9 * F * F
    o_db = tl.program_id(0) * F + o_f
    b_sum = tl.sum(tl.where(m_own, b_g.to(ACC), 0.0), axis=0)
    tl.store(p_db3 + o_db, b_sum, mask=o_f < F)
    b_own = tl.trans(tl.where(m_own, b_low2, 0.0))
    b_dx = tl.zeros([BLOCK_H * BLOCK_W, BLOCK_F], ACC)
    for i_row in tl.range(0, 3, num_stages=STAGES):
        for i_column in tl.static_range(3):
            b_g = load_tile(
                p_g, i_b, o_h - i_row + 1, o_w - i_column + 1, H, W, F, PITCH, BLOCK_H, BLOCK_W, BLOCK_F
            )  # fmt: skip
            i_tap = 3 * i_row + i_column
            b_w = load_square(p_w3 + i_tap * s_tap3, F, PITCH_W, BLOCK_F)
            b_dx = tap_backward(b_g, b_w, b_own, b_dx, p_dw3 + i_tap * F * F, F, ACC, PRECISION)
    b_low1 = load_tile(p_low1, i_b, o_h, o_w, H, W, F, PITCH, BLOCK_H, BLOCK_W, BLOCK_F)
    b_g = leaky_gradient(b_dx, b_low2, 0.0).to(p_g.dtype.element_ty)
    b_sum = tl.sum(tl.where(m_own, b_g.to(ACC), 0.0), axis=0)
    tl.store(p_db2 + o_db, b_sum, mask=o_f < F)
    b_own = tl.trans(tl.where(m_own, b_low1, 0.0))
    b_dx = conv_of_tile_backward(b_g, p_w2, s_tap2, b_own, p_dw2, F, PITCH_W, ACC, PRECISION, BLOCK_W)
    b_x = load_tile(p_x, i_b, o_h, o_w, H, W, F, PITCH, BLOCK_H, BLOCK_W, BLOCK_F)
    b_g = leaky_gradient(b_dx, b_low1, 0.0).to(p_g.dtype.element_ty)
    b_sum = tl.sum(tl.where(m_own, b_g.to(ACC), 0.0), axis=0)
    tl.store(p_db1 + o_db, b_sum, mask=o_f < F)
    b_own = tl.trans(tl.where(m_own, b_x, 0.0))
    b_dx = conv_of_tile_backward(b_g, p_w1, s_tap1, b_own, p_dw1, F, PITCH_W, ACC, PRECISION, BLOCK_W)
    m_dx = m_own & ((o_h + o_p // BLOCK_W < H) & (o_w + o_p % BLOCK_W < W))[:, None] & (o_f < F)[None, :]
    p_dx += i_b * s_b + (o_h.to(tl.int64) * W + o_w) * PITCH
    o_dx = ((o_p // BLOCK_W * W + o_p % BLOCK_W) * PITCH)[:, None] + o_f[None, :]
    tl.store(p_dx + o_dx, b_dx.to(p_g.dtype.element_ty), mask=m_dx)


@triton.jit
def pool_backward_kernel(
    p_g, p_index, p_dx, H, W, LOW_H, LOW_W, F, s_gb, s_gh, s_gw, s_ib, s_ih, s_iw, s_b, s_h, s_w,
    ACC: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """Each input pixel gathers, in a fixed order, from the at most nine windows that contain it."""
    wait_for_previous_launch()
    n_w = tl.cdiv(W, BLOCK_W)
    i_b = (tl.program_id(0) // (H * n_w)).to(tl.int64)
    i_y = tl.program_id(0) // n_w % H
    o_x = tl.program_id(0) % n_w * BLOCK_W + tl.arange(0, BLOCK_W)
    o_f = tl.arange(0, BLOCK_F)
    b_dx = tl.zeros([BLOCK_W, BLOCK_F], ACC)
    p_index += i_b * s_ib + (i_y // 3).to(tl.int64) * s_ih
    p_g += i_b * s_gb + (i_y // 3).to(tl.int64) * s_gh
    for i in range(9):
        o_top = i_y // 3 - i // 3
        o_left = o_x // 3 - i % 3
        o_tap = (i_y - 3 * o_top) * 7 + o_x - 3 * o_left
        m_row = (o_top >= 0) & (o_top < LOW_H) & (i_y - 3 * o_top < 7)
        m_window = m_row & (o_left >= 0) & (o_left < LOW_W) & (o_x - 3 * o_left < 7)
        m_window = m_window[:, None] & (o_f < F)[None, :]
        p_i = p_index + (o_left * s_iw - i // 3 * s_ih)[:, None] + o_f[None, :]
        b_index = tl.load(p_i, mask=m_window, other=-1).to(tl.int32)
        p_out = p_g + (o_left * s_gw - i // 3 * s_gh)[:, None] + o_f[None, :]
        b_g = tl.load(p_out, mask=m_window, other=0.0).to(ACC)
        b_dx += tl.where(b_index == o_tap[:, None], b_g, 0.0)
    p_pixel = p_dx + i_b * s_b + i_y.to(tl.int64) * s_h + (o_x * s_w)[:, None] + o_f[None, :]
    tl.store(p_pixel, b_dx.to(p_dx.dtype.element_ty), mask=(o_x < W)[:, None] & (o_f < F)[None, :])
