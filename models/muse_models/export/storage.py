"""How weights lie in an ONNX file: f32, f16, or int8 with a scale for each output channel; inside or beside the file.

Smaller weights are widened by `Cast` and `Mul` nodes over constants. ONNX Runtime folds those when it loads the file,
so all arithmetic is f32, as fast as with f32 weights, and a row's result does not depend on the rows beside it.
(With dynamic int8 arithmetic it would: its activation scale spans the batch.)

An ONNX file ends at 2 GiB. Above a limit, weights lie in a file of their own next to it (ONNX's external data). They are
converted and written one tensor at a time, so that a model may be larger than memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Precision = Literal["f32", "f16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("f32", "f16", "int8")

SMALLEST = 1024
"""Elements below which an initializer stays f32, and in the file: norms and biases matter much and weigh little."""

EXTERNAL_ABOVE = 1_500_000_000
"""Bytes of weights above which they lie beside the ONNX file, by default. Protocol buffers end at 2 GiB."""

_ALIGNMENT = 4096
"""External tensors start at a multiple of this, so that they can be mapped into memory."""

_CLIPPING = np.linspace(0.7, 1.0, 16)
"""Shares of a channel's largest weight that are tried as its int8 range."""

_KEPT_ROUNDING = 2e-3
"""Most that a weight may be off one that is kept, of its largest value: sums of positions are stored as f16."""

_BYTES = {"f32": 4, "f16": 2, "int8": 1}


@dataclass(frozen=True)
class Traced:
    """A graph and its weights, apart: the weights of a large model are read only when they are written."""

    model: onnx.ModelProto
    """Without initializers."""
    weights: dict[str, Any]
    """Initializers by name; each has `shape` and `numpy()` (f32, or what the graph's constants are)."""

    def proto(self, precision: Precision = "f32") -> onnx.ModelProto:
        """The whole model in memory; only for graphs below 2 GiB."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        _fill(model, _stored(self, precision), None)
        return model

    def write(
        self, path: Path, precision: Precision, external_above: int = EXTERNAL_ABOVE, kept: "Kept | None" = None
    ) -> int:
        """Writes the model to `path`, its weights to `path` + `.data` if they take more than `external_above` bytes.

        Weights that `kept` holds are stored as they are there. Returns how many bytes the files take.
        """
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        beside = path.with_name(path.name + ".data")
        size = sum(_size(weights, precision) for weights in self.weights.values())
        if size <= external_above:
            _fill(model, _stored(self, precision, kept), None)
            onnx.save(model, path)
            return path.stat().st_size
        with beside.open("wb") as file:
            _fill(model, _stored(self, precision, kept), file)
        onnx.save(model, path)
        return path.stat().st_size + beside.stat().st_size


@dataclass(frozen=True)
class _Stored:
    """One initializer as it is stored: tensors, and the nodes that widen them into what the graph reads."""

    tensors: list[tuple[str, np.ndarray]]
    widening: list[onnx.NodeProto]


class Kept:
    """The weights of an ONNX file in the form that they are stored in, found by what they are once widened.

    Rounding what was rounded already moves a scale by a unit in the last place, and a bundle that is only to get other
    graphs would get other weights with them.
    """

    def __init__(self, path: Path) -> None:
        arrays = {part.name: numpy_helper.to_array(part) for part in onnx.load(path).graph.initializer}
        self._found: list[tuple[np.ndarray, dict[str, np.ndarray]]] = []
        for name, values in arrays.items():
            if name.endswith(".int8"):
                scale = arrays[name.removesuffix(".int8") + ".scale"]
                self._found.append((values.astype(np.float32) * scale, {".int8": values, ".scale": scale}))
            elif name.endswith(".f16"):
                self._found.append((values.astype(np.float32), {".f16": values}))

    def like(self, weights: np.ndarray) -> dict[str, np.ndarray] | None:
        """The stored tensors, by the ending of their names, of the one weight that `weights` are but for a rounding."""
        near = [
            stored for wide, stored in self._found
            if wide.shape == weights.shape and np.abs(wide - weights).max() <= _KEPT_ROUNDING * np.abs(wide).max()
        ]
        if len(near) > 1:
            raise ValueError(f"{len(near)} stored weights of shape {list(weights.shape)} are alike")
        return near[0] if near else None


def _stored(traced: Traced, precision: Precision, kept: Kept | None = None) -> Iterator[_Stored]:
    """The weights one after another.

    With int8, matrices of products, tables of lookups and kernels of convolutions become int8; other tensors f16.
    """
    dimensions = {name: len(weights.shape) for name, weights in traced.weights.items()}
    axes = _channel_axes(traced.model.graph, dimensions) if precision == "int8" else {}
    for name, tensor in traced.weights.items():
        weights = np.ascontiguousarray(tensor.numpy()).reshape(tuple(tensor.shape))
        if precision == "f32" or weights.dtype != np.float32 or weights.size < SMALLEST:
            yield _Stored([(name, weights)], [])
            continue
        tensors = kept.like(weights) if kept else None
        if tensors is None and name in axes:
            tensors = dict(zip((".int8", ".scale"), quantise(weights, axes[name]), strict=True))
        elif tensors is None:
            tensors = {".f16": _to_half(name, weights)}
        if ".int8" in tensors:
            widening = [
                helper.make_node("Cast", [f"{name}.int8"], [f"{name}.wide"], to=TensorProto.FLOAT),
                helper.make_node("Mul", [f"{name}.wide", f"{name}.scale"], [name]),
            ]
        else:
            widening = [helper.make_node("Cast", [f"{name}.f16"], [name], to=TensorProto.FLOAT)]
        yield _Stored([(name + ending, values) for ending, values in tensors.items()], widening)


def _size(weights: Any, precision: Precision) -> int:
    """Bytes that an initializer takes when stored, about: scales and what stays f32 beside int8 are not told apart."""
    count = int(np.prod(tuple(weights.shape)))
    return count * (4 if count < SMALLEST else _BYTES[precision])


def _fill(model: onnx.ModelProto, stored: Iterator[_Stored], file: BinaryIO | None) -> None:
    """Puts initializers and widening nodes into `model`; with `file`, the large tensors' contents go there."""
    graph = model.graph
    nodes = list(graph.node)
    del graph.node[:]
    for part in stored:
        for name, values in part.tensors:
            large = file is not None and values.size >= SMALLEST
            graph.initializer.append(_external(name, values, file) if large else numpy_helper.from_array(values, name))
        graph.node.extend(part.widening)
    graph.node.extend(nodes)


def _external(name: str, values: np.ndarray, file: BinaryIO) -> TensorProto:
    """Appends `values` to `file`; the tensor that says where they lie. `file` is next to the model."""
    offset = -(-file.tell() // _ALIGNMENT) * _ALIGNMENT
    file.seek(offset)
    file.write(memoryview(values.reshape(-1)).cast("B"))
    proto = TensorProto(
        name=name,
        dims=values.shape,
        data_type=helper.np_dtype_to_tensor_dtype(values.dtype),
        data_location=TensorProto.EXTERNAL,
    )
    places = {"location": Path(file.name).name, "offset": str(offset), "length": str(values.nbytes)}
    for key, value in places.items():
        proto.external_data.add(key=key, value=value)
    return proto


class BesideFile:
    """Reads a graph's external data, a tensor at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def array(self, tensor: TensorProto) -> np.ndarray:
        """The tensor's values. Raises `ValueError` if they lie elsewhere."""
        places = {entry.key: entry.value for entry in tensor.external_data}
        if places.get("location") != self._path.name:
            raise ValueError(f"{tensor.name} lies in {places.get('location')}, not in {self._path.name}")
        kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        count = int(np.prod(tuple(tensor.dims)))
        values = np.fromfile(self._path, kind, count, offset=int(places.get("offset", "0")))
        return values.reshape(tuple(tensor.dims))


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
    if max(weights.max(), -weights.min()) > np.finfo(np.float16).max:
        raise ValueError(f"{name} has a weight beyond the range of f16")
    return weights.astype(np.float16)


def _channel_axes(graph: onnx.GraphProto, dimensions: dict[str, int]) -> dict[str, int]:
    """The axis of output channels of each initializer (`dimensions` has all) whose every use has one and the same."""
    uses: dict[str, set[int | None]] = {name: set() for name in dimensions}
    # A matrix that is cut into groups of rows has the columns of its parts.
    whole = {part: node.input[0] for node in graph.node if _cuts_rows(node, dimensions) for part in node.output}
    for node in graph.node:
        for place, name in enumerate(node.input):
            own = whole.get(name, name)
            if own in uses and not _cuts_rows(node, dimensions):
                uses[own].add(_channel_axis(node, place, dimensions[own]))
    return {name: axes.pop() for name, axes in uses.items() if len(axes) == 1 and None not in axes}


def _cuts_rows(node: onnx.NodeProto, dimensions: dict[str, int]) -> bool:
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
    return node.op_type == "Split" and axis == 0 and dimensions.get(node.input[0]) == 2


def _channel_axis(node: onnx.NodeProto, place: int, dimensions: int) -> int | None:
    if node.op_type == "MatMul" and dimensions == 2:
        return place
    if node.op_type == "Gemm" and place == 1:
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        return 0 if transposed else 1
    if node.op_type == "Gather" and place == 0 and dimensions == 2:
        return 0
    if node.op_type in ("Conv", "ConvTranspose") and place == 1:
        return 0 if node.op_type == "Conv" else 1
    return None
