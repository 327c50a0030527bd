"""Reads checkpoints of others: safetensors and PyTorch files, whole or in shards, without loading what is not used."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

HEADER_LIMIT = 100_000_000
"""Most bytes that a safetensors header may claim to have (the format's own limit)."""

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}

_FOLDER_FILES = (
    "model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin",
)
"""Where a Hugging Face folder has its weights; the first that is there counts."""


class ForeignCheckpointError(ValueError):
    """A checkpoint that cannot be read, or holds what a bundle cannot express; one line that says which."""


def read_folder(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model as Hugging Face stores it, mapped into memory where the format allows."""
    for name in _FOLDER_FILES:
        path = folder / name
        if not path.is_file():
            continue
        return _read_shards(path) if name.endswith(".json") else read_file(path)
    raise ForeignCheckpointError(f"{folder} has none of {', '.join(_FOLDER_FILES)}")


def _read_shards(index: Path) -> dict[str, Tensor]:
    files = _json(index).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise ForeignCheckpointError(f"{index} has no weight_map")
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(files.values())):
        if not isinstance(file, str) or Path(file).name != file:
            raise ForeignCheckpointError(f"{index} names {file!r}, which is not a file beside it")
        tensors |= read_file(index.with_name(file))
    missing = sorted(set(files) - set(tensors))
    if missing:
        raise ForeignCheckpointError(f"{index} names {missing[0]}, which is in none of its files")
    return tensors


def read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of one file by name; of a PyTorch file with more in it, what `state_dict` picks."""
    if not path.is_file():
        raise ForeignCheckpointError(f"{path}: no such file")
    return read_safetensors(path) if path.suffix == ".safetensors" else state_dict(read_pickle(path), path)


def read_pickle(path: Path) -> Any:
    """What `torch.save` wrote: tensors and plain containers alone, nothing that would run code."""
    for mapped in (True, False):
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except Exception as error:  # torch.load has no error of its own; the old format cannot be mapped
            if not mapped:
                reason = str(error).strip().splitlines()[0]
                raise ForeignCheckpointError(f"{path} is not a PyTorch file of plain tensors: {reason}") from error
    raise AssertionError("unreachable")


def state_dict(saved: Any, path: Path) -> dict[str, Tensor]:
    """The tensors of a saved object: its own, or those under `model` or `state_dict`, where trainers put them."""
    for key in ("model", "state_dict"):
        if isinstance(saved, Mapping) and isinstance(saved.get(key), Mapping):
            saved = saved[key]
    if not isinstance(saved, Mapping):
        raise ForeignCheckpointError(f"{path} holds no state dict")
    tensors = {name: value for name, value in saved.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not tensors:
        raise ForeignCheckpointError(f"{path} holds no tensors")
    return tensors


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, mapped into memory: eight bytes of length, a JSON header, then the contents."""
    content = np.memmap(path, np.uint8, mode="c")
    length = int.from_bytes(content[:8].tobytes(), "little")
    if len(content) < 8 or length > min(HEADER_LIMIT, len(content) - 8):
        raise ForeignCheckpointError(f"{path} is not a safetensors file: it ends inside its header")
    try:
        header = json.loads(content[8 : 8 + length].tobytes())
        return {
            name: _mapped(content[8 + length :], entry)
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ForeignCheckpointError(f"{path} is not a safetensors file: {error!r}") from error


def _mapped(content: np.ndarray, entry: dict[str, Any]) -> Tensor:
    dtype, shape, (begin, end) = _DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
    count = int(np.prod(shape, dtype=np.int64))
    if not 0 <= begin <= end <= len(content) or end - begin != count * dtype.itemsize:
        raise ValueError(f"a tensor of shape {shape} at bytes {begin} to {end} of {len(content)}")
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(content[begin:end], dtype=dtype).reshape(shape)


def as_f32(tensors: dict[str, Tensor], scratch: Path) -> dict[str, Tensor]:
    """`tensors` in f32. Those of another type are widened into a nameless file in `scratch`, so that a model of more
    than memory holds can be read; those in f32 stay what they are."""
    others = {name: tensor for name, tensor in tensors.items() if tensor.dtype != torch.float32}
    total = sum(tensor.numel() for tensor in others.values())
    if total == 0:
        return tensors
    with tempfile.TemporaryFile(dir=scratch) as file:
        space = torch.from_numpy(np.memmap(file, np.float32, mode="w+", shape=(total,)))
    widened, start = {}, 0
    for name, tensor in others.items():
        place = space[start : start + tensor.numel()].view(tensor.shape)
        widened[name] = place.copy_(tensor)
        start += tensor.numel()
    return tensors | widened


def read_config(path: Path) -> dict[str, Any]:
    """A JSON file that holds a table."""
    values = _json(path)
    if not isinstance(values, dict):
        raise ForeignCheckpointError(f"{path} is not a table")
    return values


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ForeignCheckpointError(f"{path} cannot be read: {error}") from error
