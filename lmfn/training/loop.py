"""The training loop: from settings to a trained network in RUNS/NAME.

Its parts are in the neighbouring files: settings, batches, the objective (initial weights, loss, learning rate, average
of the weights), and the run's folder and log.
"""

import contextlib
import logging
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from lmfn.cuda_graphs import GradientGraph
from lmfn.data import TrainingSet, find_pairs
from lmfn.data.packed import is_pack, packed_pairs
from lmfn.device import choose_device
from lmfn.evaluation import Evaluator
from lmfn.network.activity import summarise, unit_activity
from lmfn.training.batches import Batches
from lmfn.training.objective import beginning, exponential_average, initial_network, learning_rate, make_loss
from lmfn.training.run import Log, Progress, RunFolder, StopRequest, parse_settings
from lmfn.training.settings import Settings

logger = logging.getLogger(__name__)

MOST_SKIPPED_IN_A_ROW = 20


def train(settings: Settings) -> int:
    """Start or resume a training run; its exit status: 0, or 128 + the number of the signal that stopped it.

    Raises ValueError for unusable settings or data, FloatingPointError if the loss stays infinite or NaN.
    """
    stop = StopRequest()
    accelerator = join_processes(settings)
    device, scaler, is_main = accelerator.device, accelerator.scaler, accelerator.is_main_process
    logging.getLogger("lmfn").setLevel(logging.INFO if is_main else logging.WARNING)

    run = RunFolder(settings.runs / settings.name)
    resumes = settings.resume == "auto" and bool(run.states)
    logger.info(f"{settings.name} " + (f"continues from {run.states[-1]}" if resumes else beginning(settings)))

    # The data first: errors in it are reported before anything is written.
    data = TrainingSet(
        settings.sources, patch=settings.patch, seed=settings.seed, blur=settings.blur, cache_gib=settings.cache_gib
    )
    validation = validation_set(settings, device) if is_main else None

    torch.manual_seed(settings.seed)
    model = initial_network(settings).train()
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.memory = settings.memory
    ema = exponential_average(model, settings.ema)
    adam = torch.optim.AdamW(
        model.parameters(),
        lr=settings.lr,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        fused=device.type == "cuda",  # one launch for some fifty parameters, instead of ten
    )

    with contextlib.ExitStack() as stack:
        if is_main:
            stack.enter_context(run.lock())
        at = run.load(model, ema, adam, scaler) if resumes else Progress()
        batches = Batches(settings, data, device, at.step, accelerator.process_index, accelerator.num_processes)
        stack.enter_context(contextlib.closing(batches))
        accelerator.wait_for_everyone()  # all processes have read the state before one writes
        if is_main:
            run.begin(settings, at.step)
            log = Log(run, settings, at, device, accelerator.num_processes)
            stack.callback(log.bar.close)  # so that an error starts a new line

        network, optimizer = accelerator.prepare(torch.compile(model) if settings.compile else model, adam)
        add_gradients = gradient_function(settings, accelerator, network)
        done, skipped_in_a_row, began = at.fraction_of(settings), 0, time.perf_counter() - at.seconds
        upcoming = next(batches, None)
        while upcoming is not None and done < 1:
            rate = learning_rate(settings, at.step, done)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = torch.zeros((), device=device)
            for part in range(settings.accumulate):
                assert upcoming is not None  # either all batches of a step exist, or none
                blurred, sharp = upcoming
                last = part == settings.accumulate - 1
                with contextlib.nullcontext() if last else accelerator.no_sync(network):
                    share, output = add_gradients(blurred, sharp)
                loss += share
                upcoming = next(batches, None)  # prepared while a GPU still works on this one
            norm = accelerator.clip_grad_norm_(network.parameters(), settings.clip or float("inf"))

            at.step += 1
            seconds = time.perf_counter() - began if is_main else 0.0
            ended = agree(accelerator, loss, norm, stop.signal is not None, seconds)
            at.seconds, done = ended.seconds, at.fraction_of(settings)
            if accelerator.scaler or not ended.bad:  # the scaler skips the step itself, and lowers its scale
                optimizer.step()
            if not ended.bad:
                ema.update_parameters(model)
            optimizer.zero_grad()
            at.skipped += ended.bad
            skipped_in_a_row = skipped_in_a_row + 1 if ended.bad else 0
            if skipped_in_a_row == MOST_SKIPPED_IN_A_ROW:
                raise FloatingPointError(
                    f"the loss was not finite {MOST_SKIPPED_IN_A_ROW} steps in a row, up to step {at.step}; the last "
                    f"good state is in {run.path / 'state'}. A lower --lr, --clip 1 or --precision fp32 may help"
                )

            if is_main:
                log.step(at, done, ended.loss, rate, ended.norm, batches.seconds)
                if done >= 1 or ended.stop or at.step % settings.save_every == 0:
                    run.save(model, ema, adam, scaler, at, compact=settings.compact_states)
                if done >= 1 or (at.step % settings.val_every == 0 and not ended.stop):
                    log.validate(at, ema.module, validation, (blurred[0], output[0], sharp[0]))
                    log.activity(at, summarise(unit_activity(model, blurred)))
                    began = time.perf_counter() - at.seconds  # validation does not count as training time
            if ended.stop:
                break

    if is_main:
        log.close(at, stop.signal)
    # DistributedDataParallel goes first: as the last to hold the process group, it would wait for gloo's threads with
    # the interpreter's lock, which these wait for.
    accelerator.free_memory()
    del network, add_gradients
    accelerator.end_training()
    return 128 + stop.signal if stop.signal else 0


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


def join_processes(settings: Settings) -> Accelerator:
    """This process among those of torchrun, with its device and precision."""
    # Accelerate joins CPU processes only if told to; otherwise each would be a run of its own.
    on_cpu = choose_device(None if settings.device == "auto" else settings.device).type == "cpu"
    return Accelerator(mixed_precision="no" if settings.precision == "fp32" else settings.precision, cpu=on_cpu)


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


def validation_set(settings: Settings, device: torch.device) -> Evaluator | None:
    """An evaluator for the pairs of --val."""
    if settings.val is None:
        return None
    if is_pack(settings.val):
        pairs = packed_pairs(settings.val)
    else:
        pairs = find_pairs(settings.val, split="test", variant=settings.variant)
    return Evaluator(
        pairs if settings.val_images is None else pairs.spread(settings.val_images),
        protocol="plain",
        metrics=("psnr", "ssim_gauss2d"),
        device=device,
        precision=settings.precision,
        keep=True,
        progress=False,
    )


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
            logger.info("the step is not captured as a CUDA graph: %s", obstacle)
        return add_gradients
    logger.info("the step is captured as a CUDA graph (--no-graph launches it kernel by kernel)")
    return GradientGraph(add_gradients, network.parameters())


def main(arguments: Sequence[str]) -> int:
    """Run `lmfn train` with these arguments; the exit status: that of `train`, or 1 for an error, which is printed."""
    logging.basicConfig(format="%(message)s")
    try:
        settings = parse_settings(arguments)
        settings.check()
        return train(settings)
    except (ValueError, OSError, FloatingPointError) as error:
        message = str(error).strip()
        if "Original Traceback" in message:  # of a worker's error: the message follows the last line of code
            message = re.split(r"^ .*\n(?=[A-Za-z_][\w.]*: )", message, flags=re.MULTILINE)[-1].partition(": ")[2]
        print(f"lmfn: {message}", file=sys.stderr)
        return 1
