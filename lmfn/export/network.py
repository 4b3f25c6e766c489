"""The network as an ONNX graph: `network_graph`.

It computes what `Deblurrer` does to an RGB image before clipping: the border reflected around the image
(`lmfn.inference.with_border`), the padding of `Network`, and the network. Some operations are folded, with the same
result:

- The attention matrix is multiplied with the fusion's weights, so that the maps are multiplied only once. - The sum in
  a stage of RFDB is 1 added to the centre of its convolution's weight (not in float16, where that would round the
  weight away).
- The head's second upsampling is part of the last convolution. That is wrong in the two outermost rows and columns,
  which belong to the border and are cut off.
- ACFM's convolutions over channels are 2D ones, since few runtimes support 3D convolutions on all devices.
"""

from typing import cast

import numpy as np
import torch
from onnx import helper
from torch import Tensor, nn

from lmfn.export.graph import Graph, Size
from lmfn.inference import BORDER
from lmfn.network.alternatives import Concat
from lmfn.network.blocks import (
    ACFM,
    ALFM,
    DECODER_SLOPE,
    ENCODER_SLOPE,
    MSHF,
    MULTIPLE,
    RB,
    RFDB,
    SMALLEST,
    BilinearHead,
    weight_and_bias,
)
from lmfn.network.model import RGB_MEAN, Network
from lmfn_kernels import fold_upsampling
from lmfn_kernels.alfm.reference import SHORTEST
from lmfn_kernels.upsample.grid import GRID


def network_graph(model: Network, dtype: type[np.floating], tile_size: int | None) -> Graph:
    """A graph from `blurred` to `sharp`, both float32 `[B, 3, H, W]` of any size, or `[1, 3, tile_size, tile_size]`.

    Convolutions compute in `dtype`, the scores of the attention in float32. Raises ValueError for a network with parts
    of an ablation.
    """
    c = model.config
    if type(model.encoder) is not MSHF or type(model.alfm) not in (ALFM, Concat, type(None)):
        raise ValueError(
            f'a network with encoder "{c.encoder}" and alfm "{c.alfm}" cannot be exported; the encoder has to be '
            '"mshf", and alfm "channels", "layers", "concat" or "none"'
        )
    return _Writer(model, dtype, tile_size).g


class _Writer:
    """Writes the network into a graph, part by part. Parts take and return names of tensors."""

    def __init__(self, model: Network, dtype: type[np.floating], tile_size: int | None) -> None:
        self.g = g = Graph()
        self.model, self.config, self.dtype = model, model.config, dtype
        height, width = tile_size or g.size("blurred", 2), tile_size or g.size("blurred", 3)
        self.batch: Size = 1 if tile_size else g.size("blurred", 0)
        self.height, self.width = (g.compute("Div", self.padded(size), 4) for size in (height, width))
        x = self.fixed_border("blurred") if tile_size else self.border("blurred", height, width)
        mean = g.constant(np.array(RGB_MEAN, np.float32).reshape(3, 1, 1))
        y = self.decode(self.encode(self.cast(g.add("Sub", x, mean), dtype)))
        sharp = self.cast(self.head(y), np.float32)
        for axis, size in ((2, height), (3, width)):
            sharp = g.slice(sharp, axis, BORDER, g.compute("Add", size, BORDER))
        g.add("Add", sharp, "blurred" if self.config.skip == "image" else mean, output="sharp")

    def cast(self, x: str, dtype: type[np.floating]) -> str:
        """Convert between float32 and the dtype of the convolutions."""
        if self.dtype == np.float32:
            return x
        return self.g.add("Cast", x, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def weight(self, value: Tensor) -> str:
        return self.g.constant(value.detach().numpy().astype(self.dtype))

    def padded(self, size: Size) -> Size:
        """From an image's height or width to the padded one."""
        rounded = self.g.rounded_up(self.g.compute("Add", size, 2 * BORDER), MULTIPLE)
        return self.g.compute("Max", rounded, SMALLEST)

    def border(self, image: str, height: Size, width: Size) -> str:
        """The image with its border and padding, gathered by the indices of the rows and columns that they repeat.

        Both are reflections. Only the border of an image too small for that repeats the outermost pixels; with the
        border, no image is too small for the padding.
        """
        g = self.g
        large = g.add("Greater", g.vector(g.compute("Min", height, width)), g.vector(BORDER))
        for axis, size in ((2, height), (3, width)):
            end = g.vector(g.compute("Add", size, 2 * BORDER - 1))
            last = g.vector(g.compute("Sub", size, 1))
            bordered = g.add("Sub", end, self.absolute(g.add("Sub", end, g.range(self.padded(size)))))
            place = g.add("Sub", bordered, g.vector(BORDER))
            reflected = g.add("Sub", last, self.absolute(g.add("Sub", last, self.absolute(place))))
            repeated = g.add("Max", g.add("Min", place, last), g.vector(0))
            image = g.add("Gather", image, g.add("Where", large, reflected, repeated), axis=axis)
        return image

    def absolute(self, x: str) -> str:
        """Without `Abs`, which OpenVINO 2026.4 takes away in front of constants, as sizes are after its `reshape`."""
        return self.g.add("Max", x, self.g.add("Neg", x))

    def fixed_border(self, image: str) -> str:
        """The border of a tile, whose sides are multiples of 16 and need no padding."""
        return self.g.add("Pad", image, self.g.vector(*[0, 0, BORDER, BORDER] * 2), mode="reflect")

    def encode(self, x: str) -> str:
        e = cast(MSHF, self.model.encoder)

        def down(x: str, conv: nn.Module) -> str:
            return self.conv(x, conv, ENCODER_SLOPE, padding=1, stride=2)

        x = self.conv(x, e.conv0, ENCODER_SLOPE, padding=e.stem_padding)
        l1 = down(down(x, e.down1), e.down2)
        l2 = down(l1, e.down3)
        l3 = self.rb(down(l2, e.down4), e.rb_16th)
        l2 = self.g.add("Add", self.rb(l2, e.rb_8th[0]), self.doubled(l3))
        l2 = self.rb(l2, e.rb_8th[1])
        l1 = self.g.add("Add", self.rb(self.rb(l1, e.rb_4th[0]), e.rb_4th[1]), self.doubled(l2))
        for rb in list(e.rb_4th)[2:]:
            l1 = self.rb(l1, rb)
        return l1

    def decode(self, encoded: str) -> str:
        """From the encoder's map to the head's input."""
        g, model, c = self.g, self.model, self.config
        f = self.conv(encoded, model.reduce, padding=1)
        maps: list[str] = []
        for block in model.rfdbs:
            maps.append(self.rfdb(maps[-1] if maps else f, cast(RFDB, block)))
        f_l = self.fuse(maps) if model.alfm is not None else None
        f_c = self.acfm(maps[-1], model.acfm) if model.acfm is not None else None
        found = [y for y in (f_l, f_c) if y is not None]
        if model.merge is not None:
            y = self.conv(g.add("Concat", *found, axis=1), model.merge, padding=1)
        elif found:
            y = found[0] if len(found) == 1 else g.add("Add", *found)
        else:
            y = maps[-1]
        return g.add("Add", y, f) if c.skip == "feature" else y

    def rfdb(self, x: str, block: RFDB) -> str:
        g, e, distilled = self.g, block.esa, []
        for distil, refine in zip(block.distil, block.refine, strict=True):
            distilled.append(self.conv(x, distil, DECODER_SLOPE))
            weight, bias = weight_and_bias(refine)
            if self.dtype == np.float32:
                weight = weight + nn.init.dirac_(torch.empty_like(weight))
                x = self.convolution(x, weight, bias, DECODER_SLOPE, padding=1)
            else:
                x = self.activation(g.add("Add", self.convolution(x, weight, bias, padding=1), x), DECODER_SLOPE)
        distilled.append(self.conv(x, block.distil_last, DECODER_SLOPE, padding=1))
        y = self.conv(g.add("Concat", *distilled, axis=1), block.fuse)
        a = self.conv(y, e.conv1)
        v = g.add("MaxPool", self.conv(a, e.conv2, stride=2), kernel_shape=[7, 7], strides=[3, 3])
        v = self.conv(v, e.conv_max, 0, padding=1)
        v = self.conv(v, e.conv3, 0, padding=1)
        v = self.conv(v, e.conv3_, padding=1)
        v = self.as_large(v) if e.fixed_grid else self.resize(v, "", self.map_shape(self.config.esa))
        gate = self.conv(g.add("Add", v, self.conv(a, e.conv_f)), e.conv4)
        return g.add("Mul", y, g.add("Sigmoid", gate))

    def map_shape(self, channels: int) -> str:
        return self.g.vector(self.batch, channels, self.height, self.width)

    def as_large(self, v: str) -> str:
        """ESA's low-resolution branch on the fixed grid: each pixel becomes 6x6, and the last ones are repeated. At
        least 9 pixels are always missing, which the convolution and the pooling without padding have removed."""
        g = self.g
        large = self.resize(v, g.constant(np.array([1, 1, GRID, GRID], np.float32)))
        missing = []
        for size in (self.height, self.width):
            convolved = g.compute("Div", g.compute("Sub", size, 1), 2)
            pooled = g.compute("Div", g.compute("Sub", convolved, 4), 3)
            missing.append(g.compute("Sub", size, g.compute("Mul", pooled, GRID)))
        return g.add("Pad", large, g.vector(0, 0, 0, 0, 0, 0, *missing), mode="edge")

    def fuse(self, maps: list[str]) -> str:
        """ALFM, or its fusion without attention."""
        g, alfm = self.g, cast(ALFM | Concat, self.model.alfm)
        f = maps[0] if len(maps) == 1 else g.add("Concat", *maps, axis=1)
        if isinstance(alfm, Concat):
            return self.conv(f, alfm.fuse, DECODER_SLOPE)
        if alfm.window is not None and not self.is_one_window(alfm.window):
            return self.fuse_windows(f, alfm, alfm.window // 2)
        size = len(maps) * self.config.features
        f = g.reshape(f, self.batch, size, -1)
        y = g.add("MatMul", self.folded(self.gram(f, alfm), alfm), f)
        return g.add("Reshape", self.fused(y, alfm), self.map_shape(self.config.features))

    def is_one_window(self, window: int) -> bool:
        """Whether every image is known to fit into one window."""
        return isinstance(self.height, int) and isinstance(self.width, int) and max(self.height, self.width) <= window

    def gram(self, f: str, alfm: ALFM) -> str:
        """F F^T, `[B, R, R]` in float32, of maps `[B, NC, pixels]`."""
        f = self.cast(f, np.float32)
        if alfm.rows == "layers":
            f = self.g.add("Reshape", f, self.g.vector(0, alfm.layers, -1))
        return self.g.add("MatMul", f, self.g.add("Transpose", f, perm=[0, 2, 1]))

    def folded(self, gram: str, alfm: ALFM) -> str:
        """The fusion's weight with the attention folded in, `[B, C, NC]`: theta W M + W."""
        g, e, (outputs, size) = self.g, gram, alfm.fuse.weight.shape[:2]
        scale = 1.0
        if alfm.temperature is not None:
            n = alfm.layers if alfm.rows == "layers" else size
            # The diagonal by operators that every runtime supports: pnnx ignores the axes of a sum.
            diagonal = g.add("Mul", e, g.constant(np.eye(n, dtype=np.float32)))
            squares = g.add("MatMul", diagonal, g.constant(np.ones((n, 1), np.float32)))
            lengths = g.add("Sqrt", g.add("Max", squares, g.constant(np.float32(SHORTEST))))
            e = g.add("Div", g.add("Div", e, lengths), g.add("Transpose", lengths, perm=[0, 2, 1]))
            scale = alfm.temperature.item()
        # By layers, softmax(rowmax(E) - E), which is softmax(-E).
        scale = -scale if alfm.rows == "layers" else scale
        e = e if scale == 1 else g.add("Mul", e, g.constant(np.float32(scale)))
        m = g.add("Softmax", e, axis=-1)
        weight = alfm.fuse.weight.detach()[:, :, 0, 0]
        scaled = alfm.theta.detach() * weight
        if alfm.rows == "layers":
            # M is between layers and applies equally to all of their channels.
            by_channel = scaled.unflatten(1, (alfm.layers, -1)).transpose(1, 2).flatten(0, 1)  # [C C, N]
            p = g.reshape(
                g.add("MatMul", g.constant(by_channel.numpy()), m), -1, outputs, size // alfm.layers, alfm.layers
            )
            p = g.reshape(g.add("Transpose", p, perm=[0, 1, 3, 2]), -1, outputs, size)
        else:
            p = g.add("MatMul", g.constant(scaled.numpy()), m)
        return self.cast(g.add("Add", p, g.constant(weight.numpy())), self.dtype)

    def fused(self, y: str, alfm: ALFM) -> str:
        """Add the fusion's bias and apply its activation; `[B, C, pixels]`."""
        bias = cast(Tensor, alfm.fuse.bias)[:, None]
        return self.activation(self.g.add("Add", y, self.weight(bias)), DECODER_SLOPE)

    def fuse_windows(self, f: str, alfm: ALFM, side: int) -> str:
        """ALFM with attention in windows of 2 x 2 blocks, each of `side` x `side` pixels (`lmfn_kernels.alfm.windows`).

        There are at least 2 x 2 blocks; the last ones are padded with zeros, which add nothing to F F^T.
        """
        g, c, size = self.g, self.config.features, alfm.fuse.weight.shape[1]
        rows, columns = (
            g.compute("Max", g.compute("Div", g.rounded_up(n, side), side), 2) for n in (self.height, self.width)
        )
        blocks = g.compute("Mul", g.compute("Mul", self.batch, rows), columns)
        missing = [
            g.compute("Sub", g.compute("Mul", count, side), n)
            for count, n in ((rows, self.height), (columns, self.width))
        ]
        f = g.add("Pad", f, g.vector(0, 0, 0, 0, 0, 0, *missing))
        # Blocks are in the order [rows, columns, B], so that no tensor has more than five dimensions.
        f = g.reshape(f, g.compute("Mul", self.batch, size), rows, side, columns, side)
        f = g.reshape(g.add("Transpose", f, perm=[1, 3, 0, 2, 4]), blocks, size, side * side)
        # Sums over windows; then the four windows around each block, where the outermost ones are repeated.
        n = alfm.layers if alfm.rows == "layers" else size
        gram = g.reshape(self.gram(f, alfm), rows, columns, -1)
        for axis, count in ((0, rows), (1, columns)):
            before = g.compute("Sub", count, 1)
            gram = g.add("Add", g.slice(gram, axis, 0, before), g.slice(gram, axis, 1, count))
        windows = [g.compute("Sub", count, 1) for count in (rows, columns)]
        p = g.reshape(self.folded(g.reshape(gram, -1, n, n), alfm), *windows, -1)
        for axis, count in enumerate(windows):
            first = g.slice(p, axis, 0, 1)
            last = g.slice(p, axis, g.compute("Sub", count, 1), count)
            p = g.add("Concat", first, p, last, axis=axis)
        near = []
        for i in (0, 1):
            row = g.slice(p, 0, i, g.compute("Add", rows, i))
            places = [g.slice(row, 1, j, g.compute("Add", columns, j)) for j in (0, 1)]
            near += [g.reshape(place, blocks, c, size) for place in places]
        y = g.add("MatMul", g.add("Concat", *near, axis=1), f)
        share = (np.arange(side) + 0.5) / side
        along = np.stack([1 - share, share])
        shares = np.einsum("ih,jw->ijhw", along, along).reshape(4, 1, side * side)
        y = g.add("Mul", g.reshape(y, blocks, 4, c, side * side), g.constant(shares.astype(self.dtype)))
        y = self.fused(g.add("ReduceSum", y, g.vector(1), keepdims=0), alfm)
        y = g.add("Transpose", g.reshape(y, rows, columns, -1, side, side), perm=[2, 0, 3, 1, 4])
        y = g.reshape(y, self.batch, c, g.compute("Mul", rows, side), g.compute("Mul", columns, side))
        return g.slice(g.slice(y, 2, 0, self.height), 3, 0, self.width)

    def acfm(self, x: str, acfm: ACFM) -> str:
        g, c = self.g, self.config.features
        gate, slope = x, 0 if acfm.form == "pseudo3d" else 1
        for weight, bias in acfm.in_2d(c):
            gate = self.convolution(
                gate, weight, bias, slope, padding=weight.shape[2] // 2, groups=c // weight.shape[1]
            )
        scaled = g.add("Mul", g.add("Sigmoid", gate), self.weight(acfm.alpha))
        return g.add("Add", x, g.add("Mul", x, scaled))

    def head(self, y: str) -> str:
        """The head, at the image's size, without the skip connection."""
        head = self.model.head
        if not isinstance(head, BilinearHead):
            return self.shuffled(self.conv(y, head.conv, padding=1), 4)
        y = self.rb(self.doubled(self.rb(y, head.rb1)), head.rb2)
        weight, bias = weight_and_bias(head.conv)
        return self.shuffled(self.convolution(y, fold_upsampling(weight)[0], bias.repeat_interleave(4), padding=1), 2)

    def shuffled(self, x: str, factor: int) -> str:
        return self.g.add("DepthToSpace", x, blocksize=factor, mode="CRD")

    def rb(self, x: str, rb: nn.Module) -> str:
        rb = cast(RB, rb)
        return self.g.add("Add", x, self.conv(self.conv(x, rb.conv1, 0, padding=1), rb.conv2, padding=1))

    def conv(self, x: str, conv: nn.Module, slope: float = 1.0, *, padding: int = 0, stride: int = 1) -> str:
        return self.convolution(x, *weight_and_bias(conv), slope, padding=padding, stride=stride)

    def convolution(
        self,
        x: str,
        weight: Tensor,
        bias: Tensor,
        slope: float = 1.0,
        *,
        padding: int = 0,
        stride: int = 1,
        groups: int = 1,
    ) -> str:
        """A convolution followed by its activation."""
        size, pads, strides = list(weight.shape[2:]), [padding] * 4, [stride] * 2
        y = self.g.add(
            "Conv",
            x,
            self.weight(weight),
            self.weight(bias),
            kernel_shape=size,
            pads=pads,
            strides=strides,
            group=groups,
        )
        return self.activation(y, slope)

    def activation(self, x: str, slope: float) -> str:
        """A leaky ReLU with this negative slope: 0 is ReLU, 1 is none."""
        if slope == 1:
            return x
        return self.g.add("LeakyRelu", x, alpha=slope) if slope else self.g.add("Relu", x)

    def doubled(self, x: str) -> str:
        return self.resize(x, self.g.constant(np.array([1, 1, 2, 2], np.float32)))

    def resize(self, x: str, scales: str, sizes: str = "") -> str:
        """Bilinear with align_corners=False, by the scales or, if these are "", to the sizes."""
        given = [scales, sizes] if sizes else [scales]
        return self.g.add("Resize", x, "", *given, mode="linear", coordinate_transformation_mode="half_pixel")
