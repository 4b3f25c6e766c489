"""Photographs and settings for runs that take seconds."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

if TYPE_CHECKING:
    from lmfn.training.settings import Settings

SMALL = ("channels=8", "features=8", "distilled=4", "esa=4", "rfdbs=1")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two smooth random pictures, enough for the loss to fall."""
    from lmfn import images  # not before pytest_configure has set Triton's interpreter

    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for n in range(2):
        coarse = torch.from_numpy(rng.random((1, 3, 24, 20), dtype=np.float32))
        picture = torch.nn.functional.interpolate(coarse, (96, 80), mode="bicubic").clamp(0, 1)
        images.write(folder / f"{n}.png", images.Photo(picture[0].movedim(0, 2).numpy()))
    return folder


@pytest.fixture
def settings(tmp_path: Path, photos: Path) -> "Settings":
    from lmfn.training.settings import Settings

    return Settings(
        name="run",
        runs=tmp_path / "runs",
        photos=(str(photos),),
        network=SMALL,
        lr=1e-3,
        batch=4,
        patch=32,
        steps=10,
        workers=0,
        device="cpu",
        log_every=2,
        save_every=5,
        val_every=5,
    )
