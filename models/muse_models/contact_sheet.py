"""Pictures of a fixed list of prompts, to be looked at: `python -m muse_models.contact_sheet --bundle DIR --out sheet.png`.

Uses the reference sampler, so no PyTorch is needed. `--set base.guidance=2` overrides a stage's default settings.
With `--stages` each prompt gets two pictures: the base stage's own, enlarged, and the final one.
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np

from .reference.bundle import Bundle
from .reference.pipeline import Request, decode_stage
from .reference.sampler import Settings

PROMPTS = (
    "a red apple", "a cat", "a dog", "a fox", "a red bicycle", "a rocket",
    "three yellow stars on a black background", "two red apples on a blue background",
    "a cat to the left of a dog", "a blue car", "a house", "a green heart on a pink background",
    "a red circle to the left of a blue square", "a blue square to the left of a red circle",
    "a pizza", "a blue cat", "four strawberries", "an owl above a mushroom",
    "a penguin on a blue background", "a purple umbrella", "a crown on a red background",
    "two green frogs", "a sun above a tree", "a white ghost on a black background",
)


def _settings(defaults: Settings, stage: str, overrides: list[str]) -> Settings:
    changes = {}
    for override in overrides:
        name, _, value = override.partition("=")
        owner, _, field = name.partition(".")
        if owner == stage:
            changes[field] = type(getattr(defaults, field))(value)
    return dataclasses.replace(defaults, **changes)


def draw(bundle: Bundle, prompt: str, seed: int, overrides: list[str]) -> list[np.ndarray]:
    """A picture a stage, f32 [3, H, W] in 0..1, all of the last stage's size."""
    pictures, tokens = [], None
    for name, stage in bundle.stages.items():
        settings = _settings(stage.defaults, name, overrides)
        tokens = decode_stage(bundle, name, Request(prompt, seed), settings, tokens).tokens
        pictures.append(stage.decoder.run(["image"], {"tokens": tokens[None]})[0][0])
    height = pictures[-1].shape[1]
    return [picture.repeat(height // picture.shape[1], 1).repeat(height // picture.shape[1], 2) for picture in pictures]


def main() -> None:
    from PIL import Image

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--stages", action="store_true", help="show the base stage's picture as well")
    parser.add_argument("--set", action="append", default=[], metavar="STAGE.SETTING=VALUE")
    parser.add_argument("--prompt", action="append", help="instead of the list; may be given several times")
    arguments = parser.parse_args()
    bundle = Bundle(arguments.bundle, 1)
    cells = []
    for prompt in arguments.prompt or PROMPTS:
        pictures = draw(bundle, prompt, arguments.seed, arguments.set)
        cells.append(np.concatenate(pictures if arguments.stages else pictures[-1:], axis=1))
    while len(cells) % arguments.columns:
        cells.append(np.ones_like(cells[0]))
    rows = [np.concatenate(cells[at : at + arguments.columns], axis=2) for at in range(0, len(cells), arguments.columns)]
    sheet = np.concatenate(rows, axis=1).transpose(1, 2, 0)
    Image.fromarray((np.clip(sheet, 0, 1) * 255 + 0.5).astype(np.uint8)).save(arguments.out)


if __name__ == "__main__":
    main()
