"""Makes a bundle whose step graphs multiply integers: `python -m muse_models.export.static_int8 --bundle DIR --out DIR`.

Reads a finished bundle, runs its sampler on some captions (its own defaults, with and without the prompt, so at every share of
masked positions that serving sees), looks at what enters each product of a step graph with a constant matrix, and writes
a bundle whose step graphs round those to uint8 with a constant scale. All other files are copied. Then it samples other
seeds on both and prints how far the logits are off at masked positions. `static_graph` says what is rewritten, and why it is
that a row's result stays the same whatever rows are beside it.
"""

import argparse
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from ..reference.bundle import Bundle, BundleError
from ..reference.pipeline import Request, decode_stage
from .manifest import write_manifest
from .ranges import Histogram, Range
from .static_graph import StaticGraph

CAPTIONS = Path(__file__).resolve().parents[2] / "configs" / "calibration.txt"
SUFFIX = "-int8-static"
"""What the version of a bundle gets, so that its pictures can be told from those of the one that it was made from."""

_CHECKED_SEED = 1_000_000
"""First seed of the pictures that are compared; calibration counts from 0."""


@dataclass(frozen=True)
class Error:
    """Logits of one stage at masked positions, beside those of the bundle that was read."""

    root_mean_square: float
    """Of the difference, as a share of the spread of those logits."""
    same_best: float
    """Share of positions whose likeliest token is the same."""
    positions: int

    def __str__(self) -> str:
        return (
            f"off by {self.root_mean_square:.2%} of the logits' spread, likeliest token the same at "
            f"{self.same_best:.1%} of {self.positions} masked positions"
        )


class Observer:
    """Stands in for a stage's `step` session and counts what enters its products."""

    def __init__(self, graph: StaticGraph, threads: int) -> None:
        self.histograms = {name: Histogram() for name in graph.activations()}
        self._session = _session(graph.observed(), threads)

    def run(self, outputs: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        values = self._session.run([*outputs, *self.histograms], inputs)
        for histogram, activations in zip(self.histograms.values(), values[len(outputs) :], strict=True):
            histogram.add(activations)
        return values[: len(outputs)]

    def get_inputs(self) -> list[onnxruntime.NodeArg]:
        return self._session.get_inputs()


class Comparison:
    """Stands in for a stage's `step` session: answers by `exact`, and asks `other` the same."""

    def __init__(
        self, exact: onnxruntime.InferenceSession, other: onnxruntime.InferenceSession, mask_id: int
    ) -> None:
        self._exact, self._other, self._mask_id = exact, other, mask_id
        self._off = self._spread = 0.0
        self._same = self._positions = 0

    def run(self, outputs: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        values, others = self._exact.run(outputs, inputs), self._other.run(outputs, inputs)
        # With `positions` there are logits at masked positions alone.
        masked = ... if "positions" in inputs else inputs["tokens"] == self._mask_id
        here, there = values[0][masked].astype(np.float64), others[0][masked]
        self._off += float(np.square(there - here).mean(axis=1).sum())
        self._spread += float(here.var(axis=1).sum())
        self._same += int((here.argmax(axis=1) == there.argmax(axis=1)).sum())
        self._positions += len(here)
        return values

    def get_inputs(self) -> list[onnxruntime.NodeArg]:
        return self._exact.get_inputs()

    def error(self) -> Error:
        return Error(
            (self._off / max(self._spread, 1e-12)) ** 0.5, self._same / max(self._positions, 1), self._positions
        )


def write_static(folder: Path, out: Path, captions: list[str], threads: int = 1) -> dict[str, Error]:
    """Writes the bundle in `folder` with integer products to `out`, which is replaced as a whole.

    Returns for each stage how far its logits are off. Raises `ValueError` where nothing can be made integer.
    """
    if out.resolve() == folder.resolve():
        raise ValueError(f"{out} is the bundle that is read")
    bundle = Bundle(folder, threads)
    captions = [caption for caption in captions if _fits(bundle, caption)]
    if not captions:
        raise ValueError("no caption fits into the model's text")
    graphs = {name: StaticGraph(onnx.load(folder / stage.manifest["step"])) for name, stage in bundle.stages.items()}
    if missing := [name for name, graph in graphs.items() if not graph.products]:
        raise ValueError(f"the step graph of {', '.join(missing)} has no product with a constant matrix")
    observers = {name: Observer(graph, threads) for name, graph in graphs.items()}
    _sample(bundle, observers, captions, first_seed=0)

    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    rewritten = {stage.manifest["step"] for stage in bundle.stages.values()}
    for name in bundle.manifest["files"]:
        if name not in rewritten and name.removesuffix(".data") not in rewritten:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, partial / name)
    for name, stage in bundle.stages.items():
        ranges: dict[str, Range] = {place: seen.range() for place, seen in observers[name].histograms.items()}
        file = stage.manifest["step"]
        beside = f"{file}.data" if f"{file}.data" in bundle.manifest["files"] else None
        onnx.save(
            graphs[name].quantised(ranges), partial / file, save_as_external_data=beside is not None, location=beside
        )
        onnx.checker.check_model(str(partial / file))
    tables = {key: value for key, value in bundle.manifest.items() if key not in ("schema", "files")}
    tables["model"] = tables["model"] | {"version": tables["model"]["version"] + SUFFIX}
    write_manifest(partial, tables)
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)

    exact, static = Bundle(folder, threads), Bundle(out, threads)
    comparisons = {
        name: Comparison(stage.step, static.stages[name].step, stage.manifest["mask_id"])
        for name, stage in exact.stages.items()
    }
    _sample(exact, comparisons, captions[: max(1, len(captions) // 4)], first_seed=_CHECKED_SEED)
    return {name: comparison.error() for name, comparison in comparisons.items()}


def _sample(bundle: Bundle, steps: dict[str, Observer] | dict[str, Comparison], captions: list[str], first_seed: int) -> None:
    """Samples every caption with the bundle's defaults, its passes by `steps`."""
    for name, step in steps.items():
        bundle.stages[name].step = step
    for index, caption in enumerate(captions):
        tokens: np.ndarray | None = None
        for name, stage in bundle.stages.items():
            tokens = decode_stage(bundle, name, Request(caption, seed=first_seed + index), stage.defaults, tokens).tokens


def _fits(bundle: Bundle, caption: str) -> bool:
    return len(bundle.tokenizer.encode(caption).ids) <= bundle.manifest["text"]["max_length"]


def _session(model: onnx.ModelProto, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="muse_models.export.static_int8", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, required=True, help="the bundle to read")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new bundle; replaced")
    parser.add_argument("--captions", type=Path, default=CAPTIONS, help="a caption a line (%(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args(argv)
    try:
        captions = [line for line in arguments.captions.read_text().splitlines() if line.strip()]
        errors = write_static(arguments.bundle, arguments.out, captions, arguments.threads)
    except (OSError, ValueError, BundleError) as error:
        print(f"static_int8: {error}", file=sys.stderr)
        return 1
    for name, error in errors.items():
        print(f"{name:10} {error}")
    size = sum(path.stat().st_size for path in arguments.out.rglob("*") if path.is_file())
    print(f"{arguments.out}: {size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
