"""The ground: choice of backend, errors, configs, and life without Triton or a GPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lmfn_kernels
from bench.cases import conv_case, differentiate, rfdb_case, rfdb_flat
from lmfn_kernels import Conv, RFDBWeights
from lmfn_kernels.runtime import backend, configs

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
        assert backend.choose(x, None) == "reference"
        with lmfn_kernels.backend("torch"):
            assert backend.choose(x, None) == "torch"
        with pytest.raises(ValueError, match="backend is 'cudnn'; it must be one of"), lmfn_kernels.backend("cudnn"):
            pass
        assert backend.choose(x, None) == "reference"
    assert backend.choose(x, None) == "torch", "auto takes the plain body on a CPU"


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


def test_configs_table_overrides_the_heuristic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By device, kernel, dtype and the number of binary digits of B H W; not in deterministic mode."""
    image = torch.zeros(1, 8, 100, 100, dtype=torch.float16)
    (tmp_path / "configs").mkdir()
    entry = {"height": 4, "width": 32, "warps": 8, "stages": 2, "splits": 7}
    (tmp_path / "configs" / "some-gpu.json").write_text(json.dumps({"conv/float16/14": entry}))
    monkeypatch.setattr(configs.resources, "files", lambda _: tmp_path)
    monkeypatch.setattr(configs, "describe", lambda _: ("some-gpu", 232_448))
    configs.tuned.cache_clear()
    heuristic = configs.heuristic("conv", torch.float16, 232_448)
    assert configs.config("conv", image) == configs.Config(**entry) != heuristic
    assert configs.config("conv", image[:, :, :50]) == heuristic
    torch.use_deterministic_algorithms(True)
    try:
        assert configs.config("conv", image) == heuristic
    finally:
        torch.use_deterministic_algorithms(False)
        configs.tuned.cache_clear()


def test_shipped_tables_can_be_read() -> None:
    for path in Path(configs.__file__).parent.parent.glob("configs/*.json"):
        assert all(isinstance(c, configs.Config) for c in configs.tuned(path.stem).values())


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
