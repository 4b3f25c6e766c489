"""The choice of a backend, with and without Triton and a GPU."""

import runpy
import subprocess
import sys

import pytest
import torch

import lmfn_kernels
from lmfn_kernels.cases import rfdb_from_flat, rfdb_inputs
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


def test_variable_sets_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen() -> str:
        """According to the module as imported by a new process."""
        return str(runpy.run_path(backend.__file__)["_chosen"])

    monkeypatch.delenv("LMFN_BACKEND", raising=False)
    assert chosen() == "auto"
    monkeypatch.setenv("LMFN_BACKEND", "reference")
    assert chosen() == "reference"
    monkeypatch.setenv("LMFN_BACKEND", "cuda")
    with pytest.raises(ValueError, match="LMFN_BACKEND is 'cuda'; it must be one of auto, triton, torch, reference"):
        chosen()


def test_context_manager_nests_and_restores() -> None:
    x = torch.zeros(1)
    with lmfn_kernels.backend("reference"):
        assert backend.choose(x, None, "rfdb") == "reference"
        with lmfn_kernels.backend("torch"):
            assert backend.choose(x, None, "rfdb") == "torch"
        with pytest.raises(ValueError, match="backend is 'cudnn'; it must be one of"), lmfn_kernels.backend("cudnn"):
            pass
        assert backend.choose(x, None, "rfdb") == "reference"
    assert backend.choose(x, None, "rfdb") == "torch", "auto takes PyTorch on a CPU"


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


def test_triton_needs_a_gpu_or_its_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "INTERPRETED", False)
    with lmfn_kernels.backend("triton"), pytest.raises(RuntimeError, match="the tensors are on the CPU"):
        rfdb_from_flat(*rfdb_inputs(1, 7, 5, 4, 15, 15))


def test_backward_keeps_the_backend_of_its_forward() -> None:
    from lmfn_kernels.runtime import launch

    x, *weights = (t.requires_grad_() for t in rfdb_inputs(1, 6, 3, 2, 15, 15))
    with lmfn_kernels.backend("triton"):
        y = rfdb_from_flat(x, *weights)
    launched: list[str] = []
    with launch.intercepting(lambda _launch, kernel, *_: launched.append(kernel.__name__)), backend.backend("torch"):
        torch.autograd.grad(y.sum(), x)
    assert "fuse_backward_kernel" in launched
