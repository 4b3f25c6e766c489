"""What stands in the paper's parts' places, and the tables that are made of it."""

import json
from typing import get_args, get_type_hints

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F

from lmfn import LMFN, cli, images
from lmfn import ablate as ablate_module
from lmfn.ablate import TABLES, Result, Row, ablate, markdown, saved_bytes
from lmfn.data import find_pairs
from lmfn.evaluation import count_gmacs
from lmfn.evaluation.results import Complexity
from lmfn.network.alternatives import ASPP, Concat, PooledAttention, PyramidPooling, SpatialAttention

ENCODERS = {"strided": 740_352 + 553_920, "aspp": 584_576, "pyramid": 522_880}
FUSIONS = {"none": -10_051, "concat": -1, "pooled": -1 + 12 * 401 + 200, "spatial": -1 + 99}


def awake(module):
    """In float64, no weight or bias at an initial value that would hide it."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return module.double()


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 80), (1, 70)])
def test_networks_with_other_encoders(encoder, height, width):
    model = LMFN.from_preset("lmfn", encoder=encoder)
    assert sum(p.numel() for p in model.encoder.parameters()) == ENCODERS[encoder]
    x = torch.rand(2, 3, height, width)
    output = model(x)
    assert output.shape == x.shape
    output.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.encoder.parameters())


@pytest.mark.parametrize("alfm", FUSIONS)
def test_networks_with_other_attentions(alfm):
    whole = sum(p.numel() for p in LMFN.from_preset("lmfn", acfm="none").parameters())
    model = LMFN.from_preset("lmfn", alfm=alfm, acfm="none")
    assert sum(p.numel() for p in model.parameters()) == whole + FUSIONS[alfm]
    x = torch.rand(2, 3, 65, 70)
    assert model(x).shape == x.shape


@pytest.mark.parametrize("kind", [Concat, PooledAttention, SpatialAttention])
def test_fusions_are_those_of_the_definition(kind):
    module = awake(kind(6, 3))
    maps = torch.randn(3, 2, 6, 9, 11, dtype=torch.float64)
    rows = maps.transpose(0, 1).reshape(2, 18, 9, 11).numpy()
    if kind is PooledAttention:
        squeeze, excite = (conv.weight.detach().numpy()[:, :, 0, 0] for conv in (module.squeeze, module.excite))
        hidden = rows.mean((2, 3)) @ squeeze.T + module.squeeze.bias.detach().numpy()
        gate = np.maximum(hidden, 0) @ excite.T + module.excite.bias.detach().numpy()
        rows = rows / (1 + np.exp(-gate))[:, :, None, None]
    if kind is SpatialAttention:
        weight = module.conv.weight.detach().numpy()[0]
        for image in rows:
            seen = (image.mean(0), image.max(0))
            gate = sum(scipy.ndimage.correlate(s, w, mode="constant") for s, w in zip(seen, weight, strict=True))
            image /= 1 + np.exp(-gate - module.conv.bias.item())
    fused = np.einsum("oc,bchw->bohw", module.fuse.weight.detach().numpy()[:, :, 0, 0], rows)
    fused += module.fuse.bias.detach().numpy()[:, None, None]
    expected = np.where(fused > 0, fused, 0.05 * fused)
    np.testing.assert_allclose(module(list(maps)).detach(), expected, rtol=0, atol=1e-12)


def test_pyramid_pooling_is_that_of_the_definition():
    module = awake(PyramidPooling(8))
    x = torch.randn(1, 8, 12, 18, dtype=torch.float64)  # a multiple of all parts
    seen = [x]
    for parts, conv in zip((1, 2, 3, 6), module.reduce, strict=True):
        means = x.reshape(8, parts, 12 // parts, parts, 18 // parts).mean((2, 4))
        reduced = torch.einsum("oc,chw->ohw", conv.weight[:, :, 0, 0], means) + conv.bias[:, None, None]
        seen.append(F.interpolate(F.leaky_relu(reduced, 0.1)[None], size=(12, 18), mode="bilinear"))
    expected = F.leaky_relu(F.conv2d(torch.cat(seen, 1), module.fuse.weight, module.fuse.bias, padding=1), 0.1)
    torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-12)


def test_aspp_is_that_of_the_definition():
    module = awake(ASPP(4))
    x = torch.randn(1, 4, 21, 40, dtype=torch.float64)
    seen = []
    for rate, conv in zip((1, 6, 12, 18), module.branches, strict=True):
        kernel = conv.weight.detach().numpy()
        spread = np.zeros((4, 4, rate * (kernel.shape[2] - 1) + 1, rate * (kernel.shape[3] - 1) + 1))
        spread[:, :, ::rate, ::rate] = kernel  # the holes of an atrous convolution, filled with zeros
        outputs = [
            sum(
                scipy.ndimage.correlate(channel, k, mode="constant")
                for channel, k in zip(x[0].numpy(), row, strict=True)
            )
            for row in spread
        ]
        seen.append(np.stack(outputs) + conv.bias.detach().numpy()[:, None, None])
    mean = module.mean.weight[:, :, 0, 0] @ x.mean((0, 2, 3)) + module.mean.bias
    seen.append(np.broadcast_to(mean.detach().numpy()[:, None, None], (4, 21, 40)))
    rows = F.leaky_relu(torch.from_numpy(np.concatenate(seen)), 0.1)
    fused = torch.einsum("oc,chw->ohw", module.fuse.weight[:, :, 0, 0], rows) + module.fuse.bias[:, None, None]
    torch.testing.assert_close(module(x)[0], F.leaky_relu(fused, 0.1), rtol=0, atol=1e-12)


def test_saved_bytes_of_a_network_that_anyone_can_count():
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 1), torch.nn.Sigmoid()
    )
    # The image, the ReLU's output (for itself and the next convolution), the sigmoid's; no weights.
    assert saved_bytes(model, 8, 16) == 4 * 8 * 16 * (3 + 4 + 2)


def test_the_tables_are_the_paper_s():
    names = {name: [LMFN.from_preset(row.preset, **row.changes) for row in rows] for name, rows in TABLES.items()}
    assert [len(model.rfdbs) for model in names["rfdbs"]] == [1, 2, 3, 4, 5, 6]
    counts = {name: [sum(p.numel() for p in model.parameters()) for model in models] for name, models in names.items()}
    whole = 1_248_621
    for name, row in {"rfdbs": 3, "encoder": 0, "attention": 0, "similarity": 0, "presets": 0}.items():
        assert counts[name][row] == whole
        assert TABLES[name][row].paper == "31.54"
        assert TABLES[name][row].run == "lmfn"
    assert counts["encoder"][1] == whole + 553_920
    assert counts["presets"][1] == 1_223_780
    runs = {row.run: (row.preset, row.changes) for rows in TABLES.values() for row in rows}
    assert len(runs) == 5 + 3 + 4 + 1 + 1 + 1
    verb = get_type_hints(cli.Ablate)["table"]
    assert set(get_args(verb)) == set(TABLES)


@pytest.fixture
def pairs(tmp_path):
    rng = np.random.default_rng(0)
    for n in range(3):
        sharp = scipy.ndimage.gaussian_filter(rng.random((72, 80, 3), dtype=np.float32), (2, 2, 0))
        images.write(tmp_path / "pairs" / "sharp" / f"{n}.png", images.Photo(sharp))
        blurred = scipy.ndimage.gaussian_filter(sharp, (2, 2, 0))
        images.write(tmp_path / "pairs" / "blur" / f"{n}.png", images.Photo(blurred))
    return tmp_path / "pairs"


def test_a_table_is_trained_measured_and_not_made_twice(pairs, tmp_path, monkeypatch, capsys):
    small = {"channels": 8, "features": 8, "distilled": 4, "esa": 4, "rfdbs": 1}
    rows = (Row("one", small, "31.54"), Row("other", small | {"encoder": "pyramid"}))
    monkeypatch.setitem(TABLES, "encoder", rows)
    command = ["ablate", "encoder", "--data", pairs, "-o", tmp_path / "out", "--steps", "2", "--images", "2"]
    settings = ["--pairs", pairs, "--batch", "1", "--patch", "64", "--workers", "0"]
    assert cli.main([str(word) for word in [*command, "--device", "cpu", "--", *settings]]) == 0
    said = capsys.readouterr().out.strip()
    text = (tmp_path / "out" / "encoder.md").read_text()
    assert said == text.strip()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[:4]]
    assert table[0][0] == "encoder"
    for row, line in zip(rows, table[2:], strict=True):
        folder = tmp_path / "out" / "runs" / f"{row.run}-seed-0"
        evaluation = json.loads((folder / "evaluation.json").read_text())
        model = LMFN.from_pretrained(folder / "ema.safetensors")
        assert json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 2
        assert (model.config.encoder, model.config.channels) == (row.changes.get("encoder", "mshf"), 8)
        assert line == [
            row.name,
            f"{sum(p.numel() for p in model.parameters()):,}",
            f"{count_gmacs(model, 256, 256):.2f}",
            f"{count_gmacs(model, 720, 1280):.2f}",
            f"{saved_bytes(model.train()) / 256**2:,.0f}",
            f"{evaluation['means']['deblurred']['psnr']:.2f}",
            f"{evaluation['means']['deblurred']['ssim_gauss2d']:.4f}",
            f"{evaluation['time']['seconds'] * 1e3:,.0f}",
            row.paper,
        ]
        assert [shown["name"] for shown in evaluation["rows"]] == ["0", "2"]
    assert "2 steps each, seed 0; 2 pairs of pairs, protocol plain" in text
    assert f"`{' '.join(map(str, settings))}`" in text

    def refuse(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(ablate_module.subprocess, "run", refuse)
    again = {"steps": 2, "images": 2, "settings": [str(word) for word in settings]}
    assert ablate("encoder", find_pairs(pairs), tmp_path / "out", **again) == text
    with pytest.raises(
        ValueError, match=r"out holds runs with another steps \(.*settings\.json\); name another folder"
    ):
        ablate("encoder", find_pairs(pairs), tmp_path / "out", **(again | {"steps": 3}))
    with pytest.raises(ValueError, match="unknown table 'decoder'; there are rfdbs, encoder"):
        ablate("decoder", find_pairs(pairs), tmp_path / "out", steps=1)
    with pytest.raises(ValueError, match="steps is 0; it must be at least 1"):
        ablate("encoder", find_pairs(pairs), tmp_path / "out", steps=0)
    with pytest.raises(ValueError, match="images is -1; it must be at least 1"):
        ablate("encoder", find_pairs(pairs), tmp_path / "out", steps=1, images=-1)
    with pytest.raises(ValueError, match="no seed was given"):
        ablate("encoder", find_pairs(pairs), tmp_path / "out", steps=1, seeds=())


def test_several_seeds_show_their_spread():
    row, costs = Row("a"), Complexity(5, 20, {"256x256": 1.0, "1280x720": 2.0})
    result = Result(row, costs, 100.0, (26.0, 26.5), (0.8, 0.9), 0.0123, "80x72")
    measured = {
        "means": {"blurred": {"psnr": 25.0, "ssim_gauss2d": 0.7}},
        "device": "x",
        "threads": 1,
        "precision": "fp32",
    }
    told = {"steps": 7, "settings": ["--batch", "4"], "data": "d", "pairs": 3}
    text = markdown("rfdbs", [result], measured, told, (0, 1))
    assert "| 26.25 (26.00 to 26.50) | 0.8500 (0.8000 to 0.9000) | 12 |" in text
    assert "mean of seeds 0, 1, least to most in brackets" in text


def test_a_failed_training_run_is_named(pairs, tmp_path, capsys):
    command = [
        "ablate",
        "similarity",
        "--data",
        str(pairs),
        "-o",
        str(tmp_path / "out"),
        "--steps",
        "1",
        "--device",
        "cpu",
    ]
    assert cli.main([*command, "--", "--pairs", str(tmp_path / "nowhere")]) == 1
    said = capsys.readouterr().err
    assert "lmfn: lmfn-seed-0: train.py ended with status 1; the same command goes on from there" in said
    assert not (tmp_path / "out" / "similarity.md").exists()
    assert not (tmp_path / "out" / "runs").exists()  # so that a corrected command may use the folder
    ablate_module._keep(tmp_path / "out", {"steps": 2})
    assert json.loads((tmp_path / "out" / "settings.json").read_text()) == {"steps": 2}
