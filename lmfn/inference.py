"""Prepare a network for inference: `for_inference`, also available as `LMFN.for_inference`."""

import copy
import os
import threading
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lmfn.cuda_graphs import GraphCache, ImageFunction
from lmfn.device import has_fast_bf16
from lmfn.fp8 import store_as_e4m3
from lmfn.network.blocks import BilinearHead, weight_and_bias
from lmfn.network.model import Network
from lmfn.onednn import OneDNNNetwork, for_onednn
from lmfn.strips import PlainStages, Strips, takes
from lmfn_kernels import folded, missing_for_e4m3, weight_layout
from lmfn_kernels.runtime.constant_weights import keep_constant
from lmfn_kernels.runtime.torch_private import tree_iter
from lmfn_kernels.weights import E4M3

BORDER = 16
"""Pixels that are reflected around an image. At a border the network's convolutions see zeros, which look like an edge:
it would darken white borders and ring beside lines that end there."""
GPU_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DTYPES = {"cpu": (torch.float32, torch.bfloat16, E4M3), "cuda": (*GPU_DTYPES, E4M3)}
"""Of other devices: `GPU_DTYPES`."""


def for_inference(
    model: Network, device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> ImageFunction:
    """The network as a function: `[B, 3, H, W]` in [0, 1], any float type, H and W >= 1, to the same shape and type.

    The weights are copied once; later changes to the network have no effect. Results have no gradient. Images must
    be on `device`, by default that of the network's weights. Convolutions compute in `dtype`: float32, bfloat16, or
    float16 (not on a CPU); by default bfloat16 if the processor has instructions for it (`has_fast_bf16`), else
    float32. Sums of images, and the scores of the attention, are always in float32. With `torch.float8_e4m3fn`, some
    maps are stored in FP8 (`lmfn.fp8`) and the others in bfloat16: for Hopper GPUs. Elsewhere PyTorch computes the same
    numbers more slowly than in bfloat16, which a UserWarning says.

    On a CPU the function is a `OneDNNNetwork`, if PyTorch has oneDNN and the network has only the paper's parts; on
    CUDA the first call with a shape runs eagerly, the second is captured as a graph, and the graphs of the last 8
    shapes are kept. Everywhere else it is the network itself. Concurrent calls are serialised. The number of
    threads is PyTorch's (`torch.set_num_threads`); in a forked process, which has none of its parent's, it becomes 1.

    Raises ValueError for a dtype that is not supported there, or FP8 for a network without such maps. The function
    raises TypeError for an input that is not a floating point tensor, ValueError for one of another shape or on another
    device.
    """
    return engine(model, device, dtype).run


class Engine(NamedTuple):
    """A network ready to be run, on whole images and on images of which no map is whole in memory."""

    run: ImageFunction
    """As `for_inference` gives it."""
    strips: Strips | None
    """The same network strip by strip; None for the parts of some ablations."""
    packed: OneDNNNetwork | None
    """The network that runs, where it is such a one."""

    def kept(self) -> int:
        """Bytes that it holds from call to call, and uses in the next."""
        return 0 if self.packed is None else sum(buffer.nbytes for buffer in self.packed.buffers.values())


def engine(model: Network, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Engine:
    """Arguments and errors as in `for_inference`."""
    device = next(model.parameters()).device if device is None else torch.empty(0, device=device).device
    if dtype is None:
        dtype = torch.bfloat16 if has_fast_bf16(device) else torch.float32
    dtypes = DTYPES.get(device.type, GPU_DTYPES)
    if dtype not in dtypes:
        names = ", ".join(str(known).removeprefix("torch.") for known in dtypes)
        raise ValueError(f"dtype is {dtype}; on {device.type} it must be one of {names}")
    model = copy.deepcopy(model).requires_grad_(False).eval().to(device, torch.float32)
    packed: OneDNNNetwork | None = None
    if dtype == E4M3:
        dtype = torch.bfloat16
        store_as_e4m3(model, dtype)
        if missing := missing_for_e4m3(device):
            warnings.warn(f"{missing}: FP8 is simulated, which shows its quality and is slow", stacklevel=3)
    elif device.type == "cpu":
        packed = for_onednn(model, dtype)
    run: ImageFunction = packed or plain(model, device, dtype)
    stages = packed or PlainStages(model, device, dtype)
    if device.type == "cuda":
        run = GraphCache(run)
    turns = Turns()

    @contextmanager
    def turn() -> Iterator[None]:
        # Buffers that were made in inference mode could not be written to outside it.
        with turns, torch.inference_mode(False), torch.no_grad():
            yield

    @contextmanager
    def turn_of_strips() -> Iterator[None]:
        cast = packed is None and dtype != torch.float32
        with turn(), torch.autocast(device.type, dtype, enabled=cast, cache_enabled=False):
            yield

    def checked(blurred: Tensor) -> Tensor:
        if not isinstance(blurred, Tensor) or not blurred.is_floating_point():
            found = blurred.dtype if isinstance(blurred, Tensor) else type(blurred).__name__
            raise TypeError(f"the network takes floating point images in [0, 1], got {found}")
        if blurred.ndim != 4 or blurred.shape[1] != 3 or min(blurred.shape[2:]) < 1:
            raise ValueError(f"the network takes images [B, 3, H, W], got a tensor of shape {tuple(blurred.shape)}")
        if blurred.device != device:
            raise ValueError(f"the image is on {blurred.device}, and the network on {device}; move the image there")
        if len(blurred) == 0:
            return blurred.clone()
        with turn():
            return run(blurred.float()).to(blurred.dtype)

    strips = Strips(stages, model, turn_of_strips) if takes(model) else None
    return Engine(checked, strips, packed)


class Turns:
    """One call at a time; in a forked process nobody holds the lock, whoever held it in the parent."""

    all: ClassVar[weakref.WeakSet["Turns"]] = weakref.WeakSet()

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.all.add(self)

    def __enter__(self) -> None:
        self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()

    @classmethod
    def after_fork(cls) -> None:
        """In the child, whose OpenMP would wait for the parent's threads for ever if it were to use several."""
        torch.set_num_threads(1)
        for turns in cls.all:
            turns.lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=Turns.after_fork)


def with_border(run: ImageFunction) -> ImageFunction:
    """Run a network on images padded by `BORDER` pixels at each side, by reflection or, if they are too small for that,
    by replication, and crop the result to their shape."""

    def bordered(blurred: Tensor) -> Tensor:
        mode = "reflect" if min(blurred.shape[2:]) > BORDER else "replicate"
        return run(F.pad(blurred, (BORDER,) * 4, mode=mode))[..., BORDER:-BORDER, BORDER:-BORDER]

    return bordered


def plain(model: Network, device: torch.device, dtype: torch.dtype) -> ImageFunction:
    """The network itself, with the weights of convolutions cast, laid out and folded beforehand; everything else in
    float32. Nobody may write to them any more."""
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = weight_layout(parameter.data.to(dtype))
    if isinstance(model.head, BilinearHead):
        model.head.folded = folded(weight_and_bias(model.head.conv))
    prepared = [(getattr(module, "e4m3", None), getattr(module, "folded", None)) for module in model.modules()]
    keep_constant(t for t in tree_iter([*model.parameters(), prepared]) if isinstance(t, Tensor))

    def run(blurred: Tensor) -> Tensor:
        # A capture must not create the cache of casts, whose tensors would be overwritten later.
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32, cache_enabled=False):
            result: Tensor = model(blurred)
        return result

    return run
