"""An ONNX graph, written node by node: `Graph`.

Written by hand to keep sizes dynamic: with unknown sizes, PyTorch's exporter is silently wrong where the network
branches on them.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

Size = int | str
"""A length in pixels or a count: a number, or the name of an int64 tensor [1] if it is known only at run time."""

Operation = Literal["Add", "Sub", "Mul", "Div", "Max", "Min"]
OPERATIONS: dict[Operation, Callable[[int, int], int]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "Div": operator.floordiv,
    "Max": max,
    "Min": min,
}


class Graph:
    """Collects nodes and constants; a tensor is represented by its name in the graph.

    Computations on known sizes are carried out immediately, so that with fixed sizes none of them is in the graph.
    """

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def add(self, op: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node with one output; returns its name."""
        output = output or f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def constant(self, value: npt.ArrayLike) -> str:
        """Add a constant; equal values are stored once."""
        array = np.asarray(value)
        key = array.dtype.str, array.shape, array.tobytes()  # a scalar is not a vector of one
        if key not in self._constants:
            name = f"constant_{len(self.initializers)}"
            self.initializers[name] = numpy_helper.from_array(np.asarray(array, order="C"), name)
            self._constants[key] = name
        return self._constants[key]

    def size(self, x: str, axis: int) -> str:
        return self.add("Gather", self.add("Shape", x), self.constant(np.array([axis])))

    def compute(self, op: Operation, a: Size, b: Size) -> Size:
        """An operation on two sizes; `Div` rounds down."""
        if isinstance(a, int) and isinstance(b, int):
            return OPERATIONS[op](a, b)
        return self.add(op, self.vector(a), self.vector(b))

    def rounded_up(self, a: Size, multiple: int) -> Size:
        up = self.compute("Div", self.compute("Add", a, multiple - 1), multiple)
        return self.compute("Mul", up, multiple)

    def vector(self, *sizes: Size) -> str:
        """Sizes as one tensor."""
        if all(isinstance(size, int) for size in sizes):
            return self.constant(np.array(sizes, np.int64))
        parts = [self.vector(size) if isinstance(size, int) else size for size in sizes]
        return parts[0] if len(parts) == 1 else self.add("Concat", *parts, axis=0)

    def reshape(self, x: str, *sizes: Size) -> str:
        """Reshape; -1 is inferred."""
        return self.add("Reshape", x, self.vector(*sizes))

    def slice(self, x: str, axis: int, first: Size, last: Size) -> str:
        return self.add("Slice", x, self.vector(first), self.vector(last), self.vector(axis))

    def range(self, size: Size) -> str:
        """0, 1, ... size - 1."""
        if isinstance(size, int):
            return self.constant(np.arange(size))
        zero, one = (self.constant(np.array(value, np.int64)) for value in (0, 1))
        return self.add("Range", zero, self.add("Squeeze", size), one)

    def model(
        self, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto], opset: int
    ) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "lmfn", inputs, outputs, list(self.initializers.values()))
        operators = [helper.make_opsetid("", opset)]
        # The oldest file format that has these operators, so that older programs read it.
        return helper.make_model(
            graph, opset_imports=operators, ir_version=helper.find_min_ir_version_for(operators), producer_name="lmfn"
        )
