"""What the loop in ../train.py needs: settings, schedule, losses, the run folder, and a state that resumes exactly."""

import argparse
import json
import logging
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
import tyro
import yaml
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Sampler
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from lmfn import checkpoint, images
from lmfn.config import LMFNConfig, preset
from lmfn.data import Pair, Source, TrainingSet
from lmfn.data.resident import Plans, ResidentSet
from lmfn.data.sampling import Kind
from lmfn.deblur import available_memory
from lmfn.evaluate import Evaluator
from lmfn.model import LMFN, Memory
from lmfn.options import BlurKinds, BlurOptions, Precision, Variant

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """Train LMFN. Example: python train.py --name first --pairs data/GoPro --val data/GoPro --steps 100000"""

    name: str = "lmfn"
    """Name of the run: everything is written to RUNS/NAME."""
    runs: Path = Path("runs")
    """Folder that holds the runs."""
    resume: Literal["never", "auto"] = "never"
    """auto: go on from the run's last state where there is one, with its settings; exact to the bit on a CPU."""

    pairs: tuple[str, ...] = ()
    """Data sets of blurred and sharp photographs: FOLDER, or BLURRED,SHARP for two folders; =WEIGHT may follow."""
    frames: tuple[str, ...] = ()
    """Folders of neighbouring sharp frames, or videos: their means are the blur. =WEIGHT may follow."""
    photos: tuple[str, ...] = ()
    """Folders of sharp photographs, each made into a kind of --blur.kinds. =WEIGHT may follow."""
    variant: Variant = "blur"
    """Which of GoPro's two kinds of blurred images, in pairs and in validation."""
    blur: BlurOptions = field(default_factory=BlurOptions)
    """How frames and photos are blurred."""
    val: Path | None = None
    """Pairs to validate on."""
    val_images: int | None = None
    """Validate on this many of them, spread evenly (default: all)."""

    preset: Literal["lmfn", "lmfn-released"] | None = None
    """The network (default: that of --from, or else lmfn)."""
    network: tuple[str, ...] = ()
    """Fields of LMFNConfig to change: --network skip=feature similarity=cosine rfdbs=3."""
    start_from: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Weights to begin with: what save_pretrained or an earlier run wrote. With --preset or --network, as far as they
    fit that network by name and shape; the rest begins anew."""

    loss: Literal["mse", "l1", "charbonnier", "psnr"] = "mse"
    fft: float = 0.0
    """Weight of an added L1 loss between the images' Fourier transforms."""
    lr: float = 1e-4
    """Adam's rate at the beginning of the cosine."""
    lr_end: float = 1e-7
    warmup: int = 0
    """Steps over which the rate grows from zero."""
    betas: tuple[float, float] = (0.9, 0.999)
    batch: int = 16
    """Patches in a step of one process."""
    accumulate: int = 1
    """Batches whose gradients make one step."""
    patch: int = 256
    clip: float | None = None
    """Largest norm of the gradient."""
    ema: float = 0.999
    """Decay of the averaged weights; it grows from 0.1 to this in the first steps."""
    steps: int | None = None
    """Length of the run (default 100,000 unless --minutes is given)."""
    minutes: float | None = None
    """Length of the run by the clock; the cosine follows the clock. Earlier parts of a resumed run count."""

    seed: int = 0
    precision: Precision = "fp32"
    device: Literal["auto", "cpu"] = "auto"
    compile: bool = False
    """torch.compile the network (a C++ compiler is needed on a CPU)."""
    graph: bool = False
    """A step's forward and backward pass as one CUDA graph (not for fp16, several processes, or --accumulate)."""
    memory: Memory = "normal"
    """lean: keep half as much for the backward pass, and compute more again; the results are the same."""
    data_on: Literal["auto", "device", "workers"] = "auto"
    """device: the decoded images stay on the device, and patches are made there; workers: processes make them. auto:
    device where the images fit into --data-share of its memory."""
    data_share: float = 0.5
    """Share of the device's free memory that the images may take."""
    workers: int = 2
    """Processes that prepare patches, a training process; 0: none. (With the data on a GPU they only draw what patches
    are made of; with the data on a CPU there are none.)"""
    cache_gib: float = 4.0
    """Decoded images kept in memory, GiB a worker that makes patches."""

    log_every: int = 20
    val_every: int = 1000
    save_every: int = 500

    def check(self) -> None:
        """Raise ValueError for settings that cannot be trained with."""
        if not (self.pairs or self.frames or self.photos):
            raise ValueError("nothing to train on: give at least one of --pairs, --frames, --photos")
        for name in ("batch", "accumulate", "patch", "log_every", "val_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("workers", "warmup", "fft", "lr_end", "cache_gib", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative")
        for name in ("steps", "minutes", "clip", "val_images", "lr"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be greater than 0")
        if not 0 < self.data_share <= 1:
            raise ValueError(f"data_share is {self.data_share}; it must be above 0 and at most 1")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema}; it must be at least 0 and below 1")
        if self.graph and (self.precision == "fp16" or self.accumulate > 1):
            raise ValueError("--graph is for --precision bf16 or fp32, and for --accumulate 1")
        if self.precision == "fp16" and (self.device == "cpu" or not torch.cuda.is_available()):
            raise ValueError("precision fp16 needs a GPU; on a CPU use bf16 or fp32")
        if self.name in ("", ".", "..") or "/" in self.name or "\\" in self.name:
            raise ValueError(f"name is {self.name!r}; it must be a plain folder name (its place is --runs)")
        self.config  # noqa: B018 (an unknown field of the network is an error now)
        self.sources  # noqa: B018

    @property
    def length(self) -> int | None:
        """Steps of the run; None where only the clock ends it."""
        return 100_000 if self.steps is None and self.minutes is None else self.steps

    @property
    def config(self) -> LMFNConfig:
        """The network that --preset and --network name."""
        return preset(self.preset or "lmfn", **self.changes)

    @property
    def changes(self) -> dict[str, Any]:
        """The fields of --network. Raises ValueError for a value that is no whole number where one is needed."""
        numbers = {f.name for f in fields(LMFNConfig) if f.type is int}
        changes: dict[str, Any] = {}
        for text in self.network:
            name, _, value = text.partition("=")
            if name in numbers and not value.isdecimal():
                raise ValueError(f"--network {text}: {name} must be a whole number")
            changes[name] = int(value) if name in numbers else value
        return changes

    @property
    def sources(self) -> list[Source]:
        kinds: tuple[Kind, ...] = ("pairs", "frames", "photos")
        return [self.source(kind, text) for kind in kinds for text in getattr(self, kind)]

    def source(self, kind: Kind, text: str) -> Source:
        """From PATH or, for pairs, BLURRED,SHARP; =WEIGHT may follow. What exists is a path as it stands."""
        weight: float = 1.0
        sharp: str | None = None
        if not Path(text).exists():
            path, equals, number = text.rpartition("=")
            if equals:
                try:
                    text, weight = path, float(number)
                except ValueError:
                    raise ValueError(f"--{kind} {text}: {number!r} is no weight, and there is no such folder") from None
            if kind == "pairs" and not Path(text).exists() and "," in text:
                text, _, sharp = text.partition(",")
        return Source(kind, text, weight, sharp, self.variant)

    @classmethod
    def parse(cls, arguments: list[str]) -> Self:
        """The settings that a command line asks for: its own, over the resumed run's or those of `--config FILE`.

        Raises ValueError or FileNotFoundError for a broken file; a wrong command line exits with status 2.
        """
        file = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        file.add_argument("--config", type=Path)
        config, rest = file.parse_known_args(arguments)
        base = cls.read(config.config) if config.config else cls()
        settings = tyro.cli(cls, args=rest, default=base, description=cls.__doc__)
        run = RunFolder(settings.runs / settings.name)
        if settings.resume == "auto" and run.states:
            settings = tyro.cli(cls, args=rest, default=cls.read(run.path / "config.yaml"))
        elif run.states:
            raise ValueError(f"{run.path} holds a run already: go on with it by --resume auto, or take another --name")
        return settings

    @classmethod
    def read(cls, path: Path) -> Self:
        """The settings in a YAML file, those that it leaves out at their defaults.

        Raises ValueError naming the file for unknown or wrong entries, FileNotFoundError where there is none.
        """
        if not path.is_file():
            raise FileNotFoundError(f"there is no settings file {path}")
        try:
            given = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
            if not isinstance(given, dict):
                raise ValueError("it must hold lines of NAME: VALUE")
            known = {f.name for f in fields(cls)}
            if unknown := [str(key) for key in given if key not in known]:
                raise ValueError(f"unknown setting {', '.join(unknown)}; there are {', '.join(sorted(known))}")
            for name in ("runs", "val", "start_from"):
                if given.get(name) is not None:
                    given[name] = Path(given[name])
            if isinstance(given.get("network"), dict):
                given["network"] = [f"{key}={value}" for key, value in given["network"].items()]
            for name in ("pairs", "frames", "photos", "betas", "network"):
                if name in given:
                    given[name] = tuple([given[name]] if isinstance(given[name], str) else given[name])
            if "blur" in given:
                ranges: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given["blur"].items()}
                if isinstance(ranges.get("kinds"), dict):
                    ranges["kinds"] = BlurKinds(**ranges["kinds"])
                given["blur"] = BlurOptions(**ranges)
            return cls(**given)
        except (yaml.YAMLError, ValueError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from error

    def text(self) -> str:
        """YAML that `read` turns into these settings again."""

        def plain(value: Any) -> Any:
            if isinstance(value, Path):
                return str(value)
            if isinstance(value, dict):
                return {key: plain(v) for key, v in value.items()}
            return [plain(v) for v in value] if isinstance(value, (tuple, list)) else value

        given = {key: plain(value) for key, value in asdict(self).items() if key != "resume"}
        return yaml.safe_dump(given, sort_keys=False, allow_unicode=True)


def learning_rate(settings: Settings, step: int, progress: float) -> float:
    """Linear warm-up by steps times a cosine from `lr` to `lr_end` by progress in [0, 1]."""
    warm = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return warm * (settings.lr_end + (settings.lr - settings.lr_end) * cosine)


def initial_network(settings: Settings) -> LMFN:
    """The network to train: a new one, or one with the weights of `settings.start_from`, as far as they fit it.

    Raises FileNotFoundError and ValueError for weights that cannot be read.
    """
    if settings.start_from is None:
        return LMFN(settings.config)
    given = LMFN.from_pretrained(settings.start_from)
    config = settings.config if settings.preset else replace(given.config, **settings.changes)
    if config == given.config:
        return given
    model = LMFN(config)
    own = model.state_dict()
    fitting = {
        name: tensor for name, tensor in given.state_dict().items() if name in own and own[name].shape == tensor.shape
    }
    model.load_state_dict(own | fitting)
    new = sorted({".".join(name.split(".")[:2]) for name in own.keys() - fitting.keys()})
    log.info(
        f"{settings.start_from}: {len(fitting)} of {len(own)} tensors begin with these weights; new: {', '.join(new)}"
    )
    return model


def make_loss(settings: Settings) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of an output against the sharp image, both `[B, 3, H, W]` float32 in [0, 1]; a scalar."""

    def loss(output: Tensor, sharp: Tensor) -> Tensor:
        difference = output - sharp
        if settings.loss == "l1":
            value = difference.abs().mean()
        elif settings.loss == "charbonnier":
            value = (difference.square() + 1e-6).sqrt().mean()
        elif settings.loss == "psnr":  # minus the PSNR in dB, an image at a time
            value = 10 * (difference.square().mean(dim=(1, 2, 3)) + 1e-8).log10().mean()
        else:
            value = difference.square().mean()
        if settings.fft:
            value = value + settings.fft * torch.fft.rfft2(difference, norm="ortho").abs().mean()
        return value

    return loss


class StepBatches(Sampler[list[int]]):
    """Sample numbers of one process, batch by batch, from a step on.

    The step's samples are the same whatever the number of processes: two processes with a batch of 8 draw what one
    with a batch of 16 draws.
    """

    def __init__(self, settings: Settings, start: int, process: int, processes: int) -> None:
        self.batch, self.accumulate, self.start = settings.batch, settings.accumulate, start
        self.process, self.processes, self.end = process, processes, settings.length

    def __iter__(self) -> Iterator[list[int]]:
        step = self.start
        while self.end is None or step < self.end:
            for part in range(self.accumulate):
                first = ((step * self.accumulate + part) * self.processes + self.process) * self.batch
                yield list(range(first, first + self.batch))
            step += 1


def leave_signals_to_the_main_process(_worker: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class Batches:
    """The batches of one process, from a step on: `next` gives blurred and sharp, float32 `[B, 3, patch, patch]` in
    [0, 1], channels-last on the device; to be closed. `seconds` is the time that was spent waiting for them.

    Raises ValueError where the images must be on the device and do not fit there.
    """

    def __init__(
        self, settings: Settings, data: TrainingSet, device: torch.device, start: int, process: int, processes: int
    ) -> None:
        self.device, self.seconds = device, 0.0
        self.resident: ResidentSet | None = None
        if settings.data_on != "workers" and self._fits(settings, data, processes):
            self.resident = ResidentSet(data, device, progress=process == 0)
        loader: DataLoader[Any] = DataLoader(
            Plans(data) if self.resident else data,
            batch_sampler=StepBatches(settings, start, process, processes),
            num_workers=0 if self.resident and device.type == "cpu" else settings.workers,
            collate_fn=list if self.resident else None,
            pin_memory=device.type == "cuda" and not self.resident,
            worker_init_fn=leave_signals_to_the_main_process,
        )
        self._batches = (batch for batch in loader)

    def _fits(self, settings: Settings, data: TrainingSet, processes: int) -> bool:
        available = available_memory(self.device)
        if available is None:
            return settings.data_on == "device"
        share = settings.data_share / (processes if self.device.type == "cpu" else 1)
        fits = data.images.bytes <= share * available
        text = (
            f"{len(data.images.sizes):,} images, {data.images.bytes / 1e9:.2f} GB decoded; {share:.0%} of what is free "
            f"on {self.device}, {available / 1e9:.1f} GB, may be used"
        )
        if not fits and settings.data_on == "device":
            raise ValueError(f"{text}: too little; take --data-on workers, or a larger --data-share")
        log.info("%s: %s", text, "they stay there" if fits else "workers make the patches")
        return fits

    def __next__(self) -> tuple[Tensor, Tensor]:
        begin = time.perf_counter()
        batch = next(self._batches)
        blurred, sharp = (
            images.to(self.device, memory_format=torch.channels_last, non_blocking=True).float().div_(255)
            for images in (self.resident(batch) if self.resident else batch)
        )
        self.seconds += time.perf_counter() - begin
        return blurred, sharp

    def close(self) -> None:
        """End the workers: they ignore signals and would otherwise outlive an error."""
        self._batches.close()


class StopRequest:
    """Turns the first SIGINT or SIGTERM into a wish to stop after this step; a second one stops at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.note)

    def note(self, number: int, _frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, signal.SIG_DFL)


def average(model: LMFN, decay: float) -> AveragedModel:
    """The EMA of a network. The decay grows as (1 + n) / (10 + n), so that a short run forgets its beginning."""

    def lerp(
        averaged: tuple[Tensor, ...] | list[Tensor], current: tuple[Tensor, ...] | list[Tensor], n: Tensor | int
    ) -> None:
        # All at once: for each tensor by itself, a GPU would be waited for as often as there are tensors.
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + float(n)) / (10 + float(n))))

    return AveragedModel(model, multi_avg_fn=lerp)


@dataclass
class Progress:
    """How far a run is."""

    step: int = 0
    seconds: float = 0.0
    """Time spent training, over all parts of a resumed run."""
    skipped: int = 0
    """Steps left out because the loss or the gradient was not finite."""


class RunFolder:
    """RUNS/NAME: config.yaml, metrics.jsonl, model.safetensors, ema.safetensors, state/, samples/, tensorboard/."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"

    @property
    def states(self) -> list[Path]:
        """The states that can be resumed from, oldest first."""
        return sorted((self.path / "state").glob("step-*.safetensors"))

    def begin(self, settings: Settings, step: int) -> None:
        """Make the folder; where the run resumes at `step`, forget the records that came after it."""
        (self.path / "samples").mkdir(parents=True, exist_ok=True)
        checkpoint.replace_file(self.path / "config.yaml", settings.text().encode())
        kept = []
        for line in self.metrics.read_text(encoding="utf-8").splitlines() if self.metrics.exists() else []:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:  # cut off by a kill
                continue
            if record["step"] <= step:
                kept.append(line + "\n")
        checkpoint.replace_file(self.metrics, "".join(kept).encode())

    def record(self, step: int, **values: Any) -> None:
        """Append a line to metrics.jsonl; a value that is not finite becomes null."""
        tidy = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **tidy}) + "\n")

    def save(self, model: LMFN, ema: AveragedModel, optimizer: torch.optim.Adam, scaler: Any, at: Progress) -> None:
        """Write the state and both weights. The two newest states stay."""
        tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        tensors |= {f"ema.{name}": tensor for name, tensor in ema.state_dict().items()}
        for index, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{name}": tensor for name, tensor in moments.items()}
        metadata = {"progress": asdict(at), "scaler": scaler.state_dict() if scaler is not None else None}
        checkpoint.write(self.path / "state" / f"step-{at.step:08d}.safetensors", tensors, metadata)
        config = {"config": asdict(model.config), "step": at.step}
        checkpoint.write(self.path / "model.safetensors", model.state_dict(), config)
        checkpoint.write(self.path / "ema.safetensors", ema.module.state_dict(), config)
        for old in self.states[:-2]:
            old.unlink()

    def load(self, model: LMFN, ema: AveragedModel, optimizer: torch.optim.Adam, scaler: Any) -> Progress:
        """Put the newest state into these; raises ValueError where it does not fit them."""
        path = self.states[-1]
        tensors, metadata = checkpoint.read(path)
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "adam": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        try:
            model.load_state_dict(parts["model"])
            ema.load_state_dict(parts["ema"])
        except RuntimeError as error:
            raise ValueError(f"{path} does not fit the network of these settings: {error}") from error
        state, parameters = optimizer.state_dict(), list(model.parameters())
        for name, tensor in parts["adam"].items():
            index, _, moment = name.partition(".")
            if tensor.ndim:  # in its parameter's memory layout, as Adam made it
                tensor = torch.empty_like(parameters[int(index)]).copy_(tensor)
            state["state"].setdefault(int(index), {})[moment] = tensor
        optimizer.load_state_dict(state)
        if scaler is not None and metadata["scaler"] is not None:
            scaler.load_state_dict(metadata["scaler"])
        return Progress(**metadata["progress"])


class Log:
    """What a run shows: a progress bar, metrics.jsonl, TensorBoard, and strips of sample images."""

    def __init__(self, run: RunFolder, settings: Settings, at: Progress, device: torch.device, processes: int) -> None:
        self.run, self.settings, self.device = run, settings, device
        self.images_a_step = settings.batch * settings.accumulate * processes
        self.losses: list[float] = []
        self.seconds, self.waited = at.seconds, 0.0
        self.board = SummaryWriter(str(run.path / "tensorboard"), purge_step=at.step)
        self.bar = tqdm(
            total=1.0,
            desc=settings.name,
            bar_format="{desc} {percentage:3.0f}% |{bar:20}| {elapsed} < {remaining}{postfix}",
            mininterval=0.5 if sys.stderr.isatty() else 30,
        )
        start = {"torch": torch.__version__, "device": str(device), "processes": processes}
        run.record(at.step, event="start", **start, threads=torch.get_num_threads())

    def step(self, at: Progress, done: float, loss: float, rate: float, norm: float, waited: float) -> None:
        """Note a step: its loss, learning rate and gradient norm, and the seconds waited for data up to now."""
        if math.isfinite(loss):
            self.losses.append(loss)
        self.bar.update(min(done, 1.0) - self.bar.n)
        if at.step % self.settings.log_every and done < 1:
            return
        values = {
            "loss": sum(self.losses) / len(self.losses) if self.losses else math.nan,
            "lr": rate,
            "gradient_norm": norm,
            "images_per_second": self.images_a_step * len(self.losses) / max(at.seconds - self.seconds, 1e-9),
            "waiting": (waited - self.waited) / max(at.seconds - self.seconds, 1e-9),
        }
        self.losses, self.seconds, self.waited = [], at.seconds, waited
        self.run.record(at.step, **values, skipped=at.skipped, seconds=at.seconds)
        for name, value in values.items():
            self.board.add_scalar(f"train/{name}", value, at.step)
        text = (
            f"step {at.step}, loss {values['loss']:.3g}, rate {rate:.2g}, {values['images_per_second']:.3g} images/s, "
            f"{values['waiting']:.0%} waiting for data"
        )
        self.bar.set_postfix_str(text + (f", {at.skipped} skipped" if at.skipped else ""), refresh=False)

    def validate(
        self, at: Progress, model: nn.Module, validation: Evaluator | None, sample: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        """PSNR and SSIM of the averaged weights beside the blurred input's own, and strips of blurred, output, sharp.

        Without validation pairs the strip shows `sample` of the training step.
        """
        strips = [sample]
        if validation is not None:
            evaluation = validation(model)
            values = {f"{name}_blurred": value for name, value in evaluation.blurred.items()} | evaluation.deblurred
            self.run.record(at.step, event="validation", **values)
            for name, value in values.items():
                self.board.add_scalar(f"validation/{name}", value, at.step)
            self.bar.write(f"step {at.step}: " + ", ".join(f"{name} {value:.4f}" for name, value in values.items()))
            strips = [self.sample(model, pair) for pair in validation.pairs.pairs[:4]]
        picture = np.concatenate([strip(images) for images in strips])
        photo = images.Photo(picture.astype(np.float32) / 255)
        images.write(self.run.path / "samples" / f"step-{at.step:08d}.png", photo)
        self.board.add_image("samples", picture, at.step, dataformats="HWC")

    @torch.inference_mode()
    def sample(self, model: nn.Module, pair: Pair) -> tuple[Tensor, Tensor, Tensor]:
        """Blurred, output and sharp of the middle of a validation pair."""
        blurred, sharp = (
            middle(torch.from_numpy(images.read_rgb(p)).movedim(2, 0) / 255) for p in (pair.blurred, pair.sharp)
        )
        return blurred, model(blurred[None].to(self.device))[0], sharp

    def close(self, at: Progress, stopped_by: int | None) -> None:
        """Say how the run ended and where it is."""
        self.bar.close()
        self.board.close()
        if stopped_by:
            how = f"stopped by {signal.Signals(stopped_by).name} at step {at.step}; --resume auto goes on from there"
        else:
            how = f"done: {at.step} steps in {at.seconds / 60:.1f} minutes"
        print(f"{how}; weights in {self.run.path}", file=sys.stderr)


def middle(image: Tensor) -> Tensor:
    """The middle of `[C, H, W]`, at most 320 x 320."""
    top, left = (max(0, length - 320) // 2 for length in image.shape[1:])
    return image[:, top : top + 320, left : left + 320]


def strip(tensors: tuple[Tensor, ...]) -> np.ndarray:
    """Images `[3, H, W]` in [0, 1] side by side, their middles on black of 320 x 320, as uint8 `[320, W', 3]`."""
    cells = []
    for tensor in tensors:
        part = middle(tensor.detach()).float().clamp(0, 1).mul(255).round().byte().cpu()
        cells.append(F.pad(part, (0, 320 - part.shape[2], 0, 320 - part.shape[1])))
    return torch.cat(cells, dim=2).movedim(0, 2).numpy()
