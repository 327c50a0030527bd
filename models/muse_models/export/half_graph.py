"""Rewrites a graph so that it computes in f16: for GPUs, whose matrix units multiply f16 many times as fast as f32.

Weights, constants and everything between them become f16. Sums inside a product and inside a norm stay f32, as CUDA's kernels
keep them. Integers stay what they are. What a row's logits are then still depends on nothing but the row, where the provider's kernels
see to it; ONNX Runtime's CPU provider has few f16 kernels and computes the rest in f32 between casts, slower than the
graph that this one is made from.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .storage import BesideFile

_LARGEST = float(np.finfo(np.float16).max)


def halved(model: onnx.ModelProto, keep_f32: frozenset[str], beside: BesideFile | None = None) -> onnx.ModelProto:
    """`model` in f16. Inputs and outputs in `keep_f32` stay f32, and are cast; others become f16 where they are f32.

    `beside` reads initializers that lie in external data. Those that are f16 there stay where they are; others come into the model.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    widened = _widened(graph)
    del graph.initializer[:]
    del graph.value_info[:]
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, forms in widened.items():
        graph.initializer.append(_half_weight(name, [stored[form] for form in forms], beside))
    used = {form for forms in widened.values() for form in forms}
    graph.initializer.extend(_half_tensor(tensor, beside) for name, tensor in stored.items() if name not in used)

    made_by_widening = {f"{name}.wide" for name in widened} | set(widened)
    nodes = [node for node in graph.node if not (node.output and node.output[0] in made_by_widening)]
    before, after = _cast_ends(graph, nodes, keep_f32)
    for node in nodes:
        _halve_attributes(node)
    del graph.node[:]
    graph.node.extend([*before, *nodes, *after])
    return result


def _widened(graph: onnx.GraphProto) -> dict[str, list[str]]:
    """The weights that nodes widen when the graph is opened, with the initializers that hold them (see `storage`)."""
    stored = {tensor.name for tensor in graph.initializer}
    found = {}
    for node in graph.node:
        name = node.output[0] if node.output else ""
        if node.op_type == "Cast" and node.input[0] == f"{name}.f16" and node.input[0] in stored:
            found[name] = [f"{name}.f16"]
        elif node.op_type == "Mul" and list(node.input) == [f"{name}.wide", f"{name}.scale"]:
            found[name] = [f"{name}.int8", f"{name}.scale"]
    return found


def _half_weight(name: str, forms: list[TensorProto], beside: BesideFile | None) -> TensorProto:
    if len(forms) == 1:
        same = TensorProto()
        same.CopyFrom(forms[0])
        same.name = name
        return same
    values, scale = (_array(form, beside) for form in forms)
    return _half_array(name, values.astype(np.float32) * scale)


def _half_tensor(tensor: TensorProto, beside: BesideFile | None) -> TensorProto:
    if tensor.data_type != TensorProto.FLOAT:
        return tensor
    return _half_array(tensor.name, _array(tensor, beside))


def _array(tensor: TensorProto, beside: BesideFile | None) -> np.ndarray:
    if tensor.data_location != TensorProto.EXTERNAL:
        return numpy_helper.to_array(tensor)
    if beside is None:
        raise ValueError(f"{tensor.name} lies in external data, which is not there")
    return beside.array(tensor)


def _half_array(name: str, values: np.ndarray) -> TensorProto:
    # A mask's "minus infinity" stays one that a softmax can take.
    return numpy_helper.from_array(np.clip(values, -_LARGEST, _LARGEST).astype(np.float16), name)


def _cast_ends(
    graph: onnx.GraphProto, nodes: list[onnx.NodeProto], keep_f32: frozenset[str]
) -> tuple[list[onnx.NodeProto], list[onnx.NodeProto]]:
    """Casts to put before and after `nodes`, which read and write the ends that stay f32 under other names."""
    before, after = [], []
    for end, casts in ((graph.input, before), (graph.output, after)):
        for value in end:
            if value.type.tensor_type.elem_type != TensorProto.FLOAT:
                continue
            if value.name not in keep_f32:
                value.type.tensor_type.elem_type = TensorProto.FLOAT16
                continue
            inside = f"{value.name}.half"
            _rename(nodes, value.name, inside)
            if casts is before:
                casts.append(helper.make_node("Cast", [value.name], [inside], to=TensorProto.FLOAT16))
            else:
                casts.append(helper.make_node("Cast", [inside], [value.name], to=TensorProto.FLOAT))
    return before, after


def _rename(nodes: list[onnx.NodeProto], name: str, other: str) -> None:
    for node in nodes:
        for names in (node.input, node.output):
            for place, found in enumerate(names):
                if found == name:
                    names[place] = other


def _halve_attributes(node: onnx.NodeProto) -> None:
    """Constants and casts that name f32 name f16."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            raise ValueError(f"{node.op_type} has a graph of its own, which is not rewritten")
        if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(_half_tensor(attribute.t, None))
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
