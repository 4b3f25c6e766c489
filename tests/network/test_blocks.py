"""The network against the paper's formulas, written independently in a few lines of float64."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from weakref import ref

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lmfn import ACFM, ALFM, ESA, LMFN, MSHF, RFDB, LMFNConfig
from lmfn.network import blocks, checkpoint
from lmfn.network.blocks import pad
from lmfn.network.config import PRESETS, preset
from lmfn_kernels import Conv, residual_blocks

SMALL = {"channels": 8, "features": 10, "distilled": 5, "esa": 4}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def awake(module: nn.Module) -> nn.Module:
    """In float64, with theta and alpha different from 0, where both attentions would be the identity."""
    for name, parameter in module.named_parameters():
        if name.endswith(("theta", "alpha")):
            nn.init.constant_(parameter, 0.7)
    return module.double().eval()


def lr(x: Tensor, slope: float = 0.05) -> Tensor:
    return torch.where(x > 0, x, slope * x)


def up(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def rb(module: nn.Module, x: Tensor) -> Tensor:
    return x + conv(module.conv2, conv(module.conv1, x).relu())


def conv(layer: nn.Module, x: Tensor, stride: int = 1, padding: int = 1) -> Tensor:
    return F.conv2d(x, layer.weight, layer.bias, stride, padding)


def mshf_text(m: nn.Module, x: Tensor, padding: int) -> Tensor:
    f0 = lr(conv(m.conv0, x, 1, padding), 0.1)
    d1 = lr(conv(m.down1, f0, 2), 0.1)
    l1 = lr(conv(m.down2, d1, 2), 0.1)
    l2 = lr(conv(m.down3, l1, 2), 0.1)
    l3 = lr(conv(m.down4, l2, 2), 0.1)
    l2 = rb(m.rb_8th[0], l2) + up(rb(m.rb_16th, l3), l2.shape[2:])
    l2 = rb(m.rb_8th[1], l2)
    l1 = rb(m.rb_4th[1], rb(m.rb_4th[0], l1)) + up(l2, l1.shape[2:])
    return rb(m.rb_4th[4], rb(m.rb_4th[3], rb(m.rb_4th[2], l1)))


def esa_text(m: nn.Module, y: Tensor) -> Tensor:
    a = conv(m.conv1, y, padding=0)
    v = F.max_pool2d(conv(m.conv2, a, 2, 0), 7, 3)
    v = conv(m.conv3_, conv(m.conv3, conv(m.conv_max, v).relu()).relu())
    if m.fixed_grid:
        v = up(v, [6 * n for n in v.shape[2:]])
        rows, columns = (torch.arange(n).clamp(max=m - 1) for n, m in zip(y.shape[2:], v.shape[2:], strict=True))
        v = v[:, :, rows[:, None], columns]
    else:
        v = up(v, y.shape[2:])
    return y * torch.sigmoid(conv(m.conv4, v + conv(m.conv_f, a, padding=0), padding=0))


def rfdb_text(m: nn.Module, x: Tensor) -> Tensor:
    d = []
    for j in range(3):
        d.append(lr(conv(m.distil[j], x, padding=0)))
        x = lr(conv(m.refine[j], x) + x)
    d.append(lr(conv(m.distil_last, x)))
    return esa_text(m.esa, conv(m.fuse, torch.cat(d, 1), padding=0))


def alfm_text(m: ALFM, maps: list[Tensor]) -> Tensor:
    """One image and one row at a time, as in the paper: L = theta * M F + F, then LR(conv1x1(L))."""
    images = []
    for b in range(maps[0].shape[0]):
        rows = [channel.flatten() for x in maps for channel in x[b]]
        if m.rows == "layers":
            rows = [x[b].flatten() for x in maps]
        f = torch.stack(rows)
        e = torch.empty(len(rows), len(rows), dtype=f.dtype)
        for i, p in enumerate(rows):
            for j, q in enumerate(rows):
                e[i, j] = (p * q).sum()
                if m.similarity == "cosine":
                    e[i, j] *= m.temperature.item() / (p.norm() * q.norm())
        if m.rows == "layers":
            e = e.max(dim=1, keepdim=True).values - e
        weights = (e - e.max(dim=1, keepdim=True).values).exp()
        f = m.theta * (weights / weights.sum(dim=1, keepdim=True)) @ f + f
        images.append(f.reshape(-1, *maps[0].shape[2:]))
    return lr(conv(m.fuse, torch.stack(images), padding=0))


def acfm_text(m: ACFM, x: Tensor) -> Tensor:
    if m.form == "pseudo3d":
        w = F.conv3d(x[:, None], m.spatial_weight[None, None, None], m.spatial_bias, padding=(0, 1, 1)).relu()
        w = F.conv3d(w, m.channel_weight[None, None, :, None, None], m.channel_bias, padding=(1, 0, 0)).relu()
    else:
        w = F.conv3d(x[:, None], m.weight[None, None], m.bias, padding=1)
    return x + m.alpha * torch.sigmoid(w[:, 0]) * x


def lmfn_text(m: LMFN, image: Tensor) -> Tensor:
    """Sizes that need no padding."""
    c = m.config
    mean = torch.tensor([0.4488, 0.4371, 0.4040], dtype=image.dtype).view(1, 3, 1, 1)
    f = conv(m.reduce, mshf_text(m.encoder, image - mean, c.stem_padding))
    out = []
    for block in m.rfdbs:
        out.append(rfdb_text(block, out[-1] if out else f))
    f_l = out[-1] if c.alfm == "none" else lr(conv(m.alfm.fuse, torch.cat(out, 1), padding=0))
    if c.alfm in ("channels", "layers"):
        f_l = alfm_text(m.alfm, out)
    f_c = None if c.acfm == "none" else acfm_text(m.acfm, out[-1])
    if c.alfm == "none" and f_c is not None:
        y = f_c
    elif f_c is None:
        y = f_l
    else:
        y = conv(m.merge, torch.cat([f_l, f_c], 1)) if c.merge == "concat" else f_l + f_c
    y = y + f if c.skip == "feature" else y
    if c.head == "bilinear":
        for block in (m.head.rb1, m.head.rb2):
            y = rb(block, y)
            y = up(y, (2 * y.shape[2], 2 * y.shape[3]))
        y = conv(m.head.conv, y)
    else:
        y = conv(m.head.conv, y)  # channel c*16 + 4*i + j goes to row i, column j of the 4x4 cell
        b, _, h, w = y.shape
        y = y.reshape(b, 3, 4, 4, h, w).permute(0, 1, 4, 2, 5, 3).reshape(b, 3, 4 * h, 4 * w)
    return y + image if c.skip == "image" else y + mean


def check(module: nn.Module, text: Callable[[nn.Module, Tensor], Tensor], x: Tensor) -> None:
    got, expected = module(x), text(module, x)
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= 1e-10 * expected.abs().max()


@pytest.mark.parametrize(
    ("name", "rfdbs", "count"),
    [
        ("lmfn", 4, 1_248_621),
        ("lmfn-released", 4, 1_223_780),
        # The authors of the released network count 23,927 more: two unused layers and the mean shift.
        *(
            ("lmfn-released", n, total - 23_927)
            for n, total in enumerate((956_857, 1_053_807, 1_150_757, 1_247_707, 1_344_657, 1_441_607), start=1)
        ),
    ],
)
def test_parameter_counts(name: str, rfdbs: int, count: int) -> None:
    model = LMFN.from_preset(name, rfdbs=rfdbs)
    assert sum(p.numel() for p in model.parameters()) == count


def test_parameter_counts_of_the_parts() -> None:
    parts = [(MSHF(), 740_352), (RFDB(), 94_450), (ALFM(), 10_051), (ACFM(), 15), (ACFM("full3d"), 29)]
    for module, count in parts:
        assert sum(p.numel() for p in module.parameters()) == count


def test_shape_of_every_map() -> None:
    model = LMFN.from_preset("lmfn")
    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda _m, _i, out, name=name: shapes.update({name: tuple(out.shape)}))
    image = torch.rand(2, 3, 96, 128)
    model(image)
    expected = {
        "encoder.rb_4th.4": (2, 64, 24, 32),
        "encoder": (2, 64, 24, 32),
        **{f"rfdbs.{i}": (2, 50, 24, 32) for i in range(4)},
        "acfm": (2, 50, 24, 32),  # whose ALFM result is not a map of its own
        "head.rb1": (2, 50, 24, 32),
        "head.rb2": (2, 50, 48, 64),
        "head": (2, 3, 96, 128),
        "": (2, 3, 96, 128),
    }
    assert {name: shapes.get(name) for name in expected} == expected
    halved = [tuple(x.shape) for x in model.encoder.halve(image, None)]
    assert halved == [(2, 64, 24, 32), (2, 64, 12, 16), (2, 64, 6, 8)]


@pytest.mark.parametrize("size", [(64, 80), (33, 47), (1, 5)])
def test_mshf(size: tuple[int, int]) -> None:
    module = awake(MSHF(8))
    check(module, lambda m, x: mshf_text(m, x, 1), torch.randn(2, 3, *size, dtype=torch.float64))
    assert module(torch.zeros(1, 3, *size).double()).shape[2:] == (-(-size[0] // 4), -(-size[1] // 4))


def test_blocks_of_several_scales_take_two_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """And one for each of the others, with the bits of single calls, whether the blocks are watched or not."""
    module, x, calls = MSHF(8), torch.rand(1, 3, 64, 80), list[int]()

    def noted(maps: Sequence[Tensor], *convs: Sequence[Conv], save_middle: bool) -> tuple[Tensor, ...]:
        calls.append(len(maps))
        return residual_blocks(maps, *convs, save_middle=save_middle)

    monkeypatch.setattr(blocks, "residual_blocks", noted)
    l1, l2, l3 = module.halve(x, None)
    expected = module.fuse_4th(l1, module.fuse_8th(l2, l3))
    assert not calls
    assert torch.equal(module(x), expected)
    assert calls == [3, 2]
    seen: list[Tensor] = []
    module.rb_16th.watch = seen.append
    assert torch.equal(module(x), expected)
    assert calls == [3, 2] * 2
    (hidden,) = seen
    torch.testing.assert_close(hidden, module.rb_16th.conv1(l3).relu())


def test_maps_of_several_scales_are_freed_before_the_last_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[ref[Tensor]] = []

    def noted(*given: Any, **options: Any) -> tuple[Tensor, ...]:
        results = residual_blocks(*given, **options)
        made.extend(map(ref, (*given[0], *results)))
        return results

    monkeypatch.setattr(blocks, "residual_blocks", noted)
    module, alive = MSHF(8).requires_grad_(False), list[int]()
    module.rb_4th[2].register_forward_pre_hook(lambda *_: alive.append(sum(x() is not None for x in made)))
    module(torch.rand(1, 3, 64, 80))
    assert len(made) == 2 * (3 + 2)
    assert alive == [0]


def test_esa_and_rfdb() -> None:
    x = torch.randn(2, 10, 17, 22, dtype=torch.float64)
    for fixed_grid in (False, True):
        check(awake(ESA(10, 4, fixed_grid)), esa_text, x)
        check(awake(RFDB(10, 5, 4, fixed_grid)), rfdb_text, x)
    with pytest.raises(ValueError, match="15 x 15"):
        ESA(10, 4)(torch.zeros(1, 10, 14, 40))


@pytest.mark.parametrize("rows", ["channels", "layers"])
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_alfm(rows: str, similarity: str) -> None:
    module = awake(ALFM(5, 3, rows, similarity))
    # Similar and scaled so that the softmax is neither uniform nor a step.
    maps = [0.3 * (0.5 + torch.randn(2, 5, 4, 7, dtype=torch.float64)) for _ in range(3)]
    if similarity == "cosine":
        nn.init.constant_(module.temperature, 3.0)
    attention = module.attention(maps)
    assert 0.1 < attention.amax(-1).mean() < 0.95
    assert (attention.sum(-1) - 1).abs().max() < 1e-12
    expected = alfm_text(module, maps)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        got = module([x.contiguous(memory_format=memory_format) for x in maps])
        assert (got - expected).abs().max() < 1e-12
    with pytest.raises(ValueError, match="3 layers, got 2"):
        module(maps[:2])


def test_alfm_is_the_plain_fusion_at_theta_zero() -> None:
    module = ALFM(5, 3).double()
    maps = [torch.randn(1, 5, 6, 6, dtype=torch.float64) for _ in range(3)]
    assert (module(maps) - lr(conv(module.fuse, torch.cat(maps, 1), padding=0))).abs().max() < 1e-12


def test_alfm_of_rows_of_zeros_and_of_sums_beyond_float16() -> None:
    cosine = awake(ALFM(5, 2, similarity="cosine"))
    zeros = [torch.zeros(1, 5, 4, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    cosine(zeros).sum().backward()
    assert all(torch.isfinite(x.grad).all() for x in zeros)
    dot = ALFM(5, 2).half()
    large = [torch.full((1, 5, 64, 64), 10.0, dtype=torch.float16) for _ in range(2)]  # F F^T is 409,600
    assert torch.isfinite(dot(large)).all()


@pytest.mark.parametrize("form", ["pseudo3d", "full3d"])
def test_acfm(form: str) -> None:
    module = awake(ACFM(form))
    check(module, acfm_text, torch.randn(2, 7, 5, 9, dtype=torch.float64))


ABLATIONS = [
    {},
    {"alfm": "layers"},
    {"similarity": "cosine"},
    {"alfm": "concat", "acfm": "none"},
    {"alfm": "none", "acfm": "none"},
    {"alfm": "none"},
    {"acfm": "none"},
    {"acfm": "full3d"},
    {"merge": "concat"},
    {"head": "pixelshuffle"},
    {"skip": "feature"},
    {"skip": "none"},
    {"stem_padding": 0},
    {"rfdbs": 1},
    {"rfdbs": 6},
]


@pytest.mark.parametrize("change", ABLATIONS, ids=str)
def test_network_and_every_ablation(change: dict[str, object]) -> None:
    model = awake(LMFN.from_preset("lmfn", **{**SMALL, "rfdbs": 2, **change}))
    check(model, lmfn_text, torch.rand(2, 3, 64, 80, dtype=torch.float64))


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name: str) -> None:
    check(awake(LMFN.from_preset(name)), lmfn_text, torch.rand(1, 3, 64, 64, dtype=torch.float64))


def test_every_parameter_gets_a_gradient() -> None:
    model = awake(LMFN.from_preset("lmfn", similarity="cosine"))
    model(torch.rand(1, 3, 128, 160, dtype=torch.float64)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@settings(max_examples=25)
@given(st.integers(0, 2), st.integers(1, 90), st.integers(1, 90))
def test_any_size_and_batch(batch: int, height: int, width: int) -> None:
    torch.manual_seed(1)
    model = LMFN.from_preset("lmfn", **SMALL, rfdbs=1).eval()
    with torch.inference_mode():
        out = model(torch.rand(batch, 3, height, width))
    assert out.shape == (batch, 3, height, width)
    assert torch.isfinite(out).all()


def test_padding_reflects_or_replicates_and_is_cropped_again() -> None:
    x = torch.arange(70.0 * 3).reshape(1, 1, 70, 3)
    padded = pad(x)
    assert padded.shape == (1, 1, 80, 64)
    assert torch.equal(padded[..., :70, :3], x)
    assert torch.equal(padded[0, 0, :70, 3:], x[0, 0, :, 2:].expand(70, 61))  # 61 > 3: replicated
    assert torch.equal(padded[0, 0, 70:], padded[0, 0, 59:69].flip(0))  # reflected, without the edge twice
    same = torch.rand(1, 1, 64, 96)
    assert pad(same) is same
    model = awake(LMFN.from_preset("lmfn", **SMALL))
    image = torch.rand(1, 3, 61, 75, dtype=torch.float64)
    assert torch.equal(model(image), model(pad(image))[..., :61, :75])


def test_untrained_network_is_near_the_identity() -> None:
    image = torch.rand(1, 3, 64, 64)
    assert (LMFN.from_preset("lmfn")(image) - image).abs().mean() < 0.05


def test_channels_last_and_autocast_agree_with_plain_float32() -> None:
    model = LMFN.from_preset("lmfn").eval()
    nn.init.constant_(model.alfm.theta, 0.3)
    nn.init.constant_(model.acfm.alpha, 0.3)
    image = torch.rand(1, 3, 64, 96)
    plain = model(image)
    last = model.to(memory_format=torch.channels_last)(image.contiguous(memory_format=torch.channels_last))
    assert (last - plain).abs().max() < 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        assert (model(image) - plain).abs().max() < 0.02


@pytest.mark.parametrize(
    ("error", "words", "x"),
    [
        (ValueError, r"\[B, 3, H, W\].*\(1, 1, 8, 8\)", torch.zeros(1, 1, 8, 8)),
        (ValueError, r"\(3, 8, 8\)", torch.zeros(3, 8, 8)),
        (ValueError, r"\(1, 3, 0, 8\)", torch.zeros(1, 3, 0, 8)),
        (TypeError, "uint8", torch.zeros(1, 3, 8, 8, dtype=torch.uint8)),
    ],
)
def test_wrong_input_is_named(error: type[Exception], words: str, x: Tensor) -> None:
    with pytest.raises(error, match=words):
        LMFN.from_preset("lmfn", **SMALL)(x)


def test_a_tile_on_esa_s_fixed_grid_is_part_of_the_whole():
    """A resized branch depends on the image's size, which is the reason for the switch."""
    x = torch.randn(1, 10, 90, 40, dtype=torch.float64)
    for fixed_grid in (False, True):
        module = awake(RFDB(10, 5, 4, fixed_grid))
        with torch.no_grad():
            error = (module(x)[:, :, 36:44] - module(x[:, :, 6:])[:, :, 30:38]).abs().max()
        assert (error < 1e-12) == fixed_grid


def test_alfm_window_is_a_switch_of_the_network():
    torch.manual_seed(0)
    whole = LMFN.from_preset("lmfn", channels=8, features=8, distilled=4, esa=4, rfdbs=2).double()
    windowed = LMFN(replace(whole.config, alfm_window=64)).double()
    windowed.load_state_dict(whole.state_dict())
    for model in (whole, windowed):
        model.alfm.theta.data.fill_(0.5)
    image = torch.rand(1, 3, 128, 96, dtype=torch.float64)
    assert torch.equal(windowed(image[:, :, :64, :64]), whole(image[:, :, :64, :64]))
    assert (windowed(image) - whole(image)).abs().max() > 1e-6
    assert ALFM(features=4, layers=2, window=16).window == 16
    for wrong, error in ((60, ValueError), (56, ValueError), (128.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match=r"LMFNConfig\.alfm_window is"):
            LMFNConfig(alfm_window=wrong)
    with pytest.raises(ValueError, match="ALFM's window is 3; it must be an even number"):
        ALFM(window=3)


def test_wrong_configs_are_named() -> None:
    with pytest.raises(ValueError, match=r"LMFNConfig.skip is 'both'; it must be one of image, feature, none"):
        LMFNConfig(skip="both")
    with pytest.raises(ValueError, match=r"rfdbs is 0; it must be from 1 to 8"):
        LMFNConfig(rfdbs=0)
    with pytest.raises(TypeError, match=r"features is '50'"):
        LMFNConfig(features="50")
    with pytest.raises(ValueError, match="alfm or acfm"):
        LMFNConfig(merge="concat", acfm="none")
    with pytest.raises(ValueError, match="unknown preset 'LMFN'; there are lmfn, lmfn-released"):
        preset("LMFN")
    with pytest.raises(ValueError, match="unknown field of LMFNConfig: depth"):
        LMFN.from_preset("lmfn", depth=3)


def test_save_and_load(tmp_path) -> None:
    model = awake(LMFN.from_preset("lmfn-released", **SMALL, similarity="cosine")).float()
    model.save_pretrained(tmp_path / "weights")
    assert json.loads((tmp_path / "weights" / "config.json").read_text())["head"] == "pixelshuffle"
    for place in (tmp_path / "weights", str(tmp_path / "weights" / "model.safetensors")):
        again = LMFN.from_pretrained(place)
        assert again.config == model.config
        assert not again.training
        for (name, a), (other, b) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
            assert name == other
            assert torch.equal(a, b)


def test_broken_weights_are_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere; weights are lmfn or lmfn-released, or a file or"):
        LMFN.from_pretrained(tmp_path / "nowhere")
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"not weights")
    with pytest.raises(ValueError, match=r"model\.safetensors is not a readable safetensors file"):
        LMFN.from_pretrained(tmp_path)
    checkpoint.write(file, {"x": torch.zeros(1)}, {"progress": {}})
    with pytest.raises(ValueError, match="contains no weights of a network"):
        LMFN.from_pretrained(file)
    checkpoint.write(file, {"x": torch.zeros(1)}, {"config": {}})
    with pytest.raises(ValueError, match="does not fit its own config"):
        LMFN.from_pretrained(file)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.safetensors"
    checkpoint.write(file, {"x": torch.ones(3)}, {})

    def full_disk(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        checkpoint.write(file, {"x": torch.zeros(3)}, {})
    assert torch.equal(checkpoint.read(file)[0]["x"], torch.ones(3))
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
