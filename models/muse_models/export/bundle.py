"""Puts a bundle together from models in PyTorch."""

import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from ..reference.sampler import Settings
from ..text.encoder import T5Encoder
from ..transformer.model import MaskedTransformer
from . import graphs
from .manifest import write_manifest
from .onnx_file import export
from .storage import Precision


@dataclass(frozen=True)
class TextPart:
    """The text encoder and its tokenizer."""

    encoder: T5Encoder
    tokenizer: Tokenizer
    max_length: int
    length_buckets: list[int]
    precision: Precision = "f32"


@dataclass(frozen=True)
class StagePart:
    """A stage: its transformer and its image tokenizer."""

    model: MaskedTransformer
    tokenizer: nn.Module
    """Has `encode` (image [B, 3, H, W] to tokens) and `decode` (the inverse)."""
    images: Tensor
    """[2, 3, H, W] in 0…1: examples for the encoder; H and W are the stage's picture size."""
    defaults: Settings
    unconditional: str = "empty_text"
    null_embedding: np.ndarray | None = None
    """f32 [length, D], with `unconditional = "null_embedding"`."""
    precision: Precision = "f32"
    tokenizer_precision: Precision = "f32"


@dataclass(frozen=True)
class BundleParts:
    """Everything that a bundle is made of."""

    name: str
    version: str
    license: str
    description: str
    text: TextPart
    base: StagePart
    superres: StagePart | None = None
    report: list[str] = field(default_factory=list)
    """Filled by `write_bundle`: a line for each graph, with its size and its difference from PyTorch."""


def write_bundle(parts: BundleParts, folder: Path) -> None:
    """Writes the bundle into `folder`, which is replaced as a whole."""
    staging = folder.with_name(folder.name + ".partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    tables: dict[str, dict[str, Any]] = {
        "model": {
            "name": parts.name, "version": parts.version, "license": parts.license, "description": parts.description,
        },
        "text": _write_text(parts, staging),
    }
    text, text_mask = _example_text(parts.text)
    for name, stage in (("base", parts.base), ("superres", parts.superres)):
        if stage is not None:
            tables[name] = _write_stage(parts, name, stage, text, text_mask, staging)
    write_manifest(staging, tables)
    shutil.rmtree(folder, ignore_errors=True)
    staging.rename(folder)
    total = sum(path.stat().st_size for path in folder.iterdir())
    _say(parts, f"{folder}: {total / 1e6:.2f} MB in {len(list(folder.iterdir()))} files")


def _write_text(parts: BundleParts, folder: Path) -> dict[str, Any]:
    text = parts.text
    # The engine refuses what is too long and pads on its own.
    text.tokenizer.no_truncation()
    text.tokenizer.no_padding()
    text.tokenizer.save(str(folder / "tokenizer.json"))
    _write_graph(parts, "text_encoder.onnx", graphs.text_graph(text.encoder, text.max_length), text.precision, folder)
    return {
        "tokenizer": "tokenizer.json",
        "max_length": text.max_length,
        "pad_id": 0,
        "vocab_size": text.tokenizer.get_vocab_size(),
        "width": text.encoder.shape.width,
        "length_buckets": text.length_buckets,
        "encoder": "text_encoder.onnx",
    }


@torch.no_grad()
def _example_text(text: TextPart) -> tuple[Tensor, Tensor]:
    """Embeddings [2, L, D] and masks [2, L] to try the condition graphs on."""
    inputs = graphs.text_graph(text.encoder, text.max_length).inputs
    return text.encoder(inputs["input_ids"], inputs["attention_mask"]), inputs["attention_mask"]


def _write_stage(
    parts: BundleParts, name: str, stage: StagePart, text: Tensor, text_mask: Tensor, folder: Path
) -> dict[str, Any]:
    config = stage.model.config
    condition = graphs.condition_graph(stage.model, text, text_mask)
    step = graphs.step_graph(stage.model, condition)
    decoder = graphs.decoder_graph(stage.tokenizer, config.codebook_size, config.positions)
    encoder = graphs.encoder_graph(stage.tokenizer, stage.images)
    _write_graph(parts, f"{name}_condition.onnx", condition, stage.precision, folder)
    _write_graph(parts, f"{name}_step.onnx", step, stage.precision, folder)
    _write_graph(parts, f"{name}_decoder.onnx", decoder, stage.tokenizer_precision, folder)
    _write_graph(parts, f"{name}_encoder.onnx", encoder, stage.tokenizer_precision, folder)
    table: dict[str, Any] = {
        "grid": list(config.grid),
        "codebook_size": config.codebook_size,
        "vocab_size": config.vocab_size,
        "logits_size": config.logits_size,
        "mask_id": config.mask_id,
        "unconditional": stage.unconditional,
    }
    if stage.null_embedding is not None:
        table["null_embedding"] = f"{name}_null.npy"
        np.save(folder / f"{name}_null.npy", stage.null_embedding.astype(np.float32))
    table |= {part: f"{name}_{part}.onnx" for part in ("condition", "step", "decoder", "encoder")}
    table["image_size"] = list(stage.images.shape[2:])
    table["defaults"] = asdict(stage.defaults)
    return table


def _write_graph(parts: BundleParts, name: str, graph: graphs.Graph, precision: Precision, folder: Path) -> None:
    exact, stored = export(graph, folder / name, precision)
    size = (folder / name).stat().st_size
    line = f"{name:24} {precision:4} {size / 1e6:7.3f} MB  graph: {exact}"
    if precision != "f32":
        line += f";  with {precision} weights: {stored}"
    _say(parts, line)


def _say(parts: BundleParts, line: str) -> None:
    parts.report.append(line)
    print(line, flush=True)
