"""ALFM's ops under every backend against the written formula in float64."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_memory import GUARD, far_apart, poisoned, surrounded  # noqa: F401  (a fixture)
from test_ops import BODIES, GRID, check
from torch import Tensor

import lmfn_kernels
from lmfn_kernels.alfm.windows import Grid
from lmfn_kernels.runtime.gradients import PendingMask
from lmfn_kernels.testing import assert_rounded, attention_case, attention_flat, differentiate, exactly, random

FORMS = ["channels", "channels-cosine", "layers", "layers-cosine"]


@pytest.fixture
def four_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slots of sm_90, which the interpreter's device does not have."""
    from lmfn_kernels.alfm import triton_backend

    monkeypatch.setattr(triton_backend, "_at_once", lambda _: 4)


@pytest.mark.parametrize(("body", "dtype"), GRID)
@pytest.mark.parametrize("form", FORMS)
def test_layer_attention(body: str, dtype: torch.dtype, form: str) -> None:
    tensors = attention_case(2, 3, 5, 6, 9, 19, dtype, form=form)
    check(body, attention_flat(form), tensors)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (4, 1), (17, 33)])
def test_a_few_pixels(body: str, height: int, width: int) -> None:
    tensors = attention_case(2, 2, 5, 6, height, width, torch.float32)
    check(body, attention_flat(), tensors)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize(("n", "c"), [(1, 3), (8, 2), (2, 70), (1, 130)])
def test_maps_and_channels(body: str, n: int, c: int) -> None:
    """One map and eight, and channels that fill no block, or more than one."""
    tensors = attention_case(1, n, c, 7, 5, 6, torch.float64)
    check(body, attention_flat(), tensors)


@pytest.mark.parametrize(("body", "dtype"), GRID)
@pytest.mark.parametrize("form", FORMS)
def test_windows(body: str, dtype: torch.dtype, form: str) -> None:
    """Three blocks of 16 pixels down, the last one cut, and two across."""
    check(body, attention_flat(form, window=32), attention_case(1, 2, 3, 4, 35, 20, dtype, form=form))


@pytest.mark.parametrize(
    ("height", "width", "window"), [(5, 40, 12), (40, 5, 12), (13, 13, 6), (9, 17, 2), (24, 25, 24)]
)
def test_windows_of_any_even_size(height: int, width: int, window: int) -> None:
    """Rows of windows, columns of them, blocks of one pixel, and blocks that the border does or does not cut."""
    tensors = attention_case(2, 2, 3, 4, height, width, torch.float64, form="channels-cosine")
    check("torch", attention_flat("channels-cosine", window=window), tensors)
    tensors = attention_case(1, 1, 2, 2, min(height, 9), min(width, 9), torch.float64)
    needs = [t.requires_grad_() for t in tensors]
    with lmfn_kernels.backend("torch"):
        assert torch.autograd.gradcheck(attention_flat(window=4), needs, fast_mode=True)


@pytest.mark.parametrize("body", ["reference", *BODIES])
def test_a_window_that_holds_the_maps_changes_no_bit(body: str) -> None:
    tensors = attention_case(2, 2, 3, 4, 9, 12, torch.float64, form="channels-cosine")
    with lmfn_kernels.backend(body):
        for window in (12, 400):
            windowed = differentiate(attention_flat("channels-cosine", window=window), tensors)
            for one, other in zip(windowed, differentiate(attention_flat("channels-cosine"), tensors), strict=True):
                assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("body", ["reference", "torch"])
@pytest.mark.parametrize("rows", ["channels", "layers"])
def test_windows_from_the_grams_of_blocks(body: str, rows: Any) -> None:
    *maps, theta, weight, bias = attention_case(2, 2, 3, 4, 13, 9, torch.float64)
    with lmfn_kernels.backend(body):
        gram = lmfn_kernels.layer_gram(maps, rows=rows, window=8)
        size = 2 if rows == "layers" else 6
        assert gram.shape == (2, 4, 3, size, size)
        corner = lmfn_kernels.layer_gram([x[:, :, 8:12, 4:8] for x in maps], rows=rows)
        torch.testing.assert_close(gram[:, 2, 1], corner, rtol=1e-12, atol=1e-12)
        whole = lmfn_kernels.layer_attention(maps, theta, weight, bias, rows=rows, window=8)
        parts = lmfn_kernels.layer_apply(maps, gram, theta, weight, bias, rows=rows, window=8)
    assert torch.equal(whole, parts)


def test_the_pixels_shares_of_all_windows_sum_to_one() -> None:
    from lmfn_kernels.alfm.windows import shares

    for size, side in ((35, 16), (7, 3), (64, 16), (5, 2)):
        count = max(1, -(-size // side) - 1)
        total = sum(shares(0, size, side, i, count, torch.zeros(1, dtype=torch.float64)) for i in range(count))
        torch.testing.assert_close(total, torch.ones(size, dtype=torch.float64))


@pytest.mark.parametrize(
    ("window", "error", "message"),
    [
        (7, ValueError, "window is 7; expected is an even number"),
        (0, ValueError, "window is 0; expected is an even number"),
        (8.0, TypeError, "window is 8.0; expected is a whole number"),
        (True, TypeError, "window is True; expected is a whole number"),
    ],
)
def test_what_is_no_window(window: Any, error: type[Exception], message: str) -> None:
    tensors = attention_case(1, 2, 3, 4, 9, 9, torch.float32)
    with pytest.raises(error, match=message):
        attention_flat(window=window)(*tensors)
    with pytest.raises(error, match=message):
        lmfn_kernels.layer_gram(tensors[:2], window=window)


@pytest.mark.usefixtures("four_at_once")
@pytest.mark.parametrize("n", [1, 2, 3, 4, 7])
def test_four_maps_in_one_program(n: int) -> None:
    tensors = attention_case(2, n, 5, 4, 9, 19, torch.float64)
    check("triton", attention_flat(), tensors)


@pytest.mark.parametrize("body", BODIES)
def test_without_an_activation(body: str) -> None:
    tensors = attention_case(1, 2, 3, 4, 5, 6, torch.float64)
    check(body, attention_flat(slope=1.0), tensors)


@pytest.mark.parametrize("body", BODIES)
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_kind(body: str, data: st.DataObject) -> None:
    """Shapes, strides, dtypes, forms, and which inputs need gradients."""
    b, n, c, o = (data.draw(st.integers(1, high), label=name) for name, high in zip("bnco", (2, 5, 9, 5), strict=True))
    h, w = data.draw(st.integers(1, 12), label="h"), data.draw(st.integers(1, 20), label="w")
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32]), label="dtype")
    form = data.draw(st.sampled_from(FORMS), label="form")
    torch.manual_seed(0)
    tensors = attention_case(b, n, c, o, h, w, dtype, form=form)
    for j in range(n):
        kind = data.draw(
            st.sampled_from(["plain", "channels_last", "sliced", "expanded", "transposed"]), label="memory"
        )
        if kind == "channels_last":
            tensors[j] = tensors[j].contiguous(memory_format=torch.channels_last)
        elif kind == "sliced":
            tensors[j] = random((b, c + 3, h + 2, w + 1), dtype, scale=0.1)[:, 2:-1, 1:-1, 1:]
        elif kind == "expanded":
            tensors[j] = random((1, c, h, 1), dtype, scale=0.1).expand(b, c, h, w)
        elif kind == "transposed":
            tensors[j] = random((b, c, w, h), dtype, scale=0.1).mT
    needs = data.draw(st.lists(st.booleans(), min_size=len(tensors), max_size=len(tensors)), label="needs")
    check(body, attention_flat(form), tensors, needs)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("form", FORMS)
def test_gradcheck(body: str, form: str) -> None:
    leaves = [t.requires_grad_() for t in attention_case(2, 2, 3, 4, 3, 5, torch.float64, form=form)]
    with lmfn_kernels.backend(body):
        assert torch.autograd.gradcheck(attention_flat(form), leaves, fast_mode=True)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("rows", ["channels", "layers"])
def test_gradcheck_of_the_parts(body: str, rows: str) -> None:
    """F F^T, and what takes one that need not be symmetric."""
    *maps, theta, weight, bias = (t.requires_grad_() for t in attention_case(1, 2, 3, 4, 3, 5, torch.float64))
    size = 2 if rows == "layers" else 6
    gram = random((1, size, size)).requires_grad_()

    def whole(*tensors: Tensor) -> Tensor:
        return lmfn_kernels.layer_apply(tensors[:2], *tensors[2:], rows=rows)  # type: ignore[arg-type]

    with lmfn_kernels.backend(body):
        assert torch.autograd.gradcheck(lambda *m: lmfn_kernels.layer_gram(m, rows=rows), maps, fast_mode=True)  # type: ignore[arg-type]
        assert torch.autograd.gradcheck(whole, [*maps, gram, theta, weight, bias], fast_mode=True)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("form", FORMS)
def test_tiles_are_the_whole(body: str, form: str) -> None:
    """An image in uneven strips, F F^T summed over them: result and gradients as of the whole."""
    tensors = attention_case(2, 3, 5, 4, 23, 9, torch.float32, form=form)
    rows = form.removesuffix("-cosine")

    def in_strips(*tensors: Tensor) -> Tensor:
        strips = [[x[:, :, first:last] for x in tensors[:3]] for first, last in ((0, 1), (1, 10), (10, 23))]
        gram = sum((lmfn_kernels.layer_gram(maps, rows=rows) for maps in strips), torch.zeros(()))  # type: ignore[arg-type]
        return torch.cat([lmfn_kernels.layer_apply(maps, gram, *tensors[3:], rows=rows) for maps in strips], dim=2)  # type: ignore[arg-type]

    with lmfn_kernels.backend(body):
        results, gradients = differentiate(in_strips, tensors)
    exact, exact_gradients = exactly(attention_flat(form), tensors)
    for result, expected in zip([*results, *gradients], [*exact, *exact_gradients], strict=True):
        assert result is not None
        assert expected is not None
        assert_rounded("result or gradient", result, expected)


@pytest.mark.parametrize("form", FORMS)
def test_the_matrices_by_themselves(form: str) -> None:
    """W (theta M + I) F is the whole, with W, theta and M given and F F^T as it is."""
    *maps, theta, weight, bias = attention_case(2, 3, 5, 4, 7, 9, torch.float64, form=form.removesuffix("-cosine"))
    rows: Any = form.removesuffix("-cosine")
    temperature = torch.tensor([2.0], dtype=torch.float64) if form.endswith("cosine") else None
    gram = lmfn_kernels.layer_gram(maps, rows=rows)
    m = lmfn_kernels.attention_matrix(gram, temperature, rows=rows)
    torch.testing.assert_close(m.sum(-1), torch.ones_like(m[..., 0]))
    p = lmfn_kernels.fold_into_weight(gram, theta, weight, temperature, rows=rows)
    y = torch.einsum("boi,bihw->bohw", p, torch.cat(maps, 1)) + bias[:, None, None]
    whole = lmfn_kernels.layer_attention(maps, theta, weight, bias, temperature, rows=rows, slope=0.05)
    torch.testing.assert_close(torch.nn.functional.leaky_relu(y, 0.05), whole)


def test_errors_of_the_matrices() -> None:
    gram, theta, weight = torch.ones(1, 4, 4), torch.ones(1), torch.ones(2, 6, 1, 1)
    with pytest.raises(ValueError, match=r"gram has shape \(1, 4, 3\); expected is \(any, 4, 4\)"):
        lmfn_kernels.attention_matrix(gram[:, :, :3])
    with pytest.raises(ValueError, match="rows is 'pixels'; expected is channels or layers"):
        lmfn_kernels.attention_matrix(gram, rows="pixels")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"weight has shape \(2, 6, 1, 1\); expected is \(any, 4, 1, 1\)"):
        lmfn_kernels.fold_into_weight(gram, theta, weight)
    with pytest.raises(ValueError, match="weight has 6 inputs; expected is a multiple of the 4 maps"):
        lmfn_kernels.fold_into_weight(gram, theta, weight, rows="layers")


@pytest.mark.parametrize("body", BODIES)
def test_an_image_does_not_depend_on_its_batch(body: str) -> None:
    tensors = attention_case(3, 2, 5, 4, 19, 17, torch.float32)
    with lmfn_kernels.backend(body):
        together = attention_flat()(*tensors)
        alone = attention_flat()(*(t[1:2] if t.ndim == 4 and t.shape[0] == 3 else t for t in tensors))
        again = lmfn_kernels.layer_gram(tensors[:2])
    assert torch.equal(together[1:2], alone)
    assert torch.equal(again, again.mT), "symmetric to the bit"


@pytest.mark.parametrize("body", BODIES)
def test_sums_beyond_float16(body: str) -> None:
    """F F^T of 4e5, more than float16 holds."""
    maps = [torch.full((1, 2, 32, 32), 20.0, dtype=torch.float16) + j for j in range(2)]
    with lmfn_kernels.backend(body):
        gram = lmfn_kernels.layer_gram(maps)
    assert gram.dtype == torch.float32
    assert gram[0, 0, 0] == 20 * 20 * 1024
    assert gram[0, 3, 3] == 21 * 21 * 1024


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("rows", ["channels", "layers"])
def test_rows_of_zeros_have_a_cosine(body: str, rows: str) -> None:
    tensors = attention_case(1, 2, 3, 4, 5, 6, torch.float32, form=f"{rows}-cosine")
    tensors[0] = torch.zeros_like(tensors[0])
    with lmfn_kernels.backend(body):
        results, gradients = differentiate(attention_flat(f"{rows}-cosine"), tensors)
    exact, _ = exactly(attention_flat(f"{rows}-cosine"), tensors)
    assert_rounded("result", results[0], exact[0])
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("body", BODIES)
def test_same_bits(body: str) -> None:
    tensors = attention_case(1, 4, 5, 4, 17, 21, torch.float32)
    with lmfn_kernels.backend(body):
        first, again = (differentiate(attention_flat(), tensors) for _ in range(2))
    for a, b in zip([*first[0], *first[1]], [*again[0], *again[1]], strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)


@pytest.fixture
def poisoned_here(
    poisoned: list[tuple[Tensor, Tensor]],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> list[tuple[Tensor, Tensor]]:
    from lmfn_kernels.alfm import triton_backend as alfm_launch
    from lmfn_kernels.runtime import launch

    for name in ("empty_image", "partial_sums"):
        monkeypatch.setattr(alfm_launch, name, getattr(launch, name))
    return poisoned


@pytest.mark.parametrize("at_once", [2, 4])
def test_nothing_beyond_the_maps_is_read_or_written(
    poisoned_here: list[tuple[Tensor, Tensor]], monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    from lmfn_kernels.alfm import triton_backend

    monkeypatch.setattr(triton_backend, "_at_once", lambda _: at_once)
    tensors = attention_case(2, 3, 10, 6, 17, 19, torch.float64)
    exact, exact_gradients = exactly(attention_flat(), tensors)
    tensors[:3] = [surrounded(x, float("nan"))[0] for x in tensors[:3]]
    with lmfn_kernels.backend("triton"):
        results, gradients = differentiate(attention_flat(), tensors)
    for result, expected in zip([*results, *gradients], [*exact, *exact_gradients], strict=True):
        assert result is not None
        assert expected is not None
        assert_rounded("result or gradient", result, expected)
    assert len(poisoned_here) >= 4, "the result and the maps' gradients"
    for view, memory in poisoned_here:
        written = torch.zeros(memory.numel(), dtype=torch.bool)
        written.as_strided(view.shape, view.stride(), GUARD).fill_(True)
        assert (memory[~written] == 7.0).all(), "a kernel wrote beyond its image"


def test_more_elements_than_int32_counts() -> None:
    from lmfn_kernels.alfm import triton_backend

    near = [triton_backend.layout(x) for x in attention_case(2, 2, 10, 6, 16, 18, torch.float16)[:2]]
    far = [far_apart(x) for x in near]
    assert all(triton_backend.layout(x) is x for x in far), "read where it lies"
    grid = Grid.of(near[0], 0)
    assert torch.equal(triton_backend.gram(near, False, grid), triton_backend.gram(far, False, grid))
    matrix = random((2, 20, 6), torch.float32)
    one, other = (triton_backend.mix(maps, 1, grid, window_matrix=matrix)[0] for maps in (near, far))
    assert torch.equal(one, other)
    for a, b in zip(
        triton_backend.products(PendingMask(near[0], None, 1.0), near, grid),
        triton_backend.products(PendingMask(far[0], None, 1.0), far, grid),
        strict=True,
    ):
        assert torch.equal(a, b)


def kept(function: Callable[..., Tensor], tensors: list[Tensor]) -> tuple[int, int]:
    """Bytes that autograd holds on to beside the inputs: those of the maps' size or more, and all others."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    inputs = {leaf.untyped_storage().data_ptr() for leaf in leaves}
    held: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        memory = t.untyped_storage()
        if memory.data_ptr() not in inputs:
            held[memory.data_ptr()] = memory.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        function(*leaves)
    return sum(size for size in held.values() if size >= tensors[0].nbytes), sum(held.values())


@pytest.mark.parametrize("body", BODIES)
def test_kept_for_backward(body: str) -> None:
    """The inputs; at most the output's size (padding of its pixels included) for the mask; and NC x NC."""
    tensors = attention_case(2, 4, 6, 6, 40, 48, torch.float32)
    output = 2 * 8 * 40 * 48 * 4  # pixels are 8 values apart
    with lmfn_kernels.backend(body):
        large, everything = kept(attention_flat(), tensors)
    assert large <= output
    assert everything <= output + 2 * 24 * 24 * 4
    with lmfn_kernels.backend("reference"):
        large, _ = kept(attention_flat(), tensors)
    assert large > 5 * output, "so that the measure above measures"


PEAK = """
import resource, sys
import torch
import lmfn_kernels
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
b, n, c, h, w = 1, 4, 50, 720, 1280
weights = torch.zeros(1), torch.ones(c, n * c, 1, 1) / 200, torch.zeros(c)
small = [torch.full((b, c, 8, 8), 0.01) for _ in range(n)]
order = torch.channels_last if sys.argv[2] == "channels_last" else torch.contiguous_format
maps = [torch.empty(b, c, h, w, memory_format=order).fill_(0.01) for _ in range(n)]
with lmfn_kernels.backend(sys.argv[1]), torch.no_grad():
    lmfn_kernels.layer_attention(small, *weights)
    before = peak()
    y = lmfn_kernels.layer_attention(maps, *weights)
print((peak() - before - y.nbytes) / 2**20)
"""


@pytest.mark.parametrize(
    ("body", "order", "least", "most"),
    [("torch", "contiguous", -1, 16), ("torch", "channels_last", -1, 16), ("reference", "contiguous", 1000, 1e9)],
)
def test_peak_memory_at_720p(environment: dict[str, str], body: str, order: str, least: float, most: float) -> None:
    """MiB beside the inputs and the output, which is 176: the inputs are 703, and the formula makes three of that."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, body, order],
        capture_output=True,
        text=True,
        env=environment | {"OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    print(f"{body}, {order}: {float(done.stdout):.1f} MiB")  # `pytest -s` shows it
    assert least <= float(done.stdout) <= most


def wrong(**changes: object) -> None:
    *maps, theta, weight, bias = attention_case(1, 2, 3, 4, 5, 6, torch.float32)
    given = {"maps": maps, "theta": theta, "weight": weight, "bias": bias}
    lmfn_kernels.layer_attention(**(given | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"maps": torch.zeros(2, 1, 3, 5, 6)}, TypeError, "maps is a Tensor; a list or tuple of maps"),
        ({"maps": []}, ValueError, "maps is empty; one map or more"),
        ({"maps": [torch.zeros(1, 3, 5, 6)] * 3}, ValueError, r"weight has shape .4, 6, 1, 1.; expected is .any, 9, 1"),
        (
            {"maps": [torch.zeros(1, 3, 5, 6), torch.zeros(1, 3, 5, 7)]},
            ValueError,
            r"maps.1. has shape .1, 3, 5, 7.; expected is .1, 3, 5, 6.",
        ),
        ({"theta": torch.zeros(())}, ValueError, r"theta has shape \(\); expected is \(1\)"),
        ({"bias": torch.zeros(5)}, ValueError, r"bias has shape \(5,\); expected is \(4\)"),
        ({"temperature": torch.zeros(2)}, ValueError, r"temperature has shape \(2,\); expected is \(1\)"),
        ({"weight": torch.zeros(4, 6, 1, 1).double()}, TypeError, "weight has dtype torch.float64; expected is"),
        ({"rows": "pixels"}, ValueError, "rows is 'pixels'; expected is channels or layers"),
        ({"slope": 0.0}, ValueError, "slope is 0.0; expected is a number above 0"),
    ],
)
def test_errors_name_the_argument(changes: dict[str, object], error: type[Exception], message: str) -> None:
    wrong()
    with pytest.raises(error, match=message):
        wrong(**changes)


def test_errors_of_the_gram() -> None:
    *maps, theta, weight, bias = attention_case(1, 2, 3, 4, 5, 6, torch.float16)
    gram = lmfn_kernels.layer_gram(maps)
    with pytest.raises(TypeError, match=r"gram has dtype torch.float16; expected is torch.float32"):
        lmfn_kernels.layer_apply(maps, gram.half(), theta, weight, bias)
    with pytest.raises(ValueError, match=r"gram has shape .1, 6, 6.; expected is .1, 2, 2."):
        lmfn_kernels.layer_apply(maps, gram, theta, weight, bias, rows="layers")


@pytest.mark.parametrize(("n", "c"), [(9, 2), (2, 257)])
def test_kernels_refuse_what_they_cannot_take(n: int, c: int) -> None:
    maps = attention_case(1, n, c, 2, 2, 2, torch.float32)[:n]
    with lmfn_kernels.backend("triton"), pytest.raises(ValueError, match="the kernels take 8 maps of 512"):
        lmfn_kernels.layer_gram(maps)
    assert lmfn_kernels.layer_gram(maps).shape == (1, n * c, n * c)
