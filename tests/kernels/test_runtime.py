"""The ground: choice of backend, errors, configs, and life without Triton or a GPU."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import lmfn_kernels
from lmfn_kernels import Conv, RFDBWeights
from lmfn_kernels.runtime import backend, configs
from lmfn_kernels.testing import conv_case, differentiate, rfdb_case, rfdb_flat

WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "triton" else real(name, *rest)
import torch, lmfn_kernels
x, w = torch.randn(1, 3, 4, 5, requires_grad=True), torch.randn(2, 3, 3, 3, requires_grad=True)
lmfn_kernels.conv3x3(x, w).sum().backward()
assert x.grad is not None and w.grad is not None
try:
    with lmfn_kernels.backend("triton"):
        lmfn_kernels.conv3x3(x, w)
except RuntimeError as error:
    print(error)
"""


def python(code: str, environment: dict[str, str]) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_triton(environment: dict[str, str]) -> None:
    assert "Triton is not installed" in python(WITHOUT_TRITON, environment)


def test_importing_imports_no_triton(environment: dict[str, str]) -> None:
    code = "import sys, lmfn_kernels; print('triton' in sys.modules and 'lmfn_kernels.runtime.kernels' in sys.modules)"
    assert python(code, environment).strip() == "False"


def test_variable_sets_the_backend(environment: dict[str, str]) -> None:
    code = "from lmfn_kernels.runtime import backend; print(backend._chosen)"
    assert python(code, environment).strip() == "auto"
    assert python(code, environment | {"LMFN_BACKEND": "reference"}).strip() == "reference"
    wrong = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment | {"LMFN_BACKEND": "cuda"}
    )
    assert "LMFN_BACKEND is 'cuda'; it must be one of auto, triton, torch, reference" in wrong.stderr


def test_context_manager_nests_and_restores() -> None:
    x = torch.zeros(1)
    with lmfn_kernels.backend("reference"):
        assert backend.choose(x, None, "rfdb") == "reference"
        with lmfn_kernels.backend("torch"):
            assert backend.choose(x, None, "rfdb") == "torch"
        with pytest.raises(ValueError, match="backend is 'cudnn'; it must be one of"), lmfn_kernels.backend("cudnn"):
            pass
        assert backend.choose(x, None, "rfdb") == "reference"
    assert backend.choose(x, None, "rfdb") == "torch", "auto takes the plain body on a CPU"


def test_the_choice_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGpu(torch.Tensor):
        is_cuda = True

    image = torch.zeros(1, 3, 4, 4).as_subclass(OnGpu)
    assert lmfn_kernels.explain_backend("rfdb", torch.zeros(1)) == (
        "torch",
        "the kernels run on GPUs that Triton supports",
    )
    with lmfn_kernels.backend("reference"):
        assert lmfn_kernels.explain_backend("rfdb", image)[0] == "reference"
    monkeypatch.setattr(backend, "_missing", lambda _: None)
    monkeypatch.setattr(configs, "torch_is_faster", lambda op, _: op == "conv3x3")
    assert lmfn_kernels.explain_backend("rfdb", image) == ("triton", "the device runs the kernels")
    assert lmfn_kernels.explain_backend("rfdb", image, "it is too wide") == ("torch", "it is too wide")
    name, reason = lmfn_kernels.explain_backend("conv3x3", image)
    assert name == "torch"
    assert "table" in reason
    monkeypatch.setattr(backend, "_missing", lambda _: "the GPU is old")
    assert lmfn_kernels.explain_backend("rfdb", image) == ("torch", "the GPU is old")
    with lmfn_kernels.backend("triton"), pytest.raises(RuntimeError, match="cannot run here: the GPU is old"):
        lmfn_kernels.explain_backend("rfdb", image)


def test_triton_refuses_what_it_cannot_take(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = rfdb_case(1, 70, 5, 4, 15, 15)
    with (
        lmfn_kernels.backend("triton"),
        pytest.raises(ValueError, match="70 channels, and the fused kernels"),
    ):
        rfdb_flat(*tensors)
    monkeypatch.setattr(backend, "INTERPRETED", False)
    with lmfn_kernels.backend("triton"), pytest.raises(RuntimeError, match="the tensors are on the CPU"):
        rfdb_flat(*rfdb_case(1, 7, 5, 4, 15, 15))


def test_backward_keeps_the_backend_of_its_forward() -> None:
    from lmfn_kernels.runtime import launch

    x, *weights = (t.requires_grad_() for t in rfdb_case(1, 6, 3, 2, 15, 15))
    with lmfn_kernels.backend("triton"):
        y = rfdb_flat(x, *weights)
    launched: list[str] = []
    with pytest.MonkeyPatch.context() as patch, lmfn_kernels.backend("torch"):
        patch.setattr(launch, "launcher", lambda kernel, *_: launched.append(kernel.__name__))
        torch.autograd.grad(y.sum(), x)
    assert "fuse_backward_kernel" in launched


def wrong_conv(**changes: object) -> None:
    x, weight, bias, residual = conv_case(1, 3, 2, 6, 7, torch.float32)
    lmfn_kernels.conv3x3(**({"x": x, "weight": weight, "bias": bias, "residual": residual} | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": [1.0]}, TypeError, "x is a list; a tensor"),
        ({"x": torch.zeros(1, 3, 6, 7, dtype=torch.int32)}, TypeError, "x has dtype torch.int32; expected is one of"),
        ({"x": torch.zeros(3, 6, 7)}, ValueError, r"x has shape \(3, 6, 7\); a non-empty \[B, C, H, W\]"),
        ({"x": torch.zeros(1, 3, 0, 7)}, ValueError, r"x has shape \(1, 3, 0, 7\); a non-empty"),
        ({"x": torch.zeros(1, 3, 2, 7), "padding": 0}, ValueError, "height and width of at least 3"),
        (
            {"weight": torch.zeros(2, 4, 3, 3)},
            ValueError,
            r"weight has shape .2, 4, 3, 3.; expected is .2, 3, 3, 3.",
        ),
        (
            {"weight": torch.zeros(2, 3, 3, 3).double()},
            TypeError,
            "weight has dtype torch.float64; expected is",
        ),
        ({"weight": torch.zeros(2, 3, 3, 3, device="meta")}, ValueError, "weight is on meta; expected is cpu"),
        ({"bias": torch.zeros(3)}, ValueError, r"bias has shape \(3,\); expected is \(2\)"),
        (
            {"residual": torch.zeros(1, 2, 7, 7)},
            ValueError,
            r"residual has shape .1, 2, 7, 7.; expected is .1, 2, 6, 7.",
        ),
        ({"stride": 3}, ValueError, "stride is 3; expected is 1 or 2"),
        ({"padding": 2}, ValueError, "padding is 2; expected is 0 or 1"),
        ({"activation": "gelu"}, ValueError, "activation is 'gelu'; expected is one of none, relu, leaky_relu"),
        ({"activation": "leaky_relu", "slope": 0.0}, ValueError, "slope is 0.0; expected is a number above 0"),
    ],
)
def test_errors_name_the_argument(changes: dict[str, object], error: type[Exception], message: str) -> None:
    wrong_conv()
    with pytest.raises(error, match=message):
        wrong_conv(**changes)


def test_errors_of_the_block_name_the_convolution() -> None:
    x, *flat = rfdb_case(1, 6, 3, 2, 15, 15)
    convs = [Conv(*flat[i : i + 2]) for i in range(0, len(flat), 2)]
    weights = RFDBWeights((*convs[:3],), (*convs[3:6],), *convs[6:])
    with pytest.raises(ValueError, match="height and width of at least 15"):
        lmfn_kernels.rfdb(x[:, :, :14], weights)
    with pytest.raises(ValueError, match=r"weights.conv_f.weight has shape .6, 12, 1, 1.; expected is .2, 2, 1, 1."):
        lmfn_kernels.rfdb(x, weights._replace(conv_f=weights.fuse))
    with pytest.raises(ValueError, match=r"weights.refine has 2 convolutions; expected are 3"):
        lmfn_kernels.rfdb(x, weights._replace(refine=weights.refine[:2]))  # type: ignore[arg-type]


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[object], Path]]:
    """Writes the table of a GPU that every tensor is then taken to be on."""
    (tmp_path / "configs").mkdir()
    monkeypatch.setattr(configs.resources, "files", lambda _: tmp_path)
    monkeypatch.setattr(configs, "describe", lambda _: ("some-gpu", 232_448))

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
    heuristic = configs.heuristic("conv", torch.float16, 232_448)
    assert configs.config("conv", image) == configs.Config(**ENTRY) != heuristic
    assert configs.config("fuse", image) == configs.Config(warps=1)
    assert configs.config("conv", image[:, :, :50]) == heuristic
    assert configs.config("conv", image.float()) == configs.heuristic("conv", torch.float32, 232_448)
    torch.use_deterministic_algorithms(True)
    assert configs.config("conv", image) == heuristic


class OnGPU(Tensor):
    """A CPU tensor that says that it is on a GPU."""

    is_cuda = True  # type: ignore[assignment]


def test_auto_takes_the_faster_body(table: Callable[[object], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the table names `torch`, and only if nobody asked for another; kernels in deterministic mode."""
    monkeypatch.setattr(backend, "_missing", lambda _: None)
    table({"backend": {"rfdb/float16/14": "torch", "rfdb/float16/13": "triton", "conv3x3/float32/14": "torch"}})
    image = torch.zeros(1, 8, 128, 64, dtype=torch.float16).as_subclass(OnGPU)  # 2^13 pixels: 14 digits
    assert backend.choose(image, None, "rfdb") == "torch"
    assert backend.choose(image[:, :, 1:], None, "rfdb") == "triton", "13 digits"
    assert backend.choose(image.repeat(2, 1, 1, 1), None, "rfdb") == "triton", "15 digits: no entry"
    assert backend.choose(image, None, "conv3x3") == "triton", "another dtype"
    assert backend.choose(image.float(), None, "conv3x3") == "torch"
    for name in ("triton", "torch", "reference"):
        with lmfn_kernels.backend(name):
            assert backend.choose(image, None, "rfdb") == name
    torch.use_deterministic_algorithms(True)
    assert backend.choose(image, None, "rfdb") == "triton"


def test_table_is_read_while_compiling(table: Callable[[object], Path]) -> None:
    """Without a break of the graph, and for all sizes of a range at once."""
    table({"backend": {"rfdb/float32/14": "torch"}})

    def call(x: Tensor) -> Tensor:
        return x + 1 if configs.torch_is_faster("rfdb", x) else x - 1

    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend="eager", dynamic=True)
    for height in (100, 90, 200, 101, 50):
        x = torch.zeros(1, 2, height, 100)
        assert torch.equal(compiled(x), call(x))
    assert (call(torch.zeros(1, 2, 100, 100)) == 1).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"conv/float16/14": ENTRY},
            r"some-gpu.json: 'conv/float16/14' is none of launch, backend; correct it, or remove",
        ),
        ([], "some-gpu.json: "),
        ({"launch": {"conv/float16": ENTRY}}, "an entry is called 'conv/float16'; expected is name/dtype/bits"),
        ({"launch": {"conv/float16/14": {"tile": 4}}}, "conv/float16/14 has tile = 4; expected are whole numbers for"),
        ({"launch": {"conv/float16/14": {"warps": "4"}}}, "conv/float16/14 has warps = '4'; expected are whole"),
        ({"backend": {"rfdb/float16/14": "cudnn"}}, "rfdb/float16/14 is 'cudnn'; expected is triton or torch"),
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


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("body", ["torch", "triton"])
def test_weight_gradients_have_the_strides_of_weights(body: str, memory_format: torch.memory_format) -> None:
    """Or DistributedDataParallel would copy them."""
    tensors = [t.contiguous(memory_format=memory_format) if t.ndim == 4 else t for t in rfdb_case(1, 6, 3, 2, 15, 15)]
    with lmfn_kernels.backend(body):
        _, gradients = differentiate(rfdb_flat, tensors)
    for tensor, gradient in zip(tensors[1:], gradients[1:], strict=True):
        assert gradient is not None
        assert gradient.stride() == tensor.stride()
