"""The masked transformers, each in the two halves that are exported: `condition` and `step`.

`condition` turns text (and low-resolution tokens) into what stays the same over the decoding steps: each layer's
cross-attention keys and values. `step` maps a grid with masked positions to logits.

With `config.merge` = M > 1 the layers hold one state for each M x M square of tokens, and every token gets its own
state back before the logits. A step then costs about M^2 times less, which is what makes a super-resolution model
trainable, and quick, on a CPU; the paper thins out attention there instead (its multi-axis form, appendix).
"""

import math

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from .config import TransformerConfig
from .layers import DecoderLayer, EncoderLayer, FeedForward, GridPositions

Conditioning = dict[str, Tensor]
"""Tensors with leading axis B, by the name they have in the exported graphs."""


class MaskedTransformer(nn.Module):
    """What base and super-resolution share: text projection, keys and values, decoder layers, logits."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.text_projection = nn.Linear(config.text_width, width, bias=False)
        self.context_norm = nn.LayerNorm(width, bias=False)
        # All layers' keys and values in one product: [k0 | v0 | k1 | v1 | …].
        self.keys_values = nn.Linear(width, 2 * config.layers * width, bias=False)
        self.tokens = nn.Embedding(config.vocab_size, width)
        self.positions = GridPositions(config.state_grid, width)
        if config.merge > 1:
            share = config.merge**2
            self.merge = nn.Linear(share * width, width, bias=False)
            self.split = nn.Linear(width, share * width, bias=False)
            self.split_mlp = FeedForward(width, 2 * width)
        self.layers = nn.ModuleList(
            DecoderLayer(width, config.heads, config.mlp_width) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(width, bias=False)
        self.head = nn.Linear(width, config.logits_size, bias=False)

    def conditioning_names(self) -> list[str]:
        """Names of the tensors that `condition` returns, in the order in which it does."""
        names = [f"{kind}{layer}" for layer in range(self.config.layers) for kind in ("k", "v")]
        return [*names, "key_mask"]

    def _attend_to(self, always: Tensor, text: Tensor, text_mask: Tensor) -> Conditioning:
        """Keys, values and key mask over `always` [B, A, W] (never masked) and `text` [B, L, D]."""
        context = torch.cat([always, self.text_projection(text)], dim=1)
        parts = self.keys_values(self.context_norm(context)).chunk(2 * self.config.layers, dim=-1)
        conditioning = dict(zip(self.conditioning_names(), parts, strict=False))
        seen = torch.ones_like(text_mask[:, :1]).expand(-1, always.shape[1])
        conditioning["key_mask"] = torch.cat([seen, text_mask], dim=1)
        return conditioning

    def _squares(self, grids: Tensor) -> Tensor:
        """`grids` [B, S] as [B, S / M^2, M^2]: the values of each square together."""
        (rows, columns), side = self.config.state_grid, self.config.merge
        return grids.reshape(-1, rows, side, columns, side).transpose(2, 3).reshape(-1, rows * columns, side * side)

    def _from_squares(self, states: Tensor) -> Tensor:
        """States [B, S / M^2, M^2, W] of each square's tokens as [B, S, W]."""
        (rows, columns), side = self.config.state_grid, self.config.merge
        states = states.reshape(-1, rows, columns, side, side, self.config.width).transpose(2, 3)
        return states.reshape(-1, self.config.positions, self.config.width)

    def _first_states(self, embedded: Tensor, conditioning: Conditioning) -> Tensor:
        """States that enter the first layer, [B, S / M^2, W], from what each holds of token embeddings."""
        return embedded + self.positions()

    def hidden(self, tokens: Tensor, conditioning: Conditioning) -> Tensor:
        """A state for each token after the last layer, [B, S, W]; `logits` goes on from there.

        Training computes logits at the masked positions alone, so that part is apart.
        """
        if self.config.merge > 1:
            tokens = self._squares(tokens)
            embedded = self.tokens(tokens)
            states = self._first_states(self.merge(embedded.flatten(2)), conditioning)
        else:
            states = self._first_states(self.tokens(tokens), conditioning)
        for index, layer in enumerate(self.layers):
            states = layer(states, conditioning[f"k{index}"], conditioning[f"v{index}"], conditioning["key_mask"])
        if self.config.merge > 1:
            states = self._from_squares(self.split(states).unflatten(2, embedded.shape[2:]) + embedded)
        return states

    def logits(self, states: Tensor) -> Tensor:
        """Logits [..., logits_size] of token states [..., W], each from its own state alone."""
        if self.config.merge > 1:
            states = self.split_mlp(states)
        return self.head(self.norm(states))

    def step(self, tokens: Tensor, conditioning: Conditioning) -> Tensor:
        """Logits [B, S, logits_size] of `tokens` [B, S] i64, masked positions holding the mask id."""
        return self.logits(self.hidden(tokens, conditioning))


class BaseTransformer(MaskedTransformer):
    """Text to the base token grid (Muse §2.4)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        # One key that is always there: attention stays defined when the whole text is masked.
        self.null_key = nn.Parameter(torch.randn(1, 1, config.width) * 0.02)
        initialise(self)

    def condition(self, text: Tensor, text_mask: Tensor) -> Conditioning:
        """Conditioning from `text` [B, L, D] and `text_mask` [B, L] i64 (1 = token, 0 = padding)."""
        return self._attend_to(self.null_key.expand(text.shape[0], -1, -1), text, text_mask)


class SuperResTransformer(MaskedTransformer):
    """Text and base tokens to the super-resolution grid (Muse §2.5).

    The low-resolution tokens go through an encoder of their own. The decoder attends to its states together with the
    text, and each high-resolution position also starts from the state of the low-resolution cell it lies in: where
    the paper's model must learn from 3 billion parameters' worth of attention which cell that is, this one is told.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        if config.low_grid is None:
            raise ValueError("a super-resolution transformer needs low_grid")
        width = config.width
        self.low_tokens = nn.Embedding(config.low_vocab_size, width)
        self.low_positions = GridPositions(config.low_grid, width)
        self.low_layers = nn.ModuleList(
            EncoderLayer(width, config.heads, config.mlp_width) for _ in range(config.low_layers)
        )
        self.low_norm = nn.LayerNorm(width, bias=False)
        self.low_to_high = nn.Linear(width, width, bias=False)
        self.register_buffer("low_cell", nearest_cells(config.state_grid, config.low_grid), persistent=False)
        initialise(self)

    def conditioning_names(self) -> list[str]:
        return [*super().conditioning_names(), "low"]

    def condition(self, text: Tensor, text_mask: Tensor, low_tokens: Tensor) -> Conditioning:
        """Conditioning from text as for the base model and `low_tokens` [B, S of base] i64."""
        states = self.low_tokens(low_tokens) + self.low_positions()
        for layer in self.low_layers:
            states = layer(states)
        states = self.low_norm(states)
        conditioning = self._attend_to(states, text, text_mask)
        conditioning["low"] = self.low_to_high(states)
        return conditioning

    def _first_states(self, embedded: Tensor, conditioning: Conditioning) -> Tensor:
        return super()._first_states(embedded, conditioning) + conditioning["low"].index_select(1, self.low_cell)


def nearest_cells(grid: tuple[int, int], low_grid: tuple[int, int]) -> Tensor:
    """For each position of `grid`, row-major, the index of the low-resolution cell that it lies in, [S] i64."""
    rows = torch.arange(grid[0]) * low_grid[0] // grid[0]
    columns = torch.arange(grid[1]) * low_grid[1] // grid[1]
    return (rows[:, None] * low_grid[1] + columns[None, :]).reshape(-1)


def initialise(model: MaskedTransformer) -> None:
    """Unit-variance maps, with the outputs into the residual stream scaled down by its depth."""
    if isinstance(model.head.weight, FakeTensor):
        # A model of shapes alone has nothing to fill.
        return
    depth = 3 * model.config.layers
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            scale = 1.0 / math.sqrt(depth) if name.endswith(".out") else 1.0
            nn.init.trunc_normal_(module.weight, std=scale * module.in_features**-0.5)
        elif isinstance(module, nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=0.3)
    nn.init.trunc_normal_(model.head.weight, std=0.02)


def build(config: TransformerConfig) -> MaskedTransformer:
    """A freshly initialised model of the kind that `config` describes."""
    return SuperResTransformer(config) if config.is_superres else BaseTransformer(config)
