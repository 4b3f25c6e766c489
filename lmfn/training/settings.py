"""The settings of a training run: command-line options, and lines of a YAML file."""

import math
import reprlib
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin, get_type_hints

import torch
import tyro
import yaml

from lmfn.absent import absent
from lmfn.data import Source
from lmfn.data.rendering import SYMMETRIES
from lmfn.data.sampling import Kind
from lmfn.network.config import LMFNConfig, preset
from lmfn.network.model import Memory
from lmfn.options import BlurOptions, Precision, Variant

MOST_BYTES, MOST_BRACKETS = 2**16, 500
"""Of a file of settings; the time that PyYAML takes grows by the square of the depth."""


@dataclass(frozen=True)
class Settings:
    """Train LMFN. Example: lmfn train --name first --pairs data/GoPro --val data/GoPro --steps 100000"""

    config: Path | None = None
    """A YAML file of settings, such as a run's config.yaml; the command line overrides it."""
    name: str = "lmfn"
    """Name of the run: everything is written to RUNS/NAME."""
    runs: Path = Path("runs")
    """Folder that holds the runs."""
    resume: Literal["never", "auto"] = "never"
    """auto: resume from the run's last state, if there is one, with its settings; bit-identical on a CPU."""

    pairs: tuple[str, ...] = ()
    """Data sets of blurred and sharp photographs: FOLDER, or BLURRED,SHARP for two folders with equal names or two
    templates (my/{}_blur.png,my/{}_sharp.png); =WEIGHT may follow."""
    frames: tuple[str, ...] = ()
    """Folders of consecutive sharp frames, or videos, whose means are the blurred images. =WEIGHT may follow."""
    photos: tuple[str, ...] = ()
    """Folders of sharp photographs, from which images of --blur.kinds are made. =WEIGHT may follow."""
    packs: tuple[str, ...] = ()
    """Files of lmfn data pack, with sources of these kinds. =WEIGHT may follow."""
    variant: Variant = "blur"
    """Which of GoPro's two kinds of blurred images, in pairs and in validation."""
    blur: BlurOptions = field(default_factory=BlurOptions)
    """How frames and photos are blurred."""
    val: Path | None = None
    """Pairs to validate on: FOLDER or BLURRED,SHARP, as for --pairs, or a pack."""
    val_images: int | None = None
    """Validate on this many of them, spread evenly (default: all)."""

    preset: Literal["lmfn", "lmfn-released"] | None = None
    """The network (default: that of --from, or else lmfn)."""
    network: tuple[str, ...] = ()
    """Fields of LMFNConfig to change: --network skip=feature similarity=cosine rfdbs=3."""
    start_from: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Weights to start from: the output of save_pretrained or of an earlier run. With --preset or --network, those that
    fit that network by name and shape; the rest starts at random."""
    freeze: tuple[str, ...] = ()
    """Parts of the network that keep the weights they start with, by name: --freeze encoder rfdbs.0 alfm.theta."""

    loss: Literal["mse", "l1", "charbonnier", "psnr"] = "mse"
    fft: float = 0.0
    """Weight of an additional L1 loss between the Fourier transforms of the images."""
    lr: float = 1e-4
    """Adam's learning rate at the start of the cosine schedule."""
    lr_end: float = 1e-7
    warmup: int = 0
    """Steps over which the learning rate grows from zero."""
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    """AdamW's weight decay; 0 is Adam."""
    batch: int = 16
    """Patches per step and process."""
    accumulate: int = 1
    """Batches whose gradients are accumulated into one step."""
    patch: int = 256
    clip: float | None = None
    """Maximum norm of the gradient."""
    ema: float = 0.999
    """Decay of the averaged weights; it grows from 0.1 to this in the first steps."""
    steps: int | None = None
    """Length of the run (default 100,000 unless --minutes is given)."""
    minutes: float | None = None
    """Length of the run in minutes; the cosine follows the clock. Earlier parts of a resumed run count."""

    seed: int = 0
    precision: Precision = "fp32"
    device: Literal["auto", "cpu"] = "auto"
    compile: bool = False
    """torch.compile the network (a C++ compiler is needed on a CPU)."""
    graph: bool = True
    """Capture the forward and backward pass as one CUDA graph, if possible: one process on a CUDA GPU, not fp16, no
    --accumulate, no --compile. Launching kernel by kernel keeps a GPU waiting for the host."""
    memory: Memory = "normal"
    """lean: save half as much for backward, and recompute more; the results are the same."""
    data_on: Literal["auto", "device", "workers"] = "auto"
    """device: the decoded images stay on the device, and patches are made there; workers: processes read them from disk
    and make the patches. auto: device if the images fit into --data-share of its memory. Several processes distribute
    them if they only fit into the memory of all devices together, and exchange patches."""
    reuse: int = 1
    """How often each patch is used, of 8 at most: every time in another order, flipped or turned otherwise. For images
    on a device that is faster at training than at making patches."""
    data_share: float = 0.5
    """Share of the device's free memory that the images may use."""
    workers: int = 2
    """Worker processes per training process that prepare patches; 0: none. (With the data on a GPU they only draw the
    random parameters of patches; with the data on a CPU there are none.)"""
    cache_gib: float = 4.0
    """Decoded images kept in memory, GiB per worker that makes patches."""

    compact_states: bool = False
    """Store Adam's moments as bfloat16 in the states: 15 MB each instead of 20, for moving them between machines.
    Resuming is then no longer bit-identical."""
    log_every: int = 20
    val_every: int = 1000
    save_every: int = 500

    def check(self) -> None:
        """Raise ValueError for settings that cannot be trained with."""
        if not (self.pairs or self.frames or self.photos or self.packs):
            raise ValueError("nothing to train on: give at least one of --pairs, --frames, --photos, --packs")
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{each.name} is {value}; it must be a finite number")
        for name in ("batch", "accumulate", "patch", "log_every", "val_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("workers", "warmup", "weight_decay", "fft", "lr_end", "cache_gib", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative")
        for name in ("steps", "minutes", "clip", "val_images", "lr"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be greater than 0")
        if not 1 <= self.reuse <= SYMMETRIES:
            raise ValueError(f"reuse is {self.reuse}; it must be from 1 to {SYMMETRIES}")
        if self.reuse > 1 and self.data_on == "workers":
            raise ValueError("reuse needs the images on the device: --data-on device or auto")
        if not 0 < self.data_share <= 1:
            raise ValueError(f"data_share is {self.data_share}; it must be above 0 and at most 1")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema}; it must be at least 0 and below 1")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas is {self.betas}; both must be at least 0 and below 1")
        if self.precision == "fp16" and (self.device == "cpu" or not torch.cuda.is_available()):
            raise ValueError("precision fp16 needs a GPU; on a CPU use bf16 or fp32")
        if self.name in ("", ".", "..") or "/" in self.name or "\\" in self.name:
            raise ValueError(f"name is {self.name!r}; it must be a plain folder name (its location is --runs)")
        self.network_config  # noqa: B018 (an unknown field of the network is an error now)
        self.sources  # noqa: B018

    @property
    def length(self) -> int | None:
        """Steps of the run; None if only the clock ends it."""
        return 100_000 if self.steps is None and self.minutes is None else self.steps

    @property
    def network_config(self) -> LMFNConfig:
        """The network selected by --preset and --network."""
        return preset(self.preset or "lmfn", **self.changes)

    @property
    def changes(self) -> dict[str, Any]:
        """The fields of --network. Raises ValueError for a value that must be a whole number and is not."""
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
        """The settings in a YAML file, with defaults for those it omits.

        Raises ValueError naming the file for unknown or invalid entries, FileNotFoundError if it does not exist.
        """
        if not path.is_file():
            raise FileNotFoundError(absent("settings file", path))
        try:
            if path.stat().st_size > MOST_BYTES:
                raise ValueError(f"it has more than {MOST_BYTES:,} bytes, and is no file of settings")
            text = path.read_text(encoding="utf-8")
            if max(text.count(bracket) for bracket in "[{") > MOST_BRACKETS:
                raise RecursionError
            given = yaml.safe_load(text) or {}
            if not isinstance(given, dict):
                raise ValueError("it must contain lines of NAME: VALUE")
            hints = get_type_hints(cls)
            if unknown := [reprlib.repr(key) for key in given if key not in hints or key == "config"]:
                known = ", ".join(sorted(hints.keys() - {"config"}))
                raise ValueError(f"unknown setting {', '.join(unknown)}; there are {known}")
            if isinstance(given.get("network"), dict):
                given["network"] = [f"{key}={value}" for key, value in given["network"].items()]
            return cls(**{name: _as(hints[name], name, value) for name, value in given.items()})
        except RecursionError:
            raise ValueError(f"{path}: its values are nested too deeply") from None
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


def _as(hint: Any, name: str, value: Any) -> Any:
    """A value of a YAML file as its setting's type, which it must have: nothing is converted but what YAML lacks, paths
    and tuples. Raises ValueError, naming the setting."""
    if is_dataclass(hint):
        if not isinstance(value, dict):
            raise ValueError(f"{name} is {reprlib.repr(value)}; it must contain lines of NAME: VALUE")
        hints = get_type_hints(hint)
        if unknown := [reprlib.repr(key) for key in value if key not in hints]:
            raise ValueError(f"unknown setting {', '.join(unknown)} in {name}; there are {', '.join(hints)}")
        return hint(**{key: _as(hints[key], f"{name}.{key}", part) for key, part in value.items()})  # type: ignore[operator]
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for kind in kinds:
        found, choices = get_origin(kind) or kind, get_args(kind)
        if found is Literal and isinstance(value, str) and value in choices:
            return value
        if found is tuple:
            values = [value] if isinstance(value, str) else value
            if isinstance(values, list | tuple) and (choices[-1] is ... or len(choices) == len(values)):
                return tuple(_as(choices[0], name, each) for each in values)
        if found is Path and isinstance(value, str):
            return Path(value)
        if found is float and isinstance(value, int | float) and not isinstance(value, bool):
            return value
        if found in (int, str, bool, type(None)) and type(value) is found:
            return value
    raise ValueError(f"{name} is {reprlib.repr(value)}; it must be {' or '.join(map(_in_words, kinds))}")


def _in_words(kind: Any) -> str:
    choices = get_args(kind)
    if get_origin(kind) is Literal:
        return ", ".join(choices)
    if get_origin(kind) is tuple:
        return "a list of " + ("texts" if choices[-1] is ... else f"{len(choices)} numbers")
    words = {int: "a whole number", float: "a number (0.0001 or 1.0e-4; 1e-4 is text in YAML)", bool: "true or false"}
    return words.get(kind) or {str: "text", Path: "a path"}.get(kind, "null")
