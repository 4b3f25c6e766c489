"""The batches of a training run, starting at any step, for any number of processes."""

import ctypes
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from lmfn.data import TrainingSet
from lmfn.data.resident import Plans, ResidentSet, SharedSet, largest_share
from lmfn.memory import available_memory
from lmfn.training.settings import Settings

log = logging.getLogger(__name__)


class StepBatches(Sampler[list[int]]):
    """Sample numbers of one process, batch by batch, starting at a step.

    The samples of a step do not depend on the number of processes: two processes with a batch of 8 draw the same as one
    with a batch of 16.
    """

    def __init__(self, settings: Settings, start: int, process: int, processes: int) -> None:
        self.batch, self.accumulate, self.start = settings.batch, settings.accumulate, start
        self.process, self.processes, self.end = process, processes, settings.length

    def __iter__(self) -> Iterator[list[int]]:
        step = self.start
        while self.end is None or step < self.end:
            for part in range(self.accumulate):
                first = ((step * self.accumulate + part) * self.processes + self.process) * self.batch
                yield list(range(first, first + self.batch))
            step += 1


def leave_signals_to_main_process(closed: Any, _worker: int) -> None:
    """In a worker: ignore signals to the group, which the main process handles by finishing its step.

    After closing the batches, the main process uses SIGTERM to end a worker that has not ended by itself.
    """

    def end_if_closed(_number: int, _frame: Any) -> None:
        if closed.value:
            os._exit(0)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end_if_closed)


class Batches:
    """The batches of one process, starting at a step: `next` returns blurred and sharp images, float32
    `[B, 3, patch, patch]` in [0, 1], channels-last on the device. `seconds` is the time spent waiting for them. Close
    it after use.

    Raises ValueError if the images must be on the device and do not fit there.
    """

    def __init__(
        self, settings: Settings, data: TrainingSet, device: torch.device, start: int, process: int, processes: int
    ) -> None:
        self.device, self.seconds = device, 0.0
        self.resident: ResidentSet | SharedSet | None = None
        place = "workers" if settings.data_on == "workers" else self._place(settings, data, processes)
        sampler = StepBatches(settings, start, process, processes)
        if place == "each":
            self.resident = ResidentSet(data, device, progress=process == 0)
        elif place == "shared":
            self.resident = SharedSet(data, device, process, processes, progress=process == 0)
            # Every process plans the patches of all; it makes those whose images it holds.
            sampler = StepBatches(replace(settings, batch=settings.batch * processes), start, 0, 1)
        self._closed = multiprocessing.RawValue(ctypes.c_bool, False)
        loader: DataLoader[Any] = DataLoader(
            Plans(data) if self.resident else data,
            batch_sampler=sampler,
            num_workers=0 if self.resident and device.type == "cpu" else settings.workers,
            collate_fn=list if self.resident else None,
            pin_memory=device.type == "cuda" and not self.resident,
            worker_init_fn=partial(leave_signals_to_main_process, self._closed),
        )
        self._batches = (batch for batch in loader)

    def _place(self, settings: Settings, data: TrainingSet, processes: int) -> Literal["each", "shared", "workers"]:
        """Where decoded images are kept: in each process, distributed over all, or nowhere, so that workers make
        patches."""
        available = self._least_available()
        if available is None:
            return "each" if settings.data_on == "device" else "workers"
        beside = int(os.environ.get("LOCAL_WORLD_SIZE", processes))  # processes on this machine
        share = settings.data_share / (beside if self.device.type == "cpu" else 1)
        text = (
            f"{len(data.images.sizes):,} images, {data.images.bytes / 1e9:.2f} GB decoded; {share:.0%} of the free "
            f"{available / 1e9:.1f} GB on {self.device} may be used"
        )
        place: Literal["each", "shared", "workers"] = "workers"
        if data.images.bytes <= share * available:
            place, outcome = "each", "they stay there"
        elif processes > 1 and largest_share(data, processes) <= share * available:
            place, outcome = "shared", f"they stay there, distributed over {processes} processes"
        elif settings.data_on == "device":
            raise ValueError(f"{text}: too little; use --data-on workers, or a larger --data-share")
        else:
            outcome = "workers make the patches"
        log.info("%s: %s", text, outcome)
        return place

    def _least_available(self) -> int | None:
        """The minimum over all processes of the bytes available on the device, so that all decide alike."""
        available = available_memory(self.device)
        if available is None or not dist.is_initialized():
            return available
        least = torch.tensor(available, device=self.device)
        dist.all_reduce(least, dist.ReduceOp.MIN)
        return int(least)

    def __next__(self) -> tuple[Tensor, Tensor]:
        begin = time.perf_counter()
        batch = next(self._batches)
        blurred, sharp = (
            images.to(self.device, memory_format=torch.channels_last, non_blocking=True).float().div_(255)
            for images in (self.resident(batch) if self.resident else batch)
        )
        self.seconds += time.perf_counter() - begin
        return blurred, sharp

    def close(self) -> None:
        """End the workers, also at exit: after an error some of them would wait for ever."""
        self._closed.value = True
        self._batches.close()
