"""ALFM's and ACFM's ops amid PyTorch's own machinery: the compiler, autocast, checkpointing, opcheck."""

from typing import Any

import pytest
import torch
from test_ops import BODIES
from test_torch import check_compiled, same
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import lmfn_kernels
from lmfn_kernels.testing import (
    assert_rounded,
    attention_case,
    attention_flat,
    channel_gate_case,
    channel_gate_flat,
    differentiate,
    exactly,
    merge_case,
    merge_flat,
)


def in_parts(*tensors: Tensor) -> Tensor:
    maps = tensors[:2]
    return lmfn_kernels.layer_apply(maps, lmfn_kernels.layer_gram(maps), *tensors[2:])


CASES: dict[str, tuple[Any, list[Tensor]]] = {
    "layer_attention": (attention_flat(), attention_case(2, 2, 5, 3, 9, 8, torch.float32)),
    "cosine": (
        attention_flat("layers-cosine"),
        attention_case(1, 3, 5, 3, 9, 8, torch.float32, form="layers-cosine"),
    ),
    "parts": (in_parts, attention_case(1, 2, 5, 3, 9, 8, torch.float32)),
    "channel_gate": (channel_gate_flat(), channel_gate_case(1, 6, 9, 8, torch.float32)),
    "attention_merge": (merge_flat(), merge_case(1, 2, 6, 9, 8, torch.float32)),
    "full3d": (channel_gate_flat("full3d"), channel_gate_case(1, 6, 9, 8, torch.float32, form="full3d")),
}


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("name", CASES)
def test_compiles_whole(name: str, body: str) -> None:
    check_compiled(*CASES[name], body)


@pytest.mark.parametrize("name", ["layer_attention", "channel_gate", "attention_merge"])
def test_compiles_for_any_size(name: str) -> None:
    torch._dynamo.reset()
    function, _ = CASES[name]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    for h, w in ((15, 16), (20, 31)):
        if name == "channel_gate":
            tensors = channel_gate_case(2, 6, h, w, torch.float32)
        elif name == "attention_merge":
            tensors = merge_case(2, 2, 6, h, w, torch.float32)
        else:
            tensors = attention_case(2, 2, 5, 3, h, w, torch.float32)
        with lmfn_kernels.backend("torch"):
            same(differentiate(compiled, tensors), differentiate(function, tensors))


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("name", CASES)
def test_opcheck(name: str, body: str, opcheck: Any) -> None:
    opcheck(*CASES[name][:2], body)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("name", ["layer_attention", "parts", "channel_gate", "attention_merge"])
def test_autocast(name: str, body: str) -> None:
    """Computed in autocast's dtype, F F^T and the gate's weights in float32, gradients in each input's dtype."""
    dtype = torch.bfloat16 if body == "torch" else torch.float16
    function, tensors = CASES[name]
    with lmfn_kernels.backend(body), torch.autocast("cpu", dtype):
        results, gradients = differentiate(function, tensors)
        assert lmfn_kernels.layer_gram(tensors[:1]).dtype == torch.float32
    assert results[0].dtype == dtype
    for tensor, gradient in zip(tensors, gradients, strict=True):
        assert gradient is not None
        assert gradient.dtype == tensor.dtype
        assert gradient.isfinite().all()
    exact, _ = exactly(function, [t.to(dtype) if t.ndim == 4 else t for t in tensors])
    assert_rounded("result", results[0], exact[0])


def test_reference_under_autocast() -> None:
    """F F^T in float32 there too."""
    function, tensors = CASES["layer_attention"]
    with lmfn_kernels.backend("reference"), torch.autocast("cpu", torch.bfloat16):
        assert lmfn_kernels.layer_gram(tensors[:2]).dtype == torch.float32
        result = function(*tensors)
    exact, _ = exactly(function, [t.bfloat16() if t.ndim == 4 else t for t in tensors])
    assert_rounded("result", result, exact[0])


@pytest.mark.parametrize("name", ["layer_attention", "channel_gate"])
def test_checkpoint(name: str) -> None:
    function, tensors = CASES[name]

    def call(*all_tensors: Tensor) -> Tensor:
        result: Tensor = checkpoint(function, *all_tensors, use_reentrant=False)
        return result

    same(differentiate(call, tensors), differentiate(function, tensors))


@pytest.mark.parametrize("name", CASES)
def test_second_order_is_refused_clearly(name: str) -> None:
    function, tensors = CASES[name]
    leaves = [t.detach().requires_grad_() for t in tensors]

    def second() -> Tensor:
        first = torch.autograd.grad(function(*leaves).square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(first[0].square().sum(), leaves[0])[0]

    with lmfn_kernels.backend("torch"), pytest.raises(RuntimeError, match="has no second-order gradients"):
        second()
    with lmfn_kernels.backend("reference"):
        assert second().isfinite().all()


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("name", CASES)
def test_function_transforms(name: str, body: str) -> None:
    """torch.func.grad, and vmap over it, have the bits of autograd, one call after the other."""
    function, tensors = CASES[name]

    def loss(*all_tensors: Tensor) -> Tensor:
        result: Tensor = function(*all_tensors).square().sum()
        return result

    batches = [torch.stack([t, 0.9 * t]) for t in tensors]
    gradient = torch.func.grad(loss, argnums=tuple(range(len(tensors))))
    with lmfn_kernels.backend(body):
        together, values = torch.func.vmap(gradient)(*batches), torch.func.vmap(function)(*batches)
        for i in range(2):
            leaves = [batch[i].clone().requires_grad_() for batch in batches]
            alone = torch.autograd.grad(loss(*leaves), leaves)
            assert torch.equal(values[i], function(*leaves))
            for a, b, c in zip(together, gradient(*leaves), alone, strict=True):
                assert torch.equal(a[i], c)
                assert torch.equal(b, c)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("body", BODIES)
def test_weight_gradients_have_the_strides_of_weights(body: str, memory_format: torch.memory_format) -> None:
    """Or DistributedDataParallel would copy them."""
    function, tensors = CASES["layer_attention"]
    tensors = [t.contiguous(memory_format=memory_format) if t.ndim == 4 else t for t in tensors]
    with lmfn_kernels.backend(body):
        _, gradients = differentiate(function, tensors)
    for tensor, gradient in zip(tensors[2:], gradients[2:], strict=True):
        assert gradient is not None
        assert gradient.stride() == tensor.stride()


def test_inputs_are_left_alone_and_inference_keeps_nothing() -> None:
    for function, tensors in CASES.values():
        before = [t.clone() for t in tensors]
        with lmfn_kernels.backend("torch"), torch.no_grad():
            assert function(*(t.detach().requires_grad_() for t in tensors)).grad_fn is None
        differentiate(function, tensors)
        assert all(torch.equal(a, b) for a, b in zip(before, tensors, strict=True))
