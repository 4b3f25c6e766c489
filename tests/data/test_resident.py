"""Patches made on the device against those of the workers, and against float64."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from lmfn.data import BlurOptions, Source, TrainingSet
from lmfn.data.resident import Plans, ResidentSet, SharedSet, largest_share, owners
from lmfn.data.synthesis import mirrored
from lmfn_kernels.runtime.torch_private import TorchDispatchMode

BLUR = BlurOptions(frames=(3, 7), length=(0, 30), rotation=(0, 20), highlights=(1, 3))
CPU = torch.device("cpu")


@pytest.fixture
def data(save: Callable, make_video: Callable, tmp_path: Path) -> TrainingSet:
    """Every kind of source, with odd and different sizes; the sharp images of the pairs also serve as photographs and
    as pairs."""
    smooth = torch.nn.functional.interpolate(torch.rand(9, 3, 9, 8, generator=torch.manual_seed(0)), scale_factor=5)
    for n, (height, width) in enumerate([(33, 40), (40, 29), (35, 35)]):
        pixels = (smooth[n, :, :height, :width] * 255).byte().movedim(0, 2).numpy()
        pixels[::7] = 255  # clipped highlights
        save(tmp_path / "pairs" / "blur" / f"{n}.png", height, width)
        save(tmp_path / "pairs" / "sharp" / f"{n}.png", pixels=pixels)
    for n in range(9):
        save(tmp_path / "frames" / "a" / f"{n}.png", 31, 37)
        save(tmp_path / "frames" / "b" / f"{n}.png", 29, 64)
    make_video(tmp_path / "video.mp4", count=9)
    sharp = tmp_path / "pairs" / "sharp"
    sources = [
        Source("pairs", tmp_path / "pairs"),
        Source("frames", tmp_path / "frames"),
        Source("photos", sharp, weight=3),
        Source("frames", tmp_path / "video.mp4"),
        Source("pairs", sharp, sharp=sharp),
    ]
    return TrainingSet(sources, patch=27, seed=4, blur=BLUR)


def test_patches_are_those_of_the_workers(data: TrainingSet) -> None:
    resident = ResidentSet(data, CPU)
    expected = [torch.stack([data[n][which] for n in range(120)]) for which in (0, 1)]
    for batch in (120, 8, 1):
        made = [resident([data.plan(n) for n in range(at, at + batch)]) for at in range(0, 120, batch)]
        blurred, sharp = (torch.cat(images) for images in zip(*made, strict=True))
        assert blurred.dtype == torch.uint8
        assert blurred.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(sharp, expected[1])
        difference = (blurred.int() - expected[0].int()).abs()
        assert difference.max() <= 1
        assert (difference > 0).float().mean() < 1e-4
    kinds = {type(data.plan(n).exposure).__name__ for n in range(120)}
    assert kinds == {"NoneType", "Mean", "Exposure"}


def test_patches_are_made_where_the_images_are(data: TrainingSet) -> None:
    """On the meta device: an operation on another device, or one that waits for a value, is an error."""
    for patches in ResidentSet(data, torch.device("meta"))([data.plan(n) for n in range(120)]):
        assert patches.is_meta
        assert patches.shape == (120, 3, 27, 27)


class Launches(TorchDispatchMode):
    """Counts what would be launches, copies from the host, and waits for such copies, if the meta device were a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = self.copies = self.waits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if getattr(result, "is_meta", False):
            if func is torch.ops.aten._to_copy.default and not args[0].is_meta:
                self.copies += 1
                self.waits += not kwargs.get("non_blocking")
            elif not func.is_view and not func.name().startswith(("aten::empty", "aten::_unsafe_view")):
                self.launches += 1
        return result


def test_a_batch_takes_few_launches_and_no_wait(data: TrainingSet) -> None:
    """Of whatever it consists, and however many patches it has."""
    resident = ResidentSet(data, torch.device("meta"))
    resident([data.plan(n) for n in range(120)])  # sends what never changes
    for count in (16, 120):
        for first in range(0, 120, count):
            with Launches() as made:
                resident([data.plan(n) for n in range(first, first + count)])
            assert 20 < made.launches <= 320
            assert 0 < made.copies <= 11
            assert made.waits == 0


def test_an_image_of_two_sources_is_kept_once(data: TrainingSet) -> None:
    pixels = 2 * (33 * 40 + 40 * 29 + 35 * 35) + 9 * (31 * 37 + 29 * 64) + 9 * 48 * 64
    assert data.images.bytes == 3 * pixels
    assert ResidentSet(data, CPU)._pixels.shape == (pixels, 3)
    identical = [n for n in range(200) if data.plan(n).exposure is None and len(set(data.plan(n).images)) == 1]
    assert len(identical) > 10
    assert all(torch.equal(*data[n]) for n in identical)


def test_a_plan_reads_no_file_and_travels(data: TrainingSet, tmp_path: Path) -> None:
    resident = ResidentSet(data, CPU)
    expected = resident([data.plan(n) for n in range(6)])
    for file in tmp_path.rglob("*.*"):
        file.unlink()
    loader = DataLoader(Plans(data), batch_size=6, sampler=range(6), num_workers=1, collate_fn=list)
    made = resident(next(iter(loader)))
    assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))


def test_a_broken_image_is_named(data: TrainingSet, tmp_path: Path) -> None:
    file = tmp_path / "pairs" / "blur" / "1.png"
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"blur/1\.png"):
        ResidentSet(data, CPU)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_mirrored_is_numpys_symmetric_padding(size: int) -> None:
    index = np.arange(-20, 20)
    expected = np.pad(np.arange(size), 20, mode="symmetric")[index + 20]
    np.testing.assert_array_equal(mirrored(index, size), expected)
    np.testing.assert_array_equal(mirrored(torch.from_numpy(index), torch.tensor([size])), expected)


def one_of_four(rank: int, folder: str, data: TrainingSet) -> None:
    """Write the images that this process holds, and the patches that it gets in four steps."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=4)
    shared = SharedSet(data, CPU, rank, 4, progress=False)
    made = [shared([data.plan(n) for n in range(step, step + 20)]) for step in range(0, 80, 20)]
    kept = torch.tensor(shared.kept._pixels.numel())
    torch.save((kept, *(torch.cat(images) for images in zip(*made, strict=True))), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_processes_share_the_images_and_get_the_same_patches(data: TrainingSet, tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(one_of_four, (str(tmp_path), data), nprocs=4, start_method="fork")
    got = [torch.load(tmp_path / f"{rank}.pt") for rank in range(4)]
    kept = [int(size) for size, _, _ in got]
    assert sum(kept) == data.images.bytes
    assert max(kept) == largest_share(data, 4) < data.images.bytes / 2
    resident = ResidentSet(data, CPU)
    for rank, (_, *images) in enumerate(got):
        numbers = [step + 5 * rank + n for step in range(0, 80, 20) for n in range(5)]
        blurred, sharp = resident([data.plan(n) for n in numbers])
        assert torch.equal(images[1], sharp)
        difference = (images[0].int() - blurred.int()).abs()
        assert difference.max() <= 1
        assert (difference > 0).float().mean() < 1e-4


def test_what_a_patch_may_be_made_of_is_in_one_place(data: TrainingSet) -> None:
    owner = owners(data, 3)
    for n in range(200):
        assert len({owner[number] for number in data.plan(n).images}) == 1
    assert set(owner) == {0, 1, 2}
    assert owners(data, 1) == [0] * len(owner)
