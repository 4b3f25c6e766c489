"""LMFN for programs that load models with spandrel (chaiNNer, ComfyUI and others): `install`.

    import spandrel
    import lmfn.spandrel

    lmfn.spandrel.install()
    model = spandrel.ModelLoader().load_from_file("lmfn.safetensors")
    sharp = model(blurred)  # [1, 3, H, W] in [0, 1], any H and W >= 1

Needs the package spandrel.
"""

from typing import Any

from spandrel import MAIN_REGISTRY, Architecture, ArchSupport, ImageModelDescriptor, ModelTiling
from spandrel.util import KeyCondition
from torch import Tensor

from lmfn.inference import with_border
from lmfn.network.checkpoint import CONFIG, config_from_tensor
from lmfn.network.config import preset
from lmfn.network.model import Network


class LMFNArch(Architecture[Network]):  # type: ignore[misc]  # spandrel has no types
    """The architecture `LMFN`, for files from `LMFN.save_pretrained`, from training, and of this package."""

    def __init__(self) -> None:
        parts = "encoder.rb_16th.conv1.weight", "reduce.weight", "rfdbs.0.esa.conv_f.weight"
        super().__init__(id="LMFN", detect=KeyCondition.has_any(CONFIG, KeyCondition.has_all(*parts)))

    def load(self, state_dict: Any) -> ImageModelDescriptor[Network]:
        """The network with these weights, including the border that `Deblurrer` reflects around images.

        Raises ValueError for an invalid or missing config, which cannot be derived from the other tensors.
        """
        tensors = dict(state_dict)
        if CONFIG not in tensors:
            raise ValueError(
                f"the LMFN weights have no tensor {CONFIG!r}; write them again with "
                "LMFN.from_pretrained(FILE).save_pretrained(FOLDER)"
            )
        model = Network(preset("lmfn", **config_from_tensor(tensors.pop(CONFIG))))

        def call(network: Network, image: Tensor) -> Tensor:
            return with_border(network)(image)

        return ImageModelDescriptor(
            model,
            tensors,
            architecture=self,
            purpose="Restoration",
            tags=[f"{model.config.features}nf"],
            supports_half=True,
            supports_bfloat16=True,
            scale=1,
            input_channels=3,
            output_channels=3,
            tiling=ModelTiling.DISCOURAGED,
            call_fn=call,
        )


def install() -> None:
    """Let `spandrel.ModelLoader` load LMFN's weights. A second call changes nothing."""
    MAIN_REGISTRY.add(ArchSupport.from_architecture(LMFNArch()), ignore_duplicates=True)
