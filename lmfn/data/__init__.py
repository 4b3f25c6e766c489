"""Data to train and to measure on: layouts of data sets, blur synthesis, training patches, checks."""

from lmfn.data.check import CheckReport, check
from lmfn.data.generate import SynthReport, synth
from lmfn.data.layouts import DataError, Pair, PairSet, UnknownLayoutError, find_pairs
from lmfn.data.prepare import PrepareReport, prepare
from lmfn.data.sampling import Source, TrainingSet
from lmfn.options import BlurKinds, BlurOptions

__all__ = [
    "BlurKinds",
    "BlurOptions",
    "CheckReport",
    "DataError",
    "Pair",
    "PairSet",
    "PrepareReport",
    "Source",
    "SynthReport",
    "TrainingSet",
    "UnknownLayoutError",
    "check",
    "find_pairs",
    "prepare",
    "synth",
]
