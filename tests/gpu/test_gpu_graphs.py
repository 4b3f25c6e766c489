"""CUDA graphs: the network prepared for inference, and the forward and backward pass of a training step."""

import threading
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import lmfn_kernels
from bench.network import network as untrained
from bench.rows import Shape
from lmfn.cuda_graphs import GradientGraph
from lmfn.network import Network
from lmfn_kernels.runtime.launch import intercepting
from lmfn_kernels.runtime.overlap import can_overlap
from lmfn_kernels.runtime.trials import in_use, trying
from tests.gpu.conftest import DEVICE, DTYPES


def network(name: str, device: str = DEVICE) -> Any:
    """Full width, with attentions and an output that count; as in the included weights, attention is in windows, here
    smaller ones, and ESA on a fixed grid."""
    torch.manual_seed(0)
    model = Network.from_preset(name, similarity="cosine", alfm_window=128, esa_grid="fixed").eval().to(device)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith((".theta", ".alpha")):
                parameter.fill_(0.3)
        model.head.conv.weight.mul_(10 if model.config.skip == "image" else 1)
    return model


def image(height: int, width: int) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(height)).to(DEVICE)


def written(model: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
    """The formula itself, under autocast in 16 bits."""
    with (
        torch.no_grad(),
        lmfn_kernels.backend("reference"),
        torch.autocast(DEVICE, dtype, enabled=dtype.itemsize == 2),
    ):
        result: Tensor = model.to(x.dtype)(x)
    return result


def error(result: Tensor, exact: Tensor) -> Tensor:
    return (result - exact).square().mean().sqrt()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["lmfn", "lmfn-released"])
def test_as_it_is_captured_and_replayed(name: str, dtype: torch.dtype) -> None:
    model = network(name)
    run = model.for_inference(DEVICE, dtype)
    first = [run(image(70, 133)), run(image(64, 96).contiguous(memory_format=torch.channels_last))]
    for _ in range(2):
        assert torch.equal(run(image(70, 133)), first[0])
        assert torch.equal(run(image(64, 96)), first[1])
    assert torch.equal(run(image(70, 133).flip(3)), model.for_inference(DEVICE, dtype)(image(70, 133).flip(3)))
    x = image(70, 133)
    exact, plain = written(model, x.double(), torch.float64), written(model, x, dtype)
    assert error(plain, x) > 0.01
    assert error(first[0], exact) < 2 * error(plain, exact) + torch.finfo(torch.float32).eps * exact.abs().max()


def test_several_threads_take_turns() -> None:
    """Each thread copies its images to the device and back while a graph of another size is captured, of the same
    prepared network or of another one."""
    runs = [network("lmfn").for_inference(DEVICE, torch.bfloat16) for _ in range(2)]
    images = [image(64, 64 + 16 * i).cpu() for i in range(4)]
    found: list[list[Tensor]] = [[] for _ in images]

    def work(i: int) -> None:
        found[i] = [runs[i % 2](images[i].to(DEVICE)).cpu() for _ in range(5)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, results in enumerate(found):
        assert len(results) == 5
        assert all(torch.equal(result, runs[0](images[i].to(DEVICE)).cpu()) for result in results)


@pytest.mark.parametrize("memory", ["normal", "lean"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_gradients_of_a_graph_are_those_of_the_step(dtype: torch.dtype, memory: str) -> None:
    torch.manual_seed(0)
    model = untrained(Shape(4, 4, 50, 64, 96), device=DEVICE).to(memory_format=torch.channels_last).train()
    model.memory = memory
    parameters = list(model.parameters())

    def run(blurred: Tensor, sharp: Tensor) -> Tensor:
        with torch.autocast(DEVICE, dtype, enabled=dtype.itemsize == 2):
            output = model(blurred)
        loss = F.l1_loss(output.float(), sharp)
        loss.backward()
        return loss.detach()

    with lmfn_kernels.backend("triton"):
        graph = GradientGraph(run, parameters)
        for n in range(4):
            blurred, sharp = (torch.rand(4, 3, 64, 96).to(DEVICE, memory_format=torch.channels_last) for _ in range(2))
            loss = graph(blurred, sharp).clone()
            found = [parameter.grad.clone() for parameter in parameters]
            for parameter in parameters:
                parameter.grad = None
            assert torch.equal(run(blurred, sharp), loss)
            for parameter, gradient in zip(parameters, found, strict=True):
                assert torch.equal(parameter.grad, gradient)
                assert n < 2 or gradient.abs().max() > 0
            with torch.no_grad():  # as an optimizer does: the graph must read the changed weights
                for parameter in parameters:
                    parameter.sub_(1e-3 * parameter.grad)


# What is on trial is tested at sizes for which its kernels are compiled anyway. The small frame is like the large one
# in what Triton compiles kernels for: which of the sizes at each scale are multiples of 16.
FRAMES, STEP = [(112, 256), (720, 1280)], (16, 3, 256, 256)
WITH_WEIGHTS_AHEAD = "overlap", "quartered_stem", "ring_fuse", "ring_upsampled_conv"


def expect(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize(("height", "width"), FRAMES)
def test_on_trial_overlap(height: int, width: int) -> None:
    """Launches that overlap: the same bits as without, a hundred times, eagerly and in a graph."""
    if not can_overlap():
        pytest.skip("needs compute capability 9.0")
    model, x = network("lmfn"), image(height, width)
    frame = model.for_inference(DEVICE, torch.bfloat16)(x).clone()
    overlapping: list[bool] = []
    with trying("overlap"):
        for _ in range(10):
            run = model.for_inference(DEVICE, torch.bfloat16)
            with intercepting(lambda launch, *a: overlapping.append(launch(*a).metadata.launch_pdl)):
                expect([run(x)], [frame])
            for _ in range(10):
                expect([run(x)], [frame])
    assert overlapping
    assert all(overlapping)


def test_on_trial_overlap_in_a_step() -> None:
    if not can_overlap():
        pytest.skip("needs compute capability 9.0")
    model, patches = network("lmfn"), torch.rand(STEP, generator=torch.Generator().manual_seed(0)).to(DEVICE)

    def step() -> tuple[Tensor, ...]:
        with lmfn_kernels.backend("triton"), torch.autocast(DEVICE, torch.bfloat16):
            return torch.autograd.grad(model(patches).float().square().mean(), list(model.parameters()))

    expected = step()
    with trying("overlap"):
        for _ in range(100):
            expect(step(), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize(("height", "width"), FRAMES)
def test_on_trial_weights_ahead(height: int, width: int, dtype: torch.dtype) -> None:
    """Weights loaded before the wait for the previous launch: the same bits as without, a hundred times, eagerly and in
    a graph; also of a network prepared in memory that another one has used."""
    if not import_module("lmfn_kernels.conv.triton_backend").ring_programs(torch.device(DEVICE, 0)):
        pytest.skip("needs a Hopper GPU and a Triton with this Gluon")
    others = *WITH_WEIGHTS_AHEAD, *filter(in_use, ["newer_triton"])
    model, x = network("lmfn"), image(height, width)
    with trying(*others):
        frame = model.for_inference(DEVICE, dtype)(x).clone()
    ahead: list[bool] = []

    def noted(launch: Any, kernel: Any, grid: Any, arguments: dict[str, Any]) -> object:
        if "AHEAD" in arguments:
            ahead.append(arguments["AHEAD"])
        return launch(kernel, grid, arguments)

    with trying("weights_ahead", *others):
        for _ in range(10):
            run = model.for_inference(DEVICE, dtype)
            with intercepting(noted):
                assert torch.equal(run(x), frame)
            for _ in range(10):
                assert torch.equal(run(x), frame)
            del run
    assert ahead
    assert all(ahead)
