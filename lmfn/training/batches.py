"""The batches of a training run, starting at any step, for any number of processes."""

import ctypes
import itertools
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, Self

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from lmfn.data import TrainingSet
from lmfn.data.rendering import SYMMETRIES, Patch, turned
from lmfn.data.resident import Plans, ResidentSet, SharedSet, largest_share
from lmfn.device import sent
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


ROUND, TOGETHER = 64, 8
"""Batches whose patches are kept for reuse, and those that are made at once."""


class Rounds(Sampler[list[int]]):
    """Sample numbers of one process for `Reused`: those of `TOGETHER` batches at a time, starting with a round."""

    def __init__(self, settings: Settings, first: int, process: int, processes: int) -> None:
        self.batch, self.first, self.process, self.processes = settings.batch, first, process, processes

    def __iter__(self) -> Iterator[list[int]]:
        size = TOGETHER * self.batch
        for part in itertools.count(self.first * (ROUND // TOGETHER)):
            start = (part * self.processes + self.process) * size
            yield list(range(start, start + size))


class Reused:
    """Batches of patches that are each used `reuse` times, starting at any of them: a round of batches is made and kept
    on the device, and passed through `reuse` times, in another order and with each patch in another symmetry.

    Order and symmetries are functions of the seed and the pass.
    """

    def __init__(
        self, settings: Settings, resident: ResidentSet, plans: Iterator[list[Patch]], device: torch.device, start: int
    ) -> None:
        self._resident, self._plans, self._device = resident, plans, device
        self._batch, self._reuse, self._seed = settings.batch, settings.reuse, settings.seed
        self._next, self._round, self._pass = start, -1, -1
        side, kept = settings.patch, ROUND * settings.batch
        self._images = torch.empty(2, kept, side, side, 3, dtype=torch.uint8, device=device)

    def __next__(self) -> tuple[Tensor, Tensor]:
        """Blurred and sharp, uint8 `[B, 3, patch, patch]`, channels-last in memory."""
        which_pass, number = divmod(self._next, ROUND)
        if which_pass != self._pass:
            self._begin(which_pass)
        self._next += 1
        place, symmetry = self._order[:, number * self._batch : (number + 1) * self._batch]
        blurred, sharp = (turned(images, place, symmetry) for images in self._images)
        return blurred, sharp

    def _begin(self, which_pass: int) -> None:
        of_round, turn = divmod(which_pass, self._reuse)
        if of_round != self._round:
            for part in self._images.split(TOGETHER * self._batch, dim=1):
                for into, made in zip(part, self._resident(next(self._plans)), strict=True):
                    into.copy_(made.permute(0, 2, 3, 1))
        kept = self._images.shape[1]
        symmetries = np.random.default_rng((self._seed, of_round)).random((kept, SYMMETRIES)).argsort(axis=1)[:, turn]
        place = np.random.default_rng((self._seed, of_round, turn)).permutation(kept)
        self._order = sent(torch.from_numpy(np.stack([place, symmetries[place]])), self._device)
        self._round, self._pass = of_round, which_pass


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
        sampler: Sampler[list[int]] = StepBatches(settings, start, process, processes)
        if place == "each":
            self.resident = ResidentSet(data, device, progress=process == 0)
        elif place == "shared":
            self.resident = SharedSet(data, device, process, processes, progress=process == 0)
            # Every process plans the patches of all; it makes those whose images it holds.
            sampler = StepBatches(replace(settings, batch=settings.batch * processes), start, 0, 1)
        if settings.reuse > 1:
            if not isinstance(self.resident, ResidentSet):
                raise ValueError("reuse needs all images on the device of each process; use --reuse 1")
            first = start * settings.accumulate
            sampler = Rounds(settings, first // (ROUND * settings.reuse), process, processes)
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
        self._reused = None
        if settings.reuse > 1 and isinstance(self.resident, ResidentSet):
            self._reused = Reused(settings, self.resident, self._batches, device, first)

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

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        begin = time.perf_counter()
        blurred, sharp = (
            images.to(self.device, memory_format=torch.channels_last, non_blocking=True).float().div_(255)
            for images in self._made()
        )
        self.seconds += time.perf_counter() - begin
        return blurred, sharp

    def _made(self) -> Sequence[Tensor]:
        """Blurred and sharp, uint8."""
        if self._reused:
            return next(self._reused)
        batch = next(self._batches)
        return self.resident(batch) if self.resident else batch

    def close(self) -> None:
        """End the workers, also at exit: after an error some of them would wait for ever."""
        self._closed.value = True
        self._batches.close()
