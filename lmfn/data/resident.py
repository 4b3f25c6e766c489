"""Training patches rendered on the device, which keeps the decoded images; only random parameters are sent there.

Each process keeps all images (`ResidentSet`) or, if they do not fit, a share of them (`SharedSet`).
"""

from collections.abc import Collection, Sequence

import torch
import torch.distributed
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from lmfn.data.rendering import Part, Patch, render
from lmfn.data.sampling import TrainingSet
from lmfn.data.synthesis import mirrored
from lmfn.device import sent


class ResidentSet:
    """A training set whose images are decoded once and kept on a device as 8-bit pixels.

    `resident([data.plan(n), ...])` returns the same patches as `data[n]`, up to rare differences of 1 of 255 by
    rounding, as a batch: blurred and sharp, uint8 `[B, 3, patch, patch]`, channels-last in memory. It holds
    `data.images.bytes`, or only the bytes of the images in `kept`.

    Raises ImageError or DataError for an image that cannot be decoded.
    """

    def __init__(
        self, data: TrainingSet, device: torch.device, *, kept: Collection[int] | None = None, progress: bool = True
    ) -> None:
        self.data = data
        sizes = torch.tensor(data.images.sizes)
        wanted = range(len(sizes)) if kept is None else set(kept)
        areas = sizes.prod(dim=1) * torch.tensor([number in wanted for number in range(len(sizes))])
        ends = areas.cumsum(0)
        self._pixels = torch.empty(int(ends[-1]), 3, dtype=torch.uint8, device=device)
        bar = tqdm(
            data.images.decode(wanted),
            desc="decode",
            total=len(wanted),
            unit="image",
            disable=None if progress else True,
        )
        for number, image in bar:
            end = int(ends[number])
            self._pixels[end - image.shape[0] * image.shape[1] : end] = torch.from_numpy(image).reshape(-1, 3)
        self._table = torch.cat([(ends - areas)[:, None], sizes], dim=1)

    def __call__(self, patches: Sequence[Patch]) -> tuple[Tensor, Tensor]:
        return render(patches, self.data.patch, self.data.blur.margin, self._cut)

    def _cut(self, parts: Sequence[Part], side: int) -> Tensor:
        number, top, left = torch.tensor(parts).T
        first, height, width = self._table[number].T[..., None]
        along = torch.arange(side)
        rows, columns = mirrored(top[:, None] + along, height), mirrored(left[:, None] + along, width)
        rows, columns = sent(torch.stack([first + rows * width, columns]), self._pixels.device)
        return self._pixels[rows[:, :, None] + columns[:, None, :]]


def owners(data: TrainingSet, processes: int) -> list[int]:
    """The process that keeps each image. All images that a patch may use are in one process, and bytes are balanced:
    groups are assigned, largest first, to the process with the fewest bytes."""
    areas = [height * width for height, width in data.images.sizes]
    groups = sorted(data.groups(), key=lambda group: (-sum(areas[number] for number in group), group))
    load, owner = [0] * processes, [0] * len(areas)
    for group in groups:
        least = load.index(min(load))
        for number in group:
            owner[number] = least
            load[least] += areas[number]
    return owner


def largest_share(data: TrainingSet, processes: int) -> int:
    """Bytes kept by the process that keeps the most."""
    load = [0] * processes
    for owner, (height, width) in zip(owners(data, processes), data.images.sizes, strict=True):
        load[owner] += 3 * height * width
    return max(load)


class SharedSet:
    """A `ResidentSet` whose images are distributed over the processes of torch's process group.

    Called in all of them with the patches of all processes in turn, it returns to each its own patches. A patch is
    rendered where its images are, and sent: 6 bytes per pixel.
    """

    def __init__(
        self, data: TrainingSet, device: torch.device, process: int, processes: int, *, progress: bool = True
    ) -> None:
        self.process, self.processes, self._owner = process, processes, owners(data, processes)
        kept = [number for number, owner in enumerate(self._owner) if owner == process]
        self.kept = ResidentSet(data, device, kept=kept, progress=progress)
        self.device = device

    def __call__(self, patches: Sequence[Patch]) -> tuple[Tensor, Tensor]:
        each, side = len(patches) // self.processes, self.kept.data.patch
        owner = [self._owner[patch.images[0]] for patch in patches]
        here = [n for n, process in enumerate(owner) if process == self.process]
        if here:
            pairs = torch.stack(self.kept([patches[n] for n in here]), dim=1)
        else:
            pairs = torch.empty(0, 2, 3, side, side, dtype=torch.uint8, device=self.device)
        mine = owner[self.process * each : (self.process + 1) * each]
        received = torch.empty(each, 2, 3, side, side, dtype=torch.uint8, device=self.device)
        torch.distributed.all_to_all_single(
            received,
            pairs.contiguous(),
            [mine.count(process) for process in range(self.processes)],
            [sum(n // each == process for n in here) for process in range(self.processes)],
        )
        come = sorted(range(each), key=mine.__getitem__)  # ordered by the process that renders them
        place = torch.tensor([come.index(n) for n in range(each)], device=self.device)
        blurred, sharp = received[place].unbind(1)
        return blurred, sharp


class Plans(Dataset[Patch]):
    """The plans of a training set by number, for the workers of a DataLoader."""

    def __init__(self, data: TrainingSet) -> None:
        self.data = data

    def __getitem__(self, n: int) -> Patch:
        return self.data.plan(n)
