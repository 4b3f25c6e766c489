"""Which hidden units of residual blocks fire: against the formula, and after training that must not kill them."""

import pytest
import torch
import torch.nn.functional as F

from lmfn.network import Network, preset
from lmfn.network.activity import RARELY, Activity, summarise, unit_activity
from lmfn.network.blocks import RB

SMALL = {"channels": 16, "features": 16, "distilled": 8, "esa": 4, "rfdbs": 1, "similarity": "cosine"}


def test_activity_is_that_of_the_formula() -> None:
    torch.manual_seed(0)
    model = Network(preset("lmfn", **SMALL))
    images = torch.rand(2, 3, 64, 80)
    seen: dict[str, torch.Tensor] = {}
    blocks = {name: block for name, block in model.named_modules() if isinstance(block, RB)}
    for name, block in blocks.items():
        block.register_forward_hook(lambda _, inputs, output, name=name: seen.update({name: (inputs[0], output)}))
    shares = unit_activity(model, images)
    l1, l2, l3 = model.encoder.halve(images, model.mean_like(images))
    model.encoder.fuse_4th(l1, model.encoder.fuse_8th(l2, l3))  # one by one: these calls run all hooks
    assert set(shares) == set(blocks) == set(seen)
    assert len(shares) == 10
    for name, block in blocks.items():
        x, output = seen[name]
        if name == "head.rb2":
            x = F.interpolate(x, scale_factor=2, mode="bilinear")
        hidden = block.conv1(x).relu()
        torch.testing.assert_close(x + block.conv2(hidden), output, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(shares[name], (hidden > 0).float().mean(dim=(0, 2, 3)), atol=1e-4, rtol=0)
    assert all(block.watch is None for block in blocks.values())


def test_dead_and_silent_units_are_counted() -> None:
    shares = torch.tensor([0.5, 0.25, RARELY / 2, 0.0, 0.0])
    assert Activity.of(shares) == Activity(5, pytest.approx(0.1502), 3, 2)
    torch.manual_seed(0)
    model = Network(preset("lmfn", **SMALL))
    with torch.no_grad():
        model.encoder.rb_16th.conv1.weight[3:] = 0
        model.encoder.rb_16th.conv1.bias[3:] = -1
        model.encoder.rb_16th.conv1.bias[:3] = 9
    found = summarise(unit_activity(model, torch.rand(1, 3, 64, 64)))
    assert found["encoder.rb_16th"] == Activity(16, pytest.approx(3 / 16), 13, 13)


def test_nothing_is_watched_after_the_network_failed() -> None:
    model = Network(preset("lmfn", **SMALL))
    with pytest.raises(ValueError, match="takes images"):
        unit_activity(model, torch.rand(1, 4, 64, 64))
    assert all(block.watch is None for block in model.modules() if isinstance(block, RB))


def test_no_block_dies_in_training_from_nothing() -> None:
    """A hundred steps at a high rate, on squares blurred horizontally: the network learns, and its units keep
    firing."""
    torch.manual_seed(0)
    model = Network(preset("lmfn", **SMALL))
    adam = torch.optim.AdamW(model.parameters(), lr=0, weight_decay=0)
    gains = []
    for step in range(100):
        sharp = F.interpolate(torch.rand(1, 3, 10, 10), size=64)
        blurred = F.avg_pool2d(F.pad(sharp, (4, 4, 0, 0), mode="replicate"), (1, 9), 1)
        for group in adam.param_groups:
            group["lr"] = 1e-3 * min(1, (step + 1) / 30)
        output = model(blurred)
        (output - sharp).abs().mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
        gains.append(float(10 * (F.mse_loss(blurred, sharp) / F.mse_loss(output.detach(), sharp)).log10()))
    assert sum(gains[-20:]) / 20 > 0.3
    for name, block in summarise(unit_activity(model, blurred)).items():
        assert block.dead <= block.units / 4, name
        assert block.firing > 0.2, name
