"""Fast inference on a CPU: weights packed once for oneDNN, and maps processed in strips that fit into the cache.

Compared with the plain network (figures are in `docs/inference.md`):
- Activations and sums are fused into the convolutions before them; most sums are computed in place.
- Buffers of maps are kept between calls. Allocating memory takes a quarter of the time of an eager network.
- The result of the first convolution, 64 channels at full resolution, is computed strip by strip and never stored as a
  whole.
- In the bilinear head, upsampling and the last convolution are one convolution at half the resolution.
- The attention between layers is folded into the 1x1 convolution that follows it.
"""

import functools
import logging
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmfn.device import has_fast_bf16
from lmfn.network.alternatives import Concat
from lmfn.network.blocks import (
    ACFM,
    ALFM,
    DECODER_SLOPE,
    ENCODER_SLOPE,
    MSHF,
    RB,
    RFDB,
    BilinearHead,
    pad,
    weight_and_bias,
)
from lmfn.network.model import RGB_MEAN, Network
from lmfn_kernels import Conv, fold_into_weight, fold_upsampling, layer_attention, layer_gram
from lmfn_kernels.runtime.torch_private import missing_onednn_ops
from lmfn_kernels.upsample.grid import upsample

log = logging.getLogger(__name__)

STRIP_BYTES = 1 << 22
"""Bytes of a strip's result per thread: large enough for an efficient call of oneDNN, small enough for the cache."""
LANES = 16
"""Values of float32 in a register of AVX-512."""
MAX_BUFFER_BYTES = 1 << 30
"""Buffers of more bytes than this are freed after each call, so large photographs do not occupy memory."""

Activation = tuple[str, list[float]]
"""The name of an activation of oneDNN, and its parameters."""
NONE: Activation = ("none", [])
RELU: Activation = ("relu", [])
SIGMOID: Activation = ("sigmoid", [])
LEAKY: Activation = ("leaky_relu", [DECODER_SLOPE])

Strip = tuple[int, int, int]
"""Image of the batch, first row, row after the last."""

ALLOWED = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Bound of the self-check: RMS error divided by the RMS of the network's output, about ten times the rounding error."""


def for_onednn(model: Network, dtype: torch.dtype) -> "OneDNNNetwork | None":
    """The network on oneDNN's convolutions, or None if that is not possible.

    None means that the processor, the dtype or the network is not supported. It is also returned, with a warning logged
    once, if this PyTorch has another binding of oneDNN, or if the result on a small image differs from the network's.
    """
    if not is_supported(model, dtype):
        return None
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    try:
        # Buffers created in inference mode could not be written to outside it.
        with torch.inference_mode(False), torch.no_grad():
            network = OneDNNNetwork(model, dtype)
            expected = model(x)
            error = network(x) - expected
    except (AttributeError, RuntimeError, TypeError) as problem:
        warn_once(f"they fail: {str(problem).strip().splitlines()[0]}")
        return None
    network.buffers.clear()
    if expected.isfinite().all() and not rms(error) <= ALLOWED[dtype] * rms(expected):
        warn_once(f"in {dtype} their result is off by {rms(error) / rms(expected):.2g} of the network's own")
        return None
    return network


def is_supported(model: Network, dtype: torch.dtype) -> bool:
    """Whether this PyTorch, processor, network and dtype are supported; the parts of some ablations are not."""
    known = type(model.encoder) is MSHF and type(model.alfm) in (ALFM, Concat, type(None))
    if not known or not torch.backends.mkldnn.is_available():
        return False
    for name in missing_onednn_ops():
        warn_once(f"PyTorch {torch.__version__} has another torch.ops.mkldnn.{name}")
        return False
    fast = torch.ops.mkldnn._is_mkldnn_bf16_supported() and has_fast_bf16(torch.device("cpu"))
    return dtype == torch.float32 or (dtype == torch.bfloat16 and fast)


@functools.cache
def warn_once(reason: str) -> None:
    log.warning("oneDNN's convolutions are not used, inference on this CPU is slower: %s", reason)


def rms(x: Tensor) -> float:
    return x.float().square().mean().sqrt().item()


class Convolution:
    """A convolution with its weight in oneDNN's layout. Inputs are `[1, C, H, W]`, channels-last.

    `padding` is that of rows and columns. By default rows are not padded, since a strip includes the rows that are
    needed above and below it.

    With AVX-512, oneDNN computes up to four registers of 16 channels in one pass over the input, and channels that do
    not fill a register in another pass. A 3x3 convolution to 50 or 25 channels is therefore computed to 64 or 32, of
    which the result is a view. For 1x1 convolutions, whose time is that of their maps, this gains nothing.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
        then: Activation = NONE,
        *,
        stride: int = 1,
        padding: tuple[int, int] | None = None,
        groups: int = 1,
    ) -> None:
        padding = (0, weight.shape[3] // 2) if padding is None else padding
        self.geometry = [*padding], [stride, stride], [1, 1], groups
        self.channels = len(weight)
        in_passes = dtype == torch.float32 and groups == 1 and weight.shape[2] > 1 and self.channels > LANES
        fills = in_passes and torch.backends.cpu.get_cpu_capability() == "AVX512"
        added = -self.channels % LANES if fills else 0
        weight = F.pad(weight.detach().to(dtype), [0] * 7 + [added]).contiguous(memory_format=torch.channels_last)
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *self.geometry)
        self.bias = None if bias is None else F.pad(bias.detach().to(dtype), [0, added]).contiguous()
        self.padded, self.then = added > 0, then

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """then(conv(x)), or conv(x) + add: PyTorch's oneDNN binding cannot fuse a sum followed by a leaky ReLU.

        `add` is for 1x1 convolutions, and in 16 bits for all: it has no channels to fill a register.
        """
        if add is None:
            y = torch.ops.mkldnn._convolution_pointwise(x, self.weight, self.bias, *self.geometry, *self.then, "")
        else:
            y = torch.ops.mkldnn._convolution_pointwise.binary(
                x, add, self.weight, self.bias, *self.geometry, "add", 1.0, None, [], None
            )
        return cast(Tensor, y)[:, : self.channels]

    def accumulate_into(self, out: Tensor, x: Tensor) -> None:
        """Add conv(x) to `out` in place."""
        if self.padded:
            out.add_(self(x))
            return
        torch.ops.mkldnn._convolution_pointwise_.binary(
            out, x, self.weight, self.bias, *self.geometry, "add", 1.0, None, [], None
        )


# Maps are [B, C, H + 2, W], with a row of zeros above the image and another below it, so that a strip is a plain slice.


def map_size(x: Tensor) -> tuple[int, int]:
    return x.shape[2] - 2, x.shape[3]


def rows_of(x: Tensor, strip: Strip, halo: int = 0) -> Tensor:
    """A strip of a map, with `halo` more rows above and below."""
    i, first, last = strip
    return x[i : i + 1, :, first + 1 - halo : last + 1 + halo]


def without_halo(x: Tensor) -> Tensor:
    """A map without its two rows of zeros."""
    return x[:, :, 1:-1]


def with_halo(x: Tensor) -> Tensor:
    """The map from which `without_halo` made this view."""
    b, c, height, width = x.shape
    return x.as_strided((b, c, height + 2, width), x.stride(), x.storage_offset() - x.stride(2))


def row_strips(x: Tensor, larger: int = 1) -> Iterator[Strip]:
    """The strips of all images of a map; `larger`: size of the map that a strip is computed from, relative to this."""
    row = larger * x.shape[1] * x.shape[3] * x.element_size()
    rows = max(1, STRIP_BYTES * torch.get_num_threads() // row)
    height, _ = map_size(x)
    for i in range(len(x)):
        for first in range(0, height, rows):
            yield i, first, min(first + rows, height)


def doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def upsampled(x: Tensor, strip: Strip) -> Tensor:
    """A strip at twice its rows and columns, equal to that part of the whole map upsampled."""
    i, first, last = strip
    low, high = max(first - 1, 0), min(last + 1, map_size(x)[0])
    return doubled(rows_of(x, (i, low, high)))[:, :, 2 * (first - low) : 2 * (last - low)]


class OneDNNResidualBlock:
    """`RB`, in place: x + conv3x3(relu(conv3x3(x)))."""

    def __init__(self, rb: RB, dtype: torch.dtype) -> None:
        self.conv1, self.conv2 = pack(rb.conv1, dtype, RELU), pack(rb.conv2, dtype)

    def __call__(self, x: Tensor, spare: Tensor) -> None:
        for s in row_strips(x):
            rows_of(spare, s)[:] = self.conv1(rows_of(x, s, 1))
        for s in row_strips(x):
            self.conv2.accumulate_into(rows_of(x, s), rows_of(spare, s, 1))


class OneDNNRFDB:
    """`RFDB`. The 1x1 fusion of four concatenated maps is computed as a sum of four convolutions, one per map.

    In float32, x + conv3x3(x) is computed as one convolution with 1 added to the centre of its weight, to the same
    accuracy; in bfloat16, adding 1 would round the weight away.
    """

    def __init__(self, block: RFDB, dtype: torch.dtype) -> None:
        e = block.esa
        self.fixed_grid = e.fixed_grid
        self.distil = [pack(conv, dtype, LEAKY) for conv in (*block.distil, block.distil_last)]
        self.folded = dtype == torch.float32
        refine = [weight_and_bias(conv) for conv in block.refine]
        one = nn.init.dirac_(torch.empty_like(refine[0].weight)) if self.folded else 0
        self.refine = [Convolution(r.weight + one, r.bias, dtype, LEAKY if self.folded else NONE) for r in refine]
        self.fuse = split(weight_and_bias(block.fuse), 4, dtype)
        self.squeeze, self.skip, self.expand = (
            pack(e.conv1, dtype),
            pack(e.conv_f, dtype),
            pack(e.conv4, dtype, SIGMOID),
        )
        self.low = [
            pack(e.conv_max, dtype, RELU, padding=(1, 1)),
            pack(e.conv3, dtype, RELU, padding=(1, 1)),
            pack(e.conv3_, dtype, padding=(1, 1)),
        ]
        self.down = pack(e.conv2, dtype, stride=2, padding=(0, 0))

    def __call__(self, x: Tensor, spare: Sequence[Tensor], a: Tensor, out: Tensor) -> None:
        """Write the block's result to `out`; `a`, a buffer, has ESA's channels, and x is not changed."""
        self.distil_and_fuse(x, spare, a, out)
        v = upsample(self.low_branch(self.pool(without_halo(a))), map_size(a), self.fixed_grid)
        self.gate(out, a, v)

    def distil_and_fuse(self, x: Tensor, spare: Sequence[Tensor], a: Tensor, out: Tensor) -> None:
        """Everything before ESA's low-resolution branch: writes `out` and `a`; x is not changed."""
        for j, refine in enumerate(self.refine):
            y = spare[j % 2]
            for s in row_strips(x):
                d = self.distil[j](rows_of(x, s))
                if j == 0:
                    rows_of(out, s)[:] = self.fuse[0](d)
                else:
                    self.fuse[j].accumulate_into(rows_of(out, s), d)
                if self.folded:
                    rows_of(y, s)[:] = refine(rows_of(x, s, 1))
                else:
                    rows_of(y, s)[:] = F.leaky_relu_(refine(rows_of(x, s, 1), add=rows_of(x, s)), DECODER_SLOPE)
            x = y
        for s in row_strips(x):
            self.fuse[3].accumulate_into(rows_of(out, s), self.distil[3](rows_of(x, s, 1)))
            rows_of(a, s)[:] = self.squeeze(rows_of(out, s))

    def pool(self, a: Tensor) -> Tensor:
        return F.max_pool2d(self.down(a), 7, stride=3)

    def low_branch(self, v: Tensor) -> Tensor:
        for conv in self.low:
            v = conv(v)
        return v

    def gate(self, out: Tensor, a: Tensor, v: Tensor) -> None:
        """Multiply `out` by the gate, in place; `v` is the low-resolution branch at the size of `out`, without halo."""
        for i, first, last in row_strips(out):
            s = i, first, last
            rows_of(out, s).mul_(self.expand(self.skip(rows_of(a, s), add=v[i : i + 1, :, first:last])))


class OneDNNACFM:
    """`ACFM`: x + alpha w x, plus `add` if given."""

    def __init__(self, acfm: ACFM, channels: int, dtype: torch.dtype) -> None:
        self.alpha = acfm.alpha.item()
        then = RELU if acfm.form == "pseudo3d" else NONE
        self.convs = [
            Convolution(weight, bias, dtype, then, groups=channels // weight.shape[1])
            for weight, bias in acfm.in_2d(channels)
        ]

    def __call__(self, x: Tensor, add: Tensor | None, out: Tensor) -> None:
        for s in row_strips(x):
            gate = rows_of(x, s, 1)
            for conv in self.convs:
                gate = conv(gate)
            y = gate.sigmoid_().mul_(self.alpha).add_(1).mul_(rows_of(x, s))
            rows_of(out, s)[:] = y if add is None else y.add_(rows_of(add, s))


class OneDNNNetwork:
    """A network on the CPU: `[B, 3, H, W]` float32 to the same, computed in float32 or bfloat16.

    Call it without gradients, from one thread at a time. Its buffers, about 60 values per pixel of the padded images,
    are kept for the next call unless they exceed `MAX_BUFFER_BYTES`.
    """

    def __init__(self, model: Network, dtype: torch.dtype) -> None:
        self.dtype, self.config = dtype, model.config
        self.mean = torch.tensor(RGB_MEAN, dtype=torch.float32).view(3, 1, 1)
        self.buffers: dict[str, Tensor] = {}
        e, head, steep = cast(MSHF, model.encoder), model.head, ("leaky_relu", [ENCODER_SLOPE])
        self.stem = pack(e.conv0, dtype, steep, padding=(0, model.config.stem_padding))
        self.down = [pack(conv, dtype, steep, stride=2) for conv in (e.down1, e.down2, e.down3, e.down4)]
        self.top = pack(e.down1, dtype, steep, stride=2, padding=(1, 1))
        self.rb_16th = OneDNNResidualBlock(e.rb_16th, dtype)
        self.rb_8th = [OneDNNResidualBlock(cast(RB, rb), dtype) for rb in e.rb_8th]
        self.rb_4th = [OneDNNResidualBlock(cast(RB, rb), dtype) for rb in e.rb_4th]
        self.reduce = pack(model.reduce, dtype)
        self.rfdbs = [OneDNNRFDB(cast(RFDB, block), dtype) for block in model.rfdbs]
        self.alfm = model.alfm
        self.acfm = OneDNNACFM(model.acfm, model.config.features, dtype) if model.acfm is not None else None
        self.merge = split(weight_and_bias(model.merge), 2, dtype) if model.merge is not None else []
        self.conv = Conv(head.conv.weight.detach().to(dtype), cast(Tensor, head.conv.bias).detach().to(dtype))
        self.head_rbs: list[OneDNNResidualBlock] = []
        self.head = pack(head.conv, dtype)
        if isinstance(head, BilinearHead):
            self.head_rbs = [OneDNNResidualBlock(rb, dtype) for rb in (head.rb1, head.rb2)]
            weight = fold_upsampling(head.conv.weight.detach().double())[0].float()
            self.head = Convolution(weight, cast(Tensor, head.conv.bias).repeat_interleave(4), dtype)

    def __call__(self, blurred: Tensor) -> Tensor:
        y = self._decode(self._encode(pad(blurred - self.mean)))
        sharp = self._sharpen(y, blurred if self.config.skip == "image" else self.mean.expand(blurred.shape))
        if sum(buffer.nbytes for buffer in self.buffers.values()) > MAX_BUFFER_BYTES:
            self.buffers.clear()
        return sharp

    # The stages of `lmfn.strips`, on one strip of rows of one image. Maps come and go without their rows of zeros.

    def place(self, name: str, channels: int, height: int, width: int) -> Tensor:
        """Memory for rows of a map. It is valid until `clear` is called, like everything that the stages return."""
        return without_halo(self._map(name, 1, channels, height, width))

    def clear(self) -> None:
        self.buffers.clear()

    def halve(self, image: Tensor) -> list[Tensor]:
        return [without_halo(x) for x in self._halve(image - self.mean)]

    def fuse_8th(self, l2: Tensor, l3: Tensor) -> Tensor:
        self._fuse_8th(with_halo(l2), with_halo(l3))
        return l2

    def fuse_4th(self, l1: Tensor, l2: Tensor) -> Tensor:
        self._fuse_4th(with_halo(l1), with_halo(l2))
        return without_halo(self._reduce(with_halo(l1)))

    def distil(self, j: int, x: Tensor) -> tuple[Tensor, Tensor]:
        x = with_halo(x)
        out, a = self._like("out", x), self._like("esa", x, self.config.esa)
        self.rfdbs[j].distil_and_fuse(x, (self._like("spare", x), self._like("4th", x)), a, out)
        return without_halo(out), without_halo(a)

    def pool(self, j: int, a: Tensor) -> Tensor:
        return self.rfdbs[j].pool(a)

    def low_branch(self, j: int, v: Tensor) -> Tensor:
        return self.rfdbs[j].low_branch(v)

    def gate(self, j: int, y: Tensor, a: Tensor, v: Tensor) -> Tensor:
        self.rfdbs[j].gate(with_halo(y), with_halo(a), v)
        return y

    def mix(self, maps: Sequence[Tensor], gram: Tensor | None) -> Tensor:
        maps = [with_halo(x) for x in maps]
        return without_halo(self._mix(maps, self._like("4th", maps[0]), gram))

    def finish(self, f_l: Tensor | None, last: Tensor, f: Tensor | None, skip: Tensor | None) -> Tensor:
        last = with_halo(last)
        others = [None if x is None else with_halo(x) for x in (f_l, f)]
        y = self._join(others[0], last, others[1], self._like("spare", last))
        rgb = 1, 3, 4 * map_size(y)[0], 4 * map_size(y)[1]
        return self._sharpen(y, self.mean.expand(rgb) if skip is None else skip)

    def _map(self, name: str, batch: int, channels: int, height: int, width: int) -> Tensor:
        """A map in the buffer of that name: rows of zeros at the top and bottom, the rest uninitialised."""
        count = batch * channels * (height + 2) * width
        if name not in self.buffers or self.buffers[name].numel() < count:
            self.buffers[name] = torch.empty(count, dtype=self.dtype)
        x = self.buffers[name][:count].view(batch, height + 2, width, channels).permute(0, 3, 1, 2)
        x[:, :, 0] = x[:, :, -1] = 0
        return x

    def _like(self, name: str, x: Tensor, channels: int | None = None) -> Tensor:
        return self._map(name, len(x), channels or x.shape[1], *map_size(x))

    def _encode(self, blurred: Tensor) -> Tensor:
        l1, l2, l3 = self._halve(blurred)
        self._fuse_8th(l2, l3)
        self._fuse_4th(l1, l2)
        return l1

    def _halve(self, blurred: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The encoder's maps at 1/4, 1/8 and 1/16 of the image's size."""
        (b, _, height, width), c = blurred.shape, self.config.channels
        x = self._map("image", b, 3, height, width)
        without_halo(x)[:] = blurred
        lost = 1 - self.config.stem_padding  # rows and columns that the first convolution removes at each side
        d1 = self._map("half 1", b, c, (height + 1) // 2 - lost, (width + 1) // 2 - lost)
        for i, first, last in row_strips(d1, larger=4):
            # Rows 2 first - 1 to 2 last - 1 of the first convolution's result; the first strip starts at row 0.
            f0 = self.stem(x[i : i + 1, :, max(2 * first - 1, 0) + lost : 2 * last + lost + 2])
            rows_of(d1, (i, first, last))[:] = self.down[0](f0) if first else self.top(f0)
        l1, l2, l3 = (self._map(f"{n}th", b, c, height // n, width // n) for n in (4, 8, 16))
        for conv, above, below in zip(self.down[1:], (d1, l1, l2), (l1, l2, l3), strict=True):
            for i, first, last in row_strips(below):
                rows_of(below, (i, first, last))[:] = conv(above[i : i + 1, :, 2 * first : 2 * last + 1])
        return l1, l2, l3

    def _fuse_8th(self, l2: Tensor, l3: Tensor) -> None:
        """Fuse into l2; l3 is overwritten."""
        self.rb_16th(l3, self._like("spare", l3))
        self.rb_8th[0](l2, self._like("spare", l2))
        add_upsampled(l2, l3)
        self.rb_8th[1](l2, self._like("spare", l2))

    def _fuse_4th(self, l1: Tensor, l2: Tensor) -> None:
        for j, rb in enumerate(self.rb_4th):
            if j == 2:
                add_upsampled(l1, l2)
            rb(l1, self._like("spare", l1))

    def _reduce(self, fused: Tensor) -> Tensor:
        f = self._like("f", fused, self.config.features)
        for s in row_strips(f):
            rows_of(f, s)[:] = self.reduce(rows_of(fused, s, 1))
        return f

    def _decode(self, fused: Tensor) -> Tensor:
        """From the encoder's map to the head's input."""
        c = self.config
        f = self._reduce(fused)
        spare = self._like("spare", f), self._like("4th", f)
        a = self._like("esa", f, c.esa)
        out: list[Tensor] = []
        for j, block in enumerate(self.rfdbs):
            y = self._like(f"out {j}", f)
            block(out[-1] if out else f, spare, a, y)
            out.append(y)
        f_l = None if self.alfm is None else self._mix(out, spare[1])
        return self._join(f_l, out[-1], f, spare[0])

    def _join(self, f_l: Tensor | None, last: Tensor, f: Tensor | None, spare: Tensor) -> Tensor:
        """ACFM and the merge, in place of `f_l` where possible: from the inputs of both to the head's input."""
        y = last if f_l is None else f_l
        if self.acfm is not None and f_l is not None and self.merge:
            self.acfm(last, None, spare)
            y = self._like("half 1", last)
            for s in row_strips(y):
                rows_of(y, s)[:] = self.merge[0](rows_of(f_l, s, 1))
                self.merge[1].accumulate_into(rows_of(y, s), rows_of(spare, s, 1))
        elif self.acfm is not None:
            y = spare if f_l is None else f_l
            self.acfm(last, f_l, y)
        if f is not None and self.config.skip == "feature":
            without_halo(y).add_(without_halo(f))
        return y

    def _mix(self, maps: Sequence[Tensor], y: Tensor, gram: Tensor | None = None) -> Tensor:
        """ALFM or its alternative: one 1x1 convolution of all maps per image. `gram` is the maps' F F^T, if known."""
        alfm = cast(ALFM | Concat, self.alfm)
        weight, bias = weight_and_bias(alfm.fuse)
        matrix = weight[None, :, :, 0, 0].expand(len(y), -1, -1)
        if isinstance(alfm, ALFM) and alfm.window is not None and max(map_size(y)) > alfm.window:
            theta, weight, bias = (t.to(self.dtype) for t in (alfm.theta, weight, bias))
            temperature = None if alfm.temperature is None else alfm.temperature.to(self.dtype)
            options: dict[str, Any] = {"rows": alfm.rows, "slope": DECODER_SLOPE, "window": alfm.window}
            found = layer_attention([without_halo(x) for x in maps], theta, weight, bias, temperature, **options)
            without_halo(y)[:] = found
            return y
        if isinstance(alfm, ALFM):
            gram = layer_gram([without_halo(x) for x in maps], rows=alfm.rows) if gram is None else gram
            matrix = fold_into_weight(gram, alfm.theta, weight, alfm.temperature, rows=alfm.rows)
        convs = [split(Conv(m[:, :, None, None], bias), len(maps), self.dtype) for m in matrix]
        for s in row_strips(y):
            first, *others = convs[s[0]]
            rows_of(y, s)[:] = first(rows_of(maps[0], s))
            for conv, x in zip(others, maps[1:], strict=True):
                conv.accumulate_into(rows_of(y, s), rows_of(x, s))
            F.leaky_relu_(rows_of(y, s), DECODER_SLOPE)
        return y

    def _sharpen(self, y: Tensor, skip: Tensor) -> Tensor:
        """The head, with `skip`, an image of the result's size, added."""
        if self.head_rbs:
            self.head_rbs[0](y, self._like("spare", y))
            u = self._map("half 2", len(y), y.shape[1], 2 * map_size(y)[0], 2 * map_size(y)[1])
            for s in row_strips(y):
                rows_of(u, (s[0], 2 * s[1], 2 * s[2]))[:] = upsampled(y, s)
            y = u
            self.head_rbs[1](y, self._like("half 1", y))
        sharp = torch.empty(skip.shape, dtype=torch.float32)
        factor = 2 if self.head_rbs else 4
        height, width = skip.shape[2:]
        for i, first, last in row_strips(y):
            rows = slice(factor * first, min(factor * last, height))
            part = F.pixel_shuffle(self.head(rows_of(y, (i, first, last), 1)), factor)
            here = skip[i : i + 1, :, rows]
            torch.add(part[:, :, : here.shape[2], :width], here, out=sharp[i : i + 1, :, rows])
        if self.head_rbs:
            self._edges(without_halo(y), skip, sharp)
        return sharp

    def _edges(self, y: Tensor, skip: Tensor, sharp: Tensor) -> None:
        """Recompute the two outermost rows and columns: the folded convolution sees zeros beyond the edges of y,
        whereas the network upsamples y with its edges repeated and then pads with zeros."""
        for dim in (2, 3):
            for low, high in ((0, 0), (y.shape[dim] - 2, 2)):  # two lines of y, and which two of the upsampled four
                count = min(2, sharp.shape[dim] - 2 * low - high)
                if count > 0:
                    lines = F.conv2d(doubled(y.narrow(dim, low, 2)), self.conv.weight, self.conv.bias, padding=1)
                    lines = lines.narrow(dim, high, count)
                    target, added = (t.narrow(dim, 2 * low + high, count) for t in (sharp, skip))
                    torch.add(lines[:, :, : target.shape[2], : target.shape[3]], added, out=target)


def add_upsampled(x: Tensor, low: Tensor) -> None:
    for i, first, last in row_strips(low):
        rows_of(x, (i, 2 * first, 2 * last)).add_(upsampled(low, (i, first, last)))


def pack(conv: nn.Module, dtype: torch.dtype, then: Activation = NONE, **options: Any) -> Convolution:
    return Convolution(*weight_and_bias(conv), dtype, then, **options)


def split(conv: Conv, parts: int, dtype: torch.dtype) -> list[Convolution]:
    """A convolution of concatenated maps as one convolution per map, to be summed; the first has the bias."""
    weights = conv.weight.chunk(parts, dim=1)
    return [Convolution(weight, None if j else conv.bias, dtype) for j, weight in enumerate(weights)]
