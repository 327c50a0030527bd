"""The same bundle with f32, f16 and int8 weights, and a table of what the smaller forms cost.

Two kinds of figures. Each graph against PyTorch on the same inputs: how far its outputs are off. And a short sampling
run against the f32 bundle, from the same seeds: how many tokens come out the same. One token that flips changes what
is sampled after it, so the second is much the stricter one and says little about how good a picture is.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from ..reference.bundle import Bundle
from ..reference.pipeline import Request, decode_stage
from .bundle import BundleParts, GraphReport, Writing, write_bundles
from .onnx_file import Difference
from .storage import PRECISIONS

PROMPTS = ("a red circle", "two blue stars on a black background", "a cat to the left of a dog", "an apple")
SAMPLING_STEPS = 4
"""Most steps of a stage in the short sampling run."""


@dataclass(frozen=True)
class SamplingReport:
    """A bundle's short sampling run, beside that of the f32 bundle."""

    base_tokens: float
    """Share of base tokens that are the same."""
    superres_tokens: float | None
    """Share of super-resolution tokens that are the same, both made from the f32 bundle's base tokens."""
    picture_psnr: float
    """dB between the pictures of both bundles, each from its own tokens; infinite if they are the same."""


@dataclass(frozen=True)
class Samples:
    """What one bundle made of `PROMPTS`."""

    base: np.ndarray
    superres: np.ndarray | None
    """From the base tokens that were given."""
    pictures: np.ndarray


def write_variants(parts: BundleParts, folder: Path, writing: Writing = Writing()) -> str:
    """Writes `folder`/f32, /f16 and /int8, and what they differ by as `variants.md` and `variants.json`.

    Returns the table in Markdown.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folders = {folder / precision: precision for precision in PRECISIONS}
    reports = write_bundles(parts, dict(folders), writing)
    graphs = {precision: reports[path] for path, precision in folders.items()}
    exact = Bundle(folder / "f32")
    baseline = _samples(exact, None)
    sampling = {
        precision: _compare(_samples(Bundle(folder / precision), baseline.base), baseline)
        for precision in PRECISIONS
    }
    table = _table(graphs, sampling)
    (folder / "variants.md").write_text(table)
    values = {
        precision: {
            "graphs": [asdict(report) for report in graphs[precision]],
            "sampling": asdict(sampling[precision]),
        }
        for precision in PRECISIONS
    }
    (folder / "variants.json").write_text(json.dumps(values, indent=1) + "\n")
    return table


def _samples(bundle: Bundle, base_tokens: np.ndarray | None) -> Samples:
    """Samples each prompt; super-resolution is also run on `base_tokens` [P, S], where those are given."""
    base, superres, pictures = [], [], []
    for index, prompt in enumerate(PROMPTS):
        request = Request(_known(bundle, prompt), seed=index)
        tokens = _decode(bundle, "base", request, None)
        base.append(tokens)
        last = bundle.stages["base"]
        if "superres" in bundle.stages:
            last = bundle.stages["superres"]
            given = tokens if base_tokens is None else base_tokens[index]
            superres.append(_decode(bundle, "superres", request, given))
            tokens = superres[-1] if np.array_equal(given, tokens) else _decode(bundle, "superres", request, tokens)
        (picture,) = last.decoder.run(["image"], {"tokens": tokens[None]})
        pictures.append(picture[0])
    return Samples(np.stack(base), np.stack(superres) if superres else None, np.stack(pictures))


def _known(bundle: Bundle, prompt: str) -> str:
    """As much of `prompt` as fits into the model's text, by words."""
    words = prompt.split()
    while words and len(bundle.tokenizer.encode(" ".join(words)).ids) > bundle.manifest["text"]["max_length"]:
        words.pop()
    return " ".join(words)


def _decode(bundle: Bundle, stage: str, request: Request, low_tokens: np.ndarray | None) -> np.ndarray:
    defaults = bundle.stages[stage].defaults
    short = replace(defaults, steps=min(defaults.steps, SAMPLING_STEPS))
    return decode_stage(bundle, stage, request, short, low_tokens).tokens


def _compare(samples: Samples, baseline: Samples) -> SamplingReport:
    error = float(np.mean(np.square(samples.pictures.astype(np.float64) - baseline.pictures)))
    return SamplingReport(
        float(np.mean(samples.base == baseline.base)),
        None if samples.superres is None else float(np.mean(samples.superres == baseline.superres)),
        float("inf") if error == 0 else -10 * float(np.log10(error)),
    )


def _table(graphs: dict[str, list[GraphReport]], sampling: dict[str, SamplingReport]) -> str:
    lines = [
        "Each graph against PyTorch: root mean square and largest difference, as shares of the output's own spread;",
        "for step graphs the share of positions with the same likeliest token, for encoders that of the same tokens.",
        "",
        "| graph | " + " | ".join(f"{precision}: MB | off (worst) | same" for precision in graphs) + " |",
        "|---" * (1 + 3 * len(graphs)) + "|",
    ]
    for rows in zip(*graphs.values(), strict=True):
        lines.append(f"| {rows[0].file} | " + " | ".join(_cells(row) for row in rows) + " |")
    sizes = [f"{sum(row.size for row in rows) / 1e6:.2f} | |" for rows in graphs.values()]
    lines += ["| all | " + " | ".join(sizes) + " |", ""]
    lines += [
        f"A run of at most {SAMPLING_STEPS} steps a stage on {len(PROMPTS)} prompts, against the f32 bundle:",
        "",
        "| weights | same base tokens | same super-resolution tokens, from the same base tokens | pictures, PSNR |",
        "|---|---|---|---|",
    ]
    for precision, found in sampling.items():
        superres = "" if found.superres_tokens is None else f"{found.superres_tokens:.1%}"
        lines.append(f"| {precision} | {found.base_tokens:.1%} | {superres} | {found.picture_psnr:.1f} dB |")
    return "\n".join(lines) + "\n"


def _cells(report: GraphReport) -> str:
    found: Difference | None = report.stored
    size = f"{report.size / 1e6:.2f}"
    if found is None:
        return f"{size} | not compared | "
    if found.spread == 0:
        return f"{size} | | {found.equal:.2%}"
    same = "" if found.same_best is None else f"{found.same_best:.2%}"
    return f"{size} | {found.root_mean_square / found.spread:.1e} ({found.worst / found.spread:.1e}) | {same}"
