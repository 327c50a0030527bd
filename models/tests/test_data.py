"""Scenes, their geometry, their captions, and the pictures' arithmetic."""

import random

import numpy as np
import pytest

from muse_models.data.captions import BACKGROUND, caption
from muse_models.data.catalogue import BY_NAME, OBJECTS, THINGS
from muse_models.data.colours import COLOUR_NAMES, COLOURS, tint
from muse_models.data.render import halve
from muse_models.data.scene import CANVAS, Item, Scene, layout, random_scene


def test_names_in_the_catalogue_are_unique():
    assert len(BY_NAME) == len(THINGS)
    assert all(thing.natural_colour in (None, *COLOUR_NAMES) for thing in OBJECTS)


@pytest.mark.parametrize(
    ("place", "other", "axis"),
    [("left", "right", "left"), ("right", "left", "left"), ("above", "below", "top"), ("below", "above", "top")],
)
def test_left_is_left_and_above_is_above(place, other, axis):
    scene = Scene((Item("cat", None, 1, place), Item("dog", None, 1, other)))
    for seed in range(20):
        boxes = {box.item: box for box in layout(scene, random.Random(seed))}
        first, second = getattr(boxes[0], axis), getattr(boxes[1], axis)
        assert (first < second) == (place in ("left", "above"))


def test_boxes_stay_on_the_canvas_and_never_overlap():
    rng = random.Random(1)
    for _ in range(500):
        boxes = layout(random_scene(rng), rng)
        for index, box in enumerate(boxes):
            assert 0 <= box.left <= CANVAS - box.side and 0 <= box.top <= CANVAS - box.side
            for other in boxes[index + 1 :]:
                assert (
                    box.left + box.side <= other.left or other.left + other.side <= box.left
                    or box.top + box.side <= other.top or other.top + other.side <= box.top
                )


def test_a_scene_has_as_many_boxes_as_things():
    for count in (1, 2, 3, 4):
        scene = Scene((Item("apple", "red", count, "group" if count > 1 else "centre"),))
        assert len(layout(scene, random.Random(count))) == count


def test_held_out_compositions_are_never_drawn_for_training():
    rng = random.Random(2)
    assert not any(random_scene(rng).is_held_out() for _ in range(300))
    assert all(random_scene(rng, held_out=True).is_held_out() for _ in range(20))


def test_a_composition_is_the_same_whichever_item_is_named_first():
    cat, dog = Item("cat", "red", 1, "left"), Item("dog", None, 1, "right")
    assert Scene((cat, dog), "blue").composition() == Scene((dog, cat), "blue").composition()


def test_plain_captions_read_as_people_write():
    rng = random.Random(3)
    scene = Scene((Item("apple", "red", 2, "group"),), "blue")
    assert caption(scene, rng, plain=True).text in (
        "two red apples on a blue background", "2 red apples on a blue background",
    )
    assert caption(Scene((Item("fox"),)), rng, plain=True).text == "a fox"
    assert caption(Scene((Item("umbrella"),)), rng, plain=True).text == "an umbrella"


def test_spans_of_a_caption_hold_the_words_of_their_owner():
    rng = random.Random(4)
    for _ in range(300):
        scene = random_scene(rng)
        words = caption(scene, rng)
        for start, end, owner in words.spans:
            part = words.text[start:end].lower()
            if owner == BACKGROUND:
                assert scene.background.replace("gray", "gr") in part.replace("grey", "gr").replace("gray", "gr")
            elif scene.items[owner].colour and not part.startswith(("on the", "at the")):
                colour = scene.items[owner].colour.replace("gray", "gr")
                assert colour in part.replace("grey", "gr").replace("gray", "gr")


def test_a_tint_gives_most_of_a_sprite_its_colour():
    sprite = np.zeros((8, 8, 4), np.uint8)
    sprite[..., :3] = (200, 60, 60)
    sprite[..., 3] = 255
    for colour in ("blue", "green", "pink"):
        centre = tint(sprite, colour)[4, 4, :3].astype(int)
        assert np.abs(centre - np.array(COLOURS[colour])).max() < 12


def test_halving_averages_blocks_of_four_pixels():
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    halved = halve(images)
    assert halved.shape == (2, 2, 2, 3)
    assert halved[0, 0, 0, 0] == (0 + 3 + 12 + 15 + 2) // 4
