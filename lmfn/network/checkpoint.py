"""Safetensors files with JSON metadata, written so that an existing file is never lost.

Weights and training states are such files: the tensors by name, and their meaning (the network's config, the step) in
the header, so that each file is complete on its own.
"""

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import safetensors
import safetensors.torch
import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from torch import Tensor

from lmfn import atomic, weights
from lmfn.absent import absent

log = logging.getLogger(__name__)

FILE = "model.safetensors"
"""Name of the weights file in a folder or repository."""
CONFIG = "lmfn.config"
"""The tensor that stores the network's config, from `config_to_tensor`, for programs that read the tensors of a file
without its header."""


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write these tensors as a safetensors file, replacing `path`; `metadata` is stored as JSON under the key `lmfn`.

    A `config` in it is also a tensor of the file, which `read` and `read_header` leave out.
    """
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    if "config" in metadata:
        on_cpu[CONFIG] = config_to_tensor(metadata["config"])
    atomic.write(path, safetensors.torch.save(on_cpu, metadata={"format": "pt", "lmfn": json.dumps(metadata)}))


class Stored(NamedTuple):
    """The header entry of a tensor."""

    shape: tuple[int, ...]
    dtype: str
    """The safetensors dtype: `F32`, `F16`, `I64`."""


def read_header(path: Path) -> tuple[dict[str, Stored], dict[str, Any]]:
    """The result of `read` without reading the tensors. Raises as `read`."""
    with _opened(path) as file:
        slices = {name: file.get_slice(name) for name in _names(file)}
        return {n: Stored(tuple(s.get_shape()), s.get_dtype()) for n, s in slices.items()}, _metadata(path, file)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors (on the CPU) and the metadata written by `write`.

    Raises FileNotFoundError if the file does not exist, ValueError if it is broken or was not written by `write`.
    """
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in _names(file)}, _metadata(path, file)


def config_to_tensor(config: Any) -> Tensor:
    """As bytes of JSON, uint8."""
    return torch.frombuffer(bytearray(json.dumps(config).encode()), dtype=torch.uint8)


def config_from_tensor(tensor: Tensor) -> Any:
    """Raises ValueError if the bytes are not JSON."""
    return json.loads(bytes(tensor.to("cpu", torch.uint8).tolist()))


def _names(file: Any) -> list[str]:
    return [name for name in file.keys() if name != CONFIG]  # noqa: SIM118 (not a mapping)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        own = " or ".join(weights.NAMES)
        raise FileNotFoundError(
            f"{absent('file', path)}; weights are {own}, or a file or folder of save_pretrained or train.py"
        )
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            yield file
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file ({error})") from error


def _metadata(path: Path, file: Any) -> dict[str, Any]:
    text = (file.metadata() or {}).get("lmfn")
    if text is None:
        raise ValueError(f"{path} has no LMFN metadata; expected a file of save_pretrained or train.py")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: the LMFN metadata in its header is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: the LMFN metadata in its header is a {type(found).__name__}, not an object")
    return found


def find_weights(name: str | Path, **options: Any) -> Path:
    """The weights file for a name in `lmfn.weights.NAMES`, a folder, a file, or a Hugging Face Hub repository
    `owner/model` (downloaded). A folder with one of these names has to be given by a longer path.

    The options are those of `hf_hub_download`. Raises ValueError if the package's own weights are damaged,
    FileNotFoundError if the Hub has no such model; local paths are not checked.
    """
    if str(name) in weights.NAMES:
        return weights.shipped_weights(str(name))
    path = Path(name)
    if path.is_dir():
        return path / FILE
    on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)) and path.suffix != ".safetensors"
    if path.exists() or path.parent.is_dir() or not on_hub:
        return path
    log.info("there is no folder %s here; asking the Hugging Face Hub", name)
    return _from_hub(str(name), **options)


def _from_hub(name: str, **options: Any) -> Path:
    where = {key: options[key] for key in ("revision", "cache_dir") if key in options}
    here = options.get("local_files_only", False)
    if not here and not isinstance(huggingface_hub.try_to_load_from_cache(name, FILE, **where), str):
        # Asked once: the download retries six times, which takes half a minute without a network.
        which = {key: options[key] for key in ("revision", "endpoint") if key in options}
        url = huggingface_hub.hf_hub_url(name, FILE, **which)
        try:
            huggingface_hub.get_hf_file_metadata(url, token=options.get("token"), timeout=10)
        except HfHubHTTPError:
            pass  # the Hub's answer, which the download reports again
        except Exception as error:  # from whichever HTTP client huggingface_hub uses
            raise FileNotFoundError(f"{name} is not a folder here, and {url} cannot be reached ({error})") from error
    try:
        return Path(huggingface_hub.hf_hub_download(name, FILE, **options))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        asked = "the cache of the Hugging Face Hub" if here else "the Hugging Face Hub"
        raise FileNotFoundError(f"{name} is not a folder here, and {asked} has no such model") from error
