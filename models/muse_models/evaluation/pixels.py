"""Named colours, the background and the things before it, read from pixels alone.

Pictures are uint8 RGB [H, W, 3]. Colours are compared in OKLab (Ottosson 2020), where equal distances look about
equally far apart; white and black are 1.0 apart there.
"""

from dataclasses import dataclass

import numpy as np

from ..data.colours import COLOURS, UNNAMED_BACKGROUND_BEHIND_WHITE

PALE = "pale"
"""Name given here to the colour behind white things where a prompt names no background."""

FOREGROUND_DISTANCE = 0.08
"""A pixel this far from the background's colour belongs to a thing. Half of the distance between the closest two named
colours, and four times the noise of the image tokenizers on an even background."""

FOREGROUND_SHARE = 0.3
"""… and as far as this share of the things' usual distance from it."""

BORDER = 3
"""Width in pixels of the frame that the background is read from."""

_TO_CONE = np.array(
    [[0.4122214708, 0.5363325363, 0.0514459929],
     [0.2119034982, 0.6806995451, 0.1073969566],
     [0.0883024619, 0.2817188376, 0.6299787005]]
)
_TO_LAB = np.array(
    [[0.2104542553, 0.7936177850, -0.0040720468],
     [1.9779984951, -2.4285922050, 0.4505937099],
     [0.0259040371, 0.7827717662, -0.8086757660]]
)


def oklab(rgb: np.ndarray) -> np.ndarray:
    """OKLab f32 [..., 3] of sRGB uint8 [..., 3]."""
    linear = _LINEAR[rgb]
    return (np.cbrt(linear @ _TO_CONE.T) @ _TO_LAB.T).astype(np.float32)


def _linear_light() -> np.ndarray:
    value = np.arange(256) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


_LINEAR = _linear_light()

PALETTE: tuple[str, ...] = (*COLOURS, PALE)
_ANCHORS = oklab(np.array([*COLOURS.values(), UNNAMED_BACKGROUND_BEHIND_WHITE], np.uint8))


def nearest_names(lab: np.ndarray, palette_size: int = len(PALETTE)) -> np.ndarray:
    """Index into `PALETTE` of the nearest of its first `palette_size` colours; `lab` [..., 3] → int [...]."""
    anchors = _ANCHORS[:palette_size]
    return np.square(lab[..., None, :] - anchors).sum(-1).argmin(-1)


@dataclass(frozen=True)
class Background:
    """What the frame of a picture shows."""

    name: str
    """The commonest of `PALETTE` along the border."""
    share: float
    """Of the border's pixels, how many have that name."""
    lab: np.ndarray
    """OKLab [3]: the median of those pixels."""


def background(lab: np.ndarray) -> Background:
    """Reads the background of a picture, OKLab [H, W, 3], from its border."""
    frame = np.ones(lab.shape[:2], bool)
    frame[BORDER:-BORDER, BORDER:-BORDER] = False
    pixels = lab[frame]
    names = nearest_names(pixels)
    votes = np.bincount(names, minlength=len(PALETTE))
    winner = int(votes.argmax())
    return Background(PALETTE[winner], votes[winner] / len(pixels), np.median(pixels[names == winner], axis=0))


def foreground(lab: np.ndarray, behind: Background) -> np.ndarray:
    """Bool [H, W]: what does not have the background's colour. Things may have holes of that colour.

    Where things stand out strongly, a faint smear between two of them is still background.
    """
    distance = np.sqrt(np.square(lab - behind.lab).sum(-1))
    differs = distance > FOREGROUND_DISTANCE
    if not differs.any():
        return differs
    return distance > max(FOREGROUND_DISTANCE, FOREGROUND_SHARE * float(np.median(distance[differs])))


def components(mask: np.ndarray) -> np.ndarray:
    """Labels int32 [H, W] of the 8-connected parts of a bool mask, from 1; 0 elsewhere.

    Runs of each row are joined with the runs that they touch in the row above.
    """
    parent = [0]

    def root(label: int) -> int:
        while parent[label] != label:
            parent[label] = parent[parent[label]]
            label = parent[label]
        return label

    labels = np.zeros(mask.shape, np.int32)
    above: list[tuple[int, int, int]] = []
    for row, line in enumerate(mask):
        edges = np.flatnonzero(np.diff(line.astype(np.int8), prepend=0, append=0))
        runs = []
        for start, end in edges.reshape(-1, 2).tolist():
            touching = [root(label) for first, last, label in above if first <= end and last >= start]
            label = min(touching, default=len(parent))
            if label == len(parent):
                parent.append(label)
            for other in touching:
                parent[other] = label
            labels[row, start:end] = label
            runs.append((start, end, label))
        above = runs
    roots = np.array([root(label) for label in range(len(parent))])
    _, compact = np.unique(roots, return_inverse=True)
    return compact.astype(np.int32)[labels]


def filled(mask: np.ndarray) -> np.ndarray:
    """`mask` with its holes closed: background that does not reach the border becomes foreground."""
    outside = components(np.pad(~mask, 1, constant_values=True))
    return (outside != outside[0, 0])[1:-1, 1:-1]


def _disc(radius: int) -> list[tuple[int, int]]:
    reach = range(-radius, radius + 1)
    return [(down, right) for down in reach for right in reach if down**2 + right**2 <= radius**2 + 1]


def dilated(mask: np.ndarray, radius: int) -> np.ndarray:
    """Every pixel within `radius` pixels of `mask`."""
    height, width = mask.shape
    padded = np.pad(mask, radius)
    result = np.zeros_like(mask)
    for down, right in _disc(radius):
        result |= padded[radius + down : radius + down + height, radius + right : radius + right + width]
    return result


def eroded(mask: np.ndarray, radius: int) -> np.ndarray:
    """What of `mask` is further than `radius` pixels from anything else; the world beyond the border counts as mask."""
    return ~dilated(~mask, radius)


def closed(mask: np.ndarray, radius: int) -> np.ndarray:
    """`mask` with gaps up to 2 · `radius` pixels wide bridged."""
    if radius == 0:
        return mask
    grown = np.pad(mask, radius)
    return eroded(dilated(grown, radius), radius)[radius:-radius, radius:-radius]


def resized(picture: np.ndarray, side: int) -> np.ndarray:
    """A square picture at `side` × `side` pixels, averaged where it shrinks."""
    if picture.shape[0] == side:
        return picture
    from PIL import Image

    how = Image.Resampling.BOX if picture.shape[0] % side == 0 else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(picture).resize((side, side), how))
