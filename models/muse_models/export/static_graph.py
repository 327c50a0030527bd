"""Rewrites a graph so that its products with constant matrices multiply integers, with scales that are constants.

`MatMul` of activations f32 [..., K] and a weight [K, N] becomes `QuantizeLinear`/`DequantizeLinear` on the activations (uint8,
one scale for the tensor), `DequantizeLinear` on the weights (int8, a scale for each output channel), and the `MatMul` over
both. ONNX Runtime makes one integer kernel of that; where a provider has none, it computes the same in f32. Everything
else (residual stream, norms, attention, embeddings) stays f32.

Because the scales are constants and sums of integers are exact, a row's result does not depend on the rows beside it. With dynamic
scales it would.
"""

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .ranges import Range
from .storage import quantise


@dataclass(frozen=True)
class Product:
    """A `MatMul` with a constant matrix."""

    activations: str
    """Name of its first input."""
    weights: str
    """Name of its second."""


class StaticGraph:
    """A graph whose weights are stored as `storage` stores them, and its products with constant matrices."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self._initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self._made_by = {name: node for node in model.graph.node for name in node.output}
        self.products = [
            Product(node.input[0], node.input[1]) for node in model.graph.node
            if node.op_type == "MatMul" and self._is_matrix(node.input[1]) and self._is_computed(node.input[0])
        ]

    def activations(self) -> list[str]:
        """The names of the products' activations, each once."""
        return list(dict.fromkeys(product.activations for product in self.products))

    def observed(self) -> onnx.ModelProto:
        """The graph with those activations as outputs besides its own."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        there = {output.name for output in model.graph.output}
        for name in self.activations():
            if name not in there:
                model.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
        return model

    def quantised(self, ranges: dict[str, Range]) -> onnx.ModelProto:
        """The graph with integer products of all activations in `ranges`; the others stay as they are."""
        chosen = {
            (product.activations, product.weights) for product in self.products if product.activations in ranges
        }
        weights = list(dict.fromkeys(name for _, name in chosen))
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        graph = model.graph
        for name in sorted(weights):
            values, scale = self._stored(name)
            graph.initializer.append(numpy_helper.from_array(values, f"{name}.static"))
            graph.initializer.append(numpy_helper.from_array(scale, f"{name}.static_scale"))
        nodes, narrowed = [], set()
        for node in self.model.graph.node:
            if node.op_type != "MatMul" or tuple(node.input) not in chosen:
                nodes.append(node)
                continue
            activations, matrix = node.input
            if activations not in narrowed:
                narrowed.add(activations)
                nodes += _narrowed(graph, activations, ranges[activations])
            if matrix not in narrowed:
                narrowed.add(matrix)
                parts = [f"{matrix}.static", f"{matrix}.static_scale"]
                nodes.append(helper.make_node("DequantizeLinear", parts, [f"{matrix}.widened"], axis=1))
            product = onnx.NodeProto()
            product.CopyFrom(node)
            product.input[:] = [f"{activations}.widened", f"{matrix}.widened"]
            nodes.append(product)
        del graph.node[:]
        graph.node.extend(nodes)
        _drop_unused(graph)
        return model

    def _is_computed(self, name: str) -> bool:
        """Whether `name` depends on an input of the graph: what does not is folded anyway."""
        return name not in self._initializers

    def _is_matrix(self, name: str) -> bool:
        return (shape := self._shape(name)) is not None and len(shape) == 2

    def _shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a weight, in whatever form it is stored; None where it is none."""
        for form in (name, f"{name}.f16", f"{name}.int8"):
            if form in self._initializers and (form == name or name in self._made_by):
                return tuple(self._initializers[form].dims)
        return None

    def _stored(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """A matrix [K, N] as int8 with scales f32 [N]; one that is stored so already stays what it is."""
        read = {form: numpy_helper.to_array(self._initializers[form]) for form in self._forms(name)}
        if f"{name}.int8" in read and read[f"{name}.scale"].shape == (1, read[f"{name}.int8"].shape[1]):
            return read[f"{name}.int8"], read[f"{name}.scale"].reshape(-1)
        if f"{name}.int8" in read:
            wide = read[f"{name}.int8"].astype(np.float32) * read[f"{name}.scale"]
        else:
            (only,) = read.values()
            wide = only.astype(np.float32)
        values, scale = quantise(wide, axis=1)
        return values, scale.reshape(-1)

    def _forms(self, name: str) -> list[str]:
        """The initializers that hold a weight."""
        for forms in ([name], [f"{name}.f16"], [f"{name}.int8", f"{name}.scale"]):
            if all(form in self._initializers for form in forms):
                return forms
        raise KeyError(name)


def _narrowed(graph: onnx.GraphProto, name: str, chosen: Range) -> list[onnx.NodeProto]:
    """Nodes that take `name` through uint8, as `name`.widened."""
    scale, zero = f"{name}.range_scale", f"{name}.range_zero"
    graph.initializer.append(numpy_helper.from_array(np.array(chosen.scale, np.float32), scale))
    graph.initializer.append(numpy_helper.from_array(np.array(chosen.zero_point, np.uint8), zero))
    return [
        helper.make_node("QuantizeLinear", [name, scale, zero], [f"{name}.narrow"]),
        helper.make_node("DequantizeLinear", [f"{name}.narrow", scale, zero], [f"{name}.widened"]),
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
