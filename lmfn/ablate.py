"""The paper's tables, each row a config: trained alike, measured alike, one table beside the paper's own numbers."""

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

import lmfn
from lmfn import atomic
from lmfn.data.layouts import PairSet
from lmfn.evaluation import Evaluator, measure_complexity
from lmfn.evaluation.results import Complexity
from lmfn.network import LMFN, preset

METRICS = ("psnr", "ssim_gauss2d")


@dataclass(frozen=True)
class Row:
    """A network of a table."""

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    """Fields of LMFNConfig."""
    paper: str = ""
    """PSNR in dB on GoPro that the paper reports, where it does."""
    preset: str = "lmfn"

    @property
    def run(self) -> str:
        """Name of its training run: the network alone decides it, so that tables share their runs."""
        return "-".join([self.preset, *(f"{key}-{value}" for key, value in self.changes.items())])


WHOLE = "31.54"
TABLES: dict[str, tuple[Row, ...]] = {
    "rfdbs": (
        Row("1 RFDB", {"rfdbs": 1}, "29.8"),
        Row("2 RFDBs", {"rfdbs": 2}, "29.8"),
        Row("3 RFDBs", {"rfdbs": 3}, "29.8"),
        Row("4 RFDBs", {}, WHOLE),
        Row("5 RFDBs", {"rfdbs": 5}, f"hardly above {WHOLE}"),
        Row("6 RFDBs", {"rfdbs": 6}, f"hardly above {WHOLE}"),
    ),
    "encoder": (
        Row("MSHF", {}, WHOLE),
        Row("stride-2 convolutions", {"encoder": "strided"}, "30.80"),
        Row("ASPP", {"encoder": "aspp"}),
        Row("pyramid pooling", {"encoder": "pyramid"}),
    ),
    "attention": (
        Row("ALFM and ACFM", {}, WHOLE),
        Row("neither", {"alfm": "none", "acfm": "none"}),
        Row("concatenation", {"alfm": "concat", "acfm": "none"}, "31.00"),
        Row("global average pooling", {"alfm": "pooled", "acfm": "none"}),
        Row("spatial attention", {"alfm": "spatial", "acfm": "none"}),
    ),
    "similarity": (Row("dot product", {}, WHOLE), Row("cosine", {"similarity": "cosine"})),
    "presets": (Row("lmfn", {}, WHOLE), Row("lmfn-released", {}, "", "lmfn-released")),
}
"""By name. The paper's differences (-0.74 dB without MSHF, -0.54 dB with concatenation) are taken from its 31.54 dB."""


@dataclass(frozen=True)
class Result:
    """A row's figures; those of several seeds in the order of the seeds."""

    row: Row
    complexity: Complexity
    saved: float
    """Bytes kept for the backward pass a pixel of the image, float32."""
    psnr: tuple[float, ...]
    ssim: tuple[float, ...]
    seconds: float
    """Of a forward pass at `size`, median."""
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

    `settings` is what train.py is told beside the network, the steps and the seed: data, batch, patch, rate. Runs are
    in OUT/runs and are shared by tables with the same OUT; one that was cut off goes on, one that is measured stays.

    Raises ValueError for an unknown table, bad pairs, no seed, and where OUT holds runs with other settings;
    FileNotFoundError where there is no train.py, and ChildProcessError where a training run fails.
    """
    if table not in TABLES:
        raise ValueError(f"unknown table {table!r}; there are {', '.join(TABLES)}")
    if not seeds:
        raise ValueError("no seed was given; one is enough: --seeds 0")
    for name, number in (("steps", steps), ("images", images)):
        if number is not None and number < 1:
            raise ValueError(f"{name} is {number}; it must be at least 1")
    script = Path(lmfn.__file__).parent.parent / "train.py"
    if not script.is_file():
        raise FileNotFoundError(
            f"there is no {script}: lmfn ablate trains with the train.py of a checkout; run it in one"
        )
    every = -(-len(pairs) // (images or len(pairs)))
    pairs = replace(pairs, pairs=pairs.pairs[::every])
    evaluator = Evaluator(pairs, protocol="plain", metrics=METRICS, device=device, keep=True, progress=False)
    told = {"steps": steps, "settings": list(settings), "data": pairs.root.resolve().name, "pairs": len(pairs)}
    _keep(out, told)
    results = []
    for row in tqdm(TABLES[table], desc=table, unit="network"):
        measured = [_measured(row, seed, out / "runs", script, evaluator, steps, settings) for seed in seeds]
        model = LMFN(preset(row.preset, **row.changes))
        means = [record["means"]["deblurred"] for record in measured]
        results.append(
            Result(
                row,
                measure_complexity(model),
                saved_bytes(model) / 256**2,
                tuple(float(mean["psnr"]) for mean in means),
                tuple(float(mean["ssim_gauss2d"]) for mean in means),
                statistics.median(float(record["time"]["seconds"]) for record in measured),
                measured[0]["time"]["size"],
            )
        )
    text = markdown(table, results, measured[0], told, seeds)
    atomic.write(out / f"{table}.md", text.encode())
    return text


def _keep(out: Path, told: dict[str, Any]) -> None:
    """Note what runs in `out` are told, or see that those that are there were told the same."""
    file = out / "settings.json"
    if not (out / "runs").exists():
        atomic.write(file, (json.dumps(told, indent=2) + "\n").encode())
    before = json.loads(file.read_text(encoding="utf-8"))
    if different := [name for name in told if before.get(name) != told[name]]:
        raise ValueError(f"{out} holds runs with another {', '.join(different)} ({file}); name another folder")


def _measured(
    row: Row, seed: int, runs: Path, script: Path, evaluator: Evaluator, steps: int, settings: Sequence[str]
) -> dict[str, Any]:
    """The evaluation of the row's network after training, as `Evaluation.to_dict` has it; kept in the run's folder."""
    name = f"{row.run}-seed-{seed}"
    file = runs / name / "evaluation.json"
    if not file.exists():
        command = [sys.executable, str(script), *settings, "--runs", str(runs), "--name", name, "--resume", "auto"]
        command += ["--preset", row.preset, "--steps", str(steps), "--seed", str(seed)]
        command += ["--network", *(f"{key}={value}" for key, value in row.changes.items())] if row.changes else []
        ended = subprocess.run(command, check=False)
        if ended.returncode:
            raise ChildProcessError(
                f"{name}: train.py ended with status {ended.returncode}; the same command goes on from there"
            )
        weights = runs / name / "ema.safetensors"
        evaluator(LMFN.from_pretrained(weights), str(weights)).write(file)
    measured: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return measured


def saved_bytes(model: nn.Module, height: int = 256, width: int = 256) -> int:
    """Bytes that one image's forward pass keeps for the backward pass, each storage once, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    parameter = next(model.parameters())
    image = torch.zeros(1, 3, height, width, device=parameter.device, dtype=parameter.dtype)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(image)  # held until all is counted: storages that are freed give their address to others
    del output
    return sum(kept.values())


def markdown(
    table: str, results: Sequence[Result], measured: dict[str, Any], told: dict[str, Any], seeds: Sequence[int]
) -> str:
    """The table, and what its numbers depend on."""
    size = results[0].size
    lines = [
        f"| {table} | parameters | GMACs 256x256 | GMACs 1280x720 | kept, bytes a pixel | PSNR (dB) | SSIM gauss2d "
        f"| ms at {size} | the paper's PSNR |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        costs, gmacs = result.complexity, result.complexity.gmacs
        lines.append(
            f"| {result.row.name} | {costs.parameters:,} | {gmacs['256x256']:.2f} | {gmacs['1280x720']:.2f} "
            f"| {result.saved:,.0f} | {_spread(result.psnr, 2)} | {_spread(result.ssim, 4)} "
            f"| {result.seconds * 1e3:,.0f} | {result.row.paper} |"
        )
    blurred = measured["means"]["blurred"]
    several = (
        f"mean of seeds {', '.join(map(str, seeds))}, least to most in brackets"
        if len(seeds) > 1
        else f"seed {seeds[0]}"
    )
    lines += [
        "",
        f"{told['steps']} steps each, {several}; {told['pairs']} pairs of {told['data']}, protocol plain, the averaged "
        f"weights; the blurred images have {blurred['psnr']:.2f} dB and {blurred['ssim_gauss2d']:.4f}. "
        f"{measured['device']}, {measured['threads']} threads, {measured['precision']}. "
        f"train.py: `{' '.join(told['settings'])}`",
    ]
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float], digits: int) -> str:
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"
