"""Bilinear upsampling: added to another map, or under a convolution that never makes the upsampled map."""
