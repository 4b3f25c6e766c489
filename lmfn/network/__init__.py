"""The network: its config, its parts, and the whole, which need PyTorch and `lmfn_kernels` alone.

`LMFN`, the network that reads and writes files, is loaded on first use: it needs safetensors and huggingface_hub.
"""

from typing import TYPE_CHECKING

from lmfn.lazy import loader
from lmfn.network.blocks import ACFM, ALFM, ESA, MSHF, RFDB
from lmfn.network.config import LMFNConfig, preset
from lmfn.network.model import Network

if TYPE_CHECKING:
    from lmfn.network.pretrained import LMFN

__all__ = ["ACFM", "ALFM", "ESA", "LMFN", "MSHF", "RFDB", "LMFNConfig", "Network", "preset"]

__getattr__, __dir__ = loader(__name__, {"LMFN": "pretrained"})
