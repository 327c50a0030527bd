"""Colours, backgrounds, and the parts of a mask."""

import numpy as np
import pytest

from muse_models.data.colours import COLOUR_NAMES, COLOURS
from muse_models.evaluation import pixels


def even(colour: tuple[int, int, int], side: int = 64) -> np.ndarray:
    return np.full((side, side, 3), colour, np.uint8)


@pytest.mark.parametrize("name", COLOUR_NAMES)
def test_a_colour_has_its_own_name_also_when_it_is_a_little_off(name):
    rng = np.random.default_rng(1)
    rgb = np.clip(np.array(COLOURS[name]) + rng.integers(-10, 11, (200, 3)), 0, 255).astype(np.uint8)
    names = pixels.nearest_names(pixels.oklab(rgb), len(COLOUR_NAMES))
    assert (names == COLOUR_NAMES.index(name)).mean() > 0.97


def test_white_and_black_are_one_apart():
    lab = pixels.oklab(np.array([[255, 255, 255], [0, 0, 0]], np.uint8))
    assert np.linalg.norm(lab[0] - lab[1]) == pytest.approx(1, abs=1e-3)


def test_the_background_is_what_most_of_the_border_shows():
    picture = even(COLOURS["blue"])
    picture[:, :20] = COLOURS["red"]
    found = pixels.background(pixels.oklab(picture))
    assert found.name == "blue"
    assert 0.5 < found.share < 0.8


def test_a_thing_is_foreground_and_noise_on_the_background_is_not():
    rng = np.random.default_rng(2)
    picture = even(COLOURS["green"])
    picture[20:40, 20:40] = COLOURS["yellow"]
    noisy = np.clip(picture.astype(int) + rng.integers(-4, 5, picture.shape), 0, 255).astype(np.uint8)
    lab = pixels.oklab(noisy)
    mask = pixels.foreground(lab, pixels.background(lab))
    assert mask[20:40, 20:40].all()
    assert mask.sum() == 400


def test_an_even_picture_has_no_foreground():
    lab = pixels.oklab(even(COLOURS["pink"]))
    assert not pixels.foreground(lab, pixels.background(lab)).any()


def flood(mask: np.ndarray) -> np.ndarray:
    """Labels found one pixel after the other, to compare with."""
    labels = np.zeros(mask.shape, np.int32)
    for start in np.argwhere(mask):
        if labels[tuple(start)]:
            continue
        label = labels.max() + 1
        waiting = [tuple(start)]
        while waiting:
            row, column = waiting.pop()
            inside = 0 <= row < mask.shape[0] and 0 <= column < mask.shape[1]
            if inside and mask[row, column] and not labels[row, column]:
                labels[row, column] = label
                waiting += [(row + down, column + right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    return labels


@pytest.mark.parametrize("density", [0.05, 0.2, 0.35, 0.5, 0.8])
def test_components_are_those_of_a_flood_fill(density):
    mask = np.random.default_rng(int(density * 100)).random((40, 50)) < density
    found, wanted = pixels.components(mask), flood(mask)
    assert found.max() == wanted.max()
    assert len(set(zip(found.reshape(-1).tolist(), wanted.reshape(-1).tolist(), strict=True))) == wanted.max() + 1


def test_components_of_nothing_and_of_everything():
    assert pixels.components(np.zeros((5, 5), bool)).max() == 0
    assert (pixels.components(np.ones((5, 5), bool)) == 1).all()


def test_holes_are_filled_and_bays_are_not():
    ring = np.zeros((20, 20), bool)
    ring[4:16, 4:16] = True
    ring[8:12, 8:12] = False
    assert pixels.filled(ring).sum() == 144
    ring[8:12, 0:8] = False
    assert not pixels.filled(ring)[9, 9]


def test_closing_bridges_a_gap_and_keeps_the_outline():
    bars = np.zeros((30, 30), bool)
    bars[5:25, 5:13] = bars[5:25, 16:25] = True
    assert pixels.components(pixels.closed(bars, 1)).max() == 2
    assert pixels.components(pixels.closed(bars, 2)).max() == 1
    assert pixels.closed(bars, 2)[:, :5].sum() == 0
    assert (pixels.closed(bars, 0) == bars).all()


def test_wearing_away_removes_a_thin_bridge():
    bars = np.zeros((30, 30), bool)
    bars[5:25, 3:13] = bars[5:25, 17:27] = True
    bars[14:16, 13:17] = True
    assert pixels.components(bars).max() == 1
    assert pixels.components(pixels.eroded(bars, 1)).max() == 2
