"""Times and memory of the ops with all providers: `python -m bench ops`.

A provider whose result exceeds the bound against float64 gets no row. Providers are timed in round-robin order, call by
call. `bench/rows.py` defines the rows, `bench/devices.py` how time is measured.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

import lmfn_kernels
from bench.devices import Device, nbytes
from bench.measure import Candidate, Measurement, Session, add_rows, add_rows_before, candidate, reference
from bench.providers import PROVIDERS, Provider, call
from bench.registry import OPS, PARTS, BenchOp
from bench.rows import Shape
from lmfn_kernels import testing, weight_layout
from lmfn_kernels.cases import is_image
from lmfn_kernels.runtime import configs
from lmfn_kernels.runtime.configs import short
from lmfn_kernels.testing import saved_bytes

SIZES = {"cuda": [(1, 180, 320), (1, 540, 960), (16, 64, 64)], "cpu": [(1, 180, 320)]}
"""Default images, height and width: a quarter of a 720p frame, a quarter of a 4K frame, and the maps of a training
batch."""
DTYPES = {"cuda": ["bfloat16"], "cpu": ["float32"]}
MOST_COPIES = 64


@dataclass(frozen=True)
class Request:
    """An op at one shape, with the modes and providers to measure."""

    op: BenchOp
    shape: Shape
    dtype: torch.dtype
    modes: Sequence[str]
    providers: Sequence[str]

    def subject(self, on: Device, mode: str) -> Measurement:
        command = (
            f"python -m bench ops --device {on.kind} --op {self.op.name} --shape {self.shape} --mode {mode} "
            f"--dtype {short(self.dtype)}"
        )
        return Measurement(self.op.name, mode, self.dtype, self.shape, self.op.work(self.shape, mode), command)


def measure(session: Session, wanted: Request) -> None:
    """Rows of one op at one shape and dtype, one per mode, provider and L2 state."""
    on, op = session.on, wanted.op
    torch.manual_seed(0)
    tensors = op.make(wanted.shape, wanted.dtype, on.torch_device)
    needs = [tuple(wanted.modes) != ("infer",)] * len(tensors)
    # Two random perturbations suffice for the whole network, whose image may be large and has enough values to show
    # their effect. They do not for an op: rounding in a row of ALFM's matrix affects all pixels alike.
    rounds = 2 if op.name == "lmfn" and not any(needs) else testing.ROUNDS
    results, gradients = reference(op.function(wanted.shape), tensors, needs, rounds)
    number = min(on.copies_bytes // nbytes(tensors) + 1, MOST_COPIES)
    layouts = {PROVIDERS[name].layout: PROVIDERS[name] for name in wanted.providers}
    copies = {
        layout: [provider.inputs([t.clone() for t in tensors]) for _ in range(number)]
        for layout, provider in layouts.items()
    }
    for mode in wanted.modes:
        subject = wanted.subject(on, mode)
        exact = [*(results if mode != "bwd" else []), *(gradients if mode in ("bwd", "full") else [])]
        torch.compiler.reset()
        candidates: dict[str, Candidate] = {}
        clocks = {l2: partial(on.time, l2=l2) for l2 in on.l2}
        for name in wanted.providers:
            provider = PROVIDERS[name]
            if provider.compiled:
                add_rows_before(session, subject, candidates, clocks)
            with session.counting_failures(subject, name):
                candidates[name] = _checked(
                    on, wanted, mode, provider, copies[provider.layout], [e for e in exact if e is not None]
                )
        add_rows(session, subject, candidates, clocks)


def _checked(
    on: Device,
    wanted: Request,
    mode: str,
    provider: Provider,
    copies: list[list[Tensor]],
    exact: list[testing.Reference],
) -> Candidate:
    """Raises AssertionError if the results are wrong."""
    if mode == "infer" and provider.backend == "triton":  # lay the weights out once, as `for_inference` does
        with lmfn_kernels.backend("triton"):
            copies = [[weight_layout(t) if t.ndim == 4 and not is_image(t) else t for t in copy] for copy in copies]
    function = provider.function(wanted.op.function(wanted.shape))
    timed = call(function, copies, mode)
    config, ours = {"layout": str(provider.layout).removeprefix("torch.")}, provider.backend == "triton"
    if ours:
        device = configs.describe(torch.device(on.torch_device)).name
        config["launch"] = "tuned" if configs.tuned(device).launch else "heuristic"
    found = candidate(on, timed, exact, watch=ours, config=config)
    saved = 0 if mode == "infer" else saved_bytes(function, copies[0], [t for t in copies[0] if not is_image(t)])
    return replace(found, saved_bytes=saved)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--op",
        nargs="+",
        choices=OPS | PARTS,
        default=[op for op in OPS if op != "lmfn"],
        help=f"default: all but lmfn, {', '.join(PARTS)}",
    )
    parser.add_argument("--shape", nargs="+", help="BxHxW, BxCxHxW or BxNxCxHxW, N maps of C channels")
    parser.add_argument("--mode", nargs="+", choices=("infer", "fwd", "bwd", "full"), default=["infer", "full"])
    parser.add_argument("--dtype", nargs="+", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--provider", nargs="+", choices=PROVIDERS, default=list(PROVIDERS), help="default: all")


def wanted(options: argparse.Namespace, device: str, providers: Sequence[str]) -> list[Request]:
    """The requested measurements: the first shape of every op before the second.

    Raises ValueError for an invalid shape.
    """
    shapes = options.shape or ["x".join(map(str, size)) for size in SIZES[device]]
    return [
        Request(op, shape_of(op, shape), getattr(torch, dtype), options.mode, providers)
        for dtype in options.dtype or DTYPES[device]
        for shape in shapes
        for op in map((OPS | PARTS).__getitem__, options.op)
    ]


def shape_of(op: BenchOp, text: str) -> Shape:
    """`BxHxW`, `BxCxHxW` or `BxNxCxHxW`; omitted numbers are as in the network."""
    numbers = [int(part) if part.isdecimal() else 0 for part in text.split("x")]
    if not 3 <= len(numbers) <= 5 or 0 in numbers:
        raise ValueError(f"--shape {text}: expected three to five numbers, BxHxW, BxCxHxW or BxNxCxHxW")
    b, *widths, h, w = numbers
    n, c = op.widths if not widths else (op.widths[0], widths[0]) if len(widths) == 1 else widths
    return Shape(b, n, c, h, w)


def run(session: Session, options: argparse.Namespace) -> None:
    todo = wanted(options, session.on.kind, session.running_here(options.provider))
    for place, one in enumerate(todo):
        if session.out_of_time(len(todo) - place):
            return
        with session.if_it_fits(f"{one.op.name} {one.shape}"):
            measure(session, one)
