"""The network prepared for inference, against the plain network in float64."""

import copy
import multiprocessing
import os
import threading
from dataclasses import fields
from functools import partial
from typing import get_args, get_type_hints

import numpy as np
import pytest
import small_networks
import torch
from skimage import data

import lmfn.inference
import lmfn.onednn
from lmfn import LMFN
from lmfn.cuda_graphs import GraphCache
from lmfn.fp8 import store_as_e4m3
from lmfn.inference import Turns, for_inference, plain
from lmfn.network.config import PRESETS, LMFNConfig
from lmfn.onednn import OneDNNNetwork, for_onednn, is_supported
from lmfn_kernels import backend
from lmfn_kernels.conv import backend as conv
from lmfn_kernels.conv import triton_backend
from lmfn_kernels.runtime import launch, torch_private
from lmfn_kernels.runtime.torch_private import TorchDispatchMode
from lmfn_kernels.runtime.trials import ON_TRIAL, trying
from lmfn_kernels.weights import E4M3

CPU = torch.device("cpu")
SMALL = {"channels": 12, "features": 10, "distilled": 5, "esa": 4, "rfdbs": 2}
FULL = {"channels": 64, "features": 50, "distilled": 25, "esa": 12, "rfdbs": 4}
bf16 = pytest.mark.skipif(
    not is_supported(LMFN.from_preset("lmfn", **SMALL), torch.bfloat16), reason="this processor has no fast bfloat16"
)
DTYPES = [torch.float32, pytest.param(torch.bfloat16, marks=bf16)]


network = partial(small_networks.network, **SMALL)


def written(model, x, dtype):
    """The formula itself; in 16 bits under autocast."""
    with torch.no_grad(), backend("reference"), torch.autocast("cpu", enabled=dtype == torch.bfloat16):
        return model.to(x.dtype)(x)


def assert_close(result, model, x, dtype):
    """As close to the exact result as the plain network in that dtype, except for the effect of another order of sums:
    the RMS error may be twice that of the plain network, and the largest error, that of a single value, four times."""
    exact = written(model, x.double(), torch.float64)
    plain = written(model, x.float(), dtype)
    errors = (result - exact).abs(), (plain - exact).abs()
    least = torch.finfo(torch.float32).eps * exact.abs().max()
    assert (plain - x).square().mean().sqrt() > 0.01
    for factor, worst in (2, lambda e: e.square().mean().sqrt()), (4, torch.max):
        found, bound = (worst(e) for e in errors)
        assert found < factor * bound + least


def image(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


HINTS = get_type_hints(LMFNConfig)
SWITCHES = [
    *((name, {}) for name in PRESETS),
    *(
        ("lmfn", {field.name: choice})
        for field in fields(LMFNConfig)
        for choice in get_args(HINTS[field.name])
        if field.name != "alfm_window" and choice != field.default
    ),
    *((name, {"alfm_window": 64}) for name in PRESETS),
    ("lmfn", {"stem_padding": 0}),
    ("lmfn", {"rfdbs": 1}),
    ("lmfn", {"alfm": "none", "acfm": "none", "skip": "feature"}),
    ("lmfn", {"alfm": "none", "head": "pixelshuffle", "skip": "none"}),
    ("lmfn-released", {"similarity": "cosine"}),
]
"""Both presets, the paper's network with each value of each option, and some combinations."""


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "options"), SWITCHES, ids=str)
def test_every_network_is_what_it_was(name, options, dtype):
    model, x = network(name, **options), image(2, 3, 70, 133)
    assert_close(model.for_inference(dtype=dtype)(x), model, x, dtype)


@pytest.mark.parametrize("size", [(1, 1), (5, 200), (64, 64), (65, 127), (96, 80), (79, 96)])
@pytest.mark.parametrize("name", PRESETS)
def test_any_size_in_any_order(name, size):
    model = network(name)
    run = for_inference(model, dtype=torch.float32)
    run(image(1, 3, 130, 70).mul_(9))  # leaves large values in the buffers
    x = image(1, 3, *size)
    assert_close(run(x), model, x, torch.float32)
    assert torch.equal(run(x), run(x))


@pytest.mark.parametrize("name", PRESETS)
def test_strips_of_one_row_change_nothing(monkeypatch, name):
    model, x = network(name), image(2, 3, 96, 64)
    monkeypatch.setattr(lmfn.onednn, "STRIP_BYTES", 1)
    assert_close(for_inference(model, dtype=torch.float32)(x), model, x, torch.float32)


def test_full_width():
    """Common numbers of channels, whose weights oneDNN stores in blocks."""
    model, x = network(**FULL), image(1, 3, 64, 80)
    assert_close(for_inference(model, dtype=torch.float32)(x), model, x, torch.float32)


def test_uninitialised_memory_is_not_read(monkeypatch):
    model, x = network(), image(1, 3, 64, 96)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))
    assert for_inference(model, dtype=torch.float32)(x).isfinite().all()


@bf16
def test_bf16_costs_less_than_two_hundredths_of_a_decibel():
    """PSNR of the result and of float32's: for a photograph, and for a sharp one 30 dB from the network's result."""
    photo = torch.from_numpy(data.astronaut()[:256, :256] / np.float32(255)).permute(2, 0, 1)[None]
    for name in PRESETS:
        model = network(name, skip="image", similarity="cosine", **FULL)
        with torch.no_grad():
            model.head.conv.weight.div_(3)
        single, half = (for_inference(model, dtype=dtype)(photo) for dtype in (torch.float32, torch.bfloat16))
        assert (single - photo).square().mean().sqrt() > 0.02
        sharp = single + 10**-1.5 * torch.randn(photo.shape, generator=torch.Generator().manual_seed(2))
        one, other = (-10 * (x - sharp).double().square().mean().log10() for x in (single, half))
        assert abs(one - 30) < 0.1
        assert abs(one - other) < 0.02
        assert not torch.equal(single, half)


def test_by_default_where_the_weights_are_and_bf16_where_it_is_fast(monkeypatch):
    made = []
    monkeypatch.setattr(lmfn.inference, "for_onednn", lambda _, dtype: made.append(dtype) or (lambda x: x))
    for fast, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(lmfn.inference, "has_fast_bf16", lambda _, fast=fast: fast)
        network().for_inference()
        assert made.pop() == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_onednn_it_is_the_network_itself(monkeypatch, dtype):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    model, x = network(), image(1, 3, 64, 64)
    assert not is_supported(model, dtype)
    result = for_inference(model, dtype=dtype)(x)
    assert_close(result, model, x, dtype)
    assert result.dtype == torch.float32


def fails(*_):
    raise RuntimeError("expected 12 arguments\nand more")


@pytest.mark.parametrize(
    ("place", "name", "value", "words"),
    [
        (
            torch_private,
            "ONEDNN_SCHEMAS",
            {"_convolution_pointwise.default": "another"},
            f"PyTorch {torch.__version__} has another torch.ops.mkldnn._convolution_pointwise.default",
        ),
        (torch_private, "ONEDNN_SCHEMAS", {"_gone.default": "it"}, "has another torch.ops.mkldnn._gone.default"),
        (OneDNNNetwork, "__call__", fails, "they fail: expected 12 arguments"),
        (OneDNNNetwork, "__call__", lambda _, x: x, "in torch.float32 their result is off by"),
    ],
    ids=["another", "gone", "fails", "wrong"],
)
def test_another_onednn_is_not_used_and_that_is_logged_once(monkeypatch, caplog, place, name, value, words):
    caches = lmfn.onednn.warn_once, torch_private.missing_onednn_ops
    for cache in caches:
        cache.cache_clear()
    model, x = network(), image(1, 3, 64, 64)
    monkeypatch.setattr(place, name, value)
    assert for_onednn(model, torch.float32) is None
    assert_close(for_inference(model, dtype=torch.float32)(x), model, x, torch.float32)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("oneDNN's convolutions are not used, inference on this CPU is slower: ")
    assert words in caplog.messages[0]
    for cache in caches:
        cache.cache_clear()


def test_a_broken_network_is_not_held_against_onednn():
    model = network()
    with torch.no_grad():
        model.reduce.weight[0] = float("nan")
    assert for_onednn(model, torch.float32) is not None


def test_neither_the_network_nor_the_threads_are_touched():
    model, x = network(), image(1, 3, 64, 64)
    before, threads = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_num_threads()
    model.train()
    run = for_inference(model, dtype=torch.float32)
    result = run(x.requires_grad_())
    assert not result.requires_grad
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert torch.get_num_threads() == threads
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert torch.equal(run(x), result)
    assert before.keys() == model.state_dict().keys()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_results_have_the_type_of_the_image(dtype):
    run = for_inference(network(), dtype=torch.float32)
    x = image(1, 3, 20, 30)
    result = run(x.to(dtype))
    assert result.dtype == dtype
    torch.testing.assert_close(result, run(x.to(dtype).float()).to(dtype))


def test_in_inference_mode_and_out_of_it():
    model, x = network(), image(1, 3, 64, 64)
    with torch.inference_mode():
        run = for_inference(model, dtype=torch.float32)
        inside = run(x + 0)
    assert torch.equal(run(x), inside)
    assert not inside.is_inference()


@pytest.mark.parametrize("name", PRESETS)
def test_kernels_take_the_weights_as_they_lie(name):
    """A copy per image would need more launches than everything else."""

    class Copies(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += func.overloadpacket is torch.ops.aten.copy_
            return func(*args, **(kwargs or {}))

    model, x, launched = network(name), image(1, 3, 64, 96), []
    noted = launch.intercepting(lambda _, kernel, *__: launched.append(kernel.__name__))
    with backend("triton"), noted, torch.no_grad():
        ready, found = plain(copy.deepcopy(model), CPU, torch.float32), []
        for run in (ready, model):
            run(x)
            launched.clear()
            with Copies() as copies:
                run(x)
            found.append((copies.count, launched.count("lay_out_kernel")))
    (copied, laid_out), (_, laid_out_each_time) = found
    assert copied <= 2
    assert laid_out == 0
    assert laid_out_each_time > 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, E4M3], ids=str)
def test_weights_are_declared_constant(dtype, monkeypatch):
    """All that kernels load ahead, in each launch of a frame."""
    monkeypatch.setattr(triton_backend, "ring_programs", lambda _: 2)
    monkeypatch.setattr(conv, "missing_for_e4m3", lambda _: None)
    model, ahead = LMFN.from_preset("lmfn").requires_grad_(False), []
    if dtype == E4M3:
        store_as_e4m3(model, torch.bfloat16)

    def noted(_, kernel, __, arguments):
        if "AHEAD" in arguments:
            ahead.append((kernel.__name__, arguments["AHEAD"]))

    with backend("triton"), trying(*ON_TRIAL), launch.intercepting(noted), torch.no_grad():
        plain(model, CPU, torch.bfloat16)(image(1, 3, 64, 64))
    assert len(ahead) == (39 if dtype == E4M3 else 33)  # in 16 bits, some for several scales
    assert all(loaded for _, loaded in ahead), ahead


def test_an_empty_batch():
    assert for_inference(network())(torch.empty(0, 3, 8, 9)).shape == (0, 3, 8, 9)


def test_large_buffers_are_given_back(monkeypatch):
    packed = OneDNNNetwork(network(), torch.float32)
    with torch.no_grad():
        packed(image(1, 3, 64, 64))
        held = sum(memory.nbytes for memory in packed.buffers.values())
        assert held > 0
        monkeypatch.setattr(lmfn.onednn, "MAX_BUFFER_BYTES", held - 1)
        packed(image(1, 3, 64, 64))
    assert not packed.buffers


def test_several_threads_take_turns():
    run = for_inference(network(), dtype=torch.float32)
    images = [image(1, 3, 64, 64 + 16 * i) for i in range(4)]
    expected, found = [run(x) for x in images], [[] for _ in images]

    def work(i):
        found[i] = [run(images[i]) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(result, expected[i]) for i in range(4) for result in found[i])
    assert all(len(results) == 5 for results in found)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_computes_whoever_had_the_turn_in_its_parent():
    threads, before = torch.get_num_threads(), set(Turns.all)
    torch.set_num_threads(2)
    try:
        run, x = for_inference(network(), dtype=torch.float32), image(1, 3, 64, 80)
        expected = run(x)
        (turns,) = set(Turns.all) - before
        with turns:  # as another thread would have it
            child = multiprocessing.get_context("fork").Process(
                target=lambda: os._exit(
                    0 if torch.allclose(run(x), expected, atol=1e-5) and torch.get_num_threads() == 1 else 1
                )
            )
            child.start()
        child.join(60)
        child.kill()
        assert child.exitcode == 0
    finally:
        torch.set_num_threads(threads)


def test_what_cannot_be_had_is_refused():
    with pytest.raises(ValueError, match=r"dtype is torch.float16; on cpu it must be one of float32, bfloat16"):
        for_inference(network(), "cpu", torch.float16)
    run = for_inference(network())
    with pytest.raises(TypeError, match=r"floating point images in \[0, 1\], got torch.uint8"):
        run(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"images \[B, 3, H, W\], got a tensor of shape \(3, 8, 8\)"):
        run(torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match="the image is on meta, and the network on cpu; move the image there"):
        run(torch.zeros(1, 3, 8, 8, device="meta"))


class TestGraphCache:
    """The cache of CUDA graphs, with a capture that only counts."""

    @pytest.fixture
    def graphs(self):
        self.ran, self.captured, self.replayed = [], [], []

        def run(x):
            self.ran.append(x.shape[3])
            return x + 1

        def capture(_, x):
            self.captured.append(x.shape[3])

            def replay(x):
                self.replayed.append(x.shape[3])
                return x + 1

            return replay

        return GraphCache(run, capture)

    def test_eager_at_first_captured_at_the_second_replayed_from_then_on(self, graphs):
        for _ in range(4):
            assert torch.equal(graphs(torch.ones(1, 3, 4, 5)), torch.full((1, 3, 4, 5), 2.0))
        assert (self.ran, self.captured, self.replayed) == ([5], [5], [5, 5, 5])

    def test_the_shapes_unused_for_longest_go_first(self, graphs):
        sizes = list(range(1, lmfn.cuda_graphs.GRAPHS + 1))
        for size in [*sizes, *sizes, 1, 100]:  # 100 replaces 2
            graphs(torch.ones(1, 3, 4, size))
        self.ran.clear()
        self.captured.clear()
        graphs(torch.ones(1, 3, 4, 1))
        graphs(torch.ones(1, 3, 4, 3))
        assert (self.ran, self.captured) == ([], [])
        graphs(torch.ones(1, 3, 4, 2))
        assert (self.ran, self.captured) == ([2], [])
        assert len(graphs.graphs) == lmfn.cuda_graphs.GRAPHS

    def test_large_images_are_never_captured(self, graphs, monkeypatch):
        monkeypatch.setattr(lmfn.cuda_graphs, "LARGEST_GRAPH", 20)
        for _ in range(3):
            graphs(torch.ones(1, 3, 4, 6))
            graphs(torch.ones(1, 3, 4, 5))
        assert (self.captured, self.ran) == ([5], [6, 5, 6, 6])
