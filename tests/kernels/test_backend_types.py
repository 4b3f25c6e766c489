"""The two backends of a folder have the same signatures: mypy checks both against one protocol."""

from pathlib import Path

import pytest

mypy = pytest.importorskip("mypy.api")

KERNELS = Path(__file__).parents[2] / "lmfn_kernels"
CHANGES = {
    "none": ("", ""),
    "type": ("by_layer: bool, grid: Grid, *,", "by_layer: str, grid: Grid, *,"),
    "argument": ("by_layer: bool, grid: Grid, *,", "by_layer: bool, *,"),
    "keyword": ("    slope: float = 1.0,", "    negative: float = 1.0,"),
    "result": ("grid: Grid) -> tuple[Tensor, Tensor]:", "grid: Grid) -> list[Tensor]:"),
    "function": ("def products(", "def multiply("),
}


def test_mypy_sees_a_signature_that_differs(tmp_path: Path) -> None:
    text = (KERNELS / "alfm" / "torch_backend.py").read_text()
    lines = ["from lmfn_kernels.alfm.backend import ALFMBackend"]
    for name, (before, after) in CHANGES.items():
        assert before in text
        (tmp_path / f"{name}.py").write_text(text.replace("__all__", "_names").replace(before, after))
        lines += [f"import {name}", f"{name}_backend: ALFMBackend = {name}"]
    (tmp_path / "use.py").write_text("\n".join(lines))
    files = [*tmp_path.glob("*.py"), KERNELS / "alfm" / "backend.py", KERNELS / "runtime" / "gradients.py"]
    # PyTorch's types, which take most of the time, are not checked.
    options = ["--follow-imports=skip", f"--cache-dir={tmp_path}", "--config-file="]
    found, errors, _ = mypy.run([*options, *map(str, files)])
    assert not errors
    refused = [line for line in found.splitlines() if "use.py" in line and "error: Incompatible types" in line]
    for name, line in zip([name for name in CHANGES if name != "none"], refused, strict=True):
        assert f"use.py:{lines.index(f'{name}_backend: ALFMBackend = {name}') + 1}: " in line
