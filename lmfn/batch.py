"""`Deblur`: a class that schedulers (Ray, Spark, Dask) call with lists of paths of image files.

It takes paths and returns rows; pixels are never transferred. Results are written atomically, and existing ones are
left unchanged, so processing a list twice does no harm. A file at which a process has died is processed alone, and
given up after two deaths (`lmfn.claims`), since schedulers would retry it for ever.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmfn.deblur import Deblurrer
from lmfn.files import check_suffix, checked_extension, checked_target
from lmfn.images import ImageError
from lmfn.jobs import Outcome, run_jobs
from lmfn.options import Frames, Guard, InferencePrecision


class Deblur:
    """Sharpens the image files of a list; the network is loaded once, on creation or unpickling.

    The result of `root/trip/a.jpg` is `out/trip/a.jpg`; without `out` it is next to the image, with `suffix` appended
    to its name. The other arguments are those of `Deblurrer` and `deblur_files`. Instances can be pickled, by their
    arguments. Raises as `Deblurrer`, and ValueError for a `root` without `out`, and for a suffix or an extension that
    files cannot have.
    """

    def __init__(
        self,
        out: str | Path | None = None,
        root: str | Path | None = None,
        *,
        weights: str = "lmfn",
        device: str | None = None,
        precision: InferencePrecision = "fp32",
        guard: Guard = "warn",
        strength: float = 1.0,
        suffix: str = "_deblurred",
        extension: str | None = None,
        overwrite: bool = False,
        frames: Frames | None = None,
    ) -> None:
        self._arguments = {name: value for name, value in locals().items() if name != "self"}
        if root is not None and out is None:
            raise ValueError("root is the folder whose tree is kept below out; out is missing")
        self._out = None if out is None else Path(out)
        self._root = None if root is None else Path(root)
        check_suffix(suffix)
        self._suffix, self._extension = suffix, checked_extension(extension)
        self._frames, self._overwrite = frames, overwrite
        self._deblurrer = Deblurrer(weights, device=device, precision=precision, guard=guard, strength=strength)

    def __call__(self, batch: Mapping[str, Sequence[str]]) -> dict[str, list[Any]]:
        """From a batch with the column `path` to one with a row per file: `path`, `output`, `status` (done, there or
        failed), `reason` (of a failure), `seconds`. Errors of files are never raised."""
        paths = [Path(str(path)) for path in batch["path"]]
        outcomes: dict[Path, Outcome] = {}
        jobs = []
        for path in dict.fromkeys(paths):
            try:
                target = checked_target(path, self._root, self._out, self._suffix, self._extension)
            except ImageError as error:
                outcomes[path] = Outcome(path, Path(), "failed", str(error))
            else:
                jobs.append((path, target))
        for outcome in run_jobs(jobs, self._deblurrer, self._frames, overwrite=self._overwrite):
            outcomes[outcome.source] = outcome
        rows = [outcomes[path] for path in paths]
        return {
            "path": [str(path) for path in batch["path"]],
            "output": ["" if row.target == Path() else str(row.target) for row in rows],
            "status": [row.status for row in rows],
            "reason": [row.reason for row in rows],
            "seconds": [row.seconds for row in rows],
        }

    def __getstate__(self) -> dict[str, Any]:
        return self._arguments

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]
