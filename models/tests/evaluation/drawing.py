"""Scenes of plain shapes drawn with Pillow, so that these tests need neither icons nor a network."""

import numpy as np
from PIL import Image, ImageDraw

from muse_models.data.colours import COLOURS

SIDE = 128


def drawn(things: list[tuple[str, str, int, int, int]], background: str = "white") -> np.ndarray:
    """uint8 RGB [128, 128, 3] of `things`: (shape, colour, left, top, side) in pixels."""
    scale = 4
    image = Image.new("RGB", (SIDE * scale, SIDE * scale), COLOURS[background])
    draw = ImageDraw.Draw(image)
    for shape, colour, left, top, side in things:
        box = [scale * value for value in (left, top, left + side, top + side)]
        middle = (box[0] + box[2]) // 2
        if shape == "circle":
            draw.ellipse(box, fill=COLOURS[colour])
        elif shape == "square":
            draw.rectangle(box, fill=COLOURS[colour])
        elif shape == "triangle":
            draw.polygon([(middle, box[1]), (box[2], box[3]), (box[0], box[3])], fill=COLOURS[colour])
        else:
            raise ValueError(shape)
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX))


def blurred(picture: np.ndarray, noise: int = 4) -> np.ndarray:
    """The picture as an image tokenizer may give it back: soft and a little noisy."""
    small = Image.fromarray(picture).resize((SIDE // 2, SIDE // 2), Image.Resampling.BOX)
    soft = np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC)).astype(int)
    rng = np.random.default_rng(0)
    return np.clip(soft + rng.integers(-noise, noise + 1, soft.shape), 0, 255).astype(np.uint8)
