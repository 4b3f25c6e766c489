"""The oracle: it finds small defects, works on every device, and can be used for other ops."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lmfn_kernels
from lmfn_kernels.cases import OPS, Size
from lmfn_kernels.rfdb import torch_backend
from lmfn_kernels.runtime import registration
from lmfn_kernels.testing import assert_correct, reference_with_bounds, saved_bytes


def test_every_op_is_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    called: set[str] = set()
    call = registration.Op.__call__

    def noted(op: Any, *arguments: Any) -> tuple[Tensor, ...]:
        called.add(op.name)
        return call(op, *arguments)

    monkeypatch.setattr(registration.Op, "__call__", noted)
    for op in OPS.values():
        op.function(*op.draw((1, 2, 3, 1, 4), torch.float32))
    registered = torch._C._dispatch_get_all_op_names()  # noqa: TID251 (needed by this test alone)
    assert {f"{name}{suffix}" for name in called for suffix in ("", "_backward")} == {
        name.removeprefix("lmfn::") for name in registered if name.startswith("lmfn::")
    }


def test_an_op_of_ones_own() -> None:
    """The example in docs/kernels.md passes; with a small error in a gradient it fails."""
    text = (Path(__file__).parents[2] / "docs" / "kernels.md").read_text()
    names: dict[str, Any] = {}
    (example,) = (block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "assert_correct" in block)
    exec(example, names)
    op, formula, x, weight = (names[name] for name in ("op", "formula", "x", "weight"))
    with pytest.raises(AssertionError, match=r"gradient of input 1 .4, 5, 3, 3.: RMS error .* where rounding causes"):
        assert_correct(lambda x, w: op(x, w + 0.05 * (w - w.detach())), [x, weight], formula=formula)
    with pytest.raises(AssertionError, match=r"result 0: shape .2, 4, 9, 7., expected .2, 4, 9, 8."):
        assert_correct(lambda x, w: op(x, w)[..., 1:], [x, weight], formula=formula)


def test_saved_bytes_counts_memory_once() -> None:
    x = torch.ones(100)
    assert saved_bytes(lambda x: (x * x).exp(), [x]) == 400 + 400
    assert saved_bytes(lambda x: (x * x).exp(), [x], uncounted=[x]) == 400


def border_tap_dropped(conv: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """One of the nine taps is missing in the first row."""

    def call(x: Tensor, weight: Tensor, *rest: Any, slope: float = 1.0, **options: Any) -> Tensor:
        y = conv(x, weight, *rest, **options)
        if weight.shape[2] == 3 and options.get("stride", 1) == 1:
            one = torch.zeros_like(weight)
            one[:, :, 2, 2] = weight[:, :, 2, 2]
            y[:, :, 0] -= conv(x, one, None, padding=options["padding"])[:, :, 0]
        return torch.nn.functional.leaky_relu(y, slope)

    return call


def bias_sign_wrong(conv: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any, **options: Any) -> Tensor:
        return conv(x, weight, None if bias is None else -bias, *rest, **options)

    return call


def other_slope(conv: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *args, slope=1.0, **options: conv(*args, slope=0.06 if slope == 0.05 else slope, **options)


def tile_missing_in_bias_gradient(weight_gradient: Callable[..., Any]) -> Callable[..., Any]:
    def call(e: Tensor, *rest: Any, **options: Any) -> tuple[Tensor, Tensor]:
        less = e.clone()
        less[:1, :, :8, :16] = 0
        return weight_gradient(e, *rest, **options)[0], weight_gradient(less, *rest, **options)[1]

    return call


def last_column_less(input_gradient: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(*args: Any, **options: Any) -> Tensor:
        g = input_gradient(*args, **options)
        g[:, :, :, -1] *= 0.75
        return g

    return call


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("piece", "defect"),
    [
        ("conv", border_tap_dropped),
        ("conv", bias_sign_wrong),
        ("conv", other_slope),
        ("weight_gradient", tile_missing_in_bias_gradient),
        ("input_gradient", last_column_less),
    ],
)
@pytest.mark.parametrize("name", ["distill_stage", "rfdb"])
def test_the_bound_finds_a_defect(
    name: str, piece: str, defect: Callable[..., Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every dtype, and within the block as in a single op."""
    inputs = OPS[name].inputs(Size(2, 1, 10, 17, 21), dtype)
    monkeypatch.setattr(torch_backend, piece, defect(getattr(torch_backend, piece)))
    with lmfn_kernels.backend("torch"), pytest.raises(AssertionError, match="where rounding causes"):
        assert_correct(OPS[name].function, inputs)


def test_the_bound_is_measured_on_every_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A result on a device other than the input's differs if the function draws random numbers there."""
    asked: list[str] = []
    make = torch.Generator

    def generator(device: torch.device | str = "cpu") -> torch.Generator:
        asked.append(str(device))
        return make()  # meta tensors have no random numbers

    def function(x: Tensor) -> Tensor:
        assert (torch.ones(3, dtype=x.dtype, device="meta") * 2).is_meta
        return x * 2

    monkeypatch.setattr(torch, "Generator", generator)
    reference_with_bounds(function, [torch.rand(3)], rounds=1)
    assert {"cpu", "meta"} <= set(asked)
