"""Train from the included weights on a GPU for some minutes, faster than `train.py` does.

python experiments/weights/on_a_gpu.py DATA OUT --seconds 240

Three things differ from `train.py`. Patches are made before the training, as many as fit into the time, and the
training draws crops of them, flipped and transposed, on the device: making them takes more launches than the step that
uses them. The host never waits for the device: Adam's kernel skips a step that is not finite by itself, and losses are
read every fifty steps. Hidden units of the residual blocks that hardly ever fire get new weights first.

It validates every 2,000 steps, and stops where a tenth of the time has made the network worse than it was.

DATA is a folder with gopro/, reds/, photos/, photos_open/, frames_240fps/ and val/ (docs/weights.md lists the sources).
OUT/gpu is a folder as `train.py` writes it.
"""

import argparse
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from lmfn.data.rendering import Patch
from lmfn.data.resident import ResidentSet
from lmfn.data.sampling import TrainingSet
from lmfn.network.activity import RARELY, summarise, unit_activity
from lmfn.network.blocks import RB, weight_and_bias
from lmfn.network.pretrained import LMFN
from lmfn.options import BlurKinds, BlurOptions
from lmfn.training.loop import validation_set
from lmfn.training.objective import exponential_average, learning_rate
from lmfn.training.run import Log, Progress, RunFolder, TrainState
from lmfn.training.settings import Settings
from lmfn.training.step import gradient_function

KINDS = BlurKinds(sharp=0.08, soft=0.08, jpeg=0.05, text=0.06, pattern=0.12, flat=0.05)
"""Half as much as by default is to be left alone."""


@dataclass(frozen=True)
class Phase:
    begins: float
    """Share of the training time."""
    batch: int
    patch: int
    side: int
    """Of the patches made beforehand, from which it takes crops."""
    most: int
    """Patches made beforehand."""
    seconds: float
    """Time to make them; what is not ready then is left out."""
    together: int
    """Patches made at once."""


VALIDATED = 2000
"""Steps between validations."""
PHASES = (Phase(0.0, 16, 256, 320, 40_000, 20.0, 160), Phase(0.82, 8, 384, 416, 6_666, 6.0, 80))
"""The second phase has the size of the windows in which ALFM attends. Images smaller than `side` are left out."""


def settings(data: Path, out: Path, seconds: float, rate: float) -> Settings:
    photos = data / "photos"
    return Settings(
        name="gpu",
        runs=out,
        pairs=(f"{data / 'gopro'}=1.5", f"{data / 'reds'}=1.2", f"{photos},{photos}=0.1"),
        frames=(f"{data / 'frames_240fps'}=1.3",),
        photos=(f"{photos}=7", f"{data / 'photos_open'}=4"),
        blur=BlurOptions(kinds=KINDS, length=(1.0, 22.0)),
        val=data / "val",
        loss="l1",
        fft=4.0,
        clip=4.0,
        lr=rate,
        warmup=200,
        batch=PHASES[0].batch,
        patch=PHASES[0].patch,
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


def made(data: TrainingSet, patches: list[Patch], phase: Phase, device: torch.device) -> Tensor:
    """Blurred and sharp patches, uint8 `[N, 2, side, side, 3]`."""
    resident = ResidentSet(data, device, progress=False)
    pool = torch.empty(len(patches), 2, phase.side, phase.side, 3, dtype=torch.uint8, device=device)
    end, count = time.monotonic() + phase.seconds, 0
    while count < len(patches) and time.monotonic() < end:
        part = patches[count : count + phase.together]
        for which, images in enumerate(resident(part)):
            pool[count : count + len(part), which] = images.permute(0, 2, 3, 1)
        count += len(part)
        torch.cuda.synchronize()
    return pool[:count]


@torch.no_grad()
def revive(model: LMFN, images: Tensor) -> int:
    """Draw new weights for hidden units that hardly ever fire; how many. What they add starts next to nothing, so the
    network's function stays as it is."""
    shares, count = unit_activity(model, images), 0
    for name, block in model.named_modules():
        if isinstance(block, RB):
            for unit in (shares[name] < RARELY).nonzero().flatten().tolist():
                of_unit, outgoing = block.conv1.weight[unit], block.conv2.weight[:, unit]
                of_unit.normal_(std=(2 / of_unit.numel()) ** 0.5)
                weight_and_bias(block.conv1).bias[unit] = 0.0
                outgoing.normal_(std=1e-3)
                count += 1
    return count


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
        number, top, left, flips_y, flips_x, swaps = drawn.pin_memory().to(pool.device, non_blocking=True)
        rows = (top + torch.where(flips_y > 0, along.flip(0), along)) * side
        columns = left + torch.where(flips_x > 0, along.flip(0), along)
        straight = rows[:, :, None] + columns[:, None, :]
        place = torch.where(swaps[:, :, None] > 0, straight.mT, straight) + number[:, :, None] * (2 * side**2)
        blurred, sharp = (pixels[place + which * side**2].permute(0, 3, 1, 2).float().div_(255) for which in (0, 1))
        yield blurred, sharp


def train(run: RunFolder, s: Settings, model: LMFN, pools: list[Tensor], seconds: float) -> None:
    accelerator, device = Accelerator(mixed_precision="bf16"), pools[0].device
    model.train().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    parameters: list[Tensor] = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=s.lr, weight_decay=0.0, fused=True)
    state, at = TrainState(model, exponential_average(model, s.ema), optimizer, None), Progress()
    averages: list[Tensor] = list(state.ema.module.parameters())
    run.path.mkdir(parents=True, exist_ok=True)
    run.begin(s, 0)
    log = Log(run, s, at, device, 1)
    validation = validation_set(s, device)
    assert validation is not None
    start = validation(model).deblurred["psnr"]
    skipped, began, done, phases = (
        torch.zeros((), device=device),
        time.monotonic(),
        0.0,
        list(zip(PHASES, pools, strict=True)),
    )
    while done < 1:
        done = min(1.0, (time.monotonic() - began) / seconds)
        if phases and done >= phases[0][0].begins:
            phase, pool = phases.pop(0)
            batches = crops(pool, phase.batch, phase.patch, at.step + phase.patch)
            gradients = gradient_function(s, accelerator, model)  # of this size: its CUDA graph
        blurred, sharp = next(batches)
        loss, _ = gradients(blurred, sharp)
        norm = torch.nn.utils.clip_grad_norm_(parameters, s.clip or float("inf"))
        # The fused kernel skips the step by itself, as it does for a GradScaler.
        optimizer.found_inf = (~(loss.isfinite() & norm.isfinite())).float()  # type: ignore[attr-defined]
        skipped += optimizer.found_inf  # type: ignore[attr-defined]
        rate = learning_rate(s, at.step, done)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, parameters, 1 - min(s.ema, (1 + at.step) / (10 + at.step)))
        at.step += 1
        if at.step % s.log_every == 0 or done >= 1:
            last_loss, last_norm, bad = torch.stack([loss, norm, skipped]).tolist()
            at.seconds, at.skipped = time.monotonic() - began, int(bad)
            log.step(at, done, last_loss, rate, last_norm, 0.0)
        if at.step % VALIDATED == 0:
            paused, found = time.monotonic(), validation(state.ema.module).deblurred
            run.record(at.step, event="validation", **found)
            if done > 0.1 and found["psnr"] < start:
                raise SystemExit(
                    f"step {at.step}: {found['psnr']:.2f} dB, after {start:.2f} dB at the start; lower --rate"
                )
            began += time.monotonic() - paused
    run.save(state, at)
    with accelerator.autocast():
        log.activity(at, summarise(unit_activity(model, blurred)))
    print(f"{start:.2f} dB before, now", validation(state.ema.module).deblurred)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rate", type=float, default=3e-4, help="learning rate")
    parser.add_argument("--seconds", type=float, default=240.0, help="training time, without the preparation")
    options = parser.parse_args()
    s = settings(options.data, options.out, options.seconds, options.rate)
    sets = []
    for number, phase in enumerate(PHASES):
        pairs = tuple(pair for pair in s.pairs if phase.side <= 320 or "reds" not in pair)  # REDS: crops of 320x320
        sets.append(TrainingSet(replace(s, pairs=pairs).sources, patch=phase.side, seed=number, blur=s.blur))
    drawn = [plans(data, phase.most) for data, phase in zip(sets, PHASES, strict=True)]
    device = torch.device("cuda")
    pools = [made(*one, device) for one in zip(sets, drawn, PHASES, strict=True)]
    given = LMFN.from_pretrained("lmfn")
    model = LMFN(replace(given.config, alfm_window=None))
    model.load_state_dict(given.state_dict())
    torch.manual_seed(0)
    sample = pools[0][:8, 0, :128, :128].permute(0, 3, 1, 2).float().cpu() / 255
    print(f"{revive(model, sample)} units have new weights; {[len(pool) for pool in pools]} patches")
    train(RunFolder(s.runs / s.name), s, model, pools, options.seconds)


if __name__ == "__main__":
    main()
