"""What a bundle is made of: models in PyTorch, whoever trained them, behind the few names that the export needs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from tokenizers import Tokenizer
from torch import Tensor, nn

from ..reference.sampler import Settings
from ..text.encoder import T5Encoder
from .storage import Precision


class StageShape(Protocol):
    """The numbers of a stage that the manifest states; `transformer.config.TransformerConfig` has them."""

    grid: tuple[int, int]
    codebook_size: int
    vocab_size: int
    logits_size: int
    mask_id: int
    text_width: int
    low_grid: tuple[int, int] | None
    """Rows and columns of the base stage's grid, for super-resolution."""
    low_vocab_size: int

    @property
    def positions(self) -> int:
        """Rows times columns."""
        ...


class StageModel(Protocol):
    """A masked transformer (an `nn.Module`), in the two halves that are exported."""

    config: StageShape

    def conditioning_names(self) -> list[str]:
        """Names of the tensors that `condition` returns, in its order."""
        ...

    condition: Callable[..., dict[str, Tensor]]
    """Text [B, L, D], text mask [B, L] (and low tokens [B, S of base]) to tensors with leading axis B, by name."""
    step: Callable[..., Tensor]
    """Tokens [G, S], those tensors, grids [B] and positions [M] to logits [M, logits_size], as in `docs/bundle.md`; without
    the last two, tokens [B, S] to logits [B, S, logits_size]."""


@dataclass(frozen=True)
class TextPart:
    """The text encoder and its tokenizer."""

    encoder: T5Encoder
    tokenizer: Tokenizer
    max_length: int
    length_buckets: list[int]
    precision: Precision = "f32"


@dataclass(frozen=True)
class StagePart:
    """A stage: its transformer and its image tokenizer."""

    model: Any
    """A `StageModel`."""
    tokenizer: nn.Module
    """Has `encode` (image [B, 3, H, W] to tokens) and `decode` (the inverse)."""
    images: Tensor
    """[2, 3, H, W] in 0…1: examples for the encoder; H and W are the stage's picture size."""
    defaults: Settings
    unconditional: str = "empty_text"
    null_embedding: np.ndarray | None = None
    """f32 [length, D], with `unconditional = "null_embedding"`."""
    precision: Precision = "f32"
    tokenizer_precision: Precision = "f32"
    whole_step: bool = False
    """Whether the step graph computes every position of every row's grid, without the inputs `grids` and `positions`."""


@dataclass(frozen=True)
class BundleParts:
    """Everything that a bundle is made of."""

    name: str
    version: str
    license: str
    description: str
    text: TextPart
    base: StagePart
    superres: StagePart | None = None

    @property
    def stages(self) -> dict[str, StagePart]:
        """The stages that there are, in their order."""
        stages = {"base": self.base}
        return stages if self.superres is None else stages | {"superres": self.superres}
