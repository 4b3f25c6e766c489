"""Where the Gluon kernels are used; `test_gluon.py` runs them."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lmfn_kernels.conv import triton_backend
from lmfn_kernels.mshf import triton_backend as stem_backend
from lmfn_kernels.rfdb import triton_backend as rfdb_backend
from lmfn_kernels.runtime import trials
from lmfn_kernels.runtime.configs import Config
from lmfn_kernels.runtime.launch import Tiling, as_kernel_image, cdiv, intercepting
from lmfn_kernels.upsample import triton_backend as upsample_backend
from lmfn_kernels.weights import Conv


@pytest.mark.parametrize(
    ("change", "kernels"),
    [
        ({}, ["ring_weight_gradient_kernel", "weight_gradient_kernel"]),
        ({"n": 25}, ["ring_weight_gradient_kernel", "weight_gradient_kernel"]),
        ({"dtype": torch.float16}, ["ring_weight_gradient_kernel", "weight_gradient_kernel"]),
        ({"masked": True}, ["weight_gradient_kernel"]),
        ({"dtype": torch.float32}, ["weight_gradient_kernel"]),
        ({"n": 65}, ["weight_gradient_kernel"]),
        ({"n": 12}, ["weight_gradient_kernel"]),
        ({"k": 12}, ["weight_gradient_kernel"]),
        ({"programs": 0}, ["weight_gradient_kernel"]),
        ({"in_use": False}, ["weight_gradient_kernel"]),
    ],
)
def test_where_it_computes_weight_gradients(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], kernels: list[str]
) -> None:
    usual = {"dtype": torch.bfloat16, "k": 50, "n": 50, "programs": 132, "in_use": True, "masked": False}
    dtype, k, n, programs, in_use, masked = (usual | change).values()
    monkeypatch.setattr(triton_backend, "ring_programs", lambda _: programs)
    monkeypatch.setattr(trials, "_tried", {"ring_weight_gradient"} if in_use else set())
    x, g, z = (as_kernel_image(torch.zeros(1, c, 9, 20, dtype=dtype)) for c in (k, n, 25))
    e, weight = triton_backend.mask_gradient(g, g, 0.1 if masked else 1.0), torch.zeros(n, k, 3, 3, dtype=dtype)
    launched: list[str] = []
    with intercepting(lambda _launch, kernel, _grid, _arguments: launched.append(kernel.__name__)):
        (both,) = rfdb_backend.weight_gradients([(e, z, x, weight, torch.zeros(25, k, 1, 1, dtype=dtype))])
        alone = triton_backend.weight_gradient(e, x, weight, padding=1)
        triton_backend.weight_gradient(e, x, weight, stride=2, padding=1)
        triton_backend.weight_gradient(z, x, torch.zeros(25, k, 1, 1, dtype=dtype))
    assert launched == [*kernels, kernels[0], "weight_gradient_kernel", "weight_gradient_kernel"]
    for of_weight, of_bias in (both[0], alone):
        assert of_weight.values.shape[1:] == weight.shape
        assert of_bias.values.shape[1:] == (n,)
        assert len(of_weight.values) == len(of_bias.values)
        assert kernels[0] == "weight_gradient_kernel" or len(of_bias.values) == 4, "a program for each tile"


@pytest.mark.parametrize(
    ("change", "launches"),
    [
        ({}, 1),
        ({"widths": (50, 50, 50)}, 1),
        ({"widths": (50,)}, 1),
        ({"widths": (50, 64)}, 2),
        ({"programs": 0}, 2),
    ],
    ids=str,
)
def test_where_it_computes_several_weight_gradients(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], launches: int
) -> None:
    widths, programs = ({"widths": (50, 50), "programs": 9} | change).values()
    monkeypatch.setattr(triton_backend, "ring_programs", lambda _: programs)
    monkeypatch.setattr(trials, "_tried", {"ring_weight_gradient"})
    convs = []
    for n in widths:
        x, g = (as_kernel_image(torch.zeros(2, c, 9, 33, dtype=torch.bfloat16)) for c in (50, n))
        convs.append((g, x, torch.zeros(n, 50, 3, 3, dtype=torch.bfloat16)))
    launched: list[str] = []
    with intercepting(lambda _launch, kernel, _grid, _arguments: launched.append(kernel.__name__)):
        found = triton_backend.weight_gradients_of_convs(convs)
    assert len(launched) == launches
    for (_, _, weight), (of_weight, of_bias) in zip(convs, found, strict=True):
        assert of_weight.values.shape[1:] == weight.shape
        assert of_bias.values.shape[1:] == weight.shape[:1]
        if launches == 1:
            assert len(of_weight.values) == len(of_bias.values) == programs // len(convs)


@pytest.mark.parametrize(
    ("change", "kernel"),
    [
        ({}, "quartered_stem_kernel"),
        ({"in_use": False}, "stem_kernel"),
        ({"dtype": torch.float16}, "quartered_stem_kernel"),
        ({"dtype": torch.float32}, "stem_kernel"),
        ({"programs": 0}, "stem_kernel"),
        ({"inputs": 1}, "stem_kernel"),
        ({"c": 32}, "stem_kernel"),
        ({"n": 32}, "stem_kernel"),
    ],
)
def test_where_the_stem_is_in_quarters(monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], kernel: str) -> None:
    usual = {"dtype": torch.bfloat16, "inputs": 3, "c": 64, "n": 64, "programs": 132, "in_use": True}
    dtype, inputs, c, n, programs, in_use = (usual | change).values()
    monkeypatch.setattr(triton_backend, "ring_programs", lambda _: programs)
    monkeypatch.setattr(trials, "_tried", {"quartered_stem"} if in_use else set())
    launched: list[str] = []
    with intercepting(lambda _launch, kernel, _grid, _arguments: launched.append(kernel.__name__)):
        weights = [torch.zeros(c, inputs, 3, 3, dtype=dtype), torch.zeros(n, c, 3, 3, dtype=dtype)]
        convs = [Conv(weight, weight.new_zeros(len(weight))) for weight in weights]
        stem_backend.stem(torch.zeros(1, inputs, 9, 9), None, *convs, 1, 0.1)
    assert launched == ["pad_kernel", kernel]


@pytest.mark.parametrize(
    ("change", "kernel"),
    [
        ({}, "ring_kernel"),
        ({"in_use": False}, "conv_kernel"),
        ({"pending": True}, "conv_kernel"),
        ({"pending": True, "residual": True}, "conv_kernel"),
        ({"residual": True}, "ring_kernel"),
        ({"residual": True, "extra": True}, "ring_kernel"),
        ({"residual": True, "extra": True, "mask": 0.05}, "ring_kernel"),
        ({"extra": True}, "conv_kernel"),
        ({"mask": 0.0}, "ring_kernel"),
    ],
)
def test_where_it_computes_input_gradients(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], kernel: str
) -> None:
    usual = {"in_use": True, "pending": False, "residual": False, "extra": False, "mask": 1.0}
    in_use, pending, residual, extra, mask = (usual | change).values()
    monkeypatch.setattr(triton_backend, "ring_programs", lambda _: 132)
    monkeypatch.setattr(trials, "_tried", {"ring_input_gradient"} if in_use else set())
    g, x, z = (as_kernel_image(torch.zeros(1, c, 9, 20, dtype=torch.bfloat16)) for c in (50, 50, 25))
    weight, distil = (torch.zeros(n, 50, k, k, dtype=torch.bfloat16) for n, k in ((50, 3), (25, 1)))
    e = triton_backend.mask_gradient(g, g, 0.1 if pending else 1.0)
    launched: list[str] = []
    with intercepting(lambda _launch, kernel, _grid, _arguments: launched.append(kernel.__name__)):
        fused = {"residual": residual, "extra": (z, distil) if extra else None, "mask": mask}
        triton_backend.input_gradient(e, weight, x, padding=1, **fused)
    assert launched == [kernel]


@pytest.mark.parametrize(
    ("change", "kernel"),
    [
        ({}, "ring_fuse_kernel"),
        ({"in_use": False}, "fuse_kernel"),
        ({"dtype": torch.float16}, "ring_fuse_kernel"),
        ({"dtype": torch.float32}, "fuse_kernel"),
        ({"programs": 0}, "fuse_kernel"),
        ({"c": 65}, "fuse_kernel"),
        ({"d": 33}, "fuse_kernel"),
        ({"f": 17}, "fuse_kernel"),
    ],
)
def test_where_it_fuses(monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], kernel: str) -> None:
    usual = {"dtype": torch.bfloat16, "c": 50, "d": 25, "f": 12, "programs": 132, "in_use": True}
    dtype, c, d, f, programs, in_use = (usual | change).values()
    monkeypatch.setattr(triton_backend, "ring_programs", lambda _: programs)
    monkeypatch.setattr(trials, "_tried", {"ring_fuse"} if in_use else set())
    launched: list[str] = []
    with intercepting(lambda _launch, kernel, _grid, _arguments: launched.append(kernel.__name__)):
        x, maps = torch.zeros(1, c, 4, 4, dtype=dtype), [torch.zeros(1, d, 4, 4, dtype=dtype)] * 3
        weights = [torch.zeros(shape, dtype=dtype) for shape in ((d, c, 3, 3), (c, 4 * d, 1, 1), (f, c, 1, 1))]
        convs = [Conv(weight, weight.new_zeros(len(weight))) for weight in weights]
        rfdb_backend.fuse(as_kernel_image(x), [as_kernel_image(m) for m in maps], *convs, 0.05, False)
    assert launched == [kernel]


@pytest.mark.parametrize(
    ("change", "kernel"),
    [
        ({}, "ring_upsampled_conv_kernel"),
        ({"in_use": False}, "upsampled_conv_kernel"),
        ({"dtype": torch.float16}, "ring_upsampled_conv_kernel"),
        ({"dtype": torch.float32}, "upsampled_conv_kernel"),
        ({"programs": 0}, "upsampled_conv_kernel"),
        ({"k": 65}, "upsampled_conv_kernel"),
        ({"k": 32}, "upsampled_conv_kernel"),
        ({"n": 5}, "upsampled_conv_kernel"),
    ],
)
def test_where_it_convolves_upsampled(monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], kernel: str) -> None:
    usual = {"dtype": torch.bfloat16, "k": 50, "n": 3, "programs": 132, "in_use": True}
    dtype, k, n, programs, in_use = (usual | change).values()
    monkeypatch.setattr(triton_backend, "ring_programs", lambda _: programs)
    monkeypatch.setattr(trials, "_tried", {"ring_upsampled_conv"} if in_use else set())
    launched: list[str] = []
    with intercepting(lambda _launch, kernel, _grid, _arguments: launched.append(kernel.__name__)):
        x, weight = torch.zeros(1, k, 4, 4, dtype=dtype), torch.zeros(n, k, 3, 3, dtype=dtype)
        folded = upsample_backend.fold_upsampling(weight, dtype)
        upsample_backend.upsampled_conv(as_kernel_image(x), folded, weight.new_zeros(n), None)
    assert launched == ["fold_upsampling_kernel", kernel]


@pytest.mark.parametrize(
    ("change", "kernel"),
    [
        ({}, "ring_kernel"),
        ({"weight": (9, 50, 64)}, "ring_kernel"),
        ({"dtype": torch.float16}, "ring_kernel"),
        ({"programs": 0}, "conv_kernel"),
        ({"dtype": torch.float32}, "conv_kernel"),
        ({"weight": (9, 64, 65)}, "conv_kernel"),
        ({"weight": (9, 12, 64)}, "conv_kernel"),
        ({"weight": (1, 64, 64)}, "conv_kernel"),
        ({"mode": "back"}, "ring_kernel"),
        ({"mode": "back", "weight": (9, 64, 25)}, "ring_kernel"),
        ({"mode": "back", "weight": (9, 64, 12)}, "conv_kernel"),
        ({"mode": "back", "weight": (9, 25, 64)}, "conv_kernel"),
        ({"mode": "down"}, "conv_kernel"),
    ],
)
def test_where_it_is_used(change: dict[str, object], kernel: str) -> None:
    usual = {"dtype": torch.bfloat16, "weight": (9, 64, 64), "mode": "same", "programs": 132}
    dtype, weight, mode, programs = (usual | change).values()
    t = Tiling(Config(), (1, 64, 180, 320), dtype, "ieee")
    plan = triton_backend._convolution(t, weight, 1, mode, 1, (1.0, 1.0, 1.0), programs, False)
    assert plan.kernel.__name__ == kernel
    if kernel == "ring_kernel":
        assert plan.grid == (132,)
        small = triton_backend._convolution(t._replace(size=(2, 64, 9, 31)), weight, 1, mode, 1, (1.0,) * 3, 132, False)
        assert small.grid == (2 * 3 * 2,), "no more programs than tiles"


@pytest.mark.parametrize(
    ("mode", "size", "tile"),
    [
        ("back", (16, 64, 64, 64), (8, 14)),
        ("back", (16, 50, 128, 128), (4, 30)),
        ("back", (1, 64, 180, 320), (4, 30)),
        ("same", (16, 64, 64, 64), (4, 30)),
    ],
)
def test_tiles_in_the_fewest_turns(mode: str, size: tuple[int, ...], tile: tuple[int, int]) -> None:
    found = triton_backend._ring((size,), size[1], 1, mode, 1, 1.0, 1.0, 132, False).constants
    assert (found["BLOCK_H"], found["BLOCK_W"]) == tile


@pytest.mark.parametrize(
    ("tiles", "programs", "turns"),
    [((495,), 132, 4), ((495, 138, 36), 132, 6), ((495, 138), 132, 5), ((5, 9, 2), 2, 9), ((1, 12, 6), 132, 1)],
)
def test_programs_are_shared_by_tiles(tiles: tuple[int, ...], programs: int, turns: int) -> None:
    """No other way to share them has fewer turns, and nobody is left with none, or without a tile."""
    found = triton_backend.shares(tiles, programs)
    assert max(map(cdiv, tiles, found)) == turns
    assert turns == 1 or sum(cdiv(t, turns - 1) for t in tiles) > programs
    assert sum(found) <= max(programs, len(tiles))
    assert all(1 <= share <= t for share, t in zip(found, tiles, strict=True))


def test_a_plan_of_several_maps() -> None:
    sizes = (1, 64, 180, 320), (1, 64, 90, 160), (1, 64, 45, 80)
    plan = triton_backend._ring(sizes, 64, 1, "same", 1, 0.0, 1.0, 132, False)
    shares = triton_backend.shares([495, 138, 36], 132)
    assert plan.grid == (132,)
    assert [plan.constants[name] for name in ("FIRST2", "FIRST3")] == [shares[0], sum(shares[:2])]
    assert [plan.constants[f"H{i}"] for i in ("", 2, 3)] == [180, 90, 45]
    patches = triton_backend._ring(tuple((16, 64, s, s) for s in (64, 32, 16)), 64, 1, "back", 1, 1.0, 1.0, 132, False)
    assert (patches.constants["BLOCK_H"], patches.constants["BLOCK_W"]) == (8, 14)


@pytest.mark.parametrize(
    ("capability", "release", "tried", "programs"),
    [
        ((9, 0), "3.6", False, 132),
        ((9, 0), "3.7", False, 0),
        ((9, 0), "3.7", True, 132),
        ((9, 0), "3.9", True, 132),
        ((9, 0), "3.10", True, 0),
        ((10, 0), "3.6", False, 0),
    ],
)
def test_only_on_hopper(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], release: str, tried: bool, programs: int
) -> None:
    major, minor = capability
    properties = SimpleNamespace(multi_processor_count=132, major=major, minor=minor)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(triton_backend, "RELEASE", release)
    not_cached = triton_backend._multiprocessors_of_hopper.__wrapped__
    monkeypatch.setattr(triton_backend, "_multiprocessors_of_hopper", not_cached)
    with trials.trying(*(["newer_triton"] if tried else [])):
        assert triton_backend.ring_programs(torch.device("cuda", 0)) == programs
        assert triton_backend.ring_programs(torch.device("cpu")) == 0
