"""Images of any size in bounded memory: the network stage by stage, each over strips of rows of the whole image.

The maps between stages are in memory or in a file. A stage reads a strip of them with its halo, the rows above and
below that its convolutions need, and drops the result's halo, so the strips together equal the result for the whole
image. What depends on the whole image, F F^T and ESA's low-resolution branch, is accumulated over all strips first.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from lmfn.network.alternatives import Concat
from lmfn.network.blocks import ALFM, DECODER_SLOPE, ESA, MSHF, RFDB, weight_and_bias
from lmfn.network.model import Network
from lmfn.scratch import RowFile
from lmfn_kernels import distill_fuse, distill_stage, distill_stages_e4m3, esa_gate, layer_apply, layer_gram
from lmfn_kernels.upsample.grid import upsample_rows

UNIT = 4
"""Strips start at multiples of this many rows of the maps at 1/4, where the maps at 1/16 have whole rows."""
MOST_ROWS = 256
"""Maximum rows of a strip at 1/4; for higher strips the cost of halos is negligible."""

BESIDE = 1 << 25
"""Maximum bytes that a stage needs besides its maps: results of single convolutions, a few MB per thread."""

Read = Callable[[int, int], Tensor]
"""From the first and the last row (exclusive) to these rows of the padded image, `[1, 3, rows, width]` float32 on the
CPU."""


class Stages(Protocol):
    """The network's stages on a strip `[1, C, rows, W]`, implemented by `OneDNNNetwork` and `PlainStages`."""

    dtype: torch.dtype

    def place(self, name: str, channels: int, height: int, width: int) -> Tensor:
        """Memory for rows of a map."""

    def clear(self) -> None:
        """Free all memory of the previous stage."""

    def halve(self, image: Tensor) -> Sequence[Tensor]:
        """The encoder's maps at 1/4, 1/8 and 1/16 of the image's size."""

    def fuse_8th(self, l2: Tensor, l3: Tensor) -> Tensor: ...

    def fuse_4th(self, l1: Tensor, l2: Tensor) -> Tensor:
        """The decoder's input."""

    def distil(self, j: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """RFDB j up to ESA: y, and a, the first map of ESA."""

    def pool(self, j: int, a: Tensor) -> Tensor: ...

    def low_branch(self, j: int, v: Tensor) -> Tensor:
        """ESA's convolutions on the pooled map of the whole image."""

    def gate(self, j: int, y: Tensor, a: Tensor, v: Tensor) -> Tensor:
        """y times ESA's gate; `v` is the low-resolution branch at the size of y."""

    def mix(self, maps: Sequence[Tensor], gram: Tensor | None) -> Tensor:
        """ALFM or its alternative; `gram` is F F^T of the whole image, None for windows."""

    def finish(self, f_l: Tensor | None, last: Tensor, f: Tensor | None, skip: Tensor | None) -> Tensor:
        """ACFM, the merge and the head: RGB `[1, 3, 4 rows, 4 W]`."""


class PlainStages:
    """The stages computed by the network's own modules, on any device."""

    def __init__(self, model: Network, device: torch.device, dtype: torch.dtype) -> None:
        self.model, self.device, self.dtype = model, device, dtype

    def place(self, _name: str, channels: int, height: int, width: int) -> Tensor:
        shape = 1, channels, height, width
        return torch.empty(shape, dtype=self.dtype, device=self.device, memory_format=torch.channels_last)

    def clear(self) -> None:
        pass

    def halve(self, image: Tensor) -> Sequence[Tensor]:
        image = image.to(self.device)
        return cast(MSHF, self.model.encoder).halve(image, self.model.mean_like(image))

    def fuse_8th(self, l2: Tensor, l3: Tensor) -> Tensor:
        return cast(MSHF, self.model.encoder).fuse_8th(l2, l3)

    def fuse_4th(self, l1: Tensor, l2: Tensor) -> Tensor:
        return cast(Tensor, self.model.reduce(cast(MSHF, self.model.encoder).fuse_4th(l1, l2)))

    def distil(self, j: int, x: Tensor) -> tuple[Tensor, Tensor]:
        block, d = cast(RFDB, self.model.rfdbs[j]), list[Tensor]()
        if block.e4m3 is not None:
            x, d = distill_stages_e4m3(x, block.e4m3, DECODER_SLOPE)
        else:
            for distil, refine in zip(block.distil, block.refine, strict=True):
                x, d_j = distill_stage(x, weight_and_bias(distil), weight_and_bias(refine), DECODER_SLOPE)
                d.append(d_j)
        last, fuse, squeeze = map(weight_and_bias, (block.distil_last, block.fuse, block.esa.conv1))
        return distill_fuse(x, (d[0], d[1], d[2]), last, fuse, squeeze, DECODER_SLOPE)

    def pool(self, j: int, a: Tensor) -> Tensor:
        return self._esa(j).pool(a)

    def low_branch(self, j: int, v: Tensor) -> Tensor:
        return self._esa(j).low_branch(v)

    def gate(self, j: int, y: Tensor, a: Tensor, v: Tensor) -> Tensor:
        esa = self._esa(j)
        return esa_gate(y, a, v, weight_and_bias(esa.conv_f), weight_and_bias(esa.conv4))

    def _esa(self, j: int) -> ESA:
        return cast(RFDB, self.model.rfdbs[j]).esa

    def mix(self, maps: Sequence[Tensor], gram: Tensor | None) -> Tensor:
        alfm = cast(nn.Module, self.model.alfm)
        if gram is None or not isinstance(alfm, ALFM):
            return cast(Tensor, alfm(maps))
        fusion = alfm.theta, *weight_and_bias(alfm.fuse), alfm.temperature
        return layer_apply(maps, gram, *fusion, rows=alfm.rows, slope=DECODER_SLOPE)

    def finish(self, f_l: Tensor | None, last: Tensor, f: Tensor | None, skip: Tensor | None) -> Tensor:
        y = self.model.attend(f_l, last, last if f is None else f)
        if skip is None:
            b, _, h, w = y.shape
            mean = self.model.mean_like(torch.empty((), device=self.device))
            skip = mean[:, None, None].expand(b, 3, 4 * h, 4 * w)
        return cast(Tensor, self.model.head(y, skip.to(self.device)))


def takes(model: Network) -> bool:
    """Whether this network can be computed in strips; the encoders and attentions of some ablations cannot."""
    return type(model.encoder) is MSHF and type(model.alfm) in (ALFM, Concat, type(None))


class Map:
    """A map of the whole image, `[1, C, H, W]`, written and read by rows; in memory or in a file."""

    def __init__(self, channels: int, height: int, width: int, dtype: torch.dtype, folder: Path | None) -> None:
        self.shape, self.dtype = (channels, height, width), dtype
        self.file = None if folder is None else RowFile(folder, width * channels * dtype.itemsize)
        if self.file is None:
            self.rows = torch.empty((height, width, channels), dtype=dtype)

    def read(self, first: int, last: int, into: Tensor) -> Tensor:
        """Read rows into `into`; returns it."""
        place = into[0].permute(1, 2, 0)
        if self.file is None:
            place.copy_(self.rows[first:last])
        elif place.is_contiguous() and place.device.type == "cpu" and place.dtype == self.dtype:
            self.file.read(first, as_bytes(place))
        else:
            rows = torch.empty(place.shape, dtype=self.dtype)
            self.file.read(first, as_bytes(rows))
            place.copy_(rows)
        return into

    def write(self, first: int, x: Tensor) -> None:
        """Write `x`, [1, C, rows, W], from row `first` on."""
        rows = x[0].permute(1, 2, 0)
        if self.file is None:
            self.rows[first : first + len(rows)] = rows
        else:
            self.file.write(first, as_bytes(rows.to("cpu", self.dtype).contiguous()))


def as_bytes(x: Tensor) -> np.ndarray:
    """The memory of a contiguous tensor on the CPU."""
    return x.view(-1).view(torch.uint8).numpy()


class Stage(NamedTuple):
    """The requirements of a stage on a strip."""

    halo: int
    """Rows at 1/4 needed above and below."""
    unit: int
    """A strip starts at a multiple of this many rows at 1/4, and has at least as many."""
    bytes: float
    """Bytes per pixel, at 1/4, of the strip and its halo."""
    map_bytes: float
    """Bytes per pixel, at 1/4, of the maps of the whole image that there are during the stage."""


class Plan(NamedTuple):
    """How an image of a given size is split into strips."""

    rows: dict[str, int]
    """Rows of a strip by stage, at 1/4 of the image's size."""
    needed: int
    """Maximum bytes that a stage needs, with the maps of the whole image unless they are elsewhere."""
    map_bytes: int
    """Maximum bytes of the maps of the whole image."""
    strips: int
    """Number of strips over all stages."""


class Strips:
    """The network on strips of rows."""

    def __init__(
        self, stages: Stages, model: Network, context: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> None:
        """`context` is entered for each image."""
        self.stages, self.config, self.context = stages, model.config, context
        self.windowed = model.alfm.window if isinstance(model.alfm, ALFM) else None
        self.by_gram = isinstance(model.alfm, ALFM)
        self.rows_of_gram: Any = model.alfm.rows if isinstance(model.alfm, ALFM) else None

    def costs(self, height: int, width: int) -> dict[str, Stage]:
        """The requirements of each stage, for maps of this size at 1/4."""
        k, e = self.config, self.stages.dtype.itemsize
        c, n, a, layers = k.channels, k.features, k.esa, k.rfdbs
        in_finish = 3 + (k.skip == "feature") + (k.merge == "concat") + 8 * (k.head == "bilinear")
        f = n * (k.skip == "feature")
        y = layers * n if k.alfm != "none" else 2 * n
        f_l = n * (k.alfm != "none")
        costs = {
            "halve": Stage(4, UNIT, 48 * (8 + e) + (5 + 5 / 16) * c * e, 21 / 16 * c * e),
            "fuse_8th": Stage(16, UNIT, (9 / 16) * c * e, 25 / 16 * c * e),
            "fuse_4th": Stage(12, UNIT, (9 / 4 * c + n) * e, (5 / 4 * c + n) * e),
            "distil": Stage(4, UNIT, (4 * n + a) * e, (max(2 * n, y + f) + a) * e),
            "gate": Stage(0, UNIT, (n + 4 * a) * e, (y + f + a) * e),
            "finish": Stage(8, UNIT, in_finish * n * e + 48 * 4 * 3, (f_l + n + f) * e + 48 * 4),
        }
        if k.alfm != "none":
            costs["mix"] = Stage(0, UNIT, (layers + 1) * n * e, (y + f_l + f) * e)
            if self.by_window(height, width):
                side = cast(int, self.windowed) // 2
                rows = layers * n if self.rows_of_gram == "channels" else layers
                # F F^T of a block and the matrices made from it, at most five at a time.
                of_strip = (layers + 2) * n * e + 5 * 4 * (rows / side) ** 2
                costs["mix"] = Stage(side, side, of_strip, costs["mix"].map_bytes)
        return costs

    def by_window(self, height: int, width: int) -> bool:
        """Whether a map of this size is larger than a window."""
        return self.windowed is not None and max(height, width) > self.windowed

    def plan(self, height: int, width: int, room: int, with_maps: bool = False) -> Plan:
        """A plan for an image of this padded size, with strips as high as `room` bytes allow, `with_maps` if those of
        the whole image take part of the room."""
        height, width = height // 4, width // 4
        rows, most, costs = {}, 0, self.costs(height, width)
        for name, stage in costs.items():
            maps = int(stage.map_bytes * height * width) if with_maps else 0
            high = int((room - BESIDE - maps) / (stage.bytes * width)) - 2 * stage.halo
            high = max(min(high, MOST_ROWS) // stage.unit, -(-16 // stage.unit)) * stage.unit
            rows[name] = min(high, -(-height // stage.unit) * stage.unit)
            most = max(most, maps + int(min(rows[name] + 2 * stage.halo, height) * width * stage.bytes))
        times = dict.fromkeys(rows, 1) | {"distil": self.config.rfdbs, "gate": 2 * self.config.rfdbs}
        times["mix"] = 1 if self.by_window(height, width) or not self.by_gram else 2
        strips = sum(times[name] * -(-height // high) for name, high in rows.items())
        most_maps = max(int(stage.map_bytes * height * width) for stage in costs.values())
        return Plan(rows, most + BESIDE, most_maps, strips)

    def __call__(
        self, read: Read, size: tuple[int, int], plan: Plan, folder: Path | None, tick: Callable[[], Any]
    ) -> Map:
        """The sharp padded image: RGB, float32, not clipped; `tick` is called after each strip."""
        with self.context():
            return _Pass(self, read, size, plan, folder, tick).run()


class Strip(NamedTuple):
    """First and last row (exclusive) at 1/4, without and with the halo."""

    first: int
    last: int
    low: int
    high: int


class _Pass:
    """The computation of one image."""

    def __init__(
        self,
        network: Strips,
        read: Read,
        size: tuple[int, int],
        plan: Plan,
        folder: Path | None,
        tick: Callable[[], Any],
    ) -> None:
        self.network, self.stages, self.config = network, network.stages, network.config
        self.read, self.size, self.rows, self.folder, self.tick = read, size, plan.rows, folder, tick
        self.height, self.width = size[0] // 4, size[1] // 4
        self.costs = network.costs(self.height, self.width)

    def run(self) -> Map:
        s, k = self.stages, self.config
        f: Map | None = self.encode()
        maps: list[Map] = [cast(Map, f)]
        f = f if k.skip == "feature" else None
        a = self.new(k.esa)
        for j in range(k.rfdbs):
            y = self.new(k.features)
            self.sweep("distil", [maps[-1]], [y, a], lambda _, x, j=j: s.distil(j, x))
            if j == 0 or k.alfm == "none":
                maps.clear()  # not needed any more
            self.gate(j, y, a)
            maps.append(y)
        del a
        f_l = self.mix(maps) if k.alfm != "none" else None
        last = maps.pop()
        maps.clear()
        return self.finish(f_l, last, f)

    def new(self, channels: int, scale: int = 1) -> Map:
        """A map at 1 / (4 scale) of the image's size."""
        return Map(channels, self.height // scale, self.width // scale, self.stages.dtype, self.folder)

    def sweep(
        self, name: str, inputs: Sequence[Map], outputs: Sequence[Map], stage: Callable[..., Sequence[Tensor]]
    ) -> None:
        """Compute the outputs strip by strip: `stage` gets the strip and the inputs' rows with their halo."""
        rows, halo = self.rows[name], self.costs[name].halo
        for first in range(0, self.height, rows):
            last = min(first + rows, self.height)
            strip = Strip(first, last, max(first - halo, 0), min(last + halo, self.height))
            taken = [self.take(i, x, strip.low, strip.high) for i, x in enumerate(inputs)]
            for x, found in zip(outputs, stage(strip, *taken), strict=True):
                scale = self.width // x.shape[2]
                x.write(first // scale, found[:, :, (first - strip.low) // scale : (last - strip.low) // scale])
            self.tick()
        del taken
        self.stages.clear()

    def take(self, i: int, x: Map, low: int, high: int) -> Tensor:
        """Rows of a map; `low` and `high` are counted at 1/4."""
        scale = self.width // x.shape[2]
        place = self.stages.place(f"input {i}", x.shape[0], (high - low) // scale, x.shape[2])
        return x.read(low // scale, high // scale, place)

    def encode(self) -> Map:
        s, c = self.stages, self.config.channels
        l1, l2, l3 = (self.new(c, scale) for scale in (1, 2, 4))
        self.sweep("halve", [], [l1, l2, l3], lambda strip: s.halve(self.read(4 * strip.low, 4 * strip.high)))
        fused = self.new(c, 2)
        self.sweep("fuse_8th", [l2, l3], [fused], lambda _, *maps: [s.fuse_8th(*maps)])
        del l2, l3
        f = self.new(self.config.features)
        self.sweep("fuse_4th", [l1, fused], [f], lambda _, *maps: [s.fuse_4th(*maps)])
        return f

    def gate(self, j: int, y: Map, a: Map) -> None:
        """ESA's low-resolution branch of the whole image, then its gate, in place."""
        s, pooled, done = self.stages, [], 0
        count = ((self.height - 3) // 2 - 6) // 3 + 1
        for first in range(0, self.height, self.rows["gate"]):
            # Pooled row i comes from rows 6 i to 6 i + 14 of `a`; pool all rows whose inputs end within this strip.
            last = min(first + self.rows["gate"], self.height)
            ready = min(max((last - 9) // 6, 0), count)
            if ready > done:
                pooled.append(s.pool(j, self.take(0, a, 6 * done, 6 * ready + 9)).clone())
                done = ready
            self.tick()
        v = s.low_branch(j, torch.cat(pooled, 2))
        size, fixed = (self.height, self.width), self.config.esa_grid == "fixed"

        def gated(strip: Strip, y: Tensor, a: Tensor) -> list[Tensor]:
            return [s.gate(j, y, a, upsample_rows(v, size, fixed, strip.first, strip.last))]

        self.sweep("gate", [y, a], [y], gated)

    def mix(self, maps: Sequence[Map]) -> Map:
        s, gram = self.stages, None
        if self.network.by_gram and not self.network.by_window(self.height, self.width):
            sums: list[Tensor] = []

            def add(_: Strip, *maps: Tensor) -> list[Tensor]:
                gram = layer_gram(maps, rows=self.network.rows_of_gram).double()
                sums[:] = [gram + sums[0] if sums else gram]
                return []

            self.sweep("mix", maps, [], add)
            gram = sums[0].float()
        f_l = self.new(self.config.features)
        self.sweep("mix", maps, [f_l], lambda _, *maps: [s.mix(maps, gram)])
        return f_l

    def finish(self, f_l: Map | None, last: Map, f: Map | None) -> Map:
        sharp = Map(3, *self.size, torch.float32, self.folder)
        given = [x is not None for x in (f_l, last, f)]

        def finished(strip: Strip, *maps: Tensor) -> list[Tensor]:
            left = list(maps)
            f_l, last, f = (left.pop(0) if there else None for there in given)
            skip = self.read(4 * strip.low, 4 * strip.high) if self.config.skip == "image" else None
            rgb = self.stages.finish(f_l, cast(Tensor, last), f, skip)
            sharp.write(4 * strip.first, rgb[:, :, 4 * (strip.first - strip.low) : 4 * (strip.last - strip.low)])
            return []

        self.sweep("finish", [x for x in (f_l, last, f) if x is not None], [], finished)
        return sharp
