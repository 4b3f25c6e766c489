"""Print the bytes per pixel that the network saves for backward, by preset, backend, `memory` and dtype.

python experiments/kernels/saved.py

Memory of the kernels is allocated as on a GPU, and nothing is launched.
"""

import os
from typing import Literal

os.environ["TRITON_INTERPRET"] = "1"  # so that the kernels' backend takes CPU tensors

import torch

from lmfn import LMFN
from lmfn.evaluation import saved_bytes
from lmfn_kernels import backend
from lmfn_kernels.runtime import launch

SETTINGS: tuple[tuple[str, Literal["normal", "lean"]], ...] = (
    ("reference", "normal"),
    ("torch", "normal"),
    ("torch", "lean"),
    ("triton", "normal"),
    ("triton", "lean"),
)

if __name__ == "__main__":
    for preset in ("lmfn", "lmfn-released"):
        model = LMFN.from_preset(preset)
        for name, memory in SETTINGS:
            model.memory = memory
            for dtype in (torch.bfloat16, torch.float32):
                with (
                    backend(name),
                    torch.autocast("cpu", dtype, enabled=dtype != torch.float32),
                    launch.intercepting(lambda *_: None),
                ):
                    print(f"{preset}, {name}, {memory}, {dtype}: {saved_bytes(model) / 256**2:.0f} bytes per pixel")
