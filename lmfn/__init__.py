"""LMFN sharpens photographs blurred by motion.

    from lmfn import LMFN, Deblurrer

`LMFN` and its parts (`MSHF`, `RFDB`, `ESA`, `ALFM`, `ACFM`) are torch modules; `Deblurrer` sharpens arrays, and
`images` reads and writes the files that they come from. Each is imported at its first use: PyTorch takes seconds.
"""

from typing import TYPE_CHECKING

from lmfn.lazy import loader

if TYPE_CHECKING:
    from lmfn import images
    from lmfn.deblur import Deblurrer
    from lmfn.network import ACFM, ALFM, ESA, LMFN, MSHF, RFDB, LMFNConfig

__version__ = "0.1.0"
__all__ = ["ACFM", "ALFM", "ESA", "LMFN", "MSHF", "RFDB", "Deblurrer", "LMFNConfig", "images"]

__getattr__, __dir__ = loader(__name__, dict.fromkeys(__all__, "network") | {"Deblurrer": "deblur", "images": "images"})
