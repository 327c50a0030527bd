"""What a picture shows, on drawings that are known, and on wrong ones."""

import numpy as np
import pytest
from drawing import blurred, drawn

from muse_models.data.colours import COLOUR_NAMES, COLOURS
from muse_models.evaluation.measure import Picture

PLACES = {
    1: [(16, 16, 96)],
    2: [(6, 36, 54), (68, 36, 54)],
    3: [(38, 4, 54), (6, 68, 54), (68, 68, 54)],
    4: [(6, 6, 54), (68, 6, 54), (6, 68, 54), (68, 68, 54)],
}


@pytest.mark.parametrize("shape", ["circle", "square", "triangle"])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("soft", [False, True], ids=["sharp", "soft"])
def test_things_of_a_kind_are_counted(shape, count, soft):
    picture = drawn([(shape, "red", *place) for place in PLACES[count]], "blue")
    assert Picture(blurred(picture) if soft else picture).count == count


def test_three_things_of_different_sizes_are_three():
    picture = drawn([("circle", "red", 4, 40, 40), ("circle", "red", 46, 40, 36), ("circle", "red", 84, 40, 40)])
    assert Picture(picture).count == 3


def test_things_that_touch_are_still_counted():
    picture = drawn([("circle", "green", 5, 36, 57), ("circle", "green", 66, 36, 57)]).copy()
    picture[62:67, 58:70] = COLOURS["green"]
    assert Picture(picture).count == 2


def test_the_fragments_of_one_thing_are_one():
    # A white face on white: two black eyes and a wide black mouth are all that is seen.
    face = drawn([("circle", "black", 40, 40, 14), ("circle", "black", 74, 40, 14), ("square", "black", 44, 58, 40)])
    assert Picture(face).count == 1


def test_dirt_is_not_counted():
    picture = drawn([("square", "purple", 20, 20, 80), ("circle", "red", 112, 112, 6)])
    assert Picture(picture).count == 1


def test_an_empty_picture_holds_nothing():
    empty = Picture(drawn([], "green"))
    assert empty.background.name == "green"
    assert empty.count == 0
    assert empty.colour() is None
    assert empty.sides is None


@pytest.mark.parametrize("colour", COLOUR_NAMES)
@pytest.mark.parametrize("background", ["white", "black", "gray"])
def test_a_shape_has_its_colour_on_any_background(colour, background):
    if colour != background:
        picture = Picture(blurred(drawn([("triangle", colour, 16, 16, 96)], background)))
        assert picture.background.name == background
        assert picture.colour() == colour


def test_a_shape_in_two_colours_has_none():
    picture = drawn([("square", colour, 16 + 32 * at, 16, 31) for at, colour in enumerate(("red", "blue", "yellow"))])
    assert Picture(picture).colour() is None


@pytest.mark.parametrize(
    ("first", "second", "axis"),
    [((6, 36), (68, 36), "across"), ((36, 6), (36, 68), "down"), ((6, 30), (66, 48), "across")],
)
@pytest.mark.parametrize("soft", [False, True], ids=["sharp", "soft"])
def test_two_things_are_cut_apart_where_they_are(first, second, axis, soft):
    picture = drawn([("circle", "red", *first, 54), ("triangle", "blue", *second, 54)])
    seen = Picture(blurred(picture) if soft else picture)
    assert [side.axis for side in seen.sides] == [axis, axis]
    assert [seen.colour(side) for side in seen.sides] == ["red", "blue"]


def test_two_things_that_touch_are_cut_apart_as_well():
    seen = Picture(drawn([("square", "red", 8, 36, 56), ("square", "blue", 64, 36, 56)]))
    assert [seen.colour(side) for side in seen.sides] == ["red", "blue"]


def test_a_crop_shows_one_thing_and_not_its_neighbour():
    seen = Picture(drawn([("circle", "red", 6, 36, 54), ("square", "blue", 68, 36, 54)], "yellow"))
    for side, own, other in zip(seen.sides, ("red", "blue"), ("blue", "red"), strict=True):
        crop = seen.crop(side).astype(int)
        assert crop.shape[0] == crop.shape[1]
        assert (np.abs(crop - np.array(COLOURS[own])).max(-1) < 8).mean() > 0.4
        assert not (np.abs(crop - np.array(COLOURS[other])).max(-1) < 8).any()
        assert (crop[0, 0] == COLOURS["yellow"]).all()


def test_a_picture_of_another_size_measures_the_same():
    picture = drawn([("circle", "red", *place) for place in PLACES[3]], "blue")
    large = picture.repeat(2, 0).repeat(2, 1)
    assert Picture(large).count == 3
    assert Picture(large).background.name == "blue"
