"""The included weights: intact, loaded offline, useful on photographs, and a starting point for fine-tuning."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch

from lmfn import LMFN, Deblurrer, cli, images, weights
from lmfn.data import BlurKinds, BlurOptions, find_pairs, synth
from lmfn.device import has_fast_bf16
from lmfn.evaluation import evaluate
from lmfn.network import checkpoint
from lmfn.network.config import LMFNConfig, preset
from lmfn.training.loop import train
from lmfn.training.settings import Settings

each = pytest.mark.parametrize("name", weights.NAMES)


@each
def test_the_file_is_the_one_that_was_measured(name: weights.Name) -> None:
    file = weights.FOLDER / f"{name}.safetensors"
    digest = weights.sha256(file)
    assert f"{digest}  {file.name}\n" in (weights.FOLDER / "SHA256SUMS").read_text().splitlines(keepends=True)
    assert f"SHA-256 `{digest}`" in file.with_suffix(".md").read_text()
    assert file.stat().st_size < 2.7e6
    tensors, metadata = checkpoint.read(file)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    expected = preset(name, similarity="cosine", skip="image", alfm_window=384, esa_grid="fixed")
    assert LMFNConfig(**metadata["config"]) == expected


@each
def test_they_are_loaded_by_name_offline_as_float32(
    name: weights.Name, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(checkpoint, "_from_hub", no_network)
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()  # as in a clone, where the folder lmfn contains the code
    model = LMFN.from_pretrained(name)
    assert not model.training
    for key, tensor in checkpoint.read(weights.FOLDER / f"{name}.safetensors")[0].items():
        assert model.state_dict()[key].dtype == torch.float32
        assert torch.equal(model.state_dict()[key], tensor.float())


def test_without_a_name_they_are_those_of_lmfn() -> None:
    named = LMFN.from_pretrained("lmfn").state_dict()
    assert all(torch.equal(tensor, named[key]) for key, tensor in Deblurrer().model.state_dict().items())


@pytest.mark.parametrize("harm", ["cut", "changed", "gone"])
def test_a_damaged_file_is_named(harm: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = Path(shutil.copytree(weights.FOLDER, tmp_path / "weights")) / "lmfn.safetensors"
    content = bytearray(file.read_bytes())
    content[-1000] ^= 1
    file.write_bytes(content[:-1] if harm == "cut" else content)
    if harm == "gone":
        file.unlink()
    monkeypatch.setattr(weights, "FOLDER", file.parent)
    with pytest.raises(ValueError, match=r"weights/lmfn\.safetensors is missing or damaged; reinstall lmfn-deblur"):
        Deblurrer()


BLUR = BlurOptions(BlurKinds.only("shake"), length=(4, 10), rotation=(0, 2), labels=0, jpeg=0)


@pytest.fixture(scope="module")
def unseen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photograph that no weights were trained on, blurred in three ways."""
    folder = tmp_path_factory.mktemp("unseen")
    photo = skimage.data.chelsea()[20:276, 80:336]
    images.write(folder / "photos" / "cat.png", images.Photo(photo))
    synth(folder / "photos", folder / "pairs", seed=3, count=3, blur=BLUR)
    return folder


def psnr(model: LMFN, pairs: Path) -> tuple[float, float]:
    """PSNR of the blurred and of the deblurred images, in dB."""
    evaluation = evaluate(model, find_pairs(pairs), protocol="plain", metrics=("psnr",), device="cpu", progress=False)
    return evaluation.blurred["psnr"], evaluation.deblurred["psnr"]


@each
def test_a_blurred_photograph_gains_and_a_sharp_one_stays(name: weights.Name, unseen: Path, tmp_path: Path) -> None:
    before, after = psnr(LMFN.from_pretrained(name), unseen / "pairs")
    assert after > before + 0.05
    out = tmp_path / "sharp.png"
    assert cli.main(["deblur", str(unseen / "photos" / "cat.png"), "-o", str(out), "--weights", name]) == 0
    kept = images.read_rgb(out).astype(float) - images.read_rgb(unseen / "photos" / "cat.png")
    assert 10 * np.log10(255**2 / np.square(kept).mean()) > 33


def test_fine_tuning_improves_on_its_pairs_and_loses_nothing_on_others(unseen: Path, tmp_path: Path) -> None:
    """The command of docs/training.md: the user's pairs, together with photographs blurred by camera shake."""
    for name, photo in (
        ("own", skimage.data.coffee()[100:292, 200:392]),
        ("more", skimage.data.astronaut()[:256, 100:356]),
    ):
        images.write(tmp_path / name / "1.png", images.Photo(photo))
    pairs = tmp_path / "pairs"
    streak = replace(BLUR, length=(14, 14), curvature=(0, 0), rotation=(0, 0), highlights=(1, 1))
    synth(tmp_path / "own", pairs, seed=0, count=2, blur=streak)
    settings = Settings(
        name="mine",
        runs=tmp_path,
        start_from=Path("lmfn"),
        pairs=(f"{pairs}=3",),
        photos=(str(tmp_path / "more"),),
        blur=BlurOptions(BlurKinds.only("shake")),
        patch=128,
        batch=2,
        lr=1e-4,
        warmup=5,
        clip=1.0,
        loss="l1",
        fft=1.0,
        ema=0.95,
        steps=40,
        device="cpu",
        precision="bf16" if has_fast_bf16(torch.device("cpu")) else "fp32",
        val_every=1000,
    )
    assert train(settings) == 0
    before, after = LMFN.from_pretrained(), LMFN.from_pretrained(tmp_path / "mine" / "ema.safetensors")
    assert psnr(after, pairs)[1] > psnr(before, pairs)[1] + 0.1
    assert psnr(after, unseen / "pairs")[1] > psnr(before, unseen / "pairs")[1] - 0.05
    assert after.config == before.config
