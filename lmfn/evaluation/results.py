"""The results of an evaluation, per image and in total, with everything they depend on: as a table, JSON or CSV."""

import csv
import io
import json
import math
import os
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from lmfn import atomic
from lmfn.cells import from_cell, to_cell
from lmfn.evaluation.protocols import PROTOCOLS

LABELS = {
    "psnr": ("PSNR (dB)", 2),
    "ssim_gauss2d": ("SSIM gauss2d", 4),
    "ssim_matlab3d": ("SSIM matlab3d", 4),
    "ms_ssim": ("MS-SSIM", 4),
    "lpips": ("LPIPS", 4),
}
"""The label of a metric in tables, and its number of decimals."""


@dataclass(frozen=True)
class Complexity:
    """The cost of a network."""

    parameters: int
    bytes: int
    """Bytes of the parameters in their dtype."""
    gmacs: dict[str, float]
    """1e9 multiply-adds of the convolutions and matrix products for one image of that size (`256x256`, `1280x720`,
    `1920x1200`)."""


@dataclass(frozen=True)
class ImageResult:
    """One image of an evaluation."""

    name: str
    height: int
    width: int
    blurred: dict[str, float]
    """The metrics of the blurred input."""
    deblurred: dict[str, float]
    """The metrics of the network's output."""
    seconds: float
    """Time of the forward pass; for a batch, the image's share."""


@dataclass(frozen=True)
class Evaluation:
    """Results with everything they depend on."""

    protocol: str
    metrics: tuple[str, ...]
    layout: str
    """The layout of the data set; for GoPro with the folder of blurred images: `GoPro (blur)`, `GoPro (blur_gamma)`."""
    data: str
    """Name of the data set's folder."""
    split: str | None
    weights: str
    sha256: str
    """SHA-256 of the weights' values, as from `fingerprint`."""
    config: dict[str, Any]
    """The network's `LMFNConfig`; empty for a network without one."""
    complexity: Complexity
    precision: str
    batch: int
    device: str
    threads: int
    torch: str
    rows: tuple[ImageResult, ...]

    @property
    def blurred(self) -> dict[str, float]:
        """Means of the metrics of the blurred inputs; infinite if one image's is."""
        return {metric: statistics.fmean(row.blurred[metric] for row in self.rows) for metric in self.metrics}

    @property
    def deblurred(self) -> dict[str, float]:
        """Means of the metrics of the outputs; infinite if one image's is."""
        return {metric: statistics.fmean(row.deblurred[metric] for row in self.rows) for metric in self.metrics}

    @property
    def size(self) -> tuple[int, int]:
        """The most common height and width."""
        return Counter((row.height, row.width) for row in self.rows).most_common(1)[0][0]

    @property
    def seconds(self) -> float:
        """Median time of a forward pass over the images of the most common size."""
        return statistics.median(row.seconds for row in self.rows if (row.height, row.width) == self.size)

    def facts(self) -> dict[str, str]:
        """What the results depend on, as text by name."""
        height, width = self.size
        split = f", {self.split}" if self.split else ""
        return {
            "protocol": f"{self.protocol}: {PROTOCOLS[self.protocol].description}",
            "data": f"{self.data}{split}, layout {self.layout}, {len(self.rows)} pairs",
            "weights": f"{self.weights} (parameters' sha256 {self.sha256[:12]})",
            "parameters": f"{self.complexity.parameters:,} ({self.complexity.bytes:,} bytes)",
            "GMACs": ", ".join(f"{gmacs:.2f} at {size}" for size, gmacs in self.complexity.gmacs.items()),
            "time": f"{self.seconds * 1e3:.1f} ms per image, median at {width}x{height}, {self.precision}, "
            f"batch {self.batch}",
            "device": f"{self.device}, {self.threads} CPU threads, torch {self.torch}",
        }

    def table(self) -> str:
        """The means and what they depend on, as about a dozen lines of text."""
        before, after = self.blurred, self.deblurred
        lines = [("", "blurred", "deblurred", "gain")]
        lines += [(LABELS[metric][0], *cells(metric, before[metric], after[metric])) for metric in self.metrics]
        means = [f"{name:<15}{a:>10}{b:>12}{gain:>10}" for name, a, b, gain in lines]
        return "\n".join([*means, "", *(f"{name:<15}{text}" for name, text in self.facts().items())])

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON values. An infinite PSNR, which JSON cannot represent, is the string "inf", which
        Python's `float` accepts."""
        height, width = self.size
        means = {"blurred": self.blurred, "deblurred": self.deblurred}
        timing = {"seconds": self.seconds, "size": f"{width}x{height}"}
        content = asdict(self)
        rows = content.pop("rows")
        return cast(dict[str, Any], _json(content | {"pairs": len(rows), "means": means, "time": timing, "rows": rows}))

    def write(self, path: Path) -> None:
        """Write `to_dict` as a JSON file, replacing `path`."""
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False, ensure_ascii=False)
        atomic.write(path, (text + "\n").encode())


def cells(metric: str, before: float, after: float) -> tuple[str, str, str]:
    """Blurred, deblurred and gain, with the metric's decimals; no gain between two infinite values."""
    digits = LABELS[metric][1]
    return f"{before:.{digits}f}", f"{after:.{digits}f}", f"{gain(before, after):+.{digits}f}"


def gain(before: float, after: float) -> float:
    """The difference; empty for two infinite values."""
    return 0.0 if before == after else after - before


def _json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    return "inf" if value == math.inf else value


class Journal:
    """`images.csv` in a folder: one line per image, appended as soon as it is measured, so that an interrupted
    evaluation can resume; and `settings.json`, which records what the lines were measured with.

    Raises ValueError if the folder contains another evaluation, or, naming file and line, a broken line.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], metrics: Sequence[str]) -> None:
        self.file, self.metrics = folder / "images.csv", metrics
        self.columns = ["name", "height", "width", "seconds"]
        self.columns += [f"{metric}_{of}" for metric in metrics for of in ("blurred", "deblurred")]
        self.settings = folder / "settings.json", json.dumps(settings, indent=2) + "\n"

    def begin(self) -> None:
        """Create the folder, or check that it belongs to this evaluation; drop an incomplete last line."""
        path, text = self.settings
        if self.file.exists():
            try:
                before = dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
            except (ValueError, TypeError, RecursionError) as error:
                raise ValueError(f"{path} is broken ({error}); remove it or name another folder") from error
            now = json.loads(text)
            if different := [name for name in now if before.get(name) != now[name]]:
                raise ValueError(
                    f"{path.parent} contains an evaluation with another {', '.join(different)}; name another folder"
                )
            whole, newline, _ = self.file.read_bytes().rpartition(b"\n")
            atomic.write(self.file, whole + newline)
        else:
            atomic.write(path, text.encode())
            self.add([])

    def rows(self) -> dict[str, ImageResult]:
        """Stored rows by name."""
        rows = {}
        with self.file.open(newline="", encoding="utf-8") as lines:
            table = csv.DictReader(lines, strict=True)
            try:
                for line in table:
                    blurred, deblurred = (
                        {metric: float(line[f"{metric}_{of}"]) for metric in self.metrics}
                        for of in ("blurred", "deblurred")
                    )
                    size = int(line["height"]), int(line["width"])
                    name = from_cell(line["name"])
                    rows[name] = ImageResult(name, *size, blurred, deblurred, float(line["seconds"]))
            except (KeyError, ValueError, TypeError, csv.Error) as error:
                raise ValueError(
                    f"{self.file}, line {table.line_num} is broken; remove it or name another folder"
                ) from error
        return rows

    def add(self, rows: Iterable[ImageResult]) -> None:
        """Append lines, each with one write, so that those of several processes do not mix."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            if not os.fstat(file).st_size:
                os.write(file, _csv(self.columns))
            for row in rows:
                values = [of[metric] for metric in self.metrics for of in (row.blurred, row.deblurred)]
                os.write(file, _csv([to_cell(row.name), row.height, row.width, row.seconds, *values]))
        finally:
            os.close(file)


def _csv(values: Sequence[Any]) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(values)  # so that it quotes both of these characters
    return (line.getvalue().removesuffix("\r\n") + "\n").encode()
