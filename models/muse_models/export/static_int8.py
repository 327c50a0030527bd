"""Makes a bundle whose graphs multiply integers: `python -m muse_models.export.static_int8 --bundle DIR --out DIR`.

Reads a finished bundle, runs its sampler on some captions (its own defaults, with and without the prompt, so at every share of
masked positions that serving sees) and decodes what comes of it, looks at what enters each product with constant weights of the
condition and step graphs and the image decoders, and writes a bundle whose graphs round that to uint8 with a constant scale. All
other files are copied. Then it samples other seeds on both and prints how far logits are off at masked positions, with everything
before them in integers too, and how far pictures are off for the same tokens. `static_graph` says what is rewritten, and why it is
that a row's result stays the same whatever rows are beside it.
"""

import argparse
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from ..reference.bundle import Bundle, BundleError, Stage
from ..reference.pipeline import Request, decode_stage
from .manifest import write_manifest
from .ranges import Histogram, Range
from .static_graph import StaticGraph

CAPTIONS = Path(__file__).resolve().parents[2] / "configs" / "calibration.txt"
SUFFIX = "-int8-static"
"""What the version of a bundle gets, so that its pictures can be told from those of the one that it was made from."""

_CHECKED_SEED = 1_000_000
"""First seed of the pictures that are compared; calibration counts from 0."""


PARTS = ("condition", "step", "decoder")
"""The graphs of a stage that are rewritten, by their names in the manifest."""


@dataclass(frozen=True)
class Error:
    """One stage, beside that of the bundle that was read."""

    root_mean_square: float
    """Of the difference of logits at masked positions, as a share of their spread."""
    same_best: float
    """Share of positions whose likeliest token is the same."""
    positions: int
    decibels: float
    """Peak signal-to-noise ratio of its pictures, for the same tokens."""

    def __str__(self) -> str:
        return (
            f"off by {self.root_mean_square:.2%} of the logits' spread, likeliest token the same at "
            f"{self.same_best:.1%} of {self.positions} masked positions; pictures of the same tokens {self.decibels:.1f} dB"
        )


class Observer:
    """Stands in for a session of a stage and counts what goes through eight bits later."""

    def __init__(self, graph: StaticGraph, threads: int) -> None:
        self.histograms = {name: Histogram() for name in graph.activations()}
        self._session = _session(graph.observed(), threads)
        self._own = [output.name for output in graph.model.graph.output]

    def run(self, outputs: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        values = self._session.run([*outputs, *self.histograms], inputs)
        for histogram, activations in zip(self.histograms.values(), values[len(outputs) :], strict=True):
            histogram.add(activations)
        return values[: len(outputs)]

    def get_inputs(self) -> list[onnxruntime.NodeArg]:
        return self._session.get_inputs()

    def get_outputs(self) -> list[onnxruntime.NodeArg]:
        return [output for output in self._session.get_outputs() if output.name in self._own]

    def ranges(self) -> dict[str, Range]:
        return {place: seen.range() for place, seen in self.histograms.items()}


class Comparison:
    """Stands in for the sessions of a stage: answers by the `exact` one, and asks the `other` one the same."""

    def __init__(self, exact: Stage, other: Stage) -> None:
        self._mask_id = exact.manifest["mask_id"]
        self._off = self._spread = self._pixels_off = 0.0
        self._same = self._positions = self._pictures = 0
        # What the other stage was conditioned on, by the array that the exact one was; both are kept, so that no id comes again.
        self._conditioned: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.condition = _Pair(exact.condition, other.condition, self._saw_conditioning)
        self.step = _Pair(exact.step, other.step, self._saw_logits, self._of_the_other)
        self.decoder = _Pair(exact.decoder, other.decoder, self._saw_pictures)

    def _saw_conditioning(self, _: dict[str, np.ndarray], here: list[np.ndarray], there: list[np.ndarray]) -> None:
        self._conditioned |= {id(own): (own, others) for own, others in zip(here, there, strict=True)}

    def _of_the_other(self, given: np.ndarray) -> np.ndarray:
        _, others = self._conditioned.get(id(given), (given, given))
        return others

    def _saw_logits(self, inputs: dict[str, np.ndarray], here: list[np.ndarray], there: list[np.ndarray]) -> None:
        # With `positions` there are logits at masked positions alone.
        masked = ... if "positions" in inputs else inputs["tokens"] == self._mask_id
        own, others = here[0][masked].astype(np.float64), there[0][masked]
        self._off += float(np.square(others - own).mean(axis=1).sum())
        self._spread += float(own.var(axis=1).sum())
        self._same += int((own.argmax(axis=1) == others.argmax(axis=1)).sum())
        self._positions += len(own)

    def _saw_pictures(self, _: dict[str, np.ndarray], here: list[np.ndarray], there: list[np.ndarray]) -> None:
        own, others = (np.clip(images[0], 0, 1).astype(np.float64) for images in (here, there))
        self._pixels_off += float(np.square(others - own).mean())
        self._pictures += 1
        # A picture ends its caption: nothing is conditioned on that any more.
        self._conditioned.clear()

    def error(self) -> Error:
        return Error(
            (self._off / max(self._spread, 1e-12)) ** 0.5,
            self._same / max(self._positions, 1),
            self._positions,
            -10 * float(np.log10(max(self._pixels_off / max(self._pictures, 1), 1e-12))),
        )


class _Pair:
    """Two sessions that are asked the same, but for what `of_the_other` replaces; `saw` is told inputs and both answers."""

    def __init__(
        self,
        exact: onnxruntime.InferenceSession,
        other: onnxruntime.InferenceSession,
        saw: Callable[[dict[str, np.ndarray], list[np.ndarray], list[np.ndarray]], None],
        of_the_other: Callable[[np.ndarray], np.ndarray] = lambda given: given,
    ) -> None:
        self._exact, self._other, self._saw, self._of_the_other = exact, other, saw, of_the_other

    def run(self, outputs: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        here = self._exact.run(outputs, inputs)
        there = self._other.run(outputs, {name: self._of_the_other(given) for name, given in inputs.items()})
        self._saw(inputs, here, there)
        return here

    def get_inputs(self) -> list[onnxruntime.NodeArg]:
        return self._exact.get_inputs()

    def get_outputs(self) -> list[onnxruntime.NodeArg]:
        return self._exact.get_outputs()


def write_static(folder: Path, out: Path, captions: list[str], threads: int = 1) -> dict[str, Error]:
    """Writes the bundle in `folder` with integer products to `out`, which is replaced as a whole.

    Returns for each stage how far it is off. Raises `ValueError` where a step graph can't be made integer; condition graphs and
    decoders without such products are copied.
    """
    if out.resolve() == folder.resolve():
        raise ValueError(f"{out} is the bundle that is read")
    bundle = Bundle(folder, threads)
    captions = [caption for caption in captions if _fits(bundle, caption)]
    if not captions:
        raise ValueError("no caption fits into the model's text")
    graphs = {
        (name, part): StaticGraph(onnx.load(folder / stage.manifest[part]))
        for name, stage in bundle.stages.items() for part in PARTS
    }
    if missing := [name for (name, part), graph in graphs.items() if part == "step" and not graph.products]:
        raise ValueError(f"the step graph of {', '.join(missing)} has no product with a constant matrix")
    graphs = {place: graph for place, graph in graphs.items() if graph.products}
    observers = {place: Observer(graph, threads) for place, graph in graphs.items()}
    for (name, part), observer in observers.items():
        setattr(bundle.stages[name], part, observer)
    _sample(bundle, captions, first_seed=0)

    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    rewritten = {bundle.stages[name].manifest[part] for name, part in graphs}
    for name in bundle.manifest["files"]:
        if name not in rewritten and name.removesuffix(".data") not in rewritten:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, partial / name)
    for (name, part), graph in graphs.items():
        file = bundle.stages[name].manifest[part]
        beside = f"{file}.data" if f"{file}.data" in bundle.manifest["files"] else None
        (partial / file).parent.mkdir(parents=True, exist_ok=True)
        onnx.save(
            graph.quantised(observers[name, part].ranges()), partial / file,
            save_as_external_data=beside is not None, location=beside,
        )
        onnx.checker.check_model(str(partial / file))
    tables = {key: value for key, value in bundle.manifest.items() if key not in ("schema", "files")}
    tables["model"] = tables["model"] | {"version": tables["model"]["version"] + SUFFIX}
    write_manifest(partial, tables)
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)

    exact, static = Bundle(folder, threads), Bundle(out, threads)
    comparisons = {name: Comparison(stage, static.stages[name]) for name, stage in exact.stages.items()}
    for name, comparison in comparisons.items():
        for part in PARTS:
            setattr(exact.stages[name], part, getattr(comparison, part))
    _sample(exact, captions[: max(1, len(captions) // 4)], first_seed=_CHECKED_SEED)
    return {name: comparison.error() for name, comparison in comparisons.items()}


def _sample(bundle: Bundle, captions: list[str], first_seed: int) -> None:
    """Samples every caption with the bundle's defaults, and decodes what each stage made of it."""
    for index, caption in enumerate(captions):
        tokens: np.ndarray | None = None
        for name, stage in bundle.stages.items():
            tokens = decode_stage(bundle, name, Request(caption, seed=first_seed + index), stage.defaults, tokens).tokens
            stage.decoder.run(["image"], {"tokens": tokens[None]})


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
