"""Fused kernels for LMFN."""
