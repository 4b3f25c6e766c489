"""Time the input gradient of a 1x1 convolution as a convolution and as a matrix product, on two threads.

python experiments/kernels/gradient_1x1.py
"""

import torch
from torch.utils.benchmark import Timer

if __name__ == "__main__":
    e = torch.randn(1, 50, 180, 320).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(50, 25, 1, 1)
    names = {"e": e, "rows": e.permute(0, 2, 3, 1).view(-1, 50), "weight": weight, "conv": torch.conv2d}
    for code in ("conv(e, weight.transpose(0, 1))", "rows @ weight.flatten(1)"):
        print(Timer(code, globals=names, num_threads=2).blocked_autorange())
