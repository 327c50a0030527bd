"""Feeds tokenized pictures with their captions to transformer training."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..text.encoder import T5Encoder
from ..text.vocabulary import PAD


@dataclass
class TokenBatch:
    """B pictures in both stages' tokens, with their captions."""

    base: Tensor
    """int64 [B, S of base]."""
    superres: Tensor | None
    """int64 [B, S of super-resolution], or None where only base tokens were asked for."""
    text_ids: Tensor
    """int64 [B, L], padded with 0."""


class TokenShards:
    """Random rows of the arrays that `muse_models.data` describes; they stay on disk."""

    def __init__(self, folder: Path, seed: int, superres: bool) -> None:
        """Without `superres` its file need not be there: the base model can train before it is made."""
        self._base = np.load(folder / "base.npy", mmap_mode="r")
        self._superres = np.load(folder / "superres.npy", mmap_mode="r") if superres else None
        self._text_ids = np.load(folder / "text_ids.npy", mmap_mode="r")
        self._random = np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self._base)

    def batch(self, count: int) -> TokenBatch:
        """`count` rows drawn with replacement."""
        # Sorted, so that a disk is read in one direction.
        return self.rows(np.sort(self._random.integers(0, len(self), count)))

    def rows(self, chosen: np.ndarray) -> TokenBatch:
        """The rows with the given indices."""
        return TokenBatch(*(
            None if array is None else torch.from_numpy(array[chosen].astype(np.int64))
            for array in (self._base, self._superres, self._text_ids)
        ))


@torch.no_grad()
def embed(encoder: T5Encoder, text_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Embedding [B, L', D] and mask [B, L'] int64 of `text_ids` [B, L], cut to the longest text among them."""
    mask = (text_ids != PAD).long()
    longest = int(mask.sum(dim=1).max())
    text_ids, mask = text_ids[:, :longest], mask[:, :longest]
    return encoder(text_ids, mask), mask
