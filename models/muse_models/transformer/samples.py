"""Pictures of what a transformer makes while it trains, beside the pictures that the captions belong to."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..reference.sampler import Key, Settings, decode
from ..text.encoder import T5Encoder
from ..text.vocabulary import END
from ..tokenizer.model import ImageTokenizer
from ..training.pictures import save_grid
from .dataset import TokenBatch, embed
from .model import MaskedTransformer


@torch.no_grad()
def fill_grid(
    model: MaskedTransformer,
    encoder: T5Encoder,
    text_ids: Tensor,
    low_tokens: Tensor | None,
    settings: Settings,
    seed: int,
) -> np.ndarray:
    """Tokens int64 [S] for one caption's `text_ids` [L], with the empty text as unconditional input.

    `low_tokens` [S of base] are given for super-resolution alone.
    """
    config = model.config
    empty = torch.zeros_like(text_ids)
    empty[0] = END
    low = () if low_tokens is None else (low_tokens[None],)
    conditionings = {
        conditional: model.condition(*embed(encoder, ids[None]), *low)
        for conditional, ids in ((True, text_ids), (False, empty))
    }

    def forward(tokens: np.ndarray, conditional: bool) -> np.ndarray:
        logits = model.step(torch.from_numpy(tokens)[None], conditionings[conditional])[0]
        return logits.numpy()[tokens == config.mask_id]

    initial = np.full(config.positions, config.mask_id, np.int64)
    stage = "superres" if config.is_superres else "base"
    key = Key(seed, 0, stage)
    return decode(initial, config.grid, config.mask_id, config.codebook_size, settings, key, forward).tokens


@torch.no_grad()
def write_samples(
    path: Path,
    model: MaskedTransformer,
    encoder: T5Encoder,
    tokenizer: ImageTokenizer,
    rows: TokenBatch,
    settings: Settings,
) -> None:
    """Writes a PNG: above, the pictures of `rows` as their tokens show them; below, what is made of the captions."""
    true = rows.superres if model.config.is_superres else rows.base
    made = [
        fill_grid(model, encoder, ids, low if model.config.is_superres else None, settings, seed=index)
        for index, (ids, low) in enumerate(zip(rows.text_ids, rows.base, strict=True))
    ]
    lines = [tokenizer.decode(true).numpy(), tokenizer.decode(torch.from_numpy(np.stack(made))).numpy()]
    save_grid(path, lines, scale=2 if tokenizer.image_side <= 64 else 1)
