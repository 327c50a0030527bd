"""What a picture shows, by code on its pixels: colours, how many things, where two things stand.

Everything here knows pictures alone, not what was asked for.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..data.colours import COLOUR_NAMES
from . import pixels

SIDE = 128
"""Pictures are measured at this size; distances below are in its pixels."""

SMALLEST_THING = 60
"""Pixels of foreground below which a part is taken for dirt: half of the smallest icon in a group."""

SMALLEST_SHARE = 0.2
"""A part with less than this share of the largest one's box is a fragment or dirt, not one more of its kind."""

OPENINGS = (0, 1, 2, 3)
"""Radii by which the foreground is worn away, one after the other, so that things that touch come apart."""

CLOSINGS = (1, 2, 3, 5)
"""Radii by which gaps are bridged, one after the other, until all parts look alike."""

CROP_MARGIN = 0.1
"""Margin around a thing that is looked at on its own, as a share of its box."""

KEPT_SHARE = 0.7
"""Parts are things only if they hold this share of the foreground: two alike eyes are not two things."""


@dataclass(frozen=True)
class Part:
    """One connected piece of the foreground: its box in pixels, and its mask within the box."""

    top: int
    left: int
    mask: np.ndarray
    lab: np.ndarray
    """Mean OKLab of its pixels, [3]."""

    @property
    def box_area(self) -> int:
        return self.mask.size


class Picture:
    """A picture with what is read from it, each at first use. `rgb` uint8 [H, W, 3], square."""

    def __init__(self, rgb: np.ndarray) -> None:
        self.rgb = pixels.resized(rgb, SIDE)
        self.lab = pixels.oklab(self.rgb)

    @cached_property
    def background(self) -> pixels.Background:
        return pixels.background(self.lab)

    @cached_property
    def foreground(self) -> np.ndarray:
        """Bool [SIDE, SIDE], without dirt."""
        mask = pixels.foreground(self.lab, self.background)
        labels = pixels.components(mask)
        areas = np.bincount(labels.reshape(-1))
        return mask & (areas[labels] >= SMALLEST_THING // 4)

    def colour_shares(self, side: "Side | None" = None) -> np.ndarray:
        """Share of each of `COLOUR_NAMES` among the foreground's pixels, [11]; zeros where there are none.

        Pixels at the edges, where colours mix, do not count. `side` looks at one of two things alone.
        """
        whole = self.foreground if side is None else side.mask
        inside = pixels.eroded(pixels.filled(whole), 2) & whole
        chosen = self.lab[inside if inside.any() else whole]
        names = pixels.nearest_names(chosen, len(COLOUR_NAMES))
        return np.bincount(names, minlength=len(COLOUR_NAMES)) / max(len(chosen), 1)

    def colour(self, side: "Side | None" = None) -> str | None:
        """The name of most of the foreground's pixels, or None when no name has half of them."""
        shares = self.colour_shares(side)
        return COLOUR_NAMES[int(shares.argmax())] if shares.max() >= 0.5 else None

    def main_colour(self) -> str:
        """The commonest name among the foreground's pixels, for things of several colours."""
        return COLOUR_NAMES[int(self.colour_shares().argmax())]

    def parts(self, mask: np.ndarray) -> list[Part]:
        """The connected pieces of `mask`, fragments and dirt left out."""
        labels = pixels.components(mask)
        found = []
        for label in range(1, labels.max() + 1):
            rows, columns = np.nonzero(labels == label)
            if len(rows) < SMALLEST_THING // 2:
                continue
            top, left = rows.min(), columns.min()
            own = (labels == label)[top : rows.max() + 1, left : columns.max() + 1]
            found.append(Part(int(top), int(left), own, self.lab[rows, columns].mean(0)))
        largest = max((part.box_area for part in found), default=0)
        return [part for part in found if part.box_area >= SMALLEST_SHARE * largest]

    @cached_property
    def count(self) -> int:
        """How many things there are.

        Several of a kind look alike. If the foreground falls into alike parts, at once or when it is worn away a little
        (things may touch), those are counted. Otherwise gaps are bridged until all parts are alike: the fragments of
        one thing, such as a panda's ears on white, are not. If they never are, the parts are counted as they stand.
        """
        whole = pixels.filled(self.foreground)
        for radius in OPENINGS:
            mask = pixels.eroded(whole, radius) if radius else whole
            parts = self.parts(mask)
            kept = sum(part.mask.sum() for part in parts)
            if len(parts) > 1 and _all_alike(parts) and kept >= KEPT_SHARE * mask.sum():
                return len(parts)
        for radius in CLOSINGS:
            parts = self.parts(pixels.filled(pixels.closed(self.foreground, radius)))
            if _all_alike(parts):
                return len(parts)
        return len(self.parts(whole))


    @cached_property
    def sides(self) -> tuple["Side", "Side"] | None:
        """The foreground cut in two, left then right or upper then lower, where its pixels lie furthest apart.

        None when there is nothing to cut.
        """
        rows, columns = np.nonzero(self.foreground)
        if len(rows) < 2 * SMALLEST_THING:
            return None
        (spread_across, at_column), (spread_down, at_row) = _cut(columns), _cut(rows)
        axis = "across" if spread_across >= spread_down else "down"
        first = np.zeros((SIDE, SIDE), bool)
        first[(slice(None), slice(at_column)) if axis == "across" else slice(at_row)] = True
        return Side(axis, self.foreground & first), Side(axis, self.foreground & ~first)

    def crop(self, side: "Side") -> np.ndarray:
        """A square uint8 picture of one side with a margin; what is not of that side has the background's colour."""
        rows, columns = np.nonzero(side.mask)
        top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
        half = round(max(bottom - top, right - left) * (0.5 + CROP_MARGIN))
        own_name = pixels.nearest_names(self.lab) == pixels.PALETTE.index(self.background.name)
        behind = np.median(self.rgb[own_name], axis=0).astype(np.uint8)
        window = np.zeros((SIDE, SIDE), bool)
        if side.axis == "across":
            window[:, max(left - 1, 0) : right + 1] = True
        else:
            window[max(top - 1, 0) : bottom + 1] = True
        canvas = np.empty((SIDE + 2 * half, SIDE + 2 * half, 3), np.uint8)
        canvas[:] = behind
        canvas[half : half + SIDE, half : half + SIDE] = np.where(window[..., None], self.rgb, behind)
        row, column = (top + bottom) // 2, (left + right) // 2
        return canvas[row : row + 2 * half, column : column + 2 * half]


@dataclass(frozen=True)
class Side:
    """One of two things: the foreground's pixels that are its own, and the direction in which the two stand apart."""

    axis: str
    """`across`: left and right; `down`: above and below."""
    mask: np.ndarray


def _cut(coordinates: np.ndarray) -> tuple[float, int]:
    """Where to cut values in two so that the halves' means lie furthest apart: (between-class variance, cut)."""
    counts = np.bincount(coordinates, minlength=SIDE).astype(np.float64)
    position = np.arange(SIDE)
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    moment = np.cumsum(counts * position)
    mean_below = moment[:-1] / np.maximum(below, 1)
    mean_above = (moment[-1] - moment[:-1]) / np.maximum(above, 1)
    between = below * above * np.square(mean_above - mean_below) / counts.sum() ** 2
    # Between two things the variance is flat: the middle of the gap is as good as any.
    best = np.flatnonzero(between >= between.max() * (1 - 1e-12))
    return float(between.max()), int(best[len(best) // 2]) + 1


def _all_alike(parts: list[Part]) -> bool:
    return all(_alike(parts[0], part) for part in parts[1:])


def _alike(one: Part, other: Part) -> bool:
    heights, widths = sorted((one.mask.shape[0], other.mask.shape[0])), sorted((one.mask.shape[1], other.mask.shape[1]))
    if heights[0] < 0.7 * heights[1] or widths[0] < 0.7 * widths[1]:
        return False
    if np.linalg.norm(one.lab - other.lab) > 0.15:
        return False
    a, b = _normalised(one.mask), _normalised(other.mask)
    return (a & b).sum() >= 0.6 * (a | b).sum()


def _normalised(mask: np.ndarray, side: int = 24) -> np.ndarray:
    rows = np.arange(side) * mask.shape[0] // side
    columns = np.arange(side) * mask.shape[1] // side
    return mask[rows[:, None], columns]
