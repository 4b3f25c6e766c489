"""The folder layouts of deblurring data sets, recognised by themselves."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Pair:
    """A blurred photograph and the sharp one of the same moment."""

    name: str
    """Unique in its set, e.g. `GOPR0384_11_00/000001`."""
    blurred: Path
    sharp: Path
