"""A training step's forward and backward pass as one CUDA graph: the gradients of the step as it is."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import lmfn_kernels
from bench.network import network
from bench.rows import Shape
from lmfn.cuda_graphs import GradientGraph

pytestmark = pytest.mark.gpu  # asked for by `-m gpu` alone, and then a failure where there is no GPU

DEVICE = "cuda"


@pytest.mark.parametrize("memory", ["normal", "lean"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_gradients_are_those_of_the_step(dtype: torch.dtype, memory: str) -> None:
    torch.manual_seed(0)
    model = network(Shape(4, 4, 50, 64, 96), device=DEVICE).to(memory_format=torch.channels_last).train()
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
            with torch.no_grad():  # as an optimizer does: the graph reads the weights anew
                for parameter in parameters:
                    parameter.sub_(1e-3 * parameter.grad)
