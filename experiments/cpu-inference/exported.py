"""The exported ONNX graph in ONNX Runtime and OpenVINO beside `for_inference`, on this CPU, in one interleaved run.

    python experiments/cpu-inference/exported.py

All have the reflected border, two threads, and the shipped weights. A row per size: the median of the rounds' times and
of their ratios to `for_inference`, which is timed in the same round.
"""

import io
import statistics
import time
from dataclasses import dataclass

import onnx
import onnxruntime
import openvino
import torch
import tyro

from lmfn import LMFN
from lmfn.cuda_graphs import ImageFunction
from lmfn.device import has_fast_bf16
from lmfn.export import onnx_model
from lmfn.inference import for_inference, with_border


@dataclass(frozen=True)
class Arguments:
    sizes: tuple[str, ...] = ("640x360", "1280x720")
    """Width x height."""
    rounds: int = 5
    threads: int = 2


def in_onnx_runtime(exported: onnx.ModelProto, threads: int) -> ImageFunction:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(exported.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"blurred": x.numpy()})[0])


def in_openvino(exported: onnx.ModelProto, threads: int, precision: str) -> ImageFunction:
    options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(io.BytesIO(exported.SerializeToString())), "CPU", options)
    return lambda x: torch.from_numpy(compiled(x.numpy())[0])


def main(arguments: Arguments) -> None:
    torch.set_num_threads(arguments.threads)
    model = LMFN.from_pretrained()
    exported = onnx_model(model)
    cpu = torch.device("cpu")
    found = {
        "for_inference": with_border(for_inference(model, cpu, torch.float32)),
        "ONNX Runtime": in_onnx_runtime(exported, arguments.threads),
        "OpenVINO": in_openvino(exported, arguments.threads, "f32"),
    }
    if has_fast_bf16(cpu):
        found |= {
            "for_inference, bfloat16": with_border(for_inference(model, cpu, torch.bfloat16)),
            "OpenVINO, bfloat16": in_openvino(exported, arguments.threads, "bf16"),
        }
    for size in arguments.sizes:
        width, height = map(int, size.split("x"))
        x = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
        reference, times = found["for_inference"](x), {name: list[float]() for name in found}
        for name, run in found.items():
            print(f"{size} {name}: off by {(run(x) - reference).abs().max().item():.2g}", flush=True)
        for _ in range(arguments.rounds):
            for name, run in found.items():
                start = time.perf_counter()
                run(x)
                times[name].append(time.perf_counter() - start)
        for name, taken in times.items():
            ratios = [one / other for one, other in zip(taken, times["for_inference"], strict=True)]
            print(f"{size} {name}: {statistics.median(taken):.3f} s, {statistics.median(ratios):.2f} times", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
