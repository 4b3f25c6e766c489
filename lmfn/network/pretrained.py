"""LMFN with its weights in files: those of this package, a training run's, or a Hugging Face Hub repository's."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from huggingface_hub import PyTorchModelHubMixin

from lmfn.network import checkpoint
from lmfn.network.config import preset
from lmfn.network.model import Network


class LMFN(
    Network,
    PyTorchModelHubMixin,
    library_name="lmfn",
    tags=["image-deblurring", "image-to-image"],
    license="apache-2.0",
    paper_url="https://arxiv.org/abs/2101.05403",
):
    __doc__ = Network.__doc__

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write `model.safetensors` (weights and config), `config.json` and a model card into a folder, made if needed.

        The options are `huggingface_hub.PyTorchModelHubMixin`'s (`push_to_hub`, `repo_id`).
        """
        return super().save_pretrained(save_directory, **(options | {"config": asdict(self.config)}))

    def _save_pretrained(self, save_directory: Path) -> None:
        checkpoint.write(save_directory / "model.safetensors", self.state_dict(), {"config": asdict(self.config)})

    @classmethod
    def from_pretrained(cls, name: str | Path = "lmfn", **options: Any) -> Self:  # type: ignore[override]
        """A trained network, in evaluation mode, on the CPU, float32.

        `name` is `lmfn` or `lmfn-released`, whose weights come with this package (`lmfn.weights`), a folder that
        `save_pretrained` or train.py wrote, one of its `.safetensors` files, or the name `owner/model` of a repository
        on the Hugging Face Hub (the options are then `hf_hub_download`'s).

        Raises FileNotFoundError where there is no such thing, ValueError where the file is broken or does not fit.
        """
        path = checkpoint.find_weights(name, **options)
        tensors, metadata = checkpoint.read(path)
        if "config" not in metadata:
            raise ValueError(f"{path} holds no network's weights; its metadata has {', '.join(metadata) or 'nothing'}")
        model = cls(preset("lmfn", **metadata["config"]))
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:
            raise ValueError(f"{path} does not fit its own config: {error}") from error
        return model.eval()
