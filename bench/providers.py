"""The implementations that a benchmark compares, of an op or, on a CPU, of the whole network: ours, and the
alternatives."""

import io
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import lmfn_kernels
from bench.devices import Call
from lmfn.cuda_graphs import ImageFunction
from lmfn.network import Network
from lmfn_kernels import testing

Function = Callable[..., Any]


@dataclass(frozen=True)
class Provider:
    """A backend of the ops (`lmfn_kernels.backend`), the memory layout of images, how the formula is compiled, and
    whether the forward and backward pass of a training step are one CUDA graph."""

    name: str
    backend: str
    layout: torch.memory_format = torch.channels_last
    compiled: Literal["default", "max-autotune-no-cudagraphs"] | None = None
    graph: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")

    def function(self, function: Function) -> Function:
        """`function` as this provider runs it, with its results as a list."""
        # Without CUDA graphs: launch gaps are not timed, so graphs would only add copies of the inputs.
        inner = (
            torch.compile(function, fullgraph=True, dynamic=False, mode=self.compiled) if self.compiled else function
        )

        def call(*tensors: Tensor) -> list[Tensor]:
            with lmfn_kernels.backend(self.backend):
                results = inner(*tensors)
            return [results] if isinstance(results, Tensor) else list(results)

        return call

    def inputs(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors in this provider's layout, copied only if necessary."""
        return [t.contiguous(memory_format=self.layout) if t.ndim == 4 else t.contiguous() for t in tensors]


PROVIDERS: dict[str, Provider] = {
    provider.name: provider
    for provider in (
        Provider("triton", "triton", devices=("cuda",)),
        Provider("torch", "torch"),
        Provider("torch-contiguous", "torch", torch.contiguous_format, devices=("cpu",)),
        Provider("eager", "reference", torch.contiguous_format),
        Provider("eager-channels-last", "reference"),
        Provider("compile", "reference", compiled="default"),
        Provider("compile-max-autotune", "reference", compiled="max-autotune-no-cudagraphs", devices=("cuda",)),
    )
}
"""`triton` and `torch` are ours (`torch-contiguous` on NCHW images, which the network does not use); the others are the
written formula: eager in NCHW, eager in channels-last (on a GPU with cuDNN's own tuning), and torch.compile. Triton
needs a GPU; on a CPU, max-autotune takes minutes to compile."""

SLOW = "compile-max-autotune"
"""Providers that take so long to compile that all others are measured first."""


def call(function: Function, copies: Sequence[Sequence[Tensor]], mode: str) -> Call:
    """One call in that mode, ready to be timed, cycling through copies of its inputs.

    It returns the results, for `bwd` the gradients, for `full` both.
    """
    needs = mode != "infer"
    leaves = [[t.detach().requires_grad_(needs and t.is_floating_point()) for t in copy] for copy in copies]
    gradients: list[Tensor] = []  # as in the reference

    def forward(turn: int) -> tuple[list[Tensor], list[Tensor]]:
        mine = leaves[turn % len(leaves)]
        results = function(*mine)
        if not gradients:
            # In the layout of the results, as the gradients from later layers would be.
            drawn = testing.gradients_for(results)
            gradients.extend(torch.empty_like(r).copy_(g) for r, g in zip(results, drawn, strict=True))
        return results, mine

    def backward(made: tuple[list[Tensor], list[Tensor]]) -> list[Tensor]:
        results, mine = made
        return list(torch.autograd.grad(results, mine, gradients))

    def infer(turn: int) -> list[Tensor]:
        with torch.no_grad():
            results: list[Tensor] = function(*leaves[turn % len(leaves)])
            return results

    def full(turn: int) -> list[Tensor]:
        made = forward(turn)
        return [*(r.detach() for r in made[0]), *backward(made)]

    if mode == "bwd":
        return Call(forward, backward)
    timed = {"infer": infer, "fwd": lambda turn: forward(turn)[0], "full": full}[mode]
    return Call(lambda turn: turn, timed)


def eager(model: Network, _x: Tensor, _dtype: torch.dtype) -> ImageFunction:
    """Plain eager PyTorch."""
    return written(model)


def channels_last(model: Network, _x: Tensor, dtype: torch.dtype) -> ImageFunction:
    return written(model, dtype, torch.channels_last)


def compiled(model: Network, _x: Tensor, dtype: torch.dtype) -> ImageFunction:
    return written(torch.compile(model, dynamic=False), dtype, torch.channels_last)  # type: ignore[arg-type]


def for_inference(model: Network, _x: Tensor, dtype: torch.dtype) -> ImageFunction:
    return model.for_inference("cpu", dtype)


def onnx_runtime(model: Network, x: Tensor, _dtype: torch.dtype) -> ImageFunction:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    session = onnxruntime.InferenceSession(onnx(model, x), options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"blurred": x.numpy()})[0])


def openvino(model: Network, x: Tensor, dtype: torch.dtype) -> ImageFunction:
    import openvino as ov

    options = {
        "INFERENCE_PRECISION_HINT": "bf16" if dtype == torch.bfloat16 else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
    }
    core = ov.Core()
    read = core.read_model(io.BytesIO(onnx(model, x)))
    request = core.compile_model(read, "CPU", options).create_infer_request()
    return lambda x: torch.from_numpy(request.infer([x.numpy()], share_inputs=True, share_outputs=True)[0])


FLOAT32, BOTH = (torch.float32,), (torch.float32, torch.bfloat16)
ENGINES: dict[str, tuple[Callable[[Network, Tensor, torch.dtype], ImageFunction], tuple[torch.dtype, ...]]] = {
    "eager": (eager, FLOAT32),
    "eager, channels-last": (channels_last, BOTH),
    "torch.compile": (compiled, BOTH),
    "ONNX Runtime": (onnx_runtime, FLOAT32),  # it has no bfloat16 convolution on a CPU
    "OpenVINO": (openvino, BOTH),
    "for_inference": (for_inference, BOTH),
}
"""How each is made, and in which dtypes it exists. All but ours run the network as written (`reference`)."""


def written(
    model: Network, dtype: torch.dtype = torch.float32, layout: torch.memory_format = torch.contiguous_format
) -> ImageFunction:
    model = model.to(memory_format=layout)  # type: ignore[call-overload]

    def run(x: Tensor) -> Tensor:
        with (
            torch.inference_mode(),
            lmfn_kernels.backend("reference"),
            torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16),
        ):
            result: Tensor = model(x.contiguous(memory_format=layout))
            return result

    return run


def onnx(model: Network, x: Tensor) -> bytes:
    with lmfn_kernels.backend("reference"), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lmfn.onnx"
        torch.onnx.export(model, (x,), path, dynamo=True, external_data=False, input_names=["blurred"], verbose=False)
        return path.read_bytes()
