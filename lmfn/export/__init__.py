"""Export networks for other programs: `export_onnx`, and `lmfn.export.ncnn.export_ncnn` for ncnn.

Needs the extra `export`. `docs/use-it-in.md` describes how each program uses the files.
"""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import ModelCard

from lmfn import atomic
from lmfn.extras import require
from lmfn.inference import BORDER
from lmfn.network import checkpoint
from lmfn.network.blocks import MULTIPLE, SMALLEST
from lmfn.network.model import Network
from lmfn.network.pretrained import LMFN
from lmfn.options import ExportType
from lmfn.weights import sha256

if TYPE_CHECKING:
    import onnx

log = logging.getLogger(__name__)

OPSET = 17
"""ONNX operators as of 2022, supported by ONNX Runtime 1.12 and newer."""
OLDEST_OPSET = 13


def export_onnx(
    weights: str | Path,
    path: str | Path,
    *,
    dtype: ExportType = "float32",
    opset: int = OPSET,
    tile_size: int | None = None,
) -> None:
    """Write a network as one ONNX file: `blurred` to `sharp`, both float32 `[B, 3, H, W]`, RGB in [0, 1].

    It computes the same as `Deblurrer`, without the final clipping to [0, 1] and without the check of the output. Any
    B, H and W >= 1; with a `tile_size`, a multiple of 16 and at least 64, only `[1, 3, tile_size, tile_size]`, without
    computed sizes in the graph. `weights` is an argument for `LMFN.from_pretrained`. `dtype` is that of weights and
    convolutions; images are always float32.

    The file's metadata (`metadata_props`) contains the config, the SHA-256 of the weights, and their licence and
    training data, if their model card states them. An existing file is replaced.

    Raises ValueError if the package onnx is missing, for an invalid opset or tile size, and as
    `LMFN.from_pretrained`.
    """
    require("onnx", "exporting", "export")
    model = onnx_model(LMFN.from_pretrained(weights), dtype=dtype, opset=opset, tile_size=tile_size)
    for key, value in provenance(checkpoint.find_weights(weights)).items():
        model.metadata_props.add(key=key, value=value)
    atomic.write(Path(path), model.SerializeToString())


def onnx_model(
    model: Network, *, dtype: ExportType = "float32", opset: int = OPSET, tile_size: int | None = None
) -> "onnx.ModelProto":
    """The ONNX model of a network in memory."""
    require("onnx", "exporting", "export")
    import numpy as np
    import onnx
    from onnx import TensorProto, helper

    from lmfn.export.network import network_graph

    newest = onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest:
        raise ValueError(f"opset is {opset}; it must be from {OLDEST_OPSET} to {newest}, the installed onnx's newest")
    if tile_size is not None and (tile_size < SMALLEST or tile_size % MULTIPLE):
        raise ValueError(f"tile_size is {tile_size}; it must be a multiple of {MULTIPLE}, {SMALLEST} or more")
    graph = network_graph(model, np.float16 if dtype == "float16" else np.float32, tile_size)
    shape: list[int | str | None] = [1, 3, tile_size, tile_size] if tile_size else ["batch", 3, "height", "width"]
    blurred, sharp = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("blurred", "sharp"))
    made = graph.model([blurred], [sharp], opset)
    made.doc_string = "LMFN (arXiv 2101.05403) removes motion blur. RGB images in [0, 1]; the result is not clipped."
    made.metadata_props.add(key="config", value=json.dumps(asdict(model.config)))
    onnx.checker.check_model(made, full_check=True)
    return made


def largest_tile(weights: str | Path) -> int | None:
    """The largest `tile_size` that fits into one attention window with its border; None without windows."""
    window = LMFN.from_pretrained(weights).config.alfm_window
    return None if window is None else (window - 2 * BORDER) // MULTIPLE * MULTIPLE


def provenance(file: Path) -> dict[str, str]:
    """Metadata of a weights file from its model card, NAME.md or README.md next to it."""
    found = {"weights": file.name, "weights_sha256": sha256(file)}
    card = next((path for path in (file.with_suffix(".md"), file.with_name("README.md")) if path.is_file()), None)
    if card is None:
        log.warning("there is no card next to %s: the export states no licence and no training data", file)
        return found
    data = ModelCard.load(card).data.to_dict()
    for key in ("license", "training_data"):
        if key in data:
            found[key] = data[key] if isinstance(data[key], str) else "\n".join(data[key])
    return found
