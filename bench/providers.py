"""The implementations that a benchmark compares, this package's and alternatives, of an op or of the whole network."""

import io
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import lmfn_kernels
from bench.devices import Call
from lmfn.cuda_graphs import ImageFunction
from lmfn.inference import BORDER
from lmfn.network import Network
from lmfn.options import ExportType
from lmfn_kernels import testing

Function = Callable[..., Any]


@dataclass(frozen=True)
class Provider:
    """An implementation of an op: the backend (`lmfn_kernels.backend`), the memory layout of images, how torch.compile
    is used, and whether forward and backward pass of a training step are one CUDA graph."""

    name: str
    backend: str
    layout: torch.memory_format = torch.channels_last
    compiled: Literal["default", "max-autotune-no-cudagraphs"] | None = None
    graph: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")

    @property
    def with_graphs(self) -> str | None:
        """The mode of torch.compile where gaps between launches are timed: with CUDA graphs, on a GPU."""
        return {"default": "reduce-overhead", "max-autotune-no-cudagraphs": "max-autotune"}.get(self.compiled or "")

    def function(self, function: Function) -> Function:
        """`function` as this provider runs it, with its results as a list."""
        # Without CUDA graphs, since launch gaps are not timed and graphs would only add copies of the inputs.
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
"""`triton` and `torch` are this package's backends (`torch-contiguous` is `torch` with NCHW images, which the network
does not use). The others run the formula as written: eager in NCHW, eager in channels-last (on a GPU with cuDNN's
tuning), and torch.compile. Triton needs a GPU; max-autotune takes minutes to compile on a CPU."""


def call(function: Function, copies: Sequence[Sequence[Tensor]], mode: str) -> Call:
    """A call in that mode, ready to be timed, that cycles through copies of its inputs.

    It returns the results, the gradients in mode `bwd`, or both in mode `full`.
    """
    needs = mode != "infer"
    leaves = [[t.detach().requires_grad_(needs and t.is_floating_point()) for t in copy] for copy in copies]
    gradients: list[Tensor] = []  # of the results, the same as for the reference

    def forward(turn: int) -> tuple[list[Tensor], list[Tensor]]:
        mine = leaves[turn % len(leaves)]
        results = function(*mine)
        if not gradients:
            # In the layout of the results, like gradients from later layers.
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
    return in_onnx_runtime(onnx(model, x), x, "CPUExecutionProvider")


def openvino(model: Network, x: Tensor, dtype: torch.dtype) -> ImageFunction:
    return in_openvino(onnx(model, x), dtype)


def exported_in_onnx_runtime(execution: str, model: Network, x: Tensor, dtype: torch.dtype) -> ImageFunction:
    """`lmfn export` by one of ONNX Runtime's execution providers."""
    inside = without_border(x)
    run = in_onnx_runtime(exported(model, dtype), inside, execution)
    return lambda _: run(inside)


def exported_in_openvino(model: Network, x: Tensor, dtype: torch.dtype) -> ImageFunction:
    inside, run = without_border(x), in_openvino(exported(model, torch.float32), dtype)
    return lambda _: run(inside)


def in_onnx_runtime(network: bytes, x: Tensor, execution: str) -> ImageFunction:
    """For images of this size on this device, which stay there. Raises ValueError where ONNX Runtime has no such
    execution provider, or could not start it and would compute on the CPU."""
    import onnxruntime

    if execution not in onnxruntime.get_available_providers():
        raise ValueError(f"the installed ONNX Runtime has no {execution}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    for name, size in zip(("batch", "height", "width"), (len(x), *x.shape[2:]), strict=True):
        options.add_free_dimension_override_by_name(name, size)
    session = onnxruntime.InferenceSession(network, options, providers=[execution])
    if execution not in session.get_providers():
        raise ValueError(f"ONNX Runtime could not start its {execution}")

    def run(x: Tensor) -> Tensor:
        x = x.contiguous()
        sharp, binding, place = torch.empty_like(x), session.io_binding(), (x.device.type, x.device.index or 0)
        for bind, (found,), t in (
            (binding.bind_input, session.get_inputs(), x),
            (binding.bind_output, session.get_outputs(), sharp),
        ):
            bind(found.name, *place, np.float32, tuple(t.shape), t.data_ptr())
        session.run_with_iobinding(binding)
        return sharp

    return run


def in_openvino(network: bytes, dtype: torch.dtype) -> ImageFunction:
    import openvino as ov

    options = {
        "INFERENCE_PRECISION_HINT": "bf16" if dtype == torch.bfloat16 else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
    }
    core = ov.Core()
    request = core.compile_model(core.read_model(io.BytesIO(network)), "CPU", options).create_infer_request()
    return lambda x: torch.from_numpy(request.infer([x.numpy()], share_inputs=True, share_outputs=True)[0])


MakeEngine = Callable[[Network, Tensor, torch.dtype], ImageFunction]
FLOAT32, BOTH, HALF = (torch.float32,), (torch.float32, torch.bfloat16), (torch.float32, torch.float16)
ENGINES: dict[str, tuple[MakeEngine, tuple[torch.dtype, ...]]] = {
    "eager": (eager, FLOAT32),
    "eager, channels-last": (channels_last, BOTH),
    "torch.compile": (compiled, BOTH),
    "ONNX Runtime": (onnx_runtime, FLOAT32),  # it has no bfloat16 convolution on a CPU
    "OpenVINO": (openvino, BOTH),
    "for_inference": (for_inference, BOTH),
}
"""On a CPU, by name: what prepares the network, and the dtypes. All but `for_inference` run it as written."""

EXPORTED: dict[str, dict[str, tuple[MakeEngine, tuple[torch.dtype, ...]]]] = {
    "cpu": {
        "ONNX Runtime, exported": (partial(exported_in_onnx_runtime, "CPUExecutionProvider"), FLOAT32),
        "ONNX Runtime with Core ML, exported": (partial(exported_in_onnx_runtime, "CoreMLExecutionProvider"), FLOAT32),
        "OpenVINO, exported": (exported_in_openvino, BOTH),
    },
    "cuda": {
        "ONNX Runtime with CUDA, exported": (partial(exported_in_onnx_runtime, "CUDAExecutionProvider"), HALF),
        "ONNX Runtime with TensorRT, exported": (partial(exported_in_onnx_runtime, "TensorrtExecutionProvider"), HALF),
    },
}
"""Runtimes for the exported network, by device. The exported graph pads images by reflection: these functions take an
image with such a border (`with_reflected_border`), remove it, and return the result within the border."""


def with_reflected_border(x: Tensor) -> Tensor:
    """The image, with its border replaced by a reflection of its interior; unchanged if it is too small."""
    if min(x.shape[2:]) <= 3 * BORDER:
        return x
    return F.pad(x[..., BORDER:-BORDER, BORDER:-BORDER], [BORDER] * 4, mode="reflect")


def without_border(x: Tensor) -> Tensor:
    if min(x.shape[2:]) <= 3 * BORDER:
        raise ValueError(f"the exported network needs images of more than {3 * BORDER} pixels per side here")
    return x[..., BORDER:-BORDER, BORDER:-BORDER].contiguous()


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


def exported(model: Network, dtype: torch.dtype) -> bytes:
    from lmfn.export import onnx_model

    kind: ExportType = "float16" if dtype == torch.float16 else "float32"
    serialized: bytes = onnx_model(model.cpu(), dtype=kind).SerializeToString()
    return serialized


def onnx(model: Network, x: Tensor) -> bytes:
    with lmfn_kernels.backend("reference"), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lmfn.onnx"
        torch.onnx.export(model, (x,), path, dynamo=True, external_data=False, input_names=["blurred"], verbose=False)
        return path.read_bytes()
