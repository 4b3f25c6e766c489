"""What is measured: the kernels' resources without a GPU, and the ops' and the network's times and memory."""

import os

# PyTorch's profiler, which counts the CPU's memory here, says on stderr when it starts and stops.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
