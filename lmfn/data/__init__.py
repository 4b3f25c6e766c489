"""Data for training and evaluation: layouts of data sets, blur synthesis, training patches, checks.

Modules that read files are loaded on first use: blur synthesis and the rendering of patches need only PyTorch and
NumPy.
"""

from typing import TYPE_CHECKING

from lmfn.lazy import loader
from lmfn.options import BlurKinds, BlurOptions

if TYPE_CHECKING:
    from lmfn.data.checks import CheckReport, check
    from lmfn.data.downloads import PrepareReport, prepare
    from lmfn.data.generate import SynthReport, synth
    from lmfn.data.layouts import DataError, Pair, PairSet, UnknownLayoutError, find_pairs
    from lmfn.data.packing import PackReport, pack
    from lmfn.data.sampling import Source, TrainingSet
    from lmfn.data.windows import cut

__all__ = [
    "BlurKinds",
    "BlurOptions",
    "CheckReport",
    "DataError",
    "PackReport",
    "Pair",
    "PairSet",
    "PrepareReport",
    "Source",
    "SynthReport",
    "TrainingSet",
    "UnknownLayoutError",
    "check",
    "cut",
    "find_pairs",
    "pack",
    "prepare",
    "synth",
]

__getattr__, __dir__ = loader(
    __name__,
    dict.fromkeys(("CheckReport", "check"), "checks")
    | dict.fromkeys(("PrepareReport", "prepare"), "downloads")
    | dict.fromkeys(("SynthReport", "synth"), "generate")
    | dict.fromkeys(("DataError", "Pair", "PairSet", "UnknownLayoutError", "find_pairs"), "layouts")
    | dict.fromkeys(("Source", "TrainingSet"), "sampling")
    | dict.fromkeys(("PackReport", "pack"), "packing")
    | {"cut": "windows"},
)
