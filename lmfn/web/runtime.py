"""ONNX Runtime for browsers: downloaded once from the npm registry, verified, and cached in the user's cache folder.

It has 33 MB and only the page needs it, so the first `lmfn web` downloads it instead of the package including it.
"""

import base64
import hashlib
import io
import logging
import os
import tarfile
import urllib.request
from http.client import HTTPException
from pathlib import Path

from lmfn import atomic

log = logging.getLogger(__name__)

VERSION = "1.30.0"
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""As `npm view onnxruntime-web@VERSION dist.integrity` prints it."""
URL = f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
FILES = (
    "ort.webgpu.min.mjs",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)
"""The files the page loads from the archive's folder package/dist, both for WebGPU and for the processor."""
TIMEOUT = 60
"""Seconds without a byte after which a download has failed."""


def cache_folder() -> Path:
    """The user's cache folder: `$XDG_CACHE_HOME/lmfn`, or `~/.cache/lmfn`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lmfn"


def runtime_files() -> dict[str, bytes]:
    """`FILES` by name, from the archive, which is downloaded if it is not cached.

    Raises OSError if it cannot be downloaded or stored, ValueError if it is not the published one.
    """
    archive = cache_folder() / Path(URL).name
    if archive.is_file():
        data = archive.read_bytes()
        if not _is_genuine(data):
            raise ValueError(f"{archive} is damaged; remove it, and it will be downloaded again")
    else:
        data = _download(archive)
        if not _is_genuine(data):
            raise ValueError(f"what {URL} gave is not onnxruntime-web {VERSION} as it was published; nothing was kept")
        atomic.write(archive, data)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = {name: tar.extractfile(f"package/dist/{name}") for name in FILES}
        return {name: member.read() for name, member in members.items() if member is not None}


def _download(archive: Path) -> bytes:
    log.info("Downloading %s, this once", URL)
    try:
        with urllib.request.urlopen(URL, timeout=TIMEOUT) as response:
            data: bytes = response.read()
            return data
    except (OSError, HTTPException) as error:  # HTTPException: one that ends too early
        raise OSError(
            f"onnxruntime-web, which the page runs on, cannot be downloaded ({error}); where there is a network, "
            f"download {URL} and put it at {archive}"
        ) from error


def _is_genuine(data: bytes) -> bool:
    return "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode() == INTEGRITY
