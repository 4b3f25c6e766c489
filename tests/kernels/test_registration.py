"""Every op amid PyTorch's own machinery: the compiler, autocast, checkpoints, transforms, processes, opcheck."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import lmfn_kernels
from lmfn_kernels.runtime.registration import Op
from lmfn_kernels.runtime.torch_private import schema_text, tree_map_only
from lmfn_kernels.testing import (
    OPS,
    Size,
    assert_correct,
    assert_within_rounding,
    differentiate,
    gradients_for,
    reference_with_bounds,
)


def inputs_of(name: str, h: int = 9, w: int = 8, b: int = 1) -> list[Tensor]:
    return OPS[name].draw((b, 2, 6, h, w), torch.float32)


def loss(name: str, inputs: list[Tensor]) -> Tensor:
    """Of all results."""
    results = OPS[name].function(*inputs)
    return sum((r.square().sum() for r in ([results] if isinstance(results, Tensor) else results)), torch.zeros(()))


def same(one: tuple[list[Tensor], list[Tensor | None]], other: tuple[list[Tensor], list[Tensor | None]]) -> None:
    for a, b in zip([*one[0], *one[1]], [*other[0], *other[1]], strict=True):
        assert torch.equal(a, b)  # type: ignore[arg-type]


def compiled(name: str, **options: Any) -> Callable[..., Any]:
    torch.compiler.reset()
    return torch.compile(OPS[name].function, fullgraph=True, backend="aot_eager", **options)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("name", OPS)
def test_compiles_whole(name: str) -> None:
    """One graph, forward and backward and without gradients, with the bits of the eager call."""
    call, inputs = compiled(name), inputs_of(name)
    same(differentiate(call, inputs), differentiate(OPS[name].function, inputs))
    with torch.inference_mode():
        torch.testing.assert_close(call(*inputs), OPS[name].function(*inputs), rtol=0, atol=0)


@pytest.mark.parametrize("name", OPS)
def test_compiles_for_any_size(name: str) -> None:
    call = compiled(name, dynamic=True)
    for h, w in ((15, 16), (20, 31)):
        inputs = inputs_of(name, h, w)
        same(differentiate(call, inputs), differentiate(OPS[name].function, inputs))


def test_inductor() -> None:
    """The default compiler's own code around the op."""
    torch.compiler.reset()

    def call(x: Tensor, *flat: Tensor) -> Tensor:
        result: Tensor = OPS["rfdb"].function(x * 2, *flat).sin()
        return result

    assert_correct(torch.compile(call, fullgraph=True), inputs_of("rfdb"), formula=call)


@pytest.mark.parametrize("name", OPS)
def test_opcheck(name: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Schema and fakes of forward and backward as registered; the compiler traces them above."""
    calls: list[tuple[Any, tuple[Any, ...]]] = []
    forward, backward = Op.forward, Op.backward

    def seen_forward(op: Any, backend: str, arguments: Any, options: Any, save: bool) -> list[Tensor]:
        calls.append((getattr(torch.ops.lmfn, op.name).default, (backend, *arguments, *options, save)))
        return forward(op, backend, arguments, options, save)

    def seen_backward(
        op: Any, backend: str, gradients: Any, saved: Any, arguments: Any, options: Any, needs: Any
    ) -> list[Tensor]:
        flat = backend, *gradients, saved, *arguments, *options, list(needs)
        calls.append((getattr(torch.ops.lmfn, f"{op.name}_backward").default, flat))
        return backward(op, backend, gradients, saved, arguments, options, needs)

    inputs = inputs_of(name)
    with monkeypatch.context() as patch:
        patch.setattr(Op, "forward", seen_forward)
        patch.setattr(Op, "backward", seen_backward)
        differentiate(OPS[name].function, inputs, [i % 3 != 1 for i in range(len(inputs))])
    assert [call[1][0] for call in calls] == [backend] * 2
    for op, arguments in calls:
        arguments = tree_map_only(Tensor, torch.Tensor.detach, arguments)
        torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))


def test_schemas_name_the_arguments() -> None:
    """Which an exported program, a graph and an error of the dispatcher have."""
    assert str(torch.ops.lmfn.conv3x3.default._schema) == (
        "lmfn::conv3x3(str backend, Tensor x, Tensor weight, Tensor? bias, Tensor? residual, "
        "int stride, int padding, float slope, bool save) -> Tensor[]"
    )
    assert str(torch.ops.lmfn.stem_backward.default._schema) == (
        "lmfn::stem_backward(str backend, Tensor grad_y, Tensor[] saved, Tensor x, Tensor conv0_weight, "
        "Tensor conv0_bias, Tensor down_weight, Tensor down_bias, int padding, float slope, bool[] needs) -> Tensor[]"
    )
    assert "Tensor[] maps, Tensor? x, " in str(torch.ops.lmfn.attention_merge.default._schema)
    assert "Tensor distil_2_bias, Tensor refine_0_weight, " in str(schema_text(torch.ops.lmfn.rfdb.default))
    with pytest.raises(RuntimeError, match="argument 'weight'"):
        torch.ops.lmfn.conv3x3("torch", torch.zeros(1, 3, 4, 4), None, None, None, 1, 1, 1.0, False)


def test_profiles_and_graphs_name_the_op() -> None:
    inputs = [t.requires_grad_() for t in inputs_of("stem")]
    with torch.profiler.profile() as profile:
        y = OPS["stem"].function(*inputs)
        y.sum().backward()
    assert {"lmfn::stem", "lmfn::stem_backward"} <= {event.key for event in profile.key_averages()}
    assert y.grad_fn.name() == "lmfn::stemBackward"


@pytest.mark.parametrize("name", OPS)
def test_autocast(name: str, backend: str) -> None:
    """Computed in autocast's dtype but for sums and vectors (biases), gradients in each input's dtype."""
    dtype = torch.bfloat16 if backend == "torch" else torch.float16
    inputs = inputs_of(name)
    with torch.autocast("cpu", dtype):
        results, gradients = differentiate(OPS[name].function, inputs)
    assert all(result.dtype == OPS[name].result_dtype(dtype) for result in results)
    for t, gradient in zip(inputs, gradients, strict=True):
        assert gradient is not None
        assert gradient.dtype == t.dtype
        assert gradient.isfinite().all()
    rounded = [t.to(dtype) if t.ndim == 4 or t is inputs[0] else t for t in inputs]  # the first sets the bound
    references, _ = reference_with_bounds(OPS[name].function, rounded)
    for result, reference in zip(results, references, strict=True):
        # What is not rounded to 16 bits here, or there, is one rounding more or fewer.
        assert (result.double() - reference.value).abs().max() <= 3 * reference.largest.max()


def test_reference_under_autocast() -> None:
    """F F^T is in float32 there, too."""
    inputs = inputs_of("layer_attention")
    with lmfn_kernels.backend("reference"), torch.autocast("cpu", torch.bfloat16):
        assert lmfn_kernels.layer_gram(inputs[:2]).dtype == torch.float32
        result = OPS["layer_attention"].function(*inputs)
    rounded = [t.bfloat16() if t.ndim == 4 else t for t in inputs]
    (reference,), _ = reference_with_bounds(OPS["layer_attention"].function, rounded)
    assert_within_rounding("result", result, reference)


@pytest.mark.parametrize("name", OPS)
def test_checkpoint(name: str) -> None:
    def call(*inputs: Tensor) -> Any:
        return checkpoint(OPS[name].function, *inputs, use_reentrant=False)

    inputs = inputs_of(name)
    same(differentiate(call, inputs), differentiate(OPS[name].function, inputs))


@pytest.mark.parametrize("name", OPS)
def test_second_order_is_refused_clearly(name: str) -> None:
    """Where it is taken: `create_graph=True` alone is no error."""
    leaves = [t.requires_grad_() for t in inputs_of(name)]

    def second() -> Tensor:
        first = torch.autograd.grad(loss(name, leaves), leaves, create_graph=True)
        return torch.autograd.grad(first[0].square().sum(), leaves[0])[0]

    op = name.split("-")[0].replace("layer_apply", "layer_attention")
    with pytest.raises(RuntimeError, match=f'{op} has no second-order gradients; .*backend."reference".'):
        second()
    with lmfn_kernels.backend("reference"):
        assert second().isfinite().all()


@pytest.mark.parametrize("name", OPS)
def test_function_transforms(name: str) -> None:
    """torch.func.grad has the bits of autograd, and vmap, which makes one call after the other, its values: the last
    bits of PyTorch's own products depend on where in memory the factors begin."""
    inputs = inputs_of(name, b=2)
    batches = [torch.stack([t, 0.9 * t]) for t in inputs]
    gradient = torch.func.grad(lambda *leaves: loss(name, list(leaves)), argnums=tuple(range(len(inputs))))
    together = torch.func.vmap(gradient)(*batches)
    values = torch.func.vmap(lambda *leaves: loss(name, list(leaves)))(*batches)
    for i in range(2):
        leaves = [batch[i].clone().requires_grad_() for batch in batches]
        torch.testing.assert_close(values[i], loss(name, leaves), rtol=1e-5, atol=0)
        alone = torch.autograd.grad(loss(name, leaves), leaves)
        for a, b, c in zip(together, gradient(*leaves), alone, strict=True):
            torch.testing.assert_close(a[i], c, rtol=1e-5, atol=1e-4)
            assert torch.equal(b, c)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("name", OPS)
def test_without_gradients_nothing_is_saved(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    call = Op.__call__

    def watched(op: Any, *arguments: Any) -> tuple[Tensor, ...]:
        forward = op._forward

        def seen(functions: Any, inputs: Any, options: Any, save: bool) -> tuple[list[Tensor], list[Tensor]]:
            outputs, saved = forward(functions, inputs, options, save)
            written.append(sum(t.nbytes for t in saved))
            return outputs, saved

        with monkeypatch.context() as patch:
            patch.setattr(op, "_forward", seen)
            return call(op, *arguments)

    monkeypatch.setattr(Op, "__call__", watched)
    with torch.no_grad():
        results = OPS[name].function(*(t.requires_grad_() for t in inputs_of(name)))
    assert all(r.grad_fn is None for r in ([results] if isinstance(results, Tensor) else results))
    assert written
    assert not any(written)


class Block(torch.nn.Module):
    def __init__(self, flat: list[Tensor]) -> None:
        super().__init__()
        self.flat = torch.nn.ParameterList(flat)

    def forward(self, x: Tensor) -> Any:
        return OPS["rfdb"].function(x, *self.flat)


def one_of_two(rank: int, folder: str) -> None:
    """A process that has one image of two, and the block in DistributedDataParallel."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    x, *flat, gradient = torch.load(f"{folder}/tensors.pt")
    found = {}
    for backend in ("torch", "triton"):
        with lmfn_kernels.backend(backend), warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # one is of gradients whose strides are not their bucket's
            block = DistributedDataParallel(Block(flat))
            block(x[rank : rank + 1]).backward(gradient[rank : rank + 1])
        found[backend] = [(p.grad, p.grad.stride() == p.stride()) for p in block.parameters() if p.grad is not None]
    torch.save(found, f"{folder}/found-{rank}.pt")
    del block  # as train.py does, and for its reason
    distributed.destroy_process_group()


def test_distributed_data_parallel(tmp_path: Path) -> None:
    """Two processes have the gradients of one, averaged, in the weights' strides, under both backends."""
    inputs = OPS["rfdb"].inputs(Size(2, 1, 6, 15, 15), torch.float32)
    inputs = [t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for t in inputs]
    references, of_gradients = reference_with_bounds(OPS["rfdb"].function, inputs)
    torch.save([*inputs, *gradients_for([references[0].value.float()])], tmp_path / "tensors.pt")
    torch.multiprocessing.spawn(one_of_two, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        for backend, found in torch.load(tmp_path / f"found-{rank}.pt").items():
            for i, ((gradient, same_strides), reference) in enumerate(zip(found, of_gradients[1:], strict=True)):
                assert reference is not None
                assert_within_rounding(f"{backend}, weight {i}", 2 * gradient, reference)
                assert same_strides
