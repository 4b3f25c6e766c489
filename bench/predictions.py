"""What is expected of a GPU and has not been measured: the rows of `experiments/kernels/predictions.tsv`."""

import csv
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from lmfn_kernels.runtime.trials import ON_TRIAL, in_use

FILE = Path(__file__).parents[1] / "experiments" / "kernels" / "predictions.tsv"
FACTOR = 1.25
"""A prediction holds if neither it nor what is measured is larger than the other by more than this factor."""


class Prediction(NamedTuple):
    """A row of the file. Times are microseconds of all launches together."""

    gpu: str
    """As PyTorch names it."""
    of: str
    """What a verb measures, as it prints it, with network and dtype."""
    part: str
    """For `profile`, kernels and their shapes as it prints them, with `*` for any text; elsewhere what is timed."""
    before: float | None
    """Measured at `commit`; None if it did not exist or was not measured alone."""
    us: float
    commit: str
    """What the prediction starts from: the commit whose kernels were measured or counted."""
    section: str
    """The heading about it in one of the pages of `experiments/kernels`, as in a link."""
    why: str

    def covers(self, part: str) -> bool:
        return fnmatchcase(part, self.part)

    def holds(self, us: float) -> bool:
        return self.us / FACTOR <= us <= self.us * FACTOR

    def beside(self, us: float) -> str:
        """What to print beside what was measured."""
        return f"predicted {self.us:g} us, which {'held' if self.holds(us) else 'did not hold'}{without()}"


def without() -> str:
    """What is on trial and not used, although predictions count it as used; `newer_triton` changes no time."""
    counted = [name for name in ON_TRIAL if name != "newer_triton"]
    unused = [name for name in counted if not in_use(name)]
    return f" without {'what is on trial' if unused == counted else ', '.join(unused)}" if unused else ""


def predictions(gpu: str, of: str) -> list[Prediction]:
    return [one for one in read(FILE) if (one.gpu, one.of) == (gpu, of)]


def prediction(gpu: str, of: str, part: str) -> Prediction | None:
    return next((one for one in predictions(gpu, of) if one.covers(part)), None)


def read(path: Path) -> list[Prediction]:
    """All predictions of a file. Raises ValueError, naming file and line, for a row that is not one."""
    with path.open(encoding="utf-8", newline="") as file:
        heads, *rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    if tuple(heads) != Prediction._fields:
        raise ValueError(f"{path}, line 1: the columns must be {', '.join(Prediction._fields)}")
    return [_parsed(row, f"{path}, line {number}") for number, row in enumerate(rows, 2)]


def _parsed(row: list[str], where: str) -> Prediction:
    try:
        gpu, of, part, before, us, commit, section, why = row
        made = Prediction(gpu, of, part, float(before) if before else None, float(us), commit, section, why)
    except ValueError as error:
        raise ValueError(f"{where}: {error}; columns are separated by tabs, before and us are microseconds") from error
    if "" in made:
        raise ValueError(f"{where}: only before may be empty")
    return made
