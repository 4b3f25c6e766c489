"""The ops amid PyTorch's own machinery: the compiler, autocast, checkpointing, second derivatives, opcheck."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.nn  # before any process group: its functions' default values would keep it, and gloo's threads
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import lmfn_kernels
from lmfn_kernels.rfdb.op import RFDB, Options
from lmfn_kernels.runtime.schema import to_arguments
from lmfn_kernels.testing import (
    assert_rounded,
    conv_case,
    conv_flat,
    differentiate,
    exactly,
    fuse_case,
    fuse_flat,
    gate_case,
    gate_flat,
    gradients_for,
    rfdb_case,
    rfdb_flat,
    stage_case,
    stage_flat,
)

BODIES = ["torch", "triton"]
CASES: dict[str, tuple[Any, list[Tensor]]] = {
    "conv3x3": (conv_flat(stride=2, activation="leaky_relu"), conv_case(1, 3, 2, 9, 8, torch.float32, stride=2)),
    "distill_stage": (stage_flat, stage_case(1, 6, 3, 9, 8, torch.float32)),
    "distill_fuse": (fuse_flat, fuse_case(1, 6, 3, 2, 9, 8, torch.float32)),
    "esa_gate": (gate_flat, gate_case(1, 6, 2, 9, 8, (2, 2), torch.float32)),
    "rfdb": (rfdb_flat, rfdb_case(1, 6, 3, 2, 15, 16, torch.float32)),
}


def same(one: tuple[list[Tensor], list[Tensor | None]], other: tuple[list[Tensor], list[Tensor | None]]) -> None:
    for a, b in zip([*one[0], *one[1]], [*other[0], *other[1]], strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)


def check_compiled(function: Callable[..., Any], tensors: list[Tensor], body: str, dynamic: bool | None = None) -> None:
    """One graph, forward and backward and without gradients, with the bits of the eager call."""
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    with lmfn_kernels.backend(body):
        same(differentiate(compiled, tensors), differentiate(function, tensors))
        with torch.inference_mode():
            torch.testing.assert_close(compiled(*tensors), function(*tensors), rtol=0, atol=0)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("name", CASES)
def test_compiles_whole(name: str, body: str) -> None:
    check_compiled(*CASES[name], body)


def test_compiles_for_any_size() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(rfdb_flat, fullgraph=True, backend="aot_eager", dynamic=True)
    for h, w in ((15, 16), (20, 31)):
        tensors = rfdb_case(2, 6, 3, 2, h, w, torch.float32)
        with lmfn_kernels.backend("torch"):
            same(differentiate(compiled, tensors), differentiate(rfdb_flat, tensors))


def test_inductor() -> None:
    """The default compiler's own code around the op."""
    torch._dynamo.reset()

    def call(x: Tensor, *flat: Tensor) -> Tensor:
        return rfdb_flat(x * 2, *flat).sin()

    tensors = rfdb_case(1, 6, 3, 2, 15, 16, torch.float32)
    with lmfn_kernels.backend("torch"):
        results, gradients = differentiate(torch.compile(call, fullgraph=True), tensors)
    exact, exact_gradients = exactly(call, tensors)
    assert_rounded("result", results[0], exact[0])
    for gradient, expected in zip(gradients, exact_gradients, strict=True):
        assert gradient is not None
        assert expected is not None
        assert_rounded("gradient", gradient, expected)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("name", CASES)
def test_opcheck(name: str, body: str, opcheck: Any) -> None:
    opcheck(*CASES[name][:2], body)


@pytest.mark.parametrize("body", BODIES)
def test_autocast(body: str) -> None:
    """Computed in autocast's dtype, gradients in each input's; as if cast by hand, but for the biases."""
    dtype = torch.bfloat16 if body == "torch" else torch.float16
    tensors = rfdb_case(1, 6, 3, 2, 15, 16, torch.float32)
    with lmfn_kernels.backend(body), torch.autocast("cpu", dtype):
        results, gradients = differentiate(rfdb_flat, tensors)
    assert results[0].dtype == dtype
    for tensor, gradient in zip(tensors, gradients, strict=True):
        assert gradient is not None
        assert gradient.dtype == tensor.dtype
        assert gradient.isfinite().all()
    exact, _ = exactly(rfdb_flat, [t.to(dtype) if t.ndim > 1 else t for t in tensors])
    assert_rounded("result", results[0], exact[0])


@pytest.mark.parametrize("body", BODIES)
def test_checkpoint(body: str) -> None:
    tensors = rfdb_case(1, 6, 3, 2, 15, 16, torch.float32)

    def call(*all_tensors: Tensor) -> Tensor:
        result: Tensor = checkpoint(rfdb_flat, *all_tensors, use_reentrant=False)
        return result

    with lmfn_kernels.backend(body):
        same(differentiate(call, tensors), differentiate(rfdb_flat, tensors))


@pytest.mark.parametrize("name", CASES)
def test_second_order_is_refused_clearly(name: str) -> None:
    function, tensors = CASES[name]
    leaves = [t.detach().requires_grad_() for t in tensors]

    def total() -> Tensor:
        results = function(*leaves)
        return sum((r.square().sum() for r in ([results] if isinstance(results, Tensor) else results)), torch.zeros(()))

    def second() -> Tensor:
        first = torch.autograd.grad(total(), leaves, create_graph=True)
        return torch.autograd.grad(first[0].square().sum(), leaves[0])[0]

    with lmfn_kernels.backend("torch"), pytest.raises(RuntimeError, match=f"{name} has no second-order gradients"):
        second()
    with lmfn_kernels.backend("reference"):
        assert second().isfinite().all()


def test_inference_keeps_nothing() -> None:
    _, tensors = CASES["rfdb"]
    with torch.no_grad():
        y = rfdb_flat(*(t.detach().requires_grad_() for t in tensors))
    assert y.grad_fn is None
    convs = [(*tensors[i : i + 2],) for i in range(1, len(tensors), 2)]
    arguments = to_arguments((tensors[0], *convs))
    assert len(RFDB.forward("torch", arguments, Options(0.05), False)) == 1


def test_inputs_are_left_alone() -> None:
    for function, tensors in CASES.values():
        before = [t.clone() for t in tensors]
        with lmfn_kernels.backend("torch"):
            differentiate(function, tensors)
        assert all(torch.equal(a, b) for a, b in zip(before, tensors, strict=True))


class Block(torch.nn.Module):
    def __init__(self, flat: list[Tensor]) -> None:
        super().__init__()
        self.flat = torch.nn.ParameterList(flat)

    def forward(self, x: Tensor) -> Tensor:
        return rfdb_flat(x, *self.flat)


def one_of_two(rank: int, folder: str) -> None:
    """A process that has one image of two, and the block in DistributedDataParallel."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    x, *flat, gradient = torch.load(f"{folder}/tensors.pt")
    found = {}
    for body in BODIES:
        with lmfn_kernels.backend(body), warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # one is of gradients whose strides are not their bucket's
            block = DistributedDataParallel(Block(flat))
            block(x[rank : rank + 1]).backward(gradient[rank : rank + 1])
        found[body] = [(p.grad, p.grad.stride() == p.stride()) for p in block.parameters() if p.grad is not None]
    torch.save(found, f"{folder}/found-{rank}.pt")
    del block  # as train.py does, and for its reason
    distributed.destroy_process_group()


def test_distributed_data_parallel(tmp_path: Path) -> None:
    """Two processes have the gradients of one, averaged, in the weights' strides, under both bodies."""
    tensors = rfdb_case(2, 6, 3, 2, 15, 15, torch.float32)
    tensors = [t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for t in tensors]
    exact, exact_gradients = exactly(rfdb_flat, tensors)
    torch.save([*tensors, *gradients_for([exact[0].value.float()])], tmp_path / "tensors.pt")
    torch.multiprocessing.spawn(one_of_two, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        for body, found in torch.load(tmp_path / f"found-{rank}.pt").items():
            for i, ((gradient, same_strides), expected) in enumerate(zip(found, exact_gradients[1:], strict=True)):
                assert expected is not None
                assert_rounded(f"{body}, weight {i}", 2 * gradient, expected)
                assert same_strides
