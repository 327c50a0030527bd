"""The report: Markdown with pictures, and every figure as JSON."""

import json
import math
import os
import platform
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np

from ..contact_sheet import PROMPTS as SHOWN
from . import charts, sheets
from .prompts import KINDS
from .run import Results
from .sweeps import Sweep
from .verdicts import HEADLINE, MEASURES, Share, headline

IMAGES = Path("images") / "evaluation"

TARGETS = {"background": 0.95, "shape colour": 0.90, "count": 0.75, "position": 0.75, "top-5": 0.60}
PSNR_TARGETS = {"base": 22.0, "superres": 26.0}
CODES_TARGET = 0.8


def write(out: Path, figures: Path, results: Results, command: str, quick: bool, minutes: float) -> Path:
    """Writes `evaluation.md` and its pictures under `out`, every figure as JSON to `figures`; returns the report's path."""
    (out / IMAGES).mkdir(parents=True, exist_ok=True)
    sections = [
        _head(results, command, quick, minutes), _accuracies(out, results), _tokenizers(out, results),
        _likelihood(results), _distances(results), _sweeps(out, results), _standard(results), _samples(out, results),
        _method(results),
    ]
    path = out / "evaluation.md"
    path.write_text("\n\n".join(section for section in sections if section) + "\n")
    figures.write_text(json.dumps(_figures(results), indent=1) + "\n")
    return path


def _table(header: list[str], lines: list[list[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _percent(value: float) -> str:
    return "" if math.isnan(value) else f"{100 * value:.1f} %"


def _share(share: Share | None) -> str:
    return "" if share is None or share.total == 0 else _percent(share.value)


def _met(value: float, target: float) -> str:
    return "yes" if value >= target else "**no**"


def _head(results: Results, command: str, quick: bool, minutes: float) -> str:
    model = results.bundle.manifest["model"]
    settings = "; ".join(
        f"{name}: " + ", ".join(f"{key} {value}" for key, value in asdict(one).items())
        for name, one in results.settings.items()
    )
    as_shipped = all(one == results.bundle.stages[name].defaults for name, one in results.settings.items())
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "onnxruntime", "torch", "pillow"))
    phases = ", ".join(f"{name} {spent:.1f}" for name, spent in results.minutes.items())
    lines = [
        "# Evaluation of the demo bundle" if model["name"] == "muse-demo" else f"# Evaluation of {model['name']}",
        "",
        "Made by `make evaluate`; figures are as they came out.",
        "",
        _table(["", ""], [
            ["bundle", f"{model['name']} {model['version']}"],
            ["digest of `bundle.toml`", f"`{results.bundle.digest}`"],
            ["command, in `models/`", f"`{command}`"],
            ["code", f"`{results.commit}`" if results.commit else "not in a git checkout"],
            ["settings", ("the manifest's defaults: " if as_shipped else "**not** the manifest's defaults: ") + settings],
            ["versions", f"Python {platform.python_version()}, {packages}"],
            ["machine", f"{os.cpu_count()} cores, {platform.machine()}, one thread, other work beside it"],
            ["minutes", f"{minutes:.0f} in all; {phases}; the image-text model was trained in {results.judge_minutes:.1f}"],
            ["written", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")],
        ]),
    ]
    if quick:
        lines += ["", "**A quick run: so few pictures that the figures mean nothing.**"]
    return "\n".join(lines)


def _accuracies(out: Path, results: Results) -> str:
    generated, real = results.scores["generated"], results.scores["real"]
    found, ceiling = headline(generated), headline(real)
    lines = [
        [name, _percent(found[name]), _percent(TARGETS[name]), _met(found[name], TARGETS[name]), _percent(ceiling[name])]
        for name in HEADLINE
    ]
    kinds = ", ".join(f"{sum(prompt.kind == kind for prompt in results.prompts)} {kind}" for kind in KINDS)
    details = []
    for measure, what in MEASURES.items():
        share = generated[measure]
        if share.total == 0:
            continue
        low, high = share.interval()
        details.append([
            measure, what, str(share.total), _share(share), f"{100 * low:.0f}–{100 * high:.0f}",
            *(_share(results.scores.get(name, {}).get(measure)) for name in ("real", "reconstructed", "wrong")),
        ])
    chosen = _examples(results)
    sheets.sheet(
        out / IMAGES / "held-out.webp", [results.pictures["generated"][at] for at in chosen],
        [results.prompts[at].text for at in chosen], 10, 104, [all(results.generated_verdicts[at].values()) for at in chosen],
    )
    parts = [
        "## What the pictures show",
        f"{len(results.prompts)} held-out prompts ({kinds}), one picture each, measured by code. *Real* is the same "
        "measure on real drawings of the same prompts: what a perfect model would get.",
        _table(["", "measured", "target", "met", "real"], lines),
        "Count is the mean of the accuracies at one, two, three and four. In detail, with the 95 % interval that so many "
        "prompts allow; *reconstructed* are the real drawings through the last tokenizer, *wrong* are drawings in which "
        "everything differs from the prompt (two things have changed places), which a measure must refuse:",
        _table(["measure", "of what", "prompts", "generated", "95 %", "real", "reconstructed", "wrong"], details),
        f"Retrieval is among {results.candidates} objects. " + _about_leaks(results),
        f"{len(chosen)} of them, evenly spread; green where every measure that applies is right:",
        f"![held-out samples]({IMAGES.as_posix()}/held-out.webp)",
    ]
    return "\n\n".join(parts)


def _examples(results: Results) -> list[int]:
    count = min(40, len(results.prompts))
    return [at * len(results.prompts) // count for at in range(count)]


def _about_leaks(results: Results) -> str:
    leaks = results.leaks
    if leaks is None:
        return "The training scenes are not in the work directory, so prompts were not compared with them."
    text = (
        f"Of the prompts' compositions, {leaks.compositions} are among the {leaks.training_scenes} training scenes. "
        f"{len(leaks.twins)} prompts have a picture there under other words (no background is drawn as white; an apple "
        "is red already; \"and\" puts either thing on the left)"
    )
    without = results.scores.get("without twins")
    if not without or not leaks.twins:
        return text + "."
    figures = ", ".join(f"{name} {_percent(value)}" for name, value in headline(without).items())
    return f"{text}; without those: {figures}."


def _tokenizers(out: Path, results: Results) -> str:
    if not results.reconstructions:
        return ""
    lines = []
    for name, one in results.reconstructions.items():
        target = PSNR_TARGETS[name]
        height, width = results.bundle.stages[name].manifest["image_size"]
        lines.append([
            f"{name}, {width}×{height}", f"{one.psnr:.2f} dB", f"{target:.0f} dB: {_met(one.psnr, target)}",
            f"{one.psnr_of_mean_error:.2f} dB", f"{one.ssim:.3f}", _percent(one.codes_used),
            f"{_percent(CODES_TARGET)}: {_met(one.codes_used, CODES_TARGET)}", f"{one.perplexity:.0f} of {one.codebook_size}",
            f"{results.reconstruction_frechet[name]:.3f}",
        ])
    count = next(iter(results.reconstructions.values())).tokens_seen // next(iter(results.bundle.stages.values())).positions
    rows = [results.pictures[name] for name in ("real", *results.reconstructions)]
    chosen = np.linspace(0, len(results.prompts) - 1, 10).astype(int)
    sheets.rows(out / IMAGES / "reconstructions.webp", [[row[at] for at in chosen] for row in rows])
    parts = [
        "## Image tokenizers",
        f"Through the bundle's encoder and decoder graphs, on {count} held-out scenes. PSNR is the mean over pictures; "
        "that of the mean squared error is stricter on the worst. The Fréchet distance is to the same scenes.",
        _table(["", "PSNR", "target", "of the mean error", "SSIM", "codes in use", "target", "perplexity", "Fréchet distance"],
               lines),
        f"From above: real, {', '.join(results.reconstructions)}.",
        f"![reconstructions]({IMAGES.as_posix()}/reconstructions.webp)",
    ]
    if results.compared:
        other = results.compared[""]
        lines = []
        for name, one in results.reconstructions.items():
            if name in results.compared:
                second = results.compared[name]
                lines.append([name, "this bundle", f"{one.psnr:.2f} dB", f"{one.ssim:.3f}",
                              f"{results.reconstruction_frechet[name]:.3f}", f"{results.frechet[name + ' tokenizer']:.3f}"])
                lines.append([name, "compared", f"{second['psnr']:.2f} dB", f"{second['ssim']:.3f}",
                              f"{second['reconstruction_frechet']:.3f}", f"{second['frechet']:.3f}"])
        parts += [
            f"Compared with the tokenizers of {other['bundle']} (digest `{other['digest']}`), on the same scenes:",
            _table(["stage", "", "PSNR", "SSIM", "Fréchet distance to the same scenes", "to other scenes"], lines),
            "The distance to the scenes that were reconstructed is the usual one for tokenizers (rFID). That to other real scenes "
            f"cannot fall below that of real pictures, {results.frechet['real']:.3f}.",
        ]
    return "\n\n".join(parts)


def _likelihood(results: Results) -> str:
    if not results.likelihood:
        return ""
    lines = []
    for name, points in results.likelihood.items():
        lines.append([f"{name}: cross-entropy, nats", *(f"{point.cross_entropy:.2f}" for point in points)])
        lines.append([f"{name}: accuracy", *(_percent(point.accuracy) for point in points)])
    ratios = [f"{100 * point.ratio:.0f} % masked" for point in next(iter(results.likelihood.values()))]
    return "\n\n".join([
        "## Masked tokens",
        "The step graphs on held-out scenes and captions, without guidance, over masked positions alone; super-resolution "
        "is given the scene's own base tokens.",
        _table(["", *ratios], lines),
    ])


def _distances(results: Results) -> str:
    names = {"generated": "generated", "real": "real drawings of the same prompts: the floor"}
    lines = [[names.get(name, f"those through the {name}"), f"{value:.3f}"] for name, value in results.frechet.items()]
    return "\n\n".join([
        "## Fréchet distance",
        f"Of {len(results.prompts)} pictures to real held-out scenes, in the image-text model's 64 features. It depends on "
        "the number of pictures and on the model: compare it within this report alone.",
        _table(["pictures", "distance"], lines),
    ])


def _sweeps(out: Path, results: Results) -> str:
    if not results.sweeps:
        return ""
    highest = max(point.frechet for sweep in results.sweeps for point in sweep.points)
    parts = [
        "## Steps, guidance, temperatures",
        f"One setting changes, the others stay as above, on {results.sweeps[0].prompts} of the prompts. *Mean* is of the five accuracies; its standard error is about "
        f"{100 * _standard_error(results.sweeps[0]):.0f} points. *Best* has the smallest Fréchet distance among the values "
        "within one standard error of the highest mean. Gray marks the value in use.",
        _table(
            ["stage", "setting", "in use", "best", "mean there", "mean in use"],
            [[one.stage, one.setting, f"{one.default:g}", f"{one.best.value:g}", _percent(one.best.mean),
              _percent(next(point.mean for point in one.points if point.value == one.default))] for one in results.sweeps],
        ),
    ]
    for sweep in results.sweeps:
        stem = f"{sweep.stage}-{sweep.setting.replace('_', '-')}"
        positions = [point.value for point in sweep.points]
        charts.line_chart(
            out / IMAGES / f"{stem}.svg", f"{sweep.stage}: accuracy, %, by {sweep.setting}", positions,
            [charts.Line(name, [100 * point.accuracies[name] for point in sweep.points]) for name in HEADLINE],
            100, sweep.default,
        )
        charts.line_chart(
            out / IMAGES / f"{stem}-frechet.svg", f"{sweep.stage}: Fréchet distance by {sweep.setting}", positions,
            [charts.Line("distance", [point.frechet for point in sweep.points])], highest, sweep.default,
        )
        parts.append(
            f"![{sweep.stage} {sweep.setting}]({IMAGES.as_posix()}/{stem}.svg) "
            f"![the same, Fréchet]({IMAGES.as_posix()}/{stem}-frechet.svg)"
        )
        parts.append(_table(
            [f"{sweep.stage} {sweep.setting}", *HEADLINE, "mean", "Fréchet"],
            [[f"{point.value:g}", *(_percent(point.accuracies[name]) for name in HEADLINE), _percent(point.mean),
              f"{point.frechet:.2f}"] for point in sweep.points],
        ))
    return "\n\n".join(parts)


def _standard_error(sweep: Sweep) -> float:
    return (0.25 / sweep.prompts) ** 0.5


def _standard(results: Results) -> str:
    if not results.standard:
        return ""
    lines = [[name, f"{value:.4f}"] for name, value in results.standard.items()]
    return "\n\n".join(["## Standard networks", "With weights that were given on the command line.", _table(["", ""], lines)])


def _samples(out: Path, results: Results) -> str:
    sheets.sheet(out / IMAGES / "samples.webp", list(results.pictures["shown"]), SHOWN, 6)
    return "\n\n".join([
        "## Samples",
        f"{len(SHOWN)} prompts of a fixed list, seed 1, the first picture each, untouched. These are not held out.",
        f"![samples]({IMAGES.as_posix()}/samples.webp)",
    ])


def _method(results: Results) -> str:
    real = results.scores["real"]
    return "\n".join([
        "## How it is measured",
        "",
        "- **Prompts** are compositions (things, colours, counts, places, background) that a hash keeps out of training, one",
        "  in twenty, in plain wording. Picture *i* has seed 1000 + *i*; the sampler is the reference's, token for token.",
        "- **Background**: the commonest named colour, in OKLab, along the border; it must hold half of the border.",
        "- **Shape colour**: most pixels of the foreground, away from its edges, must be nearest to the asked colour. Object",
        "  colour asks for the commonest name alone, because a tinted object keeps its eyes, wheels and leaves.",
        "- **Count**: connected parts of the foreground that look alike. Things that touch are worn apart by up to 3 pixels",
        "  (of 128); fragments of one thing are bridged until the parts are alike.",
        "- **Position**: the foreground is cut in two where its halves lie furthest apart; that must be in the asked",
        "  direction, and each half must look more like the thing that belongs there than like the other one.",
        "- **Retrieval**, identity and the Fréchet distance's features come from a convolutional image-text model that was",
        f"  trained apart, on training scenes. On real held-out scenes it finds the object first in {_share(real['top-1'])},",
        f"  among five in {_share(real['top-5'])}.",
    ])


def _figures(results: Results) -> dict:
    return {
        "bundle": results.bundle.manifest["model"], "digest": results.bundle.digest, "commit": results.commit,
        "settings": {name: asdict(one) for name, one in results.settings.items()},
        "prompts": [{"kind": prompt.kind, "prompt": prompt.text, "seed": prompt.seed, **verdict}
                    for prompt, verdict in zip(results.prompts, results.generated_verdicts, strict=True)],
        "headline": {name: headline(found) for name, found in results.scores.items()},
        "scores": {name: {measure: asdict(share) for measure, share in found.items()} for name, found in results.scores.items()},
        "tokenizers": {name: asdict(one) for name, one in results.reconstructions.items()},
        "compared": results.compared,
        "likelihood": {name: [asdict(point) for point in points] for name, points in results.likelihood.items()},
        "frechet": results.frechet,
        "reconstruction_frechet": results.reconstruction_frechet,
        "sweeps": [asdict(sweep) for sweep in results.sweeps],
        "standard": results.standard,
        "minutes": results.minutes,
    }
