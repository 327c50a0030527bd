"""Prompts are held out, spread over the kinds, and always the same."""

import json
import random
from collections import Counter
from dataclasses import asdict

import pytest

from muse_models.data.scene import Item, Scene, random_scene
from muse_models.evaluation import prompts

SIZES = prompts.Sizes(objects=12, shapes=10, groups=9, pairs=8)
DRAWS = 4_000


@pytest.fixture(scope="module")
def some() -> list[prompts.Prompt]:
    return prompts.held_out_prompts(SIZES, draws=DRAWS)


def test_every_prompt_is_a_held_out_composition_of_its_own(some):
    assert all(prompt.scene.is_held_out() for prompt in some)
    assert len({prompt.scene.composition() for prompt in some}) == len(some)
    assert len({prompt.seed for prompt in some}) == len(some)


def test_prompts_are_spread_over_kinds_counts_and_directions(some):
    kinds = Counter(prompt.kind for prompt in some)
    assert kinds["shape"] == 10 and kinds["group"] == 9 and kinds["pair"] == 8
    # One prompt an object; an object may have no such composition among the held-out ones that were drawn.
    tinted = [prompt.scene.items[0].name for prompt in some if prompt.kind == "tinted object"]
    assert len(tinted) == len(set(tinted)) and 5 < len(tinted) <= 12
    assert Counter(prompt.count for prompt in some if prompt.kind == "group") == {2: 3, 3: 3, 4: 3}
    places = Counter(prompt.scene.items[0].place in ("left", "right") for prompt in some if prompt.kind == "pair")
    assert places == {True: 4, False: 4}


def test_prompts_are_the_same_every_time_and_others_with_another_seed(some):
    assert prompts.held_out_prompts(SIZES, draws=DRAWS) == some
    assert prompts.held_out_prompts(SIZES, seed=2, draws=DRAWS) != some


def test_the_full_set_has_more_than_three_hundred():
    assert len(prompts.held_out_prompts(prompts.Sizes())) >= 300


def test_a_share_keeps_every_kind(some):
    few = prompts.every(some, 0.3)
    assert {prompt.kind for prompt in few} == {prompt.kind for prompt in some}
    assert len(few) < len(some) / 2
    assert prompts.every(some, 1.0) == some


def scene(*items: Item, background: str | None = None) -> Scene:
    return Scene(items, background)


def test_scenes_that_are_drawn_alike_have_the_same_look():
    apple, red = Item("apple"), Item("apple", "red")
    assert prompts.look(scene(apple)) == prompts.look(scene(red)) == prompts.look(scene(red, background="white"))
    assert prompts.look(scene(apple)) != prompts.look(scene(Item("apple", "blue")))
    assert prompts.look(scene(apple, background="blue")) != prompts.look(scene(apple))
    unicorn = Item("unicorn")
    assert prompts.look(scene(unicorn)) != prompts.look(scene(unicorn, background="white"))


def test_beside_looks_like_either_order():
    beside = scene(Item("cat", place="beside"), Item("dog", place="beside"))
    for one, other in (("left", "right"), ("right", "left")):
        ordered = scene(Item("cat", place=one), Item("dog", place=other))
        assert prompts.looks(ordered) < prompts.looks(beside)
    above = scene(Item("cat", place="above"), Item("dog", place="below"))
    assert not prompts.looks(above) & prompts.looks(beside)


def test_a_leak_is_found_and_a_training_scene_is_none(tmp_path, some):
    path = tmp_path / "scenes.jsonl"
    rng = random.Random(1)
    scenes = [random_scene(rng) for _ in range(200)]
    path.write_text("".join(json.dumps(asdict(one)) + "\n" for one in scenes))
    assert prompts.leaks(some, path).compositions == 0
    path.write_text("".join(json.dumps(asdict(one)) + "\n" for one in [*scenes, some[3].scene]))
    found = prompts.leaks(some, path)
    assert (found.compositions, found.training_scenes) == (1, 201)
    assert some[3].text in found.twins


def test_real_scenes_have_the_prompts_kinds_and_are_held_out(some):
    scenes = prompts.scenes_like(some, 100, 1)
    assert len(scenes) == 100 and all(one.is_held_out() for one in scenes)
    wanted = Counter(prompt.kind for prompt in some)
    for kind, number in Counter(prompts.kind_of(one) for one in scenes).items():
        assert abs(number - 100 * wanted[kind] / len(some)) <= 1
