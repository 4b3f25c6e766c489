"""ACFM: attention between the channels of one layer."""
