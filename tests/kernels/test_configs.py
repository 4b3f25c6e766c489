"""Tables of tuned configs: which configs they override, and errors that name the entry."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

import lmfn_kernels
from lmfn_kernels.runtime import backend, configs

GPU = configs.Device("some-gpu", 90, 232_448)


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[object], Path]]:
    """Writes the table of a GPU on which every tensor then appears to be."""
    (tmp_path / "configs").mkdir()
    monkeypatch.setattr(configs.resources, "files", lambda _: tmp_path)
    monkeypatch.setattr(configs, "describe", lambda _: GPU)

    def write(content: object) -> Path:
        path = tmp_path / "configs" / "some-gpu.json"
        path.write_text(json.dumps(content))
        configs.tuned.cache_clear()
        return path

    yield write
    torch.use_deterministic_algorithms(False)
    configs.tuned.cache_clear()


ENTRY = {"height": 4, "width": 32, "warps": 8, "stages": 2, "splits": 7}


def test_table_overrides_the_heuristic(table: Callable[[object], Path]) -> None:
    """By device, kernel, dtype and the number of binary digits of B H W; not in deterministic mode."""
    image = torch.zeros(1, 8, 100, 100, dtype=torch.float16)
    table({"launch": {"conv/float16/14": ENTRY, "fuse/float16/14": {"warps": 1}}})
    heuristic = configs.heuristic("conv", torch.float16, GPU, 14)
    assert configs.config("conv", image) == configs.Config(**ENTRY) != heuristic
    assert configs.config("fuse", image) == configs.Config(warps=1)
    assert configs.config("conv", image[:, :, :50]) == heuristic
    assert configs.config("conv", image.float()) == configs.heuristic("conv", torch.float32, GPU, 14)
    torch.use_deterministic_algorithms(True)
    assert configs.config("conv", image) == heuristic


def test_small_images_have_smaller_tiles(table: Callable[[object], Path]) -> None:
    """So that there is a tile for each of a GPU's multiprocessors."""
    table({})
    large, small = (configs.config("conv", torch.zeros(1, 8, h, 256, dtype=torch.bfloat16)) for h in (128, 127))
    assert (large.height, large.width, small.height, small.width) == (8, 32, 8, 16)


def test_every_kernel_has_a_heuristic() -> None:
    sources = [path.read_text() for path in Path(lmfn_kernels.__file__).parent.glob("*/triton_backend.py")]
    named = {
        name
        for text in sources
        for call in re.findall(r"tiling\(([^)]*)", text)
        for name in re.findall(r'"(\w+)"', call)
    }
    assert named == set(configs.HEURISTICS)


class OnGPU(Tensor):
    """A CPU tensor that reports to be on a GPU."""

    is_cuda = True  # type: ignore[assignment]


def test_auto_takes_the_faster_backend(table: Callable[[object], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The torch backend if the table names it and no other was requested; kernels in deterministic mode."""
    monkeypatch.setattr(backend, "_missing", lambda _: None)
    table({"backend": {"rfdb/float16/14": "torch", "rfdb/float16/13": "triton", "conv3x3/float32/14": "torch"}})
    image = torch.zeros(1, 8, 128, 64, dtype=torch.float16).as_subclass(OnGPU)  # 2^13 pixels: 14 digits
    assert backend.choose(image, None, "rfdb") == "torch"
    assert backend.choose(image[:, :, 1:], None, "rfdb") == "triton", "13 digits"
    assert backend.choose(image.repeat(2, 1, 1, 1), None, "rfdb") == "triton", "15 digits: no entry"
    assert backend.choose(image, None, "conv3x3") == "triton", "another dtype"
    assert backend.choose(image.float(), None, "conv3x3") == "torch"
    with torch.autocast("cpu", torch.float16):
        assert backend.choose(image.float(), None, "rfdb") == "torch", "computed in float16"
        assert backend.choose(image.float(), None, "conv3x3") == "triton"
        assert backend.choose(image.double(), None, "rfdb") == "triton", "float64 is not cast"
    for name in ("triton", "torch", "reference"):
        with lmfn_kernels.backend(name):
            assert backend.choose(image, None, "rfdb") == name
    torch.use_deterministic_algorithms(True)
    assert backend.choose(image, None, "rfdb") == "triton"


def test_table_is_read_while_compiling(table: Callable[[object], Path]) -> None:
    """Without graph breaks, for all sizes of a range at once, and by the dtype of autocast."""
    table({"backend": {"rfdb/float32/14": "torch", "rfdb/float16/12": "torch"}})

    def call(x: Tensor) -> Tensor:
        return x + 1 if configs.torch_is_faster("rfdb", x) else x - 1

    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, backend="eager", dynamic=True)
    for height in (100, 90, 200, 101, 50):
        x = torch.zeros(1, 2, height, 100)
        assert torch.equal(compiled(x), call(x))
    assert (call(torch.zeros(1, 2, 100, 100)) == 1).all()
    with torch.autocast("cpu", torch.float16):
        for height in (100, 30):
            x = torch.zeros(1, 2, height, 100)
            assert (compiled(x) == (1 if height == 30 else -1)).all()


def test_tf32_only_where_triton_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's setting for convolutions is TF32 by default, on AMD's GPUs, too; there Triton compiles kernels that ask
    for it for gfx942 alone."""
    from lmfn_kernels.alfm import triton_backend as alfm
    from lmfn_kernels.runtime import launch

    names = "gfx942:sramecc+:xnack-", "gfx950:sramecc+:xnack-", "gfx1100"
    properties = [SimpleNamespace(gcnArchName=name) for name in names]
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties[device.index])
    monkeypatch.setattr(torch.version, "hip", "7.0")
    monkeypatch.setattr(torch.backends.cudnn, "conv", SimpleNamespace(fp32_precision="tf32"))
    monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(fp32_precision="tf32"))
    for i, expected in enumerate(("tf32", "ieee", "ieee")):
        x = Mock(dtype=torch.float32, device=torch.device("cuda", i))
        assert (launch.precision(x), alfm.matrix_precision(x)) == (expected, expected)
    configs.has_tf32.cache_clear()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"conv/float16/14": ENTRY},
            r"some-gpu.json: 'conv/float16/14' is none of launch, backend; correct it, or remove",
        ),
        ([], "some-gpu.json: "),
        ({"launch": {"conv/float16": ENTRY}}, "an entry is named 'conv/float16'; expected name/dtype/bits"),
        ({"launch": {"conv/float16/14": {"tile": 4}}}, "conv/float16/14 has tile = 4; expected whole numbers for"),
        ({"launch": {"conv/float16/14": {"warps": "4"}}}, "conv/float16/14 has warps = '4'; expected whole"),
        ({"backend": {"rfdb/float16/14": "cudnn"}}, "rfdb/float16/14 is 'cudnn'; expected triton or torch"),
    ],
)
def test_errors_name_the_table_and_the_entry(table: Callable[[object], Path], content: object, message: str) -> None:
    table(content)
    with pytest.raises(ValueError, match=message):
        configs.config("conv", torch.zeros(1, 8, 100, 100, dtype=torch.float16))


def test_shipped_tables_can_be_read() -> None:
    for path in Path(configs.__file__).parent.parent.glob("configs/*.json"):
        table = configs.tuned(path.stem)
        assert table.launch
        assert all(isinstance(c, configs.Config) for c in table.launch.values())
