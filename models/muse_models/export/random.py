"""Writes a bundle of random weights, of any size: `python -m muse_models.export.random --config FILE --out DIR`.

A configuration says every part's shape; `configs/random/` has the paper's base transformer, T5-XXL, and a small one. Such a
bundle is for measuring what a model of that size costs: it loads, runs and makes pictures of nothing.

The model is never in memory. It is traced from tensors that have a shape and no contents, and weights are drawn and
written one tensor after another, each from its own name and the seed, so that two bundles of one configuration hold the same
weights, in f32 or rounded to f16. While one is written, the next ones are drawn, by as many threads as there are cores. Weights above a limit lie in external data, as in every bundle.
"""

import argparse
import hashlib
import math
import os
import shutil
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ..reference.sampler import Settings
from ..text.encoder import EncoderShape, RootMeanSquareNorm, T5Encoder
from ..tokenizer.model import ImageTokenizer
from ..training.config import load_config
from ..transformer.config import TransformerConfig
from ..transformer.model import MaskedTransformer, build, nearest_cells
from . import graphs
from .bundle import BundleParts, StagePart, TextPart, manifest_tables, write_other_files
from .manifest import write_manifest
from .onnx_file import trace_apart
from .shapes import Shaped, trace_shapes
from .storage import EXTERNAL_ABOVE, PRECISIONS, Precision, Traced
from .tiny import PatchTokenizer, tiny_tokenizer

_EMBEDDINGS = 1.0
"""Standard deviation of a table of embeddings."""
_OTHERS = 0.7
"""Standard deviation of positions, position biases and keys that are learned as they stand."""
_LIVELY = 2.0
"""How much more than unit variance goes into the residual stream and into logits, for these to be spread like a trained
model's."""


_AHEAD = 2_000_000_000
"""Bytes of f32 weights that may be drawn before they are asked for."""


@dataclass(frozen=True)
class Drawn:
    """Weights that are drawn when they are asked for: mean + scale · N(0, 1), always the same."""

    weight: Shaped
    mean: float
    scale: float
    key: str
    """What the draw depends on: seed, file and name."""

    @property
    def shape(self) -> tuple[int, ...]:
        """As the graph reads it."""
        return self.weight.shape

    def numpy(self) -> np.ndarray:
        """The weights, f32, as the graph reads them."""
        if self.scale == 0:
            return np.full(self.shape, self.mean, np.float32)
        entropy = int.from_bytes(hashlib.sha256(self.key.encode()).digest(), "little")
        # All are alike, so that it does not matter which way they lie.
        values = np.random.Generator(np.random.SFC64(entropy)).standard_normal(self.shape, np.float32)
        values *= np.float32(self.scale)
        values += np.float32(self.mean)
        return values


class DrawnAhead:
    """One of several weights that are asked for once each and in order, by `numpy()`: asking for one has the next ones drawn."""

    def __init__(self, drawn: Drawn, queue: "_Queue") -> None:
        self._drawn = drawn
        self._queue = queue

    @property
    def shape(self) -> tuple[int, ...]:
        """As the graph reads it."""
        return self._drawn.shape

    def numpy(self) -> np.ndarray:
        """The weights, f32, as the graph reads them."""
        return self._queue.take(self._drawn)


class _Queue:
    """Weights that threads draw, some ahead of who takes them."""

    def __init__(self, weights: list[Drawn], pool: ThreadPoolExecutor) -> None:
        self._waiting = deque(weights)
        self._pool = pool
        self._begun: deque[tuple[Drawn, Future[np.ndarray]]] = deque()

    def take(self, weight: Drawn) -> np.ndarray:
        self._begin()
        expected, drawn = self._begun.popleft()
        if expected is not weight:
            raise ValueError(f"{weight.key} is asked for out of turn")
        values = drawn.result()
        self._begin()
        return values

    def _begin(self) -> None:
        ahead = sum(4 * math.prod(weight.shape) for weight, _ in self._begun)
        while self._waiting and (not self._begun or ahead < _AHEAD):
            weight = self._waiting.popleft()
            ahead += 4 * math.prod(weight.shape)
            self._begun.append((weight, self._pool.submit(weight.numpy)))


def _ahead(weights: dict[str, Any], pool: ThreadPoolExecutor) -> dict[str, Any]:
    queue = _Queue([weight for weight in weights.values() if isinstance(weight, Drawn)], pool)
    return {
        name: DrawnAhead(weight, queue) if isinstance(weight, Drawn) else weight for name, weight in weights.items()
    }


def write_random_bundle(
    config: dict[str, Any],
    folder: Path,
    precision: Precision | None = None,
    seed: int = 0,
    external_above: int = EXTERNAL_ABOVE,
) -> None:
    """Writes the bundle that `config` describes into `folder`, which is replaced as a whole.

    `precision` takes the place of the configuration's for text encoder and transformers. Raises `ValueError` for shapes
    that cannot be or do not fit together.
    """
    # What is made inside has a shape and no contents.
    shapes_only = FakeTensorMode(allow_non_fake_inputs=True)
    torch.manual_seed(seed)
    parts = _parts(config, precision, shapes_only)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with shapes_only:
        large = list(_large_graphs(parts))
    with ThreadPoolExecutor(os.cpu_count(), "draw") as pool:
        for name, graph, stored in large:
            traced = trace_shapes(graph, shapes_only)
            weights = _ahead(dict(_drawn(f"{seed}/{name}", graph.module, traced.weights)), pool)
            _write(Traced(traced.model, weights), partial / name, stored, external_above)
    for name, graph, stored in _small_graphs(parts):
        _write(trace_apart(graph), partial / name, stored, external_above)
    write_other_files(parts, partial)
    write_manifest(partial, manifest_tables(parts))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _write(traced: Traced, path: Path, precision: Precision, external_above: int) -> None:
    size = traced.write(path, precision, external_above)
    onnx.checker.check_model(str(path))
    count = sum(math.prod(weight.shape) for weight in traced.weights.values())
    print(f"{path.name:24} {precision:4} {count / 1e6:9.2f} M weights {size / 1e6:9.2f} MB", flush=True)


def _parts(config: dict[str, Any], precision: Precision | None, shapes_only: FakeTensorMode) -> BundleParts:
    """The bundle's parts: text encoder and transformers without contents, image tokenizers with."""
    text, stored = config["text"], config["weights"]
    shape = EncoderShape(**text["model"])
    tokenizer = tiny_tokenizer()
    if tokenizer.get_vocab_size() > shape.vocabulary:
        raise ValueError(f"text.model.vocabulary: the tokenizer knows {tokenizer.get_vocab_size()} tokens")
    with shapes_only:
        encoder = T5Encoder(shape).requires_grad_(False).eval()
    part = TextPart(encoder, tokenizer, text["max_length"], text["length_buckets"], precision or stored["text"])
    base = _stage(config["base"], shape.width, precision, stored, shapes_only)
    superres = None
    if "superres" in config:
        superres = _stage(config["superres"], shape.width, precision, stored, shapes_only)
        if superres.model.config.low_grid != base.model.config.grid:
            raise ValueError("superres.model.low_grid is not base.model.grid")
    return BundleParts(**config["model"], text=part, base=base, superres=superres)


def _stage(
    table: dict[str, Any], text_width: int, precision: Precision | None, stored: dict[str, Any], mode: FakeTensorMode
) -> StagePart:
    config = TransformerConfig.from_dict({**table["model"], "text_width": text_width})
    with mode:
        model = build(config).requires_grad_(False).eval()
    if config.low_grid is not None:
        # Indices are no weights: they must be what they are.
        model.low_cell = nearest_cells(config.state_grid, config.low_grid)
    tokenizer = _image_tokenizer(table["tokenizer"], config)
    with torch.no_grad():
        images = tokenizer.decode(torch.randint(0, config.codebook_size, (2, config.positions)))
    return StagePart(
        model, tokenizer, images, Settings(**table["defaults"]), table["unconditional"],
        precision=precision or stored["transformers"], tokenizer_precision=stored["tokenizers"],
    )


def _image_tokenizer(table: dict[str, Any], config: TransformerConfig) -> nn.Module:
    """Patches of pixels, or this project's convolutional tokenizer."""
    if "patch" in table:
        rows, columns = config.grid
        size = (rows * table["patch"], columns * table["patch"])
        return PatchTokenizer(config.codebook_size, table["patch"], size).requires_grad_(False).eval()
    tokenizer = ImageTokenizer.from_config({"model": table}).requires_grad_(False).eval()
    codes, side = table["levels"] ** table["dimensions"], tokenizer.grid_side
    if codes != config.codebook_size or config.grid != (side, side):
        raise ValueError(f"a tokenizer of {side} x {side} tokens and {codes} codes does not fit its transformer")
    return tokenizer


def _large_graphs(parts: BundleParts) -> Iterator[tuple[str, graphs.Graph, Precision]]:
    """File name, graph and precision of the text encoder and of the transformers."""
    text = graphs.text_graph(parts.text.encoder, parts.text.max_length)
    yield "text_encoder.onnx", text, parts.text.precision
    with torch.no_grad():
        embedding = parts.text.encoder(*text.inputs.values())
    for name, stage in parts.stages.items():
        condition = graphs.condition_graph(stage.model, embedding, text.inputs["attention_mask"])
        yield f"{name}_condition.onnx", condition, stage.precision
        yield f"{name}_step.onnx", graphs.step_graph(stage.model, condition), stage.precision


def _small_graphs(parts: BundleParts) -> Iterator[tuple[str, graphs.Graph, Precision]]:
    """The same of the image tokenizers."""
    for name, stage in parts.stages.items():
        shape = stage.model.config
        decoder = graphs.decoder_graph(stage.tokenizer, shape.codebook_size, shape.positions)
        yield f"{name}_decoder.onnx", decoder, stage.tokenizer_precision
        yield f"{name}_encoder.onnx", graphs.encoder_graph(stage.tokenizer, stage.images), stage.tokenizer_precision


def _drawn(key: str, module: nn.Module, weights: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """`weights`, those without contents to be drawn; what was computed at export has contents, and stays."""
    owners = dict(module.named_modules())
    for name, weight in weights.items():
        if isinstance(weight, Shaped):
            owner = owners[weight.parameter.rpartition(".")[0]]
            mean, scale = _distribution(weight.parameter, owner, module)
            yield name, Drawn(weight, mean, scale, f"{key}/{weight.parameter}")
        else:
            yield name, weight


def _distribution(name: str, owner: nn.Module, module: nn.Module) -> tuple[float, float]:
    """Mean and standard deviation of the weights `name`, which belong to `owner`, a part of `module`.

    States keep about unit variance through any number of layers, and logits are spread like a trained model's.
    """
    if isinstance(owner, (nn.LayerNorm, RootMeanSquareNorm)):
        return 1.0, 0.0
    if isinstance(owner, nn.Embedding):
        return 0.0, _EMBEDDINGS
    if not isinstance(owner, nn.Linear):
        return 0.0, _OTHERS
    scale = owner.in_features**-0.5
    if name.endswith(".query.weight") and isinstance(module, graphs.TextEncoderGraph):
        # T5 does not scale its attention.
        return 0.0, scale * (owner.out_features / module.layers[0].heads) ** -0.5
    if name.endswith((".out.weight", "low_to_high.weight")):
        layers = next(part.config.layers for part in module.modules() if isinstance(part, MaskedTransformer))
        return 0.0, scale * _LIVELY / math.sqrt(3 * layers)
    return 0.0, scale * (_LIVELY if name.endswith("head.weight") else 1.0)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="muse_models.export.random", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, required=True, help="shapes, as configs/random/*.toml")
    parser.add_argument("--out", type=Path, required=True, help="folder of the bundle; replaced")
    parser.add_argument("--precision", choices=PRECISIONS,
                        help="of text encoder and transformers, instead of the configuration's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--external-above", type=int, default=EXTERNAL_ABOVE, metavar="BYTES",
                        help="weights of a graph go into a file of their own above this (%(default)s)")
    arguments = parser.parse_args(argv)
    try:
        write_random_bundle(
            load_config(arguments.config), arguments.out, arguments.precision, arguments.seed, arguments.external_above
        )
    except (FileNotFoundError, TypeError, KeyError, ValueError) as error:
        print(f"random: {arguments.config}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
