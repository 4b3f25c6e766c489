"""A run's folder, its states, which resume exactly, and its progress reports."""

import contextlib
import hashlib
import json
import logging
import math
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Self

import filelock
import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from lmfn import atomic, images
from lmfn.data import Pair
from lmfn.data.packed import read_rgb
from lmfn.device import autocast
from lmfn.evaluation import Evaluator
from lmfn.evaluation.pictures import middle, pixels, side_by_side
from lmfn.network import checkpoint
from lmfn.network.activity import Activity, summarise, unit_activity
from lmfn.network.model import Network
from lmfn.training.settings import Settings

log = logging.getLogger(__name__)

SHOWN = 320
"""Height and width of the central crop that samples show."""


class StopRequest:
    """Within its context, turns the first SIGINT or SIGTERM into a request to stop after this step; a second one stops
    at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __enter__(self) -> Self:
        self.before = {number: signal.signal(number, self.note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            if handler is not None:  # None stands for one of C's, which Python cannot set again
                signal.signal(number, handler)

    def note(self, number: int, _frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, signal.SIG_DFL)


@dataclass
class Progress:
    """How far a run is."""

    step: int = 0
    seconds: float = 0.0
    """Training time, over all parts of a resumed run."""
    skipped: int = 0
    """Steps skipped because the loss or the gradient was not finite."""

    def fraction_of(self, settings: Settings) -> float:
        """The fraction of a run with these settings that is done, by steps or by time; 1 or more at its end."""
        by_steps = self.step / settings.length if settings.length else 0.0
        return max(by_steps, self.seconds / (60 * settings.minutes) if settings.minutes else 0.0)


class TrainState(NamedTuple):
    """What a step changes, and a resumed run needs again."""

    model: Network
    ema: AveragedModel
    """Exponential moving average of the model's weights."""
    optimizer: torch.optim.Adam
    scaler: Any
    """Accelerate's gradient scaler for fp16; None otherwise."""


class RunFolder:
    """RUNS/NAME: config.yaml, metrics.jsonl, model.safetensors, ema.safetensors, state/, samples/, tensorboard/."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder against other training processes; removes it afterwards if nothing was written to it.

        Raises ValueError, naming the process, if another one trains in it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        owner = self.path / ".lock-owner"
        lock = filelock.FileLock(self.path / ".lock", timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout as error:
            process = owner.read_text().strip() if owner.exists() else "another"
            raise ValueError(
                f"process {process} trains in {self.path}: wait for it, stop it, or choose another --name"
            ) from error
        try:
            atomic.write(owner, str(os.getpid()).encode())
            yield
        finally:
            for path in (owner, self.path / ".lock"):
                path.unlink(missing_ok=True)
            lock.release()
            with contextlib.suppress(OSError):  # it is not empty
                self.path.rmdir()

    @property
    def states(self) -> list[Path]:
        """The states that can be resumed from, oldest first."""
        return sorted((self.path / "state").glob("step-*.safetensors"))

    def begin(self, settings: Settings, step: int) -> None:
        """Create the folder; for a run that resumes at `step`, drop later records."""
        (self.path / "samples").mkdir(parents=True, exist_ok=True)
        for folder in (self.path, self.path / "state"):
            atomic.remove_leftovers(folder)
        atomic.write(self.path / "config.yaml", settings.text().encode())
        kept = [json.dumps(record) + "\n" for record in self.records() if record["step"] <= step]
        atomic.write(self.metrics, "".join(kept).encode())

    def records(self) -> Iterator[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        for line in self.metrics.read_text(encoding="utf-8").splitlines() if self.metrics.exists() else []:
            with contextlib.suppress(json.JSONDecodeError):  # incomplete after a kill
                yield json.loads(line)

    def owes_validation(self, at: Progress, settings: Settings) -> bool:
        """Whether the run ended after it saved this state, and before it had validated it."""
        is_due = at.fraction_of(settings) >= 1 or at.step % settings.val_every == 0
        validated = (record["step"] for record in self.records() if record.get("event") == "activity")
        return is_due and at.step not in validated

    def record(self, step: int, **values: Any) -> None:
        """Append a line to metrics.jsonl; a value that is not finite becomes null."""
        tidy = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **tidy}) + "\n")

    def save(self, state: TrainState, at: Progress, *, compact: bool = False) -> None:
        """Write the state (`compact`: Adam's moments as bfloat16) and both sets of weights; keeps the two newest
        states.

        Nothing is written if a weight is not finite, so that no good state is lost.
        """
        model, ema = state.model, state.ema
        if not all(tensor.isfinite().all() for tensor in model.state_dict().values()):
            log.warning(f"step {at.step}: weights are not finite; the state is not saved, earlier ones are kept")
            return
        # The weights first: a run that is killed here makes these again after it has resumed from the state before.
        config = {"config": asdict(model.config), "step": at.step}
        checkpoint.write(self.path / "model.safetensors", model.state_dict(), config)
        checkpoint.write(self.path / "ema.safetensors", ema.module.state_dict(), config)
        tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        tensors |= {f"ema.{name}": tensor for name, tensor in ema.state_dict().items()}
        for index, moments in state.optimizer.state_dict()["state"].items():
            for name, tensor in moments.items():  # bfloat16 has the range for them, float16 does not
                tensors[f"adam.{index}.{name}"] = tensor.bfloat16() if compact and tensor.ndim else tensor
        metadata = {
            "progress": asdict(at),
            "scaler": state.scaler.state_dict() if state.scaler is not None else None,
            "sha256": digest(tensors),
        }
        checkpoint.write(self.path / "state" / f"step-{at.step:08d}.safetensors", tensors, metadata)
        for old in self.states[:-2]:
            old.unlink()

    def load(self, state: TrainState) -> Progress:
        """Load the newest undamaged state into `state`.

        A damaged one is reported in a warning and renamed to FILE.damaged. Raises ValueError if all are damaged, or if
        the state does not fit.
        """
        path, tensors, metadata = self._newest_state()
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "adam": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        try:
            state.model.load_state_dict(parts["model"])
            state.ema.load_state_dict(parts["ema"])
        except RuntimeError as error:
            raise ValueError(f"{path} does not fit the network of these settings: {error}") from error
        adam, parameters = state.optimizer.state_dict(), list(state.model.parameters())
        for name, tensor in parts["adam"].items():
            index, _, moment = name.partition(".")
            if tensor.ndim:  # in the memory layout of its parameter, as Adam created it
                tensor = torch.empty_like(parameters[int(index)]).copy_(tensor)
            adam["state"].setdefault(int(index), {})[moment] = tensor
        state.optimizer.load_state_dict(adam)
        if state.scaler is not None and metadata["scaler"] is not None:
            state.scaler.load_state_dict(metadata["scaler"])
        return Progress(**metadata["progress"])

    def _newest_state(self) -> tuple[Path, dict[str, Tensor], dict[str, Any]]:
        for path in reversed(self.states):
            try:
                tensors, metadata = checkpoint.read(path)
                # States of version 0.1 have no checksum.
                if metadata.get("sha256") not in (None, digest(tensors)):
                    raise ValueError(f"{path} is damaged: its tensors are not those that were saved")
                progress = metadata.get("progress")
                if not isinstance(progress, dict) or not progress.keys() <= {f.name for f in fields(Progress)}:
                    raise ValueError(f"{path} is no state of a run")
                return path, tensors, metadata
            except FileNotFoundError:  # another process of the run has found it damaged, and renamed it
                continue
            except ValueError as error:
                log.warning(f"{error}; trying the previous state")
                with contextlib.suppress(FileNotFoundError):  # as above
                    path.rename(path.with_suffix(".damaged"))
        raise ValueError(f"all states in {self.path / 'state'} are damaged; start again with another --name")


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors by name, their bytes in order."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


class Log:
    """Progress reports: a progress bar, metrics.jsonl, TensorBoard, and strips of sample images."""

    def __init__(
        self,
        run: RunFolder,
        settings: Settings,
        at: Progress,
        device: torch.device,
        processes: int,
        validation: Evaluator | None = None,
    ) -> None:
        self.run, self.settings, self.device, self.validation = run, settings, device, validation
        self.images_a_step = settings.batch * settings.accumulate * processes
        self.losses: list[float] = []
        self.seconds, self.waited = at.seconds, 0.0
        self.warned_of_dead_units = False
        self.board = SummaryWriter(str(run.path / "tensorboard"), purge_step=at.step + 1)
        self.bar = tqdm(
            total=1.0,
            desc=settings.name,
            bar_format="{desc} {percentage:3.0f}% |{bar:20}| {elapsed} < {remaining}{postfix}",
            mininterval=0.5 if sys.stderr.isatty() else 30,
        )
        start = {"torch": torch.__version__, "device": str(device), "processes": processes}
        run.record(at.step, event="start", **start, threads=torch.get_num_threads())

    def step(self, at: Progress, done: float, losses: Sequence[float], rate: float, norm: float, waited: float) -> None:
        """Record the losses of the steps since the last call, and of the last one the learning rate, gradient norm, and
        total seconds spent waiting for data."""
        self.losses += filter(math.isfinite, losses)
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

    def validate(self, at: Progress, state: TrainState, shown: tuple[Tensor, ...]) -> None:
        """PSNR and SSIM of the averaged weights and of the blurred input, strips of blurred, output and sharp, and the
        activity of the residual blocks.

        `shown` are blurred, output and sharp of the training step, `[B, 3, H, W]`; the first of each is shown if there
        are no validation pairs.
        """
        model = state.ema.module
        strips = [tuple(middle(pixels(image[0]), SHOWN, SHOWN) for image in shown)]
        if self.validation is not None:
            evaluation = self.validation(model)
            values = {f"{name}_blurred": value for name, value in evaluation.blurred.items()} | evaluation.deblurred
            self.run.record(at.step, event="validation", **values)
            for name, value in values.items():
                self.board.add_scalar(f"validation/{name}", value, at.step)
            self.bar.write(f"step {at.step}: " + ", ".join(f"{name} {value:.4f}" for name, value in values.items()))
            strips = [self.sample(model, pair) for pair in self.validation.pairs.pairs[:4]]
        picture = np.concatenate([side_by_side(strip, SHOWN) for strip in strips])
        photo = images.Photo(picture)
        images.write(self.run.path / "samples" / f"step-{at.step:08d}.png", photo)
        self.board.add_image("samples", picture, at.step, dataformats="HWC")
        with autocast(self.device, self.settings.precision):
            self.activity(at, summarise(unit_activity(state.model, shown[0])))

    def activity(self, at: Progress, blocks: dict[str, Activity]) -> None:
        """Activity of the residual blocks by name; warns once per process if most units of a block are dead."""
        self.run.record(at.step, event="activity", **{name: asdict(block) for name, block in blocks.items()})
        for name, block in blocks.items():
            self.board.add_scalar(f"activity/{name}/firing", block.firing, at.step)
            self.board.add_scalar(f"activity/{name}/dead", block.dead / block.units, at.step)
        dying = {name: block for name, block in blocks.items() if block.dying}
        if dying and not self.warned_of_dead_units:
            self.warned_of_dead_units = True
            which = ", ".join(f"{block.dead} of {block.units} in {name}" for name, block in dying.items())
            start = self.settings.start_from
            remedy = (
                "Start again with a lower --lr, a longer --warmup or a smaller --clip"
                if start is None
                else f"The run keeps those of the weights it started from: lmfn doctor --weights {start}"
            )
            log.warning(
                f"step {at.step}: hidden units of residual blocks hardly ever fire ({which}); such units no longer "
                f"learn. {remedy}"
            )

    @torch.inference_mode()
    def sample(self, model: nn.Module, pair: Pair) -> tuple[np.ndarray, ...]:
        """Blurred image, output and sharp image of the central crop of a validation pair."""
        blurred, sharp = (middle(read_rgb(path), SHOWN, SHOWN) for path in (pair.blurred, pair.sharp))
        with autocast(self.device, self.settings.precision):  # float32 kernels would be compiled just for this
            output = model(torch.from_numpy(blurred).movedim(2, 0)[None].to(self.device) / 255)[0]
        return blurred, pixels(output), sharp

    def close(self, at: Progress, stopped_by: int | None) -> None:
        """Report how the run ended and where its results are."""
        self.bar.close()
        self.board.close()
        if stopped_by and at.fraction_of(self.settings) < 1:  # a signal in the last validation stops nothing
            how = f"stopped by {signal.Signals(stopped_by).name} at step {at.step}; --resume auto continues from there"
        else:
            how = f"done: {at.step} steps in {at.seconds / 60:.1f} minutes"
        print(f"{how}; weights in {self.run.path}", file=sys.stderr)


def parse_settings(arguments: Sequence[str]) -> Settings:
    """The settings of a command line, which override those of the resumed run or of `--config FILE`.

    Raises ValueError or FileNotFoundError for an invalid file or an existing run of that name; a wrong command line
    ends the process with status 2.
    """

    def parse(default: Settings) -> Settings:
        return tyro.cli(Settings, prog="lmfn train", args=arguments, default=default, description=Settings.__doc__)

    settings = parse(Settings())
    if settings.config is not None:
        settings = parse(Settings.read(settings.config))
    run = RunFolder(settings.runs / settings.name)
    if settings.resume == "auto" and run.states:
        before = Settings.read(run.path / "config.yaml")
        settings = parse(before)
        for field in fields(settings):
            old, new = getattr(before, field.name), getattr(settings, field.name)
            if old != new and field.name != "resume":
                log.warning(f"the run continues with another {field.name}: {new}; it was {old}")
    elif run.states:
        raise ValueError(f"{run.path} already contains a run: continue it with --resume auto, or choose another --name")
    return settings
