"""Training patches made on the device: the decoded images stay there, and only what is drawn goes there.

Each process keeps all images (`ResidentSet`), or, where they do not fit, its share of them (`SharedSet`).
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


class ResidentSet:
    """A training set whose images are decoded once and kept on a device as 8-bit pixels.

    `resident([data.plan(n), ...])` gives the patches that `data[n]` gives, equal up to rounding (by 1 of 255, rarely),
    as a batch: blurred and sharp, uint8 `[B, 3, patch, patch]`, channels-last in memory. It keeps `data.images.bytes`,
    or, of the images in `kept` alone, theirs.

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
        self._table = torch.cat([(ends - areas)[:, None], sizes], dim=1).to(device)

    def __call__(self, patches: Sequence[Patch]) -> tuple[Tensor, Tensor]:
        return render(patches, self.data.patch, self.data.blur.margin, self._cut)

    def _cut(self, parts: Sequence[Part], side: int) -> Tensor:
        number, top, left = torch.tensor(parts).to(self._pixels.device, non_blocking=True).T
        first, height, width = self._table[number].T[..., None]
        along = torch.arange(side, device=self._pixels.device)
        rows, columns = mirrored(top[:, None] + along, height), mirrored(left[:, None] + along, width)
        return self._pixels[(first + rows * width)[:, :, None] + columns[:, None, :]]


def owners(data: TrainingSet, processes: int) -> list[int]:
    """Which process keeps each image. All that a patch may be made of is in one place, and the bytes are about equal:
    the largest group first, each to the process that has the least."""
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
    """Bytes that the process keeps which keeps most."""
    load = [0] * processes
    for owner, (height, width) in zip(owners(data, processes), data.images.sizes, strict=True):
        load[owner] += 3 * height * width
    return max(load)


class SharedSet:
    """A `ResidentSet` whose images are shared out among the processes of torch's process group.

    Called in all of them with the same patches, those of all processes in turn, it gives each the patches that are its
    own. A patch is made where its images are, and sent: 6 bytes a pixel.
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
        come = sorted(range(each), key=mine.__getitem__)  # from the first process those that are its, and so on
        place = torch.tensor([come.index(n) for n in range(each)], device=self.device)
        blurred, sharp = received[place].unbind(1)
        return blurred, sharp


class Plans(Dataset[Patch]):
    """What the patches of a training set are made of, by number: work for a DataLoader's workers."""

    def __init__(self, data: TrainingSet) -> None:
        self.data = data

    def __getitem__(self, n: int) -> Patch:
        return self.data.plan(n)
