"""What a network does for a set of pairs: PSNR and SSIM by a named protocol, those of the blurred input, and time.

pairs = find_pairs("GoPro", split="test")
evaluation = evaluate(LMFN.from_pretrained("runs/first"), pairs, protocol="gopro", device="cuda")
print(evaluation.table())
evaluation.write(Path("gopro.json"))
"""

import json
import math
import platform
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import lmfn_kernels
from lmfn import checkpoint, images
from lmfn.data.layouts import Pair, PairSet
from lmfn.device import Precision, autocast, check_precision
from lmfn.metrics import METRICS, PROTOCOLS, WINDOW

LABELS = {"psnr": ("PSNR (dB)", 2), "ssim_gauss2d": ("SSIM gauss2d", 4), "ssim_matlab3d": ("SSIM matlab3d", 4)}
"""How a metric is called in a table, and with how many decimals."""


@dataclass(frozen=True)
class Row:
    """One image of an evaluation."""

    name: str
    height: int
    width: int
    blurred: dict[str, float]
    """The metrics of the blurred input itself."""
    deblurred: dict[str, float]
    """The metrics of the network's output."""
    seconds: float
    """Time of the forward pass alone."""


@dataclass(frozen=True)
class Evaluation:
    """Numbers with all that they depend on."""

    protocol: str
    metrics: tuple[str, ...]
    layout: str
    """The layout that the data set was recognised by; of GoPro, with the folder of blurred images, e.g. `GoPro (blur)`,
    `GoPro (blur_gamma)`."""
    data: str
    """Name of the data set's folder."""
    split: str | None
    weights: str
    config: dict[str, Any]
    """The network's `LMFNConfig`; empty for a network that has none."""
    parameters: int
    gmacs: dict[str, float]
    """1e9 multiply-adds of the convolutions and matrix products for one image of that size (`1280x720`, `256x256`)."""
    precision: str
    device: str
    threads: int
    torch: str
    rows: tuple[Row, ...]

    @property
    def blurred(self) -> dict[str, float]:
        """Means over the set of the blurred inputs' metrics; infinite where an image's is."""
        return {metric: statistics.fmean(row.blurred[metric] for row in self.rows) for metric in self.metrics}

    @property
    def deblurred(self) -> dict[str, float]:
        """Means over the set of the outputs' metrics; infinite where an image's is."""
        return {metric: statistics.fmean(row.deblurred[metric] for row in self.rows) for metric in self.metrics}

    @property
    def size(self) -> tuple[int, int]:
        """Height and width that most images have."""
        return Counter((row.height, row.width) for row in self.rows).most_common(1)[0][0]

    @property
    def seconds(self) -> float:
        """Median time of a forward pass over the images of the most common size."""
        return statistics.median(row.seconds for row in self.rows if (row.height, row.width) == self.size)

    def table(self) -> str:
        """The means and what they depend on, as text of a dozen lines."""
        lines = [f"{'':<15}{'blurred':>10}{'deblurred':>12}{'gain':>10}"]
        before, after = self.blurred, self.deblurred
        for metric in self.metrics:
            label, digits = LABELS[metric]
            a, b = before[metric], after[metric]
            gain = 0.0 if a == b else b - a  # the difference of two infinite means is not a number
            lines.append(f"{label:<15}{a:>10.{digits}f}{b:>12.{digits}f}{gain:>+10.{digits}f}")
        height, width = self.size
        work = ", ".join(f"{gmacs:.2f} at {size}" for size, gmacs in self.gmacs.items())
        split = f", {self.split}" if self.split else ""
        facts = {
            "protocol": f"{self.protocol}: {PROTOCOLS[self.protocol].description}",
            "data": f"{self.data}{split}, layout {self.layout}, {len(self.rows)} pairs",
            "weights": self.weights,
            "parameters": f"{self.parameters:,}",
            "GMACs": work,
            "time": f"{self.seconds * 1e3:.1f} ms, the median at {width}x{height}, {self.precision}",
            "device": f"{self.device}, {self.threads} CPU threads, torch {self.torch}",
        }
        return "\n".join([*lines, "", *(f"{name:<15}{text}" for name, text in facts.items())])

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON knows it. An infinite PSNR, which JSON does not know, is the string "inf": Python's
        `float` reads both."""
        height, width = self.size
        means = {"blurred": self.blurred, "deblurred": self.deblurred}
        timing = {"seconds": self.seconds, "size": f"{width}x{height}"}
        content = asdict(self)
        rows = content.pop("rows")
        return cast(dict[str, Any], _json(content | {"pairs": len(rows), "means": means, "time": timing, "rows": rows}))

    def write(self, path: Path) -> None:
        """Replace `path` by `to_dict` as a JSON file."""
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False, ensure_ascii=False)
        checkpoint.replace_file(path, (text + "\n").encode())


def _json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    return "inf" if value == math.inf else value


class Evaluator:
    """Measures one network after the other on the same pairs.

    Images are read, and the blurred inputs measured, in the first call; later calls use these metrics again and, with
    `keep`, the decoded images too (6 bytes a pixel of a pair in the host's memory).

    `protocol` is a name in `metrics.PROTOCOLS`; `metrics` are those of it to measure (default: all). The network runs
    on `device`, one image at a time, by autocast where `precision` is not `fp32`.

    Raises ValueError, before any image is read, for an empty set, an unknown protocol, metric or precision, for pairs
    whose images differ in size or are too small to be measured, and for fp16 on a CPU.
    """

    def __init__(
        self,
        pairs: PairSet,
        *,
        protocol: str,
        device: torch.device | str,
        precision: Precision = "fp32",
        metrics: Sequence[str] | None = None,
        keep: bool = False,
        progress: bool = True,
    ) -> None:
        if protocol not in PROTOCOLS:
            raise ValueError(f"unknown protocol {protocol!r}; there are {', '.join(PROTOCOLS)}")
        self.device = torch.device(device)
        check_precision(self.device, precision)
        self.measured_on = torch.device("cpu") if self.device.type == "mps" else self.device  # mps has no float64
        self.prepare, known = PROTOCOLS[protocol].prepare, PROTOCOLS[protocol].metrics
        self.metrics = known if metrics is None else tuple(metrics)
        for metric in self.metrics:
            if metric not in known:
                raise ValueError(f"protocol {protocol} does not measure {metric!r}; it measures {', '.join(known)}")
        self.pairs, self.protocol, self.precision = pairs, protocol, precision
        self.keep, self.progress = keep, progress
        self._images: dict[Pair, tuple[Tensor, Tensor]] = {}
        self._blurred: dict[Pair, dict[str, float]] = {}
        if not len(pairs):
            raise ValueError(f"{pairs.root} holds no pairs; there is nothing to evaluate")
        smallest = len(WINDOW) if "ssim_gauss2d" in self.metrics else 1
        for pair in pairs:
            blurred, sharp = images.read_size(pair.blurred), images.read_size(pair.sharp)
            if blurred != sharp:
                raise ValueError(
                    f"{pair.blurred} is {blurred[1]}x{blurred[0]} but {pair.sharp} is {sharp[1]}x{sharp[0]}; "
                    "the images of a pair must have the same size"
                )
            if min(blurred) < smallest:
                raise ValueError(
                    f"{pair.blurred} is {blurred[1]}x{blurred[0]}; SSIM gauss2d needs at least {smallest}x{smallest}"
                )

    def __call__(self, model: nn.Module, weights: str = "not named") -> Evaluation:
        """Measure a network that takes and gives `[1, 3, H, W]` in [0, 1]. It is moved to the device, and is in the
        mode (training or evaluation) it was in afterwards. `weights` is what the report calls its weights.

        Raises FloatingPointError, naming the image, where an output is not finite.
        """
        training = model.training
        model.to(self.device).eval()
        try:
            gmacs = {f"{w}x{h}": count_gmacs(model, h, w) for h, w in ((720, 1280), (256, 256))}
            rows = tuple(self._rows(model))
        finally:
            model.train(training)
        config = getattr(model, "config", None)
        return Evaluation(
            protocol=self.protocol,
            metrics=self.metrics,
            layout=self.pairs.layout,
            data=self.pairs.root.resolve().name,
            split=self.pairs.split,
            weights=weights,
            config=asdict(config) if is_dataclass(config) and not isinstance(config, type) else {},
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            gmacs=gmacs,
            precision=self.precision,
            device=device_name(self.device),
            threads=torch.get_num_threads(),
            torch=torch.__version__,
            rows=rows,
        )

    @torch.inference_mode()
    def _rows(self, model: nn.Module) -> list[Row]:
        rows: list[Row] = []
        for pair in tqdm(self.pairs, desc="evaluate", unit="image", disable=not self.progress):
            blurred, sharp = self._read(pair)
            if pair not in self._blurred:
                self._blurred[pair] = self._measure(blurred, sharp)
            if not rows:
                self._forward(model, blurred)  # the first pass also loads, plans and compiles
            output, seconds = self._forward(model, blurred)
            if not output.isfinite().all():
                raise FloatingPointError(
                    f"the network's output for {pair.name} ({pair.blurred}) is not finite at precision "
                    f"{self.precision}; try fp32, and if it stays so, the weights are broken"
                )
            height, width = blurred.shape[2:]
            deblurred = self._measure(output, sharp)
            rows.append(Row(pair.name, height, width, self._blurred[pair], deblurred, seconds))
        return rows

    def _read(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """Blurred and sharp, float64 `[1, 3, H, W]`, so that the 256 levels are exact; in channels-last order as files
        are, which is also the faster one for convolutions."""
        decoded = self._images.get(pair)
        if decoded is None:
            decoded = torch.from_numpy(images.read_rgb(pair.blurred)), torch.from_numpy(images.read_rgb(pair.sharp))
            if self.keep:
                self._images[pair] = decoded
        blurred, sharp = (image.to(self.measured_on)[None].permute(0, 3, 1, 2).double() / 255 for image in decoded)
        return blurred, sharp

    def _forward(self, model: nn.Module, blurred: Tensor) -> tuple[Tensor, float]:
        """The output, float64, and the seconds from one idle moment of the device to the next."""
        x = blurred.float().to(self.device)
        with autocast(self.device, self.precision):
            self._synchronise()
            start = time.perf_counter()
            output = model(x)
            self._synchronise()
            seconds = time.perf_counter() - start
        return output.to(self.measured_on).double(), seconds

    def _synchronise(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def _measure(self, image: Tensor, sharp: Tensor) -> dict[str, float]:
        image = self.prepare(image)
        return {metric: METRICS[metric](image, sharp).item() for metric in self.metrics}


def evaluate(
    model: nn.Module,
    pairs: PairSet,
    *,
    protocol: str,
    device: torch.device | str,
    precision: Precision = "fp32",
    metrics: Sequence[str] | None = None,
    weights: str = "not named",
    progress: bool = True,
) -> Evaluation:
    """Measure one network once: an `Evaluator` made and called, which see for what is raised."""
    evaluator = Evaluator(
        pairs, protocol=protocol, device=device, precision=precision, metrics=metrics, progress=progress
    )
    return evaluator(model, weights)


def count_gmacs(model: nn.Module, height: int, width: int) -> float:
    """1e9 multiply-adds of the convolutions and matrix products in a forward pass over one image `[1, 3, H, W]`.

    Half of what torch's FlopCounterMode counts in the written formulas, whatever fused ops leave out of them;
    additions, activations and resampling are not. The pass runs on fake tensors: only shapes are computed.
    """
    device = next(model.parameters()).device
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    eager = torch.compiler.set_stance("force_eager")  # a compiled network is counted, not compiled again
    written = lmfn_kernels.backend("reference")
    with eager, fake, written, FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, height, width, device=device))
    return float(counter.get_total_flops() / 2e9)


def device_name(device: torch.device) -> str:
    """What the processor is sold as, e.g. `NVIDIA H200`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.is_file() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
