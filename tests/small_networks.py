"""Small networks, and their output for an image as `Deblurrer` runs them."""

import torch

from lmfn import LMFN
from lmfn.inference import with_border

SMALL = {"channels": 8, "features": 6, "distilled": 3, "esa": 4, "rfdbs": 2}


def network(name="lmfn", **options):
    """Far from the identity, with biases and attentions that count."""
    torch.manual_seed(0)
    model = LMFN.from_preset(name, **(SMALL | options)).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith((".theta", ".alpha")):
                parameter.fill_(0.3)
            if key.endswith("bias"):
                parameter.normal_(0, 0.05)
        model.head.conv.weight.mul_(10 if model.config.skip == "image" else 1)
    return model


def destructive():
    """With the included weights and three times their change, which destroys squares of two pixels for certain."""
    model = LMFN.from_pretrained("lmfn")
    with torch.no_grad():
        model.head.conv.weight.mul_(3)
        model.head.conv.bias.mul_(3)
    return model


def image(height, width, batch=1):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(height * width))


def deblurred(model, x):
    with torch.no_grad():
        return with_border(model)(x)
