"""Says what is in a scene, in many ways.

A caption is built from pieces, each belonging to one item, to the background, or to nothing, so that
the text encoder's pre-training knows which words speak of what.
"""

import random
from dataclasses import dataclass

from .catalogue import BY_NAME, plural_of
from .scene import VERTICAL, Item, Scene

BACKGROUND = -1
"""Owner of the words that speak of the background."""

_NUMBER_WORDS = {2: "two", 3: "three", 4: "four"}
_OPENINGS = (
    "a picture of", "a drawing of", "an image of", "an icon of", "an illustration of", "there is",
    "draw", "show me", "a photo of", "a cartoon of",
)
_RELATIONS = {
    "left": ("to the left of", "left of", "on the left of", "on the left side of"),
    "right": ("to the right of", "right of", "on the right of", "on the right side of"),
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath", "underneath"),
    "beside": ("and", "and", "next to", "beside", "with", "near", "by"),
}
_BACKGROUNDS = (
    "on a {0} background", "on a {0} background", "on {0}", "against a {0} background",
    "with a {0} background", "in front of a {0} background", "on a {0} backdrop",
)
_ADJECTIVES = ("cute", "little", "small", "big", "nice", "simple", "happy", "shiny")


@dataclass(frozen=True)
class Caption:
    """`text`, and (start, end, owner) character spans: owner is an item's index or `BACKGROUND`."""

    text: str
    spans: tuple[tuple[int, int, int], ...]


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" and not word.startswith(("uni", "ufo")) else "a"


def _spelled(colour: str, rng: random.Random) -> str:
    return rng.choice(("gray", "grey")) if colour == "gray" else colour


def _noun(item: Item, rng: random.Random, plain: bool) -> str:
    thing = BY_NAME.get(item.name)
    if thing is None:
        return item.name if item.count == 1 else plural_of(item.name)
    nouns = [(thing.name, thing.plural)]
    if thing.synonyms and not plain and rng.random() < 0.35:
        nouns = list(thing.synonyms)
    singular, plural = rng.choice(nouns)
    return singular if item.count == 1 else plural


def _item_words(item: Item, rng: random.Random, plain: bool) -> str:
    noun = _noun(item, rng, plain)
    if item.colour:
        suffix = "-colored" if not plain and rng.random() < 0.03 else ""
        noun = f"{_spelled(item.colour, rng)}{suffix} {noun}"
    if not plain and rng.random() < 0.06:
        noun = f"{rng.choice(_ADJECTIVES)} {noun}"
    if item.count > 1:
        words = [_NUMBER_WORDS[item.count]] * 4 + [str(item.count)]
        if item.count == 2 and not plain:
            words += ["a pair of", "a couple of"]
        return f"{rng.choice(words)} {noun}"
    if plain or rng.random() < 0.78:
        return f"{_article(noun)} {noun}"
    return rng.choice((noun, noun, f"one {noun}", f"the {noun}"))


class _Builder:
    def __init__(self):
        self.text = ""
        self.spans: list[tuple[int, int, int]] = []

    def add(self, words: str, owner: int | None = None) -> None:
        if self.text and not words.startswith(","):
            self.text += " "
        start = len(self.text)
        self.text += words
        if owner is not None:
            self.spans.append((start, len(self.text), owner))


def _pair(builder: _Builder, scene: Scene, rng: random.Random, plain: bool) -> None:
    first, second = (0, 1) if rng.random() < 0.5 else (1, 0)
    place = scene.items[first].place
    words = [_item_words(scene.items[index], rng, plain) for index in (first, second)]
    if place != "beside" and not plain and rng.random() < 0.12:
        where = {"left": "on the left", "right": "on the right", "above": "at the top", "below": "at the bottom"}
        builder.add(words[0], first)
        builder.add(where[place], first)
        builder.add("and")
        builder.add(words[1], second)
        builder.add(where[scene.items[second].place], second)
        return
    builder.add(words[0], first)
    options = _RELATIONS[place]
    builder.add(options[0] if plain else rng.choice(options))
    builder.add(words[1], second)


def caption(scene: Scene, rng: random.Random, plain: bool = False) -> Caption:
    """One wording of a scene; `plain` picks the commonest words, as evaluation prompts do.

    Items may have names that are not in the catalogue: words can be bound that cannot be drawn.
    """
    builder = _Builder()
    background = scene.background and _spelled(scene.background, rng)
    style = 1.0 if plain else rng.random()
    if background and style < 0.08:
        builder.add(f"{_article(background)} {background} background with", BACKGROUND)
        background = None
    elif style < 0.2:
        builder.add(rng.choice(_OPENINGS))
    if len(scene.items) == 1:
        builder.add(_item_words(scene.items[0], rng, plain), 0)
    else:
        _pair(builder, scene, rng, plain)
    if background:
        if not plain and rng.random() < 0.1:
            builder.add(f", {background} background", BACKGROUND)
        else:
            pattern = _BACKGROUNDS[0] if plain else rng.choice(_BACKGROUNDS)
            words = pattern.format(background)
            builder.add(words.replace("a orange", "an orange"), BACKGROUND)
    text = builder.text
    if not plain:
        flourish = rng.random()
        if flourish < 0.06:
            text = text[0].upper() + text[1:] + "."
        elif flourish < 0.1:
            text += "."
    return Caption(text, tuple(builder.spans))
