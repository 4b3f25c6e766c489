"""The alternatives to the paper's parts in its ablations."""

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F

from lmfn import LMFN
from lmfn.network.alternatives import ASPP, Concat, PooledAttention, PyramidPooling, SpatialAttention

ENCODERS = {"unfused": 740_352 - 8 * 36_928, "strided": 740_352 + 553_920, "aspp": 584_576, "pyramid": 522_880}
FUSIONS = {"none": -10_051, "concat": -1, "pooled": -1 + 12 * 401 + 200, "spatial": -1 + 99}


def awake(module):
    """In float64, with no weight or bias at an initial value that could hide it."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return module.double()


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 80), (1, 70)])
def test_networks_with_other_encoders(encoder, height, width):
    model = LMFN.from_preset("lmfn", encoder=encoder)
    assert sum(p.numel() for p in model.encoder.parameters()) == ENCODERS[encoder]
    x = torch.rand(2, 3, height, width)
    output = model(x)
    assert output.shape == x.shape
    output.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.encoder.parameters())


@pytest.mark.parametrize("alfm", FUSIONS)
def test_networks_with_other_attentions(alfm):
    whole = sum(p.numel() for p in LMFN.from_preset("lmfn", acfm="none").parameters())
    model = LMFN.from_preset("lmfn", alfm=alfm, acfm="none")
    assert sum(p.numel() for p in model.parameters()) == whole + FUSIONS[alfm]
    x = torch.rand(2, 3, 65, 70)
    assert model(x).shape == x.shape


@pytest.mark.parametrize("kind", [Concat, PooledAttention, SpatialAttention])
def test_fusions_are_those_of_the_definition(kind):
    module = awake(kind(6, 3))
    maps = torch.randn(3, 2, 6, 9, 11, dtype=torch.float64)
    rows = maps.transpose(0, 1).reshape(2, 18, 9, 11).numpy()
    if kind is PooledAttention:
        squeeze, excite = (conv.weight.detach().numpy()[:, :, 0, 0] for conv in (module.squeeze, module.excite))
        hidden = rows.mean((2, 3)) @ squeeze.T + module.squeeze.bias.detach().numpy()
        gate = np.maximum(hidden, 0) @ excite.T + module.excite.bias.detach().numpy()
        rows = rows / (1 + np.exp(-gate))[:, :, None, None]
    if kind is SpatialAttention:
        weight = module.conv.weight.detach().numpy()[0]
        for image in rows:
            seen = (image.mean(0), image.max(0))
            gate = sum(scipy.ndimage.correlate(s, w, mode="constant") for s, w in zip(seen, weight, strict=True))
            image /= 1 + np.exp(-gate - module.conv.bias.item())
    fused = np.einsum("oc,bchw->bohw", module.fuse.weight.detach().numpy()[:, :, 0, 0], rows)
    fused += module.fuse.bias.detach().numpy()[:, None, None]
    expected = np.where(fused > 0, fused, 0.05 * fused)
    np.testing.assert_allclose(module(list(maps)).detach(), expected, rtol=0, atol=1e-12)


def test_pyramid_pooling_is_that_of_the_definition():
    module = awake(PyramidPooling(8))
    x = torch.randn(1, 8, 12, 18, dtype=torch.float64)  # a multiple for all parts
    seen = [x]
    for parts, conv in zip((1, 2, 3, 6), module.reduce, strict=True):
        means = x.reshape(8, parts, 12 // parts, parts, 18 // parts).mean((2, 4))
        reduced = torch.einsum("oc,chw->ohw", conv.weight[:, :, 0, 0], means) + conv.bias[:, None, None]
        seen.append(F.interpolate(F.leaky_relu(reduced, 0.1)[None], size=(12, 18), mode="bilinear"))
    expected = F.leaky_relu(F.conv2d(torch.cat(seen, 1), module.fuse.weight, module.fuse.bias, padding=1), 0.1)
    torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-12)


def test_aspp_is_that_of_the_definition():
    module = awake(ASPP(4))
    x = torch.randn(1, 4, 21, 40, dtype=torch.float64)
    seen = []
    for rate, conv in zip((1, 6, 12, 18), module.branches, strict=True):
        kernel = conv.weight.detach().numpy()
        spread = np.zeros((4, 4, rate * (kernel.shape[2] - 1) + 1, rate * (kernel.shape[3] - 1) + 1))
        spread[:, :, ::rate, ::rate] = kernel  # the gaps of an atrous convolution, filled with zeros
        outputs = [
            sum(
                scipy.ndimage.correlate(channel, k, mode="constant")
                for channel, k in zip(x[0].numpy(), row, strict=True)
            )
            for row in spread
        ]
        seen.append(np.stack(outputs) + conv.bias.detach().numpy()[:, None, None])
    mean = module.mean.weight[:, :, 0, 0] @ x.mean((0, 2, 3)) + module.mean.bias
    seen.append(np.broadcast_to(mean.detach().numpy()[:, None, None], (4, 21, 40)))
    rows = F.leaky_relu(torch.from_numpy(np.concatenate(seen)), 0.1)
    fused = torch.einsum("oc,chw->ohw", module.fuse.weight[:, :, 0, 0], rows) + module.fuse.bias[:, None, None]
    torch.testing.assert_close(module(x)[0], F.leaky_relu(fused, 0.1), rtol=0, atol=1e-12)
