"""The whole network on its ops: equal to the formulas, lean in memory, and compatible with PyTorch's machinery."""

import copy
import hashlib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

import lmfn_kernels
from lmfn import LMFN
from lmfn.evaluation import saved_bytes
from lmfn.network.config import PRESETS
from lmfn_kernels.runtime import backend, configs

SMALL = {"channels": 8, "features": 10, "distilled": 5, "esa": 4, "rfdbs": 2}


def network(preset: str = "lmfn", memory: str = "normal", **fields: object) -> LMFN:
    """Seeded, with theta and alpha different from 0, where both attentions would be the identity."""
    torch.manual_seed(0)
    model = LMFN.from_preset(preset, **fields)
    for name, parameter in model.named_parameters():
        if name.endswith(("theta", "alpha")):
            nn.init.constant_(parameter, 0.3)
    model.memory = memory
    return model


def gradients(model: LMFN, image: Tensor) -> list[Tensor]:
    """The output, then the gradients of the image and of the parameters."""
    image = image.clone().requires_grad_()
    output = model(image)
    return [output.detach(), *torch.autograd.grad(output.square().sum(), [image, *model.parameters()])]


@pytest.mark.parametrize("memory", ["normal", "lean"])
@pytest.mark.parametrize("name", PRESETS)
def test_equals_the_formulas(name: str, memory: str) -> None:
    """In float64, at an odd size, with every gradient, for the switches of both presets."""
    model = network(name, memory, **SMALL).double()
    image = torch.rand(2, 3, 67, 85, dtype=torch.float64)
    found = gradients(model, image)
    with lmfn_kernels.backend("reference"):
        expected = gradients(model, image)
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert (a - b).abs().max() <= 1e-10 * b.abs().max(), i


@pytest.mark.parametrize("name", PRESETS)
def test_equals_the_formulas_at_full_width(name: str) -> None:
    model = network(name).double()
    image = torch.rand(1, 3, 65, 70, dtype=torch.float64)
    with torch.no_grad():
        found = model(image)
        with lmfn_kernels.backend("reference"):
            expected = model(image)
    assert (found - expected).abs().max() <= 1e-10 * expected.abs().max()


def train(backend: str) -> tuple[list[float], float]:
    """Losses of 25 steps of learning to darken images, and the PSNR at the end."""
    model = network(**SMALL)
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    images = torch.rand(25, 2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    losses = []
    with lmfn_kernels.backend(backend):
        for image in images:
            loss = F.l1_loss(model(image), 0.7 * image)
            adam.zero_grad()
            loss.backward()
            adam.step()
            losses.append(loss.item())
        with torch.no_grad():
            error = F.mse_loss(model(images[0]), 0.7 * images[0])
    return losses, -10 * error.log10().item()


def test_trains_as_the_formulas_do() -> None:
    losses, psnr = train("torch")
    expected, expected_psnr = train("reference")
    assert expected[-1] < 0.9 * expected[0], "it learns, so that there is something to compare"
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected), rtol=1e-4, atol=0)
    assert abs(psnr - expected_psnr) < 0.01


def kept(model: LMFN, precision: torch.dtype, backend: str = "torch") -> float:
    """Bytes per pixel of one 256x256 patch that autograd saves, parameters not counted. The 16-bit copies of the
    weights, which autocast makes once per step, are attributed to this patch."""
    with lmfn_kernels.backend(backend), torch.autocast("cpu", precision, enabled=precision != torch.float32):
        return saved_bytes(model) / 256**2


@pytest.mark.parametrize(
    ("precision", "memory", "most"),
    [(torch.bfloat16, "normal", 430), (torch.float32, "normal", 850), (torch.bfloat16, "lean", 200)],
    ids=str,
)
@pytest.mark.parametrize("name", PRESETS)
def test_kept_for_backward(name: str, precision: torch.dtype, memory: str, most: int) -> None:
    assert most / 2 < kept(network(name, memory), precision) <= most


def test_the_formulas_keep_much_more() -> None:
    """Checks the measure used above."""
    assert kept(network(), torch.bfloat16, "reference") > 1000


def test_lean_is_the_same_to_the_bit() -> None:
    model = network(**SMALL)
    assert model.memory == "normal"
    image = torch.rand(1, 3, 64, 80)
    normal = gradients(model, image)
    model.memory = "lean"
    assert model.memory == "lean"
    for a, b in zip(gradients(model, image), normal, strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="memory is 'low'; it must be one of normal, lean"):
        model.memory = "low"


@pytest.mark.parametrize(("name", "memory"), [("lmfn", "normal"), ("lmfn", "lean"), ("lmfn-released", "normal")])
def test_compiles_whole(name: str, memory: str) -> None:
    """One graph, forward and backward, and one without gradients."""
    torch.compiler.reset()
    model = network(name, memory, **{**SMALL, "rfdbs": 1})
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=False)
    image = torch.rand(1, 3, 64, 70)
    found, expected = compiled(image), model(image)
    assert (found - expected).abs().max() <= 1e-5
    parameters = list(model.parameters())
    for a, b in zip(
        torch.autograd.grad(found.square().mean(), parameters),
        torch.autograd.grad(expected.square().mean(), parameters),
        strict=True,
    ):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max() + 1e-7
    with torch.inference_mode():
        assert (compiled(image) - model(image)).abs().max() <= 1e-5


class NothingFromTheHost(TorchFunctionMode):
    """Fails if a value is copied to or from the device, which a CUDA graph cannot capture."""

    TAKEN = (
        *(torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy, torch.nonzero, Tensor.nonzero, Tensor.item),
        *(Tensor.tolist, Tensor.cpu, Tensor.numpy, Tensor.__bool__, Tensor.__float__, Tensor.__int__, Tensor.__index__),
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in self.TAKEN, f"{func.__name__} in what a graph captures"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("body", ["triton", "torch"])
@pytest.mark.parametrize("name", PRESETS)
def test_a_graph_can_capture_it(name: str, body: str) -> None:
    """After a first run, forward and backward copy nothing to the device and wait for nothing from it."""
    from lmfn_kernels.runtime import launch

    model = network(name, similarity="cosine", **SMALL)
    image = torch.rand(1, 3, 64, 70)
    # The interpreter behaves differently from a GPU.
    with lmfn_kernels.backend(body), launch.intercepting(lambda *_: None):
        gradients(model, image)
        with NothingFromTheHost():
            gradients(model, image)


@pytest.mark.parametrize("body", ["triton", "torch"])
@pytest.mark.parametrize("memory", ["normal", "lean"])
@pytest.mark.parametrize("name", PRESETS)
def test_all_tensors_are_made_on_the_images_device(
    name: str, memory: str, body: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the meta device: an operation on another device, or one that waits for a value, is an error."""
    monkeypatch.setattr(backend, "_missing", lambda _: None)
    monkeypatch.setattr(configs, "describe", lambda _: configs.Device("meta", 90, 232448))
    launching = [f"{part}.triton_backend" for part in ("acfm", "alfm", "conv", "mshf", "rfdb", "upsample")]
    for module in (*launching, "runtime.multi_tensor"):
        monkeypatch.setattr(import_module(f"lmfn_kernels.{module}"), "launch", lambda *_, **__: None)
    model, image = network(name, memory, similarity="cosine", **SMALL).to("meta"), torch.rand(2, 3, 70, 85).to("meta")
    with lmfn_kernels.backend(body):
        assert all(tensor.is_meta for tensor in gradients(model, image))
        with torch.no_grad():
            assert model(image).is_meta


@pytest.mark.parametrize("name", PRESETS)
def test_exports(name: str) -> None:
    """Once, for any batch and all sizes that are multiples of 16 from 112, where ESA's low map has more than one
    row."""
    model = network(name, **SMALL).eval()
    batch = torch.export.Dim("batch", min=1, max=16)
    rows, columns = (torch.export.Dim(side, min=7, max=256) for side in ("rows", "columns"))
    program = torch.export.export(
        model, (torch.rand(2, 3, 128, 160),), dynamic_shapes=({0: batch, 2: 16 * rows, 3: 16 * columns},)
    )
    for size in ((1, 3, 112, 144), (3, 3, 176, 112)):
        image = torch.rand(size)
        found = program.module()(image)  # no backward pass is exported or needed
        assert not found.requires_grad
        with torch.no_grad():
            assert (found - model(image)).abs().max() <= 1e-6


def test_traces_are_refused_and_nothing_comes_of_nothing() -> None:
    model = network(**SMALL)
    with pytest.raises(RuntimeError, match="one image's size and branches for all"):
        torch.jit.trace(model, torch.rand(1, 3, 64, 64))
    assert model(torch.rand(0, 3, 70, 64)).shape == (0, 3, 70, 64)
    assert model.for_inference()(torch.rand(0, 3, 70, 64)).shape == (0, 3, 70, 64)


def test_forward_hooks_see_the_parts_that_are_called_as_modules() -> None:
    model, seen = network(**SMALL), set()
    for name, module in model.named_modules():
        module.register_forward_hook(lambda _module, _inputs, _output, name=name: seen.add(name))
    model(torch.rand(1, 3, 64, 64))
    blocks = {*(f"encoder.rb_4th.{i}" for i in (2, 3, 4)), "head.rb1", "head.rb2"}
    assert seen == {"", "encoder", "acfm", "head", "rfdbs.0", "rfdbs.1", *blocks}


def test_float64_as_the_default_makes_float64_networks_and_leaves_inference_as_it_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    image, model = torch.rand(1, 3, 64, 64), network(**SMALL)
    expected = model.for_inference()(image)
    torch.set_default_dtype(torch.float64)
    try:
        assert next(network(**SMALL).parameters()).dtype == torch.float64
        assert torch.equal(model.for_inference()(image), expected)
    finally:
        torch.set_default_dtype(torch.float32)
    assert not caplog.text


def test_trains_after_a_first_call_in_inference_mode() -> None:
    """What the first call keeps for later ones, e.g. the mean, can be saved for backward."""
    model, image = network(**SMALL), torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        expected = model(image)
    assert torch.equal(gradients(model, image)[0], expected)


def test_autocast() -> None:
    """bfloat16 is within its rounding error of float32; gradients are float32."""
    model, image = network(**SMALL), torch.rand(1, 3, 64, 64)
    exact = gradients(model, image)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(model, image)
    assert (found[0] - exact[0]).abs().max() < 0.02
    assert all(g.dtype == torch.float32 for g in found)
    for a, b in zip(found, exact, strict=True):
        assert (a - b).norm() < 0.2 * b.norm() + 1e-4


def in_parallel(rank: int, folder: str) -> None:
    """One process of two: two steps with a changing graph, and two with a static one in lean memory."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.set_num_threads(1)
    images = torch.rand(2, 1, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    for static in (False, True):
        model = network(memory="lean" if static else "normal", **SMALL)
        parallel = DistributedDataParallel(model, static_graph=static)
        for _ in range(2):
            parallel.zero_grad()
            parallel(images[rank]).square().mean().backward()
        torch.save([p.grad for p in model.parameters()], Path(folder) / f"{rank}-{static}.pt")
    del parallel  # as in training, for the same reason
    dist.destroy_process_group()
    names = [comm.read_text() for comm in Path("/proc/self/task").glob("*/comm")]
    assert not [name for name in names if "gloo" in name]  # they may abort while Python exits


def test_distributed(tmp_path: Path) -> None:
    """Two processes have the gradients of one with both images."""
    mp.start_processes(in_parallel, (str(tmp_path),), nprocs=2, start_method="fork")
    model = network(**SMALL)
    images = torch.rand(2, 1, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    model(images.flatten(0, 1)).square().mean().backward()
    for name in ("0-False", "1-False", "0-True", "1-True"):
        found = torch.load(tmp_path / f"{name}.pt")
        for a, parameter in zip(found, model.parameters(), strict=True):
            assert parameter.grad is not None
            assert (a - parameter.grad).abs().max() <= 1e-4 * parameter.grad.abs().max() + 1e-7


@pytest.mark.parametrize(
    ("name", "count", "digest"),
    [("lmfn", 182, "53f862c43a3650ce"), ("lmfn-released", 174, "9d7d55cffab64f3a")],
)
def test_weights_files_still_load(name: str, count: int, digest: str) -> None:
    """Names and shapes of all weights, as in files of earlier versions."""
    state = LMFN.from_preset(name).state_dict()
    text = "\n".join(f"{key} {tuple(value.shape)}" for key, value in state.items())
    assert (len(state), hashlib.sha256(text.encode()).hexdigest()[:16]) == (count, digest)


def test_a_network_first_called_within_torch_func_can_be_copied():
    model = LMFN.from_preset("lmfn", channels=8, features=8, distilled=4, esa=4, rfdbs=1)
    x = torch.rand(1, 3, 32, 32)
    torch.func.grad(lambda x: model(x).sum())(x)
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(model)(x), model(x))
