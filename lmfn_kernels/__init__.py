"""Fused kernels for LMFN, usable on their own.

Every op has one public function. `backend` chooses what carries it out: Triton kernels, plain PyTorch, or the written
formula under autograd.
"""

from lmfn_kernels.rfdb.op import Conv, RFDBWeights, conv3x3, distill_fuse, distill_stage, esa_gate, rfdb
from lmfn_kernels.runtime.backend import backend

__all__ = ["Conv", "RFDBWeights", "backend", "conv3x3", "distill_fuse", "distill_stage", "esa_gate", "rfdb"]
