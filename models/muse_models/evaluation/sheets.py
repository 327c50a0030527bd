"""Sheets of pictures with words under them, as WebP."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .pixels import resized

_QUALITY = 80
_LINE = 12


def sheet(
    path: Path, pictures: Sequence[np.ndarray], labels: Sequence[str], columns: int, side: int = 128,
    right: Sequence[bool] | None = None,
) -> None:
    """Writes uint8 RGB pictures in rows of `columns`, each with its label; a green or red line says whether it is right."""
    lines = 3
    gap = 6
    height = side + lines * _LINE + gap
    rows = -(-len(pictures) // columns)
    canvas = Image.new("RGB", (columns * (side + gap), rows * height), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(10)
    for index, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        left, top = index % columns * (side + gap), index // columns * height
        canvas.paste(Image.fromarray(resized(picture, side)), (left, top))
        if right is not None:
            colour = "#2ca02c" if right[index] else "#d62728"
            draw.rectangle((left, top + side, left + side - 1, top + side + 2), fill=colour)
        text = "\n".join(textwrap.wrap(label, side // 5 - 1)[:lines])
        draw.multiline_text((left, top + side + 3), text, fill="black", font=font, spacing=1)
    canvas.save(path, quality=_QUALITY, method=6)


def rows(path: Path, lines: Sequence[Sequence[np.ndarray]], side: int = 96) -> None:
    """Writes rows of uint8 RGB pictures, one row under the other."""
    grid = np.concatenate([np.concatenate([resized(picture, side) for picture in line], axis=1) for line in lines])
    Image.fromarray(grid).save(path, quality=_QUALITY, method=6)
