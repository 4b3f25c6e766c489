"""MSHF, the encoder: its stem and its residual block."""
