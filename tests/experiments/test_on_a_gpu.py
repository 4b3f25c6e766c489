"""The script for a GPU of some minutes, with seconds on a CPU."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from lmfn import LMFN, images
from lmfn.training.settings import Settings

PAIRS = (["gopro", "reds", "photos"], ["gopro", "photos"])
"""Those of small and of large patches."""
SMALL = {"channels": 8, "features": 8, "distilled": 4, "esa": 4, "rfdbs": 1}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "experiments" / "weights")
    module = importlib.import_module("on_a_gpu")
    monkeypatch.setattr(module, "POOLS", (module.Pool(48, 10, 10, 0.0, 4), module.Pool(64, 10, 10, 0.0, 4)))
    monkeypatch.setattr(module, "PHASES", (module.Phase(0.0, 4, 32, 0), module.Phase(0.5, 2, 48, 1)))
    monkeypatch.setattr(module, "STUDY", (module.Recipe(batch=2, patch=32), module.Recipe(batch=2, patch=32, fft=0.0)))
    monkeypatch.setattr(module, "HELD_OUT", 4)
    monkeypatch.setattr(module, "VALIDATED", 3)
    monkeypatch.setattr(module, "REDS", 48)
    monkeypatch.setattr(module, "network", lambda *_: LMFN.from_preset("lmfn", **SMALL))
    return module


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)

    def write(folder: str, count: int) -> None:
        for n in range(count):
            file = tmp_path / "reds and others" / folder / f"{n:02}.png"
            images.write(file, images.Photo(rng.random((64, 72, 3), dtype=np.float32)))

    for folder in ("gopro/blur", "gopro/sharp", "reds/blur", "reds/sharp", "val/real/blur", "val/real/sharp"):
        write(folder, 1)
    for folder in ("photos", "photos_open"):
        write(folder, 2)
    write("frames_240fps/clip", 13)
    return tmp_path / "reds and others"


def records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["on_a_gpu.py", *map(str, arguments)])
    script.main()


def test_a_run_passes_through_its_phases_and_goes_on(
    script: ModuleType, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = script.settings
    monkeypatch.setattr(script, "settings", lambda *rest: Settings(**vars(settings(*rest)) | {"log_every": 1}))
    batches: list[int] = []
    step = script.Stepper.step
    monkeypatch.setattr(
        script.Stepper, "step", lambda self, rate: [made := step(self, rate), batches.append(len(made[0]))][0]
    )
    sources: list[list[str]] = []
    training_set = script.TrainingSet
    monkeypatch.setattr(
        script,
        "TrainingSet",
        lambda them, **rest: [training_set(them, **rest), sources.append([Path(s.path).name for s in them])][0],
    )
    run(script, monkeypatch, data, tmp_path / "out", "--seconds", 2)
    assert sources == [[*pairs, "frames_240fps", "photos", "photos_open"] for pairs in PAIRS]
    assert set(batches) == {4, 2}
    steps = [r for r in records(tmp_path / "out" / "gpu" / "metrics.jsonl") if "loss" in r]
    assert [r["step"] for r in steps] == list(range(1, len(batches) + 1))
    seconds = np.diff([0.0, *(r["seconds"] for r in steps)])
    assert [round(r["images_per_second"] * each) for r, each in zip(steps, seconds, strict=True)] == batches
    validations = [r for r in records(tmp_path / "out" / "gpu" / "metrics.jsonl") if r.get("event") == "validation"]
    assert validations[-1]["step"] == len(batches)
    assert LMFN.from_pretrained(tmp_path / "out" / "gpu" / "ema.safetensors").config.features == 8
    before = len(batches)
    run(script, monkeypatch, data, tmp_path / "out", "--seconds", 0.1, "--resume")
    assert records(tmp_path / "out" / "gpu" / "metrics.jsonl")[-1]["step"] == len(batches) > before


def test_each_recipe_is_trained(
    script: ModuleType, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(script, monkeypatch, data, tmp_path / "out", "--study", 2)
    lines = records(tmp_path / "out" / "study.jsonl")
    assert [line["fft"] for line in lines] == [4.0, 0.0]
    assert all(line["steps"] == 2 and line["skipped"] == 0 and np.isfinite(line["psnr"]) for line in lines)


def test_crops_are_those_of_both_images_of_a_patch(script: ModuleType) -> None:
    """In any symmetry of the square, and everywhere."""
    sharp = torch.arange(3 * 6 * 6 * 3).remainder(251).byte().view(3, 6, 6, 3)
    pool = torch.stack([255 - sharp, sharp], dim=1)
    places = set()
    for (blurred, crop), _ in zip(script.crops(pool, 4, 4, 0), range(60), strict=False):
        torch.testing.assert_close(blurred, 1 - crop)
        for image in crop:
            ways = [turned.rot90(k, (1, 2)) for turned in (image, image.flip(2)) for k in range(4)]
            found = [
                (n, top, left, way)
                for n in range(3)
                for top in range(3)
                for left in range(3)
                for way, turned in enumerate(ways)
                if torch.equal((turned * 255).round().byte().movedim(0, 2), sharp[n, top : top + 4, left : left + 4])
            ]
            assert len(found) == 1
            places |= set(found)
    assert len(places) > 3 * 9 * 8 / 2
