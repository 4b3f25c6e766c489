"""ALFM, the attention between the layers' features, and its parts."""
