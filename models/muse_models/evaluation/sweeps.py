"""Accuracies and Fréchet distance as one setting of the sampler changes and the others stay."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..reference.sampler import Settings
from .verdicts import HEADLINE

BASE = {"steps": (4, 8, 16, 24), "guidance": (0.0, 1.0, 2.0, 4.0), "temperature": (0.5, 0.7, 1.0), "choice_temperature": (1.0, 8.0)}
SUPERRES = {"steps": (2, 4, 8), "guidance": (0.0, 1.0, 2.0), "temperature": (0.3, 0.6, 0.9)}


@dataclass(frozen=True)
class Point:
    """One measured setting."""

    value: float
    accuracies: dict[str, float]
    """By `HEADLINE`, 0…1."""
    frechet: float

    @property
    def mean(self) -> float:
        """Mean of the five accuracies: what a default is chosen by."""
        return sum(self.accuracies[name] for name in HEADLINE) / len(HEADLINE)


@dataclass(frozen=True)
class Sweep:
    """All points of one setting of one stage, in rising order."""

    stage: str
    setting: str
    default: float
    points: tuple[Point, ...]
    prompts: int

    @property
    def best(self) -> Point:
        """The highest mean accuracy; of points within one standard error of it, the smallest Fréchet distance."""
        highest = max(point.mean for point in self.points)
        margin = (highest * (1 - highest) / self.prompts) ** 0.5
        return min((point for point in self.points if point.mean >= highest - margin), key=lambda point: point.frechet)


Measure = Callable[[Settings], tuple[dict[str, float], float]]
"""Accuracies and Fréchet distance of pictures made with these settings."""


def sweep(
    stage: str, defaults: Settings, grid: dict[str, Sequence[float]], prompts: int, measure: Measure
) -> list[Sweep]:
    """Measures every value of `grid` with the other settings as in `defaults`, and each default as well, once."""
    known: dict[Settings, tuple[dict[str, float], float]] = {}
    sweeps = []
    for setting, values in grid.items():
        default = getattr(defaults, setting)
        points = []
        for value in sorted({*values, default}):
            settings = replace(defaults, **{setting: value})
            if settings not in known:
                known[settings] = measure(settings)
                print(f"{stage}: {setting} {value:g} measured", flush=True)
            points.append(Point(value, *known[settings]))
        sweeps.append(Sweep(stage, setting, default, tuple(points), prompts))
    return sweeps
