"""The head: a convolution of an upsampled map that is never made."""
