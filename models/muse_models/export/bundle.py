"""Writes bundles from models in PyTorch: one, or several that differ in how weights are stored."""

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from . import graphs
from .manifest import write_manifest
from .onnx_file import Difference, compare, compare_exact, trace_apart
from .parts import BundleParts, StagePart, TextPart
from .storage import EXTERNAL_ABOVE, Kept, Precision

__all__ = [
    "BundleParts", "GraphReport", "StagePart", "TextPart", "Writing", "bundle_graphs", "manifest_tables", "write_bundle",
    "write_bundles", "write_other_files",
]


@dataclass(frozen=True)
class GraphReport:
    """What became of one graph of one bundle."""

    file: str
    precision: Precision
    size: int
    """Bytes, external data included."""
    exact: Difference | None
    """From PyTorch, with f32 weights: the exporter's error. None if that was not compared."""
    stored: Difference | None
    """From PyTorch, as written."""

    def __str__(self) -> str:
        line = f"{self.file:24} {self.precision:4} {self.size / 1e6:7.3f} MB"
        if self.exact is not None:
            line += f"  graph: {self.exact}"
        if self.stored is not None and self.precision != "f32":
            line += f";  with {self.precision} weights: {self.stored}"
        return line if self.stored is not None else line + "  not compared"


@dataclass(frozen=True)
class Writing:
    """How bundles are written."""

    external_above: int = EXTERNAL_ABOVE
    """Bytes of weights above which a graph's weights lie in a file of their own."""
    compare: bool = True
    """Whether graphs are compared with PyTorch. That takes memory for the model twice, and disk for its f32 weights."""
    keep: Path | None = None
    """A bundle whose weights, where they are the same but for a rounding, are taken in the form that they have there."""


def write_bundle(parts: BundleParts, folder: Path, writing: Writing = Writing()) -> list[GraphReport]:
    """Writes the bundle into `folder`, which is replaced as a whole; a report for each graph."""
    return write_bundles(parts, {folder: None}, writing)[folder]


def write_bundles(
    parts: BundleParts, folders: dict[Path, Precision | None], writing: Writing = Writing()
) -> dict[Path, list[GraphReport]]:
    """Writes a bundle into each of `folders`, with all weights in the precision given, or in each part's own if None.

    Each graph is traced once, and compared with PyTorch once for each way of storing it. A folder is replaced as a
    whole, after everything in it was written.
    """
    staging = {folder: folder.with_name(folder.name + ".partial") for folder in folders}
    for partial in staging.values():
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    reports: dict[Path, list[GraphReport]] = {folder: [] for folder in folders}
    for name, graph, own in bundle_graphs(parts):
        traced = trace_apart(graph)
        exact: Difference | None = None
        for folder, precision in folders.items():
            path, chosen = staging[folder] / name, precision or own
            if writing.compare and exact is None:
                exact = compare_exact(graph, traced, path, writing.external_above)
            kept = Kept(writing.keep / name) if writing.keep else None
            size = traced.write(path, chosen, writing.external_above, kept)
            onnx.checker.check_model(str(path))
            stored = exact if chosen == "f32" or exact is None else compare(graph, path)
            report = GraphReport(name, chosen, size, exact, stored)
            print(report, flush=True)
            reports[folder].append(report)
    tables = manifest_tables(parts)
    for folder, partial in staging.items():
        write_other_files(parts, partial)
        write_manifest(partial, tables)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        sizes = [path.stat().st_size for path in folder.iterdir()]
        print(f"{folder}: {sum(sizes) / 1e6:.2f} MB in {len(sizes)} files", flush=True)
    return reports


def bundle_graphs(parts: BundleParts) -> Iterator[tuple[str, graphs.Graph, Precision]]:
    """Every graph of a bundle: file name, graph, and the precision of its part."""
    text_graph = graphs.text_graph(parts.text.encoder, parts.text.max_length)
    yield "text_encoder.onnx", text_graph, parts.text.precision
    text, text_mask = _example_text(parts.text, text_graph)
    for name, stage in parts.stages.items():
        config = stage.model.config
        condition = graphs.condition_graph(stage.model, text, text_mask)
        yield f"{name}_condition.onnx", condition, stage.precision
        step = graphs.step_graph(stage.model, condition, stage.whole_step)
        yield f"{name}_step.onnx", step, stage.precision
        decoder = graphs.decoder_graph(stage.tokenizer, config.codebook_size, config.positions)
        yield f"{name}_decoder.onnx", decoder, stage.tokenizer_precision
        yield f"{name}_encoder.onnx", graphs.encoder_graph(stage.tokenizer, stage.images), stage.tokenizer_precision


@torch.no_grad()
def _example_text(text: TextPart, graph: graphs.Graph) -> tuple[Tensor, Tensor]:
    """Embeddings [2, L, D] and masks [2, L] to try the condition graphs on."""
    return text.encoder(*graph.inputs.values()), graph.inputs["attention_mask"]


def write_other_files(parts: BundleParts, folder: Path) -> None:
    """Writes what is no graph and not the manifest: the tokenizer, and null embeddings."""
    tokenizer = parts.text.tokenizer
    # The engine refuses what is too long and pads on its own.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, stage in parts.stages.items():
        if stage.null_embedding is not None:
            np.save(folder / f"{name}_null.npy", stage.null_embedding.astype(np.float32))


def manifest_tables(parts: BundleParts) -> dict[str, dict[str, Any]]:
    """The manifest but for the list of files."""
    text = parts.text
    tables: dict[str, dict[str, Any]] = {
        "model": {
            "name": parts.name, "version": parts.version, "license": parts.license, "description": parts.description,
        },
        "text": {
            "tokenizer": "tokenizer.json",
            "max_length": text.max_length,
            "pad_id": 0,
            "vocab_size": text.tokenizer.get_vocab_size(),
            "width": text.encoder.shape.width,
            "length_buckets": text.length_buckets,
            "encoder": "text_encoder.onnx",
        },
    }
    return tables | {name: _stage_table(name, stage) for name, stage in parts.stages.items()}


def _stage_table(name: str, stage: StagePart) -> dict[str, Any]:
    config = stage.model.config
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
    table |= {part: f"{name}_{part}.onnx" for part in ("condition", "step", "decoder", "encoder")}
    table["image_size"] = list(stage.images.shape[2:])
    table["defaults"] = asdict(stage.defaults)
    return table
