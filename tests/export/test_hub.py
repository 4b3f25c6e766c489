"""The kernels as a repository for Hugging Face's `kernels`, loaded in addition to the installed package."""

import importlib.util
import json
import sys
import tomllib

import pytest
import torch

import lmfn_kernels
from lmfn_kernels import hub


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "lmfn-kernels"
    hub.main([str(folder)])
    return folder


@pytest.fixture(scope="module")
def loaded(repository):
    """Imported as `kernels` does: from its files, under the name in metadata.json."""
    variant = repository / "build" / "torch-cpu"
    name = json.loads((variant / "metadata.json").read_text())["id"]
    spec = importlib.util.spec_from_file_location(name, variant / "__init__.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for key in [key for key in sys.modules if key.partition(".")[0] == name]:
        del sys.modules[key]


@pytest.mark.parametrize("backend", ["torch", "triton", "reference"])
def test_both_work_in_one_process(loaded, backend):
    assert loaded.__name__ != "lmfn_kernels"
    torch.manual_seed(0)
    x, weight, bias = torch.randn(1, 4, 8, 8), torch.randn(4, 4, 3, 3), torch.randn(4)
    found = []
    for package in (lmfn_kernels, loaded, lmfn_kernels):
        leaf = x.clone().requires_grad_()
        with package.backend(backend):
            y = package.conv3x3(leaf, weight, bias, activation="leaky_relu", slope=0.1)
        y.square().sum().backward()
        found.append((y.detach(), leaf.grad))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=0)


def test_each_has_its_own_ops_and_nothing_of_the_other(loaded):
    own = getattr(torch.ops, loaded.__name__)
    assert own.conv3x3 is not torch.ops.lmfn.conv3x3
    assert loaded.conv3x3.__module__ == f"{loaded.__name__}.conv.op"
    with loaded.backend("reference"):
        assert "reference" in str(loaded.explain_backend("conv3x3", torch.zeros(1, 4, 8, 8)))
        assert "reference" not in str(lmfn_kernels.explain_backend("conv3x3", torch.zeros(1, 4, 8, 8)))


def test_the_builders_files(repository):
    general = tomllib.loads((repository / "build.toml").read_text())
    assert general["torch-noarch"]["pyext"] == ["json", "py"]
    assert general["general"]["edition"] == 5
    assert (repository / "torch-ext" / general["general"]["name"].replace("-", "_") / "__init__.py").is_file()
    assert "genKernelFlakeOutputs" in (repository / "flake.nix").read_text()
    texts = [path.read_text() for path in (repository / "torch-ext").rglob("*.py")]
    assert len(texts) > 50
    assert not any(line.startswith("from lmfn_kernels") for text in texts for line in text.splitlines())
    assert (repository / "CARD.md").is_file()


def test_loads_with_kernels_itself(repository, loaded):
    kernels = pytest.importorskip("kernels", reason="without it, the tests above load the same files")
    if not hasattr(kernels, "get_local_kernel"):  # the tests' own folder of that name
        pytest.skip("without the package kernels, the tests above load the same files")
    schema = pytest.importorskip("kernels._rust", reason="before kernels 0.17, the builder alone has its schema")
    assert [str(backend) for backend in schema.Build.open(repository).general.backends] == ["cpu", "cuda"]
    module = kernels.get_local_kernel(repository, trust_remote_code=True)
    x = torch.ones(1, 4, 8, 8)
    assert torch.equal(module.conv3x3(x, torch.ones(4, 4, 3, 3)), loaded.conv3x3(x, torch.ones(4, 4, 3, 3)))


def test_what_cannot_be_written_is_said(repository, capsys):
    with pytest.raises(FileExistsError, match="is not empty"):
        hub.write(repository)
    with pytest.raises(SystemExit):
        hub.main([str(repository)])
    assert "is not empty; name a new folder" in capsys.readouterr().err
    with pytest.raises(ValueError, match="line 1 imports lmfn_kernels itself"):
        hub.with_relative_imports("import lmfn_kernels\n", 0)
