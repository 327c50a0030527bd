"""Pictures against prompts: right ones pass, wrong ones fail, and shares add up."""

import random
from dataclasses import replace

import numpy as np
import pytest
from drawing import blurred, drawn

from muse_models.data.scene import Item, Scene
from muse_models.evaluation import verdicts
from muse_models.evaluation.prompts import NAMES, Prompt, kind_of


class Colours:
    """Stands in for the image-text model: a red picture is a circle, a blue one a square, a green one a cat."""

    NAMES = {0: "circle", 1: "cat", 2: "square"}

    def similarities(self, pictures):
        found = np.zeros((len(pictures), len(NAMES)), np.float32)
        for row, picture in zip(found, pictures, strict=True):
            shown = picture.reshape(-1, 3).astype(int)
            excess = shown - np.sort(shown, axis=1)[:, 1:2]
            row[NAMES.index(self.NAMES[int(excess.clip(0).sum(0).argmax())])] = 1
        return found


def prompt(*items: Item, background: str | None = None) -> Prompt:
    scene = Scene(items, background)
    return Prompt(kind_of(scene), scene, "", 1)


def judged(one: Prompt, picture: np.ndarray, candidates=("cat", "dog")) -> verdicts.Verdict:
    return verdicts.verdicts([one], picture[None], Colours(), candidates)[0]


LEFT = drawn([("circle", "red", 6, 36, 54), ("square", "blue", 68, 36, 54)])
ABOVE = drawn([("circle", "red", 36, 6, 54), ("square", "blue", 36, 68, 54)])


def pair(first: str, second: str) -> Prompt:
    return prompt(Item("circle", "red", place=first), Item("square", "blue", place=second))


@pytest.mark.parametrize(
    ("asked", "picture", "right"),
    [
        (pair("left", "right"), LEFT, True), (pair("right", "left"), LEFT, False),
        (pair("above", "below"), LEFT, False), (pair("above", "below"), ABOVE, True),
        (pair("below", "above"), ABOVE, False), (pair("left", "right"), ABOVE, False),
    ],
)
def test_position_knows_direction_and_order(asked, picture, right):
    found = judged(asked, picture)
    assert found["position"] == found["position, both recognised"] == right
    assert found["shape colour in pairs"] == right
    assert judged(asked, blurred(picture))["position"] == right


def test_two_of_one_thing_are_not_two_things_in_their_places():
    circles = drawn([("circle", "red", 6, 36, 54), ("circle", "red", 68, 36, 54)])
    assert not judged(pair("left", "right"), circles)["position"]
    assert not judged(pair("left", "right"), drawn([]))["position"]


def test_things_in_their_places_in_swapped_colours_have_wrong_colours():
    swapped = prompt(Item("circle", "blue", place="left"), Item("square", "red", place="right"))
    assert judged(swapped, LEFT)["shape colour in pairs"] is False


def test_background_colour_and_count_of_a_group():
    asked = prompt(Item("circle", "red", 2, "group"), background="yellow")
    picture = drawn([("circle", "red", 6, 36, 54), ("circle", "red", 68, 36, 54)], "yellow")
    assert judged(asked, picture) == {"background": True, "shape colour": True, "count 2": True}
    other = drawn([("circle", "blue", place, 36, 34) for place in (6, 46, 86)], "white")
    assert judged(asked, other) == {"background": False, "shape colour": False, "count 2": False}


def test_a_background_that_is_not_asked_for_must_be_light():
    asked = prompt(Item("circle", "red"))
    for background, right in (("white", True), ("black", False)):
        assert judged(asked, drawn([("circle", "red", 16, 16, 96)], background))["no background"] is right


def test_retrieval_ranks_among_the_candidates_alone():
    cat = drawn([("circle", "green", 16, 16, 96)])
    assert judged(prompt(Item("cat", "green")), cat)["top-1"]
    dog = judged(prompt(Item("dog")), cat)
    assert not dog["top-1"] and dog["top-5"]
    assert "top-1" not in judged(prompt(Item("fox")), cat)


def test_everything_wrong_is_wrong():
    rng = random.Random(1)
    scene = Scene((Item("cat", "red", 2, "group"),), "blue")
    for _ in range(50):
        other = verdicts.everything_wrong(scene, rng)
        assert other.background not in ("blue", "white", None)
        item = other.items[0]
        assert item.name != "cat" and item.colour not in ("red", None) and item.count != 2
    swapped = verdicts.everything_wrong(pair("left", "right").scene, rng)
    assert [item.place for item in swapped.items] == ["right", "left"]
    assert [item.name for item in swapped.items] == ["circle", "square"]


def test_shares_count_the_prompts_that_a_measure_applies_to():
    found = verdicts.shares([{"count 1": True}, {"count 1": False}, {"count 2": True}, {"top-5": True}])
    assert found["count 1"] == verdicts.Share(1, 2)
    assert found["background"].total == 0
    assert verdicts.count_accuracy(found) == pytest.approx(0.75)
    assert verdicts.headline(found)["top-5"] == 1


def test_the_interval_of_a_share_holds_it_and_narrows():
    few, many = verdicts.Share(8, 10).interval(), verdicts.Share(800, 1000).interval()
    assert few[0] < many[0] < 0.8 < many[1] < few[1] <= 1
    assert verdicts.Share(0, 10).interval()[0] == 0
    assert replace(verdicts.Share(10, 10)).interval()[1] == 1
