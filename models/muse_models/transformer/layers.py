"""The blocks that both transformers are made of (Muse §2.4-2.5, Figure 3).

Every linear map of a block is without bias: at this size a bias buys nothing, and is one more pass over memory.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..attention import attend


class Linear(nn.Linear):
    """A linear map without bias that is exported as a `MatMul` with a matrix [inputs, outputs], whatever it is applied to.

    PyTorch's own becomes a `Gemm` with the transposed matrix where its input has two axes, and the same weights would lie
    in two forms in a bundle.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        return states @ self.weight.T if torch.compiler.is_exporting() else super().forward(states)


class GridPositions(nn.Module):
    """Learned 2-D positions: a vector for the row plus one for the column."""

    def __init__(self, grid: tuple[int, int], width: int) -> None:
        super().__init__()
        self.grid = grid
        self.rows = nn.Parameter(torch.randn(grid[0], 1, width) * 0.02)
        self.columns = nn.Parameter(torch.randn(1, grid[1], width) * 0.02)

    def forward(self) -> Tensor:
        """Vectors of all positions in row-major order, [S, width]."""
        return self.by_row().flatten(0, 1)

    def by_row(self) -> Tensor:
        """The same as [rows, columns, width]."""
        return self.rows + self.columns


def at_positions(states: Tensor, positions: Tensor) -> Tensor:
    """`states` [B, S, W] at `positions` [M], which count through all rows: position s of row b is b * S + s. [M, W]."""
    return states.flatten(0, 1).index_select(0, positions)


class SelfAttention(nn.Module):
    """Pre-norm self-attention, added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, bias=False)
        self.query_key_value = Linear(width, 3 * width)
        self.out = Linear(width, width)

    def forward(self, states: Tensor) -> Tensor:
        query, key, value = self.query_key_value(self.norm(states)).chunk(3, dim=-1)
        return states + self.out(attend(query, key, value, self.heads))


class CrossAttention(nn.Module):
    """Pre-norm attention to keys and values that are made once per picture, outside the steps."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, bias=False)
        self.query = Linear(width, width)
        self.out = Linear(width, width)

    def forward(
        self,
        states: Tensor,
        key: Tensor,
        value: Tensor,
        key_mask: Tensor,
        grids: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """[B, S, W], or [M, W] at `positions` alone. With `grids` [B], row b of keys and values meets `states[grids[b]]`."""
        query = self.query(self.norm(states))
        if grids is not None:
            query, states = query.index_select(0, grids), states.index_select(0, grids)
        attended = attend(query, key, value, self.heads, key_mask)
        if positions is not None:
            attended, states = at_positions(attended, positions), at_positions(states, positions)
        return states + self.out(attended)


class FeedForward(nn.Module):
    """Pre-norm two-layer perceptron, added to its input."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, bias=False)
        self.into = Linear(width, hidden)
        self.out = Linear(hidden, width)

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

    def forward(
        self,
        states: Tensor,
        key: Tensor,
        value: Tensor,
        key_mask: Tensor,
        grids: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """As `CrossAttention.forward`: what comes before it sees each grid once, what comes after it only `positions`."""
        return self.mlp(self.cross(self.attention(states), key, value, key_mask, grids, positions))
