"""Traces graphs whose weights have a shape and no contents, as PyTorch makes them in a `FakeTensorMode`."""

import logging
from collections import Counter
from dataclasses import dataclass
from typing import Any

import onnx
from onnxscript import optimizer
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from .graphs import Graph
from .onnx_file import apart, exported
from .storage import Traced


@dataclass(frozen=True)
class Shaped:
    """A weight without contents."""

    parameter: str
    """Its name in the module."""
    parameter_shape: tuple[int, ...]
    """Its shape there."""
    permutation: tuple[int, ...]
    """What the graph reads is transposed by this."""

    @property
    def shape(self) -> tuple[int, ...]:
        """As the graph reads it."""
        return tuple(self.parameter_shape[axis] for axis in self.permutation)


def trace_shapes(graph: Graph, shapes_only: FakeTensorMode) -> Traced:
    """The ONNX model of `graph` and its weights, apart: `Shaped` where there are no contents.

    `shapes_only` is what the module was made in. Raises `ValueError` if something other than floating-point parameters has
    no contents.
    """
    with shapes_only:
        program = exported(graph, optimize=False)
    weights: dict[str, Any] = {}
    for name, value in program.model.graph.initializers.items():
        if isinstance(getattr(value.const_value, "raw", None), FakeTensor):
            if not value.const_value.raw.is_floating_point():
                raise ValueError(f"{name} is not a weight, and has no contents")
            shape = tuple(value.const_value.shape)
            weights[name] = Shaped(name, shape, tuple(range(len(shape))))
            # The optimiser computes with what it takes for a constant.
            value.const_value = None
    # It warns of every weight that it cannot look into.
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    optimizer.optimize_ir(program.model)
    # Others may be new: what the optimiser computed from the contents that there are.
    for name, value in program.model.graph.initializers.items():
        weights.setdefault(name, value.const_value)
    traced = apart(graph, program, weights)
    _fold_transpositions(traced.model.graph, traced.weights)
    return traced


def _fold_transpositions(graph: onnx.GraphProto, weights: dict[str, Any]) -> None:
    """Takes out `Transpose` nodes over weights: the weights are stored transposed, as the exporter does it."""
    uses = Counter(name for node in graph.node for name in node.input)
    new_names: dict[str, str] = {}
    kept = []
    for node in graph.node:
        weight = weights.get(node.input[0]) if node.op_type == "Transpose" else None
        if isinstance(weight, Shaped) and uses[node.input[0]] == 1:
            (order,) = (attribute.ints for attribute in node.attribute if attribute.name == "perm")
            permutation = tuple(weight.permutation[axis] for axis in order)
            weights[node.input[0]] = Shaped(weight.parameter, weight.parameter_shape, permutation)
            new_names[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    for node in kept:
        node.input[:] = [new_names.get(name, name) for name in node.input]
    del graph.node[:]
    graph.node.extend(kept)
