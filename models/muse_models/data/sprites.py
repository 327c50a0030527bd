"""Rasterises the catalogue once and keeps it as arrays.

The cache is `sprites.npz` in the work directory: `natural` uint8 RGBA [T, S, S, 4] in catalogue order,
`tinted` [T, C, S, S, 4] in the order of `COLOUR_NAMES`; shapes have their own colour in both.
"""

import io
import math
from pathlib import Path

import numpy as np
from PIL import Image

from .catalogue import THINGS, Thing
from .colours import COLOUR_NAMES, COLOURS, tint
from .packages import icon_set

SPRITE_SIDE = 128


def _star_points(radius: float, inner: float) -> str:
    points = []
    for corner in range(10):
        reach = radius if corner % 2 == 0 else inner
        angle = math.pi * corner / 5 - math.pi / 2
        points.append(f"{16 + reach * math.cos(angle):.3f},{17 + reach * math.sin(angle):.3f}")
    return " ".join(points)


SHAPE_SVG: dict[str, str] = {
    "circle": '<circle cx="16" cy="16" r="13.5"/>',
    "square": '<rect x="3.5" y="3.5" width="25" height="25" rx="1"/>',
    "triangle": '<polygon points="16,3 30,28.5 2,28.5"/>',
    "star": f'<polygon points="{_star_points(15.5, 6.4)}"/>',
    "heart": '<path d="M16 29 C4 20 1.5 14.5 2 10.5 C2.6 5.8 6 3.2 9.4 3.2 C12.2 3.2 14.7 4.9 16 8'
    ' C17.3 4.9 19.8 3.2 22.6 3.2 C26 3.2 29.4 5.8 30 10.5 C30.5 14.5 28 20 16 29Z"/>',
    "diamond": '<polygon points="16,1.5 27.5,16 16,30.5 4.5,16"/>',
}


def _rasterise(svg_body: str, side: int) -> np.ndarray:
    import resvg_py

    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">{svg_body}</svg>'
    png = resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side)
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA"))


def _shape(thing: Thing, colour: str) -> np.ndarray:
    red, green, blue = COLOURS[colour]
    return _rasterise(f'<g fill="rgb({red},{green},{blue})">{SHAPE_SVG[thing.name]}</g>', SPRITE_SIDE)


def build(work_dir: Path) -> Path:
    """Writes the sprite cache and returns its path."""
    icons = icon_set(work_dir)
    natural = np.zeros((len(THINGS), SPRITE_SIDE, SPRITE_SIDE, 4), np.uint8)
    tinted = np.zeros((len(THINGS), len(COLOUR_NAMES), SPRITE_SIDE, SPRITE_SIDE, 4), np.uint8)
    for index, thing in enumerate(THINGS):
        if not thing.is_shape:
            name = icons.get("aliases", {}).get(thing.icon, {}).get("parent", thing.icon)
            natural[index] = _rasterise(icons["icons"][name]["body"], SPRITE_SIDE)
        for column, colour in enumerate(COLOUR_NAMES):
            if thing.is_shape:
                tinted[index, column] = _shape(thing, colour)
            elif colour == thing.natural_colour:
                tinted[index, column] = natural[index]
            else:
                tinted[index, column] = tint(natural[index], colour)
    path = work_dir / "sprites.npz"
    staging = path.with_name("sprites.partial.npz")
    np.savez(staging, natural=natural, tinted=tinted)
    staging.rename(path)
    return path


def load(work_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    """`(natural, tinted)`, rasterising them first when there is no cache."""
    path = work_dir / "sprites.npz"
    if not path.exists():
        build(work_dir)
    with np.load(path) as arrays:
        return arrays["natural"], arrays["tinted"]
