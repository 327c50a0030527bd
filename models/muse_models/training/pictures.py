"""Writes grids of pictures, to be looked at while a run goes on."""

from pathlib import Path

import numpy as np
from PIL import Image


def save_grid(path: Path, rows: list[np.ndarray], scale: int = 1) -> None:
    """Writes rows of pictures as one PNG; each row is float [N, 3, H, W] in 0..1."""
    lines = []
    for row in rows:
        pixels = (np.clip(row, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(0, 2, 3, 1)
        pixels = pixels.repeat(scale, 1).repeat(scale, 2)
        lines.append(np.concatenate(list(pixels), axis=1))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(lines, axis=0)).save(path)
