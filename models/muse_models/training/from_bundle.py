"""Turns a bundle back into checkpoints: `python -m muse_models.training.from_bundle --bundle ../bundles/demo`.

Anyone can then go on training from a bundle: every part's checkpoint lies in the work directory where its command and
the export look for it, with the bundle's weights (as rounded when they were stored), a fresh optimiser, and no minutes
spent. Which initializer of a graph is which parameter is found out, not assumed: the parts are built from `configs/`,
filled with random numbers and exported in memory, and each initializer of that graph is compared with every parameter.
At the end the restored parts are run in PyTorch against ONNX Runtime on the bundle's own files.
"""

import argparse
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

from ..export import graphs
from ..export.graphs import Graph
from ..export.onnx_file import Difference, compare, trace
from ..text.encoder import RelativePositions, T5Encoder
from ..tokenizer.model import ImageTokenizer
from ..transformer.config import TransformerConfig
from ..transformer.layers import GridPositions
from ..transformer.model import build
from . import checkpoint
from .config import default_work_dir, load_config

CONFIG_DIR = Path(__file__).resolve().parents[2] / "configs"
TOLERANCE = 2e-3
"""Most that a restored part may be off, of an output's spread. Position biases and sums of position vectors are stored
as f16 and taken apart again, which costs a rounding."""
LEAST_EQUAL_TOKENS = 0.99
"""Smallest share of an encoder's tokens that must be the bundle's own."""

_FORMS: tuple[tuple[str, Callable[[np.ndarray], np.ndarray]], ...] = (
    ("as it is", lambda values: values),
    ("transposed", np.transpose),
    ("as a column of channels", lambda values: values.reshape(1, -1, 1, 1)),
)


class BundleMismatch(ValueError):
    """A bundle that does not hold what the configuration describes."""


def stored_weights(path: Path) -> dict[str, np.ndarray]:
    """The floating-point initializers of an ONNX file by the name that they had before storage, widened to f32."""
    initializers = {part.name: part for part in onnx.load(path).graph.initializer}
    weights = {}
    for name, part in initializers.items():
        values = numpy_helper.to_array(part)
        if name.endswith(".int8"):
            # What the file's Cast and Mul nodes compute.
            stem = name.removesuffix(".int8")
            weights[stem] = values.astype(np.float32) * numpy_helper.to_array(initializers[f"{stem}.scale"])
        elif name.endswith(".f16"):
            weights[name.removesuffix(".f16")] = values.astype(np.float32)
        elif part.data_type == TensorProto.FLOAT and not name.endswith(".scale"):
            weights[name] = values
    return weights


class _Folded:
    """A part of a model whose parameters the exporter folds into one constant, and how to get them back."""

    def __init__(self, constant: Tensor, restore: Callable[[Tensor], None]) -> None:
        self.constant = constant.detach().numpy().copy()
        self.restore = restore


def _folded(module: nn.Module, length: int) -> list[_Folded]:
    """What is folded in `module`: grid positions (a sum) and relative positions (a table for `length` tokens)."""
    found = []
    for part in module.modules():
        if isinstance(part, GridPositions):
            found.append(_Folded(part.rows + part.columns, _position_restorer(part)))
        elif isinstance(part, RelativePositions):
            found.append(_Folded(part(length, torch.device("cpu")), _bias_restorer(part, length)))
    return found


def _position_restorer(part: GridPositions) -> Callable[[Tensor], None]:
    def restore(sums: Tensor) -> None:
        # Rows and columns are known up to a constant that moves from one to the other: half each.
        half = sums.mean((0, 1), keepdim=True) / 2
        part.rows.copy_(sums.mean(1, keepdim=True) - half)
        part.columns.copy_(sums.mean(0, keepdim=True) - half)

    return restore


def _bias_restorer(part: RelativePositions, length: int) -> Callable[[Tensor], None]:
    def restore(table: Tensor) -> None:
        position = torch.arange(length)
        buckets = part._bucket(position[None, :] - position[:, None]).flatten()
        values = table[0].flatten(1).T
        sums = torch.zeros_like(part.table.weight).index_add(0, buckets, values)
        counts = torch.bincount(buckets, minlength=part.buckets)[:, None]
        part.table.weight.copy_(sums / counts.clamp_min(1))
        # No text is long enough for the furthest buckets of each side: they get the value of the last one that is met.
        for bucket in range(1, part.buckets):
            if counts[bucket] == 0 and bucket % (part.buckets // 2) > 0:
                part.table.weight[bucket] = part.table.weight[bucket - 1]

    return restore


@torch.no_grad()
def restore(
    module: nn.Module, graph_of: Callable[[nn.Module], list[Graph]], paths: list[Path], length: int = 0
) -> None:
    """Fills `module` with the weights of the ONNX files `paths`; `graph_of` gives the graphs they were exported from.

    Raises `BundleMismatch`, naming the tensors, where a file lacks one, has one too many, or has one of another shape,
    and where a parameter is in no file. `length` is the number of text tokens that position biases are stored for.
    """
    generator = torch.Generator().manual_seed(20261123)
    for parameter in module.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    folded = _folded(module, length)
    within = {id(value) for part in module.modules() if isinstance(part, (GridPositions, RelativePositions))
              for value in part.parameters()}
    named = {name: value for name, value in module.named_parameters() if id(value) not in within}
    probes = {name: value.numpy().copy() for name, value in named.items()}
    restored: dict[str, Tensor] = {}
    sums: dict[int, Tensor] = {}
    for graph, path in zip(graph_of(module), paths, strict=True):
        stored = stored_weights(path)
        for part in trace(graph).graph.initializer:
            if part.data_type != TensorProto.FLOAT:
                continue
            probe = numpy_helper.to_array(part)
            source = _source_of(probe, probes, folded)
            if source is None:
                # A constant of the architecture: it must be there, and the same.
                if part.name not in stored or not np.allclose(stored.pop(part.name), probe, rtol=1e-3, atol=1e-3):
                    raise BundleMismatch(f"{path.name}: the constant {part.name} is missing or another")
                continue
            if part.name not in stored:
                raise BundleMismatch(f"{path.name} lacks {part.name}, which holds {source}")
            values = stored.pop(part.name)
            if values.shape != probe.shape:
                raise BundleMismatch(f"{path.name}: {part.name} has shape {values.shape}, not {probe.shape}")
            if isinstance(source, int):
                sums[source] = torch.from_numpy(values.reshape(folded[source].constant.shape).copy())
            else:
                name, form = source
                shape = probes[name].shape
                restored[name] = torch.from_numpy((values.T if form == "transposed" else values.reshape(shape)).copy())
        if stored:
            raise BundleMismatch(f"{path.name} has more than the configuration describes: {', '.join(sorted(stored))}")
    missing = sorted(probes.keys() - restored.keys())
    if missing or len(sums) != len(folded):
        files = ", ".join(path.name for path in paths)
        raise BundleMismatch(f"{files}: nothing for {', '.join(missing) or 'positions'}")
    for name, values in restored.items():
        named[name].copy_(values)
    for index, values in sums.items():
        folded[index].restore(values)


def _source_of(probe: np.ndarray, probes: dict[str, np.ndarray], folded: list[_Folded]) -> tuple[str, str] | int | None:
    """The parameter (and its form) or the folded part (its index) that a probing graph's initializer was made from."""
    for name, values in probes.items():
        for form, change in _FORMS:
            if values.size == probe.size and (changed := change(values)).shape == probe.shape:
                if np.array_equal(changed, probe):
                    return name, form
    for index, part in enumerate(folded):
        if part.constant.size == probe.size and np.allclose(part.constant.reshape(probe.shape), probe, atol=1e-6):
            return index
    return None


def _check(graph: Graph, path: Path) -> None:
    """Compares a restored graph with the bundle's file and prints how far they are apart."""
    found: Difference = compare(graph, onnx.load(path))
    print(f"{path.name:24} PyTorch against the bundle: {found}", flush=True)
    if found.worst > TOLERANCE * max(1.0, found.spread) or found.equal < LEAST_EQUAL_TOKENS:
        raise BundleMismatch(f"{path.name}: the restored part computes something else: {found}")


def decoder_shape(path: Path) -> dict[str, list[int]]:
    """`decoder_channels` and `decoder_blocks` of an image decoder's graph, whatever the configuration says."""
    weights = stored_weights(path)
    widths = [values.shape[0] for name, values in sorted(weights.items(), key=_layer) if name.endswith(".first.weight")]
    first = [values for name, values in weights.items() if name.endswith("decoder.layers.0.weight")]
    last = max((item for item in weights.items() if item[0].endswith(".weight") and item[1].ndim == 4), key=_layer)
    if not first:
        raise BundleMismatch(f"{path.name} is no decoder of this project")
    fine, coarse = last[1].shape[1], first[0].shape[0]
    return {"decoder_channels": [fine, coarse], "decoder_blocks": [widths.count(fine), widths.count(coarse)]}


def _layer(item: tuple[str, Any]) -> int:
    numbers = [part for part in item[0].split(".") if part.isdigit()]
    return int(numbers[0]) if numbers else -1


def restore_bundle(bundle: Path, work_dir: Path, config_dir: Path = CONFIG_DIR) -> None:
    """Writes the checkpoints of every part of `bundle` into `work_dir`. Refuses to write over any that is there."""
    with open(bundle / "bundle.toml", "rb") as file:
        manifest = tomllib.load(file)
    for name in ("text", "tokenizer_base", "tokenizer_superres", "base", "superres"):
        target = work_dir / name / "checkpoint.pt"
        if target.exists():
            raise FileExistsError(f"{target} is there already")
    for stage in ("base", "superres"):
        _check_shape(manifest[stage], load_config(config_dir / f"{stage}.toml")["model"], stage)
    states: dict[str, dict[str, Any]] = {}
    encoder, states["text"] = _restore_text(bundle, manifest, config_dir)
    length = manifest["text"]["max_length"]
    ids, mask = graphs.text_graph(encoder, length).inputs.values()
    with torch.no_grad():
        text = encoder(ids, mask)
    for stage in ("base", "superres"):
        states[stage] = _restore_transformer(bundle, manifest, stage, text, mask, config_dir)
        states[f"tokenizer_{stage}"] = _restore_tokenizer(bundle, manifest, stage, config_dir)
    for name, state in states.items():
        checkpoint.save(work_dir / name / "checkpoint.pt", state)
    shutil.copyfile(bundle / manifest["text"]["tokenizer"], work_dir / "text" / "tokenizer.json")
    print(f"{bundle} restored into {work_dir}", flush=True)


def _check_shape(table: dict[str, Any], model: dict[str, Any], stage: str) -> None:
    """Compares a stage's shape in the manifest with a configuration's `[model]` table, before anything is traced."""
    for name in ("grid", "codebook_size", "vocab_size", "logits_size", "mask_id"):
        if table[name] != model[name]:
            raise BundleMismatch(f"{stage}: {name} is {table[name]} in the bundle, {model[name]} in the configuration")


def _fresh(module: nn.Module, config: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint without an optimiser's state: training begins one."""
    weights = module.state_dict()
    return {"model": weights, "live": weights, "step": 0, "seen": 0, "spent_seconds": 0.0, "config": config}


def _finished(module: nn.Module, config: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint to use and not to go on with: the heads that pre-training needs are in no bundle."""
    return {"model": module.state_dict(), "config": config}


def _restore_text(bundle: Path, manifest: dict[str, Any], config_dir: Path) -> tuple[T5Encoder, dict[str, Any]]:
    config = load_config(config_dir / "text.toml")
    table = manifest["text"]
    config["model"]["vocabulary"] = table["vocab_size"]
    encoder, length = T5Encoder.from_config(config), table["max_length"]
    path = bundle / table["encoder"]
    restore(encoder, lambda module: [graphs.text_graph(module, length)], [path], length)
    _check(graphs.text_graph(encoder, length), path)
    return encoder, _finished(encoder, config)


def _restore_transformer(
    bundle: Path, manifest: dict[str, Any], stage: str, text: Tensor, mask: Tensor, config_dir: Path
) -> dict[str, Any]:
    config = load_config(config_dir / f"{stage}.toml")
    table = manifest[stage]
    model = build(TransformerConfig.from_dict(config["model"]))

    def both(module: nn.Module) -> list[Graph]:
        condition = graphs.condition_graph(module, text, mask)
        return [condition, graphs.step_graph(module, condition)]

    paths = [bundle / table["condition"], bundle / table["step"]]
    restore(model, both, paths)
    for graph, path in zip(both(model), paths, strict=True):
        _check(graph, path)
    return _fresh(model, config)


def _restore_tokenizer(bundle: Path, manifest: dict[str, Any], stage: str, config_dir: Path) -> dict[str, Any]:
    config = load_config(config_dir / f"tokenizer_{stage}.toml")
    table = manifest[stage]
    paths = [bundle / table["encoder"], bundle / table["decoder"]]
    config["model"] |= decoder_shape(paths[1])
    model = ImageTokenizer.from_config(config)
    codes, positions = model.quantiser.codebook_size, table["grid"][0] * table["grid"][1]
    images = torch.rand(2, 3, *table["image_size"], generator=torch.Generator().manual_seed(6))

    def both(module: nn.Module) -> list[Graph]:
        return [graphs.encoder_graph(module, images), graphs.decoder_graph(module, codes, positions)]

    restore(model, both, paths)
    for graph, path in zip(both(model), paths, strict=True):
        _check(graph, path)
    return _fresh(model, config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--work-dir", type=Path, default=default_work_dir())
    parser.add_argument("--config-dir", type=Path, default=CONFIG_DIR, help="what the bundle's parts are shaped like")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    restore_bundle(arguments.bundle, arguments.work_dir, arguments.config_dir)


if __name__ == "__main__":
    main()
