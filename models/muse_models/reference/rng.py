"""Counter-based random numbers: Philox4x32-10 (Salmon et al., SC 2011), keyed by what a draw is for.

There is no state: the words of a position at a step of a picture are a function of the seed and those numbers. A
picture is then the same whatever ran beside it, and a decode can go on anywhere after a restart.
"""

import numpy as np

STAGE_CODES = {"base": 0, "superres": 1}
"""Fourth word of the counter."""

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW_HALF = np.uint64(0xFFFFFFFF)
_ROUNDS = 10


def philox(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Output words of `counter` [..., 4] uint32 under `key`, two 32-bit words; [..., 4] uint32."""
    c0, c1, c2, c3 = (counter[..., word].astype(np.uint64) for word in range(4))
    k0, k1 = key
    for _ in range(_ROUNDS):
        product0, product1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        high0, low0 = product0 >> np.uint64(32), product0 & _LOW_HALF
        high1, low1 = product1 >> np.uint64(32), product1 & _LOW_HALF
        c0, c1, c2, c3 = high1 ^ c1 ^ np.uint64(k0), low1, high0 ^ c3 ^ np.uint64(k1), low0
        k0, k1 = (k0 + _KEY_STEPS[0]) & 0xFFFFFFFF, (k1 + _KEY_STEPS[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def draw(seed: int, positions: np.ndarray, step: int, image_index: int, stage: str) -> np.ndarray:
    """The words w0 … w3 of each position of `positions` [M], as [M, 4] uint32. `seed` is in 0 … 2^64 - 1.

    w0 draws the token, w1 the noise on its confidence, w2 is kept for mask choice in editing.
    """
    counter = np.empty((len(positions), 4), np.uint32)
    counter[:, 0] = positions
    counter[:, 1:] = (step, image_index, STAGE_CODES[stage])
    return philox(counter, (seed & 0xFFFFFFFF, seed >> 32))


def uniform(words: np.ndarray) -> np.ndarray:
    """f32 in (0, 1), never 0 or 1, from uint32 words: 23 bits and a half, which is exact."""
    return ((words >> np.uint32(9)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-23)


def gumbel(u: np.ndarray) -> np.ndarray:
    """Gumbel noise `-ln(-ln u)`, f32, of uniforms f32."""
    return -rounded(np.log, -rounded(np.log, u))


def rounded(function, values: np.ndarray) -> np.ndarray:
    """`function` of f32 values, correctly rounded to f32.

    NumPy's own f32 `exp` and `log` are off by some units in the last place, and not by the same on every CPU.
    """
    return function(values.astype(np.float64)).astype(np.float32)
