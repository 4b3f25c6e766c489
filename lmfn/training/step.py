"""A training step: the gradients of its batches, the update of the weights, and what all processes agree on."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from lmfn.cuda_graphs import GradientGraph
from lmfn.training.objective import exponential_average, freeze, initial_network, make_loss, update_average
from lmfn.training.run import TrainState
from lmfn.training.settings import Settings

log = logging.getLogger(__name__)


def initial_state(settings: Settings, accelerator: Accelerator) -> TrainState:
    """The state of a run at its first step, on the device. Raises as `initial_network` and `freeze`."""
    device = accelerator.device
    torch.manual_seed(settings.seed)
    model = initial_network(settings).train()
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.memory = settings.memory
    freeze(model, settings.freeze)
    ema = exponential_average(model)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=settings.lr,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        fused=device.type == "cuda",  # one launch for some fifty parameters, instead of ten
    )
    return TrainState(model, ema, optimizer, accelerator.scaler)


class StepEnd(NamedTuple):
    """What came of a step. All processes have the same."""

    loss: float
    norm: float
    """Norm of the gradient before clipping; both are means over the processes."""
    bad: bool
    """The step was skipped: a loss or gradient was not finite in at least one process."""


class Stepper:
    """Steps with the batches of an iterator (blurred and sharp, float32 `[B, 3, H, W]`, on the accelerator's device).

    With a fused optimizer, as on CUDA, the host never waits for the device, except in `read`: Adam's kernel skips a
    step by itself, and what came of the steps stays on the device until it is read.
    """

    def __init__(
        self, settings: Settings, accelerator: Accelerator, state: TrainState, batches: Iterator[tuple[Tensor, Tensor]]
    ) -> None:
        self.accelerator, self.accumulate = accelerator, settings.accumulate
        self.clip, self.ema = settings.clip, settings.ema
        self.state, self.batches = state, batches
        network = torch.compile(state.model) if settings.compile else state.model
        self.network, self.optimizer = accelerator.prepare(network, state.optimizer)
        self.add_gradients = gradient_function(settings, accelerator, self.network)
        self.upcoming = next(batches, None)
        self.unread: list[Tensor] = []

    @property
    def has_batch(self) -> bool:
        """Whether there is a batch for another step."""
        return self.upcoming is not None

    def step(self, rate: float) -> tuple[Tensor, ...]:
        """Make a step with this learning rate, or skip it in all processes if it is not finite in one; returns blurred,
        output and sharp images of its last batch, `[B, 3, H, W]` each.

        The average of the weights is updated in any case: a skipped step leaves them as they are.
        """
        loss, images = self._gradients()
        norm = self.accelerator.clip_grad_norm_(self.network.parameters(), self.clip or float("inf"))
        means = self.accelerator.reduce(torch.stack([loss, norm]).float() / self.accelerator.num_processes)
        scaler, optimizer = self.accelerator.scaler, self.state.optimizer
        bad = ~means.isfinite().all()
        self.unread.append(torch.cat([means, bad[None]]))
        for group in optimizer.param_groups:
            group["lr"] = rate
        if optimizer.defaults["fused"]:
            optimizer.found_inf = bad.float()  # type: ignore[attr-defined]  # as a GradScaler does
        # With fp16 the scaler skips such a step by itself, and lowers its scale.
        if scaler or optimizer.defaults["fused"] or not bad:
            self.optimizer.step()
        self.optimizer.zero_grad()
        update_average(self.state.ema, self.state.model, self.ema)
        return images

    def _gradients(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The loss, a scalar on the device, and the images of the last batch."""
        loss = torch.zeros((), device=self.accelerator.device)
        for part in range(self.accumulate):
            assert self.upcoming is not None  # either all batches of a step exist, or none
            blurred, sharp = self.upcoming
            last = part == self.accumulate - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.network):
                share, output = self.add_gradients(blurred, sharp)
            loss += share
            self.upcoming = next(self.batches, None)  # prepared while a GPU still works on this one
        return loss, (blurred, output, sharp)

    def read(self) -> list[StepEnd]:
        """What came of the steps since the last call. Waits for the device."""
        values = torch.stack(self.unread).tolist()
        self.unread.clear()
        return [StepEnd(loss, norm, bad > 0) for loss, norm, bad in values]


def agree(accelerator: Accelerator, stop: bool, seconds: float) -> tuple[bool, float]:
    """Whether any process was asked to stop, and the sum of the seconds: only the main process passes its own."""
    known = torch.tensor([stop, seconds], dtype=torch.float32, device=accelerator.device)
    stopped, clock = accelerator.reduce(known).tolist()
    return stopped > 0, clock


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
