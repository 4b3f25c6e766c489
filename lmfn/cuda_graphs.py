"""CUDA graphs: what a GPU does in a call, captured once and replayed, so that the host has next to nothing to do."""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

ImageFunction = Callable[[Tensor], Tensor]
"""From images `[B, 3, H, W]` to images of that shape."""

WARM_UPS = 3
"""Calls before a capture with gradients: what is made at first (plans, workspaces, streams) must be there."""
GRAPHS = 8
"""Shapes whose CUDA graph is kept."""
LARGEST_GRAPH = 1 << 22
"""Pixels of a batch above which kernels take so long that a graph gains nothing, and its memory would be held."""


class GraphCapture:
    """Captures CUDA graphs that share their memory: only one of them runs at a time."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[..., Any], *examples: Tensor, warm_ups: int = 0) -> Callable[..., Any]:
        """`run` of tensors of these shapes and strides, all on one CUDA device, as a graph.

        It must have run on such before, or be given `warm_ups`: no kernel may be compiled in a capture. What comes back
        takes such tensors and gives what `run` gave at the capture: the same tensors every time, with new values.
        """
        with torch.cuda.device(examples[0].device):
            given = [example.clone() for example in examples]
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(warm_ups):
                    run(*given)
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            # Other threads may bring images to the device meanwhile, and back.
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                made = run(*given)

        def replay(*tensors: Tensor) -> Any:
            for mine, tensor in zip(given, tensors, strict=True):
                mine.copy_(tensor)
            graph.replay()
            return made

        return replay


class GradientGraph:
    """A function that leaves gradients in `parameters`, as a CUDA graph from the first call on.

    `run` takes tensors that always have the same shapes, and adds to the gradients. Here they are its own: the same
    memory in every call, whatever was in them before. What it gives is overwritten by the next call.
    """

    def __init__(
        self,
        run: Callable[..., Any],
        parameters: Iterable[Parameter],
        capture: Callable[..., Callable[..., Any]] | None = None,
    ) -> None:
        self.run, self.parameters = run, list(parameters)
        self.capture = capture or GraphCapture()
        self.gradients: list[Tensor | None] = []
        self.replay: Callable[..., Any] | None = None

    def __call__(self, *tensors: Tensor) -> Any:
        if self.replay is None:
            self.replay = self.capture(self._anew, *tensors, warm_ups=WARM_UPS)
            self.gradients = [parameter.grad for parameter in self.parameters]
        made = self.replay(*tensors)
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        return made

    def _anew(self, *tensors: Tensor) -> Any:
        # Without gradients there, backward puts its own in their place, and a replay has nothing to add to.
        for parameter in self.parameters:
            parameter.grad = None
        return self.run(*tensors)


class GraphCache:
    """Runs a function of one tensor as CUDA graphs, one per shape; `capture` makes one.

    The first call with a shape runs the function itself, so that no size stalls that is never seen again.
    """

    def __init__(self, run: ImageFunction, capture: Callable[..., ImageFunction] | None = None) -> None:
        self.run = run
        self.capture = capture or GraphCapture()
        self.graphs: OrderedDict[torch.Size, ImageFunction | None] = OrderedDict()

    def __call__(self, x: Tensor) -> Tensor:
        x = x.contiguous()  # kernels are compiled for strides, and none may be compiled in a capture
        if x.shape[0] * x.shape[2] * x.shape[3] > LARGEST_GRAPH:
            return self.run(x)
        if x.shape not in self.graphs:
            result, graph = self.run(x), None
        else:
            graph = self.graphs[x.shape] or self.capture(self.run, x)
            result = graph(x).clone()
        self.graphs[x.shape] = graph
        self.graphs.move_to_end(x.shape)
        if len(self.graphs) > GRAPHS:
            self.graphs.popitem(last=False)
        return result
