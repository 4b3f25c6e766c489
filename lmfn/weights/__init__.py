"""The included weights: NAME.safetensors (float16), the model card NAME.md, and SHA256SUMS of all.

`experiments/weights/card.py` measures a run and writes them.
"""

import hashlib
from pathlib import Path
from typing import Literal, get_args

Name = Literal["lmfn", "lmfn-released"]
NAMES: tuple[Name, ...] = get_args(Name)
FOLDER = Path(__file__).parent


def shipped_weights(name: str) -> Path:
    """The file of the weights with that name, one of `NAMES`.

    Raises ValueError if it is missing or does not match SHA256SUMS.
    """
    file = FOLDER / f"{name}.safetensors"
    if not file.is_file() or checksums(FOLDER).get(file.name) != sha256(file):
        raise ValueError(f"{file} is missing or damaged; reinstall lmfn-deblur, or name other weights")
    return file


def checksums(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file that the folder's SHA256SUMS lists, by name; empty without such a list."""
    file = folder / "SHA256SUMS"
    lines = file.read_text(encoding="ascii").splitlines() if file.is_file() else []
    return {name: digest for digest, name in map(str.split, lines)}


def sha256(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    return hashlib.sha256(file.read_bytes()).hexdigest()
