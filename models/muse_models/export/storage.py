"""How weights lie in an ONNX file: f32, f16, or int8 with a scale for each output channel.

Smaller weights are widened by `Cast` and `Mul` nodes over constants. ONNX Runtime folds those when it loads the file,
so all arithmetic is f32, as fast as with f32 weights, and a row's result does not depend on the rows beside it.
(With dynamic int8 arithmetic it would: its activation scale spans the batch.)
"""

from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Precision = Literal["f32", "f16", "int8"]

SMALLEST = 1024
"""Elements below which an initializer stays f32: norms and biases matter much and weigh little."""

_CLIPPING = np.linspace(0.7, 1.0, 16)
"""Shares of a channel's largest weight that are tried as its int8 range."""


def store_weights(model: onnx.ModelProto, precision: Precision) -> None:
    """Rewrites the f32 initializers of `model` in place.

    With int8, matrices of products, tables of lookups and kernels of convolutions become int8; other tensors f16.
    """
    if precision == "f32":
        return
    graph = model.graph
    axes = _channel_axes(graph) if precision == "int8" else {}
    widening: list[onnx.NodeProto] = []
    stored: list[TensorProto] = []
    for initializer in graph.initializer:
        if initializer.data_type != TensorProto.FLOAT or np.prod(initializer.dims) < SMALLEST:
            stored.append(initializer)
            continue
        name, weights = initializer.name, numpy_helper.to_array(initializer)
        if name in axes:
            quantised, scale = quantise(weights, axes[name])
            stored.append(numpy_helper.from_array(quantised, f"{name}.int8"))
            stored.append(numpy_helper.from_array(scale, f"{name}.scale"))
            widening.append(helper.make_node("Cast", [f"{name}.int8"], [f"{name}.wide"], to=TensorProto.FLOAT))
            widening.append(helper.make_node("Mul", [f"{name}.wide", f"{name}.scale"], [name]))
        else:
            stored.append(numpy_helper.from_array(_to_half(name, weights), f"{name}.f16"))
            widening.append(helper.make_node("Cast", [f"{name}.f16"], [name], to=TensorProto.FLOAT))
    nodes = [*widening, *graph.node]
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(stored)
    graph.node.extend(nodes)


def quantise(weights: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """int8 values and f32 scales, one a channel along `axis`, with weights = values * scales.

    The range of each channel is the one, of some up to its largest weight, with the least squared error.
    """
    others = tuple(index for index in range(weights.ndim) if index != axis)
    largest = np.maximum(np.abs(weights).max(axis=others, keepdims=True), np.float32(1e-12))
    best_scale = largest / np.float32(127)
    best_error = np.full(largest.shape, np.inf, np.float64)
    for share in _CLIPPING:
        scale = (largest * np.float32(share / 127)).astype(np.float32)
        error = np.square(_round(weights, scale) * scale - weights).sum(axis=others, keepdims=True, dtype=np.float64)
        best_scale = np.where(error < best_error, scale, best_scale)
        best_error = np.minimum(error, best_error)
    return _round(weights, best_scale).astype(np.int8), best_scale


def _round(weights: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.clip(np.round(weights / scale), -127, 127)


def _to_half(name: str, weights: np.ndarray) -> np.ndarray:
    if np.abs(weights).max() > np.finfo(np.float16).max:
        raise ValueError(f"{name} has a weight beyond the range of f16")
    return weights.astype(np.float16)


def _channel_axes(graph: onnx.GraphProto) -> dict[str, int]:
    """The axis of output channels of each initializer whose every use has one and the same."""
    uses: dict[str, set[int | None]] = {initializer.name: set() for initializer in graph.initializer}
    dimensions = {initializer.name: len(initializer.dims) for initializer in graph.initializer}
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name in uses:
                uses[name].add(_channel_axis(node, place, dimensions[name]))
    return {name: axes.pop() for name, axes in uses.items() if len(axes) == 1 and None not in axes}


def _channel_axis(node: onnx.NodeProto, place: int, dimensions: int) -> int | None:
    if node.op_type == "MatMul" and place == 1 and dimensions == 2:
        return 1
    if node.op_type == "Gemm" and place == 1:
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        return 0 if transposed else 1
    if node.op_type == "Gather" and place == 0 and dimensions == 2:
        return 0
    if node.op_type == "Conv" and place == 1:
        return 0
    return None
