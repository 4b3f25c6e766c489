"""The training loop: from settings to a trained network in RUNS/NAME.

Its parts are in the neighbouring files: settings, batches, the step, the objective (initial weights, loss, learning
rate, average of the weights), and the run's folder and log.
"""

import contextlib
import datetime
import logging
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from tqdm.contrib.logging import logging_redirect_tqdm

from lmfn.data import TrainingSet, find_pairs
from lmfn.data.packed import is_pack, packed_pairs
from lmfn.device import autocast, choose_device
from lmfn.evaluation import Evaluator
from lmfn.training.batches import Batches
from lmfn.training.objective import beginning, learning_rate
from lmfn.training.run import Log, Progress, RunFolder, StopRequest, TrainState, parse_settings
from lmfn.training.settings import Settings
from lmfn.training.step import StepEnd, Stepper, agree, initial_state

logger = logging.getLogger(__name__)

MOST_SKIPPED_IN_A_ROW = 20


def train(settings: Settings) -> int:
    """Start or resume a training run; its exit status: 0, or 128 + the number of the signal that stopped it.

    Raises ValueError for unusable settings or data, FloatingPointError if the loss stays infinite or NaN.
    """
    with StopRequest() as stop:
        done = train_or_stop(settings, stop)
    return 128 + stop.signal if stop.signal and not done else 0


def train_or_stop(settings: Settings, stop: StopRequest) -> bool:
    """`train`, to its end or until it is asked to stop; whether it is at its end."""
    accelerator = join_processes(settings)
    device, is_main = accelerator.device, accelerator.is_main_process
    logging.getLogger("lmfn").setLevel(logging.INFO if is_main else logging.WARNING)

    run = RunFolder(settings.runs / settings.name)
    resumes = settings.resume == "auto" and bool(run.states)
    logger.info(f"{settings.name} " + (f"continues from {run.states[-1]}" if resumes else beginning(settings)))

    # The data first: errors in it are reported before anything is written.
    data = TrainingSet(
        settings.sources, patch=settings.patch, seed=settings.seed, blur=settings.blur, cache_gib=settings.cache_gib
    )
    validation = validation_set(settings, device) if is_main else None
    # The network of a resumed run is its own: the weights that it started from may have been removed.
    own = replace(settings, start_from=run.path) if resumes and settings.start_from else settings
    state = initial_state(own, accelerator)

    with contextlib.ExitStack() as stack:
        if is_main:
            stack.enter_context(run.lock())
        at = run.load(state) if resumes else Progress()
        owed = resumes and run.owes_validation(at, settings)
        batches = Batches(settings, data, device, at.step - owed, accelerator.process_index, accelerator.num_processes)
        stack.enter_context(contextlib.closing(batches))
        accelerator.wait_for_everyone()  # all processes have read the state before one writes
        log = None
        if is_main:
            run.begin(settings, at.step)
            log = Log(run, settings, at, device, accelerator.num_processes, validation)
            stack.callback(log.bar.close)  # so that an error starts a new line
            stack.enter_context(logging_redirect_tqdm())  # and a message, too
        if owed:
            blurred, sharp = [next(batches) for _ in range(settings.accumulate)][-1]
            if log:
                with torch.no_grad(), autocast(device, settings.precision):
                    output = state.model(blurred)
                log.validate(at, state, (blurred, output, sharp))
        make_steps(settings, accelerator, state, at, batches, stop, run, log)

    if log:
        log.close(at, stop.signal)
    # DistributedDataParallel goes first: as the last to hold the process group, it would wait for gloo's threads with
    # the interpreter's lock, which these wait for.
    accelerator.free_memory()
    accelerator.end_training()
    return at.fraction_of(settings) >= 1


def make_steps(
    settings: Settings,
    accelerator: Accelerator,
    state: TrainState,
    at: Progress,
    batches: Batches,
    stop: StopRequest,
    run: RunFolder,
    log: Log | None,
) -> None:
    """Make the steps of a run that remain, or those until it is asked to stop. The process that has the log reports,
    saves and validates."""
    alone, in_a_row, stopping = accelerator.num_processes == 1, 0, False
    began = time.perf_counter() - at.seconds
    stepper = Stepper(settings, accelerator, state, batches)
    while stepper.has_batch and at.fraction_of(settings) < 1 and not stopping:
        rate = learning_rate(settings, at.step, at.fraction_of(settings))
        images = stepper.step(rate)
        at.step += 1
        # A process among several learns what time it is, and whether to stop, only when they all read.
        if alone:
            at.seconds = time.perf_counter() - began
        ends_here = at.fraction_of(settings) >= 1 or (alone and stop.signal)
        if not (ends_here or is_read_after(at.step, settings, accelerator.device)):
            continue

        ends = stepper.read()
        stopping, at.seconds = agree(accelerator, stop.signal is not None, time.perf_counter() - began if log else 0.0)
        in_a_row = count_skipped(at, ends, in_a_row, run)
        if log:
            done = at.fraction_of(settings)
            log.step(at, done, [end.loss for end in ends], rate, ends[-1].norm, batches.seconds)
            if done >= 1 or stopping or at.step % settings.save_every == 0:
                run.save(state, at, compact=settings.compact_states)
            if done >= 1 or (at.step % settings.val_every == 0 and not stopping):
                log.validate(at, state, images)
                began = time.perf_counter() - at.seconds  # validation does not count as training time


def count_skipped(at: Progress, ends: Sequence[StepEnd], in_a_row: int, run: RunFolder) -> int:
    """Add the steps that were skipped to the progress; how many were in a row, up to the last, if `in_a_row` were so up
    to the first. Raises FloatingPointError for too many."""
    for step, end in enumerate(ends, at.step - len(ends) + 1):
        at.skipped, in_a_row = at.skipped + end.bad, in_a_row + 1 if end.bad else 0
        if in_a_row == MOST_SKIPPED_IN_A_ROW:
            raise FloatingPointError(
                f"the loss was not finite {MOST_SKIPPED_IN_A_ROW} steps in a row, up to step {step}; the last good "
                f"state is in {run.path / 'state'}. A lower --lr, --clip 1 or --precision fp32 may help"
            )
    return in_a_row


def is_read_after(step: int, settings: Settings, device: torch.device) -> bool:
    """Whether the host reads, after this step, what came of the steps. On CUDA it would wait for the device, and the
    device for it, so it does so only where something is reported or saved."""
    return device.type != "cuda" or any(
        step % every == 0 for every in (settings.log_every, settings.save_every, settings.val_every)
    )


def join_processes(settings: Settings) -> Accelerator:
    """This process among those of torchrun, with its device and precision."""
    # Accelerate joins CPU processes only if told to; otherwise each would be a run of its own.
    on_cpu = choose_device(None if settings.device == "auto" else settings.device).type == "cpu"
    precision = "no" if settings.precision == "fp32" else settings.precision
    # NCCL ends the run if one process waits ten minutes for another, as all do for the one that validates.
    patient = InitProcessGroupKwargs(timeout=datetime.timedelta(days=1))
    return Accelerator(mixed_precision=precision, cpu=on_cpu, kwargs_handlers=[patient])


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
