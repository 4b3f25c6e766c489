"""The exported ONNX graph in ONNX Runtime and OpenVINO beside `for_inference`, on this CPU, in one interleaved run.

    python experiments/cpu-inference/exported.py

All have the reflected border and the shipped weights. A row per size: the median of the rounds' times by the clock, and
of both times as ratios to those of `for_inference` in the same round. Beside other work, only the processor time is
worth something, and only of one thread: two that wait for each other spin. The last line is the peak memory of the
process: `--engines OpenVINO` gives that of one alone.
"""

import io
import resource
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
    engines: tuple[str, ...] = ()
    """Only these; the first is what the others are compared with. Default: all, compared with for_inference."""


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
    makers = {
        "for_inference": lambda: with_border(for_inference(model, cpu, torch.float32)),
        "ONNX Runtime": lambda: in_onnx_runtime(exported, arguments.threads),
        "OpenVINO": lambda: in_openvino(exported, arguments.threads, "f32"),
    }
    if has_fast_bf16(cpu):
        makers |= {
            "for_inference, bfloat16": lambda: with_border(for_inference(model, cpu, torch.bfloat16)),
            "OpenVINO, bfloat16": lambda: in_openvino(exported, arguments.threads, "bf16"),
        }
    found = {name: makers[name]() for name in arguments.engines or makers}
    first = next(iter(found))
    for size in arguments.sizes:
        width, height = map(int, size.split("x"))
        x = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
        reference, times = found[first](x), {name: list[tuple[float, float]]() for name in found}
        for name, run in found.items():
            print(f"{size} {name}: off by {(run(x) - reference).abs().max().item():.2g}", flush=True)
        for _ in range(arguments.rounds):
            for name, run in found.items():
                start, used = time.perf_counter(), time.process_time()
                run(x)
                times[name].append((time.perf_counter() - start, time.process_time() - used))
        for name, taken in times.items():
            clock = statistics.median(seconds for seconds, _ in taken)
            pairs = list(zip(taken, times[first], strict=True))
            ratios = [statistics.median(own[i] / other[i] for own, other in pairs) for i in (0, 1)]
            print(
                f"{size} {name}: {clock:.3f} s, {ratios[0]:.2f} times; processor time {ratios[1]:.2f} times", flush=True
            )
    print(f"peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:.0f} MiB")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
