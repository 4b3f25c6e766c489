"""What a training run minimises, from which weights, at which rate, and the average of its weights."""

import logging
import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from lmfn.network.pretrained import LMFN
from lmfn.training.settings import Settings

log = logging.getLogger(__name__)


def learning_rate(settings: Settings, step: int, progress: float) -> float:
    """Linear warm-up by steps times a cosine from `lr` to `lr_end` by progress in [0, 1]."""
    warm = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return warm * (settings.lr_end + (settings.lr - settings.lr_end) * cosine)


def initial_network(settings: Settings) -> LMFN:
    """The network to train: a new one, or one with the weights of `settings.start_from`, as far as they fit it.

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
    log.info(
        f"{settings.start_from}: {len(fitting)} of {len(own)} tensors begin with these weights; new: {', '.join(new)}"
    )
    return model


def make_loss(settings: Settings) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of an output against the sharp image, both `[B, 3, H, W]` float32 in [0, 1]; a scalar."""

    def loss(output: Tensor, sharp: Tensor) -> Tensor:
        difference = output - sharp
        if settings.loss == "l1":
            value = difference.abs().mean()
        elif settings.loss == "charbonnier":
            value = (difference.square() + 1e-6).sqrt().mean()
        elif settings.loss == "psnr":  # minus the PSNR in dB, an image at a time
            value = 10 * (difference.square().mean(dim=(1, 2, 3)) + 1e-8).log10().mean()
        else:
            value = difference.square().mean()
        if settings.fft:
            value = value + settings.fft * torch.fft.rfft2(difference, norm="ortho").abs().mean()
        return value

    return loss


def average(model: LMFN, decay: float) -> AveragedModel:
    """The EMA of a network. The decay grows as (1 + n) / (10 + n), so that a short run forgets its beginning."""

    def lerp(
        averaged: tuple[Tensor, ...] | list[Tensor], current: tuple[Tensor, ...] | list[Tensor], n: Tensor | int
    ) -> None:
        # All at once: for each tensor by itself, a GPU would be waited for as often as there are tensors.
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + float(n)) / (10 + float(n))))

    return AveragedModel(model, multi_avg_fn=lerp)
