"""Many rows at once, token for token what `reference.pipeline.decode_stage` makes one at a time.

All rows start fully masked and share their settings, so that every step masks the same number of positions in each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..reference import guidance as classifier_free
from ..reference import rng, schedule
from ..reference.bundle import Bundle, Stage
from ..reference.sampler import Settings, least_confident, sample

BATCH = 16
"""Rows in one run of a graph. More gain nothing on one thread and cost memory."""

Conditioning = dict[str, np.ndarray]


@dataclass(frozen=True)
class Embedded:
    """A prompt's embedding f32 [1, L, D] and mask int64 [1, L]."""

    text: np.ndarray
    mask: np.ndarray


class Generator:
    """Makes pictures with a bundle; embeddings of prompts are kept."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._embedded: dict[str, Embedded] = {}

    def embed(self, prompt: str) -> Embedded:
        if prompt not in self._embedded:
            self._embedded[prompt] = Embedded(*self.bundle.embed(prompt))
        return self._embedded[prompt]

    def tokens(
        self, stage_name: str, prompts: Sequence[str], seeds: Sequence[int], settings: Settings,
        low_tokens: np.ndarray | None = None,
    ) -> np.ndarray:
        """Decodes a stage for every prompt, int64 [N, S]. `low_tokens` [N, S of base] for super-resolution alone."""
        stage = self.bundle.stages[stage_name]
        parts = []
        for start in range(0, len(prompts), BATCH):
            rows = slice(start, start + BATCH)
            low = None if low_tokens is None else low_tokens[rows]
            parts.append(self._decode(stage, prompts[rows], seeds[rows], settings, low))
        return np.concatenate(parts)

    def conditioning(self, stage: Stage, embedded: Sequence[Embedded], low_tokens: np.ndarray | None) -> Conditioning:
        """What the steps of these rows reuse, joined along the batch axis."""
        inputs = {
            "text": np.concatenate([one.text for one in embedded]),
            "text_mask": np.concatenate([one.mask for one in embedded]),
        }
        if low_tokens is not None:
            inputs["low_tokens"] = low_tokens
        wanted = stage.manifest.get("conditioning", [output.name for output in stage.condition.get_outputs()])
        return dict(zip(wanted, stage.condition.run(wanted, inputs), strict=True))

    def _decode(
        self, stage: Stage, prompts: Sequence[str], seeds: Sequence[int], settings: Settings, low: np.ndarray | None
    ) -> np.ndarray:
        count, mask_id = len(prompts), stage.manifest["mask_id"]
        texts = [self.embed(prompt) for prompt in prompts]
        conditional = self.conditioning(stage, texts, low)
        unconditional: Conditioning | None = None
        tokens = np.full((count, stage.positions), mask_id, np.int64)
        steps = min(settings.steps, stage.positions)
        order = schedule.halton_order(*stage.grid) if settings.scheduler == "halton" else None
        for step in range(steps):
            masked = np.nonzero(tokens == mask_id)[1].reshape(count, -1)
            t = classifier_free.weight(settings.guidance, settings.guidance_schedule, step, steps)
            logits = _masked_logits(stage, tokens, masked, conditional)
            if t != 0:
                if unconditional is None:
                    dropped = [Embedded(*stage.unconditional_text(one.text, one.mask)) for one in texts]
                    unconditional = self.conditioning(stage, dropped, low)
                logits = classifier_free.guided(logits, _masked_logits(stage, tokens, masked, unconditional), t)
            words = np.stack([
                rng.draw(seed, row, step, 0, stage.name) for seed, row in zip(seeds, masked, strict=True)
            ])
            flat = logits.reshape(-1, logits.shape[-1])
            drawn, log_probability = sample(
                flat, rng.uniform(words[..., 0]).reshape(-1), settings.temperature, settings.top_k
            )
            np.put_along_axis(tokens, masked, drawn.reshape(masked.shape), axis=1)
            again = schedule.masked_after(settings.mask_schedule, stage.positions, masked.shape[1], step, steps)
            if again == 0:
                break
            tau = np.float32(settings.choice_temperature) * (np.float32(1) - np.float32((step + 1) / steps))
            confidence = log_probability.reshape(masked.shape)
            for row in range(count):
                if order is not None:
                    chosen = order[np.isin(order, masked[row])][-again:]
                else:
                    chosen = masked[row][least_confident(confidence[row], rng.uniform(words[row, :, 1]), tau, again)]
                tokens[row, chosen] = mask_id
        return tokens


def _masked_logits(stage: Stage, tokens: np.ndarray, masked: np.ndarray, conditioning: Conditioning) -> np.ndarray:
    """Logits f32 [N, M, V] at the masked positions [N, M] of each row."""
    logits = stage.masked_logits(tokens, conditioning)[:, : stage.manifest["codebook_size"]]
    return logits.reshape(*masked.shape, -1)


def decode_pictures(stage: Stage, tokens: np.ndarray) -> np.ndarray:
    """The stage's decoder: tokens int64 [N, S] → uint8 RGB [N, H, W, 3]."""
    parts = []
    for start in range(0, len(tokens), BATCH):
        (image,) = stage.decoder.run(["image"], {"tokens": tokens[start : start + BATCH]})
        parts.append((np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(0, 2, 3, 1))
    return np.concatenate(parts)


def encode_pictures(stage: Stage, pictures: np.ndarray) -> np.ndarray:
    """The stage's encoder: uint8 RGB [N, H, W, 3] → tokens int64 [N, S]."""
    parts = []
    for start in range(0, len(pictures), BATCH):
        batch = pictures[start : start + BATCH].transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
        parts.append(stage.encoder.run(["tokens"], {"image": batch})[0])
    return np.concatenate(parts)


def generate(
    generator: Generator, prompts: Sequence[str], seeds: Sequence[int], settings: dict[str, Settings]
) -> dict[str, np.ndarray]:
    """Tokens int64 [N, S] of every stage in `settings`, which are the bundle's first ones in its order."""
    made: dict[str, np.ndarray] = {}
    low = None
    for name, one in settings.items():
        made[name] = low = generator.tokens(name, prompts, seeds, one, low)
    return made
