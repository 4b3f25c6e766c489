"""LMFN sharpens photographs blurred by motion.

    from lmfn import LMFN, Deblurrer

`LMFN` and its parts (`MSHF`, `RFDB`, `ESA`, `ALFM`, `ACFM`) are torch modules; `Deblurrer` turns arrays and files.
"""

from lmfn.model import ACFM, ALFM, ESA, LMFN, MSHF, RFDB, LMFNConfig

__all__ = ["ACFM", "ALFM", "ESA", "LMFN", "MSHF", "RFDB", "LMFNConfig"]
