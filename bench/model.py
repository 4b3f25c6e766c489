"""The whole network on one photograph, and its parts: `python -m bench model`.

Times are by wall clock, including gaps between launches: the time a user waits. The exported network is also run by
ONNX Runtime and OpenVINO on a CPU, and on a GPU with `--dtype float16` by ONNX Runtime's execution providers for CUDA
and TensorRT. On a CPU, bfloat16 is measured as well if the processor has instructions for it. FP8 is among the rows of
bfloat16, in which most of its maps are stored.
"""

import argparse
import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lmfn_kernels
from bench import tables
from bench.devices import Call, installed, wall
from bench.measure import Candidate, Measurement, Session, add_rows, add_rows_before, candidate, reference
from bench.network import function, image, network
from bench.ops import DTYPES, Request, shape_of
from bench.ops import measure as measure_op
from bench.providers import ENGINES, EXPORTED, PROVIDERS, with_reflected_border, without_border
from bench.registry import OPS, PARTS
from bench.rows import Shape
from bench.units import UNITS
from lmfn.device import has_fast_bf16
from lmfn_kernels import missing_for_e4m3
from lmfn_kernels.runtime.configs import short
from lmfn_kernels.weights import E4M3

SHAPES = {"cuda": ["1x720x1280", "8x720x1280", "1x2160x3840"], "cpu": ["1x256x256", "1x720x1280"]}
PACKAGES = {"ONNX Runtime": "onnxruntime", "OpenVINO": "openvino"}
"""By how the provider's name begins."""
FP8 = "for_inference-fp8"

Make = Callable[[Any, Tensor], Callable[[Tensor], Tensor]]
"""From the float32 network and an image in the dtype to compute in, makes a function of an image with a float32
result."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", nargs="+", help="BxHxW of the image, or BxNxCxHxW with N RFDBs of C channels")
    parser.add_argument("--dtype", nargs="+", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--provider", nargs="+", help="providers for the network; default: all")
    parser.add_argument("--units", action="store_true", help="only the parts; without it, they follow the network")


def dtypes(device: str) -> list[str]:
    return list(dict.fromkeys([*DTYPES[device], *(["bfloat16"] if has_fast_bf16(torch.device(device)) else [])]))


def engines(device: str, dtype: torch.dtype) -> dict[str, Make]:

    def of(make: Callable[..., Callable[[Tensor], Tensor]]) -> Make:
        return lambda model, x: make(model, x.float(), x.dtype)

    found = {name: of(make) for name, (make, dtypes) in EXPORTED[device].items() if dtype in dtypes}
    if device == "cpu":
        return {name: of(make) for name, (make, dtypes) in ENGINES.items() if dtype in dtypes} | found
    found["for_inference"] = lambda model, x: model.for_inference(x.device, x.dtype)
    found |= {name: partial(written, name) for name, provider in PROVIDERS.items() if device in provider.devices}
    if dtype == torch.bfloat16 and missing_for_e4m3(torch.device(device, 0)) is None:
        found[FP8] = lambda model, x: model.for_inference(x.device, E4M3)
    return found


def written(name: str, model: Any, x: Tensor) -> Callable[[Tensor], Tensor]:
    provider = PROVIDERS[name]
    mode = provider.with_graphs
    model = model.to(x.dtype, memory_format=provider.layout)
    inner = torch.compile(model, fullgraph=True, dynamic=False, mode=mode) if mode else model

    def run(image: Tensor) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        with lmfn_kernels.backend(provider.backend), torch.inference_mode():
            found: Tensor = inner(image.to(x.dtype, memory_format=provider.layout))
            return found.float()

    return run


def listed(call: Callable[[Tensor], Tensor], image: Tensor) -> list[Tensor]:
    return [call(image)]


def run(session: Session, options: argparse.Namespace) -> None:
    if not options.units:
        networks(session, options)
    if options.units or not (options.shape or options.provider):
        units(session, options)


def units(session: Session, options: argparse.Namespace) -> None:
    """Each part of the network at its size in one photograph, compared with the written formula."""
    device = session.on.kind
    names = ["triton" if device == "cuda" else "torch", "eager-channels-last"]
    done = set()
    for dtype in options.dtype or DTYPES[device]:
        for place, unit in enumerate(UNITS):
            if session.out_of_time(len(UNITS) - place):
                return
            if (unit.op, unit.shape, dtype) not in done:
                done.add((unit.op, unit.shape, dtype))
                measure_op(
                    session, Request((OPS | PARTS)[unit.op], unit.shape, getattr(torch, dtype), ("infer",), names)
                )
        if session.rows:
            print(f"\n{tables.units({'model': session.rows}, Path())}\n")


def networks(session: Session, options: argparse.Namespace) -> None:
    device = session.on.kind
    todo = [
        (shape_of(OPS["lmfn"], shape), getattr(torch, dtype))
        for dtype in options.dtype or dtypes(device)
        for shape in options.shape or SHAPES[device]
    ]
    for place, (shape, dtype) in enumerate(todo):
        if session.out_of_time(len(todo) - place):
            return
        with session.if_it_fits(f"lmfn {shape} {short(dtype)}"):
            measure(session, shape, dtype, options.provider)


def measure(session: Session, shape: Shape, dtype: torch.dtype, names: list[str] | None) -> None:
    on, device = session.on, session.on.torch_device
    command = f"python -m bench model --device {on.kind} --shape {shape} --dtype {short(dtype)}"
    subject = Measurement("lmfn", "infer", dtype, shape, OPS["lmfn"].work(shape, "infer"), command)
    torch.compiler.reset()
    torch.manual_seed(0)
    # Weights and image are representable in the dtype: the bound is for rounding within the network.
    model, x = network(shape, dtype, device).float(), with_reflected_border(image(shape, dtype, device))
    seen = x.float()
    given = [x, *(t.detach() for t in (*model.parameters(), *model.buffers()))]
    (exact,), _ = reference(function(shape), given, [False] * len(given), rounds=2)
    candidates: dict[str, Candidate] = {}
    clocks = {"host": partial(wall, on)}
    found = engines(on.kind, dtype)
    for name in names or ():
        if name not in found:
            session.left_out(f"{subject}, {name}", f"there is no such provider here; there are {'; '.join(found)}")
    for name, make in found.items():
        if names and name not in names:
            continue
        compiled = name in PROVIDERS and PROVIDERS[name].compiled
        if compiled or name == FP8:  # which has not run on a GPU yet
            add_rows_before(session, subject, candidates, clocks)
        with session.counting_failures(subject, name):
            call = make(copy.deepcopy(model), x)
            inside = name in EXPORTED[on.kind]
            expected = exact._replace(value=without_border(exact.value)) if inside else exact
            if name == FP8:  # rounds with 3 bits what the bound rounds with 7
                expected = exact._replace(rms=16 * exact.rms, largest=16 * exact.largest)
            package = next((of for begins, of in PACKAGES.items() if name.startswith(begins)), None)
            candidates[name] = candidate(
                on,
                Call(lambda _: seen, partial(listed, call)),
                [expected],
                watch=name == "triton",
                config={"version": installed(package)} if package else {},
                peak_of=-1 if compiled and on.kind == "cuda" else 1,
            )
    add_rows(session, subject, candidates, clocks)
