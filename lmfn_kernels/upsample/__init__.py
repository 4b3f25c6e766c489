"""Bilinear upsampling, with another map added, or fused into the convolution that follows it."""
