"""Bilinear resampling, align_corners False, inside the ops that use its result."""
