"""The learning rate, losses, the average of the weights, and the weights with which a run starts."""

import dataclasses

import numpy as np
import pytest
import torch

from lmfn import LMFN
from lmfn.training.objective import exponential_average, learning_rate, make_loss, update_average
from lmfn.training.settings import Settings


def test_learning_rate_is_a_warm_up_times_a_cosine(settings: Settings) -> None:
    settings = dataclasses.replace(settings, lr=1.0, lr_end=0.1, warmup=4)
    assert learning_rate(settings, 0, 0.0) == pytest.approx(0.25)
    assert learning_rate(settings, 3, 0.0) == pytest.approx(1.0)
    assert learning_rate(settings, 50, 0.5) == pytest.approx(0.55)
    assert learning_rate(settings, 99, 1.2) == pytest.approx(0.1)


def test_losses(settings: Settings) -> None:
    generator = torch.Generator().manual_seed(0)
    output, sharp = torch.rand(2, 2, 3, 8, 9, generator=generator, dtype=torch.float64)
    d = (output - sharp).numpy()
    expected = {
        "mse": (d**2).mean(),
        "l1": abs(d).mean(),
        "charbonnier": np.sqrt(d**2 + 1e-6).mean(),
        "psnr": np.mean([10 * np.log10((image**2).mean() + 1e-8) for image in d]),
    }
    for name, value in expected.items():
        assert make_loss(dataclasses.replace(settings, loss=name))(output, sharp).item() == pytest.approx(value)
    spectrum = np.abs(np.fft.rfft2(d) / np.sqrt(72)).mean()
    got = make_loss(dataclasses.replace(settings, loss="l1", fft=0.1))(output, sharp).item()
    assert got == pytest.approx(expected["l1"] + 0.1 * spectrum)


def test_ema_forgets_the_beginning_of_a_short_run() -> None:
    model = LMFN.from_preset("lmfn", channels=8, features=8, distilled=4, esa=4, rfdbs=1)
    ema = exponential_average(model)
    expected = None
    for n in range(6):
        torch.nn.init.constant_(model.alfm.theta, float(n))
        update_average(ema, model, 0.999)
        decay = min(0.999, (1 + n) / (10 + n))
        expected = float(n) if expected is None else decay * expected + (1 - decay) * n
    assert ema.module.alfm.theta.item() == pytest.approx(expected, rel=1e-6)
