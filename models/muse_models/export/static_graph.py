"""Rewrites a graph so that its products with constant weights multiply integers, with scales that are constants.

`MatMul` of activations f32 [..., K] and a weight [K, N] becomes `QuantizeLinear`/`DequantizeLinear` on the activations (uint8,
one scale for the tensor), `DequantizeLinear` on the weights (int8, a scale for each output channel), and the `MatMul` over
both. `Conv` of activations [B, C, H, W] and a kernel [O, C, h, w] becomes the same, with a bias in int32 and an output that goes
through uint8 as well, which is what ONNX Runtime's kernel for it wants. A `Conv` of few channels stays f32, which costs little: norms
take their means by one, of squares that eight bits can't hold. So does the last of a graph, which makes the picture itself. ONNX
Runtime makes one integer kernel of each; where a provider has none, it computes the same in f32. Everything else (residual stream,
norms, attention, embeddings) stays f32.

Because the scales are constants and sums of integers are exact, a row's result does not depend on the rows beside it. With dynamic
scales it would.
"""

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .ranges import Range
from .storage import quantise

_CHANNEL_AXES = {"MatMul": 1, "Conv": 0}
"""Operators that have integer kernels, and the axis of output channels of their weights."""

_RANKS = {"MatMul": 2, "Conv": 4}

_FEWEST_CHANNELS = 8
"""A convolution that reads or makes fewer stays f32."""


@dataclass(frozen=True)
class Product:
    """A `MatMul` with a constant matrix, or a `Conv` with a constant kernel."""

    operator: str
    activations: str
    """Name of its first input."""
    weights: str
    """Name of its second."""
    output: str


class StaticGraph:
    """A graph whose weights are stored as `storage` stores them, and its products with constant weights."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self._initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self._made_by = {name: node for node in model.graph.node for name in node.output}
        found = [
            Product(node.op_type, node.input[0], node.input[1], node.output[0]) for node in model.graph.node
            if node.op_type in _RANKS and self._is_weight(node) and self._is_computed(node.input[0])
        ]
        last = self._last()
        self.products = [product for product in found if product.output not in last]

    def activations(self) -> list[str]:
        """The names of what goes through eight bits, each once: the products' activations, and outputs of convolutions."""
        names = [product.activations for product in self.products]
        names += [product.output for product in self.products if product.operator == "Conv"]
        return list(dict.fromkeys(names))

    def observed(self) -> onnx.ModelProto:
        """The graph with those as outputs besides its own."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        there = {output.name for output in model.graph.output}
        for name in self.activations():
            if name not in there:
                model.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
        return model

    def quantised(self, ranges: dict[str, Range]) -> onnx.ModelProto:
        """The graph with integer products of all activations in `ranges`; the others stay as they are."""
        chosen = {product.output: product for product in self.products if product.activations in ranges}
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        graph = model.graph
        nodes, done = [], set()
        for node in self.model.graph.node:
            product = chosen.get(node.output[0]) if node.output else None
            if product is None:
                nodes.append(node)
                continue
            activations, weights = product.activations, product.weights
            if activations not in done:
                done.add(activations)
                nodes += _narrowed(graph, activations, f"{activations}.widened", ranges[activations])
            if weights not in done:
                done.add(weights)
                nodes.append(self._weights(graph, product))
            integer = onnx.NodeProto()
            integer.CopyFrom(node)
            integer.input[:2] = [f"{activations}.widened", f"{weights}.widened"]
            if product.operator == "MatMul":
                nodes.append(integer)
                continue
            if len(node.input) > 2:
                nodes.append(self._bias(graph, product, node.input[2], ranges[activations]))
                integer.input[2] = f"{product.output}.bias"
            integer.output[0] = f"{product.output}.exact"
            nodes.append(integer)
            nodes += _narrowed(graph, f"{product.output}.exact", product.output, ranges[product.output])
        del graph.node[:]
        graph.node.extend(nodes)
        _drop_unused(graph)
        return model

    def _weights(self, graph: onnx.GraphProto, product: Product) -> onnx.NodeProto:
        """Adds a product's weights to `graph` as int8; the node that widens them."""
        values, scale = self._stored(product)
        parts = [f"{product.weights}.static", f"{product.weights}.static_scale"]
        graph.initializer.append(numpy_helper.from_array(values, parts[0]))
        graph.initializer.append(numpy_helper.from_array(scale, parts[1]))
        axis = _CHANNEL_AXES[product.operator]
        return helper.make_node("DequantizeLinear", parts, [f"{product.weights}.widened"], axis=axis)

    def _bias(self, graph: onnx.GraphProto, product: Product, name: str, chosen: Range) -> onnx.NodeProto:
        """Adds a convolution's bias to `graph` in units of its sums of integers; the node that widens it."""
        _, scale = self._stored(product)
        unit = scale * chosen.scale
        values = np.round(self._wide(name) / unit).astype(np.int32)
        parts = [f"{product.output}.bias_sum", f"{product.output}.bias_scale"]
        graph.initializer.append(numpy_helper.from_array(values, parts[0]))
        graph.initializer.append(numpy_helper.from_array(unit.astype(np.float32), parts[1]))
        return helper.make_node("DequantizeLinear", parts, [f"{product.output}.bias"], axis=0)

    def _last(self) -> set[str]:
        """Outputs of convolutions that no other convolution comes after."""
        before: dict[str, set[str]] = {}
        last: set[str] = set()
        for node in self.model.graph.node:
            seen = set().union(*(before.get(name, set()) for name in node.input))
            if node.op_type == "Conv":
                last = last - seen | {node.output[0]}
                seen = {node.output[0]}
            before |= dict.fromkeys(node.output, seen)
        return last

    def _is_computed(self, name: str) -> bool:
        """Whether `name` depends on an input of the graph: what does not is folded anyway."""
        return name not in self._initializers

    def _is_weight(self, node: onnx.NodeProto) -> bool:
        shape = self._shape(node.input[1])
        if shape is None or len(shape) != _RANKS[node.op_type]:
            return False
        return node.op_type != "Conv" or min(shape[:2]) >= _FEWEST_CHANNELS

    def _shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a weight, in whatever form it is stored; None where it is none."""
        for form in (name, f"{name}.f16", f"{name}.int8"):
            if form in self._initializers and (form == name or name in self._made_by):
                return tuple(self._initializers[form].dims)
        return None

    def _stored(self, product: Product) -> tuple[np.ndarray, np.ndarray]:
        """Weights as int8, with a scale f32 for each output channel; those that are stored so already stay what they are."""
        name, axis = product.weights, _CHANNEL_AXES[product.operator]
        read = {form: numpy_helper.to_array(self._initializers[form]) for form in self._forms(name)}
        if f"{name}.int8" in read:
            values, scale = read[f"{name}.int8"], read[f"{name}.scale"]
            if scale.size == scale.shape[axis] == values.shape[axis]:
                return values, scale.reshape(-1)
        values, scale = quantise(self._wide(name), axis)
        return values, scale.reshape(-1)

    def _wide(self, name: str) -> np.ndarray:
        """A weight, f32, in whatever form it is stored."""
        read = {form: numpy_helper.to_array(self._initializers[form]) for form in self._forms(name)}
        if f"{name}.int8" in read:
            return read[f"{name}.int8"].astype(np.float32) * read[f"{name}.scale"]
        (only,) = read.values()
        return only.astype(np.float32)

    def _forms(self, name: str) -> list[str]:
        """The initializers that hold a weight."""
        for forms in ([name], [f"{name}.f16"], [f"{name}.int8", f"{name}.scale"]):
            if all(form in self._initializers for form in forms):
                return forms
        raise KeyError(name)


def _narrowed(graph: onnx.GraphProto, name: str, widened: str, chosen: Range) -> list[onnx.NodeProto]:
    """Nodes that take `name` through uint8, as `widened`."""
    scale, zero = f"{name}.range_scale", f"{name}.range_zero"
    graph.initializer.append(numpy_helper.from_array(np.array(chosen.scale, np.float32), scale))
    graph.initializer.append(numpy_helper.from_array(np.array(chosen.zero_point, np.uint8), zero))
    return [
        helper.make_node("QuantizeLinear", [name, scale, zero], [f"{name}.narrow"]),
        helper.make_node("DequantizeLinear", [f"{name}.narrow", scale, zero], [widened]),
    ]


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Drops nodes and initializers that nothing reads any more."""
    while True:
        read = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
        used = [node for node in graph.node if read.intersection(node.output)]
        if len(used) == len(graph.node):
            break
        del graph.node[:]
        graph.node.extend(used)
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
