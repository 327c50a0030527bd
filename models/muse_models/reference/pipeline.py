"""Text to base tokens to super-resolution tokens to a picture, on a bundle (Muse Figure 3)."""

from dataclasses import dataclass

import numpy as np

from .bundle import Bundle
from .sampler import DecodedRow, Key, Settings, decode


@dataclass(frozen=True)
class Request:
    """One picture. `initial_tokens` [S] int64 hold the mask id where tokens are to be made; None means everywhere."""

    prompt: str
    seed: int
    image_index: int = 0
    negative_prompt: str | None = None
    initial_tokens: np.ndarray | None = None


def decode_stage(
    bundle: Bundle, stage_name: str, request: Request, settings: Settings, low_tokens: np.ndarray | None = None
) -> DecodedRow:
    """Runs one stage. `low_tokens` [S of base] int64 are the base stage's tokens, for super-resolution alone."""
    stage = bundle.stages[stage_name]
    text, mask = bundle.embed(request.prompt)
    if request.negative_prompt is not None:
        other = bundle.embed(request.negative_prompt)
    else:
        other = stage.unconditional_text(text, mask)
    conditionings = {
        True: stage.conditioning(text, mask, low_tokens),
        False: stage.conditioning(*other, low_tokens),
    }

    def forward(tokens: np.ndarray, conditional: bool) -> np.ndarray:
        return stage.masked_logits(tokens[None], conditionings[conditional])

    initial = request.initial_tokens
    if initial is None:
        initial = np.full(stage.positions, stage.manifest["mask_id"], np.int64)
    return decode(
        initial,
        stage.grid,
        stage.manifest["mask_id"],
        stage.manifest["codebook_size"],
        settings,
        Key(request.seed, request.image_index, stage_name),
        forward,
    )


def generate(bundle: Bundle, request: Request) -> np.ndarray:
    """A picture with the bundle's default settings, f32 [3, H, W], RGB in 0…1."""
    tokens: np.ndarray | None = None
    for name, stage in bundle.stages.items():
        tokens = decode_stage(bundle, name, request, stage.defaults, tokens).tokens
    last = list(bundle.stages.values())[-1]
    (image,) = last.decoder.run(["image"], {"tokens": tokens[None]})
    return image[0]
