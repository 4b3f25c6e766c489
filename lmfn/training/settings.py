"""The settings of a training run: command-line options, and lines of a YAML file."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import torch
import tyro
import yaml

from lmfn.data import Source
from lmfn.data.sampling import Kind
from lmfn.network.config import LMFNConfig, preset
from lmfn.network.model import Memory
from lmfn.options import BlurKinds, BlurOptions, Precision, Variant


@dataclass(frozen=True)
class Settings:
    """Train LMFN. Example: lmfn train --name first --pairs data/GoPro --val data/GoPro --steps 100000"""

    config: Path | None = None
    """A YAML file of settings, such as a run's own config.yaml; the command line overrides it."""
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
    packs: tuple[str, ...] = ()
    """Files of lmfn data pack, each with sources of these kinds. =WEIGHT may follow."""
    variant: Variant = "blur"
    """Which of GoPro's two kinds of blurred images, in pairs and in validation."""
    blur: BlurOptions = field(default_factory=BlurOptions)
    """How frames and photos are blurred."""
    val: Path | None = None
    """Pairs to validate on: a data set, or a pack."""
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
    weight_decay: float = 0.0
    """AdamW's: the share of each weight, times the rate, that a step takes away. 0 is Adam."""
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
    graph: bool = True
    """Capture a step's forward and backward pass as one CUDA graph, if it can be one: one process on a CUDA GPU, not
    fp16, no --accumulate, no --compile. Launching kernel by kernel keeps a GPU waiting for the host."""
    memory: Memory = "normal"
    """lean: keep half as much for the backward pass, and compute more again; the results are the same."""
    data_on: Literal["auto", "device", "workers"] = "auto"
    """device: the decoded images stay on the device, and patches are made there; workers: processes read them from the
    disk and make the patches. auto: device where the images fit into --data-share of its memory. Several processes keep
    them shared out where they fit into all devices' memory together, and send each other the patches."""
    data_share: float = 0.5
    """Share of the device's free memory that the images may take."""
    workers: int = 2
    """Processes that prepare patches, a training process; 0: none. (With the data on a GPU they only draw what patches
    are made of; with the data on a CPU there are none.)"""
    cache_gib: float = 4.0
    """Decoded images kept in memory, GiB per worker that makes patches."""

    compact_states: bool = False
    """Keep Adam's moments as bfloat16 in the states: 15 MB each instead of 20, to be carried between machines. Resuming
    is exact to the bit no longer."""
    log_every: int = 20
    val_every: int = 1000
    save_every: int = 500

    def check(self) -> None:
        """Raise ValueError for settings that cannot be trained with."""
        if not (self.pairs or self.frames or self.photos or self.packs):
            raise ValueError("nothing to train on: give at least one of --pairs, --frames, --photos, --packs")
        for name in ("batch", "accumulate", "patch", "log_every", "val_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("workers", "warmup", "weight_decay", "fft", "lr_end", "cache_gib", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative")
        for name in ("steps", "minutes", "clip", "val_images", "lr"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be greater than 0")
        if not 0 < self.data_share <= 1:
            raise ValueError(f"data_share is {self.data_share}; it must be above 0 and at most 1")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema}; it must be at least 0 and below 1")
        if self.precision == "fp16" and (self.device == "cpu" or not torch.cuda.is_available()):
            raise ValueError("precision fp16 needs a GPU; on a CPU use bf16 or fp32")
        if self.name in ("", ".", "..") or "/" in self.name or "\\" in self.name:
            raise ValueError(f"name is {self.name!r}; it must be a plain folder name (its place is --runs)")
        self.network_config  # noqa: B018 (an unknown field of the network is an error now)
        self.sources  # noqa: B018

    @property
    def length(self) -> int | None:
        """Steps of the run; None where only the clock ends it."""
        return 100_000 if self.steps is None and self.minutes is None else self.steps

    @property
    def network_config(self) -> LMFNConfig:
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
        return [Source.parse(kind, text, self.variant) for kind in get_args(Kind) for text in getattr(self, kind)]

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
            known = {f.name for f in fields(cls)} - {"config"}
            if unknown := [str(key) for key in given if key not in known]:
                raise ValueError(f"unknown setting {', '.join(unknown)}; there are {', '.join(sorted(known))}")
            for name in ("runs", "val", "start_from"):
                if given.get(name) is not None:
                    given[name] = Path(given[name])
            if isinstance(given.get("network"), dict):
                given["network"] = [f"{key}={value}" for key, value in given["network"].items()]
            for name in ("pairs", "frames", "photos", "packs", "betas", "network"):
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

        given = {key: plain(value) for key, value in asdict(self).items() if key not in ("config", "resume")}
        return yaml.safe_dump(given, sort_keys=False, allow_unicode=True)
