"""One safetensors file with JSON metadata, written so that the file that stood there before is never lost.

Weights and the state of a training run are such files: the tensors by name, and what they mean (the network's config,
the step) in the header, so that a file is complete on its own.
"""

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from torch import Tensor

from lmfn import atomic, weights

log = logging.getLogger(__name__)


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Replace `path` by a safetensors file with these tensors; `metadata` is kept as JSON under the key `lmfn`."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    atomic.write(path, safetensors.torch.save(on_cpu, metadata={"format": "pt", "lmfn": json.dumps(metadata)}))


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors (on the CPU) and the metadata that `write` put there.

    Raises FileNotFoundError where there is no such file, ValueError where it is broken or not one of ours.
    """
    if not path.is_file():
        own = " or ".join(weights.NAMES)
        raise FileNotFoundError(
            f"there is no file {path}; weights are {own}, or what save_pretrained or train.py wrote"
        )
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = (file.metadata() or {}).get("lmfn")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file ({error})") from error
    if metadata is None:
        raise ValueError(f"{path} has no LMFN metadata: neither save_pretrained nor train.py wrote it")
    return tensors, json.loads(metadata)


def find_weights(name: str | Path, **options: Any) -> Path:
    """The weights' file that is meant by a name in `lmfn.weights.NAMES`, a folder, a file, or a Hugging Face Hub
    repository `owner/model` (fetched). A folder that is called as one of the names is meant by its whole path only.

    The options are `hf_hub_download`'s. Raises ValueError where the package's own are damaged, FileNotFoundError where
    the Hub gives no such model; of a path on this machine nothing is checked.
    """
    if str(name) in weights.NAMES:
        return weights.shipped_weights(str(name))
    path = Path(name)
    if path.is_dir():
        return path / "model.safetensors"
    on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)) and path.suffix != ".safetensors"
    if path.exists() or path.parent.is_dir() or not on_hub:
        return path
    log.info("there is no folder %s here; asking the Hugging Face Hub", name)
    try:
        return Path(hf_hub_download(str(name), "model.safetensors", **options))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(f"{name} is no folder here, and the Hugging Face Hub gave no such model") from error
