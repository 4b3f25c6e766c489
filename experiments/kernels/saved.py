"""Print the bytes per pixel that the network saves for backward, by preset, backend, `memory` and dtype.

python experiments/kernels/saved.py
"""

from typing import Literal

import torch

from lmfn import LMFN
from lmfn.evaluation import saved_bytes
from lmfn_kernels import backend

SETTINGS: tuple[tuple[str, Literal["normal", "lean"]], ...] = (
    ("reference", "normal"),
    ("torch", "normal"),
    ("torch", "lean"),
)

if __name__ == "__main__":
    for preset in ("lmfn", "lmfn-released"):
        model = LMFN.from_preset(preset)
        for name, memory in SETTINGS:
            model.memory = memory
            for dtype in (torch.bfloat16, torch.float32):
                with backend(name), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                    print(f"{preset}, {name}, {memory}, {dtype}: {saved_bytes(model) / 256**2:.0f} bytes per pixel")
