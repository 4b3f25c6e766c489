"""ALFM: attention between the features of several layers, and its parts."""
