"""Evaluate a network on a set of pairs: PSNR and SSIM by a named protocol, those of the blurred input, and time.

pairs = find_pairs("GoPro", split="test")
evaluation = evaluate(LMFN.from_pretrained("runs/first"), pairs, protocol="gopro", device="cuda", out=Path("results"))
print(evaluation.table())
"""

import contextlib
import datetime
import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

# If imported while a process group exists (by DistributedDataParallel), the default arguments of its functions keep
# that group and gloo's threads alive, which may abort the interpreter's exit ("terminate called without an active
# exception").
import torch.distributed.nn  # noqa: F401
from torch import Tensor, nn
from tqdm import tqdm

from lmfn.cuda_graphs import ImageFunction
from lmfn.data.layouts import Pair, PairSet
from lmfn.data.packed import is_pack, read_rgb, read_size
from lmfn.device import DTYPES, autocast, check_precision, device_name
from lmfn.evaluation import report
from lmfn.evaluation.complexity import measure_complexity
from lmfn.evaluation.metrics import SMALLEST
from lmfn.evaluation.pictures import pixels
from lmfn.evaluation.protocols import PROTOCOLS
from lmfn.evaluation.results import Evaluation, ImageResult, Journal
from lmfn.extras import require
from lmfn.inference import for_inference, with_border
from lmfn.network.fingerprint import fingerprint
from lmfn.network.model import Network
from lmfn.options import InferencePrecision


class Evaluator:
    """Measures one network after the other on the same pairs.

    The first call reads the images and measures the blurred inputs; later calls reuse these metrics and, with `keep`,
    the decoded images (6 bytes of host memory per pixel of a pair).

    `protocol` is a name in `protocols.PROTOCOLS`; `metrics` are those of its metrics to measure (default: all except
    those that have to be requested). The network runs on `device`, on up to `batch` images of one size at a time; the
    other images of a batch affect a result by rounding only. A `Network` runs as in `Deblurrer`, any other module as it
    is, under autocast unless `precision` is `fp32`.

    Raises ValueError, before any image is decoded, for an empty set, an unknown protocol, metric or precision, a
    missing package, a batch below 1, pairs whose images differ in size or are too small, pairs that do not fit the
    protocol, and for fp16 on a CPU.
    """

    def __init__(
        self,
        pairs: PairSet,
        *,
        protocol: str,
        device: torch.device | str,
        precision: InferencePrecision = "fp32",
        metrics: Sequence[str] | None = None,
        batch: int = 1,
        keep: bool = False,
        progress: bool = True,
    ) -> None:
        if protocol not in PROTOCOLS:
            raise ValueError(f"unknown protocol {protocol!r}; there are {', '.join(PROTOCOLS)}")
        self.device = torch.device(device)
        check_precision(self.device, precision)
        self.measured_on = torch.device("cpu") if self.device.type == "mps" else self.device  # mps has no float64
        self.rules = PROTOCOLS[protocol]
        self.metrics = self.rules.metrics if metrics is None else tuple(metrics)
        known = (*self.rules.metrics, *self.rules.more)
        if not self.metrics:
            raise ValueError(f"no metric is named; protocol {protocol} measures {', '.join(known)}")
        for metric in self.metrics:
            if metric not in known:
                raise ValueError(f"protocol {protocol} does not measure {metric!r}; it measures {', '.join(known)}")
        if self.rules.needs:
            require(self.rules.needs, f"protocol {protocol}", "eval")
        if "lpips" in self.metrics:
            require("lpips", "the metric lpips", "lpips")
        if batch < 1:
            raise ValueError(f"batch is {batch}; it must be at least 1")
        self.pairs, self.protocol, self.precision, self.batch = pairs, protocol, precision, batch
        self.keep, self.progress = keep, progress
        self._images: dict[Path, Tensor] = {}
        self._blurred: dict[Pair, dict[str, float]] = {}
        if not len(pairs):
            raise ValueError(f"{pairs.root} contains no pairs; there is nothing to evaluate")
        self._sizes = {pair: self._checked_size(pair) for pair in pairs}

    def __call__(
        self,
        model: nn.Module,
        weights: str = "not named",
        *,
        out: Path | None = None,
        process: int = 0,
        processes: int = 1,
    ) -> Evaluation:
        """Measure a network from `[B, 3, H, W]` to `[B, 3, H, W]` in [0, 1]. It is moved to the device; its mode
        (training or evaluation) is restored afterwards. `weights` names its weights in the report.

        With a folder `out`, the row of every image is stored there as soon as it is known (`Journal`), and stored rows
        are not measured again. In a torch.distributed group each process measures its share, and all return the
        complete result.

        Raises FloatingPointError, naming the image, if an output is not finite; ArithmeticError if the protocol cannot
        measure it; ValueError if `out` contains another evaluation.
        """
        training = model.training
        model.to(self.device).eval()
        config = getattr(model, "config", None)
        facts: dict[str, Any] = {
            "protocol": self.protocol,
            "metrics": self.metrics,
            "layout": self.pairs.layout,
            "data": self.pairs.root.resolve().name,
            "split": self.pairs.split,
            "sha256": fingerprint(model),
            "precision": self.precision,
        }
        try:
            complexity = measure_complexity(model)
            journal = None
            if out is not None:
                data = f"{facts['data']}, {self.digest()}"
                timed = {"batch": self.batch, "device": device_name(self.device)}  # rows have their times, too
                journal = Journal(out, facts | {"data": data} | timed, self.metrics)
            done = {} if journal is None else _continued(journal, process, processes)
            batches = self._batches([pair for pair in self.pairs if pair.name not in done])[process::processes]
            for row in self._rows(self._prepare(model), batches, progress=self.progress and process == 0):
                done[row.name] = row
                if journal is not None:
                    journal.add([row])
        finally:
            model.train(training)
        if processes > 1:
            shares: list[Any] = [None] * processes
            dist.all_gather_object(shares, done)
            for share in shares:
                done |= share
        return Evaluation(
            **facts,
            weights=weights,
            config=asdict(config) if is_dataclass(config) and not isinstance(config, type) else {},
            complexity=complexity,
            batch=self.batch,
            device=device_name(self.device),
            threads=torch.get_num_threads(),
            torch=torch.__version__,
            rows=tuple(done[pair.name] for pair in self.pairs),
        )

    def digest(self) -> str:
        """SHA-256 of the names of the pairs, and of the sizes of their images in pixels and bytes, which distinguishes
        data of the same name, wherever it is."""
        found = hashlib.sha256()
        for pair in self.pairs:
            files = (pair.blurred, *self._sharps(pair))
            stored = [file.parent if is_pack(file.parent) else file for file in files]
            found.update(repr((pair.name, self._sizes[pair], [file.stat().st_size for file in stored])).encode())
        return found.hexdigest()

    @torch.inference_mode()
    def show(self, model: nn.Module, pair: Pair) -> list[np.ndarray]:
        """Blurred, deblurred (by the last measured network) and sharp image, uint8 `[H, W, 3]`."""
        blurred, training = self._read(pair.blurred), model.training
        model.eval()
        output, _ = self._forward(self._run, blurred)
        model.train(training)
        return [pixels(image[0]) for image in (blurred, output, self._read(pair.sharp))]

    def _checked_size(self, pair: Pair) -> tuple[int, int]:
        """Height and width of a pair's images, from their headers. Raises ValueError if they cannot be measured."""
        if self.rules.frames and not pair.frames:
            raise ValueError(
                f"protocol {self.protocol} is for Koehler's set, and {self.pairs.root} is {self.pairs.layout}; "
                "use plain"
            )
        size = read_size(pair.blurred)
        for sharp in self._sharps(pair):
            other = read_size(sharp)
            if size != other:
                raise ValueError(
                    f"{pair.blurred} is {size[1]}x{size[0]} but {sharp} is {other[1]}x{other[0]}; "
                    "the images of a pair must have the same size"
                )
        smallest = max(SMALLEST.get(metric, 1) for metric in self.metrics)
        if min(size) < smallest:
            raise ValueError(
                f"{pair.blurred} is {size[1]}x{size[0]}; {', '.join(self.metrics)} need at least {smallest}x{smallest}"
            )
        return size

    def _sharps(self, pair: Pair) -> tuple[Path, ...]:
        return pair.frames if self.rules.frames else (pair.sharp,)

    def _prepare(self, model: nn.Module) -> ImageFunction:
        """The network as a function of images."""

        def as_it_is(blurred: Tensor) -> Tensor:
            if self.precision == "fp8":
                raise ValueError(f"precision fp8 is for networks of this package, not for {type(model).__name__}")
            with autocast(self.device, self.precision):
                output: Tensor = model(blurred)
            return output

        if isinstance(model, Network):
            self._run = with_border(for_inference(model, self.device, DTYPES[self.precision]))
        else:
            self._run = as_it_is
        return self._run

    def _batches(self, pairs: Sequence[Pair]) -> list[list[Pair]]:
        """Batches of up to `batch` pairs of one size, in order."""
        by_size: dict[tuple[int, int], list[Pair]] = {}
        for pair in pairs:
            by_size.setdefault(self._sizes[pair], []).append(pair)
        return [same[n : n + self.batch] for same in by_size.values() for n in range(0, len(same), self.batch)]

    @torch.inference_mode()
    def _rows(self, run: ImageFunction, batches: Sequence[Sequence[Pair]], progress: bool) -> Iterator[ImageResult]:
        warm = False
        with tqdm(total=sum(map(len, batches)), desc="evaluate", unit="image", disable=not progress) as bar:
            for batch in batches:
                blurred = torch.cat([self._read(pair.blurred) for pair in batch])
                if not warm:
                    # The first pass also loads, plans and compiles; on CUDA the second is captured as a graph.
                    for _ in range(2 if self.device.type == "cuda" else 1):
                        self._forward(run, blurred)
                    warm = True
                outputs, seconds = self._forward(run, blurred)
                for n, pair in enumerate(batch):
                    if pair not in self._blurred:
                        self._blurred[pair] = self._measure(blurred[n : n + 1], pair, "blurred input")
                    output = outputs[n : n + 1]
                    if not output.isfinite().all():
                        raise FloatingPointError(
                            f"the network's output for {pair.name} ({pair.blurred}) is not finite at precision "
                            f"{self.precision}; try fp32; if that does not help, the weights are broken"
                        )
                    deblurred = self._measure(output, pair, "network's output")
                    yield ImageResult(
                        pair.name, *self._sizes[pair], self._blurred[pair], deblurred, seconds / len(batch)
                    )
                    bar.update()

    def _read(self, path: Path) -> Tensor:
        """Float64 `[1, 3, H, W]`, so that the 256 levels are exact; channels-last, as in files and faster for
        convolutions."""
        decoded = self._images.get(path)
        if decoded is None:
            decoded = torch.from_numpy(read_rgb(path))
            if not self.keep:
                self._images.clear()  # only the last is cached: a sharp image is requested twice in a row
            self._images[path] = decoded
        return decoded.to(self.measured_on)[None].permute(0, 3, 1, 2).double() / 255

    def _forward(self, run: ImageFunction, blurred: Tensor) -> tuple[Tensor, float]:
        """The output in float64, and the seconds between two synchronisations of the device."""
        x = blurred.float().to(self.device)
        self._synchronise()
        start = time.perf_counter()
        output = run(x)
        self._synchronise()
        seconds = time.perf_counter() - start
        return output.to(self.measured_on).double(), seconds

    def _synchronise(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def _measure(self, image: Tensor, pair: Pair, what: str) -> dict[str, float]:
        try:
            return self.rules.measure(image, map(self._read, self._sharps(pair)), self.metrics)
        except ArithmeticError as error:
            raise ArithmeticError(f"protocol {self.protocol}, the {what} for {pair.blurred}: {error}") from error


def evaluate(
    model: nn.Module,
    pairs: PairSet,
    *,
    protocol: str,
    device: torch.device | str,
    precision: InferencePrecision = "fp32",
    metrics: Sequence[str] | None = None,
    batch: int = 1,
    weights: str = "not named",
    out: Path | None = None,
    worst: int = 4,
    progress: bool = True,
) -> Evaluation:
    """Measure one network with an `Evaluator`, which documents the arguments and errors; with torchrun, the images are
    distributed over its processes.

    A folder `out` receives `images.csv` and `settings.json` (from which an interrupted run resumes), `summary.json`,
    and the `report.html` and strips of `report.write`, with the `worst` images (and as many best).
    """
    if worst < 0:
        raise ValueError(f"worst is {worst}; it must not be negative")
    evaluator = Evaluator(
        pairs, protocol=protocol, device=device, precision=precision, metrics=metrics, batch=batch, progress=progress
    )
    with process_group() as (process, processes):
        evaluation = evaluator(model, weights, out=out, process=process, processes=processes)
        if out is not None and process == 0:
            evaluation.write(out / "summary.json")
            report.write(out, evaluation, pairs, lambda pair: evaluator.show(model, pair), worst)
        _wait(processes)
    return evaluation


@contextlib.contextmanager
def process_group() -> Iterator[tuple[int, int]]:
    """The rank of this process and the number of processes that torchrun started, or 0 and 1."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield 0, 1
        return
    # Only rows are exchanged, nothing on the device; the first process to finish may wait for long.
    dist.init_process_group("gloo", timeout=datetime.timedelta(days=1))
    try:
        yield dist.get_rank(), dist.get_world_size()
    finally:
        dist.destroy_process_group()


def _continued(journal: Journal, process: int, processes: int) -> dict[str, ImageResult]:
    """The rows that an earlier evaluation left in the journal, the same in all processes."""
    if process == 0:
        journal.begin()
    _wait(processes)
    done = journal.rows()
    _wait(processes)  # all processes have read before one writes
    return done


def _wait(processes: int) -> None:
    if processes > 1:
        dist.barrier()
