"""The training loop: from settings to a trained network in RUNS/NAME."""

import contextlib
import dataclasses
import logging
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from lmfn.cuda_graphs import GradientGraph, check_can_capture
from lmfn.data import TrainingSet, find_pairs
from lmfn.device import choose_device
from lmfn.evaluation import Evaluator
from lmfn.training.batches import Batches
from lmfn.training.objective import average, initial_network, learning_rate, make_loss
from lmfn.training.run import Log, Progress, RunFolder, StopRequest, parse_settings
from lmfn.training.settings import Settings

MOST_SKIPPED_IN_A_ROW = 20


def train(settings: Settings) -> int:
    """Run a training run, or the rest of one; its exit status."""
    stop = StopRequest()
    # Accelerate joins processes on CPUs only when told that they are; left to itself, each would be a run of its own.
    on_cpu = choose_device(None if settings.device == "auto" else settings.device).type == "cpu"
    accelerator = Accelerator(mixed_precision="no" if settings.precision == "fp32" else settings.precision, cpu=on_cpu)
    device, scaler, is_main = accelerator.device, accelerator.scaler, accelerator.is_main_process
    if settings.graph:
        check_can_capture(device, accelerator.num_processes)
    logging.getLogger("lmfn").setLevel(logging.INFO if is_main else logging.WARNING)

    # The data first: whatever is wrong with it is said before anything is written.
    data = TrainingSet(
        settings.sources, patch=settings.patch, seed=settings.seed, blur=settings.blur, cache_gib=settings.cache_gib
    )
    validation = None
    if settings.val and is_main:
        pairs = find_pairs(settings.val, split="test", variant=settings.variant)
        every = -(-len(pairs) // (settings.val_images or len(pairs)))
        validation = Evaluator(
            dataclasses.replace(pairs, pairs=pairs.pairs[::every]),
            protocol="plain",
            metrics=("psnr", "ssim_gauss2d"),
            device=device,
            precision=settings.precision,
            keep=True,
            progress=False,
        )

    torch.manual_seed(settings.seed)
    model = initial_network(settings).train()
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.memory = settings.memory
    ema = average(model, settings.ema)
    adam = torch.optim.Adam(model.parameters(), lr=settings.lr, betas=settings.betas)
    run = RunFolder(settings.runs / settings.name)
    at = run.load(model, ema, adam, scaler) if settings.resume == "auto" and run.states else Progress()
    batches = Batches(settings, data, device, at.step, accelerator.process_index, accelerator.num_processes)
    accelerator.wait_for_everyone()  # all have read the state before one writes
    if is_main:
        run.begin(settings, at.step)
        log = Log(run, settings, at, device, accelerator.num_processes)
    network, optimizer = accelerator.prepare(torch.compile(model) if settings.compile else model, adam)
    loss_of = make_loss(settings)

    def backward(network: nn.Module, blurred: Tensor, sharp: Tensor) -> tuple[Tensor, Tensor]:
        """The loss's share in the step's, and the output; gradients are added to the parameters'."""
        with accelerator.autocast():
            output = network(blurred)
        share = loss_of(output.float(), sharp) / settings.accumulate
        accelerator.backward(share)
        return share.detach(), output.detach()

    add_gradients: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = partial(backward, network)
    if settings.graph:
        add_gradients = GradientGraph(add_gradients, model.parameters())

    def fraction_done() -> float:
        by_steps = at.step / settings.length if settings.length else 0.0
        return max(by_steps, at.seconds / (60 * settings.minutes) if settings.minutes else 0.0)

    done, skipped_in_a_row, began = fraction_done(), 0, time.perf_counter() - at.seconds
    with contextlib.closing(batches):
        upcoming = next(batches, None)
        while upcoming and done < 1:
            rate = learning_rate(settings, at.step, done)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = torch.zeros((), device=device)
            for part in range(settings.accumulate):
                assert upcoming is not None  # a step's batches are all there or none
                blurred, sharp = upcoming
                last = part == settings.accumulate - 1
                with contextlib.nullcontext() if last else accelerator.no_sync(network):
                    share, output = add_gradients(blurred, sharp)
                loss += share
                upcoming = next(batches, None)  # made while a GPU is still at work on this one
            norm = accelerator.clip_grad_norm_(network.parameters(), settings.clip or float("inf"))

            # One exchange a step, so that all processes skip, stop and end at the same one.
            at.step += 1
            # With fp16 a gradient that is not finite is the scaler's business: it skips, and lowers its scale.
            bad = not torch.isfinite(loss) or not (scaler or torch.isfinite(norm))
            seconds = time.perf_counter() - began if is_main else 0.0
            mine = [bad, stop.signal is not None, seconds, loss.item() / accelerator.num_processes]
            shared = accelerator.reduce(torch.tensor(mine, device=device))
            any_bad, any_stop, at.seconds, mean_loss = shared.tolist()
            done = fraction_done()
            if scaler or not any_bad:
                optimizer.step()
            if not any_bad:
                ema.update_parameters(model)
            optimizer.zero_grad()
            at.skipped += bool(any_bad)
            skipped_in_a_row = skipped_in_a_row + 1 if any_bad else 0
            if skipped_in_a_row == MOST_SKIPPED_IN_A_ROW:
                raise FloatingPointError(
                    f"the loss was not finite {MOST_SKIPPED_IN_A_ROW} steps in a row, up to step {at.step}; the last "
                    f"good state is in {run.path / 'state'}. A lower --lr, --clip 1 or --precision fp32 may help"
                )

            ending = done >= 1 or any_stop
            if is_main:
                log.step(at, done, mean_loss, rate, norm.item(), batches.seconds)
                if ending or at.step % settings.save_every == 0:
                    run.save(model, ema, adam, scaler, at)
                if done >= 1 or (at.step % settings.val_every == 0 and not any_stop):
                    log.validate(at, ema.module, validation, (blurred[0], output[0], sharp[0]))
                    began = time.perf_counter() - at.seconds  # validating is not training
            if any_stop:
                break

    if is_main:
        log.close(at, stop.signal)
    # DistributedDataParallel goes first: as the last to hold the process group, it would wait for gloo's threads with
    # the interpreter's lock, which these wait for.
    accelerator.free_memory()
    del network, add_gradients
    accelerator.end_training()
    return 128 + stop.signal if stop.signal else 0


def main(arguments: list[str] | None = None) -> int:
    """Train as the command line (default: the process's) asks: the exit status."""
    try:
        settings = parse_settings(sys.argv[1:] if arguments is None else arguments)
        settings.check()
        logging.basicConfig(format="%(message)s")
        return train(settings)
    except (ValueError, OSError, FloatingPointError) as error:
        # What a worker raises comes with its traceback; the last line is the message.
        print(f"error: {str(error).strip().splitlines()[-1]}", file=sys.stderr)
        return 1
