"""Fused kernels for LMFN, usable on their own.

Every op has one public function. `backend` selects its implementation: Triton kernels, PyTorch, or the written formula
under autograd.
"""

from lmfn_kernels.acfm.op import channel_gate
from lmfn_kernels.alfm.op import (
    LayerAttention,
    attention_matrix,
    fold_into_weight,
    layer_apply,
    layer_attention,
    layer_gram,
)
from lmfn_kernels.conv.backend import missing_for_e4m3
from lmfn_kernels.conv.op import conv3x3, conv3x3_and_input
from lmfn_kernels.conv.scaled import power_of_two, scaled
from lmfn_kernels.mshf.op import residual_block, residual_block_e4m3, residual_blocks, stem
from lmfn_kernels.rfdb.op import (
    distill_fuse,
    distill_stage,
    distill_stages_e4m3,
    esa_gate,
    rfdb,
    rfdb_e4m3,
    rfdb_for_two_uses,
)
from lmfn_kernels.runtime.backend import backend, explain_backend
from lmfn_kernels.runtime.layout import weight_layout
from lmfn_kernels.upsample.op import folded, upsample_add, upsampled_conv3x3
from lmfn_kernels.upsample.polyphase import fold_upsampling
from lmfn_kernels.weights import Conv, FoldedConv, Full3D, Pseudo3D, RFDBWeights, ScaledConv

__all__ = [
    "Conv", "FoldedConv", "Full3D", "LayerAttention", "Pseudo3D", "RFDBWeights", "ScaledConv", "attention_matrix",
    "backend", "channel_gate", "conv3x3", "conv3x3_and_input", "distill_fuse", "distill_stage", "distill_stages_e4m3",
    "esa_gate", "explain_backend", "fold_into_weight", "fold_upsampling", "folded", "layer_apply", "layer_attention",
    "layer_gram", "missing_for_e4m3", "power_of_two", "residual_block", "residual_block_e4m3", "residual_blocks",
    "rfdb", "rfdb_e4m3", "rfdb_for_two_uses", "scaled", "stem", "upsample_add", "upsampled_conv3x3", "weight_layout",
]  # fmt: skip
