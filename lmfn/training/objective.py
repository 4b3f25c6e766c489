"""The objective of a training run: initial weights, loss, learning rate, and the average of the weights."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lmfn.network.pretrained import LMFN
from lmfn.training.settings import Settings

log = logging.getLogger(__name__)


def learning_rate(settings: Settings, step: int, progress: float) -> float:
    """Linear warm-up by steps times a cosine from `lr` to `lr_end` by progress in [0, 1]."""
    warm = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return warm * (settings.lr_end + (settings.lr - settings.lr_end) * cosine)


def beginning(settings: Settings) -> str:
    """What a new run starts from, in words."""
    if settings.start_from is None:
        return "starts from random weights; --from lmfn starts from those of the package"
    return f"starts from the weights of {settings.start_from}"


def initial_network(settings: Settings) -> LMFN:
    """The network to train: a new one, or one with those weights of `settings.start_from` that fit.

    Raises FileNotFoundError and ValueError for weights that cannot be read.
    """
    if settings.start_from is None:
        return LMFN(settings.network_config)
    given = LMFN.from_pretrained(settings.start_from)
    config = settings.network_config if settings.preset else replace(given.config, **settings.changes)
    if config == given.config:
        return given
    model = LMFN(config)
    own = model.state_dict()
    fitting = {
        name: tensor for name, tensor in given.state_dict().items() if name in own and own[name].shape == tensor.shape
    }
    model.load_state_dict(own | fitting)
    new = sorted({".".join(name.split(".")[:2]) for name in own.keys() - fitting.keys()})
    log.info(f"{len(fitting)} of {len(own)} tensors fit the network; new: {', '.join(new)}")
    return model


def freeze(model: nn.Module, parts: Sequence[str]) -> None:
    """Mark the parameters of these modules, or with these names, as not to be trained.

    Raises ValueError for a part that the network does not have, and if none of its parameters is left to train.
    """
    for part in parts:
        parameters = [p for name, p in model.named_parameters() if f"{name}.".startswith(f"{part}.")]
        if not parameters:
            known = ", ".join(name for name, _ in model.named_children())
            raise ValueError(f"--freeze {part}: the network has no such part; it consists of {known}, and their parts")
        for parameter in parameters:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"--freeze {' '.join(parts)}: nothing of the network is left to train")


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "mse": lambda difference: difference.square().mean(),
    "l1": lambda difference: difference.abs().mean(),
    "charbonnier": lambda difference: (difference.square() + 1e-6).sqrt().mean(),
    # Minus the PSNR in dB, image by image.
    "psnr": lambda difference: 10 * (difference.square().mean(dim=(1, 2, 3)) + 1e-8).log10().mean(),
}
"""By name in `Settings.loss`: a scalar from output minus sharp, `[B, 3, H, W]` float32."""


def make_loss(settings: Settings) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of an output against the sharp image, both `[B, 3, H, W]` float32 in [0, 1]; a scalar."""

    def loss(output: Tensor, sharp: Tensor) -> Tensor:
        difference = output - sharp
        value = LOSSES[settings.loss](difference)
        if settings.fft:
            value = value + settings.fft * torch.fft.rfft2(difference, norm="ortho").abs().mean()
        return value

    return loss


def exponential_average(model: LMFN) -> AveragedModel:
    """A copy of a network for the exponential moving average of its weights, which `update_average` updates."""
    return AveragedModel(model)


@torch.no_grad()
def update_average(average: AveragedModel, model: nn.Module, decay: float) -> None:
    """The next step of a moving average. The decay grows as (1 + n) / (10 + n) with the number of steps n, up to
    `decay`, so that the initial weights do not dominate the average of a short run.

    All weights at once, and with n on the host: `AveragedModel.update_parameters` would wait for a GPU.
    """
    n = int(average.n_averaged)
    weight = 1 - min(decay, (1 + n) / (10 + n)) if n else 1.0
    torch._foreach_lerp_(list(average.module.parameters()), list(model.parameters()), weight)
    average.n_averaged += 1
