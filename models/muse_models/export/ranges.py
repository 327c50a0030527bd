"""Ranges for numbers that will be stored in eight bits: collected while a model runs, then chosen by the least error."""

from dataclasses import dataclass

import numpy as np

LEVELS = 255
"""Steps between the smallest and the largest uint8."""

_BINS = 4096
"""Bins of a histogram; a power of two, so that doubling its range keeps the edges."""

_SHARES = 0.97 ** np.arange(48)
"""Shares of the seen minimum and maximum that are tried as a range's ends."""


@dataclass(frozen=True)
class Range:
    """How a tensor becomes uint8: `value = scale * (stored - zero_point)`."""

    scale: np.float32
    zero_point: np.uint8

    def rounded(self, values: np.ndarray) -> np.ndarray:
        """`values` as they come out of storage, f32."""
        stored = np.clip(np.round(values / self.scale) + self.zero_point, 0, LEVELS)
        return ((stored - self.zero_point) * self.scale).astype(np.float32)


class Histogram:
    """How often values were seen, over a range about zero that doubles as it must."""

    def __init__(self) -> None:
        self._limit = 1.0
        self._counts = np.zeros(_BINS, np.int64)
        self.least, self.most = 0.0, 0.0

    def add(self, values: np.ndarray) -> None:
        """Counts finite `values` of any shape; raises `ValueError` where one is not finite."""
        least, most = float(values.min()), float(values.max())
        if not np.isfinite([least, most]).all():
            raise ValueError("a value is not finite")
        self.least, self.most = min(self.least, least), max(self.most, most)
        while max(-least, most) >= self._limit:
            self._double()
        places = ((values.reshape(-1) + np.float32(self._limit)) * np.float32(_BINS / 2 / self._limit)).astype(np.int32)
        self._counts += np.bincount(np.clip(places, 0, _BINS - 1), minlength=_BINS)

    def _double(self) -> None:
        quarter = _BINS // 4
        counts = np.zeros(_BINS, np.int64)
        counts[quarter : _BINS - quarter] = self._counts.reshape(-1, 2).sum(axis=1)
        self._counts, self._limit = counts, self._limit * 2

    def range(self) -> Range:
        """The range with the least squared error over what was seen; what lies outside is clipped. It holds zero."""
        used = self._counts > 0
        counts = self._counts[used].astype(np.float64)
        centres = (((np.arange(_BINS) + 0.5) * (2 / _BINS) - 1) * self._limit)[used]
        # Both ends are tried in turn, the other kept: they hardly depend on each other.
        low, high = self.least, self.most
        for _ in range(2):
            low = min(self.least * _SHARES, key=lambda end: _error(centres, counts, float(end), high))
            high = min(self.most * _SHARES, key=lambda end: _error(centres, counts, float(low), float(end)))
        return between(float(low), float(high))


def between(low: float, high: float) -> Range:
    """The range from `low` <= 0 to `high` >= 0."""
    scale = np.float32(max(high - low, 1e-12) / LEVELS)
    return Range(scale, np.uint8(np.clip(np.round(-low / scale), 0, LEVELS)))


def _error(values: np.ndarray, counts: np.ndarray, low: float, high: float) -> float:
    """Squared error of a range, summed. Inside it counts as spread evenly over a step, however wide a bin is."""
    chosen = between(low, high)
    step = float(chosen.scale)
    bottom = -step * float(chosen.zero_point)
    outside = values - np.clip(values, bottom, bottom + step * LEVELS)
    return float(counts @ np.where(outside == 0, step * step / 12, np.square(outside)))
