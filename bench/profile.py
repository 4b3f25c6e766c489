"""Profile a frame and a training step on a GPU kernel by kernel: `python -m bench profile`.

Times are those that the profiler records for each kernel while the CUDA graph is replayed, without gaps and without
dependent launches (`lmfn_kernels/runtime/overlap.py`), as medians of several replays. The roofline is the time that a
kernel's arithmetic or its reads and writes take at the rates measured in the same run, whichever is longer. Every
tensor counts once, even if it is in a cache; padding does not count.

Beside them stand the predictions of `experiments/kernels/predictions.tsv` for this GPU, size and dtype; one of several
kernels has a line with their sum. At the end stands which of them did not hold.
"""

import argparse
import json
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import lmfn_kernels
from bench.devices import Cpu, Gpu, device
from bench.network import image, network
from bench.ops import shape_of
from bench.predictions import FACTOR, Prediction, predictions, without
from bench.registry import OPS
from bench.rows import Machine, Shape
from bench.train import STEPS, Step
from lmfn import atomic
from lmfn_kernels.runtime.configs import short

SHAPES = {"frame": "1x720x1280", "step": "16x256x256"}
REPLAYS = 10
TILE = ("BLOCK_H", "BLOCK_W", "num_warps", "STAGES")


class Launch(NamedTuple):
    """A launch of this package, described by its arguments."""

    kernel: str
    shape: str
    flop: float
    bytes: int

    def floor_us(self, machine: Machine) -> float:
        """Microseconds at the roofline."""
        return max(self.flop / machine.matrix_tflops / 1e6, self.bytes / machine.copy_gbps / 1e3)


@dataclass
class KernelTime:
    """All launches of a kernel with the same shape within a frame or a step."""

    first: int
    """Position of the first launch."""
    kernel: str
    shape: str
    """Image and tile; empty for kernels of PyTorch."""
    launches: int
    us: float
    floor_us: float
    """Microseconds at the roofline; 0 if not known."""

    @property
    def share(self) -> float:
        return self.floor_us / self.us


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--what", nargs="+", choices=SHAPES, default=list(SHAPES), help="default: both")
    parser.add_argument("--shape", help="BxHxW; default: 1x720x1280 for a frame, 16x256x256 for a step")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="bfloat16")
    parser.add_argument(
        "--format", choices=("text", "tsv", "json"), default="text", help="format of the printed tables"
    )
    parser.add_argument("--out", type=Path, help="folder; also write the tables to OUT/profile.tsv")


def run(options: argparse.Namespace) -> int:
    on = device(options.device)
    if isinstance(on, Cpu):
        raise ValueError("profile needs a GPU (--device cuda); resources and host need none")
    dtype = getattr(torch, options.dtype)
    machine, tables = on.machine(dtype), {}
    for what in options.what:
        shape = shape_of(OPS["lmfn"], options.shape or SHAPES[what])
        title = f"{what} {shape} {short(dtype)}"
        expected = predictions(on.name, title)
        tables[title] = profiled(on, *{"frame": frame, "step": step}[what](on, shape, dtype), machine)
        if options.format == "text":
            print(as_text(title, tables[title], expected), flush=True)
        if options.out:
            atomic.write(options.out / "profile.tsv", as_tsv(tables, machine).encode())
    if options.format != "text":
        print({"tsv": as_tsv, "json": as_json}[options.format](tables, machine))
    return 0


Prepared = tuple[Callable[[], Any], Callable[[], Any]]
"""A call without a CUDA graph, and an equivalent one whose kernels are timed."""


def frame(on: Gpu, shape: Shape, dtype: torch.dtype) -> Prepared:
    """A frame as `for_inference` computes it."""
    torch.manual_seed(0)
    x, model = image(shape, torch.float32, on.torch_device), network(shape, device=on.torch_device)
    function = model.for_inference(dtype=dtype)
    return partial(function, x), partial(function, x)  # its first call runs without a graph


def step(on: Gpu, shape: Shape, dtype: torch.dtype) -> Prepared:
    torch.manual_seed(0)
    model = network(shape, device=on.torch_device)
    blurred, sharp = image(shape, dtype, on.torch_device), image(shape, torch.float32, on.torch_device)
    as_it_is, graph = (Step(STEPS[name], model, blurred, sharp) for name in ("triton", "triton-graph"))
    return as_it_is, graph


def profiled(on: Gpu, call: Callable[[], Any], replay: Callable[[], Any], machine: Machine) -> list[KernelTime]:
    """The kernels of a call in the order of their first launch, with the times of `replay`, which launches the same.

    Raises RuntimeError if the profiler does not see exactly the kernels that were launched.
    """
    from lmfn_kernels.runtime import trials
    from lmfn_kernels.runtime.launch import intercepting

    # Without launches that overlap: the time of a kernel that waits for another is not its own.
    alone = [name for name in trials.ON_TRIAL if name != "overlap" and trials.in_use(name)]
    launches: list[Launch] = []

    def noted(launch: Callable[..., Any], kernel: Any, grid: Any, arguments: dict[str, Any]) -> None:
        launches.append(described(kernel.__name__, arguments))
        launch(kernel, grid, arguments)

    with lmfn_kernels.backend("triton"), trials.trying(*alone):
        with intercepting(noted):
            call()
        for _ in range(3):  # captures a graph
            replay()
        seen = [on.kernels(replay) for _ in range(REPLAYS)]
    names, _ = Counter(tuple(name for name, _ in one) for one in seen).most_common(1)[0]
    rounds = [one for one in seen if tuple(name for name, _ in one) == names]
    ours = {launch.kernel for launch in launches}
    if [name for name in names if name in ours] != [launch.kernel for launch in launches]:
        raise RuntimeError(f"the profiler saw {len(names)} kernels, which are not those launched; is CUPTI available?")
    left = iter(launches)
    found: dict[tuple[str, str], KernelTime] = {}
    for place, name in enumerate(names):
        launch = next(left) if name in ours else Launch(name, "", 0.0, 0)
        us = statistics.median(one[place][1] for one in rounds)
        row = found.setdefault((name, launch.shape), KernelTime(place, name, launch.shape, 0, 0.0, 0.0))
        row.launches += 1
        row.us += us
        row.floor_us += launch.floor_us(machine)
    return list(found.values())


def described(kernel: str, a: dict[str, Any]) -> Launch:
    """The size and work of a launch, from its arguments."""
    descriptors = [value for value in a.values() if hasattr(value, "block_shape")]
    tensors = [value for value in a.values() if isinstance(value, Tensor)]
    images = [tuple(map(int, d.shape[:3])) for d in descriptors if len(d.shape) == 4]
    images = images or [(len(t), *t.shape[2:]) for t in tensors if t.ndim == 4] or [(0, 0, 0)]
    b, h, w = max(images, key=prod)
    maps = [(b, h, w), *(tuple(a[f"{axis}{i}"] for axis in "BHW") for i in (2, 3) if a.get(f"B{i}"))]
    weights = sum(prod(d.shape) for d in descriptors if len(d.shape) == 3)
    name = kernel.removesuffix("_kernel")
    products = PRODUCTS[name](a, weights, b) if name in PRODUCTS else weights / len(maps)
    # Not by the sizes of descriptors, some of which span the zeros after the channels.
    memory = {t.data_ptr(): t.nbytes for t in (*tensors, *(d.base for d in descriptors))}
    widths = "-".join(str(a[name]) for name in ("K", "C", "N", "D", "G", "F") if int(a.get(name) or 0) > 1)
    tile = f"tile {a.get('BLOCK_H', 1)}x{a.get('BLOCK_W', 1)}, {a['num_warps']} warps, {a.get('STAGES', 1)} stages"
    sizes = " + ".join(f"{b}x{h}x{w}" for b, h, w in maps if b)
    shape = ", ".join(filter(None, [str(a.get("MODE", "")), widths, sizes, tile]))
    moved = BYTES[name](a) if name in BYTES else sum(memory.values())
    return Launch(kernel, shape, 2.0 * products * sum(map(prod, maps)), moved)


PRODUCTS: dict[str, Callable[[dict[str, Any], int, int], float]] = {
    "weight_gradient": lambda a, *_: a["K"] * (a["TAPS"] ** 2 * a["N"] + a["N2"]),
    "ring_weight_gradient": lambda a, *_: 9 * a["K"] * a["N"] * a["CONVS"],
    "stem": lambda a, *_: 4 * 9 * a["INPUTS"] * a["C"] + 9 * a["C"] * a["N"],
    "quartered_stem": lambda a, *_: 4 * 9 * 3 * a["C"] + 9 * a["C"] * a["N"],
    "stem_backward": lambda a, *_: 2 * (9 * a["INPUTS"] * a["C"] + 9 / 4 * a["C"] * a["N"]),
    "upsampled_conv": lambda a, *_: 9 * a["K"] * a["N"],
    "ring_upsampled_conv": lambda _, weights, __: weights * 9 / 25,
    "upsampled_conv_input_gradient": lambda a, *_: 9 * a["p_w"].shape[2] * a["N"],
    "gram": lambda a, *_: a["SIZE"] * (a["SIZE"] + 1) / 2,
    "product": lambda a, *_: a["G"] * a["SIZE"],
    "mix": lambda _, weights, images: weights / images,
    "merge": lambda a, *_: a["LAYERS"] * a["C"] ** 2,
    "fuse": lambda a, weights, _: weights + 4 * a["D"] * a["C"] + (a["t_a"] is not None) * a["C"] * a["F"],
    "recompute": lambda a, weights, _: weights + 4 * a["D"] * a["C"],
    "fuse_backward": lambda a, *_: 2 * a["C"] * (4 * a["D"] + a["F"]),
    "conv_pool": lambda a, *_: 9 / 4 * a["F"] ** 2,
    "low_convs": lambda a, *_: 3 * 9 * a["F"] ** 2,
    "low_convs_backward": lambda a, *_: 2 * 3 * 9 * a["F"] ** 2,
    "gate_backward": lambda a, *_: 3 * a["F"] * (a["C"] + a["F"]),
}
"""Multiplications per pixel of the largest image, for kernels where there is not one per weight, computed from the
arguments, the number of weights, and the number of images."""


def _edges(a: dict[str, Any]) -> int:
    values = 2 * a["B"] * (a["H"] + a["W"]) * (a["K"] + a["N"])
    return int(values * a["p_x"].element_size() + a["p_dw"].nbytes)


BYTES: dict[str, Callable[[dict[str, Any]], int]] = {"edge_weight_gradient": _edges}
"""Bytes read and written, for kernels that do not read all of their tensors."""


Tables = dict[str, list[KernelTime]]


def as_text(title: str, rows: list[KernelTime], expected: list[Prediction]) -> str:
    of = {one: [row for row in rows if one.covers(f"{row.kernel} {row.shape}")] for one in expected}
    alone = {found[0].first: one for one, found in of.items() if len(found) == 1}
    total = next((one for one in of if one.part == "*"), None)
    lines = [title, f"{'us':>9} {'predicted':>9} {'launches':>8} {'roofline':>8}  kernel"]
    lines += [line([row], alone.get(row.first), f"{row.kernel[:60]} {row.shape}") for row in rows]
    lines += [line(found, one, one.part) for one, found in of.items() if len(found) > 1 and one is not total]
    return "\n".join([*lines, line(rows, total, "all"), *verdict(title, of)])


def line(rows: list[KernelTime], predicted: Prediction | None, name: str) -> str:
    us, floor = sum(row.us for row in rows), sum(row.floor_us for row in rows)
    expected, share = f"{predicted.us:.1f}" if predicted else "", f"{floor / us:.0%}" if floor else ""
    return f"{us:9.1f} {expected:>9} {sum(row.launches for row in rows):8} {share:>8}  {name}"


def verdict(title: str, of: dict[Prediction, list[KernelTime]]) -> list[str]:
    """How many predictions held, and a line for each of the others."""
    measured = {one: sum(row.us for row in rows) for one, rows in of.items() if rows}
    wrong = [one for one in of if one not in measured or not one.holds(measured[one])]
    if not of:
        return []
    lines = [f"{title}: {len(of) - len(wrong)} of {len(of)} predictions held within a factor of {FACTOR}{without()}"]
    for one in wrong:
        us = f"{measured[one]:.1f} measured" if one in measured else "not launched"
        before = "" if one.before is None else f", {one.before:g} at {one.commit}"
        lines.append(f"{one.us:g} predicted, {us}{before}: {one.part} ({one.why})")
    return lines


def as_tsv(tables: Tables, machine: Machine) -> str:
    lines = [f"# {json.dumps(asdict(machine))}", "\t".join(["of", *(f.name for f in fields(KernelTime)), "share"])]
    for title, rows in tables.items():
        for row in rows:
            values = [title, row.first, row.kernel, row.shape, row.launches, f"{row.us:.2f}", f"{row.floor_us:.2f}"]
            lines.append("\t".join(map(str, [*values, f"{row.share:.3f}"])))
    return "\n".join(lines) + "\n"


def as_json(tables: Tables, machine: Machine) -> str:
    return json.dumps({"machine": asdict(machine)} | {of: [asdict(row) for row in rows] for of, rows in tables.items()})
