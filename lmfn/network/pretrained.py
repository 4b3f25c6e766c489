"""LMFN with weights from files: of this package, of a training run, or of a Hugging Face Hub repository."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import PyTorchModelHubMixin

from lmfn.network import checkpoint
from lmfn.network.config import LMFNConfig, preset
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
        """Write `model.safetensors` (weights and config), `config.json` and a model card into a folder, which is
        created if needed.

        The options are those of `huggingface_hub.PyTorchModelHubMixin` (`push_to_hub`, `repo_id`).
        """
        return super().save_pretrained(save_directory, **(options | {"config": asdict(self.config)}))

    def _save_pretrained(self, save_directory: Path) -> None:
        checkpoint.write(save_directory / "model.safetensors", self.state_dict(), {"config": asdict(self.config)})

    @classmethod
    def from_pretrained(cls, name: str | Path = "lmfn", **options: Any) -> Self:  # type: ignore[override]
        """A trained network, in evaluation mode, on the CPU, float32.

        `name` is `lmfn` or `lmfn-released`, whose weights are included in this package (`lmfn.weights`), a folder
        written by `save_pretrained` or train.py, one of its `.safetensors` files, or the name `owner/model` of a
        repository on the Hugging Face Hub (with the options of `hf_hub_download`). Files may use float16, bfloat16,
        float32 or float64.

        Raises FileNotFoundError if it does not exist, ValueError if the file is broken, contains values that are not
        finite, or does not fit its own config.
        """
        path = checkpoint.find_weights(name, **options)
        stored, metadata = checkpoint.read_header(path)
        config = _config(path, metadata)
        # On the meta device: a small file may name a large network, which is refused before it is created.
        with torch.device("meta"):
            model = cls(config)
        _check_fit(path, stored, {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()})
        tensors, _ = checkpoint.read(path)
        if broken := [key for key, tensor in tensors.items() if not tensor.isfinite().all()]:
            raise ValueError(f"{path} contains values that are not finite, in {_some(broken)}: its training diverged")
        model.load_state_dict({key: tensor.float() for key, tensor in tensors.items()}, assign=True)
        return model.eval()


def _config(path: Path, metadata: dict[str, Any]) -> LMFNConfig:
    if "config" not in metadata:
        raise ValueError(
            f"{path} contains no weights of a network; its metadata has {_some(list(metadata)) or 'nothing'}"
        )
    found = metadata["config"]
    if not isinstance(found, dict):
        raise ValueError(f"{path}: the config in its header is a {type(found).__name__}, not an object of fields")
    try:
        return preset("lmfn", **found)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _check_fit(path: Path, stored: dict[str, checkpoint.Stored], own: dict[str, tuple[int, ...]]) -> None:
    """Raise ValueError unless these are tensors for a network with these shapes."""
    differ = [key for key in own if key in stored and stored[key].shape != own[key]]
    faults = [f"it has no {_some(missing)}"] if (missing := [key for key in own if key not in stored]) else []
    if more := [key for key in stored if key not in own]:
        faults.append(f"it has {_some(more)}, which the network lacks")
    if differ:
        faults.append(f"{differ[0]} has shape {stored[differ[0]].shape} instead of {own[differ[0]]}")
    if faults:
        raise ValueError(f"{path} does not fit its own config: {'; '.join(faults)}")
    for key, (_, dtype) in stored.items():
        if dtype not in ("F16", "BF16", "F32", "F64"):
            raise ValueError(f"{path}: {key} is stored as {dtype}; weights are F16, BF16, F32 or F64")


def _some(names: list[str]) -> str:
    """The first names, and the number of further ones."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(name[:60] for name in names[:3]) + more
