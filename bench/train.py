"""A training step of the network as in `train.py`: forward under autocast, MSE, backward, Adam.

Times are by wall clock, including the CPU's launches. A provider whose gradients exceed the bound against float64 gets
no row. `triton-graph` is `triton` with forward and backward as one CUDA graph, as in `train.py`.
"""

import argparse
import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lmfn_kernels
from bench.devices import Call, wall
from bench.measure import Candidate, Measurement, Session, add_rows, add_rows_before, candidate, reference
from bench.network import function, image, network
from bench.ops import shape_of
from bench.providers import PROVIDERS, Provider
from bench.registry import OPS
from bench.rows import Shape
from lmfn.cuda_graphs import GradientGraph
from lmfn_kernels import testing
from lmfn_kernels.runtime.configs import short

SHAPES = {"cuda": ["16x256x256", "32x256x256"], "cpu": ["8x64x64"]}
"""Batches of patches: the default sizes on a GPU, the demo's on a CPU."""
STEPS = {"triton-graph": replace(PROVIDERS["triton"], name="triton-graph", graph=True), **PROVIDERS}
"""All providers, and one that only applies to a training step."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", nargs="+", help="BxHxW of the patches, or BxNxCxHxW with N RFDBs of C channels")
    parser.add_argument("--dtype", nargs="+", choices=("float32", "bfloat16"), help="bfloat16 is autocast")
    parser.add_argument("--provider", nargs="+", choices=STEPS, default=list(STEPS), help="default: all")


def run(session: Session, options: argparse.Namespace) -> None:
    device = session.on.kind
    todo = [
        (shape_of(OPS["lmfn"], shape), getattr(torch, dtype))
        for dtype in options.dtype or ["bfloat16"]
        for shape in options.shape or SHAPES[device]
    ]
    names = session.running_here(options.provider, STEPS)
    for place, (shape, dtype) in enumerate(todo):
        if session.out_of_time(len(todo) - place):
            return
        with session.if_it_fits(f"lmfn {shape}"):
            measure(session, shape, dtype, names)


def measure(session: Session, shape: Shape, dtype: torch.dtype, names: list[str]) -> None:
    on, device = session.on, session.on.torch_device
    command = f"python -m bench train --device {on.kind} --shape {shape} --dtype {short(dtype)}"
    # Adam's dozen operations per parameter are not counted.
    subject = Measurement("lmfn", "step", dtype, shape, OPS["lmfn"].work(shape, "full"), command)
    torch.compiler.reset()
    torch.manual_seed(0)
    # The weights are representable in the dtype of autocast, since the bound is for rounding within the step.
    model = network(shape, dtype, device).float()
    blurred, sharp = image(shape, dtype, device), image(shape, torch.float32, device)
    call = function(shape)
    given = [blurred, *(t.detach() for t in (*model.parameters(), *model.buffers()))]
    needs = [False, *(True for _ in model.parameters()), *(False for _ in model.buffers())]
    # The bound uses the rounding of the first tensor's dtype.
    _, exact = reference(lambda *t: F.mse_loss(call(*t), sharp.double()), given, needs)
    candidates: dict[str, Candidate] = {}
    clocks = {"host": partial(wall, on)}
    for name in names:
        provider = STEPS[name]
        if provider.compiled:
            add_rows_before(session, subject, candidates, clocks)
        with session.counting_failures(subject, name):
            step = Step(provider, model, blurred, sharp)
            found = candidate(
                on,
                Call(lambda _: None, step.gradients),
                [e for e in exact if e is not None],
                watch=provider.backend == "triton",
                config=step.config,
                peak_of=0 if provider.graph else -1,
            )
            timed = Call(lambda _: None, step)
            timed()  # so that Adam's state exists
            in_graphs = provider.graph or (provider.compiled and on.kind == "cuda")
            peak = found.peak_bytes if in_graphs else on.peak(timed)
            saved = testing.saved_bytes(step.loss, [], step.model.parameters())
            candidates[name] = replace(found, call=timed, peak_bytes=peak, saved_bytes=saved)
    add_rows(session, subject, candidates, clocks)


class Step:
    """A training step on one batch, computed in the dtype of `blurred`."""

    def __init__(self, provider: Provider, model: nn.Module, blurred: Tensor, sharp: Tensor) -> None:
        self.backend, self.device, self.dtype = provider.backend, blurred.device.type, blurred.dtype
        self.blurred, self.sharp = (t.float().contiguous(memory_format=provider.layout) for t in (blurred, sharp))
        self.model = copy.deepcopy(model).train().to(memory_format=provider.layout)  # type: ignore[call-overload]
        self.adam = torch.optim.Adam(self.model.parameters(), lr=1e-4, fused=True)
        self.config = {"layout": str(provider.layout).removeprefix("torch.")}
        mode = provider.with_graphs
        self.network = torch.compile(self.model, fullgraph=True, dynamic=False, mode=mode) if mode else self.model
        self.one = torch.ones((), device=blurred.device)
        self.backward: Callable[[Tensor], None] = lambda gradient: self.loss().backward(gradient)
        if provider.graph:
            self.backward = GradientGraph(self.backward, self.model.parameters())

    def loss(self) -> Tensor:
        if self.device == "cuda":
            torch.compiler.cudagraph_mark_step_begin()
        with (
            lmfn_kernels.backend(self.backend),
            torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32),
        ):
            output = self.network(self.blurred)
        return F.mse_loss(output.float(), self.sharp)

    def gradients(self, _: Any = None) -> list[Tensor]:
        """The gradients of all parameters, scaled by the reference's gradient of the loss."""
        self.backward(testing.gradients_for([self.one])[0])
        found = [p.grad.clone() for p in self.model.parameters() if p.grad is not None]
        self.adam.zero_grad()
        return found

    def __call__(self, _: Any = None) -> None:
        self.backward(self.one)
        self.adam.step()
        self.adam.zero_grad()
