"""The samples that a process draws."""

import contextlib
import dataclasses

import pytest
import torch
from torch import Tensor

from lmfn.data import TrainingSet
from lmfn.data.resident import ResidentSet
from lmfn.options import BlurKinds, BlurOptions
from lmfn.training import batches
from lmfn.training.batches import Batches, StepBatches
from lmfn.training.settings import Settings


def test_processes_share_the_samples_of_a_step(settings: Settings) -> None:
    one = dataclasses.replace(settings, batch=12, accumulate=1, steps=4)
    shared = dataclasses.replace(settings, batch=2, accumulate=2, steps=4)
    alone = list(StepBatches(one, 1, 0, 1))
    parts = [list(StepBatches(shared, 1, process, 3)) for process in range(3)]
    assert len(alone) == 3
    for step, batch in enumerate(alone):
        together = [n for part in parts for micro in part[2 * step : 2 * step + 2] for n in micro]
        assert sorted(together) == sorted(batch) == list(range(12 * (step + 1), 12 * (step + 2)))


def test_reused_patches_come_in_all_symmetries(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A round of two batches: each of its patches once per pass, in `reuse` different symmetries, then new ones."""
    monkeypatch.setattr(batches, "ROUND", 2)
    monkeypatch.setattr(batches, "TOGETHER", 1)
    settings = dataclasses.replace(settings, batch=3, patch=16, reuse=4, data_on="device", workers=0)
    kinds = dict.fromkeys(BlurKinds.__dataclass_fields__, 0.0) | {"shake": 1.0}  # none is its own mirror image
    data = TrainingSet(settings.sources, patch=16, seed=0, blur=BlurOptions(kinds=BlurKinds(**kinds)))

    def from_step(start: int, steps: int) -> list[tuple[Tensor, Tensor]]:
        with contextlib.closing(Batches(settings, data, torch.device("cpu"), start, 0, 1)) as found:
            return [next(found) for _ in range(steps)]

    def ways(pair: Tensor) -> list[Tensor]:
        return [turned.rot90(k, (2, 3)) for turned in (pair, pair.flip(3)) for k in range(4)]

    made = from_step(0, 16)
    resident = ResidentSet(data, torch.device("cpu"), progress=False)
    for first, numbers in ((0, range(6)), (8, range(6, 12))):
        used = [torch.stack(pair) for batch in made[first : first + 8] for pair in zip(*batch, strict=True)]
        for n in numbers:
            pair = torch.cat(resident([data.plan(n)])).float() / 255
            found = [way for way, turned in enumerate(ways(pair)) for one in used if torch.equal(one, turned)]
            assert len(found) == len(set(found)) == 4
    for start in (1, 7, 9):
        for again, before in zip(from_step(start, 4), made[start:], strict=False):
            assert all(map(torch.equal, again, before))


def test_reuse_needs_the_images_on_the_device(settings: Settings) -> None:
    with pytest.raises(ValueError, match="reuse needs the images on the device"):
        dataclasses.replace(settings, reuse=2, data_on="workers").check()
    with pytest.raises(ValueError, match="reuse is 9; it must be from 1 to 8"):
        dataclasses.replace(settings, reuse=9).check()
