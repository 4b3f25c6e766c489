"""The ops of the registry under pytest-benchmark: `pytest bench --benchmark-only`.

Inference at the first size of `python -m bench ops`, on a GPU if available, otherwise on the CPU; select with e.g. `-k
"rfdb and torch"`. A wrong result fails. Times are by wall clock with synchronisation, including gaps between launches.
"""

from functools import cache

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.devices import Device, device
from bench.measure import check_results
from bench.ops import DTYPES, SIZES
from bench.providers import PROVIDERS, call
from bench.registry import OPS
from lmfn_kernels import testing


@pytest.fixture(scope="module")
def on() -> Device:
    return device("auto")


@cache
def tensors_and_exact(name: str, kind: str, where: str) -> tuple[list[torch.Tensor], list[testing.Reference]]:
    op = OPS[name]
    shape = op.shape(*SIZES[kind][0])
    torch.manual_seed(0)
    tensors = op.make(shape, getattr(torch, DTYPES[kind][0]), where)
    results, _ = testing.reference_with_bounds(op.function(shape), tensors, [False] * len(tensors), rounds=2)
    return tensors, results


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("name", [op for op in OPS if op != "lmfn"])
def test_infer(benchmark: BenchmarkFixture, on: Device, name: str, provider: str) -> None:
    if on.kind not in PROVIDERS[provider].devices:
        pytest.skip(f"{provider} is not measured on {on.kind}")
    tensors, exact = tensors_and_exact(name, on.kind, on.torch_device)
    function = PROVIDERS[provider].function(OPS[name].function(OPS[name].shape(*SIZES[on.kind][0])))
    timed = call(function, [PROVIDERS[provider].inputs(tensors)], "infer")
    check_results(timed(), exact)

    def synchronised() -> None:
        timed()
        on.synchronize()

    benchmark.pedantic(synchronised, rounds=10, warmup_rounds=2)  # type: ignore[no-untyped-call]
