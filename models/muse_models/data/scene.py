"""What a scene holds, how scenes are drawn at random, and which ones are never trained on.

A scene is one thing, a tinted thing, two to four of a kind, or two things in a relation, on a
background. Positions come from a small set of places, in pixels of a 128-pixel canvas, so that the
image tokenizers meet each thing in few alignments and a small transformer can learn it sharply.
"""

import hashlib
import random
from dataclasses import dataclass

from .catalogue import BY_NAME, OBJECTS, SHAPES
from .colours import COLOUR_NAMES

CANVAS = 128
HORIZONTAL = ("left", "right")
VERTICAL = ("above", "below")
PLACES = ("centre", "left", "right", "above", "below", "beside", "group")
"""Where an item stands; `beside` leaves the order to chance, `group` is several of a kind."""

HELD_OUT_ONE_IN = 20


@dataclass(frozen=True)
class Item:
    """`count` things of one name, in `colour` or as the icon is drawn."""

    name: str
    colour: str | None = None
    count: int = 1
    place: str = "centre"


@dataclass(frozen=True)
class Scene:
    """One or two items on a background; `background` None means that the caption names none."""

    items: tuple[Item, ...]
    background: str | None = None

    def composition(self) -> str:
        """Names what is in the scene, apart from wording and exact layout."""
        parts = sorted(f"{item.count}:{item.colour}:{item.name}:{item.place}" for item in self.items)
        return "|".join(parts) + f"@{self.background}"

    def is_held_out(self) -> bool:
        """True for the one composition in `HELD_OUT_ONE_IN` that is kept for evaluation."""
        digest = hashlib.sha256(self.composition().encode()).digest()
        return digest[0] * 256 + digest[1] < 65536 // HELD_OUT_ONE_IN


@dataclass(frozen=True)
class Box:
    """A square on the canvas, in pixels from the top left, for one copy of item `item`."""

    item: int
    left: int
    top: int
    side: int


def _random_item(rng: random.Random, place: str, shape_share: float, tint_share: float) -> Item:
    if rng.random() < shape_share:
        return Item(rng.choice(SHAPES).name, rng.choice(COLOUR_NAMES), 1, place)
    name = rng.choice(OBJECTS).name
    colour = rng.choice(COLOUR_NAMES) if rng.random() < tint_share else None
    return Item(name, colour, 1, place)


def _visible_backgrounds(items: tuple[Item, ...]) -> list[str]:
    taken = set()
    for item in items:
        taken.add(item.colour or BY_NAME[item.name].natural_colour)
    return [name for name in COLOUR_NAMES if name not in taken]


def _draw(rng: random.Random) -> Scene:
    # Things in groups and pairs are smaller and harder to draw than one alone: they come more often.
    kind = rng.random()
    if kind < 0.18:
        items = (_random_item(rng, "centre", 0.0, 0.0),)
    elif kind < 0.36:
        items = (_random_item(rng, "centre", 0.0, 1.0),)
    elif kind < 0.42:
        items = (_random_item(rng, "centre", 1.0, 1.0),)
    elif kind < 0.66:
        one = _random_item(rng, "group", 0.25, 0.4)
        items = (Item(one.name, one.colour, rng.randint(2, 4), "group"),)
    else:
        places = rng.choice((HORIZONTAL, HORIZONTAL, VERTICAL, VERTICAL, ("beside", "beside")))
        items = tuple(_random_item(rng, place, 0.25, 0.45) for place in places)
    background = rng.choice(_visible_backgrounds(items)) if rng.random() < 0.5 else None
    return Scene(items, background)


def random_scene(rng: random.Random, held_out: bool = False) -> Scene:
    """Draws a scene for training, or one of the compositions kept for evaluation."""
    while True:
        scene = _draw(rng)
        same = len(scene.items) == 2 and scene.items[0].name == scene.items[1].name
        if not same and scene.is_held_out() == held_out:
            return scene


CELL = 16
"""Canvas pixels that a base token stands for. Boxes have the same offset to the cells wherever they stand, so that a
thing of one size is nearly the same tokens in every place: a small transformer learns it once."""

SINGLE_SIDE = 96
PAIR_SIDE = 60
PAIR_INSET = 2
"""Keeps neighbours apart; a thing of a pair or group has a quarter of the canvas less this on each side."""


def _quarter(item: int, column: int, row: int) -> Box:
    """A thing of a pair or group with its quarter of the canvas beginning at this cell."""
    return Box(item, column * CELL + PAIR_INSET, row * CELL + PAIR_INSET, PAIR_SIDE)


def _single(rng: random.Random) -> list[Box]:
    if rng.random() < 0.85:
        return [Box(0, CELL, CELL, SINGLE_SIDE)]
    return [Box(0, CELL * rng.randrange(3), CELL * rng.randrange(3), SINGLE_SIDE)]


_GROUPS = {2: ((0, 2), (4, 2)), 3: ((2, 0), (0, 4), (4, 4)), 4: ((0, 0), (4, 0), (0, 4), (4, 4))}
"""First cells (column, row) of the quarters of two, three and four of a kind."""


def layout(scene: Scene, rng: random.Random) -> list[Box]:
    """Places every copy of every item; boxes never overlap and stay on the canvas."""
    if len(scene.items) == 1:
        count = scene.items[0].count
        return _single(rng) if count == 1 else [_quarter(0, column, row) for column, row in _GROUPS[count]]
    order = [0, 1]
    first = scene.items[0].place
    if first == "beside":
        rng.shuffle(order)
    elif first in ("right", "below"):
        order.reverse()
    if first in VERTICAL:
        return [_quarter(order[0], 2, 0), _quarter(order[1], 2, 4)]
    return [_quarter(order[0], 0, 2), _quarter(order[1], 4, 2)]
