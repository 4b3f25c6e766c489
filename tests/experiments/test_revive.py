"""New weights for hidden units that never fire."""

import torch

from experiments.weights.revive import revive
from lmfn import LMFN
from lmfn.network.activity import unit_activity
from lmfn.network.blocks import weight_and_bias


def test_units_that_never_fire_have_new_weights_and_the_function_stays() -> None:
    torch.manual_seed(0)
    model = LMFN.from_preset("lmfn", channels=8, features=8, distilled=4, esa=4, rfdbs=1)
    block, sample = model.encoder.rb_4th[0], torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        weight_and_bias(block.conv1).bias[2:5] = -100.0
    shares, before = unit_activity(model, sample)["encoder.rb_4th.0"], model(sample)
    assert (shares[2:5] == 0).all()
    weights = block.conv1.weight.clone()
    assert revive(model, sample) >= 3
    assert (unit_activity(model, sample)["encoder.rb_4th.0"][2:5] > 0).any()
    changed = (block.conv1.weight != weights).flatten(1).any(1)
    assert changed[2:5].all()
    assert not changed[shares > 0.01].any()
    torch.testing.assert_close(model(sample), before, rtol=0, atol=1e-3)
