"""The folder of a model for https://github.com/darktable-org/darktable-ai: `write_folder`."""

from pathlib import Path

from lmfn import atomic
from lmfn.export import provenance
from lmfn.network import checkpoint
from lmfn.network.pretrained import LMFN
from lmfn.weights import NAMES, sha256

TILE = 768
OVERLAP = 64
"""Pixels that darktable 5.6 discards at each side of a tile, in tasks that do not change the size."""

MODEL = """id: deblur-{name}
name: "deblur {name}"
description: "LMFN, a lightweight network that removes motion blur"
task: deblur
version: "1.0"
arch: lmfn
backend: onnx
tiling: true
type: single
dep_group: lmfn

attributes:
  input_sizes: [{tile}]

model_card:
  long_description: "LMFN, {parameters:,} parameters, trained on real and synthetic motion blur"
  scope: "motion deblurring of photographs"
  author: "LMFN project; network by Zhang et al."
  source: "the Python package lmfn-deblur 0.1.0"
  paper: "https://arxiv.org/abs/2101.05403"
  license: "Apache-2.0"
  training_data: "{data}"
  training_data_license: "named with each source of the training data"
  notes: "weights, training code and the record of every training run are public"

convert:
  - script: convert.py
    args:
      output: "{{output}}/model.onnx"
      tile_size: {tile}
"""

CONVERT = '''"""Write LMFN as ONNX, with the package lmfn-deblur 0.1.0 and its extra "export" installed."""

import argparse
import hashlib

from lmfn.export import export_onnx
from lmfn.weights import shipped_weights

WEIGHTS = "{name}"
SHA256 = "{digest}"


def convert(output: str, tile_size: int = {tile}, opset: int = 17) -> None:
    found = hashlib.sha256(shipped_weights(WEIGHTS).read_bytes()).hexdigest()
    if found != SHA256:
        raise ValueError(f"the installed weights have SHA-256 {{found}} instead of {{SHA256}}")
    export_onnx(WEIGHTS, output, opset=opset, tile_size=int(tile_size))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", required=True)
    parser.add_argument("--tile-size", type=int, default={tile})
    parser.add_argument("--opset", type=int, default=17)
    convert(**vars(parser.parse_args()))
'''

DEMO = '''"""Deblur an image with the ONNX model, in tiles as darktable cuts them."""

import argparse

import cv2
import numpy as np
import onnxruntime

OVERLAP = {overlap}


def deblur(session: onnxruntime.InferenceSession, image: np.ndarray) -> np.ndarray:
    """RGB [H, W, 3] in [0, 1], float32, to the same."""
    tile = session.get_inputs()[0].shape[2]
    step = tile - 2 * OVERLAP
    height, width = image.shape[:2]
    rows, columns = -(-height // step), -(-width // step)
    after = [(count - 1) * step + tile - size - OVERLAP for count, size in ((rows, height), (columns, width))]
    padded = np.pad(image, ((OVERLAP, after[0]), (OVERLAP, after[1]), (0, 0)), mode="reflect")
    sharp = np.zeros((rows * step, columns * step, 3), np.float32)
    for y in range(0, rows * step, step):
        for x in range(0, columns * step, step):
            part = padded[None, y : y + tile, x : x + tile].transpose(0, 3, 1, 2)
            (found,) = session.run(None, {{"blurred": np.ascontiguousarray(part)}})
            sharp[y : y + step, x : x + step] = found[0].transpose(1, 2, 0)[OVERLAP:-OVERLAP, OVERLAP:-OVERLAP]
    return sharp[:height, :width].clip(0, 1)


def demo(model: str, image: str, output: str) -> None:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    blurred = cv2.imread(image)
    if blurred is None:
        raise ValueError(f"{{image}} cannot be read")
    sharp = deblur(session, blurred[:, :, ::-1].astype(np.float32) / 255)
    cv2.imwrite(output, np.rint(255 * sharp[:, :, ::-1]).astype(np.uint8))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--image", required=True)
    parser.add_argument("--output", required=True)
    demo(**vars(parser.parse_args()))
'''

README = """# LMFN

A lightweight network that removes motion blur from photographs: {parameters:,} parameters, from
[Image deblurring based on lightweight multi-information fusion network](https://arxiv.org/abs/2101.05403).

## ONNX model

| Property | |
|---|---|
| Input | `blurred`, float32 [1, 3, {tile}, {tile}], RGB in [0, 1] |
| Output | `sharp`, float32 [1, 3, {tile}, {tile}], to be clipped to [0, 1] |
| Opset | 17 |
| Tiling | yes, {tile} pixels with an overlap of {overlap} |

The network reflects a border around each tile by itself.

## Selection criteria

| Property | |
|---|---|
| Model licence | Apache-2.0 (weights and code) |
| Training data | {data} |
| Training code | public: `lmfn train`; the card of the weights lists every run |
| Published research | https://arxiv.org/abs/2101.05403 (ICIP 2021) |
| Inference | local only |
| Reproducibility | `convert.py` writes the file from the package's weights, whose SHA-256 it checks |
| Known limitations | blur of about ten pixels is removed; longer smears, defocus and noise are not |
"""


def write_folder(weights: str | Path, folder: str | Path) -> None:
    """Write `model.yaml`, `convert.py`, `demo.py` and `README.md` for weights of this package, `lmfn` or
    `lmfn-released`.

    The training data and its licences are those of the weights' card. Existing files are replaced. Raises ValueError
    for other weights, since darktable requires a public source, and for a folder of something else, whose README.md
    would be lost.
    """
    if weights not in NAMES:
        raise ValueError(f"a folder for darktable needs published weights, {' or '.join(NAMES)}, not {weights}")
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "model.yaml").is_file():
        raise ValueError(f"{folder} is not empty, and no folder for darktable; name a new folder")
    model = LMFN.from_pretrained(weights)
    file = checkpoint.find_weights(weights)
    facts = {
        "name": weights,
        "tile": TILE,
        "overlap": OVERLAP,
        "digest": sha256(file),
        "data": provenance(file)["training_data"].replace("\n", "; "),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    texts = {"model.yaml": MODEL, "convert.py": CONVERT, "demo.py": DEMO, "README.md": README}
    for name, text in texts.items():
        atomic.write(folder / name, text.format(**facts).encode())
