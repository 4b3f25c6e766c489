"""MSHF: the encoder's stem and residual block."""
