"""Training patches made on the device: the decoded images stay there, and only what is drawn goes there."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from lmfn.data.rendering import Part, Patch, render
from lmfn.data.sampling import TrainingSet
from lmfn.data.synthesis import mirrored


class ResidentSet:
    """A training set whose images are decoded once and kept on a device as 8-bit pixels.

    `resident([data.plan(n), ...])` gives the patches that `data[n]` gives, equal up to rounding (by 1 of 255, rarely),
    as a batch: blurred and sharp, uint8 `[B, 3, patch, patch]`, channels-last in memory. It keeps `data.images.bytes`.

    Raises ImageError or DataError for an image that cannot be decoded.
    """

    def __init__(self, data: TrainingSet, device: torch.device, *, progress: bool = True) -> None:
        self.data = data
        sizes = torch.tensor(data.images.sizes)
        ends = sizes.prod(dim=1).cumsum(0)
        self._pixels = torch.empty(int(ends[-1]), 3, dtype=torch.uint8, device=device)
        bar = tqdm(
            data.images.decode(), desc="decode", total=len(sizes), unit="image", disable=None if progress else True
        )
        for number, image in bar:
            end = int(ends[number])
            self._pixels[end - image.shape[0] * image.shape[1] : end] = torch.from_numpy(image).reshape(-1, 3)
        self._table = torch.cat([(ends - sizes.prod(dim=1))[:, None], sizes], dim=1).to(device)

    def __call__(self, patches: Sequence[Patch]) -> tuple[Tensor, Tensor]:
        return render(patches, self.data.patch, self.data.blur.margin, self._cut)

    def _cut(self, parts: Sequence[Part], side: int) -> Tensor:
        number, top, left = torch.tensor(parts).to(self._pixels.device, non_blocking=True).T
        first, height, width = self._table[number].T[..., None]
        along = torch.arange(side, device=self._pixels.device)
        rows, columns = mirrored(top[:, None] + along, height), mirrored(left[:, None] + along, width)
        return self._pixels[(first + rows * width)[:, :, None] + columns[:, None, :]]


class Plans(Dataset[Patch]):
    """What the patches of a training set are made of, by number: work for a DataLoader's workers."""

    def __init__(self, data: TrainingSet) -> None:
        self.data = data

    def __getitem__(self, n: int) -> Patch:
        return self.data.plan(n)
