"""The paper's tables: what is trained, measured and written."""

import json
import shutil
from typing import get_args, get_type_hints

import numpy as np
import pytest
import scipy.ndimage

from experiments.ablations import ablate as script
from experiments.ablations.ablate import TABLES, Variant, VariantResult, ablate, markdown
from lmfn import LMFN, images
from lmfn.data import find_pairs
from lmfn.evaluation import count_gmacs, saved_bytes
from lmfn.evaluation.results import Complexity
from lmfn.training.settings import Settings


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
    assert len(runs) == 5 + 4 + 5 + 1 + 1 + 1
    verb = get_type_hints(script.Arguments)["table"]
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
    other = small | {"encoder": "pyramid"}
    rows = (Variant("one", small, "31.54"), Variant("other", other, freeze=("encoder",)))
    monkeypatch.setitem(TABLES, "encoder", rows)
    command = ["encoder", "--data", pairs, "-o", tmp_path / "out", "--steps", "2", "--images", "2"]
    settings = ["--pairs", pairs, "--batch", "1", "--patch", "64", "--workers", "0"]
    assert script.main([str(word) for word in [*command, "--device", "cpu", "--", *settings]]) == 0
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
        assert Settings.read(folder / "config.yaml").freeze == row.freeze
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
        assert [shown["name"] for shown in evaluation["rows"]] == ["0", "1"]
    assert "2 steps each, seed 0; 2 pairs of pairs, protocol plain" in text
    assert f"`{' '.join(map(str, settings))}`" in text

    def refuse(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(script.subprocess, "run", refuse)
    again = {"steps": 2, "images": 2, "settings": [str(word) for word in settings]}
    assert ablate("encoder", find_pairs(pairs), tmp_path / "out", **again) == text
    file = tmp_path / "out" / "runs" / f"{rows[0].run}-seed-0" / "evaluation.json"
    here = json.loads(file.read_text())
    file.write_text(json.dumps(here | {"device": "another computer"}))
    ablate("encoder", find_pairs(pairs), tmp_path / "out", **again)  # measured again, so that one device made all times
    measured = json.loads(file.read_text())
    assert measured["device"] == here["device"]
    assert measured["means"] == here["means"]
    with pytest.raises(
        ValueError, match=r"out contains runs with another steps \(.*settings\.json\); name another folder"
    ):
        ablate("encoder", find_pairs(pairs), tmp_path / "out", **(again | {"steps": 3}))
    other = tmp_path / "other" / pairs.name
    shutil.copytree(pairs, other)
    images.write(other / "blur" / "0.png", images.Photo(np.zeros((72, 80, 3), np.float32)))
    with pytest.raises(ValueError, match="out contains runs with another images"):
        ablate("encoder", find_pairs(other), tmp_path / "out", **again)
    with pytest.raises(ValueError, match="unknown table 'decoder'; there are rfdbs, encoder"):
        ablate("decoder", find_pairs(pairs), tmp_path / "out", steps=1)
    with pytest.raises(ValueError, match="steps is 0; it must be at least 1"):
        ablate("encoder", find_pairs(pairs), tmp_path / "out", steps=0)
    with pytest.raises(ValueError, match="images is -1; it must be at least 1"):
        ablate("encoder", find_pairs(pairs), tmp_path / "out", steps=1, images=-1)
    with pytest.raises(ValueError, match="no seed was given"):
        ablate("encoder", find_pairs(pairs), tmp_path / "out", steps=1, seeds=())


def test_several_seeds_show_their_spread():
    row, costs = Variant("a"), Complexity(5, 20, {"256x256": 1.0, "1280x720": 2.0})
    result = VariantResult(row, costs, 100.0, (26.0, 26.5), (0.8, 0.9), 0.0123, "80x72")
    measured = {
        "means": {"blurred": {"psnr": 25.0, "ssim_gauss2d": 0.7}},
        "device": "x",
        "threads": 1,
        "precision": "fp32",
    }
    told = {"steps": 7, "settings": ["--batch", "4"], "data": "d", "pairs": 3}
    text = markdown("rfdbs", [result], measured, told, (0, 1))
    assert "| 26.25 (26.00 to 26.50) | 0.8500 (0.8000 to 0.9000) | 12 |" in text
    assert "mean of seeds 0, 1, minimum and maximum in parentheses" in text


def test_a_failed_training_run_is_named(pairs, tmp_path, capsys):
    command = [
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
    assert script.main([*command, "--", "--pairs", str(tmp_path / "nowhere")]) == 1
    said = capsys.readouterr().err
    assert "lmfn ablate: lmfn-seed-0: training ended with status 1; the same command resumes it" in said
    assert not (tmp_path / "out" / "similarity.md").exists()
    assert not (tmp_path / "out" / "runs").exists()  # so that a corrected command may use the folder
    script.check_run_settings(tmp_path / "out", {"steps": 2})
    assert json.loads((tmp_path / "out" / "settings.json").read_text()) == {"steps": 2}
