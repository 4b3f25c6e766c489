"""The node for ComfyUI, loaded and called as ComfyUI does."""

import importlib.util
from pathlib import Path

import torch

from lmfn import Deblurrer

NODE = Path(__file__).parents[2] / "examples" / "comfyui" / "__init__.py"


def test_the_node_gives_what_the_deblurrer_does():
    spec = importlib.util.spec_from_file_location("custom_nodes_lmfn", NODE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    node = module.NODE_CLASS_MAPPINGS["DeblurLMFN"]
    assert module.NODE_DISPLAY_NAME_MAPPINGS.keys() == module.NODE_CLASS_MAPPINGS.keys()
    given = {name: kind[0] for name, kind in node.INPUT_TYPES()["required"].items()}
    assert given == {"image": "IMAGE", "weights": ["lmfn", "lmfn-released"], "strength": "FLOAT"}
    image = torch.rand(2, 32, 48, 3, generator=torch.Generator().manual_seed(0))
    (sharp,) = getattr(node(), node.FUNCTION)(image, weights="lmfn", strength=0.5)
    assert node.RETURN_TYPES == ("IMAGE",)
    expected = Deblurrer("lmfn", strength=0.5)(image[1].numpy())
    assert (sharp.shape, sharp.dtype) == (image.shape, torch.float32)
    torch.testing.assert_close(sharp[1], torch.from_numpy(expected))
