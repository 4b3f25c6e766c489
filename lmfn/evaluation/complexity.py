"""The cost of a network: parameters, multiply-adds, memory saved for backward."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import lmfn_kernels
from lmfn.evaluation.results import Complexity
from lmfn_kernels import testing
from lmfn_kernels.runtime.torch_private import FakeTensorMode


def measure_complexity(model: nn.Module) -> Complexity:
    """Parameters, their bytes, and GMACs at 256x256, 1280x720 (GoPro) and 1920x1200 (RSBlur)."""
    parameters = list(model.parameters())
    return Complexity(
        sum(parameter.numel() for parameter in parameters),
        sum(parameter.numel() * parameter.element_size() for parameter in parameters),
        {f"{w}x{h}": count_gmacs(model, h, w) for h, w in ((256, 256), (720, 1280), (1200, 1920))},
    )


def count_gmacs(model: nn.Module, height: int, width: int) -> float:
    """1e9 multiply-adds of the convolutions and matrix products in a forward pass over one image `[1, 3, H, W]`.

    Half of what torch's FlopCounterMode counts in the written formulas, even where fused ops save some;
    additions, activations and resampling are not counted. The pass runs on fake tensors: only shapes are computed.
    """
    device = next(model.parameters()).device
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    eager = torch.compiler.set_stance("force_eager")  # count a compiled network without recompiling it
    written = lmfn_kernels.backend("reference")
    with eager, fake, written, FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, height, width, device=device))
    return float(counter.get_total_flops() / 2e9)


def saved_bytes(model: nn.Module, height: int = 256, width: int = 256) -> int:
    """Bytes that one image's forward pass keeps for the backward pass, each storage once, parameters left out."""
    parameter = next(model.parameters())
    image = torch.zeros(1, 3, height, width, device=parameter.device, dtype=parameter.dtype)
    return testing.saved_bytes(lambda: model(image), [], model.parameters())
