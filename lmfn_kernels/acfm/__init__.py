"""ACFM, the attention between the channels of one layer."""
