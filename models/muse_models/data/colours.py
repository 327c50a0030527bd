"""Named colours, and how an icon is given one."""

import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 38, 42),
    "orange": (246, 136, 24),
    "yellow": (252, 213, 40),
    "green": (48, 164, 70),
    "blue": (42, 104, 222),
    "purple": (132, 62, 192),
    "pink": (250, 128, 186),
    "brown": (128, 78, 44),
    "black": (24, 24, 28),
    "gray": (138, 142, 148),
    "white": (252, 252, 252),
}
"""sRGB, 0–255. Backgrounds, shapes and tinted objects all use these values."""

COLOUR_NAMES: tuple[str, ...] = tuple(COLOURS)

UNNAMED_BACKGROUND = COLOURS["white"]
"""Background of a scene whose caption names none."""
UNNAMED_BACKGROUND_BEHIND_WHITE = (196, 206, 218)
"""The same where something white has to stand out from it."""


def _ramp(colour: str) -> np.ndarray:
    """Shade, middle and highlight of a colour: [3, 3] in 0..1."""
    middle = np.array(COLOURS[colour], np.float32) / 255
    if colour == "black":
        return np.stack([middle * 0.4, middle * 1.7, np.full(3, 0.62, np.float32)])
    if colour == "white":
        return np.stack([np.full(3, 0.45, np.float32), middle * 0.95, np.ones(3, np.float32)])
    return np.stack([middle * 0.28, middle, middle * 0.35 + 0.65])


def _hue_and_saturation(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hue in turns (0..1) and saturation × value of `rgb` [H, W, 3] in 0..1."""
    high, low = rgb.max(-1), rgb.min(-1)
    chroma = high - low
    safe = np.where(chroma > 1e-6, chroma, 1)
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    hue = np.where(
        high == red,
        (green - blue) / safe % 6,
        np.where(high == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    return hue / 6, chroma


def tint(sprite: np.ndarray, colour: str) -> np.ndarray:
    """Gives a sprite (uint8 RGBA [H, W, 4]) a named colour and keeps its drawing readable.

    Only the sprite's main hue changes where that covers most of it, so that eyes, wheels and leaves
    stay as they are. A sprite without a main hue is mapped by luminance as a whole.
    """
    rgb = sprite[..., :3].astype(np.float32) / 255
    alpha = sprite[..., 3].astype(np.float32) / 255
    hue, chroma = _hue_and_saturation(rgb)
    luminance = rgb @ np.array([0.299, 0.587, 0.114], np.float32)

    histogram = np.histogram(hue, bins=36, range=(0, 1), weights=alpha * chroma)[0]
    smooth = histogram + np.roll(histogram, 1) + np.roll(histogram, -1)
    main_hue = (smooth.argmax() + 0.5) / 36
    distance = np.abs((hue - main_hue + 0.5) % 1 - 0.5)
    share = np.clip((chroma - 0.12) / 0.1, 0, 1) * np.clip((0.14 - distance) / 0.04, 0, 1)
    area = alpha.sum()
    if (share * alpha).sum() < 0.5 * area:
        # No main hue: everything but near-black lines and near-white highlights changes.
        share = np.clip((luminance - 0.12) / 0.12, 0, 1)
    weight = share * alpha
    middle = float((luminance * weight).sum() / max(weight.sum(), 1e-6))
    middle = min(max(middle, 0.15), 0.85)

    shade, main, light = _ramp(colour)
    dark = np.clip(luminance / middle, 0, 1)[..., None]
    bright = np.clip((luminance - middle) / (1 - middle), 0, 1)[..., None]
    recoloured = shade + (main - shade) * dark + (light - main) * bright
    mixed = rgb + (recoloured - rgb) * share[..., None]
    result = sprite.copy()
    result[..., :3] = np.clip(mixed * 255 + 0.5, 0, 255).astype(np.uint8)
    return result
