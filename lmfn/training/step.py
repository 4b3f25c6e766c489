"""A training step: the gradients of its batches, what all processes agree on, and the update of the weights."""

import contextlib
import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from lmfn.cuda_graphs import GradientGraph
from lmfn.training.batches import Batches
from lmfn.training.objective import exponential_average, initial_network, make_loss
from lmfn.training.run import TrainState
from lmfn.training.settings import Settings

log = logging.getLogger(__name__)


def initial_state(settings: Settings, accelerator: Accelerator) -> TrainState:
    """The state of a run at its first step, on the device. Raises as `initial_network`."""
    device = accelerator.device
    torch.manual_seed(settings.seed)
    model = initial_network(settings).train()
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.memory = settings.memory
    ema = exponential_average(model, settings.ema)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=settings.lr,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        fused=device.type == "cuda",  # one launch for some fifty parameters, instead of ten
    )
    return TrainState(model, ema, optimizer, accelerator.scaler)


class Stepper:
    """The two halves of a step, `gradients` and `update`. In between, the processes `agree` on whether to skip it."""

    def __init__(self, settings: Settings, accelerator: Accelerator, state: TrainState, batches: Batches) -> None:
        self.accelerator, self.accumulate, self.clip = accelerator, settings.accumulate, settings.clip
        self.state, self.batches, self.skipped_in_a_row = state, batches, 0
        network = torch.compile(state.model) if settings.compile else state.model
        self.network, self.optimizer = accelerator.prepare(network, state.optimizer)
        self.add_gradients = gradient_function(settings, accelerator, self.network)
        self.upcoming = next(batches, None)

    @property
    def has_batch(self) -> bool:
        """Whether there is a batch for another step."""
        return self.upcoming is not None

    def gradients(self) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Loss and norm of the gradient before clipping, both scalars on the device; blurred, output and sharp images
        of the last batch, `[B, 3, H, W]` each."""
        loss = torch.zeros((), device=self.accelerator.device)
        for part in range(self.accumulate):
            assert self.upcoming is not None  # either all batches of a step exist, or none
            blurred, sharp = self.upcoming
            last = part == self.accumulate - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.network):
                share, output = self.add_gradients(blurred, sharp)
            loss += share
            self.upcoming = next(self.batches, None)  # prepared while a GPU still works on this one
        norm = self.accelerator.clip_grad_norm_(self.network.parameters(), self.clip or float("inf"))
        return loss, norm, (blurred, output, sharp)

    def update(self, rate: float, bad: bool) -> None:
        """Update the weights, with this learning rate, and their average; skipped if the step is `bad`."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.accelerator.scaler or not bad:  # the scaler skips the step itself, and lowers its scale
            self.optimizer.step()
        if not bad:
            self.state.ema.update_parameters(self.state.model)
        self.optimizer.zero_grad()
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if bad else 0


class StepEnd(NamedTuple):
    """What all processes agree on at the end of a step."""

    bad: bool
    """A loss or gradient is not finite in at least one process."""
    stop: bool
    """At least one process was asked to stop."""
    seconds: float
    """Training time, by the main process's clock."""
    loss: float
    norm: float
    """Norm of the gradient; both are means over the processes."""


def agree(accelerator: Accelerator, loss: Tensor, norm: Tensor, stop: bool, seconds: float) -> StepEnd:
    """One exchange, and one wait for the device, per step, so that all processes skip, stop and end at the same one."""
    # With fp16 the scaler handles gradients that are not finite.
    finite = loss.isfinite() if accelerator.scaler else loss.isfinite() & norm.isfinite()
    known = torch.tensor([stop, seconds], dtype=torch.float32).to(loss.device, non_blocking=True)
    means = torch.stack([loss, norm]).float() / accelerator.num_processes
    bad, mean_loss, mean_norm, stopped, clock = accelerator.reduce(torch.cat([~finite[None], means, known])).tolist()
    return StepEnd(bad > 0, stopped > 0, clock, mean_loss, mean_norm)


def obstacle_to_graph(settings: Settings, device: torch.device, processes: int) -> str | None:
    """Why a training step cannot be a CUDA graph; None if it can."""
    obstacles = {
        f"the device is {device}": device.type != "cuda",
        f"there are {processes} processes": processes > 1,
        "fp16 scales its gradients": settings.precision == "fp16",
        "--accumulate adds up gradients": settings.accumulate > 1,
        "--compile launches its own": settings.compile,
    }
    return next((obstacle for obstacle, holds in obstacles.items() if holds), None)


def gradient_function(
    settings: Settings, accelerator: Accelerator, network: nn.Module
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """From blurred and sharp images to their share of the step's loss, and the output; gradients are accumulated in the
    network's parameters."""
    loss_of = make_loss(settings)

    def add_gradients(blurred: Tensor, sharp: Tensor) -> tuple[Tensor, Tensor]:
        with accelerator.autocast():
            output = network(blurred)
        share = loss_of(output.float(), sharp) / settings.accumulate
        accelerator.backward(share)
        return share.detach(), output.detach()

    obstacle = obstacle_to_graph(settings, accelerator.device, accelerator.num_processes)
    if not settings.graph or obstacle:
        if settings.graph and accelerator.device.type == "cuda":
            log.info("the step is not captured as a CUDA graph: %s", obstacle)
        return add_gradients
    log.info("the step is captured as a CUDA graph (--no-graph launches it kernel by kernel)")
    return GradientGraph(add_gradients, network.parameters())
