"""ALFM: its forms, its parts, windows, and its errors."""

from typing import Any

import pytest
import torch
from torch import Tensor

import lmfn_kernels
from lmfn_kernels.cases import attention_from_flat, attention_inputs
from lmfn_kernels.runtime import configs
from lmfn_kernels.testing import assert_correct, assert_within_rounding, differentiate, reference_with_bounds

FORMS = ["channels", "channels-cosine", "layers", "layers-cosine"]


@pytest.fixture
def four_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of slots on sm_90, since the interpreter's device reports none."""
    from lmfn_kernels.alfm import triton_backend

    monkeypatch.setattr(triton_backend, "_at_once", lambda _: 4)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("form", ["channels-cosine", "layers"])
def test_other_forms(form: str) -> None:
    assert_correct(attention_from_flat(form), attention_inputs(2, 3, 5, 6, 9, 19, torch.float64, form=form))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(("n", "c"), [(1, 3), (8, 2), (2, 70), (1, 130)])
def test_maps_and_channels(n: int, c: int) -> None:
    """One map and eight, and channels that do not fill a block or need more than one."""
    tensors = attention_inputs(1, n, c, 7, 5, 6, torch.float64)
    assert_correct(attention_from_flat(), tensors)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("form", FORMS)
def test_windows(form: str) -> None:
    """Three blocks of 16 pixels down, the last one partial, and two across."""
    inputs = attention_inputs(1, 2, 3, 4, 35, 20, torch.float32, form=form)
    assert_correct(attention_from_flat(form, window=32), inputs)


@pytest.mark.parametrize(
    ("height", "width", "window"), [(5, 40, 12), (40, 5, 12), (13, 13, 6), (5, 7, 2), (24, 25, 24)]
)
def test_windows_of_any_even_size(height: int, width: int, window: int) -> None:
    """Windows in one row or column, blocks of one pixel, and blocks that the border cuts or does not cut."""
    tensors = attention_inputs(2, 2, 3, 4, height, width, torch.float64, form="channels-cosine")
    with lmfn_kernels.backend("torch"):
        assert_correct(attention_from_flat("channels-cosine", window=window), tensors)
    tensors = attention_inputs(1, 1, 2, 2, min(height, 9), min(width, 9), torch.float64)
    needs = [t.requires_grad_() for t in tensors]
    with lmfn_kernels.backend("torch"):
        assert torch.autograd.gradcheck(attention_from_flat(window=4), needs, fast_mode=True)


@pytest.mark.parametrize("name", ["reference", "torch", "triton"])
def test_a_window_that_holds_the_maps_changes_no_bit(name: str) -> None:
    tensors = attention_inputs(1, 2, 3, 4, 5, 12, torch.float64, form="channels-cosine")
    with lmfn_kernels.backend(name):
        for window in (12, 400):
            windowed = differentiate(attention_from_flat("channels-cosine", window=window), tensors)
            for one, other in zip(
                windowed, differentiate(attention_from_flat("channels-cosine"), tensors), strict=True
            ):
                assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["reference", "torch"])
@pytest.mark.parametrize("rows", ["channels", "layers"])
def test_windows_from_the_grams_of_blocks(rows: Any, name: str) -> None:
    *maps, theta, weight, bias = attention_inputs(2, 2, 3, 4, 13, 9, torch.float64)
    with lmfn_kernels.backend(name):
        gram = lmfn_kernels.layer_gram(maps, rows=rows, window=8)
        size = 2 if rows == "layers" else 6
        assert gram.shape == (2, 4, 3, size, size)
        corner = lmfn_kernels.layer_gram([x[:, :, 8:12, 4:8] for x in maps], rows=rows)
        torch.testing.assert_close(gram[:, 2, 1], corner, rtol=1e-12, atol=1e-12)
        whole = lmfn_kernels.layer_attention(maps, theta, weight, bias, rows=rows, window=8)
        parts = lmfn_kernels.layer_apply(maps, gram, theta, weight, bias, rows=rows, window=8)
    assert torch.equal(whole, parts)


def test_partial_sums_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several partial sums per block, in windows of one row of blocks, and of one column."""
    monkeypatch.setattr(configs, "INTERPRETED", configs.Config(height=4, width=4, stages=1, splits=6))
    for height, width in ((9, 33), (40, 5)):
        *maps, theta, weight, bias = attention_inputs(1, 2, 3, 4, height, width, torch.float64)
        with lmfn_kernels.backend("triton"):
            whole = lmfn_kernels.layer_attention(maps, theta, weight, bias, window=32)
            gram = lmfn_kernels.layer_gram(maps, window=32)
            parts = lmfn_kernels.layer_apply(maps, gram, theta, weight, bias, window=32)
        assert torch.equal(whole, parts)
        with lmfn_kernels.backend("reference"):
            expected = lmfn_kernels.layer_attention(maps, theta, weight, bias, window=32)
        torch.testing.assert_close(whole, expected, rtol=1e-9, atol=1e-9)


def test_the_pixels_shares_of_all_windows_sum_to_one() -> None:
    from lmfn_kernels.alfm.windows import shares

    for size, side in ((35, 16), (7, 3), (64, 16), (5, 2)):
        count = max(1, -(-size // side) - 1)
        total = sum(shares(0, size, side, i, count, torch.zeros(1, dtype=torch.float64)) for i in range(count))
        torch.testing.assert_close(total, torch.ones(size, dtype=torch.float64))


@pytest.mark.parametrize(
    ("window", "error", "message"),
    [
        (7, ValueError, "window is 7; expected an even number"),
        (0, ValueError, "window is 0; expected an even number"),
        (8.0, TypeError, "window is 8.0; expected a whole number"),
        (True, TypeError, "window is True; expected a whole number"),
    ],
)
def test_what_is_no_window(window: Any, error: type[Exception], message: str) -> None:
    tensors = attention_inputs(1, 2, 3, 4, 9, 9, torch.float32)
    with pytest.raises(error, match=message):
        attention_from_flat(window=window)(*tensors)
    with pytest.raises(error, match=message):
        lmfn_kernels.layer_gram(tensors[:2], window=window)


@pytest.mark.usefixtures("four_at_once")
@pytest.mark.parametrize("n", [1, 2, 3, 4, 7])
def test_four_maps_in_one_program(n: int) -> None:
    tensors = attention_inputs(1, n, 5, 4, 4, 19, torch.float64)
    with lmfn_kernels.backend("triton"):
        assert_correct(attention_from_flat(), tensors)


@pytest.mark.usefixtures("backend")
def test_without_an_activation() -> None:
    tensors = attention_inputs(1, 2, 3, 4, 5, 6, torch.float64)
    assert_correct(attention_from_flat(slope=1.0), tensors)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("form", FORMS)
def test_tiles_are_the_whole(form: str) -> None:
    """An image in uneven strips with F F^T summed over them: result and gradient equal those of the whole image."""
    tensors = attention_inputs(1, 3, 5, 4, 12, 5, torch.float32, form=form)
    rows = form.removesuffix("-cosine")

    def in_strips(*tensors: Tensor) -> Tensor:
        strips = [[x[:, :, first:last] for x in tensors[:3]] for first, last in ((0, 1), (1, 5), (5, 12))]
        gram = sum((lmfn_kernels.layer_gram(maps, rows=rows) for maps in strips), torch.zeros(()))  # type: ignore[arg-type]
        return torch.cat([lmfn_kernels.layer_apply(maps, gram, *tensors[3:], rows=rows) for maps in strips], dim=2)  # type: ignore[arg-type]

    assert_correct(in_strips, tensors, formula=attention_from_flat(form))


@pytest.mark.parametrize("form", FORMS)
def test_the_matrices_by_themselves(form: str) -> None:
    """W (theta M + I) F for the whole image, with given W, theta and M, and the actual F F^T."""
    *maps, theta, weight, bias = attention_inputs(2, 3, 5, 4, 7, 9, torch.float64, form=form.removesuffix("-cosine"))
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
    with pytest.raises(ValueError, match=r"gram has shape \(1, 4, 3\); expected \(any, 4, 4\)"):
        lmfn_kernels.attention_matrix(gram[:, :, :3])
    with pytest.raises(ValueError, match="rows is 'pixels'; expected channels or layers"):
        lmfn_kernels.attention_matrix(gram, rows="pixels")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"weight has shape \(2, 6, 1, 1\); expected \(any, 4, 1, 1\)"):
        lmfn_kernels.fold_into_weight(gram, theta, weight)
    with pytest.raises(ValueError, match="weight has 6 inputs; expected a multiple of the 4 maps"):
        lmfn_kernels.fold_into_weight(gram, theta, weight, rows="layers")


@pytest.mark.usefixtures("backend")
def test_gram_is_symmetric_to_the_bit() -> None:
    gram = lmfn_kernels.layer_gram(attention_inputs(3, 2, 5, 4, 19, 17, torch.float32)[:2])
    assert torch.equal(gram, gram.mT)


@pytest.mark.usefixtures("backend")
def test_sums_beyond_float16() -> None:
    """F F^T of 4e5, beyond the range of float16."""
    maps = [torch.full((1, 2, 32, 32), 20.0, dtype=torch.float16) + j for j in range(2)]
    gram = lmfn_kernels.layer_gram(maps)
    assert gram.dtype == torch.float32
    assert gram[0, 0, 0] == 20 * 20 * 1024
    assert gram[0, 3, 3] == 21 * 21 * 1024


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("rows", ["channels", "layers"])
def test_rows_of_zeros_have_a_cosine(rows: str) -> None:
    tensors = attention_inputs(1, 2, 3, 4, 5, 6, torch.float32, form=f"{rows}-cosine")
    tensors[0] = torch.zeros_like(tensors[0])
    results, gradients = differentiate(attention_from_flat(f"{rows}-cosine"), tensors)
    exact, _ = reference_with_bounds(attention_from_flat(f"{rows}-cosine"), tensors)
    assert_within_rounding("result", results[0], exact[0])
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def wrong(**changes: object) -> None:
    *maps, theta, weight, bias = attention_inputs(1, 2, 3, 4, 5, 6, torch.float32)
    given = {"maps": maps, "theta": theta, "weight": weight, "bias": bias}
    lmfn_kernels.layer_attention(**(given | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"maps": torch.zeros(2, 1, 3, 5, 6)}, TypeError, "maps is a Tensor; expected a list or tuple of maps"),
        ({"maps": []}, ValueError, "maps is empty; expected one map or more"),
        ({"maps": [torch.zeros(1, 3, 5, 6)] * 3}, ValueError, r"weight has shape .4, 6, 1, 1.; expected .any, 9, 1"),
        (
            {"maps": [torch.zeros(1, 3, 5, 6), torch.zeros(1, 3, 5, 7)]},
            ValueError,
            r"maps.1. has shape .1, 3, 5, 7.; expected .1, 3, 5, 6.",
        ),
        ({"theta": torch.zeros(())}, ValueError, r"theta has shape \(\); expected \(1\)"),
        ({"bias": torch.zeros(5)}, ValueError, r"bias has shape \(5,\); expected \(4\)"),
        ({"temperature": torch.zeros(2)}, ValueError, r"temperature has shape \(2,\); expected \(1\)"),
        ({"weight": torch.zeros(4, 6, 1, 1).double()}, TypeError, "weight has dtype torch.float64; expected "),
        ({"rows": "pixels"}, ValueError, "rows is 'pixels'; expected channels or layers"),
        ({"slope": 0.0}, ValueError, "slope is 0.0; expected a number above 0"),
    ],
)
def test_errors_name_the_argument(changes: dict[str, object], error: type[Exception], message: str) -> None:
    wrong()
    with pytest.raises(error, match=message):
        wrong(**changes)


def test_errors_of_the_gram() -> None:
    *maps, theta, weight, bias = attention_inputs(1, 2, 3, 4, 5, 6, torch.float16)
    gram = lmfn_kernels.layer_gram(maps)
    with pytest.raises(TypeError, match=r"gram has dtype torch.float16; expected torch.float32"):
        lmfn_kernels.layer_apply(maps, gram.half(), theta, weight, bias)
    with pytest.raises(ValueError, match=r"gram has shape .1, 6, 6.; expected .1, 2, 2."):
        lmfn_kernels.layer_apply(maps, gram, theta, weight, bias, rows="layers")
    with pytest.raises(TypeError, match=r"gram has dtype torch.int32; expected one of torch.float32, "):
        lmfn_kernels.attention_matrix(gram.int())


@pytest.mark.parametrize(("n", "c"), [(9, 2), (2, 257)])
def test_kernels_refuse_what_they_cannot_take(n: int, c: int) -> None:
    maps = attention_inputs(1, n, c, 2, 2, 2, torch.float32)[:n]
    with lmfn_kernels.backend("triton"), pytest.raises(ValueError, match="the kernels take 8 maps of 512"):
        lmfn_kernels.layer_gram(maps)
    assert lmfn_kernels.layer_gram(maps).shape == (1, n * c, n * c)
