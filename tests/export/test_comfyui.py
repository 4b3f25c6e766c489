"""The node for ComfyUI, loaded and called as ComfyUI does."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from lmfn import Deblurrer

NODE = Path(__file__).parents[2] / "examples" / "comfyui" / "__init__.py"


@pytest.fixture
def comfy(monkeypatch):
    """ComfyUI's model_management, as far as the node uses it; `freed` is what it was asked to free."""
    management = ModuleType("comfy.model_management")
    management.freed, management.interrupted = [], False
    management.get_torch_device = lambda: torch.device("cpu")
    management.free_memory = lambda memory_required, device: management.freed.append((memory_required, device.type))

    def throw():
        if management.interrupted:
            raise InterruptedError

    management.throw_exception_if_processing_interrupted = throw
    package = ModuleType("comfy")
    package.model_management = management
    monkeypatch.setitem(sys.modules, "comfy", package)
    monkeypatch.setitem(sys.modules, "comfy.model_management", management)
    return management


@pytest.fixture
def node(comfy):
    assert sys.modules["comfy.model_management"] is comfy
    spec = importlib.util.spec_from_file_location("custom_nodes_lmfn", NODE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.NODE_DISPLAY_NAME_MAPPINGS.keys() == module.NODE_CLASS_MAPPINGS.keys()
    return module.NODE_CLASS_MAPPINGS["DeblurLMFN"]


def test_the_node_gives_what_the_deblurrer_does(node, comfy):
    given = {name: kind[0] for name, kind in node.INPUT_TYPES()["required"].items()}
    assert given == {"image": "IMAGE", "weights": ["lmfn", "lmfn-released"], "strength": "FLOAT"}
    image = torch.rand(2, 32, 48, 3, generator=torch.Generator().manual_seed(0))
    deblur = getattr(node(), node.FUNCTION)
    (sharp,) = deblur(image, weights="lmfn", strength=0.5)
    assert node.RETURN_TYPES == ("IMAGE",)
    run = Deblurrer("lmfn", strength=0.5)
    assert (sharp.shape, sharp.dtype) == (image.shape, torch.float32)
    torch.testing.assert_close(sharp[1], torch.from_numpy(run(image[1].numpy())))
    assert comfy.freed == [(run.estimated_bytes(32, 48), "cpu")]
    comfy.interrupted = True
    with pytest.raises(InterruptedError):
        deblur(image, weights="lmfn", strength=0.5)


def test_values_that_resizing_leaves_outside_0_to_1_are_taken(node):
    image = 1.2 * torch.rand(1, 32, 48, 4, generator=torch.Generator().manual_seed(0)) - 0.1
    with torch.inference_mode():
        (sharp,) = node().deblur(image, weights="lmfn", strength=1.0)
    torch.testing.assert_close(sharp[0], torch.from_numpy(Deblurrer("lmfn")(image[0].clamp(0, 1).numpy())))
