"""Golden vectors on a bundle: `python -m muse_models.reference.golden --bundle DIR --out tests/golden/NAME.json`.

Every case is one row of one stage: what was asked, and the tokens that came of it. The Rust engine must come to the
same tokens. The file names the digest of `bundle.toml`, so that vectors of another bundle are noticed.
"""

import argparse
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from .bundle import Bundle, Stage
from .pipeline import Request, decode_stage
from .sampler import Settings

SHORT = "a red circle"
LONG = "two blue stars above a green square on a white background"
ODD = "  Three YELLOW  hearts, and a zebra"


@dataclass(frozen=True)
class Case:
    """What a golden case asks for; settings that it does not name are `PLAIN`'s."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    prompt: str = SHORT
    negative_prompt: str | None = None
    seed: int = 1
    image_index: int = 0
    known: str = "none"
    """Which positions of the initial grid hold a token: `none`, `half`, `all but one`, `left`."""


PLAIN = Settings(
    steps=6, guidance=2.0, guidance_schedule="linear", temperature=1.0, top_k=0, choice_temperature=4.5,
    mask_schedule="cosine", scheduler="confidence",
)

BASE_CASES = (
    Case("plain"),
    Case("the bundle's defaults", settings={"defaults": True}, prompt=LONG, seed=2),
    Case("linear masks", {"mask_schedule": "linear"}, seed=3),
    Case("arccos masks", {"mask_schedule": "arccos", "steps": 12}, seed=4),
    Case("halton", {"scheduler": "halton"}, prompt=LONG, seed=5),
    Case(
        "halton with linear masks and a known half", {"scheduler": "halton", "mask_schedule": "linear"},
        seed=6, known="half",
    ),
    Case("constant guidance", {"guidance_schedule": "constant", "guidance": 1.5}, seed=7),
    Case("no guidance", {"guidance": 0.0}, seed=8),
    Case("strong guidance", {"guidance": 8.0, "steps": 12}, prompt=LONG, seed=9),
    Case("negative prompt", negative_prompt="a blue square", seed=10),
    Case("negative prompt, constant guidance", {"guidance_schedule": "constant"}, LONG, "white background", seed=11),
    Case("greedy without noise", {"temperature": 0.0, "choice_temperature": 0.0}, seed=12),
    Case("greedy with noise", {"temperature": 0.0}, seed=13),
    Case("cool", {"temperature": 0.7}, seed=14),
    Case("hot", {"temperature": 1.3, "choice_temperature": 0.0}, seed=15),
    Case("top 1", {"top_k": 1}, seed=16),
    Case("top 3", {"top_k": 3, "temperature": 1.3}, seed=17),
    Case("top k beyond the codebook", {"top_k": 100000}, seed=18),
    Case("one step", {"steps": 1, "guidance": 3.0}, seed=19),
    Case("five steps", {"steps": 5}, seed=20),
    Case("more steps than positions", {"steps": 1000}, seed=21),
    Case("third image", prompt=LONG, seed=1, image_index=2),
    Case("largest seed", seed=2**64 - 1),
    Case("seed above 32 bits", seed=0x0123456789ABCDEF, image_index=7),
    Case("half of the grid known", prompt=LONG, seed=22, known="half"),
    Case("left half known, twelve steps", {"steps": 12}, seed=23, known="left"),
    Case("one masked position", seed=24, known="all but one"),
    Case("untidy prompt", prompt=ODD, seed=25),
)

SUPERRES_CASES = (
    Case("plain", seed=31),
    Case("the bundle's defaults", settings={"defaults": True}, prompt=LONG, seed=32),
    Case("constant guidance, top 3", {"guidance_schedule": "constant", "top_k": 3}, seed=33),
    Case("negative prompt", prompt=LONG, negative_prompt="a red circle", seed=34),
    Case("halton, arccos", {"scheduler": "halton", "mask_schedule": "arccos", "steps": 8}, seed=35),
    Case("no guidance, cool", {"guidance": 0.0, "temperature": 0.7}, seed=36),
    Case("greedy without noise", {"temperature": 0.0, "choice_temperature": 0.0, "mask_schedule": "linear"}, seed=37),
    Case("one step", {"steps": 1}, seed=38),
    Case("half of the grid known", seed=2**63 + 5, image_index=3, known="half"),
    Case("one masked position", prompt=ODD, seed=39, known="all but one"),
)

FEW = ("plain", "the bundle's defaults", "halton", "negative prompt", "half of the grid known")
"""Cases for a large bundle, with the bundle's own numbers of steps."""


def initial_grid(stage: Stage, known: str, seed: int) -> np.ndarray | None:
    """A grid [S] int64 with tokens where `Case.known` says, the mask id elsewhere; None if all is masked."""
    if known == "none":
        return None
    random = np.random.default_rng(seed)
    tokens = random.integers(0, stage.manifest["codebook_size"], stage.positions)
    masked = np.zeros(stage.grid, bool)
    if known == "half":
        masked = random.random(stage.grid) < 0.5
    elif known == "left":
        masked[:, stage.grid[1] // 2 :] = True
    elif known == "all but one":
        masked.flat[random.integers(stage.positions)] = True
    else:
        raise ValueError(known)
    return np.where(masked.reshape(-1), stage.manifest["mask_id"], tokens)


def run_case(bundle: Bundle, stage_name: str, case: Case, own_steps: bool) -> dict[str, Any]:
    """Decodes `case` and describes it with its result, as it stands in the file."""
    stage = bundle.stages[stage_name]
    changed = dict(case.settings)
    settings = stage.defaults if changed.pop("defaults", False) else replace(PLAIN, **changed)
    if own_steps:
        settings = replace(settings, steps=stage.defaults.steps)
    initial = initial_grid(stage, case.known, case.seed % 2**32)
    low = None
    if stage_name == "superres":
        base = bundle.stages["base"]
        low = np.random.default_rng(case.seed % 2**32 + 1).integers(0, base.manifest["codebook_size"], base.positions)
    request = Request(case.prompt, case.seed, case.image_index, case.negative_prompt, initial)
    row = decode_stage(bundle, stage_name, request, settings, low)
    return {
        "name": f"{stage_name}: {case.name}",
        "stage": stage_name,
        "prompt": case.prompt,
        "negative_prompt": case.negative_prompt,
        "seed": str(case.seed),
        "image_index": case.image_index,
        **asdict(settings),
        "initial_tokens": None if initial is None else initial.tolist(),
        "low_tokens": None if low is None else low.tolist(),
        "tokens": row.tokens.tolist(),
        "masked_after_step": row.masked_after_step,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--few", action="store_true", help="a few cases alone, with the bundle's own numbers of steps")
    arguments = parser.parse_args()
    bundle = Bundle(arguments.bundle)
    cases = [
        run_case(bundle, stage, case, own_steps=arguments.few)
        for stage, stage_cases in (("base", BASE_CASES), ("superres", SUPERRES_CASES))
        if stage in bundle.stages
        for case in stage_cases
        if not arguments.few or case.name in FEW
    ]
    write_golden(arguments.out, {"bundle": bundle.manifest["model"]["name"], "digest": bundle.digest}, {"cases": cases})
    print(f"{arguments.out}: {len(cases)} cases")


def write_golden(path: Path, head: dict[str, Any], lists: dict[str, list[Any]]) -> None:
    """Writes one JSON object of `head` and `lists`, each element of a list on its own line."""
    parts = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    for key, values in lists.items():
        lines = ",\n".join(json.dumps(value) for value in values)
        parts.append(f"{json.dumps(key)}: [\n{lines}\n]")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")


if __name__ == "__main__":
    main()
