"""Rewrites a graph so that attention is standard operators instead of ONNX Runtime's own `MultiHeadAttention`.

That one is a kernel of the CPU and CUDA providers. Others do not know it, so that a graph falls into pieces around it; OpenVINO makes
one kernel of the product, the softmax and the product by itself.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FUSED = "MultiHeadAttention"
_INPUTS = ("query", "key", "value", "projection_bias", "key_mask", "bias")
_TYPES = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16}


def unfused(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` without fused attention. Raises `ValueError` where a node uses what our exporter never writes."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    writer = _Writer(_queries(model))
    for index, node in enumerate(model.graph.node):
        if node.op_type == FUSED:
            writer.attention(node, f"attention_{index}")
        else:
            writer.nodes.append(node)
    del result.graph.node[:]
    result.graph.node.extend(writer.nodes)
    result.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in writer.constants.items())
    others = [domain for domain in model.opset_import if domain.domain != "com.microsoft" or _needs_domain(writer.nodes)]
    del result.opset_import[:]
    result.opset_import.extend(others)
    return result


def _needs_domain(nodes: list[onnx.NodeProto]) -> bool:
    return any(node.domain == "com.microsoft" for node in nodes)


def _queries(model: onnx.ModelProto) -> dict[str, tuple[int, type[np.generic]]]:
    """Width and type of what each fused node is asked with, by its name."""
    known = onnx.ModelProto()
    known.CopyFrom(model)
    for node in known.graph.node:
        if node.op_type == FUSED:
            # What comes out has the shape of what it is asked with, which shape inference knows of no operator but a standard one.
            query, output = node.input[0], node.output[0]
            node.CopyFrom(helper.make_node("Identity", [query], [output]))
    graph = onnx.shape_inference.infer_shapes(known, strict_mode=False).graph
    types = {value.name: value.type.tensor_type for value in (*graph.input, *graph.value_info, *graph.output)}
    found = {}
    for node in model.graph.node:
        if node.op_type != FUSED:
            continue
        query = types.get(node.input[0])
        width = query.shape.dim[-1].dim_value if query is not None and query.shape.dim else 0
        if query is None or width == 0 or query.elem_type not in _TYPES:
            raise ValueError(f"{node.input[0]}, which attention is asked with, has no width that can be told")
        found[node.input[0]] = (width, _TYPES[query.elem_type])
    return found


class _Writer:
    """Collects the nodes and constants of the new graph."""

    def __init__(self, queries: dict[str, tuple[int, type[np.generic]]]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self._queries = queries
        self._masks: dict[tuple[str, type[np.generic]], str] = {}

    def attention(self, node: onnx.NodeProto, name: str) -> None:
        """The nodes that compute what the fused `node` does: see `attention.attend`."""
        given = dict(zip(_INPUTS, node.input, strict=False))
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        strange = set(attributes) - {"num_heads", "scale"}
        if given.get("projection_bias") or len(node.input) > len(_INPUTS) or strange or len(node.output) != 1:
            raise ValueError(f"{node.output[0]} is attention with more than a mask, a bias and a scale")
        heads = attributes["num_heads"]
        width, kind = self._queries[given["query"]]
        scale = attributes.get("scale", (width // heads) ** -0.5)

        split = self._constant(f"split_{heads}", np.array([0, 0, heads, -1], np.int64))
        query = self._heads(given["query"], split, f"{name}.query", [0, 2, 1, 3])
        key = self._heads(given["key"], split, f"{name}.key", [0, 2, 3, 1])
        value = self._heads(given["value"], split, f"{name}.value", [0, 2, 1, 3])
        scores = self._node("MatMul", [query, key], f"{name}.scores")
        if scale != 1:
            factor = self._constant(f"scale_{scale}_{kind.__name__}", np.array(scale, kind))
            scores = self._node("Mul", [scores, factor], f"{name}.scaled")
        if given.get("bias"):
            scores = self._node("Add", [scores, given["bias"]], f"{name}.biased")
        if given.get("key_mask"):
            scores = self._node("Add", [scores, self._mask(given["key_mask"], kind)], f"{name}.masked")
        weights = self._node("Softmax", [scores], f"{name}.weights", axis=-1)
        mixed = self._node("MatMul", [weights, value], f"{name}.mixed")
        mixed = self._node("Transpose", [mixed], f"{name}.positions", perm=[0, 2, 1, 3])
        merge = self._constant("merge_heads", np.array([0, 0, -1], np.int64))
        self._node("Reshape", [mixed, merge], node.output[0])

    def _heads(self, states: str, split: str, name: str, order: list[int]) -> str:
        return self._node("Transpose", [self._node("Reshape", [states, split], f"{name}_heads")], name, perm=order)

    def _mask(self, mask: str, kind: type[np.generic]) -> str:
        """What is added to scores, [B, 1, 1, K]: 0 where a key may be seen, the least number elsewhere."""
        if (mask, kind) not in self._masks:
            name = f"{mask}.unseen_{kind.__name__}"
            seen = self._node("Cast", [mask], f"{name}.seen", to=TensorProto.BOOL)
            nothing = self._constant(f"nothing_{kind.__name__}", np.array(0, kind))
            least = self._constant(f"least_{kind.__name__}", np.array(np.finfo(kind).min, kind))
            added = self._node("Where", [seen, nothing, least], f"{name}.flat")
            axes = self._constant("axes_of_heads_and_queries", np.array([1, 2], np.int64))
            self._masks[mask, kind] = self._node("Unsqueeze", [added, axes], name)
        return self._masks[mask, kind]

    def _constant(self, name: str, values: np.ndarray) -> str:
        self.constants[f"attention.{name}"] = values
        return f"attention.{name}"

    def _node(self, kind: str, inputs: list[str], output: str, **attributes: int | list[int]) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output
