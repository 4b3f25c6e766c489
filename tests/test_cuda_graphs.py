"""A training step as a graph, with a capture that imitates on a CPU what a graph does on a GPU."""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lmfn import images
from lmfn.cuda_graphs import WARM_UPS, GradientGraph, GraphCache
from lmfn.network import checkpoint
from lmfn.training import step
from lmfn.training.loop import train
from lmfn.training.settings import Settings


class Recorded:
    """Results and gradients are in the same memory in every replay, and are overwritten, never accumulated."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters, self.runs = list(parameters), 0

    def __call__(self, run: Callable[..., Any], *examples: Tensor, warm_ups: int = 0) -> Callable[..., Any]:
        given = [example.clone() for example in examples]
        for _ in range(warm_ups):
            run(*given)
        made, gradients = run(*given), [parameter.grad for parameter in self.parameters]
        self.runs += warm_ups + 1

        def replay(*tensors: Tensor) -> Any:
            for mine, tensor in zip(given, tensors, strict=True):
                mine.copy_(tensor)
            for mine, new in zip(made, run(*given), strict=True):
                mine.copy_(new)
            for mine, parameter in zip(gradients, self.parameters, strict=True):
                if mine is not None:
                    mine.copy_(parameter.grad)
                parameter.grad = None
            return made

        return replay


def test_an_image_is_aligned_before_the_capture_as_in_it() -> None:
    """Triton compiles a kernel anew for memory that does not begin at a multiple of 16 bytes."""
    places = []

    def run(x: Tensor) -> Tensor:
        places.append(x.data_ptr() % 16)
        return x + 1

    def capture(run: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[Tensor], Tensor]:
        run(x.clone())
        return lambda x: x + 1

    cache = GraphCache(run, capture)
    image = torch.rand(1 + 3 * 4 * 5)[1:].view(1, 3, 4, 5)
    assert image.data_ptr() % 16
    for _ in range(2):
        assert torch.equal(cache(image), image + 1)
    assert places == [0, 0]


def test_gradients_are_those_of_the_call_alone() -> None:
    """Whatever was done to the gradients before: set to None, scaled, or left unchanged."""
    torch.manual_seed(0)
    model, unused = nn.Linear(3, 2), nn.Parameter(torch.zeros(1))

    def run(x: Tensor) -> tuple[Tensor]:
        loss = model(x).square().sum()
        loss.backward()
        return (loss.detach(),)

    parameters = [*model.parameters(), unused]
    recorded = Recorded(parameters)
    graph = GradientGraph(run, parameters, recorded)
    places = set()
    for after in ("dropped", "scaled", "left", "left"):
        x = torch.rand(5, 3)
        (loss,) = graph(x)
        expected = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
        for parameter, gradient in zip(model.parameters(), expected, strict=True):
            assert torch.equal(parameter.grad, gradient)
            if after == "dropped":
                places.add(parameter.grad.data_ptr())
                parameter.grad = None
            elif after == "scaled":
                parameter.grad.mul_(3)
        assert unused.grad is None
        assert loss == model(x).square().sum()
    assert places == {parameter.grad.data_ptr() for parameter in model.parameters()}
    assert recorded.runs == WARM_UPS + 1


def test_a_run_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for n in range(2):
        images.write(tmp_path / "photos" / f"{n}.png", images.Photo(rng.random((70, 80, 3), dtype=np.float32)))
    small = ("channels=8", "features=8", "distilled=4", "esa=4", "rfdbs=1")
    plain = Settings(
        name="plain",
        runs=tmp_path,
        photos=(str(tmp_path / "photos"),),
        network=small,
        lr=1e-3,
        clip=0.01,
        batch=2,
        patch=32,
        steps=6,
        device="cpu",
        val_every=3,
    )
    assert train(plain) == 0
    monkeypatch.setattr(step, "obstacle_to_graph", lambda *_: None)
    made: list[GradientGraph] = []

    def graph(run: Callable[..., Any], parameters: Iterable[nn.Parameter]) -> GradientGraph:
        parameters = list(parameters)
        made.append(GradientGraph(run, parameters, Recorded(parameters)))
        return made[0]

    monkeypatch.setattr(step, "GradientGraph", graph)
    assert train(dataclasses.replace(plain, name="graph")) == 0
    assert made[0].replay is not None
    for name in ("model", "ema"):
        one, other = (checkpoint.read(tmp_path / run / f"{name}.safetensors")[0] for run in ("plain", "graph"))
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_step_is_a_graph_where_it_can_be() -> None:
    settings, cuda = Settings(photos=("x",)), torch.device("cuda:0")
    assert settings.graph, "unless told not to"
    assert step.obstacle_to_graph(settings, cuda, 1) is None
    assert step.obstacle_to_graph(settings, torch.device("cpu"), 1) == "the device is cpu"
    assert step.obstacle_to_graph(settings, cuda, 2) == "there are 2 processes"
    for change, why in (
        ({"accumulate": 2}, "--accumulate adds up gradients"),
        ({"precision": "fp16"}, "fp16 scales its gradients"),
        ({"compile": True}, "--compile launches its own"),
    ):
        assert step.obstacle_to_graph(dataclasses.replace(settings, **change), cuda, 1) == why  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("graph", "obstacle", "said"), [(True, None, "is captured"), (True, "why", "not captured"), (False, None, "")]
)
def test_what_becomes_of_the_step_is_said(
    graph: bool, obstacle: str | None, said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[object] = []
    monkeypatch.setattr(step, "obstacle_to_graph", lambda *_: obstacle)
    monkeypatch.setattr(step, "GradientGraph", lambda *_: made.append("graph"))
    accelerator: Any = SimpleNamespace(device=torch.device("cuda"), num_processes=1)
    with caplog.at_level("INFO", "lmfn"):
        step.gradient_function(Settings(photos=("x",), graph=graph), accelerator, nn.Linear(1, 1))
    assert bool(made) == (graph and obstacle is None)
    assert said in caplog.text
    assert obstacle is None or obstacle in caplog.text
    assert said or not caplog.text
