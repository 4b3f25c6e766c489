"""Benchmarks: resources of the kernels without a GPU; times and memory of the ops and of the network."""

import os

# PyTorch's profiler, which counts CPU memory here, logs to stderr whenever it starts and stops.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
