"""A step with a fused optimizer, as on CUDA, where the host waits for nothing."""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from lmfn.training import step
from lmfn.training.objective import make_loss, update_average
from lmfn.training.run import TrainState
from lmfn.training.settings import Settings
from lmfn.training.step import Stepper, initial_state
from lmfn_kernels.runtime.torch_private import TorchDispatchMode


class Reads(TorchDispatchMode):
    """Counts the values that Python reads from tensors, by `item`, `bool`, `float` or an index."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


def fused(settings: Settings) -> tuple[Accelerator, TrainState]:
    accelerator = Accelerator(cpu=True)
    state = initial_state(settings, accelerator)
    optimizer = torch.optim.AdamW(state.model.parameters(), lr=settings.lr, weight_decay=0.0, fused=True)
    return accelerator, state._replace(optimizer=optimizer)


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    for seed in itertools.count():
        drawn = torch.rand(2, 2, 3, 32, 32, generator=torch.manual_seed(seed))
        yield drawn[0], drawn[1]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_nothing_is_read_until_it_is_asked_for(settings: Settings, accumulate: int) -> None:
    """Except for the counter of the moving average, which is on the host."""
    accelerator, state = fused(dataclasses.replace(settings, clip=1.0))
    stepper = Stepper(dataclasses.replace(settings, accumulate=accumulate, clip=1.0), accelerator, state, batches())
    stepper.step(1e-3)
    with Reads() as of_the_average:
        update_average(state.ema, state.model, 0.9)
    assert of_the_average.count > 0
    for _ in range(3):
        with Reads() as reads:
            stepper.step(1e-3)
        assert reads.count == of_the_average.count
    assert len(stepper.read()) == 4
    assert not stepper.unread


def changes(stepper: Stepper, state: TrainState) -> bool:
    """Whether a step changes a parameter."""
    before = [parameter.detach().clone() for parameter in state.model.parameters()]
    stepper.step(1e-3)
    return any(not torch.equal(a, b) for a, b in zip(before, state.model.parameters(), strict=True))


def test_the_kernel_skips_a_step_that_is_not_finite(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = itertools.count(1)
    monkeypatch.setattr(
        step, "make_loss", lambda s: lambda a, b: make_loss(s)(a, b) * (math.nan if next(calls) in (2, 4) else 1.0)
    )
    accelerator, state = fused(settings)
    stepper = Stepper(settings, accelerator, state, batches())
    changed = [changes(stepper, state) for _ in range(5)]
    assert changed == [True, False, True, False, True]
    assert {int(moments["step"]) for moments in state.optimizer.state.values()} == {3}
    ends = stepper.read()
    assert [end.bad for end in ends] == [False, True, False, True, False]
    assert [math.isfinite(end.loss) for end in ends] == changed


def test_a_step_that_the_scaler_of_fp16_skips_is_counted(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its loss is finite, and its gradients are not: without a count, a run could skip every step and say nothing."""
    calls = itertools.count(1)

    def loss(output: Tensor, sharp: Tensor) -> Tensor:
        zero = (output - output.detach()).abs().sum()
        return make_loss(settings)(output, sharp) + (zero.sqrt() if next(calls) in (2, 3) else zero)

    monkeypatch.setattr(step, "make_loss", lambda _: loss)
    accelerator, state = fused(settings)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    stepper = Stepper(settings, accelerator, state, batches())
    changed = [changes(stepper, state) for _ in range(4)]
    assert changed == [True, False, False, True]
    assert accelerator.scaler.get_scale() == 0.5
    ends = stepper.read()
    assert [end.bad for end in ends] == [False, True, True, False]
    assert all(math.isfinite(end.loss) for end in ends)
