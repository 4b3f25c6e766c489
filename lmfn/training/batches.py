"""The batches of a training run, from any step on, whatever the number of processes."""

import logging
import signal
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from lmfn.data import TrainingSet
from lmfn.data.resident import Plans, ResidentSet
from lmfn.memory import available_memory
from lmfn.training.settings import Settings

log = logging.getLogger(__name__)


class StepBatches(Sampler[list[int]]):
    """Sample numbers of one process, batch by batch, from a step on.

    The step's samples are the same whatever the number of processes: two processes with a batch of 8 draw what one
    with a batch of 16 draws.
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


def ignore_signals(_worker: int) -> None:
    """In a worker: signals are the main process's business."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class Batches:
    """The batches of one process, from a step on: `next` gives blurred and sharp, float32 `[B, 3, patch, patch]` in
    [0, 1], channels-last on the device; to be closed. `seconds` is the time that was spent waiting for them.

    Raises ValueError where the images must be on the device and do not fit there.
    """

    def __init__(
        self, settings: Settings, data: TrainingSet, device: torch.device, start: int, process: int, processes: int
    ) -> None:
        self.device, self.seconds = device, 0.0
        self.resident: ResidentSet | None = None
        if settings.data_on != "workers" and self._fits(settings, data, processes):
            self.resident = ResidentSet(data, device, progress=process == 0)
        loader: DataLoader[Any] = DataLoader(
            Plans(data) if self.resident else data,
            batch_sampler=StepBatches(settings, start, process, processes),
            num_workers=0 if self.resident and device.type == "cpu" else settings.workers,
            collate_fn=list if self.resident else None,
            pin_memory=device.type == "cuda" and not self.resident,
            worker_init_fn=ignore_signals,
        )
        self._batches = (batch for batch in loader)

    def _fits(self, settings: Settings, data: TrainingSet, processes: int) -> bool:
        available = available_memory(self.device)
        if available is None:
            return settings.data_on == "device"
        share = settings.data_share / (processes if self.device.type == "cpu" else 1)
        fits = data.images.bytes <= share * available
        text = (
            f"{len(data.images.sizes):,} images, {data.images.bytes / 1e9:.2f} GB decoded; {share:.0%} of what is free "
            f"on {self.device}, {available / 1e9:.1f} GB, may be used"
        )
        if not fits and settings.data_on == "device":
            raise ValueError(f"{text}: too little; take --data-on workers, or a larger --data-share")
        log.info("%s: %s", text, "they stay there" if fits else "workers make the patches")
        return fits

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
        """End the workers: they ignore signals and would otherwise outlive an error."""
        self._batches.close()
