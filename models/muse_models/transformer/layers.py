"""The blocks that both transformers are made of (Muse §2.4-2.5, Figure 3).

Every linear map of a block is without bias: at this size a bias buys nothing, and is one more pass over memory.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..attention import attend


class GridPositions(nn.Module):
    """Learned 2-D positions: a vector for the row plus one for the column."""

    def __init__(self, grid: tuple[int, int], width: int) -> None:
        super().__init__()
        self.grid = grid
        self.rows = nn.Parameter(torch.randn(grid[0], 1, width) * 0.02)
        self.columns = nn.Parameter(torch.randn(1, grid[1], width) * 0.02)

    def forward(self) -> Tensor:
        """Vectors of all positions in row-major order, [S, width]."""
        return (self.rows + self.columns).reshape(self.grid[0] * self.grid[1], -1)


class SelfAttention(nn.Module):
    """Pre-norm self-attention, added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, bias=False)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        query, key, value = self.query_key_value(self.norm(states)).chunk(3, dim=-1)
        return states + self.out(attend(query, key, value, self.heads))


class CrossAttention(nn.Module):
    """Pre-norm attention to keys and values that are made once per picture, outside the steps."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, bias=False)
        self.query = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, states: Tensor, key: Tensor, value: Tensor, key_mask: Tensor) -> Tensor:
        query = self.query(self.norm(states))
        return states + self.out(attend(query, key, value, self.heads, key_mask))


class FeedForward(nn.Module):
    """Pre-norm two-layer perceptron, added to its input."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, bias=False)
        self.into = nn.Linear(width, hidden, bias=False)
        self.out = nn.Linear(hidden, width, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        return states + self.out(functional.gelu(self.into(self.norm(states))))


class EncoderLayer(nn.Module):
    """Self-attention, then a perceptron: a layer over the low-resolution tokens."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads)
        self.mlp = FeedForward(width, hidden)

    def forward(self, states: Tensor) -> Tensor:
        return self.mlp(self.attention(states))


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention, then a perceptron: a layer over the tokens being decoded."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads)
        self.cross = CrossAttention(width, heads)
        self.mlp = FeedForward(width, hidden)

    def forward(self, states: Tensor, key: Tensor, value: Tensor, key_mask: Tensor) -> Tensor:
        return self.mlp(self.cross(self.attention(states), key, value, key_mask))
