"""Pictures against their prompts, and shares over many of them."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from ..data.catalogue import BY_NAME, OBJECTS, SHAPES
from ..data.colours import COLOUR_NAMES
from ..data.scene import HORIZONTAL, Item, Scene
from .measure import Picture
from .pixels import PALE
from .prompts import NAMES, Prompt

OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


@dataclass(frozen=True)
class Share:
    """`right` of `total`."""

    right: int
    total: int

    @property
    def value(self) -> float:
        return self.right / self.total if self.total else math.nan

    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval: what another draw of as many prompts may give."""
        if self.total == 0:
            return math.nan, math.nan
        z, n, p = 1.96, self.total, self.value
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        reach = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, middle - reach), min(1.0, middle + reach)


MEASURES = {
    "background": "background colour, where the prompt names one",
    "no background": "white or pale background, where the prompt names none",
    "shape colour": "colour of plain shapes, one or several",
    "object colour": "main colour of objects in an asked colour",
    "count 1": "one thing",
    "count 2": "two of a kind",
    "count 3": "three of a kind",
    "count 4": "four of a kind",
    "position": "two things where the prompt puts them",
    "position, both recognised": "the same, and each among the five likeliest of all things",
    "shape colour in pairs": "a shape's colour at the place where the prompt puts the shape",
    "top-1": "retrieval among 100 objects, first",
    "top-5": "retrieval among 100 objects, among the first five",
}
"""What is measured, in the order of the report. Not every measure applies to every prompt."""

COUNTS = ("count 1", "count 2", "count 3", "count 4")

class Likeness(Protocol):
    """What tells things apart: `judge.Judge`."""

    def similarities(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """uint8 RGB pictures → [N, T]: how much each looks like each of `NAMES`; more is more alike."""


Verdict = dict[str, bool]
"""The measures that apply to one prompt."""


def verdicts(
    prompts: Sequence[Prompt], pictures: np.ndarray, judge: Likeness, candidates: Sequence[str]
) -> list[Verdict]:
    """Measures pictures uint8 RGB [N, H, W, 3] against their prompts; `candidates` are told apart in retrieval."""
    results: list[Verdict] = []
    crops: list[np.ndarray] = []
    pairs: list[tuple[int, Prompt]] = []
    for prompt, rgb in zip(prompts, pictures, strict=True):
        picture = Picture(rgb)
        result = _colours_and_count(prompt, picture)
        if prompt.kind == "pair":
            result |= {"position": False, "position, both recognised": False}
            sides = picture.sides
            across = prompt.scene.items[0].place in HORIZONTAL
            wanted_axis = "across" if across else "down"
            if sides is not None and sides[0].axis == wanted_axis:
                pairs.append((len(results), prompt))
                crops += [picture.crop(side) for side in sides]
            for item, first in zip(prompt.scene.items, (True, False), strict=True):
                if BY_NAME[item.name].is_shape:
                    at = sides[_order(prompt.scene).index(item)] if sides and sides[0].axis == wanted_axis else None
                    right = at is not None and picture.colour(at) == item.colour
                    result["shape colour in pairs"] = result.get("shape colour in pairs", True) and right
        results.append(result)
    if crops:
        likeness = judge.similarities(crops).reshape(len(pairs), 2, -1)
        for (at, prompt), sides in zip(pairs, likeness, strict=True):
            results[at] |= _position(prompt, sides)
    _retrieval(prompts, pictures, judge, candidates, results)
    return results


def _order(scene: Scene) -> tuple[Item, Item]:
    """The two items of a pair, left or upper first."""
    first, second = scene.items
    return (first, second) if first.place in ("left", "above") else (second, first)


def _colours_and_count(prompt: Prompt, picture: Picture) -> Verdict:
    scene, result = prompt.scene, {}
    seen = picture.background.name if picture.background.share >= 0.5 else None
    if scene.background:
        result["background"] = seen == scene.background
    else:
        result["no background"] = seen in ("white", PALE)
    if len(scene.items) == 1:
        item = scene.items[0]
        if BY_NAME[item.name].is_shape:
            result["shape colour"] = picture.colour() == item.colour
        elif item.colour:
            result["object colour"] = bool(picture.foreground.any()) and picture.main_colour() == item.colour
        result[f"count {item.count}"] = picture.count == item.count
    return result


def _position(prompt: Prompt, likeness: np.ndarray) -> Verdict:
    """`likeness` [2, T] of the two crops, left or upper first: each must be more like its own thing than the other."""
    first, second = (NAMES.index(item.name) for item in _order(prompt.scene))
    placed = likeness[0, first] > likeness[0, second] and likeness[1, second] > likeness[1, first]
    ranks = [(likeness[side] > likeness[side, name]).sum() for side, name in ((0, first), (1, second))]
    return {"position": bool(placed), "position, both recognised": bool(placed and max(ranks) < 5)}


def _retrieval(
    prompts: Sequence[Prompt], pictures: np.ndarray, judge: Likeness, candidates: Sequence[str], results: list[Verdict]
) -> None:
    columns = [NAMES.index(name) for name in candidates]
    asked = [
        at for at, prompt in enumerate(prompts)
        if prompt.kind in ("object", "tinted object") and prompt.scene.items[0].name in candidates
    ]
    if not asked:
        return
    likeness = judge.similarities(pictures[asked])
    for at, row in zip(asked, likeness, strict=True):
        rank = int((row[columns] > row[NAMES.index(prompts[at].scene.items[0].name)]).sum())
        results[at] |= {"top-1": rank < 1, "top-5": rank < 5}


def shares(results: Sequence[Verdict]) -> dict[str, Share]:
    """Every measure of `MEASURES` over the verdicts it applies to."""
    return {
        measure: Share(
            sum(result.get(measure, False) for result in results), sum(measure in result for result in results)
        )
        for measure in MEASURES
    }


def count_accuracy(found: dict[str, Share]) -> float:
    """Mean of the accuracies at one, two, three and four: each weighs the same, whatever the number of prompts."""
    values = [found[measure].value for measure in COUNTS if found[measure].total]
    return sum(values) / len(values) if values else math.nan


HEADLINE = ("background", "shape colour", "count", "position", "top-5")


def headline(found: dict[str, Share]) -> dict[str, float]:
    """The five accuracies that the defaults are chosen by."""
    return {name: count_accuracy(found) if name == "count" else found[name].value for name in HEADLINE}


def everything_wrong(scene: Scene, rng: random.Random) -> Scene:
    """A scene in which all that can be measured differs: what a measure must refuse."""
    items = []
    taken = {item.name for item in scene.items}
    for item in scene.items:
        like = SHAPES if BY_NAME[item.name].is_shape else OBJECTS
        name = rng.choice([thing.name for thing in like if thing.name not in taken])
        colour = item.colour and rng.choice([name for name in COLOUR_NAMES if name != item.colour])
        count = item.count
        if len(scene.items) == 1:
            count = rng.choice([number for number in (1, 2, 3, 4) if number != item.count])
        place = OPPOSITE.get(item.place, "centre" if count == 1 else "group")
        # Two things change places and keep their names: the easiest mistake to overlook.
        items.append(replace(item, place=place) if len(scene.items) == 2 else Item(name, colour, count, place))
    shown = {item.colour or BY_NAME[item.name].natural_colour for item in items}
    background = rng.choice([
        name for name in COLOUR_NAMES if name not in shown | {scene.background, "white"}
    ])
    return Scene(tuple(items), background)
