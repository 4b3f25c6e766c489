"""CUDA graphs: the GPU work of a call, captured once and replayed, which relieves the host."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

ImageFunction = Callable[[Tensor], Tensor]
"""From images `[B, 3, H, W]` to images of the same shape."""

WARM_UPS = 3
"""Calls before a capture with gradients, so that plans, workspaces and streams exist."""
GRAPHS = 8
"""Number of shapes whose CUDA graphs are kept."""
LARGEST_GRAPH = 1 << 24
"""Pixels of a batch above which kernels take so long that a graph gains nothing, while holding memory."""


class GraphCapture:
    """Captures CUDA graphs that share their memory: only one of them runs at a time."""

    capturing = threading.Lock()
    """Of all objects: a capture begins with a wait for the device, which CUDA forbids during another one."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[..., Any], *examples: Tensor, warm_ups: int = 0) -> Callable[..., Any]:
        """`run` for tensors of these shapes and strides, all on one CUDA device, as a graph.

        It must have run with such tensors before, or with `warm_ups`, because no kernel may be compiled during a
        capture. The returned function takes such tensors and returns the same result tensors every time, with new
        values.
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
            # Other threads may copy images to and from the device meanwhile.
            with self.capturing, torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                made = run(*given)

        def replay(*tensors: Tensor) -> Any:
            for mine, tensor in zip(given, tensors, strict=True):
                mine.copy_(tensor)
            graph.replay()
            return made

        return replay


class GradientGraph:
    """A function that leaves gradients in `parameters`, as a CUDA graph from the first call on.

    `run` takes tensors of constant shapes and accumulates gradients. Here each call sets the gradients, in the same
    memory, whatever they were before. The next call overwrites the results.
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
        # Without existing gradients, backward would create new tensors, and a replay could not accumulate into them.
        for parameter in self.parameters:
            parameter.grad = None
        return self.run(*tensors)


class GraphCache:
    """Runs a function of one tensor as CUDA graphs, one per shape; `capture` makes one.

    The first call with a shape runs the function itself, so that sizes seen only once are not captured.
    """

    def __init__(self, run: ImageFunction, capture: Callable[..., ImageFunction] | None = None) -> None:
        self.run = run
        self.capture = capture or GraphCapture()
        self.graphs: OrderedDict[torch.Size, ImageFunction | None] = OrderedDict()

    def __call__(self, x: Tensor) -> Tensor:
        x = x.contiguous()  # kernels are compiled per stride pattern, and none may be compiled during a capture
        if x.data_ptr() % 16:  # nor for the alignment of a graph's own copy
            x = x.clone()
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
