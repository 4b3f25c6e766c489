"""LMFN sharpens photographs blurred by motion.

    from lmfn import LMFN, Deblurrer

`LMFN` and its parts (`MSHF`, `RFDB`, `ESA`, `ALFM`, `ACFM`) are torch modules; `Deblurrer` sharpens arrays, and
`images` reads and writes the files that they come from. Each is imported at its first use: PyTorch takes seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmfn import images
    from lmfn.config import LMFNConfig
    from lmfn.deblur import Deblurrer
    from lmfn.model import ACFM, ALFM, ESA, LMFN, MSHF, RFDB

__version__ = "0.1.0"
__all__ = ["ACFM", "ALFM", "ESA", "LMFN", "MSHF", "RFDB", "Deblurrer", "LMFNConfig", "images"]

_MODULES = {"Deblurrer": "lmfn.deblur", "LMFNConfig": "lmfn.config", "images": "lmfn.images"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(_MODULES.get(name, "lmfn.model"))
    globals()[name] = module if name == "images" else getattr(module, name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
