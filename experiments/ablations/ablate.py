"""The paper's ablations: the networks of one of its tables, trained and measured alike, with the paper's figures.

    python -m experiments.ablations.ablate encoder --data data/GoPro -o runs/ablations --steps 3000 \\
        -- --pairs data/GoPro --batch 8 --patch 128
"""

import json
import logging
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from tqdm import tqdm
from tyro.conf import Positional, arg

from lmfn import atomic
from lmfn.data import PairSet, find_pairs
from lmfn.device import choose_device, device_name
from lmfn.evaluation import Evaluator, measure_complexity, saved_bytes
from lmfn.evaluation.results import Complexity
from lmfn.network import LMFN, Network, preset

METRICS = ("psnr", "ssim_gauss2d")


@dataclass(frozen=True)
class Variant:
    """A network of a table."""

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    """Fields of LMFNConfig."""
    paper: str = ""
    """PSNR in dB on GoPro as reported in the paper, if it is."""
    preset: str = "lmfn"
    freeze: tuple[str, ...] = ()
    """Parts that keep their initial weights."""

    @property
    def run(self) -> str:
        """Name of its training run. It depends only on the network, so that tables share their runs."""
        frozen = [f"frozen-{part}" for part in self.freeze]
        return "-".join([self.preset, *(f"{key}-{value}" for key, value in self.changes.items()), *frozen])


WHOLE = "31.54"
TABLES: dict[str, tuple[Variant, ...]] = {
    "rfdbs": (
        Variant("1 RFDB", {"rfdbs": 1}, "29.8"),
        Variant("2 RFDBs", {"rfdbs": 2}, "29.8"),
        Variant("3 RFDBs", {"rfdbs": 3}, "29.8"),
        Variant("4 RFDBs", {}, WHOLE),
        Variant("5 RFDBs", {"rfdbs": 5}, f"hardly above {WHOLE}"),
        Variant("6 RFDBs", {"rfdbs": 6}, f"hardly above {WHOLE}"),
    ),
    "encoder": (
        Variant("MSHF", {}, WHOLE),
        Variant("stride-2 convolutions", {"encoder": "strided"}, "30.80"),
        Variant("ASPP", {"encoder": "aspp"}),
        Variant("pyramid pooling", {"encoder": "pyramid"}),
        Variant("MSHF without fusion", {"encoder": "unfused"}),
    ),
    "attention": (
        Variant("ALFM and ACFM", {}, WHOLE),
        Variant("neither", {"alfm": "none", "acfm": "none"}),
        Variant("concatenation", {"alfm": "concat", "acfm": "none"}, "31.00"),
        Variant("global average pooling", {"alfm": "pooled", "acfm": "none"}),
        Variant("spatial attention", {"alfm": "spatial", "acfm": "none"}),
        Variant("theta and alpha 0", freeze=("alfm.theta", "acfm.alpha")),
    ),
    "similarity": (Variant("dot product", {}, WHOLE), Variant("cosine", {"similarity": "cosine"})),
    "presets": (Variant("lmfn", {}, WHOLE), Variant("lmfn-released", {}, "", "lmfn-released")),
}
"""By name. The paper's differences (-0.74 dB without MSHF, -0.54 dB with concatenation) are taken from its 31.54 dB."""


@dataclass(frozen=True)
class VariantResult:
    """The figures of a network, by seed in the order of the seeds."""

    variant: Variant
    complexity: Complexity
    saved: float
    """Bytes saved for backward per pixel of the image, float32."""
    psnr: tuple[float, ...]
    ssim: tuple[float, ...]
    seconds: float
    """Median time of a forward pass at `size`."""
    size: str


def ablate(
    table: str,
    pairs: PairSet,
    out: Path,
    *,
    steps: int,
    seeds: Sequence[int] = (0,),
    images: int | None = None,
    settings: Sequence[str] = (),
    device: torch.device | str = "cpu",
) -> str:
    """Train every row of a table of `TABLES` for `steps` steps and every seed, on the same patches in the same order;
    measure each on the pairs (`images` of them, spread evenly) by protocol `plain`; write and return OUT/TABLE.md.

    `settings` are options of `lmfn train` other than the network, the steps and the seed: data, batch, patch, rate.
    Runs are in OUT/runs and are shared by tables with the same OUT; interrupted runs are resumed, measured ones are
    kept.

    Raises ValueError for an unknown table, bad pairs, no seed, and an OUT that contains runs with other settings;
    ChildProcessError if a training run fails.
    """
    if table not in TABLES:
        raise ValueError(f"unknown table {table!r}; there are {', '.join(TABLES)}")
    if not seeds:
        raise ValueError("no seed was given; one is enough: --seeds 0")
    for name, number in (("steps", steps), ("images", images)):
        if number is not None and number < 1:
            raise ValueError(f"{name} is {number}; it must be at least 1")
    if images is not None:
        pairs = pairs.spread(images)
    evaluator = Evaluator(pairs, protocol="plain", metrics=METRICS, device=device, keep=True, progress=False)
    run_settings = {"steps": steps, "settings": list(settings), "data": pairs.root.resolve().name, "pairs": len(pairs)}
    check_run_settings(out, run_settings | {"images": evaluator.digest()})
    results = []
    for variant in tqdm(TABLES[table], desc=table, unit="network"):
        measured = [train_and_evaluate(variant, seed, out / "runs", evaluator, steps, settings) for seed in seeds]
        model = Network(preset(variant.preset, **variant.changes))
        means = [record["means"]["deblurred"] for record in measured]
        results.append(
            VariantResult(
                variant,
                measure_complexity(model),
                saved_bytes(model) / 256**2,
                tuple(float(mean["psnr"]) for mean in means),
                tuple(float(mean["ssim_gauss2d"]) for mean in means),
                statistics.median(float(record["time"]["seconds"]) for record in measured),
                measured[0]["time"]["size"],
            )
        )
    text = markdown(table, results, measured[0], run_settings, seeds)
    atomic.write(out / f"{table}.md", text.encode())
    return text


def check_run_settings(out: Path, run_settings: dict[str, Any]) -> None:
    """Record the settings of the runs in `out`; raises ValueError if it contains runs with other settings."""
    file = out / "settings.json"
    if not (out / "runs").exists():
        atomic.write(file, (json.dumps(run_settings, indent=2) + "\n").encode())
    before = json.loads(file.read_text(encoding="utf-8"))
    if different := [name for name in run_settings if before.get(name) != run_settings[name]]:
        raise ValueError(f"{out} contains runs with another {', '.join(different)} ({file}); name another folder")


def train_and_evaluate(
    variant: Variant, seed: int, runs: Path, evaluator: Evaluator, steps: int, settings: Sequence[str]
) -> dict[str, Any]:
    """The evaluation of a network after training, as from `Evaluation.to_dict`; cached in the run's folder, and made
    again on another device, so that a table has the times of one."""
    name = f"{variant.run}-seed-{seed}"
    file = runs / name / "evaluation.json"
    if not file.exists():
        run = ["--runs", str(runs), "--name", name, "--resume", "auto", "--steps", str(steps), "--seed", str(seed)]
        network = ["--preset", variant.preset]
        if variant.changes:
            network += ["--network", *(f"{key}={value}" for key, value in variant.changes.items())]
        if variant.freeze:
            network += ["--freeze", *variant.freeze]
        ended = subprocess.run([sys.executable, "-m", "lmfn", "train", *settings, *run, *network], check=False)
        if ended.returncode:
            raise ChildProcessError(
                f"{name}: training ended with status {ended.returncode}; the same command resumes it"
            )
    measured: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if measured.get("device") != device_name(evaluator.device):
        weights = runs / name / "ema.safetensors"
        evaluation = evaluator(LMFN.from_pretrained(weights), str(weights))
        evaluation.write(file)
        measured = evaluation.to_dict()
    return measured


def markdown(
    table: str,
    results: Sequence[VariantResult],
    measured: dict[str, Any],
    run_settings: dict[str, Any],
    seeds: Sequence[int],
) -> str:
    """The table, and everything its figures depend on."""
    size = results[0].size
    lines = [
        f"| {table} | parameters | GMACs 256x256 | GMACs 1280x720 | saved, bytes per pixel | PSNR (dB) | SSIM gauss2d "
        f"| ms at {size} | the paper's PSNR |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        costs, gmacs = result.complexity, result.complexity.gmacs
        lines.append(
            f"| {result.variant.name} | {costs.parameters:,} | {gmacs['256x256']:.2f} | {gmacs['1280x720']:.2f} "
            f"| {result.saved:,.0f} | {_spread(result.psnr, 2)} | {_spread(result.ssim, 4)} "
            f"| {result.seconds * 1e3:,.0f} | {result.variant.paper} |"
        )
    blurred = measured["means"]["blurred"]
    several = (
        f"mean of seeds {', '.join(map(str, seeds))}, minimum and maximum in parentheses"
        if len(seeds) > 1
        else f"seed {seeds[0]}"
    )
    s = run_settings
    lines += [
        "",
        f"{s['steps']} steps each, {several}; {s['pairs']} pairs of {s['data']}, protocol plain, the averaged weights; "
        f"the blurred images have {blurred['psnr']:.2f} dB and {blurred['ssim_gauss2d']:.4f}. "
        f"{measured['device']}, {measured['threads']} threads, {measured['precision']}. "
        f"lmfn train: `{' '.join(s['settings'])}`",
    ]
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float], digits: int) -> str:
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


@dataclass(frozen=True)
class Arguments:
    """Train and measure the networks of one of the paper's tables alike, and write the table.

    lmfn ablate encoder --data data/GoPro -o runs/ablations --steps 3000 -- --pairs data/GoPro --batch 8 --patch 128
    """

    table: Positional[Literal["rfdbs", "encoder", "attention", "similarity", "presets"]]
    train: Positional[tuple[str, ...]]
    """After --, options of `lmfn train` other than the network, steps and seed: data, batch, patch, rate."""
    data: Path
    """Pairs to measure on (their test split, if they have splits)."""
    out: Annotated[Path, arg(aliases=["-o"])]
    """Folder for runs and tables. Tables share their runs; interrupted runs are resumed."""
    steps: int
    seeds: tuple[int, ...] = (0,)
    """Train each network once with each of these seeds."""
    images: int | None = None
    """Measure on this many of the pairs, spread evenly (default: all)."""
    device: str | None = None
    """A torch device to measure on; default: a GPU if available."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (default: the process's): 0, or 1 for an error, which is printed."""
    a = tyro.cli(Arguments, prog="lmfn ablate", args=arguments)
    logging.basicConfig(format="%(message)s")
    try:
        text = ablate(
            a.table,
            find_pairs(a.data, split="test"),
            a.out,
            steps=a.steps,
            seeds=a.seeds,
            images=a.images,
            settings=a.train,
            device=choose_device(a.device),
        )
        print(text)
    except (ValueError, OSError, ArithmeticError) as error:
        print(f"lmfn ablate: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
