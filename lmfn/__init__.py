"""LMFN sharpens photographs blurred by motion.

    from lmfn import LMFN, Deblurrer

`LMFN` and its parts (`MSHF`, `RFDB`, `ESA`, `ALFM`, `ACFM`) are torch modules; `Deblurrer` sharpens arrays, and
`images` reads and writes the files that they come from.
"""

from lmfn import images
from lmfn.config import LMFNConfig
from lmfn.deblur import Deblurrer
from lmfn.model import ACFM, ALFM, ESA, LMFN, MSHF, RFDB

__all__ = ["ACFM", "ALFM", "ESA", "LMFN", "MSHF", "RFDB", "Deblurrer", "LMFNConfig", "images"]
