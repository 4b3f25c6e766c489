"""What runs the whole network on a CPU: ours, and what one would use instead.

Every engine but ours gets the network as written (the `reference` body).
"""

import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import lmfn_kernels
from lmfn import LMFN

Run = Callable[[Tensor], Tensor]
"""From an image `[B, 3, H, W]`, float32 in [0, 1], to the sharp one."""


def eager(model: LMFN, _x: Tensor, _dtype: torch.dtype) -> Run:
    """As PyTorch runs it if nothing is done for speed."""
    return written(model)


def channels_last(model: LMFN, _x: Tensor, dtype: torch.dtype) -> Run:
    return written(model, dtype, torch.channels_last)


def compiled(model: LMFN, _x: Tensor, dtype: torch.dtype) -> Run:
    return written(torch.compile(model, dynamic=False), dtype, torch.channels_last)  # type: ignore[arg-type]


def for_inference(model: LMFN, _x: Tensor, dtype: torch.dtype) -> Run:
    return model.for_inference("cpu", dtype)


def onnx_runtime(model: LMFN, x: Tensor, _dtype: torch.dtype) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    session = onnxruntime.InferenceSession(onnx(model, x), options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"blurred": x.numpy()})[0])


def openvino(model: LMFN, x: Tensor, dtype: torch.dtype) -> Run:
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
ENGINES: dict[str, tuple[Callable[[LMFN, Tensor, torch.dtype], Run], tuple[torch.dtype, ...]]] = {
    "eager": (eager, FLOAT32),
    "eager, channels-last": (channels_last, BOTH),
    "torch.compile": (compiled, BOTH),
    "ONNX Runtime": (onnx_runtime, FLOAT32),  # whose CPU has no convolution in bfloat16
    "OpenVINO": (openvino, BOTH),
    "for_inference": (for_inference, BOTH),
}
"""How each is made, and in which precisions it exists."""


def written(
    model: LMFN, dtype: torch.dtype = torch.float32, layout: torch.memory_format = torch.contiguous_format
) -> Run:
    model = model.to(memory_format=layout)  # type: ignore[call-overload]

    def run(x: Tensor) -> Tensor:
        with (
            torch.inference_mode(),
            lmfn_kernels.backend("reference"),
            torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16),
        ):
            return model(x.contiguous(memory_format=layout))

    return run


def onnx(model: LMFN, x: Tensor) -> bytes:
    with lmfn_kernels.backend("reference"), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lmfn.onnx"
        torch.onnx.export(model, (x,), path, dynamo=True, external_data=False, input_names=["blurred"], verbose=False)
        return path.read_bytes()
