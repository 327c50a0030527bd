"""Philox, and the numbers made of its words."""

import numpy as np
import pytest

from muse_models.reference import rng


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_answers(counter, key, words):
    assert tuple(rng.philox(np.array(counter, np.uint32), key)) == words


def test_a_position_draws_the_same_words_alone_and_among_others():
    together = rng.draw(2**64 - 1, np.arange(64), 5, 2, "superres")
    alone = rng.draw(2**64 - 1, np.array([17]), 5, 2, "superres")
    np.testing.assert_array_equal(together[17], alone[0])


def test_each_part_of_the_key_changes_the_words():
    position = np.array([3])
    draws = [
        rng.draw(1, position, 0, 0, "base"),
        rng.draw(2, position, 0, 0, "base"),
        rng.draw(1 + 2**32, position, 0, 0, "base"),
        rng.draw(1, position + 1, 0, 0, "base"),
        rng.draw(1, position, 1, 0, "base"),
        rng.draw(1, position, 0, 1, "base"),
        rng.draw(1, position, 0, 0, "superres"),
    ]
    assert len({tuple(draw[0]) for draw in draws}) == len(draws)


def test_uniforms_stay_off_zero_and_one_and_are_exact():
    ends = rng.uniform(np.array([0, 511, 2**32 - 1], np.uint32))
    assert ends.dtype == np.float32
    assert ends.tolist() == [2.0**-24, 2.0**-24, 1 - 2.0**-24]


def test_uniforms_are_uniform():
    words = rng.draw(7, np.arange(100_000), 0, 0, "base")
    for column in range(4):
        counts = np.histogram(rng.uniform(words[:, column]), bins=20, range=(0, 1))[0]
        assert abs(counts - 5000).max() < 350  # five standard deviations


def test_gumbel_noise_has_its_mean_and_deviation():
    noise = rng.gumbel(rng.uniform(rng.draw(9, np.arange(200_000), 0, 0, "base")[:, 1]))
    assert np.isfinite(noise).all()
    assert noise.mean() == pytest.approx(0.5772, abs=0.01)
    assert noise.std() == pytest.approx(np.pi / 6**0.5, abs=0.01)
