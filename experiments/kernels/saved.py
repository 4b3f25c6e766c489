"""Print what is saved for backward: by an RFDB, in multiples of its input, and by the network, in bytes per pixel.

python experiments/kernels/saved.py

Memory of the kernels is allocated as on a GPU, and nothing is launched.
"""

import os
from typing import Literal

os.environ["TRITON_INTERPRET"] = "1"  # so that the kernels' backend takes CPU tensors

import torch

from lmfn import LMFN
from lmfn.evaluation import saved_bytes
from lmfn_kernels import backend, cases, testing
from lmfn_kernels.runtime import launch

SETTINGS: tuple[tuple[str, Literal["normal", "lean"]], ...] = (
    ("reference", "normal"),
    ("torch", "normal"),
    ("torch", "lean"),
    ("triton", "normal"),
    ("triton", "lean"),
)


def of_rfdb(dtype: torch.dtype) -> float:
    """By how much more a block saves for a larger image, which leaves out copies of weights."""
    rfdb = cases.OPS["rfdb"]
    both = [rfdb.inputs(cases.Size(1, 1, 50, height, 40), dtype) for height in (32, 64)]
    small, large = (testing.saved_bytes(rfdb.function, [x, *weights], weights) for x, *weights in both)
    return (large - small) / (both[1][0].nbytes - both[0][0].nbytes)


if __name__ == "__main__":
    with launch.intercepting(lambda *_: None):
        for name in ("reference", "torch", "triton"):
            for dtype in (torch.float32, torch.float16, torch.bfloat16):
                with backend(name):
                    print(f"rfdb, {name}, {dtype}: {of_rfdb(dtype):.2f} times its input")
        for preset in ("lmfn", "lmfn-released"):
            model = LMFN.from_preset(preset)
            for name, memory in SETTINGS:
                model.memory = memory
                for dtype in (torch.bfloat16, torch.float32):
                    with backend(name), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                        saved = saved_bytes(model) / 256**2
                    print(f"{preset}, {name}, {memory}, {dtype}: {saved:.0f} bytes per pixel")
