"""Counts of host operations; `tests/kernels/launched.py` runs `python -m bench host`."""

import torch

import lmfn_kernels
from bench.host import Launches
from lmfn_kernels.cases import conv_inputs, rfdb_from_flat, rfdb_inputs, stage_from_flat, stage_inputs
from lmfn_kernels.runtime import launch


def test_what_is_counted() -> None:
    """Counts our kernels and PyTorch's operations that write memory; an operation on a list counts once per kernel it
    needs."""
    x, weight, bias, residual = conv_inputs(1, 3, 2, 6, 7, torch.float32)
    with lmfn_kernels.backend("triton"), Launches() as launched:
        lmfn_kernels.conv3x3(x, weight, bias, residual)
    assert launched.ours == 2, "the weight's layout, and the convolution"
    assert set(launched.others) <= {"copy_"}, "of images, into the layout that kernels read"
    with Launches() as launched:
        torch.empty(3).view(1, 3).expand(2, 3)
        torch.empty(3)[:0].add_(1)
    assert launched.total == 0
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(37)]
    for parameter in parameters:
        parameter.grad = torch.ones(2)
    adam = torch.optim.Adam(parameters, fused=True)
    adam.step()
    with Launches() as launched:
        adam.step()
    assert launched.others == {"_fused_adam_": 2, "_foreach_add_": 1}


def test_backward_fills_no_zeros() -> None:
    """Backward writes no zeros for unused outputs, and yet returns zero gradients where the formula has them."""
    tensors = [t.requires_grad_() for t in rfdb_inputs(1, 6, 3, 2, 15, 16, torch.float32)]
    stage = [t.requires_grad_() for t in stage_inputs(1, 6, 3, 9, 8, torch.float32)]
    for backend in ("torch", "triton"):
        with lmfn_kernels.backend(backend):
            y, (first, _) = rfdb_from_flat(*tensors), stage_from_flat(*stage)
        gradient = torch.ones_like(y)
        with Launches() as launched:
            y.backward(gradient)
        assert not {"zeros", "fill_", "zero_"} & launched.others.keys()
        found = torch.autograd.grad(first.sum(), stage[:2])
        with lmfn_kernels.backend("reference"):
            expected = torch.autograd.grad(stage_from_flat(*stage)[0].sum(), stage[:2], materialize_grads=True)
        torch.testing.assert_close(found, expected)


def test_windows_need_no_more_launches() -> None:
    """The attention's launches, and none of PyTorch's, whether there is one window or several."""
    n, b, c = 2, 1, 16  # channels that descriptors can read without a copy
    maps = [x.contiguous(memory_format=torch.channels_last) for x in torch.rand(n, b, c, 33, 20)]
    theta, weight, bias = torch.ones(1), torch.rand(c, n * c, 1, 1), torch.zeros(c)
    counts = []
    for window in (None, 32):
        # Without the interpreter, which makes copies of its own.
        with launch.intercepting(lambda *_: None), lmfn_kernels.backend("triton"), Launches() as launched:
            lmfn_kernels.layer_attention(maps, theta, weight, bias, window=window)
        assert not launched.others
        counts.append(launched.ours)
    assert counts == [5, 5], "F F^T by parts and summed, attention, its product with the weight, and with the maps"
