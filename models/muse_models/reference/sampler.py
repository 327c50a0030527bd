"""Iterative parallel decoding of one row (Muse §2.8), exactly as `docs/decoding.md` says.

U is the number of initially masked positions, V the codebook size, M the number of positions masked before a step.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import guidance as classifier_free
from . import rng, schedule


@dataclass(frozen=True)
class Settings:
    """How to sample a stage; the fields of `[<stage>.defaults]` in a bundle."""

    steps: int
    guidance: float
    guidance_schedule: str
    temperature: float
    top_k: int
    choice_temperature: float
    mask_schedule: str
    scheduler: str


@dataclass(frozen=True)
class Key:
    """What a row's random numbers depend on."""

    seed: int
    image_index: int
    stage: str


@dataclass(frozen=True)
class DecodedRow:
    """A row after its last step."""

    tokens: np.ndarray
    """int64 [S]."""
    masked_after_step: list[int]
    """Positions still masked after each step that ran; ends with 0."""


Forward = Callable[[np.ndarray, bool], np.ndarray]
"""`forward(tokens [S] int64, conditional)`: logits f32 [M, >= V] at the M masked positions, ascending, on the prompt or on
what guidance leads away from."""


def sample(logits: np.ndarray, u: np.ndarray, temperature: float, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws a token at each of M positions from softmax(logits / temperature).

    `logits` [M, V] f32, `u` [M] f32 uniforms. `top_k` = 0 keeps all V tokens. Returns tokens int64 [M] and the natural
    logarithm of their probabilities, f32 [M], under the distribution that was drawn from; with temperature 0 the
    likeliest token and its probability at temperature 1 without top-k.
    """
    greedy = temperature == 0
    z = logits if greedy else logits / np.float32(temperature)
    kept = np.ones(z.shape, bool)
    if not greedy and 0 < top_k < z.shape[1]:
        # A stable sort of -z: of equals the lower index comes first.
        largest = np.argsort(-z, axis=1, kind="stable")[:, :top_k]
        kept = np.zeros(z.shape, bool)
        np.put_along_axis(kept, largest, True, axis=1)
    shifted = z - z.max(axis=1, keepdims=True)
    weights = np.where(kept, exponential(shifted), np.float32(0))
    ends, running = _sums(weights)
    total = ends[:, -1]
    if greedy:
        tokens = z.argmax(axis=1)
    else:
        rows, threshold = np.arange(len(u)), (u.astype(np.float64) * total)[:, None]
        block = np.minimum((ends <= threshold).sum(axis=1), ends.shape[1] - 1)
        passed = running[rows, block] > threshold
        padded = np.zeros((len(u), ends.shape[1] * _BLOCK), np.float32)
        padded[:, : z.shape[1]] = weights
        weighted = padded.reshape(len(u), -1, _BLOCK)[rows, block] > 0
        last = _BLOCK - 1 - weighted[:, ::-1].argmax(axis=1)
        tokens = block * _BLOCK + np.where(passed.any(axis=1), passed.argmax(axis=1), last)
    log_probability = shifted[np.arange(len(tokens)), tokens] - np.log(total).astype(np.float32)
    return tokens, log_probability


def exponential(x: np.ndarray) -> np.ndarray:
    """E(x) of `docs/decoding.md`: f32 exp of f32 x <= 0 by f32 operations alone, the same bits on every machine; 0 below -87."""
    f32, least = np.float32, np.float32(-87)
    clamped = np.maximum(x, least)
    n = (clamped * f32(np.log2(np.e)) + f32(1.5 * 2**23)) - f32(1.5 * 2**23)
    r = (clamped - n * f32(355 / 512)) - n * f32(np.log(2) - 355 / 512)
    power_series = np.full_like(r, 1 / 5040)
    for factorial in (720, 120, 24, 6, 2, 1, 1):
        power_series = power_series * r + f32(1 / factorial)
    return np.where(x < least, f32(0), power_series * np.exp2(n))


_BLOCK = 64
"""Weights whose sum is made at once."""


def _sums(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of `weights` f32 [N, V] up to the end of each block, f64 [N, B], and up to each weight of it, f64 [N, B, 64]."""
    count, codes = weights.shape
    padded = np.zeros((count, -(-codes // _BLOCK) * _BLOCK), np.float64)
    padded[:, :codes] = weights
    blocks = padded.reshape(count, -1, _BLOCK)
    eights = blocks.reshape(count, -1, _BLOCK // 8, 8)
    lanes = np.zeros(eights.shape[:2] + (8,))
    for at in range(_BLOCK // 8):
        lanes += eights[:, :, at]
    s = np.moveaxis(lanes, -1, 0)
    ends = np.cumsum(((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7])), axis=1)
    before = np.concatenate([np.zeros((count, 1)), ends[:, :-1]], axis=1)
    running = np.cumsum(np.concatenate([before[:, :, None], blocks], axis=2), axis=2)[:, :, 1:]
    return ends, running


def least_confident(log_probability: np.ndarray, u: np.ndarray, tau: np.float32, count: int) -> np.ndarray:
    """Which `count` of M positions to mask again, as indices into `log_probability` [M]: the lowest `ln p + tau g`.

    `u` [M] are the uniforms of the Gumbel noise g. Of equals the earlier position is taken.
    """
    confidence = log_probability if tau == 0 else log_probability + tau * rng.gumbel(u)
    return np.argsort(confidence, kind="stable")[:count]


def decode(
    initial: np.ndarray,
    grid: tuple[int, int],
    mask_id: int,
    codebook_size: int,
    settings: Settings,
    key: Key,
    forward: Forward,
) -> DecodedRow:
    """Fills the positions of `initial` [S] int64 that hold `mask_id`; the others never change."""
    tokens = initial.copy()
    initially = int((tokens == mask_id).sum())
    steps = min(settings.steps, initially)
    order = schedule.halton_order(*grid) if settings.scheduler == "halton" else None
    masked_after_step: list[int] = []
    for step in range(steps):
        masked = np.flatnonzero(tokens == mask_id)
        if len(masked) == 0:
            break
        t = classifier_free.weight(settings.guidance, settings.guidance_schedule, step, steps)
        logits = forward(tokens, True)[:, :codebook_size]
        if t != 0:
            logits = classifier_free.guided(logits, forward(tokens, False)[:, :codebook_size], t)
        words = rng.draw(key.seed, masked, step, key.image_index, key.stage)
        drawn, log_probability = sample(logits, rng.uniform(words[:, 0]), settings.temperature, settings.top_k)
        tokens[masked] = drawn
        count = schedule.masked_after(settings.mask_schedule, initially, len(masked), step, steps)
        if count > 0:
            if order is not None:
                again = order[np.isin(order, masked)][-count:]
            else:
                tau = np.float32(settings.choice_temperature) * (np.float32(1) - np.float32((step + 1) / steps))
                again = masked[least_confident(log_probability, rng.uniform(words[:, 1]), tau, count)]
            tokens[again] = mask_id
        masked_after_step.append(count)
    return DecodedRow(tokens, masked_after_step)
