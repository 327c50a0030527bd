"""Runs every measurement on a bundle and collects the figures."""

import hashlib
import json
import random
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from ..contact_sheet import PROMPTS as SHOWN
from ..data.captions import caption
from ..data.render import Renderer
from ..data.scene import Scene
from ..reference.bundle import Bundle, Stage
from ..reference.sampler import Settings
from . import judge as image_text
from . import prompts as held_out
from . import standard, sweeps, verdicts
from .frechet import frechet_distance
from .likelihood import Likelihood, masked_likelihood
from .prompts import Prompt
from .reconstruction import Reconstruction, at_stage_size, reconstruct
from .sampling import Generator, decode_pictures, encode_pictures
from .sweeps import Sweep
from .verdicts import Share, Verdict


@dataclass(frozen=True)
class Extent:
    """How much is measured; `QUICK` is for development and its figures mean nothing."""

    prompt_share: float = 1.0
    sweep_share: float = 0.2
    """Share of the prompts that every point of a sweep is measured on."""
    reference_scenes: int = 2000
    reconstructed_scenes: int = 600
    likelihood_scenes: int = 192
    judge: image_text.Training = field(default_factory=image_text.Training)
    base_grid: dict[str, Sequence[float]] = field(default_factory=lambda: sweeps.BASE)
    superres_grid: dict[str, Sequence[float]] = field(default_factory=lambda: sweeps.SUPERRES)


QUICK = Extent(
    prompt_share=0.1, sweep_share=0.05, reference_scenes=150, reconstructed_scenes=32, likelihood_scenes=16,
    judge=image_text.Training(steps=30), base_grid={"steps": (4,)}, superres_grid={"steps": (4,)},
)


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    bundle: Path
    work_dir: Path
    compare: Path | None = None
    overrides: tuple[str, ...] = ()
    """`STAGE.SETTING=VALUE`, in place of the manifest's defaults."""
    with_sweeps: bool = True
    extent: Extent = field(default_factory=Extent)
    threads: int = 1
    fid_weights: Path | None = None
    fid_input: standard.Input = standard.Input(299, "signed")
    clip_weights: Path | None = None
    clip_tokenizer: Path | None = None
    clip_input: standard.Input = standard.Input(224, "clip")


@dataclass
class Results:
    """All figures of a run, and the pictures that the report shows."""

    bundle: Bundle
    settings: dict[str, Settings]
    prompts: list[Prompt]
    candidates: int
    leaks: held_out.Leaks | None
    minutes: dict[str, float]
    judge_minutes: float
    scores: dict[str, dict[str, Share]]
    """Shares by what was measured: `generated`, `real`, `reconstructed`, `wrong`, `without twins`."""
    generated_verdicts: list[Verdict]
    reconstructions: dict[str, Reconstruction]
    reconstruction_frechet: dict[str, float]
    """Fréchet distance of each stage's reconstructions to the very scenes that they reconstruct."""
    likelihood: dict[str, list[Likelihood]]
    frechet: dict[str, float]
    compared: dict[str, dict]
    sweeps: list[Sweep]
    standard: dict[str, float]
    pictures: dict[str, np.ndarray]
    """`generated` [N], `shown` [24], `real` and a stage's name for reconstructions; uint8 RGB [·, H, W, 3]."""
    commit: str


class _Clock:
    """Adds up wall-clock minutes by phase."""

    def __init__(self) -> None:
        self.minutes: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str):
        print(f"=== {name}", flush=True)
        started = time.monotonic()
        yield
        self.minutes[name] = self.minutes.get(name, 0) + (time.monotonic() - started) / 60


def with_overrides(defaults: Settings, stage: str, overrides: Sequence[str]) -> Settings:
    """The settings with every `STAGE.SETTING=VALUE` of this stage applied. Raises `ValueError` on any other form."""
    for override in overrides:
        owner_and_name, equals, value = override.partition("=")
        owner, dot, name = owner_and_name.partition(".")
        if not (equals and dot) or name not in asdict(defaults):
            raise ValueError(f"{override}: not STAGE.SETTING=VALUE with a setting of the manifest")
        if owner == stage:
            defaults = replace(defaults, **{name: type(getattr(defaults, name))(value)})
    return defaults


class _Pictures:
    """Generated pictures; tokens are kept in the work directory, by models, settings and prompts."""

    def __init__(self, bundle: Bundle, folder: Path) -> None:
        self.bundle = bundle
        self.generator = Generator(bundle)
        self._folder = folder
        # What tokens depend on: not the defaults, which a new version of a bundle may change alone.
        self._models = {
            name: {key: value for key, value in table.items() if key not in ("defaults", "version")}
            for name, table in bundle.manifest.items() if isinstance(table, dict)
        }

    def tokens(self, texts: Sequence[str], seeds: Sequence[int], settings: dict[str, Settings]) -> dict[str, np.ndarray]:
        """Tokens of every stage in `settings`, which are the bundle's first ones."""
        made: dict[str, np.ndarray] = {}
        low = None
        for at, (name, one) in enumerate(settings.items()):
            until = {stage: asdict(before) for stage, before in list(settings.items())[: at + 1]}
            described = json.dumps([self._models, list(texts), list(seeds), until])
            path = self._folder / f"tokens-{name}-{hashlib.sha256(described.encode()).hexdigest()[:16]}.npy"
            if not path.exists():
                staging = path.with_suffix(".partial.npy")
                np.save(staging, self.generator.tokens(name, texts, seeds, one, low))
                staging.rename(path)
            made[name] = low = np.load(path)
        return made


def render(renderer: Renderer, scenes: Sequence[Scene], seed: str) -> np.ndarray:
    """Real pictures of scenes, uint8 RGB [N, S, S, 3], the same for the same seed."""
    return np.stack([renderer.draw(scene, random.Random(f"{seed}/{index}")) for index, scene in enumerate(scenes)])


def evaluate(options: Options) -> Results:
    """Measures the bundle. Everything that takes long is announced on stdout."""
    extent, clock = options.extent, _Clock()
    bundle = Bundle(options.bundle, options.threads)
    folder = options.work_dir / "evaluation"
    folder.mkdir(parents=True, exist_ok=True)
    settings = {name: with_overrides(stage.defaults, name, options.overrides) for name, stage in bundle.stages.items()}
    last = list(bundle.stages)[-1]
    made = _Pictures(bundle, folder)

    with clock.phase("image-text model"):
        judge, judge_minutes = image_text.trained(options.work_dir, extent.judge)

    with clock.phase("prompts and real scenes"):
        prompts = held_out.every(held_out.held_out_prompts(held_out.Sizes()), extent.prompt_share)
        candidates = held_out.retrieval_objects(random.Random("evaluation/1"))
        scenes_file = options.work_dir / "scenes" / "scenes.jsonl"
        leaks = held_out.leaks(prompts, scenes_file) if scenes_file.exists() else None
        renderer = Renderer(options.work_dir)
        reference = render(renderer, held_out.scenes_like(prompts, extent.reference_scenes, 1), "reference")
        real = render(renderer, [prompt.scene for prompt in prompts], "real")
        chance = random.Random("wrong")
        wrong = render(renderer, [verdicts.everything_wrong(prompt.scene, chance) for prompt in prompts], "wrong")

    with clock.phase("tokenizers"):
        many = render(renderer, held_out.scenes_like(prompts, extent.reconstructed_scenes, 2), "reconstructed")
        originals = judge.vectors(many)

        def reconstructed(stage: Stage) -> tuple[Reconstruction, float]:
            figures, output = reconstruct(stage, many)
            return figures, frechet_distance(judge.vectors(output), originals)

        reconstructions, reconstruction_frechet, rebuilt = {}, {}, {}
        for name, stage in bundle.stages.items():
            if "encoder" in stage.manifest and "decoder" in stage.manifest:
                reconstructions[name], reconstruction_frechet[name] = reconstructed(stage)
                rebuilt[name] = reconstruct(stage, real)[1]

    with clock.phase("likelihood"):
        likelihood = _likelihood(made.generator, renderer, prompts, extent.likelihood_scenes)

    with clock.phase("pictures of the prompts"):
        texts, seeds = [prompt.text for prompt in prompts], [prompt.seed for prompt in prompts]
        tokens = made.tokens(texts, seeds, settings)
        generated = decode_pictures(bundle.stages[last], tokens[last])
        shown = decode_pictures(bundle.stages[last], made.tokens(SHOWN, [1] * len(SHOWN), settings)[last])

    with clock.phase("measures"):
        judged = {"generated": generated, "real": real, "wrong": wrong}
        if last in rebuilt:
            judged["reconstructed"] = rebuilt[last]
        found = {name: verdicts.verdicts(prompts, many, judge, candidates) for name, many in judged.items()}
        scores = {name: verdicts.shares(results) for name, results in found.items()}
        if leaks is not None:
            kept = [one for one, prompt in zip(found["generated"], prompts, strict=True) if prompt.text not in leaks.twins]
            scores["without twins"] = verdicts.shares(kept)
        known = judge.vectors(reference)

        def distance(pictures: np.ndarray) -> float:
            return frechet_distance(judge.vectors(pictures), known)

        frechet = {"generated": distance(generated), "real": distance(real)}
        frechet |= {f"{name} tokenizer": distance(pictures) for name, pictures in rebuilt.items()}

    compared = {}
    if options.compare is not None:
        with clock.phase("comparison"):
            compared = _compared(Bundle(options.compare, options.threads), real, reconstructed, distance)

    swept: list[Sweep] = []
    if options.with_sweeps:
        with clock.phase("sweeps"):
            few = held_out.every(prompts, extent.sweep_share / extent.prompt_share)
            swept = _sweeps(made, few, settings, judge, candidates, distance, extent)

    with clock.phase("standard networks"):
        figures = _standard(options, generated, reference, texts)

    pictures = {"generated": generated, "shown": shown, "real": real, **rebuilt}
    return Results(
        bundle, settings, prompts, len(candidates), leaks, clock.minutes, judge_minutes, scores, found["generated"],
        reconstructions, reconstruction_frechet, likelihood, frechet, compared, swept, figures, pictures, _commit(),
    )


def _likelihood(
    generator: Generator, renderer: Renderer, prompts: Sequence[Prompt], count: int
) -> dict[str, list[Likelihood]]:
    scenes = held_out.scenes_like(prompts, count, 3)
    pictures = render(renderer, scenes, "likelihood")
    captions = [caption(scene, random.Random(f"likelihood/{at}"), plain=True).text for at, scene in enumerate(scenes)]
    found, low = {}, None
    for name, stage in generator.bundle.stages.items():
        if "encoder" not in stage.manifest:
            break
        tokens = encode_pictures(stage, at_stage_size(stage, pictures))
        found[name] = masked_likelihood(generator, stage, captions, tokens, low)
        low = tokens
    return found


def _compared(
    other: Bundle, real: np.ndarray, reconstructed: Callable[[Stage], tuple[Reconstruction, float]],
    distance: Callable[[np.ndarray], float],
) -> dict[str, dict]:
    """The tokenizers of a second bundle on the same scenes; under "" what bundle that is."""
    model = other.manifest["model"]
    compared: dict[str, dict] = {"": {"bundle": f"{model['name']} {model['version']}", "digest": other.digest}}
    for name, stage in other.stages.items():
        if "encoder" in stage.manifest and "decoder" in stage.manifest:
            figures, to_the_same = reconstructed(stage)
            compared[name] = {
                "psnr": figures.psnr, "ssim": figures.ssim, "reconstruction_frechet": to_the_same,
                "frechet": distance(reconstruct(stage, real)[1]),
            }
    return compared


def _sweeps(
    made: _Pictures, prompts: Sequence[Prompt], settings: dict[str, Settings], judge: image_text.Judge,
    candidates: Sequence[str], distance: Callable[[np.ndarray], float], extent: Extent,
) -> list[Sweep]:
    """Each setting of each stage in turn, judged by the last stage's pictures."""
    texts, seeds = [prompt.text for prompt in prompts], [prompt.seed for prompt in prompts]
    last = list(made.bundle.stages)[-1]

    def measured(changed: dict[str, Settings]) -> tuple[dict[str, float], float]:
        pictures = decode_pictures(made.bundle.stages[last], made.tokens(texts, seeds, changed)[last])
        results = verdicts.verdicts(prompts, pictures, judge, candidates)
        return verdicts.headline(verdicts.shares(results)), distance(pictures)

    found = []
    for stage, grid in (("base", extent.base_grid), ("superres", extent.superres_grid)):
        if stage in settings:
            found += sweeps.sweep(
                stage, settings[stage], grid, len(prompts),
                lambda changed, stage=stage: measured({**settings, stage: changed}),
            )
    return found


def _standard(
    options: Options, generated: np.ndarray, reference: np.ndarray, texts: Sequence[str]
) -> dict[str, float]:
    figures = {}
    if options.fid_weights is not None:
        seen = standard.features(options.fid_weights, options.fid_input, generated)
        figures["FID"] = frechet_distance(seen, standard.features(options.fid_weights, options.fid_input, reference))
    if options.clip_weights is not None:
        if options.clip_tokenizer is None:
            raise ValueError("--clip-weights needs --clip-tokenizer, the tokenizer.json of that model")
        figures["CLIP score"] = standard.clip_score(
            options.clip_weights, options.clip_tokenizer, options.clip_input, generated, texts
        )
    return figures


def _commit() -> str:
    """The commit of the code, with a mark when files differ from it; empty outside a git checkout."""
    root = Path(__file__).resolve().parents[3]
    try:
        told = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=root, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return told.stdout.strip()
