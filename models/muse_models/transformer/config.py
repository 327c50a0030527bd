"""Shapes of the two masked transformers."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of a masked transformer; the `low_` fields are set for super-resolution alone.

    Token ids 0 … `codebook_size` - 1 are image tokens. `vocab_size` counts what the token embedding takes, the mask
    id included, and `logits_size` is the last axis of the output; both may be larger than they must be.
    """

    grid: tuple[int, int]
    """Rows and columns of the token grid; S is their product."""
    codebook_size: int
    vocab_size: int
    logits_size: int
    mask_id: int
    text_width: int
    """Size of one embedding vector of the text encoder."""
    width: int
    layers: int
    heads: int
    mlp_width: int
    merge: int = 1
    """Side, in tokens, of the square that shares one state in the layers; 1 is the paper's form."""
    low_grid: tuple[int, int] | None = None
    """Rows and columns of the base stage's grid."""
    low_vocab_size: int = 0
    """Number of ids a low-resolution token may have."""
    low_layers: int = 0
    """Self-attention layers over the low-resolution tokens."""

    def __post_init__(self) -> None:
        if not self.codebook_size <= self.mask_id < self.vocab_size:
            raise ValueError(f"mask_id {self.mask_id} must be outside the codebook and inside the vocabulary")
        if self.logits_size < self.codebook_size:
            raise ValueError(f"logits_size {self.logits_size} is below codebook_size {self.codebook_size}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of {self.heads} heads")
        if self.grid[0] % self.merge or self.grid[1] % self.merge:
            raise ValueError(f"grid {self.grid} is not made of squares of {self.merge} tokens a side")
        if (self.low_grid is None) != (self.low_layers == 0):
            raise ValueError("low_grid and low_layers go together")

    @property
    def positions(self) -> int:
        """S, the number of tokens of the grid."""
        return self.grid[0] * self.grid[1]

    @property
    def state_grid(self) -> tuple[int, int]:
        """Rows and columns of the grid of states that the layers work on."""
        return (self.grid[0] // self.merge, self.grid[1] // self.merge)

    @property
    def is_superres(self) -> bool:
        """Whether the model is conditioned on low-resolution tokens."""
        return self.low_grid is not None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for checkpoints."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TransformerConfig":
        """The inverse of `to_dict`; also reads the `[model]` table of a TOML file."""
        values = dict(values)
        for name in ("grid", "low_grid"):
            if values.get(name) is not None:
                values[name] = tuple(values[name])
        return cls(**values)
