"""LMFN in spandrel. If torchvision is missing, its parts that only other architectures use are replaced by stubs."""

import importlib.util
import json
import sys
import types

import pytest
import safetensors.torch
import torch
from small_networks import deblurred, image, network

from lmfn import LMFN
from lmfn.network import checkpoint
from lmfn.weights import NAMES, shipped_weights


@pytest.fixture(scope="module")
def loader():
    if importlib.util.find_spec("spandrel") is None:
        pytest.skip("spandrel is not installed; the next test holds what is read of a file without it")
    if importlib.util.find_spec("torchvision") is None:
        functional = types.ModuleType("torchvision.transforms.functional")
        functional.InterpolationMode = functional.rotate = functional.normalize = None
        for name in ("torchvision", "torchvision.transforms"):
            sys.modules[name] = types.ModuleType(name)
        sys.modules[functional.__name__] = functional
    spandrel = importlib.import_module("spandrel")
    importlib.import_module("lmfn.spandrel").install()
    importlib.import_module("lmfn.spandrel").install()
    return spandrel.ModelLoader()


def test_files_of_all_kinds_load_and_foreign_ones_are_not_claimed(loader, tmp_path):
    spandrel = sys.modules["spandrel"]
    x = image(50, 70)
    for name in NAMES:
        model = loader.load_from_file(shipped_weights(name))
        assert (model.architecture.name, model.purpose, model.scale) == ("LMFN", "Restoration", 1)
        torch.testing.assert_close(model(x), deblurred(LMFN.from_pretrained(name), x).clamp(0, 1))
    own = network(stem_padding=0, skip="feature", head="pixelshuffle", similarity="cosine", alfm_window=64)
    LMFN.save_pretrained(own, tmp_path / "own")
    file = tmp_path / "own" / "model.safetensors"
    torch.testing.assert_close(loader.load_from_file(file)(x), deblurred(own, x).clamp(0, 1))

    tensors = safetensors.torch.load_file(file)
    del tensors[checkpoint.CONFIG]
    with pytest.raises(ValueError, match="write them again"):
        loader.load_from_state_dict(tensors)
    foreign = {name: tensor for name, tensor in tensors.items() if not name.startswith("encoder.")}
    with pytest.raises(spandrel.UnsupportedModelError):
        loader.load_from_state_dict(foreign)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_says_its_config_in_its_tensors_too(name):
    tensors = safetensors.torch.load_file(shipped_weights(name))
    named, metadata = checkpoint.read(shipped_weights(name))
    assert checkpoint.config_from_tensor(tensors.pop(checkpoint.CONFIG)) == metadata["config"]
    assert tensors.keys() == named.keys() == checkpoint.read_header(shipped_weights(name))[0].keys()


def test_a_file_without_that_tensor_loads_as_ever(tmp_path):
    tensors, metadata = checkpoint.read(shipped_weights("lmfn"))
    file = tmp_path / "old.safetensors"
    file.write_bytes(safetensors.torch.save(tensors, {"lmfn": json.dumps(metadata)}))
    assert LMFN.from_pretrained(file).config == LMFN.from_pretrained("lmfn").config
