"""Kernels of convolutions. Names and conventions as in `runtime/kernels.py`; weights are [taps, inputs, outputs]."""

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
    store_padded,
    store_pixels,
    wait_for_previous_launch,
)


@triton.jit
def parity_taps(
    b_out, t_x, t_act, t_w, i_b, o_h, o_w, o_n,
    ODD_H: tl.constexpr, ODD_W: tl.constexpr, SIGN: tl.constexpr, PADDING: tl.constexpr, ACT_SLOPE: tl.constexpr,
    K: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Add the taps of a 3x3 convolution of stride 2 that read input rows and columns of one parity.

    Tap i of output row h reads input row 2h + i - PADDING, row h + (i - PADDING - ODD_H) / 2 of those of its parity.
    SIGN is 1 for the convolution, a sum over inputs, and -1 for its input gradient, a sum over outputs.

    The convolution's `b_out` is [outputs, pixels]: with pixels as the left operand, in registers, one loop after
    another makes ptxas serialize all wgmma of the kernel.
    """
    FIRST_I: tl.constexpr = (ODD_H + PADDING) % 2
    FIRST_J: tl.constexpr = (ODD_W + PADDING) % 2
    N_J: tl.constexpr = 2 - FIRST_J
    N_K: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    for i_step in tl.range(0, (2 - FIRST_I) * N_J * N_K, num_stages=STAGES):
        o_k = i_step % N_K * BLOCK_K
        i = FIRST_I + i_step // N_K // N_J * 2
        j = FIRST_J + i_step // N_K % N_J * 2
        o_x = o_h + SIGN * ((i - PADDING - ODD_H) // 2)
        o_y = o_w + SIGN * ((j - PADDING - ODD_W) // 2)
        b_x = load_pixels(t_x, i_b, o_x, o_y, o_k)
        if t_act is not None:
            b_x = leaky_gradient(b_x, load_pixels(t_act, i_b, o_x, o_y, o_k), ACT_SLOPE)
        if SIGN == 1:
            b_left, b_right = tl.trans(load_weight(t_w, i * 3 + j, o_k, o_n)), tl.trans(b_x)
        else:
            b_left, b_right = b_x, tl.trans(load_weight(t_w, i * 3 + j, o_n, o_k))
        b_out = tl.dot(b_left, b_right, b_out, input_precision=PRECISION, out_dtype=b_out.dtype)
    return b_out


@triton.jit
def conv_kernel(
    t_x,
    t_x01,
    t_x10,
    t_x11,
    t_act,
    t_w,
    p_bias,
    t_residual,
    t_residual_act,
    t_z,
    t_mask,
    t_out,
    t_dw,
    p_dbias,
    t_d,
    H,
    W,
    N,
    D,
    K: tl.constexpr,
    TAPS: tl.constexpr,
    MODE: tl.constexpr,
    PADDING: tl.constexpr,
    SLOPE: tl.constexpr,
    ACT_SLOPE: tl.constexpr,
    MASK_SLOPE: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
):
    """out = leaky(conv(x) + bias + residual), 1x1 or 3x3, or an input gradient, with the operations fused into either.

    MODE: `same` is stride 1; `down` is stride 2, with the input's even and odd rows and columns in four descriptors;
    `back` is the input gradient of `same`. K and N are the channels of x and out. Weights are stored as for the forward
    pass; `back` transposes them.
    `t_act`: x is the gradient of an activation with this output; its mask is applied as x is loaded.
    `t_z`: the gradient of the output of a 1x1 convolution with weight `t_dw`; its input gradient is added.
    `t_mask`: the output of the activation that produced the convolution's input; out is the gradient before it.
    `t_d`: a second output, leaky(conv1x1(residual) + bias), from the residual tile, which is in registers already.
    """
    wait_for_previous_launch()
    i_b, o_h, o_w = pixel_tile(tl.program_id(0), H, W, BLOCK_H, BLOCK_W)
    o_n = tl.program_id(1) * BLOCK_N
    b_out = tl.zeros([BLOCK_H * BLOCK_W, BLOCK_N], ACC)
    if MODE == "same" or MODE == "back":
        n_k: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
        for i in tl.range(0, TAPS * TAPS * n_k, num_stages=STAGES):
            i_tap = i // n_k
            o_k = i % n_k * BLOCK_K
            o_x = o_h + i_tap // TAPS - PADDING
            o_y = o_w + i_tap % TAPS - PADDING
            b_x = load_pixels(t_x, i_b, o_x, o_y, o_k)
            if t_act is not None:
                b_x = leaky_gradient(b_x, load_pixels(t_act, i_b, o_x, o_y, o_k), ACT_SLOPE)
            if MODE == "same":
                b_w = load_weight(t_w, i_tap, o_k, o_n)
            else:
                b_w = tl.trans(load_weight(t_w, TAPS * TAPS - 1 - i_tap, o_n, o_k))
            b_out = tl.dot(b_x, b_w, b_out, input_precision=PRECISION, out_dtype=ACC)
    else:
        b_out = tl.trans(b_out)
        b_out = parity_taps(
            b_out, t_x, None, t_w, i_b, o_h, o_w, o_n, 0, 0, 1, PADDING, ACT_SLOPE, K, BLOCK_K, PRECISION, STAGES
        )  # fmt: skip
        b_out = parity_taps(
            b_out, t_x01, None, t_w, i_b, o_h, o_w, o_n, 0, 1, 1, PADDING, ACT_SLOPE, K, BLOCK_K, PRECISION, STAGES
        )  # fmt: skip
        b_out = parity_taps(
            b_out, t_x10, None, t_w, i_b, o_h, o_w, o_n, 1, 0, 1, PADDING, ACT_SLOPE, K, BLOCK_K, PRECISION, STAGES
        )  # fmt: skip
        b_out = parity_taps(
            b_out, t_x11, None, t_w, i_b, o_h, o_w, o_n, 1, 1, 1, PADDING, ACT_SLOPE, K, BLOCK_K, PRECISION, STAGES
        )  # fmt: skip
        b_out = tl.trans(b_out)
    if t_z is not None:
        b_z = load_pixels(t_z, i_b, o_h, o_w, 0)
        b_dw = tl.trans(load_weight(t_dw, 0, o_n, 0))
        b_out = tl.dot(b_z, b_dw, b_out, input_precision=PRECISION, out_dtype=ACC)
    if p_bias is not None:
        b_out += load_bias(p_bias, o_n, N, BLOCK_N, ACC)
    if t_residual is not None:
        b_residual = load_pixels(t_residual, i_b, o_h, o_w, o_n)
        if t_residual_act is not None:
            b_residual = leaky_gradient(b_residual, load_pixels(t_residual_act, i_b, o_h, o_w, o_n), ACT_SLOPE)
        b_out += b_residual.to(ACC)
        if t_d is not None:
            b_d = tl.dot(b_residual, load_weight(t_dw, 0, 0, 0), input_precision=PRECISION, out_dtype=ACC)
            b_d += load_bias(p_dbias, 0, D, BLOCK_D, ACC)
            store_padded(t_d, i_b, o_h, o_w, 0, D, leaky(b_d, SLOPE))
    b_out = leaky(b_out, SLOPE)
    if t_mask is not None:
        b_out = leaky_gradient(b_out, load_pixels(t_mask, i_b, o_h, o_w, o_n), MASK_SLOPE)
    store_padded(t_out, i_b, o_h, o_w, o_n, N, b_out)


@triton.jit
def input_gradient_of_parity(
    b_dx, t_dx, t_add, t_g, t_act, t_w, i_b, o_h, o_w, o_n, ODD_H: tl.constexpr, ODD_W: tl.constexpr,
    PADDING: tl.constexpr, ACT_SLOPE: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """A tile of the gradient of the input pixels of one parity, `t_dx`, which is None if there are no such pixels."""
    if t_dx is not None:
        b_dx = parity_taps(
            b_dx, t_g, t_act, t_w, i_b, o_h, o_w, o_n, ODD_H, ODD_W, -1,
            PADDING, ACT_SLOPE, K, BLOCK_K, PRECISION, STAGES,
        )  # fmt: skip
        if t_add is not None:
            b_dx += load_pixels(t_add, i_b, o_h, o_w, o_n).to(b_dx.dtype)
        store_pixels(t_dx, i_b, o_h, o_w, o_n, b_dx)


@triton.jit
def stride_2_input_gradient_kernel(
    t_g, t_act, t_w, t_dx, t_dx01, t_dx10, t_dx11, t_add, t_add01, t_add10, t_add11, H, W,
    K: tl.constexpr, PADDING: tl.constexpr, ACT_SLOPE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The input gradient of a 3x3 convolution of stride 2, plus another gradient `t_add` if it is given.

    Each program computes input pixels of one parity along both axes. Only the taps of the same parity contribute to
    them, so nothing is multiplied by zeros inserted between pixels. `t_dx` to `t_dx11`, and `t_add` to `t_add11`, hold
    the even and odd rows and columns; H and W are the numbers of even ones.
    """
    wait_for_previous_launch()
    i_b, o_h, o_w = pixel_tile(tl.program_id(0), H, W, BLOCK_H, BLOCK_W)
    o_n = tl.program_id(1) * BLOCK_N
    i_parity = tl.program_id(2)
    b_dx = tl.zeros([BLOCK_H * BLOCK_W, BLOCK_N], ACC)
    if i_parity == 0:
        input_gradient_of_parity(
            b_dx, t_dx, t_add, t_g, t_act, t_w, i_b, o_h, o_w, o_n, 0, 0,
            PADDING, ACT_SLOPE, K, PRECISION, BLOCK_K, STAGES,
        )  # fmt: skip
    elif i_parity == 1:
        input_gradient_of_parity(
            b_dx, t_dx01, t_add01, t_g, t_act, t_w, i_b, o_h, o_w, o_n, 0, 1,
            PADDING, ACT_SLOPE, K, PRECISION, BLOCK_K, STAGES,
        )  # fmt: skip
    elif i_parity == 2:
        input_gradient_of_parity(
            b_dx, t_dx10, t_add10, t_g, t_act, t_w, i_b, o_h, o_w, o_n, 1, 0,
            PADDING, ACT_SLOPE, K, PRECISION, BLOCK_K, STAGES,
        )  # fmt: skip
    else:
        input_gradient_of_parity(
            b_dx, t_dx11, t_add11, t_g, t_act, t_w, i_b, o_h, o_w, o_n, 1, 1,
            PADDING, ACT_SLOPE, K, PRECISION, BLOCK_K, STAGES,
        )  # fmt: skip


@triton.jit
def stride_2_row(
    t_g, t_act, t_even, t_odd, i_split, o_row, o_k, o_n, B, H, W, SPLITS,
    PADDING: tl.constexpr, SLOPE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Partial sums of the weight gradient for one row of taps at stride 2, whose input rows are all of one parity.

    `t_even` and `t_odd` hold the even and odd columns of those rows.
    """
    b_dw0 = tl.zeros([BLOCK_K, BLOCK_N], ACC)
    b_dw1 = tl.zeros([BLOCK_K, BLOCK_N], ACC)
    b_dw2 = tl.zeros([BLOCK_K, BLOCK_N], ACC)
    b_db = tl.zeros([BLOCK_N], ACC)
    n_tiles = B * tl.cdiv(H, BLOCK_H) * tl.cdiv(W, BLOCK_W)
    for i_tile in tl.range(i_split, n_tiles, SPLITS, num_stages=STAGES):
        i_b, o_h, o_w = pixel_tile(i_tile, H, W, BLOCK_H, BLOCK_W)
        b_g = load_pixels(t_g, i_b, o_h, o_w, o_n)
        if t_act is not None:
            b_g = leaky_gradient(b_g, load_pixels(t_act, i_b, o_h, o_w, o_n), SLOPE)
        # Tap (i, j) of output (h, w) is pixel (2h + i - PADDING, 2w + j - PADDING).
        if PADDING == 0:
            b_x0 = load_pixels(t_even, i_b, o_h + o_row, o_w, o_k)
            b_x1 = load_pixels(t_odd, i_b, o_h + o_row, o_w, o_k)
            b_x2 = load_pixels(t_even, i_b, o_h + o_row, o_w + 1, o_k)
        else:
            b_x0 = load_pixels(t_odd, i_b, o_h + o_row, o_w - 1, o_k)
            b_x1 = load_pixels(t_even, i_b, o_h + o_row, o_w, o_k)
            b_x2 = load_pixels(t_odd, i_b, o_h + o_row, o_w, o_k)
        b_dw0 = tl.dot(tl.trans(b_x0), b_g, b_dw0, input_precision=PRECISION, out_dtype=ACC)
        b_dw1 = tl.dot(tl.trans(b_x1), b_g, b_dw1, input_precision=PRECISION, out_dtype=ACC)
        b_dw2 = tl.dot(tl.trans(b_x2), b_g, b_dw2, input_precision=PRECISION, out_dtype=ACC)
        b_db += tl.sum(b_g.to(ACC), axis=0)
    return b_dw0, b_dw1, b_dw2, b_db


@triton.jit
def stride_1_row(
    t_g, t_act, t_x, i_split, o_row, o_k, o_n, B, H, W, SPLITS,
    TAPS: tl.constexpr, PADDING: tl.constexpr, SLOPE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Partial sums of the weight gradient for one row of taps, which reads input rows `o_row` below the output's."""
    b_dw0 = tl.zeros([BLOCK_K, BLOCK_N], ACC)
    b_dw1 = tl.zeros([BLOCK_K, BLOCK_N], ACC)
    b_dw2 = tl.zeros([BLOCK_K, BLOCK_N], ACC)
    b_db = tl.zeros([BLOCK_N], ACC)
    n_tiles = B * tl.cdiv(H, BLOCK_H) * tl.cdiv(W, BLOCK_W)
    for i_tile in tl.range(i_split, n_tiles, SPLITS, num_stages=STAGES):
        i_b, o_h, o_w = pixel_tile(i_tile, H, W, BLOCK_H, BLOCK_W)
        b_g = load_pixels(t_g, i_b, o_h, o_w, o_n)
        if t_act is not None:
            b_g = leaky_gradient(b_g, load_pixels(t_act, i_b, o_h, o_w, o_n), SLOPE)
        b_x = load_pixels(t_x, i_b, o_h + o_row, o_w - PADDING, o_k)
        b_dw0 = tl.dot(tl.trans(b_x), b_g, b_dw0, input_precision=PRECISION, out_dtype=ACC)
        if TAPS == 3:
            b_x = load_pixels(t_x, i_b, o_h + o_row, o_w + 1 - PADDING, o_k)
            b_dw1 = tl.dot(tl.trans(b_x), b_g, b_dw1, input_precision=PRECISION, out_dtype=ACC)
            b_x = load_pixels(t_x, i_b, o_h + o_row, o_w + 2 - PADDING, o_k)
            b_dw2 = tl.dot(tl.trans(b_x), b_g, b_dw2, input_precision=PRECISION, out_dtype=ACC)
        b_db += tl.sum(b_g.to(ACC), axis=0)
    return b_dw0, b_dw1, b_dw2, b_db


@triton.jit
def store_row(
    p_dw, p_db, b_dw0, b_dw1, b_dw2, b_db, i_split, i_row, o_k, o_n, K, N,
    TAPS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Store the partial sums of a row of taps, and with the first row those of the bias."""
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


@triton.jit
def weight_gradient_kernel(
    t_g, t_act, t_x, t_x01, t_x10, t_x11, p_dw, p_db, t_g2, t_act2, p_dw2, p_db2, B, H, W, K, N, N2, SPLITS,
    TAPS: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, SLOPE: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """X^T G over pixels for one row of taps, and the sum of G: one partial sum per program, over every SPLITS-th tile.

    `t_g` [B, H, W, N] is the gradient of the activation's output `t_act`, or without an activation (None) of the
    convolution's. `t_x` is the input; with stride 2, four descriptors hold its even and odd rows and columns.
    `t_g2` [B, H, W, N2], `t_act2`: the same of a 1x1 convolution of the same input, with stride 1, whose gradient the
    programs of a row after the last one compute.
    """
    wait_for_previous_launch()
    i_split = tl.program_id(0)
    i_row = tl.program_id(1)
    n_blocks = tl.cdiv(N, BLOCK_N)
    o_k = tl.program_id(2) // n_blocks * BLOCK_K
    o_n = tl.program_id(2) % n_blocks * BLOCK_N
    if t_g2 is not None:  # noqa: SIM102  (decided when compiled, unlike the row)
        if i_row == TAPS:
            b_dw0, b_dw1, b_dw2, b_db = stride_1_row(
                t_g2, t_act2, t_x, i_split, 0, o_k, o_n, B, H, W, SPLITS,
                1, 0, SLOPE, ACC, PRECISION, BLOCK_H, BLOCK_W, BLOCK_K, BLOCK_N, STAGES,
            )  # fmt: skip
            store_row(p_dw2, p_db2, b_dw0, b_dw1, b_dw2, b_db, i_split, 0, o_k, o_n, K, N2, 1, BLOCK_K, BLOCK_N)
            return
    if STRIDE == 2:
        # floor((i_row - PADDING) / 2): the 2 keeps the dividend from being negative.
        o_row = (i_row - PADDING + 2) // 2 - 1
        if (i_row + PADDING) % 2 == 0:
            b_dw0, b_dw1, b_dw2, b_db = stride_2_row(
                t_g, t_act, t_x, t_x01, i_split, o_row, o_k, o_n, B, H, W, SPLITS,
                PADDING, SLOPE, ACC, PRECISION, BLOCK_H, BLOCK_W, BLOCK_K, BLOCK_N, STAGES,
            )  # fmt: skip
        else:
            b_dw0, b_dw1, b_dw2, b_db = stride_2_row(
                t_g, t_act, t_x10, t_x11, i_split, o_row, o_k, o_n, B, H, W, SPLITS,
                PADDING, SLOPE, ACC, PRECISION, BLOCK_H, BLOCK_W, BLOCK_K, BLOCK_N, STAGES,
            )  # fmt: skip
    else:
        b_dw0, b_dw1, b_dw2, b_db = stride_1_row(
            t_g, t_act, t_x, i_split, i_row - PADDING, o_k, o_n, B, H, W, SPLITS,
            TAPS, PADDING, SLOPE, ACC, PRECISION, BLOCK_H, BLOCK_W, BLOCK_K, BLOCK_N, STAGES,
        )  # fmt: skip
    store_row(p_dw, p_db, b_dw0, b_dw1, b_dw2, b_db, i_split, i_row, o_k, o_n, K, N, TAPS, BLOCK_K, BLOCK_N)
