"""The folder for darktable-ai, against what its programs require, and its tiles against the whole image."""

import runpy

import cv2
import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from skimage.data import astronaut

from lmfn.cli import main
from lmfn.weights import FOLDER, NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_folder_is_whole(name, tmp_path):
    assert main(["export", str(tmp_path / name), "--format", "darktable", "--weights", name]) == 0
    model = yaml.safe_load((tmp_path / name / "model.yaml").read_text())
    assert {"id", "name", "description", "task", "version", "backend"} <= model.keys()
    assert (model["id"], model["type"], model["tiling"]) == (f"deblur-{name}", "single", True)
    assert all(isinstance(value, str) for value in model["model_card"].values())
    card = ModelCard.load(FOLDER / f"{name}.md").data.to_dict()
    assert model["model_card"]["training_data"] == "; ".join(card["training_data"])
    assert all(source in (tmp_path / name / "README.md").read_text() for source in card["training_data"])
    (step,) = model["convert"]
    convert = runpy.run_path(str(tmp_path / name / step["script"]))["convert"]
    arguments = {key: str(value).format(output=tmp_path) for key, value in step["args"].items()}
    convert(**arguments | {"tile_size": 192})  # smaller than darktable's, for speed
    cv2.imwrite(str(tmp_path / "blurred.png"), astronaut()[:70, :90])
    # With the arguments of darktable_ai/demo.py for a model of type single.
    runpy.run_path(str(tmp_path / name / "demo.py"))["demo"](
        model=arguments["output"], image=str(tmp_path / "blurred.png"), output=str(tmp_path / "sharp.png")
    )
    sharp = cv2.imread(str(tmp_path / "sharp.png"))
    assert sharp.shape == (70, 90, 3)
    assert np.abs(sharp.astype(float) - astronaut()[:70, :90]).mean() < 6


def test_what_it_cannot_write_is_said(tmp_path, capsys):
    assert main(["export", str(tmp_path / "x"), "--format", "darktable", "--weights", "runs/mine"]) == 1
    assert "needs published weights, lmfn or lmfn-released, not runs/mine" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "x"), "--format", "darktable", "--opset", "18"]) == 1
    assert "--opset is not an option for darktable" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    (tmp_path / "README.md").write_text("of something else")
    assert main(["export", str(tmp_path), "--format", "darktable"]) == 1
    assert f"{tmp_path} is not empty, and no folder for darktable; name a new folder" in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text() == "of something else"
