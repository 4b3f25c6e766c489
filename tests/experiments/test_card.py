"""Weights measured, shipped and described, from a run's folder to the model card."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.weights import card
from lmfn import LMFN, images, weights
from lmfn.data import Source, synth
from lmfn.evaluation.results import Evaluation, ImageResult
from lmfn.network import checkpoint
from lmfn.training.loop import train
from lmfn.training.settings import Settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs, pairs, and two runs of a step or two, the second starting from the weights of the first."""
    folder = tmp_path_factory.mktemp("card")
    coarse = torch.rand(2, 3, 20, 24, generator=torch.manual_seed(0))
    for n, photo in enumerate(torch.nn.functional.interpolate(coarse, (200, 210), mode="bicubic").clamp(0, 1)):
        images.write(folder / "photos" / f"{n}.png", images.Photo(photo.movedim(0, 2).numpy()))
    synth(folder / "photos", folder / "gopro", seed=1)
    first = Settings(
        name="first",
        runs=folder / "runs",
        pairs=(f"{folder / 'gopro'}=2", f"{folder / 'photos'},{folder / 'photos'}=0.5"),
        photos=(str(folder / "photos"),),
        network=("channels=8", "features=8", "distilled=4", "esa=4", "rfdbs=1"),
        patch=32,
        batch=2,
        steps=2,
        device="cpu",
    )
    train(first)
    second = dataclasses.replace(
        first, name="second", start_from=folder / "runs" / "first" / "ema.safetensors", network=(), steps=1
    )
    train(second)
    return folder


def call(folder: Path, *more: str) -> int:
    where = ["--val", str(folder / "gopro"), "--photos", str(folder / "photos")]
    return card.main([str(folder / "runs" / "second"), *where, *more])


def test_from_a_run_to_the_package(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out, picture = tmp_path / "weights", tmp_path / "crops.png"
    assert call(folder, "-o", str(out), "--name", "lmfn", "--crops", str(picture)) == 0
    assert sorted(path.name for path in out.iterdir()) == ["SHA256SUMS", "lmfn.md", "lmfn.safetensors"]
    text = (out / "lmfn.md").read_text()
    assert capsys.readouterr().out == text + "\n"
    digest = weights.sha256(out / "lmfn.safetensors")
    assert (out / "SHA256SUMS").read_text() == f"{digest}  lmfn.safetensors\n"
    for words in (
        digest,
        "| on | metric | blurred | deblurred | gain | median gain | least gain |\n",
        "| real blur: gopro (2 pairs) | psnr |",
        "| synthetic blur, unseen photographs: unseen (6 pairs) | ssim_gauss2d |",
        "| 2 sharp photographs against themselves | psnr | | ",
        "- `first`, from random weights, seed 0: 2 steps of 2 patches of 32x32: gopro (pairs, 2), photos unblurred (",
        "rate 0.0001 to 5e-05 by a cosine",  # the last record, not one of the end
        "- `second`, from the weights of `first`: 1 steps of",
        "\n\nTogether 0.0 core-hours.\n\n",
        "\n| source, licence | share |\n|---|---|\n",
        # Of two steps and one of the same sources with weights 2, 0.5 and 1.
        "| GoPro (Nah, Kim and Lee, CVPR 2017), CC BY 4.0 | 57.1% |",
        f"| {card.ORIGINS['photos']} | 42.9% |",
        "channels=8",
        f"## Known failures\n\n{card.FAILURES.read_text()}",
    ):
        assert words in text, words
    assert str(folder) not in text
    exact = LMFN.from_pretrained(folder / "runs" / "second" / "ema.safetensors").state_dict()
    tensors, metadata = checkpoint.read(out / "lmfn.safetensors")
    assert metadata["config"]["channels"] == 8
    assert all(torch.equal(tensors[name], tensor.half()) for name, tensor in exact.items())
    crops = images.read_rgb(picture)
    assert crops.shape == (3 * 200, 2 * (3 * 192 + 8), 3)
    cell = crops[4:196, 4 : 4 + 3 * 192].reshape(192, 3, 192, 3).swapaxes(0, 1).astype(int)
    assert 0 < np.abs(cell[0] - cell[2]).mean() < 60  # the same position, blurred and sharp


def test_without_out_nothing_is_written_but_the_card(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(folder.rglob("*"))
    assert card.main([str(folder / "runs/first/ema.safetensors"), "--val", str(folder / "gopro"), "--photos",
                      str(folder / "photos")]) == 0  # fmt: skip
    assert sorted(folder.rglob("*")) == before
    assert "Not known: the run's folder was not given." in capsys.readouterr().out


def test_the_shipped_weights_failures_are_not_those_of_other_weights(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert call(folder, "-o", str(tmp_path)) == 0
    text = capsys.readouterr().out
    assert "# second.safetensors" in text
    assert "lmfn deblur photo.jpg --weights second.safetensors" in text
    assert "## Known failures\n\nNot known: they have not been looked for.\n\n## Training" in text
    assert (tmp_path / "second.md").read_text() + "\n" == text
    assert LMFN.from_pretrained(tmp_path / "second.safetensors").config.channels == 8


def test_weights_are_averaged_with_an_earlier_runs(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    first = folder / "runs" / "first"
    assert call(folder, "--average", str(first), "0.25", "-o", str(tmp_path / "out"), "--name", "lmfn") == 0
    assert "- shipped: 75% of these weights and 25% of those of `first`" in capsys.readouterr().out
    early, late = (
        LMFN.from_pretrained(run / "ema.safetensors").state_dict() for run in (first, first.parent / "second")
    )
    tensors, _ = checkpoint.read(tmp_path / "out" / "lmfn.safetensors")
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor.float(), 0.75 * late[name] + 0.25 * early[name], rtol=1e-3, atol=1e-6)
    assert call(folder, "--average", str(first), "1.5") == 1
    assert "with a share between 0 and 1" in capsys.readouterr().err


def test_hours_are_those_of_training_alone(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of what was done to the weights afterwards, of which alone nothing of the training is known."""
    change = "--average", str(folder / "runs" / "first"), "0.25"
    monkeypatch.setattr(card, "stages", lambda _: [card.Stage("on a GPU", 7, {"reds": 1.0}, 2.5, "GPU-hours")])
    assert call(folder, *change) == 0
    assert "- on a GPU\n- shipped: 75%" in (text := capsys.readouterr().out)
    assert "\n\nTogether 2.5 GPU-hours.\n" in text
    monkeypatch.setattr(card, "stages", lambda _: [])
    assert call(folder, *change) == 0
    assert "Not known: the run's folder was not given.\n\n- shipped: 75%" in (text := capsys.readouterr().out)
    assert "Together" not in text


def test_only_a_network_with_a_temperature_has_it_multiplied() -> None:
    small = {"channels": 8, "features": 8, "distilled": 4, "esa": 4, "rfdbs": 1}
    model = LMFN.from_preset("lmfn", **small, similarity="cosine")
    before = model.alfm.temperature.item()
    card.heat(model, 0.5)
    assert model.alfm.temperature.item() == before / 2
    with pytest.raises(ValueError, match=r"--temperature 0\.5: only ALFM with cosines"):
        card.heat(LMFN.from_preset("lmfn", **small, similarity="dot"), 0.5)


def test_what_cannot_be_measured_is_named(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for arguments, words in (
        ([str(tmp_path / "gone"), "--val", str(folder / "gopro")], "gone"),
        ([str(folder / "runs" / "first"), "--val", str(tmp_path / "nowhere")], "nowhere"),
    ):
        assert card.main(arguments) == 1
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "name", "origin"),
    [
        ("/home/me/data/reds/sharp", "reds/sharp unblurred", "REDS (Nah et al., NTIRE 2019), CC BY 4.0"),
        ("/home/me/gopro", "gopro unblurred", "GoPro (Nah, Kim and Lee, CVPR 2017), CC BY 4.0"),
        ("/home/me/cats", "cats unblurred", "cats unblurred, of their own"),
    ],
)
def test_a_source_is_told_by_the_end_of_its_path(path: str, name: str, origin: str) -> None:
    source = Source("pairs", path, sharp=path)
    assert card.source_name(source) == name
    assert card.origin(card.data_set(source)) == origin
    assert card.source_name(Source("photos", path)) == name.removesuffix(" unblurred")


def test_weights_too_large_for_float16_are_not_shipped(tmp_path: Path) -> None:
    model = LMFN.from_preset("lmfn", channels=8, features=8, distilled=4, esa=4, rfdbs=1)
    with torch.no_grad():
        model.reduce.bias[0] = 70000
    with pytest.raises(ValueError, match=r"reduce\.bias has values outside the range of float16"):
        card.ship(model, tmp_path, "lmfn")
    assert not list(tmp_path.iterdir())


def test_each_set_of_weights_has_its_line_in_the_checksums(tmp_path: Path) -> None:
    small = {"channels": 8, "features": 8, "distilled": 4, "esa": 4, "rfdbs": 1}
    first, second = (LMFN.from_preset("lmfn", **small) for _ in range(2))
    names = ("lmfn-released", "lmfn")
    digests = [card.ship(model, tmp_path, name) for model, name in zip((first, first), names, strict=True)]
    assert weights.checksums(tmp_path) == dict(zip((f"{name}.safetensors" for name in names), digests, strict=True))
    changed = card.ship(second, tmp_path, "lmfn")
    assert weights.checksums(tmp_path) == {"lmfn-released.safetensors": digests[0], "lmfn.safetensors": changed}
    assert changed != digests[1]


@pytest.mark.parametrize(
    ("start", "network", "words"),
    [
        (None, ("rfdbs=2",), "from random weights, seed 0"),
        (Path("runs/first"), (), "from the weights of `first`:"),
        (Path("runs/first/ema.safetensors"), ("rfdbs=2",), "from the weights of `first` that fit another network:"),
        (Path("lmfn"), (), "from the weights of `lmfn`:"),
    ],
)
def test_a_stage_tells_where_it_began(start: Path | None, network: tuple[str, ...], words: str) -> None:
    settings = Settings(name="last", photos=("photos",), start_from=start, network=network)
    assert f"`last`, {words}" in card.stage(settings, 1, 1e-4, "2.13.0", "cpu", 1, 0.5).text


def test_a_stage_tells_what_was_frozen_and_what_decayed() -> None:
    settings = Settings(name="last", photos=("photos",))
    text = card.stage(settings, 1, 1e-4, "2.13.0", "cpu", 1, 0.5).text
    assert "frozen" not in text
    assert "decay" not in text
    changed = dataclasses.replace(settings, freeze=("encoder", "alfm.theta"), weight_decay=0.1)
    text = card.stage(changed, 1, 1e-4, "2.13.0", "cpu", 1, 0.5).text
    assert "; encoder, alfm.theta frozen; loss mse" in text
    assert "weight decay 0.1, EMA" in text


def test_a_stage_tells_what_all_processes_did(tmp_path: Path) -> None:
    """A run started by two processes with one thread each and, after 500 steps, resumed by one with four threads."""
    settings = Settings(name="run", runs=tmp_path, photos=("photos",), batch=2, accumulate=3, patch=64)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(settings.text())
    start = {"event": "start", "torch": "2.13.0", "device": "cpu:0"}
    records: list[dict[str, object]] = [
        {"step": 0, **start, "processes": 2, "threads": 1},
        {"step": 100, "lr": 1e-4, "seconds": 360},
        {"step": 500, "lr": 1e-4, "seconds": 1800},
        {"step": 500, "event": "validation", "psnr": 30},
        {"step": 500, **start, "processes": 1, "threads": 4},
        {"step": 900, "lr": 1e-4, "seconds": 5400},
    ]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (stage,) = card.stages(tmp_path / "run")
    assert stage.hours == pytest.approx(2 * 0.5 + 4 * 1)
    assert "900 steps of 6 patches of 64x64:" in stage.text
    assert stage.text.endswith("torch 2.13.0 on cpu, 5 core-hours")
    assert stage.pixels == 900 * 6 * 64**2
    gpu = card.stage(settings, 900, 1e-4, "2.13.0", "cuda", 2, 5)
    assert "900 steps of 12 patches of 64x64:" in gpu.text
    assert gpu.text.endswith("on cuda, 5 GPU-hours")


def test_a_median_stands_beside_the_mean() -> None:
    metrics = {"ssim_gauss2d": 0.8, "ssim_matlab3d": 0.9}
    names = [field.name for field in dataclasses.fields(Evaluation)]
    rows = tuple(
        ImageResult(str(n), 8, 8, {"psnr": 20.0} | metrics, {"psnr": 20.0 + gain} | metrics, 1.0)
        for n, gain in enumerate((1, 5, -3, 2))
    )
    of = dict.fromkeys(names) | {"metrics": ("psnr", *metrics), "data": "some", "rows": rows}
    evaluation = Evaluation(**of)  # type: ignore[arg-type]
    table = card.Measures(evaluation, evaluation, evaluation).table()
    assert "| real blur: some (4 pairs) | psnr | 20.00 | 21.25 | +1.25 | +1.50 | -3.00 |\n" in table
    assert table.endswith(
        "| 4 sharp photographs against themselves | psnr | | 21.25, median 21.50, least 17.00 | | | |"
    )


def test_shares_count_the_pixels_of_patches() -> None:
    first = card.Stage("first", 300, {"reds": 0.5, "cats": 0.5}, 1, "core-hours")
    second = card.Stage("second", 100, {"reds": 0.2, "photos": 0.8}, 1, "core-hours")
    expected = {card.ORIGINS["reds"]: 0.425, "cats, of their own": 0.375, card.ORIGINS["photos"]: 0.2}
    assert card.shares_of([first, second]) == pytest.approx(expected)
    assert list(card.shares_of([first, second])) == list(expected)


def test_a_card_goes_on_with_that_of_the_shipped_weights(tmp_path: Path) -> None:
    shipped = card.stages(Path("lmfn"))
    assert shipped[0].text.startswith("`real`, from random weights, seed 0: 9,410 steps of 8 patches of 128x128")
    assert shipped[0].pixels == 9410 * 8 * 128**2
    assert sum(shipped[0].shares.values()) == pytest.approx(1, abs=1e-3)
    settings = Settings(name="run", runs=tmp_path, photos=("photos",), start_from=Path("lmfn"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(settings.text())
    start = {"step": 0, "event": "start", "torch": "2.13.0", "device": "cpu", "processes": 1, "threads": 1}
    (tmp_path / "run" / "metrics.jsonl").write_text(json.dumps(start) + "\n")
    assert card.stages(tmp_path / "run")[:-1] == shipped


@pytest.mark.parametrize("name", weights.NAMES)
def test_the_shipped_cards_list_what_their_headers_do(name: str) -> None:
    text = (weights.FOLDER / f"{name}.md").read_text()
    history = card.stages(Path(name))
    assert all(f"\n- {stage.text}\n" in text for stage in history)
    assert all(f"\n| {source} | {share:.1%} |\n" in text for source, share in card.shares_of(history).items())
