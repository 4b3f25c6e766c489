"""Write these kernels as a repository for Hugging Face's `kernels` library: `python -m lmfn_kernels.hub FOLDER`.

Programs load it by `kernels.get_kernel`, as CARD.md says, or from the folder by `get_local_kernel(Path(FOLDER))`. Each
copy is imported under a name of its own and can be used beside an installed `lmfn_kernels`; therefore its imports are
relative, and its ops are registered in a namespace of its own (`lmfn_kernels.runtime.registration`).
"""

import argparse
import ast
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

PACKAGE = "lmfn_kernels"
BACKENDS = ("cpu", "cuda")
LEFT_OUT = ("hub.py",)

BUILD = """[general]
name = "lmfn-kernels"
version = 1
edition = 5
license = "Apache-2.0"
backends = ["cpu", "cuda"]
python-depends = ["einops"]

[torch-noarch]
pyext = ["json", "py"]
"""

FLAKE = """{
  inputs.kernel-builder.url = "github:huggingface/kernels";
  outputs = { self, kernel-builder }:
    kernel-builder.lib.genKernelFlakeOutputs { inherit self; path = ./.; };
}
"""

CARD = """---
library_name: kernels
license: apache-2.0
tags: [kernel]
---
# lmfn-kernels

Fused Triton kernels for LMFN, a lightweight network for image deblurring (arXiv 2101.05403): convolutions with
activation and residual, upsampling folded into a convolution, residual feature distillation, attention between layers
and between channels. All of them have backward passes, and use PyTorch's own operations if there is no GPU.

```python
import torch
from kernels import get_kernel

ops = get_kernel("OWNER/lmfn-kernels", version=1, trust_remote_code=True)
x, weight, bias = torch.randn(1, 16, 64, 64), torch.randn(16, 16, 3, 3), torch.zeros(16)
y = ops.conv3x3(x, weight, bias, activation="leaky_relu", slope=0.1)
```
"""


def write(folder: Path) -> None:
    """Write the repository into a new or empty folder: `build.toml`, `flake.nix` and `torch-ext`, the input of
    kernel-builder, and `build`, which is what programs load.

    Raises FileExistsError if the folder is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; name a new folder")
    files = sources()
    digest = hashlib.sha256(b"".join(name.encode() + text for name, text in sorted(files.items()))).hexdigest()[:8]
    trees = {f"torch-ext/{PACKAGE}/{name}": text for name, text in files.items()}
    for backend in BACKENDS:
        about = {
            "id": f"_{PACKAGE}_{backend}_{digest}",
            "name": "lmfn-kernels",
            "version": 1,
            "license": "Apache-2.0",
            "python-depends": ["einops"],
            "backend": {"type": backend},
        }
        variant = f"build/torch-{backend}"
        trees |= {f"{variant}/{name}": text for name, text in files.items()}
        trees[f"{variant}/metadata.json"] = json.dumps(about, indent=2).encode()
    trees |= {"build.toml": BUILD.encode(), "flake.nix": FLAKE.encode(), "CARD.md": CARD.encode()}
    for name, content in trees.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def sources() -> dict[str, bytes]:
    """The package's files by their paths relative to it, with relative imports."""
    root = Path(__file__).parent
    found = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.suffix == ".py" and name not in LEFT_OUT:
            found[name] = with_relative_imports(path.read_text(encoding="utf-8"), name.count("/")).encode()
        elif path.suffix == ".json":
            found[name] = path.read_bytes()
    return found


def with_relative_imports(text: str, depth: int) -> str:
    """A module's text with relative imports from this package; `depth` is the number of folders it is in.

    Raises ValueError for `import lmfn_kernels`, which has no relative form.
    """
    lines = text.splitlines(keepends=True)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import) and any(name.name.partition(".")[0] == PACKAGE for name in node.names):
            raise ValueError(f"line {node.lineno} imports {PACKAGE} itself; import names from its modules")
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == PACKAGE:
            module = (node.module or "").partition(".")[2]
            line = lines[node.lineno - 1]
            lines[node.lineno - 1] = line.replace(f"from {node.module} ", f"from {'.' * (depth + 1)}{module} ", 1)
    return "".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m lmfn_kernels.hub", description=__doc__)
    parser.add_argument("folder", type=Path, help="new or empty")
    try:
        write(parser.parse_args(arguments).folder)
    except OSError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
