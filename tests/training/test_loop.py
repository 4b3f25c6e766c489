"""Complete training runs: resumed after a kill, stopped by signals, distributed over processes, given broken input."""

import dataclasses
import datetime
import json
import logging
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from forked import in_a_child
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

import lmfn.training.batches
from lmfn import LMFN, images
from lmfn.data import DataError, TrainingSet
from lmfn.network import checkpoint
from lmfn.network.activity import Activity
from lmfn.training import loop as script
from lmfn.training import step
from lmfn.training.loop import train
from lmfn.training.objective import exponential_average, initial_network, make_loss
from lmfn.training.run import Log, Progress, RunFolder, TrainState, parse_settings
from lmfn.training.settings import Settings
from lmfn.training.step import initial_state

ROOT = Path(__file__).parents[2]


def run_in(settings: Settings) -> Path:
    return settings.runs / settings.name


def weights(folder: Path, name: str = "model") -> dict[str, Tensor]:
    return checkpoint.read(folder / f"{name}.safetensors")[0]


def records(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def training(settings: Settings, prelude: Callable[[], None] = lambda: None) -> int:
    """The signal or exit status with which a process ends that trains after `prelude`."""

    def work() -> None:
        prelude()
        os._exit(train(settings))

    return in_a_child(work)


@torch.inference_mode()
def loss_on_the_same_patches(model: torch.nn.Module, settings: Settings) -> float:
    data = TrainingSet(settings.sources, patch=settings.patch, seed=settings.seed)
    blurred, sharp = (torch.stack(images).float() / 255 for images in zip(*(data[n] for n in range(64)), strict=True))
    return (model(blurred) - sharp).abs().mean().item()


def test_a_run_makes_what_the_readme_says_and_learns(settings: Settings, photos: Path) -> None:
    pairs = photos.parent / "pairs"
    for kind in ("blur", "sharp"):
        for file in photos.iterdir():
            images.write(pairs / kind / file.name, images.read(file))
    settings = dataclasses.replace(settings, val=pairs, steps=30, val_every=15, workers=1, loss="l1")
    assert script.train(settings) == 0
    folder = run_in(settings)
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml",
        "metrics.jsonl",
        "model.safetensors",
        "ema.safetensors",
        "state",
        "samples",
        "tensorboard",
    }
    assert Settings.read(folder / "config.yaml") == settings
    assert [record["step"] for record in records(folder) if "loss" in record] == list(range(2, 31, 2))
    torch.manual_seed(settings.seed)
    before, after = initial_network(settings), LMFN.from_pretrained(folder / "model.safetensors")
    assert loss_on_the_same_patches(after, settings) < loss_on_the_same_patches(before, settings)
    validations = [record for record in records(folder) if record.get("event") == "validation"]
    activity = [record for record in records(folder) if record.get("event") == "activity"]
    assert [record["step"] for record in activity] == [record["step"] for record in validations]
    assert activity[0]["encoder.rb_16th"].keys() == {"units", "firing", "dead", "silent"}
    assert [record["step"] for record in validations] == [15, 30]
    assert validations[0].keys() >= {"psnr", "psnr_blurred", "ssim_gauss2d", "ssim_gauss2d_blurred"}
    strip = images.read_rgb(folder / "samples" / "step-00000030.png")
    assert strip.shape == (2 * 320, 3 * 320, 3)  # blurred, output, sharp of both pairs
    np.testing.assert_array_equal(strip[:96, :80], images.read_rgb(photos / "0.png"))
    for name in ("model", "ema"):
        model = LMFN.from_pretrained(folder / f"{name}.safetensors")
        assert model.config == settings.network_config
    assert [path.name for path in RunFolder(folder).states] == [
        "step-00000025.safetensors",
        "step-00000030.safetensors",
    ]


def kill_after_saving_step_5() -> None:
    save = RunFolder.save

    def saved(self: RunFolder, state: TrainState, at: Progress, **options: bool) -> None:
        save(self, state, at, **options)
        if at.step == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    RunFolder.save = saved  # type: ignore[method-assign]


def kill_while_saving_step_9() -> None:
    replace = os.replace

    def replaced(source: Path, target: Path) -> None:
        if "step-00000009" in str(target):
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = replaced  # type: ignore[assignment]


def test_killed_twice_and_resumed_is_bit_identical_to_a_run_in_one_go(settings: Settings) -> None:
    # 9 does not divide evenly
    whole = dataclasses.replace(settings, name="whole", steps=9, data_on="workers")
    broken = dataclasses.replace(whole, name="broken", workers=1)
    assert train(whole) == 0
    assert training(broken, kill_after_saving_step_5) == -signal.SIGKILL
    assert [path.stem for path in RunFolder(run_in(broken)).states] == ["step-00000005"]
    broken = dataclasses.replace(broken, resume="auto")
    assert training(broken, kill_while_saving_step_9) == -signal.SIGKILL
    assert [path.stem for path in RunFolder(run_in(broken)).states] == ["step-00000005"]
    with (run_in(broken) / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')  # a kill may cut a line
    assert training(broken) == 0
    for name in ("model", "ema"):
        one, other = weights(run_in(whole), name), weights(run_in(broken), name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    state, again = (checkpoint.read(RunFolder(run_in(s)).states[-1])[0] for s in (whole, broken))
    assert all(torch.equal(state[key], again[key]) for key in state)
    rates = [
        [(record["step"], record["lr"], record["loss"]) for record in records(run_in(s)) if "lr" in record]
        for s in (whole, broken)
    ]
    assert [step for step, _, _ in rates[0]] == [2, 4, 6, 8, 9]
    assert [(step, rate) for step, rate, _ in rates[0]] == [(step, rate) for step, rate, _ in rates[1]]


class Killed(BaseException):
    """Ends a run in this process, as a kill does."""


def dies(*_: object) -> None:
    raise Killed


@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "step-00000004.safetensors"])
def test_killed_in_its_last_save_a_run_ends_with_the_weights_of_a_whole_one(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    settings = dataclasses.replace(settings, steps=4, save_every=2)
    whole = dataclasses.replace(settings, name="whole")
    assert script.train(whole) == 0
    save = RunFolder.save

    def killed(self: RunFolder, state: TrainState, at: Progress, **options: bool) -> None:
        with monkeypatch.context() as patch:
            replace = os.replace
            if at.step == 4:
                patch.setattr(
                    os, "replace", lambda source, to: dies() if Path(to).name == name else replace(source, to)
                )
            save(self, state, at, **options)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save", killed)
        with pytest.raises(Killed):
            script.train(settings)
    assert script.train(dataclasses.replace(settings, resume="auto")) == 0
    for kind in ("model", "ema"):
        (a, of), (b, of_whole) = (checkpoint.read(run_in(s) / f"{kind}.safetensors") for s in (settings, whole))
        assert all(torch.equal(a[key], b[key]) for key in b)
        assert of == of_whole


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_that_ended_before_a_validation_makes_it_when_it_resumes(
    settings: Settings, photos: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int
) -> None:
    """Stopped at the step of one, killed in the next, killed in the last; the records are those of a whole run."""
    for kind in ("blur", "sharp"):
        for file in photos.iterdir():
            images.write(settings.runs / "pairs" / kind / file.name, images.read(file))
    settings = dataclasses.replace(
        settings, steps=5, save_every=1, val_every=2, batch=2, accumulate=accumulate, val=settings.runs / "pairs"
    )
    whole, resumed = (dataclasses.replace(settings, name=name) for name in ("whole", "resumed"))
    assert script.train(whole) == 0
    step = Log.step

    def stopped(self: Log, at: Progress, *rest: float) -> None:
        step(self, at, *rest)
        if at.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Log, "step", stopped)
        assert script.train(resumed) == 128 + signal.SIGTERM
    resumed = dataclasses.replace(resumed, resume="auto")
    validate = Log.validate
    for last in (4, 5):
        with monkeypatch.context() as patch:
            patch.setattr(
                Log,
                "validate",
                lambda self, at, *rest, last=last: (dies if at.step == last else validate)(self, at, *rest),
            )
            with pytest.raises(Killed):
                script.train(resumed)
    for _ in range(2):  # once more changes nothing
        assert script.train(resumed) == 0
        one, other = ([r for r in records(run_in(s)) if r.get("event") != "start"] for s in (whole, resumed))
        for event in ("validation", "activity"):
            found = [[r for r in of if r.get("event") == event] for of in (one, other)]
            assert [r["step"] for r in found[0]] == [2, 4, 5]
            assert found[0] == found[1]
    for file in (run_in(whole) / "samples").iterdir():
        assert file.read_bytes() == (run_in(resumed) / "samples" / file.name).read_bytes()


def test_tensorboard_has_what_the_records_have(settings: Settings) -> None:
    """Also at the step from which the run was resumed."""
    for steps in (4, 6):
        assert script.train(dataclasses.replace(settings, steps=steps, save_every=1, resume="auto")) == 0
    events = EventAccumulator(str(run_in(settings) / "tensorboard")).Reload()
    losses = [(record["step"], record["loss"]) for record in records(run_in(settings)) if "loss" in record]
    assert [step for step, _ in losses] == [2, 4, 6]
    assert [event.step for event in events.Scalars("train/loss")] == [2, 4, 6]
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx([loss for _, loss in losses])


def test_processes_wait_for_the_one_that_validates(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than NCCL's ten minutes, since a validation of thousands of images takes longer."""
    made: dict[str, Any] = {}
    monkeypatch.setattr(script, "Accelerator", lambda **options: made.update(options))
    script.join_processes(settings)
    (group,) = made["kwargs_handlers"]
    assert isinstance(group, InitProcessGroupKwargs)
    assert group.timeout >= datetime.timedelta(hours=12)


def test_two_processes_train_on_what_one_with_twice_the_batch_does(settings: Settings) -> None:
    one = dataclasses.replace(settings, name="one", batch=4, steps=5)
    two = dataclasses.replace(settings, name="two", batch=2, steps=5, workers=1, device="auto")
    assert train(one) == 0
    two.runs.joinpath("two.yaml").write_text(two.text())
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    command = [*launcher, str(ROOT / "train.py"), "--config", str(two.runs / "two.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("model", "ema"):
        a, b = weights(run_in(one), name), weights(run_in(two), name)
        initial = LMFN(one.network_config).state_dict()
        assert max((a[key] - initial[key]).abs().max() for key in a) > 1e-3  # they have learnt
        assert max((a[key] - b[key]).abs().max() for key in a) < 1e-6


def one_of_four(rank: int, settings: Settings, port: int, memory: int) -> None:
    """Train as torchrun's process of this number, with this many bytes of free memory."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="4", LOCAL_WORLD_SIZE="4", MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )  # fmt: skip
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    lmfn.training.batches.available_memory = lambda _: memory
    os._exit(script.train(settings))


def test_four_processes_train_as_one_does(settings: Settings) -> None:
    """They share the two images if each has room for one, and otherwise read them during training."""
    one = dataclasses.replace(settings, name="one", batch=4, steps=4, log_every=1)
    assert script.train(one) == 0
    losses = [record["loss"] for record in records(run_in(one)) if "loss" in record]
    assert len(losses) == 4
    image = 96 * 80 * 3
    for data_on, room, bound in (("device", image, 1e-6), ("auto", image // 2, 1e-5)):
        four = dataclasses.replace(one, name=data_on, batch=1, data_on=data_on)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        memory = 4 * 2 * room  # each may use a quarter of half of this
        torch.multiprocessing.start_processes(one_of_four, (four, port, memory), nprocs=4, start_method="fork")
        a, b = weights(run_in(one)), weights(run_in(four))
        assert max((a[key] - b[key]).abs().max() for key in a) < bound
        assert [r["loss"] for r in records(run_in(four)) if "loss" in r] == pytest.approx(losses, rel=1e-4)


def test_the_data_may_be_on_the_device_or_with_workers(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    made = {}
    for name, memory in (("device", 10**9), ("workers", 10**9), ("auto", 8 * 10**4)):
        monkeypatch.setattr(lmfn.training.batches, "available_memory", lambda _, memory=memory: memory)
        caplog.clear()
        assert script.train(dataclasses.replace(settings, name=name, data_on=name, steps=4)) == 0
        made[name] = weights(run_in(settings).with_name(name))
        said = {"device": "they stay there", "workers": "", "auto": "50% of the free 0.0 GB on cpu"}[name]
        assert said in caplog.text
        assert ("workers make the patches" in caplog.text) == (name == "auto")
        waiting = [r["waiting"] for r in records(run_in(settings).with_name(name)) if "loss" in r]
        assert all(0 < share < 1 for share in waiting)
    initial = LMFN(settings.network_config).state_dict()
    for name in ("workers", "auto"):
        assert max((made[name][key] - made["device"][key]).abs().max() for key in initial) < 1e-5
    with pytest.raises(ValueError, match=r"2 images, 0\.00 GB.*too little; use --data-on workers, or a larger"):
        script.train(dataclasses.replace(settings, name="small", data_on="device"))
    assert not run_in(settings).with_name("small").exists()


def test_accumulated_batches_make_the_step_of_one_large_batch(settings: Settings) -> None:
    large = dataclasses.replace(settings, name="large", batch=4, steps=4)
    small = dataclasses.replace(settings, name="small", batch=1, accumulate=4, steps=4)
    for each in (large, small):
        assert script.train(each) == 0
    a, b = weights(run_in(large)), weights(run_in(small))
    assert max((a[key] - b[key]).abs().max() for key in a) < 1e-6


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_save_and_leave(settings: Settings, monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    settings = dataclasses.replace(settings, steps=6)
    whole = dataclasses.replace(settings, name="whole")
    assert script.train(whole) == 0
    step = Log.step

    def interrupted(self: Log, at: object, *rest: float) -> None:
        step(self, at, *rest)
        if at.step == 3:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(Log, "step", interrupted)
        assert script.train(settings) == 128 + number
    assert signal.getsignal(number) == before
    states = RunFolder(run_in(settings)).states
    assert [path.stem for path in states] == ["step-00000004"]  # the step after the signal is the last
    assert script.train(dataclasses.replace(settings, resume="auto")) == 0
    a, b = weights(run_in(whole)), weights(run_in(settings))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_signal_in_the_last_validation_stops_nothing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    validate = Log.validate

    def interrupted(self: Log, at: Progress, *rest: Any) -> None:
        validate(self, at, *rest)
        if at.step == settings.steps:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Log, "validate", interrupted)
    assert script.train(settings) == 0
    assert f"done: {settings.steps} steps" in capsys.readouterr().err


def broken_loss(bad: Callable[[int], bool]) -> Callable[[Settings], Callable[[Tensor, Tensor], Tensor]]:
    def make(settings: Settings) -> Callable[[Tensor, Tensor], Tensor]:
        loss, calls = make_loss(settings), iter(range(1, 10_000))
        return lambda output, sharp: loss(output, sharp) * (math.nan if bad(next(calls)) else 1.0)

    return make


def test_steps_whose_loss_is_not_finite_are_skipped_and_counted(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "make_loss", broken_loss(lambda call: call in (2, 3, 7)))
    assert script.train(settings) == 0
    assert [record for record in records(run_in(settings)) if "skipped" in record][-1]["skipped"] == 3
    assert all(torch.isfinite(tensor).all() for tensor in weights(run_in(settings)).values())


def test_on_cuda_a_run_is_read_where_it_is_reported(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same weights and records, of fewer readings."""
    read, cuda = script.is_read_after, torch.device("cuda")
    counted: list[int] = []
    monkeypatch.setattr(step.Stepper, "read", lambda self, f=step.Stepper.read: counted.append(1) or f(self))
    settings = dataclasses.replace(settings, log_every=4, val_every=10)
    for name in ("often", "seldom"):
        with monkeypatch.context() as patch:
            patch.setattr(step, "make_loss", broken_loss(lambda call: call in (2, 3, 7)))
            if name == "seldom":
                patch.setattr(script, "is_read_after", lambda at, settings, _: read(at, settings, cuda))
            assert script.train(dataclasses.replace(settings, name=name)) == 0
    assert len(counted) == 10 + 4  # after the steps 4, 5, 8 and 10
    often, seldom = (run_in(settings).with_name(name) for name in ("often", "seldom"))
    for name in ("model", "ema"):
        a, b = weights(often, name), weights(seldom, name)
        assert all(torch.equal(a[key], b[key]) for key in a)
    timed = {"seconds", "images_per_second", "waiting"}
    one, other = ([{k: v for k, v in r.items() if k not in timed} for r in records(run)] for run in (often, seldom))
    assert one == other
    assert [RunFolder(run).states[-1].name for run in (often, seldom)] == ["step-00000010.safetensors"] * 2


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_twenty_skipped_steps_in_a_row_end_the_run(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    read = script.is_read_after
    monkeypatch.setattr(script, "is_read_after", lambda at, settings, _: read(at, settings, torch.device(device)))
    monkeypatch.setattr(step, "make_loss", broken_loss(lambda call: call > 5))
    with pytest.raises(FloatingPointError, match=r"not finite 20 steps in a row, up to step 25; .*state.* --lr"):
        script.train(dataclasses.replace(settings, steps=100, save_every=4))
    assert all(torch.isfinite(tensor).all() for tensor in weights(run_in(settings), "ema").values())


def test_fine_tuning_starts_from_the_weights_given(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    script.train(settings)
    assert (
        caplog.messages[0]
        == f"{settings.name} starts from random weights; --from lmfn starts from those of the package"
    )
    tuned = dataclasses.replace(
        settings, name="tuned", start_from=run_in(settings) / "ema.safetensors", network=(), steps=1, lr=1e-9
    )
    caplog.clear()
    script.train(tuned)
    assert caplog.messages[0] == f"tuned starts from the weights of {tuned.start_from}"
    caplog.clear()
    script.train(dataclasses.replace(tuned, resume="auto"))
    assert caplog.messages[0] == f"tuned continues from {run_in(tuned) / 'state' / 'step-00000001.safetensors'}"
    a, b = weights(run_in(settings), "ema"), weights(run_in(tuned))
    assert max((a[key] - b[key]).abs().max() for key in a) < 1e-7


def test_a_run_resumes_without_the_weights_that_it_started_from(settings: Settings) -> None:
    initial_network(settings).save_pretrained(settings.runs / "given")
    tuned = dataclasses.replace(settings, steps=4, save_every=2, start_from=settings.runs / "given", network=())
    whole = dataclasses.replace(tuned, name="whole")
    assert script.train(whole) == 0
    assert script.train(dataclasses.replace(whole, name="run", steps=2)) == 0
    shutil.rmtree(settings.runs / "given")
    assert script.train(dataclasses.replace(tuned, resume="auto")) == 0
    assert Settings.read(run_in(tuned) / "config.yaml") == tuned
    assert LMFN.from_pretrained(run_in(tuned)).config == LMFN.from_pretrained(run_in(whole)).config


def test_a_run_says_where_its_dead_units_come_from(
    settings: Settings, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """From random weights the remedy is other settings, which would not help a run that starts from dead units. The
    warning begins a line, although the bar is shown."""
    dead = initial_network(settings)
    for name, parameter in dead.named_parameters():
        if name.startswith("encoder.rb") and name.endswith("conv1.bias"):
            parameter.data.fill_(-100)
    dead.save_pretrained(settings.runs / "dead")
    remedies = ("Start again with a lower --lr", f"lmfn doctor --weights {settings.runs / 'dead'}")
    console = logging.StreamHandler(sys.stderr)
    logging.getLogger().addHandler(console)
    try:
        script.train(
            dataclasses.replace(settings, name="tuned", start_from=settings.runs / "dead", network=(), steps=1)
        )
    finally:
        logging.getLogger().removeHandler(console)
    (warning,) = (text for text in caplog.messages if "hardly ever fire" in text)
    assert [remedy in warning for remedy in remedies] == [False, True]
    assert warning in capsys.readouterr().err.replace("\r", "\n").splitlines()
    caplog.clear()
    blocks = {"encoder.rb_16th": Activity(8, 0.0, 8, 8)}
    log = Log(RunFolder(settings.runs / "tuned"), settings, Progress(), torch.device("cpu"), 1)
    log.activity(Progress(), blocks)
    log.close(Progress(), None)
    assert [remedy in caplog.text for remedy in remedies] == [True, False]


def test_frozen_parts_keep_their_weights(settings: Settings) -> None:
    frozen = dataclasses.replace(settings, freeze=("encoder", "rfdbs.0.fuse", "alfm.theta"), weight_decay=0.1)
    torch.manual_seed(settings.seed)
    first = initial_network(frozen).state_dict()
    script.train(dataclasses.replace(frozen, steps=2))
    script.train(dataclasses.replace(frozen, resume="auto"))
    for kind in ("model", "ema"):
        trained = weights(run_in(settings), kind)
        kept = {name for name in first if torch.equal(first[name], trained[name])}
        expected = {name for name in first if name.startswith(("encoder.", "rfdbs.0.fuse."))} | {"alfm.theta"}
        assert kept == expected, kind


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (("encoder", "alfm.the"), "--freeze alfm.the: the network has no such part; it consists of encoder, reduce"),
        (("encoder", "reduce", "rfdbs", "alfm", "acfm", "head"), "--freeze encoder .* head: nothing .* left to train"),
    ],
)
def test_parts_that_cannot_be_frozen_are_named(settings: Settings, parts: tuple[str, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        script.train(dataclasses.replace(settings, freeze=parts))
    assert not run_in(settings).exists()


LONG = "a.png is broken:\n  its header\n  DataError: and\nits end"


@pytest.mark.parametrize("kind", [ValueError, DataError])
def test_an_error_is_printed_whole(
    kind: type[ValueError], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> int:
        try:
            [][0]
        except IndexError as error:
            raise kind(LONG) from error

    monkeypatch.setattr(script, "train", fail)
    assert script.main(["--photos", "x"]) == 1
    assert capfd.readouterr().err == f"lmfn: {LONG}\n"

    def fail_in_a_worker(*_: object) -> int:
        try:
            fail()
        except kind:
            traces = traceback.format_exc()
            raise kind(f"Caught {kind.__name__} in DataLoader worker process 0.\nOriginal {traces}") from None
        return 0

    monkeypatch.setattr(script, "train", fail_in_a_worker)
    assert script.main(["--photos", "x"]) == 1
    assert capfd.readouterr().err == f"lmfn: {LONG}\n"


def test_another_network_begins_with_the_weights_that_fit_it(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    given = LMFN.from_preset("lmfn", rfdbs=2, features=16, similarity="cosine")
    given.save_pretrained(settings.runs / "given")
    file = settings.runs / "given" / "model.safetensors"
    caplog.set_level("INFO")
    same = initial_network(dataclasses.replace(settings, start_from=file, network=()))
    assert same.config == given.config
    changed = initial_network(dataclasses.replace(settings, start_from=file, network=("head=pixelshuffle", "rfdbs=3")))
    assert changed.config == dataclasses.replace(given.config, head="pixelshuffle", rfdbs=3)
    assert "new: alfm.fuse, head.conv, rfdbs.2" in caplog.text
    new = ("alfm.fuse.weight", "head.conv", "rfdbs.2")
    old = given.state_dict()
    for name, tensor in changed.state_dict().items():
        assert name.startswith(new) or torch.equal(tensor, old[name]), name
    released = dataclasses.replace(
        settings, start_from=file, preset="lmfn-released", network=("features=16", "rfdbs=2")
    )
    assert initial_network(released).config == LMFN.from_preset("lmfn-released", rfdbs=2, features=16).config


def test_a_damaged_state_is_named_and_the_one_before_it_taken(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    settings = replace(settings, steps=4, save_every=2)
    assert train(settings) == 0
    run = RunFolder(settings.runs / settings.name)
    older, newest = run.states
    content = bytearray(newest.read_bytes())
    content[-4000:-3000] = bytes(1000)
    newest.write_bytes(content)
    finished, _ = checkpoint.read(run.path / "ema.safetensors")
    assert train(replace(settings, resume="auto")) == 0
    assert f"{newest} is damaged" in caplog.text
    assert newest.with_suffix(".damaged").exists()
    again, _ = checkpoint.read(run.path / "ema.safetensors")
    assert all(torch.equal(tensor, finished[name]) for name, tensor in again.items())
    for state in (*run.states,):
        state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"all states in .* are damaged; start again with another --name"):
        train(replace(settings, resume="auto"))
    assert not older.exists()


def test_a_state_that_another_process_finds_damaged_first_is_passed_over(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(replace(settings, steps=4, save_every=2)) == 0
    run = RunFolder(settings.runs / settings.name)
    newest, read = run.states[-1], checkpoint.read

    def read_late(path: Path) -> object:
        if path == newest:
            newest.rename(newest.with_suffix(".damaged"))
        return read(path)

    monkeypatch.setattr(checkpoint, "read", read_late)
    assert run.load(initial_state(settings, Accelerator(cpu=True))).step == 2


def test_weights_that_are_not_finite_cost_no_good_state(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    settings = replace(settings, steps=2, save_every=1)
    assert train(settings) == 0
    run = RunFolder(settings.runs / settings.name)
    before = {state: state.read_bytes() for state in run.states}
    model = LMFN(settings.network_config)
    model.reduce.bias.data[0] = float("nan")
    state = TrainState(model, exponential_average(model), torch.optim.AdamW(model.parameters()), None)
    run.save(state, Progress(step=3))
    assert {state: state.read_bytes() for state in run.states} == before
    assert "step 3: weights are not finite" in caplog.text


def test_one_process_at_a_time_trains_in_a_folder(settings: Settings) -> None:
    run = RunFolder(settings.runs / settings.name)
    with run.lock(), pytest.raises(ValueError, match=rf"process {os.getpid()} trains in .*choose another --name"):
        train(settings)
    assert train(replace(settings, steps=1)) == 0


def test_leftovers_of_a_kill_are_removed(settings: Settings) -> None:
    run = RunFolder(settings.runs / settings.name)
    leftovers = [run.path / ".config.yaml.1.tmp", run.path / "state" / ".step-00000001.safetensors.1.tmp"]
    for path in leftovers:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    assert train(replace(settings, steps=1)) == 0
    assert not any(path.exists() for path in leftovers)


def test_resuming_with_other_settings_says_which(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    assert train(replace(settings, steps=1)) == 0
    arguments = [
        "--runs",
        str(settings.runs),
        "--name",
        settings.name,
        "--resume",
        "auto",
        "--batch",
        "3",
        "--seed",
        "9",
    ]
    parse_settings(arguments)
    assert f"another batch: 3; it was {settings.batch}" in caplog.text
    assert f"another seed: 9; it was {settings.seed}" in caplog.text
    assert "another name" not in caplog.text


DATA_ERROR = """
import sys
from pathlib import Path
from lmfn import images
from lmfn.training.loop import main

broken = Path(sys.argv[1])
read = images.read_rgb
from lmfn.data import sampling
def failing(path, *rest, **named):
    if Path(path) == broken:
        raise images.ImageError(f"{path} is truncated")
    return read(path, *rest, **named)
images.read_rgb = failing
sys.exit(main(sys.argv[2:]))
"""


def test_a_data_error_in_a_worker_ends_the_run(settings: Settings, photos: Path) -> None:
    """The workers end as well, although they are waiting for work; the process ends by itself."""
    broken = sorted(photos.glob("*"))[0]
    arguments = ["--runs", str(settings.runs), "--name", "broken", "--photos", str(photos), "--steps", "50"]
    arguments += ["--batch", "2", "--patch", "64", "--data-on", "workers", "--workers", "2", "--cache-gib", "0"]
    arguments += ["--device", "cpu", "--precision", "fp32"]
    done = subprocess.run(
        [sys.executable, "-c", DATA_ERROR, str(broken), *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert f"{broken} is truncated" in done.stderr.splitlines()[-1]


def test_minutes_end_the_run_and_the_cosine(settings: Settings) -> None:
    assert script.train(dataclasses.replace(settings, steps=None, minutes=0.03, log_every=1)) == 0
    rates = [record["lr"] for record in records(run_in(settings)) if "lr" in record]
    assert len(rates) > 1
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.5 * settings.lr


def test_compact_states_are_resumed_to_bfloat16_rounding(settings: Settings) -> None:
    compact = dataclasses.replace(settings, name="compact", compact_states=True)
    for each in (settings, compact):
        assert script.train(dataclasses.replace(each, steps=5)) == 0
        assert script.train(dataclasses.replace(each, resume="auto")) == 0
    state, small = (checkpoint.read(RunFolder(run_in(s)).states[-1])[0] for s in (settings, compact))
    assert state.keys() == small.keys()
    assert {t.dtype for name, t in small.items() if name.startswith("adam") and t.ndim} == {torch.bfloat16}
    assert all(small[name].dtype == t.dtype for name, t in state.items() if not name.startswith("adam"))
    a, b = weights(run_in(settings)), weights(run_in(compact))
    assert 0 < max((a[key] - b[key]).abs().max() for key in a) < 1e-4


def test_a_finished_run_is_not_overwritten_by_its_name(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    script.train(settings)
    with pytest.raises(ValueError, match="already contains a run"):
        parse_settings(["--name", "run", "--runs", str(settings.runs), "--photos", *settings.photos])
    resumed = parse_settings(["--name", "run", "--runs", str(settings.runs), "--resume", "auto"])
    again = [
        "--name",
        "run",
        "--photos",
        *settings.photos,
        "--network",
        *settings.network,
        "--runs",
        str(settings.runs),
    ]
    assert parse_settings([*again, "--resume", "auto"]) == resumed  # the original command also works
    assert dataclasses.replace(resumed, resume="never") == settings
    assert script.train(resumed) == 0
    assert "10 steps" in capsys.readouterr().err


def test_broken_data_is_named_before_anything_is_written(settings: Settings, tmp_path: Path) -> None:
    for path, words in ((tmp_path / "nowhere", "nowhere"), (tmp_path, "no images|holds no")):
        with pytest.raises(ValueError, match=words):
            script.train(dataclasses.replace(settings, photos=(str(path),)))
    assert not run_in(settings).exists()


def test_a_state_of_another_network_is_named(settings: Settings) -> None:
    script.train(settings)
    with pytest.raises(ValueError, match="does not fit the network of these settings"):
        script.train(dataclasses.replace(settings, resume="auto", network=(*settings.network, "rfdbs=2")))
