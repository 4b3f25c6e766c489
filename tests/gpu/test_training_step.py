"""A step of train.py, which needs more packages than the kernels do."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("tyro")
pytest.importorskip("accelerate")
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from lmfn.training.settings import Settings
from lmfn.training.step import Stepper, initial_state
from tests.gpu.conftest import DEVICE


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_waits_for_nothing(precision: Any, accumulate: int, tmp_path: Path) -> None:
    """One that is skipped, too: it leaves the weights as they are."""
    AcceleratorState._reset_state(reset_partial_state=True)
    small = ("channels=8", "features=8", "distilled=4", "esa=4", "rfdbs=1")
    settings = Settings(runs=tmp_path, network=small, precision=precision, accumulate=accumulate, clip=1.0, loss="l1")
    accelerator = Accelerator(mixed_precision="no" if precision == "fp32" else precision)
    state = initial_state(settings, accelerator)
    drawn = torch.rand(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    broken = drawn * torch.tensor([1.0, float("nan")], device=DEVICE).view(2, 1, 1, 1, 1)
    shown = [drawn]

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield shown[0][0], shown[0][1]

    stepper = Stepper(settings, accelerator, state, batches())
    for _ in range(2):  # compiles, captures, and creates Adam's moments
        stepper.step(1e-3)
    stepper.read()
    weights = []
    torch.cuda.set_sync_debug_mode("error")
    try:
        for images in (drawn, broken, drawn, drawn):
            shown[0] = images
            stepper.step(1e-3)
            weights.append([parameter.detach().clone() for parameter in state.model.parameters()])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    ends = stepper.read()
    assert [end.bad for end in ends] == [False, accumulate == 2, True, False]  # a batch is drawn ahead
    for end, before, after in zip(ends[1:], weights, weights[1:], strict=False):
        same = all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
        assert end.bad == same or (precision == "fp16" and same)  # the scaler skips steps of its own
