"""Export for ncnn: `export_ncnn`. pnnx, ncnn's converter, creates it from the ONNX graph of a tile."""

import importlib.util
import subprocess
import tempfile
from pathlib import Path

from lmfn import atomic
from lmfn.export import export_onnx, largest_tile
from lmfn.extras import require
from lmfn.options import ExportType


def export_ncnn(weights: str | Path, path: str | Path, *, dtype: ExportType = "float32", tile_size: int = 256) -> None:
    """Write a network as NAME.param and NAME.bin for ncnn: `in0` to `out0`, RGB in [0, 1], `[3, tile_size, tile_size]`.

    ncnn cannot compute sizes in a graph, so tiles have one size: a multiple of 16, at least 64, and, for a network that
    attends in windows, such that one window contains a tile and its border (`lmfn.export.largest_tile`, 352 for the
    package's `lmfn`). `dtype` is that of the weights in the file. `path` ends in `.param`; existing files are replaced.

    Raises ValueError if a package is missing, for an unsupported tile size or network, and as `export_onnx`.
    """
    for package in ("onnx", "pnnx"):
        require(package, "exporting for ncnn", "ncnn")
    path = Path(path)
    if (largest := largest_tile(weights)) is not None and tile_size > largest:
        raise ValueError(f"tile_size is {tile_size}; for ncnn it must be {largest} or less, within one window of ALFM")
    spec = importlib.util.find_spec("pnnx")
    assert spec is not None
    assert spec.origin is not None
    # The program itself: importing the package would load PyTorch's converter.
    program = next(file for file in Path(spec.origin).parent.glob("pnnx*") if file.is_file())
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(weights, Path(folder, "model.onnx"), tile_size=tile_size)
        shape = f"inputshape=[1,3,{tile_size},{tile_size}]f32"
        command = [str(program), "model.onnx", shape, f"fp16={int(dtype == 'float16')}"]
        ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        made = {suffix: Path(folder, f"model.ncnn{suffix}") for suffix in (".bin", ".param")}
        if ran.returncode or not all(file.is_file() for file in made.values()):
            raise ValueError(f"pnnx could not convert the network: {(ran.stderr or ran.stdout)[-500:]}")
        for suffix, file in made.items():
            atomic.write(path.with_suffix(suffix), file.read_bytes())
