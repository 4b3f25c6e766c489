"""Train on a GPU for some minutes from patches made beforehand, or compare short runs.

    python experiments/weights/on_a_gpu.py DATA OUT --seconds 240        # a long run from random weights
    python experiments/weights/on_a_gpu.py DATA OUT --study 1200         # each recipe for 1,200 steps

The steps are those of `train.py`, the patches are not: they are made before the training, as many as fit into the time,
and the training draws crops of them, flipped and transposed, on the device.

A long run validates every 2,000 steps. Where the network has become worse by 0.3 dB than it was, the run goes back to
its best state and goes on at half the rate. OUT/gpu/state continues in another run: `--resume`.

DATA is a folder with gopro/, reds/, photos/, photos_open/, frames_240fps/ and val/ (docs/weights.md lists the sources).
OUT/gpu is a folder as `train.py` writes it; OUT/study.jsonl has a line per recipe.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from accelerate import Accelerator
from revive import revive
from torch import Tensor

from lmfn.data.rendering import Patch
from lmfn.data.resident import ResidentSet
from lmfn.data.sampling import TrainingSet
from lmfn.device import autocast, sent
from lmfn.network.activity import summarise, unit_activity
from lmfn.network.config import preset
from lmfn.network.pretrained import LMFN
from lmfn.options import BlurKinds, BlurOptions
from lmfn.training.loop import validation_set
from lmfn.training.objective import exponential_average, learning_rate
from lmfn.training.run import Log, Progress, RunFolder, TrainState
from lmfn.training.settings import Settings
from lmfn.training.step import Stepper

KINDS = BlurKinds(sharp=0.08, soft=0.08, jpeg=0.05, text=0.06, pattern=0.12, flat=0.05)
"""Half as much as by default is to be left alone."""
HELD_OUT = 256
"""Patches that are not trained on, to compare by."""
VALIDATED = 2000
"""Steps between validations."""
REDS = 320
"""Height and width of the images in reds/."""


@dataclass(frozen=True)
class Pool:
    """Patches made before the training."""

    side: int
    """Height and width; crops of at most this size are trained on. No image may be smaller; reds/ is left out of
    patches larger than its images."""
    most: int
    """Number of patches, if there is time for them."""
    least: int
    """Number of patches that are made however long it takes."""
    seconds: float
    """Time to make the others."""
    together: int
    """Patches made at once."""


@dataclass(frozen=True)
class Phase:
    begins: float
    """Share of the training time."""
    batch: int
    patch: int
    pool: int
    """Index in `POOLS`."""


@dataclass(frozen=True)
class Recipe:
    """What the study varies."""

    rate: float = 4e-4
    batch: int = 64
    patch: int = 128
    loss: str = "l1"
    fft: float = 4.0
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 0.5
    start: str | None = None
    """Weights to start from; hidden units that never fire get new weights first."""


POOLS = (Pool(320, 40_000, 8_000, 20.0, 160), Pool(416, 6_666, 1_600, 6.0, 80))
PHASES = (Phase(0.0, 64, 128, 0), Phase(0.3, 16, 256, 0), Phase(0.75, 8, 384, 1))
"""Of the long run. The last one has the size of the windows in which ALFM attends."""
STUDY = (
    Recipe(),
    Recipe(rate=2e-4),
    Recipe(rate=8e-4),
    Recipe(batch=16, patch=256),
    Recipe(fft=0.0),
    Recipe(loss="charbonnier", fft=0.5),
    Recipe(betas=(0.9, 0.9)),
    Recipe(rate=1e-4, start="lmfn"),
)


def settings(data: Path, out: Path, recipe: Recipe, seconds: float) -> Settings:
    photos = data / "photos"
    return Settings(
        name="gpu",
        runs=out,
        pairs=(f"{data / 'gopro'}=2.5", f"{data / 'reds'}=1.8", f"{photos},{photos}=0.1"),
        frames=(f"{data / 'frames_240fps'}=1",),
        photos=(f"{photos}=6", f"{data / 'photos_open'}=3"),
        blur=BlurOptions(kinds=KINDS, length=(1.0, 22.0)),
        val=data / "val",
        loss=recipe.loss,  # type: ignore[arg-type]
        fft=recipe.fft,
        clip=recipe.clip,
        lr=recipe.rate,
        betas=recipe.betas,
        warmup=200,
        batch=recipe.batch,
        patch=recipe.patch,
        minutes=seconds / 60,
        precision="bf16",
        log_every=50,
    )


def planned(numbers: range, data: TrainingSet) -> list[Patch]:
    return [data.plan(n) for n in numbers]


def plans(data: TrainingSet, count: int) -> list[Patch]:
    """By all processors; before CUDA is initialised, since they are forks."""
    step = max(1, count // 112)
    parts = [range(first, min(first + step, count)) for first in range(0, count, step)]
    with get_context("fork").Pool(os.cpu_count()) as workers:
        return [patch for part in workers.map(partial(planned, data=data), parts) for patch in part]


def made(data: TrainingSet, patches: list[Patch], pool: Pool, device: torch.device) -> Tensor:
    """Blurred and sharp patches, uint8 `[N, 2, side, side, 3]`."""
    resident = ResidentSet(data, device, progress=False)
    pixels = torch.empty(len(patches), 2, pool.side, pool.side, 3, dtype=torch.uint8, device=device)
    end, count = time.monotonic() + pool.seconds, 0
    while count < len(patches) and (count < pool.least or time.monotonic() < end):
        part = patches[count : count + pool.together]
        for which, images in enumerate(resident(part)):
            pixels[count : count + len(part), which] = images.permute(0, 2, 3, 1)
        count += len(part)
        if device.type == "cuda":
            torch.cuda.synchronize()
    return pixels[:count]


def network(start: str | None, sample: Tensor) -> LMFN:
    """With attention over the whole patch, as in training, and otherwise as the shipped weights are used."""
    torch.manual_seed(0)
    if start is None:
        return LMFN(preset("lmfn", similarity="cosine", esa_grid="fixed"))
    given = LMFN.from_pretrained(start)
    model = LMFN(replace(given.config, alfm_window=None))
    model.load_state_dict(given.state_dict())
    print(f"{revive(model, sample)} units have new weights")
    return model


def crops(pool: Tensor, batch: int, patch: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of random crops of the pool in random symmetries: blurred and sharp, float32 `[B, 3, patch, patch]`."""
    count, _, side, _, _ = pool.shape
    generator, pixels = torch.Generator().manual_seed(seed), pool.view(-1, 3)
    along = torch.arange(patch, device=pool.device)

    def draw(below: int) -> Tensor:
        return torch.randint(below, (batch, 1), generator=generator)

    while True:
        corner = side - patch + 1
        drawn = torch.stack([draw(below) for below in (count, corner, corner, 2, 2, 2)])
        number, top, left, flips_y, flips_x, swaps = sent(drawn, pool.device)
        rows = (top + torch.where(flips_y > 0, along.flip(0), along)) * side
        columns = left + torch.where(flips_x > 0, along.flip(0), along)
        straight = rows[:, :, None] + columns[:, None, :]
        place = torch.where(swaps[:, :, None] > 0, straight.mT, straight) + number[:, :, None] * (2 * side**2)
        blurred, sharp = (pixels[place + which * side**2].permute(0, 3, 1, 2).float().div_(255) for which in (0, 1))
        yield blurred, sharp


def first_state(s: Settings, model: LMFN, device: torch.device) -> TrainState:
    model.train().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=s.lr, betas=s.betas, weight_decay=s.weight_decay, fused=device.type == "cuda"
    )
    return TrainState(model, exponential_average(model), optimizer, None)


@torch.no_grad()
def gain(model: torch.nn.Module, held_out: Tensor) -> float:
    """Gain in dB of a network on the held-out patches that are blurred, uint8 `[N, 2, side, side, 3]`, in the mean."""
    gains = []
    for part in held_out.split(16):
        blurred, sharp = part.permute(1, 0, 4, 2, 3).float().div(255)
        with autocast(blurred.device, "bf16"):
            output = model(blurred.contiguous(memory_format=torch.channels_last)).float()
        errors = [(image.clamp(0, 1) - sharp).square().mean((1, 2, 3)) for image in (blurred, output)]
        gains += [10 * (before / after).log10() for before, after in zip(*errors, strict=True) if before > 1e-4]
    return float(torch.stack(gains).mean())


def study(data: Path, out: Path, pools: Sequence[Tensor], steps: int) -> None:
    """Train by each recipe, on the same patches in the same order."""
    device, sample = pools[0].device, sample_of(pools[0])
    evaluator = validation_set(settings(data, out, Recipe(), 60), device)
    assert evaluator is not None
    training_pool, held_out = pools[0][:-HELD_OUT], pools[0][-HELD_OUT:, :, :256, :256]
    for recipe in STUDY:
        s = settings(data, out, recipe, 60)
        state = first_state(s, network(recipe.start, sample), device)
        batches = crops(training_pool, recipe.batch, recipe.patch, 0)
        stepper = Stepper(s, Accelerator(mixed_precision="bf16"), state, batches)
        stepper.step(learning_rate(s, 0, 0.0))
        ends, began = stepper.read(), time.monotonic()
        for number in range(1, steps):
            stepper.step(learning_rate(s, number, number / steps))
        ends += stepper.read()
        seconds, model = time.monotonic() - began, state.ema.module
        with autocast(device, "bf16"):
            dead = sum(one.dead for one in summarise(unit_activity(model, sample.to(device))).values())
        found = {
            "synthetic_gain": gain(model, held_out),
            "psnr": evaluator(model).deblurred["psnr"],
            "dead": dead,
            "norm": ends[-1].norm,
            "skipped": sum(end.bad for end in ends),
            "seconds": seconds,
        }
        line = json.dumps({**asdict(recipe), "steps": steps, **found})
        with (out / "study.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)


def sample_of(pool: Tensor) -> Tensor:
    return pool[:8, 0, :128, :128].permute(0, 3, 1, 2).float().cpu() / 255


class Best:
    """The best state of a run so far, by its gain on the held-out patches."""

    def __init__(self, state: TrainState) -> None:
        self.state, self.gain, self.slower = state, -math.inf, 1.0

    def tensors(self) -> list[Tensor]:
        moments = [t for one in self.state.optimizer.state.values() for t in one.values()]
        return [*self.state.model.parameters(), *self.state.ema.module.parameters(), *moments]

    @torch.no_grad()
    def keep_or_go_back(self, found: float) -> None:
        """Keep the state if its gain `found`, in dB, is the largest; return to the kept one if it is 0.3 dB less."""
        if found > self.gain:
            self.gain, self.kept = found, [tensor.clone() for tensor in self.tensors()]
        elif found < self.gain - 0.3:
            torch._foreach_copy_(self.tensors(), self.kept)
            self.slower /= 2
            print(
                f"{found:+.2f} dB after {self.gain:+.2f}: back to that state, at {self.slower} of the rate", flush=True
            )


def train(data: Path, out: Path, pools: Sequence[Tensor], recipe: Recipe, seconds: float, *, resume: bool) -> None:
    """A run with all phases, which follows the clock."""
    device, held_out = pools[0].device, pools[0][-HELD_OUT:, :, :256, :256]
    s = settings(data, out, recipe, seconds)
    state = first_state(s, network(recipe.start, sample_of(pools[0])), device)
    run, accelerator = RunFolder(s.runs / s.name), Accelerator(mixed_precision="bf16")
    run.path.mkdir(parents=True, exist_ok=True)
    at = run.load(state) if resume else Progress()
    run.begin(s, at.step)
    log, evaluator, best = Log(run, s, at, device, 1), validation_set(s, device), Best(state)
    assert evaluator is not None
    began, done, phases, first, before = time.monotonic(), 0.0, list(PHASES), at.step, at.seconds
    while done < 1:
        if phases and done >= phases[0].begins and (at.step == first or at.step % s.log_every == 0):
            phase = phases.pop(0)
            log.images_a_step = phase.batch
            batches = crops(pools[phase.pool][:-HELD_OUT], phase.batch, phase.patch, at.step + phase.patch)
            stepper = Stepper(s, accelerator, state, batches)  # captures a CUDA graph for this size
        rate = best.slower * learning_rate(s, at.step - first, done)
        blurred, _, _ = stepper.step(rate)
        at.step += 1
        done = min(1.0, (time.monotonic() - began) / seconds)
        if at.step % s.log_every == 0 or done >= 1:
            ends = stepper.read()
            at.seconds, at.skipped = before + time.monotonic() - began, at.skipped + sum(end.bad for end in ends)
            log.step(at, done, [end.loss for end in ends], rate, ends[-1].norm, 0.0)
        if at.step % VALIDATED == 0 or done >= 1:
            paused, found = time.monotonic(), gain(state.ema.module, held_out)
            psnr = evaluator(state.ema.module).deblurred["psnr"]
            run.record(at.step, event="validation", psnr=psnr, held_out=found)
            print(f"step {at.step}, {done:.0%}: {psnr:.2f} dB, {found:+.2f} dB on held-out patches", flush=True)
            best.keep_or_go_back(found)
            run.save(state, at, compact=True)
            began += time.monotonic() - paused
    with accelerator.autocast():
        log.activity(at, summarise(unit_activity(state.model, blurred)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--study", type=int, metavar="STEPS", help="compare recipes by this many steps of each")
    parser.add_argument("--rate", type=float, default=8e-4, help="learning rate of a long run")
    parser.add_argument("--seconds", type=float, default=240.0, help="training time, without the preparation")
    parser.add_argument("--start", help="weights to start from; default: random ones")
    parser.add_argument("--resume", action="store_true", help="continue from the state in OUT/gpu, at a new rate")
    options = parser.parse_args()
    s = settings(options.data, options.out, Recipe(), 60)
    pools_needed = POOLS[:1] if options.study else POOLS
    sets = []
    for number, pool in enumerate(pools_needed):
        large = pool.side > REDS
        pairs = tuple(pair for pair in s.pairs if not (large and pair.startswith(str(options.data / "reds"))))
        sets.append(TrainingSet(replace(s, pairs=pairs).sources, patch=pool.side, seed=number, blur=s.blur))
    drawn = [plans(data, pool.most) for data, pool in zip(sets, pools_needed, strict=True)]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options.out.mkdir(parents=True, exist_ok=True)
    pools = [made(*one, device) for one in zip(sets, drawn, pools_needed, strict=True)]
    print(f"{[len(pool) for pool in pools]} patches", flush=True)
    if options.study:
        study(options.data, options.out, pools, options.study)
    else:
        recipe = Recipe(rate=options.rate, betas=(0.9, 0.99), clip=0.2, start=options.start)
        train(options.data, options.out, pools, recipe, options.seconds, resume=options.resume)


if __name__ == "__main__":
    main()
