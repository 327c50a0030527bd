"""Cross-entropy and accuracy of the transformers on masked tokens of held-out scenes, by the share that is masked."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..reference.bundle import Stage
from .sampling import BATCH, Generator

RATIOS = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


@dataclass(frozen=True)
class Likelihood:
    """Figures at one mask ratio, over masked positions alone."""

    ratio: float
    cross_entropy: float
    """Mean of −ln p(token), in nats."""
    accuracy: float
    """Share of positions where the likeliest token is the right one."""


def masked_likelihood(
    generator: Generator, stage: Stage, captions: Sequence[str], tokens: np.ndarray,
    low_tokens: np.ndarray | None, ratios: Sequence[float] = RATIOS,
) -> list[Likelihood]:
    """Masks `ratio` of each row's positions at random, the same for the same arguments, and asks for them with the
    caption and without guidance. `tokens` [N, S]; `low_tokens` [N, S of base] for super-resolution.
    """
    random = np.random.default_rng(1)
    order = random.random(tokens.shape).argsort(axis=1)
    sums = np.zeros((len(ratios), 3))
    for start in range(0, len(tokens), BATCH):
        rows = slice(start, start + BATCH)
        texts = [generator.embed(caption) for caption in captions[rows]]
        conditioning = generator.conditioning(stage, texts, None if low_tokens is None else low_tokens[rows])
        for at, ratio in enumerate(ratios):
            masked = order[rows] < max(1, round(ratio * tokens.shape[1]))
            given = np.where(masked, stage.manifest["mask_id"], tokens[rows])
            chosen = stage.masked_logits(given, conditioning)[:, : stage.manifest["codebook_size"]].astype(np.float64)
            right = tokens[rows][masked]
            highest = chosen.max(axis=1)
            total = highest + np.log(np.exp(chosen - highest[:, None]).sum(axis=1))
            surprise = total - chosen[np.arange(len(right)), right]
            sums[at] += surprise.sum(), (chosen.argmax(axis=1) == right).sum(), len(right)
    return [
        Likelihood(ratio, float(surprise / count), float(right / count))
        for ratio, (surprise, right, count) in zip(ratios, sums, strict=True)
    ]
