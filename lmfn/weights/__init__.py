"""The weights that come with the package: `lmfn.safetensors` (float16), SHA256SUMS, and their card, README.md.

`python -m lmfn.card` measures a run and writes all three.
"""

import hashlib
from pathlib import Path

FILE = Path(__file__).with_name("lmfn.safetensors")


def shipped() -> Path:
    """The file of the weights. Raises ValueError where it is missing or is not what SHA256SUMS says."""
    expected, name = FILE.with_name("SHA256SUMS").read_text(encoding="ascii").split()
    if not FILE.is_file() or name != FILE.name or sha256(FILE) != expected:
        raise ValueError(f"{FILE} is missing or damaged; install lmfn-deblur anew, or name other weights")
    return FILE


def sha256(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    return hashlib.sha256(file.read_bytes()).hexdigest()
