"""What a network costs."""

import torch

from lmfn.evaluation import saved_bytes


def test_saved_bytes_of_a_network_that_anyone_can_count():
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 1), torch.nn.Sigmoid()
    )
    # The image, the ReLU's output (for itself and the next convolution), the sigmoid's; no weights.
    assert saved_bytes(model, 8, 16) == 4 * 8 * 16 * (3 + 4 + 2)
