"""3x3 convolutions with bias, residual and activation; the other packages build on their functions."""
