"""A node for ComfyUI: Deblur (LMFN). Copy this folder to ComfyUI/custom_nodes/lmfn."""

from functools import lru_cache
from typing import Any

import torch

from lmfn import Deblurrer
from lmfn.weights import NAMES


@lru_cache(maxsize=2)
def deblurrer(weights: str, strength: float) -> Deblurrer:
    return Deblurrer(weights, strength=strength)


class DeblurLMFN:
    """Images `[B, H, W, C]` in [0, 1], each processed as a whole: in tiles the network would lack context."""

    CATEGORY = "image/postprocessing"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "deblur"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        strength = {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.05}
        return {"required": {"image": ("IMAGE",), "weights": (list(NAMES),), "strength": ("FLOAT", strength)}}

    def deblur(self, image: torch.Tensor, weights: str, strength: float) -> tuple[torch.Tensor]:
        run = deblurrer(weights, strength)
        return (torch.stack([torch.from_numpy(run(one.cpu().float().numpy())) for one in image]),)


NODE_CLASS_MAPPINGS = {"DeblurLMFN": DeblurLMFN}
NODE_DISPLAY_NAME_MAPPINGS = {"DeblurLMFN": "Deblur (LMFN)"}
