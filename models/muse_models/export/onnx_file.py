"""Traces a module into an ONNX file and checks it against PyTorch on ONNX Runtime."""

import logging
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from .graphs import Graph
from .storage import EXTERNAL_ABOVE, Precision, Traced

OPSET = 20
IR_VERSION = 10
TOLERANCE = 1e-3
"""Most that an exported graph with f32 weights may be off: of an output's spread, or of its integers."""

_OUTSIDE = "outside."
"""Prefix of the names of inputs and outputs while a graph is traced."""


@dataclass(frozen=True)
class Difference:
    """How far an exported graph is from PyTorch on the example inputs, over all its outputs."""

    worst: float
    """Largest absolute difference of a floating-point output."""
    root_mean_square: float
    """Root of the mean squared difference of the floating-point output that is furthest off."""
    spread: float
    """Standard deviation of that output in PyTorch: what the differences are to be measured by."""
    equal: float
    """Share of equal elements over integer outputs; 1 if there are none."""
    same_best: float | None = None
    """With `logits`: share of positions whose likeliest token is the same."""

    def __str__(self) -> str:
        if self.spread == 0:
            return f"equal {self.equal:.4%}"
        line = f"worst {self.worst:.1e}, rms {self.root_mean_square:.1e} at a spread of {self.spread:.2f}"
        return line if self.same_best is None else f"{line}, likeliest token the same at {self.same_best:.2%}"


def export(
    graph: Graph, path: Path, precision: Precision, external_above: int = EXTERNAL_ABOVE
) -> tuple[Difference, Difference]:
    """Writes `graph` to `path` with weights stored in `precision`.

    Returns how far it is from PyTorch with f32 weights (the exporter's error) and as written (storage included).
    Raises `ValueError` if the first is more than rounding explains.
    """
    traced = trace_apart(graph)
    exact = compare_exact(graph, traced, path, external_above)
    traced.write(path, precision, external_above)
    onnx.checker.check_model(str(path))
    return exact, exact if precision == "f32" else compare(graph, path)


def compare_exact(graph: Graph, traced: Traced, path: Path, external_above: int = EXTERNAL_ABOVE) -> Difference:
    """How far `graph` with f32 weights is from PyTorch; `path` is where it will lie, and its folder has room for them.

    Raises `ValueError` if that is more than rounding explains.
    """
    with tempfile.TemporaryDirectory(prefix=".exact-", dir=path.parent) as folder:
        traced.write(Path(folder) / path.name, "f32", external_above)
        exact = compare(graph, Path(folder) / path.name)
    if exact.worst > TOLERANCE * max(1.0, exact.spread) or exact.equal < 1 - TOLERANCE:
        raise ValueError(f"{path.name} is not what PyTorch computes: {exact}")
    return exact


def trace(graph: Graph) -> onnx.ModelProto:
    """The ONNX model of `graph` with f32 weights, in memory; only for graphs below 2 GiB."""
    return trace_apart(graph).proto()


def trace_apart(graph: Graph) -> Traced:
    """The ONNX model of `graph` and its f32 weights, apart."""
    program = exported(graph, optimize=True)
    weights = {name: value.const_value for name, value in program.model.graph.initializers.items()}
    return apart(graph, program, weights)


def exported(graph: Graph, optimize: bool) -> torch.onnx.ONNXProgram:
    """The exporter's program of `graph`; give its parts their names with `apart`."""
    length = torch.export.Dim("L", max=1 << 16)
    first = {name: torch.export.Dim(name) for name in {"B", *graph.first_axes.values()}}
    axes = tuple(
        {0: first[graph.first_axes.get(name, "B")]} | ({1: length} if name in graph.length_axis else {})
        for name in graph.inputs
    )
    # A module that takes *inputs has one parameter, and the shapes of one parameter are nested once more.
    nested = graph.module.forward.__code__.co_flags & 0x04
    named = graph.module.forward.__code__.co_argcount - 1
    shapes = (*axes[:named], axes[named:]) if nested else axes
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.onnx.export(
            graph.module.eval(),
            tuple(graph.inputs.values()),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=shapes,
            # The exporter does not look whether a value inside already has one of these names.
            input_names=[_OUTSIDE + name for name in graph.inputs],
            output_names=[_OUTSIDE + name for name in graph.outputs],
            verbose=False,
            optimize=optimize,
        )


def apart(graph: Graph, program: torch.onnx.ONNXProgram, weights: dict[str, Any]) -> Traced:
    """The model of an exported `program` without its initializers, which are `weights`. `program` is used up."""
    program.model.graph.initializers.clear()
    model = program.model_proto
    _strip(model)
    names = _rename(model, [*graph.inputs, *graph.outputs])
    model.ir_version = IR_VERSION
    return Traced(model, {names.get(name, name): weight for name, weight in weights.items()})


def _rename(model: onnx.ModelProto, outside: list[str]) -> dict[str, str]:
    """Gives inputs and outputs their names, and a value inside with one of those another; returns new names by old."""
    names = {_OUTSIDE + name: name for name in outside} | {name: f"{name}.inside" for name in outside}
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for part in (*model.graph.input, *model.graph.output):
        part.name = names.get(part.name, part.name)
    return names


def _strip(model: onnx.ModelProto) -> None:
    """Drops what the exporter writes for debugging: stack traces on every node, and inner shapes."""
    model.doc_string = ""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    for part in (*model.graph.node, *model.graph.input, *model.graph.output):
        part.doc_string = ""
        del part.metadata_props[:]


def session(model: onnx.ModelProto | Path) -> onnxruntime.InferenceSession:
    """A one-thread CPU session."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def compare(graph: Graph, model: onnx.ModelProto | Path) -> Difference:
    """`model` on ONNX Runtime against PyTorch, on the example inputs, output by output."""
    with torch.no_grad():
        expected = graph.module(*graph.inputs.values())
    expected = expected if isinstance(expected, tuple) else (expected,)
    actual = session(model).run(graph.outputs, {name: value.numpy() for name, value in graph.inputs.items()})
    worst, root_mean_square, spread, equal, same_best = 0.0, 0.0, 0.0, 1.0, None
    for name, here, there in zip(graph.outputs, (value.numpy() for value in expected), actual, strict=True):
        if not np.issubdtype(here.dtype, np.floating):
            equal = min(equal, float(np.mean(there == here)))
            continue
        off = there.astype(np.float64) - here
        if not np.isfinite(off).all():
            raise ValueError(f"{name} is not finite in ONNX Runtime or in PyTorch")
        worst = max(worst, float(np.abs(off).max()))
        found = float(np.sqrt(np.mean(off**2)))
        if spread == 0 or found > root_mean_square:
            root_mean_square, spread = found, float(here.std())
        if name == "logits":
            same_best = float(np.mean(there.argmax(axis=-1) == here.argmax(axis=-1)))
    return Difference(worst, root_mean_square, spread, equal, same_best)
