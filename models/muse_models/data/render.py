"""Turns scenes into pictures."""

import random
from pathlib import Path

import numpy as np
from PIL import Image

from . import sprites
from .catalogue import BY_NAME, THINGS
from .colours import COLOUR_NAMES, COLOURS, UNNAMED_BACKGROUND, UNNAMED_BACKGROUND_BEHIND_WHITE
from .scene import CANVAS, Scene, layout

_INDEX = {thing.name: index for index, thing in enumerate(THINGS)}
_COLOUR_INDEX = {name: index for index, name in enumerate(COLOUR_NAMES)}


def background_of(scene: Scene) -> tuple[int, int, int]:
    """The background's colour, also where the scene names none."""
    if scene.background:
        return COLOURS[scene.background]
    for item in scene.items:
        if (item.colour or BY_NAME[item.name].natural_colour) == "white":
            return UNNAMED_BACKGROUND_BEHIND_WHITE
    return UNNAMED_BACKGROUND


class Renderer:
    """Draws scenes from the sprite cache; scaled sprites are kept, because sizes are few."""

    def __init__(self, work_dir: Path):
        self._natural, self._tinted = sprites.load(work_dir)
        self._scaled: dict[tuple, Image.Image] = {}

    def _sprite(self, name: str, colour: str | None, side: int) -> Image.Image:
        key = (name, colour, side)
        if key not in self._scaled:
            index = _INDEX[name]
            pixels = self._natural[index] if colour is None else self._tinted[index, _COLOUR_INDEX[colour]]
            self._scaled[key] = Image.fromarray(pixels).resize((side, side), Image.Resampling.BOX)
        return self._scaled[key]

    def draw(self, scene: Scene, rng: random.Random) -> np.ndarray:
        """The scene as uint8 RGB [128, 128, 3]; `rng` decides what the caption leaves open."""
        canvas = Image.new("RGB", (CANVAS, CANVAS), background_of(scene))
        for box in layout(scene, rng):
            item = scene.items[box.item]
            sprite = self._sprite(item.name, item.colour, box.side)
            canvas.paste(sprite, (box.left, box.top), sprite)
        return np.asarray(canvas)


def halve(images: np.ndarray) -> np.ndarray:
    """Averages 2×2 pixels: uint8 [N, 2H, 2W, 3] → [N, H, W, 3], the base stage's view of a picture."""
    count, height, width, channels = images.shape
    blocks = images.reshape(count, height // 2, 2, width // 2, 2, channels)
    return (blocks.astype(np.uint16).sum((2, 4)) + 2 >> 2).astype(np.uint8)
