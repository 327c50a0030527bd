"""The demo model reads word order: the swap of a caption has other embeddings, and a picture with sides exchanged."""

from pathlib import Path

import numpy as np
import pytest

from muse_models.reference.bundle import Bundle
from muse_models.reference.pipeline import Request, generate

DEMO = Path(__file__).resolve().parents[3] / "bundles" / "demo"
CAPTION = "a red circle to the left of a blue square"
SWAP = "a blue square to the left of a red circle"
SEEDS = range(1, 6)


@pytest.fixture(scope="module")
def demo() -> Bundle:
    return Bundle(DEMO)


def vector_of(bundle: Bundle, prompt: str, word: str) -> np.ndarray:
    """The embedding of the first token of `word` in `prompt`, scaled to length one."""
    token = bundle.tokenizer.encode(word).ids[0]
    place = bundle.tokenizer.encode(prompt).ids.index(token)
    embedding, _ = bundle.embed(prompt)
    return embedding[0, place] / np.linalg.norm(embedding[0, place])


@pytest.mark.parametrize("word", ["circle", "square", "red", "blue"])
def test_a_word_means_something_else_in_the_swap(demo, word):
    cosine = float(vector_of(demo, CAPTION, word) @ vector_of(demo, SWAP, word))
    # A bag of words has 1.000 here.
    assert cosine < 0.95, f"{word}: cosine {cosine:.3f}"


def redness(picture: np.ndarray) -> tuple[float, float]:
    """Red less blue, summed over the left and the right half of `picture` [3, H, W]; white counts nothing."""
    excess = picture[0] - picture[2]
    half = excess.shape[1] // 2
    return float(excess[:, :half].sum()), float(excess[:, half:].sum())


def test_the_swap_s_picture_has_the_sides_exchanged(demo):
    right = []
    for seed in SEEDS:
        left_of_caption, right_of_caption = redness(generate(demo, Request(CAPTION, seed)))
        left_of_swap, right_of_swap = redness(generate(demo, Request(SWAP, seed)))
        right.append(left_of_caption > 0 > right_of_caption and right_of_swap > 0 > left_of_swap)
    # One picture in five may fail the eye; chance would pass one in sixteen.
    assert sum(right) >= len(right) - 1, f"seeds with both pictures right: {right}"
