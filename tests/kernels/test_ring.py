"""Where the Gluon kernels are used; `test_gluon.py` runs them."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lmfn_kernels.conv import triton_backend
from lmfn_kernels.rfdb import triton_backend as rfdb_backend
from lmfn_kernels.runtime.configs import Config
from lmfn_kernels.runtime.launch import Tiling, as_kernel_image, intercepting
from lmfn_kernels.weights import Conv


@pytest.mark.parametrize(
    ("change", "kernel"),
    [
        ({}, "ring_fuse_kernel"),
        ({"has_run": False}, "fuse_kernel"),
        ({"dtype": torch.float16}, "ring_fuse_kernel"),
        ({"dtype": torch.float32}, "fuse_kernel"),
        ({"programs": 0}, "fuse_kernel"),
        ({"c": 65}, "fuse_kernel"),
        ({"d": 33}, "fuse_kernel"),
        ({"f": 17}, "fuse_kernel"),
    ],
)
def test_where_it_fuses(monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], kernel: str) -> None:
    usual = {"dtype": torch.bfloat16, "c": 50, "d": 25, "f": 12, "programs": 132, "has_run": True}
    dtype, c, d, f, programs, has_run = (usual | change).values()
    monkeypatch.setattr(triton_backend, "ring_programs", lambda _: programs)
    monkeypatch.setattr(rfdb_backend, "RING_FUSE_HAS_RUN", has_run)
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
        ({}, "ring_kernel"),
        ({"weight": (9, 50, 64)}, "ring_kernel"),
        ({"dtype": torch.float16}, "ring_kernel"),
        ({"programs": 0}, "conv_kernel"),
        ({"dtype": torch.float32}, "conv_kernel"),
        ({"weight": (9, 64, 65)}, "conv_kernel"),
        ({"weight": (9, 12, 64)}, "conv_kernel"),
        ({"weight": (1, 64, 64)}, "conv_kernel"),
        ({"mode": "back"}, "conv_kernel"),
        ({"mode": "down"}, "conv_kernel"),
    ],
)
def test_where_it_is_used(change: dict[str, object], kernel: str) -> None:
    usual = {"dtype": torch.bfloat16, "weight": (9, 64, 64), "mode": "same", "programs": 132}
    dtype, weight, mode, programs = (usual | change).values()
    t = Tiling(Config(), (1, 64, 180, 320), dtype, "ieee")
    plan = triton_backend._convolution(t, weight, 1, 1, mode, 1, (1.0, 1.0, 1.0), programs)
    assert plan.kernel.__name__ == kernel
    if kernel == "ring_kernel":
        assert plan.grid == (132,)
        small = triton_backend._convolution(t._replace(size=(2, 64, 9, 31)), weight, 1, 1, mode, 1, (1.0,) * 3, 132)
        assert small.grid == (2 * 3 * 2,), "no more programs than tiles"


@pytest.mark.parametrize(
    ("capability", "triton", "programs"), [((9, 0), True, 132), ((9, 0), False, 0), ((10, 0), True, 0)]
)
def test_only_on_hopper(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], triton: bool, programs: int
) -> None:
    major, minor = capability
    properties = SimpleNamespace(multi_processor_count=132, major=major, minor=minor)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(triton_backend, "HAS_RING", triton)
    assert triton_backend.ring_programs.__wrapped__(torch.device("cuda", 0)) == programs
    assert triton_backend.ring_programs.__wrapped__(torch.device("cpu")) == 0
