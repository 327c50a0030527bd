"""Labelled text for pre-training: what each text token speaks of, known from the caption's structure."""

import random
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from ..data.captions import BACKGROUND, Caption, caption
from ..data.catalogue import BY_NAME, THINGS
from ..data.colours import COLOUR_NAMES
from ..data.packages import emoji_labels
from ..data.scene import PLACES, Scene, random_scene
from .vocabulary import TEXT_LENGTH

IGNORED = -100
"""Label of a token that a head says nothing about."""

HEADS = {
    "name": len(THINGS),
    "colour": len(COLOUR_NAMES) + 1,
    "count": 4,
    "place": len(PLACES),
    "order": 3,
    "relation": len(PLACES),
    "background": len(COLOUR_NAMES) + 1,
    "subgroup": 100,
}
"""Number of classes a head. `name`, `colour`, `count`, `place` and `order` belong to the tokens of an
item's words, `relation` and `background` to every token, `subgroup` (an emoji's kind) to every token of a
plain label.

`order` says whether an item is the only one, named first, or named second, and `relation` where the one
named first stands. Which side an item is on is the exclusive or of these two; asked for it alone, the
encoder stayed at chance for as long as we watched.
"""

_POOL = 32
"""Batches that are drawn at once and sorted by length."""

_NAMES = {thing.name: index for index, thing in enumerate(THINGS)}
_COLOURS = {None: 0, **{name: index + 1 for index, name in enumerate(COLOUR_NAMES)}}


@dataclass
class LabelledBatch:
    """`tokens` int64 [B, L]; `labels[head]` int64 [B, L], `IGNORED` where nothing is asked."""

    tokens: np.ndarray
    labels: dict[str, np.ndarray]


class Corpus:
    """Endless labelled text: captions of random scenes, some with things that cannot be drawn, and labels."""

    def __init__(self, work_dir: Path, tokenizer: Tokenizer, seed: int):
        self._tokenizer = tokenizer
        self._random = random.Random(seed)
        self._ready: list[LabelledBatch] = []
        self._labels: list[tuple[str, int]] = []
        self._strangers: list[str] = []
        for emoji in emoji_labels(work_dir):
            if "subgroup" not in emoji or emoji["group"] in (2, 9):
                continue
            self._labels += [(words, emoji["subgroup"]) for words in [emoji["label"], *emoji.get("tags", [])]]
            if emoji["group"] in (3, 4, 5, 6, 7) and emoji["label"].isascii():
                self._strangers.append(emoji["label"].lower())

    def _with_strangers(self, scene: Scene) -> Scene:
        items = tuple(
            replace(item, name=self._random.choice(self._strangers)) if self._random.random() < 0.7 else item
            for item in scene.items
        )
        return replace(scene, items=items)

    def _draw(self) -> tuple[Caption, Scene | None, int]:
        kind = self._random.random()
        if kind < 0.02:
            return Caption("", ()), None, IGNORED
        if kind < 0.12:
            words, subgroup = self._random.choice(self._labels)
            return Caption(words, ()), None, subgroup
        scene = random_scene(self._random)
        # Two things in a relation are the hardest to tell apart, so they come more often than in pictures.
        while kind > 0.6 and len(scene.items) == 1:
            scene = random_scene(self._random)
        if kind < 0.27:
            scene = self._with_strangers(scene)
        return caption(scene, self._random), scene, IGNORED

    def batch(self, count: int) -> LabelledBatch:
        """`count` texts of about the same length, so that little is spent on padding."""
        if not self._ready:
            drawn = [self._draw() for _ in range(count * _POOL)]
            drawn.sort(key=lambda triple: len(triple[0].text))
            self._ready = [self.label(drawn[start : start + count]) for start in range(0, len(drawn), count)]
            self._random.shuffle(self._ready)
        return self._ready.pop()

    def label(self, drawn: list[tuple[Caption, Scene | None, int]]) -> LabelledBatch:
        """Tokens and labels of (caption, scene, subgroup) triples."""
        encodings = self._tokenizer.encode_batch([words.text for words, _, _ in drawn])
        length = min(TEXT_LENGTH, max(len(encoding.ids) for encoding in encodings))
        tokens = np.zeros((len(drawn), length), np.int64)
        labels = {head: np.full((len(drawn), length), IGNORED, np.int64) for head in HEADS}
        for row, (encoding, (words, scene, subgroup)) in enumerate(zip(encodings, drawn, strict=True)):
            size = len(encoding.ids)
            tokens[row, :size] = encoding.ids
            labels["subgroup"][row, :size] = subgroup
            labels["background"][row, :size] = _COLOURS[scene.background if scene else None]
            if scene:
                self._label_items(labels, row, encoding.offsets, words, scene)
        return LabelledBatch(tokens, labels)

    def _label_items(self, labels, row: int, offsets, words: Caption, scene: Scene) -> None:
        mentioned = [owner for _, _, owner in words.spans if owner != BACKGROUND]
        first_named = mentioned[0]
        labels["relation"][row, : len(offsets)] = PLACES.index(scene.items[first_named].place)
        for start, end, owner in words.spans:
            if owner == BACKGROUND:
                continue
            item = scene.items[owner]
            for column, (first, last) in enumerate(offsets):
                if last > first and first < end and last > start:
                    labels["name"][row, column] = _NAMES[item.name] if item.name in BY_NAME else IGNORED
                    labels["colour"][row, column] = _COLOURS[item.colour]
                    labels["count"][row, column] = item.count - 1
                    labels["place"][row, column] = PLACES.index(item.place)
                    labels["order"][row, column] = 0 if len(scene.items) == 1 else 1 + (owner != first_named)
