"""The whole network on a CPU, beside what one would use instead: `python -m bench.model`.

Every engine gets the network as written (the `reference` body) and the same image, and has its result checked. Calls
are timed by turns. With one thread, the clock is the process's own time, so that other work on the machine does not
count; with more it is the wall's.
"""

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

import lmfn_kernels
from lmfn import LMFN
from lmfn.device import has_fast_bf16

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
"""How each is made, and in which precisions it exists; the first is what the others are compared with."""


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


def providers(make: Callable[[], LMFN], x: Tensor) -> Iterator[tuple[str, torch.dtype, Run]]:
    """Every engine that is installed, in every precision that it and this processor have, ready for images like `x`.

    `make` gives a network of its own to each.
    """
    for name, (engine, dtypes) in ENGINES.items():
        for dtype in dtypes:
            if dtype == torch.bfloat16 and not has_fast_bf16(torch.device("cpu")):
                print(f"left out: {name} in bfloat16, which this processor has no fast instructions for")
                continue
            try:
                run = engine(make(), x, dtype)
                run(x)  # what is compiled at the first call
            except ImportError as error:
                print(f"left out: {name}: {error}")
                break
            yield name, dtype, run


def network() -> LMFN:
    """Untrained, with attentions that count and a result that is not nearly the input."""
    torch.manual_seed(0)
    model = LMFN.from_preset("lmfn").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith((".theta", ".alpha")):
                parameter.fill_(0.1)
        model.head.conv.weight.mul_(10)
    return model


def psnr(x: Tensor, exact: Tensor) -> float:
    return float(-10 * (x - exact).double().square().mean().log10())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.model", description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, nargs=2, default=(720, 1280), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--only", nargs="+", choices=ENGINES, default=list(ENGINES), help="engines beside the first")
    options = parser.parse_args()
    for name in [name for name in list(ENGINES)[1:] if name not in options.only]:
        del ENGINES[name]
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    x = torch.rand(1, 3, *options.size, generator=torch.Generator().manual_seed(0))
    exact = written(network())(x)
    runs = {}
    for name, dtype, run in providers(network, x):
        close = psnr(run(x), exact)
        assert close > (100 if dtype == torch.float32 else 40), f"{name}, {dtype}: {close:.1f} dB from the exact result"
        runs[name, dtype] = run, close
    times: dict[tuple[str, torch.dtype], list[float]] = {key: [] for key in runs}
    for _ in range(options.rounds):
        for key, (run, _) in runs.items():
            start = clock()
            run(x)
            times[key].append(clock() - start)
    median = {key: statistics.median(found) for key, found in times.items()}
    first = next(iter(median.values()))
    height, width = options.size
    print(f"\n{width}x{height}, {options.threads} threads, torch {torch.__version__}, {options.rounds} rounds\n")
    print("| engine | precision | seconds (fastest to slowest) | times as fast | dB from eager float32 |")
    print("|---|---|---|---|---|")
    for (name, dtype), found in times.items():
        seconds = median[name, dtype]
        print(
            f"| {name} | {str(dtype).removeprefix('torch.')} | {seconds:.3f} ({min(found):.3f} to {max(found):.3f}) | "
            f"{first / seconds:.2f} | {runs[name, dtype][1]:.1f} |"
        )


if __name__ == "__main__":
    main()
