"""ACFM's op under every backend against the written formula in float64."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_memory import GUARD, far_apart, poisoned, surrounded  # noqa: F401  (a fixture)
from test_ops import BODIES, GRID, check
from torch import Tensor

import lmfn_kernels
from lmfn_kernels.acfm import torch_backend
from lmfn_kernels.testing import (
    assert_rounded,
    channel_gate_case,
    channel_gate_flat,
    differentiate,
    exactly,
    merge_case,
    merge_flat,
    random,
)

FORMS = ["pseudo3d", "full3d"]


@pytest.fixture(autouse=True)
def _small_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small images have several strips."""
    monkeypatch.setattr(torch_backend, "VALUES", 400)


@pytest.mark.parametrize(("body", "dtype"), GRID)
@pytest.mark.parametrize("form", FORMS)
def test_channel_gate(body: str, dtype: torch.dtype, form: str) -> None:
    check(body, channel_gate_flat(form), channel_gate_case(2, 6, 9, 19, dtype, form=form))


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("c", "h", "w"), [(1, 1, 1), (1, 1, 5), (2, 4, 1), (3, 17, 33), (64, 3, 4)])
def test_sizes(body: str, form: str, c: int, h: int, w: int) -> None:
    check(body, channel_gate_flat(form), channel_gate_case(1, c, h, w, torch.float32, form=form))


@pytest.mark.parametrize("form", FORMS)
def test_many_channels(form: str) -> None:
    tensors = channel_gate_case(1, 130, 4, 5, torch.float64, form=form)
    check("torch", channel_gate_flat(form), tensors)
    with (
        lmfn_kernels.backend("triton"),
        pytest.raises(ValueError, match="130 channels, and the kernels hold at most 64"),
    ):
        channel_gate_flat(form)(*tensors)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("form", FORMS)
def test_merge(body: str, form: str) -> None:
    """What is added is added; without it the gate is alone."""
    x, alpha, *weights, add = channel_gate_case(1, 5, 6, 7, torch.float64, form=form)
    gate = lmfn_kernels.Full3D(*weights) if form == "full3d" else lmfn_kernels.Pseudo3D(*weights)
    with lmfn_kernels.backend(body):
        alone = lmfn_kernels.channel_gate(x, gate, alpha)
        torch.testing.assert_close(lmfn_kernels.channel_gate(x, gate, alpha, add), alone + add, rtol=1e-14, atol=1e-14)
        assert torch.equal(lmfn_kernels.channel_gate(x, gate, alpha * 0), x), "at alpha 0 it is the identity"


@pytest.mark.parametrize("body", BODIES)
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_kind(body: str, data: st.DataObject) -> None:
    """Shapes, strides, dtypes, forms, and which inputs need gradients."""
    torch.manual_seed(0)
    b, c = data.draw(st.integers(1, 2), label="b"), data.draw(st.integers(1, 9), label="c")
    h, w = data.draw(st.integers(1, 12), label="h"), data.draw(st.integers(1, 20), label="w")
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32]), label="dtype")
    form = data.draw(st.sampled_from(FORMS), label="form")
    tensors = channel_gate_case(b, c, h, w, dtype, form=form)
    for i in (0, -1):
        kind = data.draw(
            st.sampled_from(["plain", "channels_last", "sliced", "expanded", "transposed"]), label="memory"
        )
        if kind == "channels_last":
            tensors[i] = tensors[i].contiguous(memory_format=torch.channels_last)
        elif kind == "sliced":
            tensors[i] = random((b, c + 3, h + 2, w + 1), dtype)[:, 2:-1, 1:-1, 1:]
        elif kind == "expanded":
            tensors[i] = random((1, c, h, 1), dtype).expand(b, c, h, w)
        elif kind == "transposed":
            tensors[i] = random((b, c, w, h), dtype).mT
    needs = data.draw(st.lists(st.booleans(), min_size=len(tensors), max_size=len(tensors)), label="needs")
    check(body, channel_gate_flat(form), tensors, needs)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("form", FORMS)
def test_gradcheck(body: str, form: str) -> None:
    leaves = [t.requires_grad_() for t in channel_gate_case(1, 3, 3, 5, torch.float64, form=form)]
    with lmfn_kernels.backend(body):
        assert torch.autograd.gradcheck(channel_gate_flat(form), leaves, fast_mode=True)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("form", FORMS)
def test_same_bits(body: str, form: str) -> None:
    tensors = channel_gate_case(1, 6, 17, 21, torch.float32, form=form)
    with lmfn_kernels.backend(body):
        first, again = (differentiate(channel_gate_flat(form), tensors) for _ in range(2))
    for a, b in zip([*first[0], *first[1]], [*again[0], *again[1]], strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)


@pytest.mark.parametrize(("body", "dtype"), GRID)
@pytest.mark.parametrize(("form", "rows"), [("pseudo3d", "channels"), ("full3d", "layers"), ("full3d", "channels")])
def test_attention_is_added(body: str, dtype: torch.dtype, form: str, rows: str) -> None:
    check(body, merge_flat(form, rows), merge_case(2, 3, 6, 9, 19, dtype, form=form))


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize(("n", "c", "h", "w"), [(1, 1, 1, 1), (8, 3, 1, 5), (4, 50, 3, 4), (2, 64, 5, 3)])
def test_attention_of_any_size(body: str, n: int, c: int, h: int, w: int) -> None:
    check(body, merge_flat(slope=1.0), merge_case(1, n, c, h, w, torch.float32))


@pytest.mark.parametrize(("body", "dtype"), GRID)
def test_merge_with_attention_in_windows(body: str, dtype: torch.dtype) -> None:
    check(body, merge_flat(window=32), merge_case(1, 2, 3, 20, 35, dtype))


def test_attention_of_many_channels_is_two_ops() -> None:
    """ALFM's kernels take what the gate's do not."""
    tensors = merge_case(1, 2, 70, 3, 4, torch.float64)
    check("torch", merge_flat(), tensors)
    with (
        lmfn_kernels.backend("triton"),
        pytest.raises(ValueError, match="70 channels, and the kernels hold at most 64"),
    ):
        merge_flat()(*tensors)


@pytest.mark.parametrize("body", BODIES)
@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_attention_for_any_gradients(body: str, data: st.DataObject) -> None:
    """And of maps that lie in any way, x being one of them, as in the network, or not."""
    torch.manual_seed(0)
    b, c, h, w = 2, 4, 7, 11
    tensors = merge_case(b, 2, c, h, w, torch.float64)
    tensors[0] = random((b, c + 3, h + 2, w + 1), torch.float64)[:, 2:-1, 1:-1, 1:]
    tensors[6] = random((1, c, h, 1), torch.float64).expand(b, c, h, w)
    needs = data.draw(st.lists(st.booleans(), min_size=len(tensors), max_size=len(tensors)), label="needs")
    check(body, merge_flat(), tensors, needs)

    def shared(*others: Tensor) -> Tensor:
        result: Tensor = merge_flat()(others[5 + place], *others)
        return result

    place = data.draw(st.sampled_from([0, 1]), label="place of x among the maps")
    check(body, shared, tensors[1:], needs[1:])


@pytest.mark.parametrize("body", BODIES)
def test_gradcheck_with_attention(body: str) -> None:
    leaves = [t.requires_grad_() for t in merge_case(1, 2, 3, 3, 5, torch.float64)]
    with lmfn_kernels.backend(body):
        assert torch.autograd.gradcheck(merge_flat(), leaves, fast_mode=True)


def test_what_is_added_is_written_for_backward_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from lmfn_kernels.acfm import triton_backend as acfm_launch

    made: list[Tensor] = []

    def counted(*args: object) -> Tensor:
        made.append(empty(*args))  # type: ignore[arg-type]
        return made[-1]

    empty = acfm_launch.empty_image
    monkeypatch.setattr(acfm_launch, "empty_image", counted)
    monkeypatch.setattr("lmfn_kernels.alfm.triton_backend.empty_image", counted)
    x, *others = merge_case(1, 2, 5, 6, 7, torch.float32)
    with lmfn_kernels.backend("triton"):
        result = merge_flat()(x, *others)
        assert [t.data_ptr() for t in made] == [result.data_ptr()], "the result alone has the size of x"
        made.clear()
        kept = merge_flat()(x.requires_grad_(), *others)
    assert len(made) == 2
    assert torch.equal(kept, result)


@pytest.mark.parametrize("filler", [float("nan"), float("inf")])
@pytest.mark.parametrize(("case", "flat"), [(channel_gate_case, channel_gate_flat), (merge_case, merge_flat)])
@pytest.mark.parametrize("form", FORMS)
def test_nothing_beyond_the_image_is_read_or_written(
    poisoned: list[tuple[Tensor, Tensor]],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    form: str,
    case: Callable[..., list[Tensor]],
    flat: Callable[..., Callable[..., Tensor]],
    filler: float,
) -> None:
    from lmfn_kernels.acfm import triton_backend as acfm_launch
    from lmfn_kernels.alfm import triton_backend as alfm_launch
    from lmfn_kernels.runtime import launch

    for name in ("empty_image", "partial_sums"):
        monkeypatch.setattr(acfm_launch, name, getattr(launch, name))
        monkeypatch.setattr(alfm_launch, name, getattr(launch, name))
    sizes = (2, 10, 9, 19) if case is channel_gate_case else (2, 2, 10, 9, 19)
    tensors = case(*sizes, torch.float64, form=form)
    exact, exact_gradients = exactly(flat(form), tensors)
    for i, tensor in enumerate(tensors):
        if tensor.shape == tensors[0].shape:
            tensors[i] = surrounded(tensor, filler)[0]
    with lmfn_kernels.backend("triton"):
        results, gradients = differentiate(flat(form), tensors)
    for result, expected in zip([*results, *gradients], [*exact, *exact_gradients], strict=True):
        assert result is not None
        assert expected is not None
        assert_rounded("result or gradient", result, expected)
    assert len(poisoned) >= 3, "the result, the gradient, and what the gate passes back"
    for view, memory in poisoned:
        written = torch.zeros(memory.numel(), dtype=torch.bool)
        written.as_strided(view.shape, view.stride(), GUARD).fill_(True)
        assert (memory[~written] == 7.0).all(), "a kernel wrote beyond its image"


@pytest.mark.parametrize("form", FORMS)
def test_more_elements_than_int32_counts(form: str) -> None:
    from lmfn_kernels.acfm import triton_backend

    x, alpha, *weights, _ = channel_gate_case(2, 10, 6, 18, torch.float16, form=form)
    weights = [weight.flatten() for weight in weights]
    near = triton_backend.layout(x)
    far = far_apart(near)
    assert triton_backend.layout(far) is far, "read where it lies"
    assert torch.equal(triton_backend.gate(near, near, alpha, weights), triton_backend.gate(far, far, alpha, weights))
    one, other = (triton_backend.gate_backward(image, image, alpha, weights) for image in (near, far))
    for a, b in zip([*one[:2], *one[2]], [*other[:2], *other[2]], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("form", FORMS)
def test_only_the_input_is_kept(body: str, form: str) -> None:
    leaves = [t.requires_grad_() for t in channel_gate_case(1, 6, 9, 10, torch.float32, form=form)]
    held: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        held.append(t)
        return t

    with lmfn_kernels.backend(body), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        channel_gate_flat(form)(*leaves)
    memory = {t.untyped_storage().data_ptr() for t in held}
    assert memory <= {leaf.untyped_storage().data_ptr() for leaf in leaves[:-1]}, "not what was added"


def test_errors_name_the_argument() -> None:
    x, alpha, *weights, add = channel_gate_case(1, 3, 4, 5, torch.float32)
    gate = lmfn_kernels.Pseudo3D(*weights)
    maps = [torch.zeros(1, 3, 4, 6)]
    attention = lmfn_kernels.LayerAttention(maps, alpha, torch.zeros(3, 3, 1, 1), torch.zeros(3))
    with pytest.raises(ValueError, match=r"add.maps.0. has shape .1, 3, 4, 6.; expected is .1, 3, 4, 5."):
        lmfn_kernels.channel_gate(x, gate, alpha, attention)
    attention = attention._replace(maps=[x], weight=torch.zeros(2, 3, 1, 1), bias=torch.zeros(2))
    with pytest.raises(ValueError, match=r"add.weight has shape .2, 3, 1, 1.; expected is .3, "):
        lmfn_kernels.channel_gate(x, gate, alpha, attention)
    with pytest.raises(TypeError, match="gate is a list; expected is Pseudo3D or Full3D"):
        lmfn_kernels.channel_gate(x, weights, alpha)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"gate.channel_weight has shape .4,.; expected is .3."):
        lmfn_kernels.channel_gate(x, gate._replace(channel_weight=torch.zeros(4)), alpha)
    with pytest.raises(ValueError, match=r"gate.weight has shape .3, 3.; expected is .3, 3, 3."):
        lmfn_kernels.channel_gate(x, lmfn_kernels.Full3D(*weights[:2]), alpha)
    with pytest.raises(ValueError, match=r"alpha has shape .2,.; expected is .1."):
        lmfn_kernels.channel_gate(x, gate, torch.zeros(2))
    with pytest.raises(ValueError, match=r"add has shape .1, 3, 4, 4.; expected is .1, 3, 4, 5."):
        lmfn_kernels.channel_gate(x, gate, alpha, add[..., 1:])
    with pytest.raises(ValueError, match=r"x has shape .3, 4, 5.; a non-empty"):
        lmfn_kernels.channel_gate(x[0], gate, alpha)
    with pytest.raises(TypeError, match=r"x has dtype torch.int64"):
        lmfn_kernels.channel_gate(x.long(), gate, alpha)
