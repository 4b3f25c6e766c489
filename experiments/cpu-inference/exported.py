"""The exported ONNX graph in ONNX Runtime and OpenVINO beside `for_inference`, on this CPU, in one interleaved run.

    python experiments/cpu-inference/exported.py

All have the reflected border and the shipped weights. A row per size: the median of the rounds' times by the clock, and
of the processor time as a ratio to that of `for_inference` in the same round. Beside other work, only the second is
worth something, and only of one thread: two that wait for each other spin.
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
        reference, times = found["for_inference"](x), {name: list[tuple[float, float]]() for name in found}
        for name, run in found.items():
            print(f"{size} {name}: off by {(run(x) - reference).abs().max().item():.2g}", flush=True)
        for _ in range(arguments.rounds):
            for name, run in found.items():
                start, used = time.perf_counter(), time.process_time()
                run(x)
                times[name].append((time.perf_counter() - start, time.process_time() - used))
        for name, taken in times.items():
            clock = statistics.median(seconds for seconds, _ in taken)
            pairs = zip(taken, times["for_inference"], strict=True)
            ratio = statistics.median(own / other for (_, own), (_, other) in pairs)
            print(f"{size} {name}: {clock:.3f} s, {ratio:.2f} times the processor time", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
