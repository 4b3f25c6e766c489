"""A node for ComfyUI: Deblur (LMFN). Copy this folder to ComfyUI/custom_nodes/lmfn."""

from functools import lru_cache
from typing import Any

import torch
from comfy import model_management

from lmfn import Deblurrer
from lmfn.weights import NAMES


@lru_cache(maxsize=2)
def deblurrer(weights: str, strength: float, device: str) -> Deblurrer:
    return Deblurrer(weights, strength=strength, device=device)


class DeblurLMFN:
    """Images `[B, H, W, C]`, each processed as a whole: in tiles the network would lack context."""

    CATEGORY = "image/postprocessing"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "deblur"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        strength = {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.05}
        return {"required": {"image": ("IMAGE",), "weights": (list(NAMES),), "strength": ("FLOAT", strength)}}

    def deblur(self, image: torch.Tensor, weights: str, strength: float) -> tuple[torch.Tensor]:
        device = model_management.get_torch_device()
        run = deblurrer(weights, strength, str(device))
        model_management.free_memory(run.estimated_bytes(*image.shape[1:3]), device)  # of what other nodes have loaded
        sharp = []
        for one in image:
            model_management.throw_exception_if_processing_interrupted()
            # Resizing leaves values a little outside [0, 1].
            sharp.append(torch.from_numpy(run(one.cpu().float().clamp(0, 1).numpy())))
        return (torch.stack(sharp),)


NODE_CLASS_MAPPINGS = {"DeblurLMFN": DeblurLMFN}
NODE_DISPLAY_NAME_MAPPINGS = {"DeblurLMFN": "Deblur (LMFN)"}
