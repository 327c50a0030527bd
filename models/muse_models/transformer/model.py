"""The masked transformers, each in the two halves that are exported: `condition` and `step`.

`condition` turns text (and low-resolution tokens) into what stays the same over the decoding steps: each layer's
cross-attention keys and values. `step` maps a grid with masked positions to logits.

A step can be told what it may leave out. Rows of one grid (a picture's conditional row and the unconditional one beside
it) are the same until the first cross-attention, so with `grids` a grid's part before it is computed once. Logits are
wanted where a token is masked, so with `positions` what comes after the last attention is computed there alone. Neither
changes a bit of any logit.

With `config.merge` = M > 1 the layers hold one state for each M x M square of tokens, and every token gets its own
state back before the logits. A step then costs about M^2 times less, which is what makes a super-resolution model
trainable, and quick, on a CPU; the paper thins out attention there instead (its multi-axis form, appendix).
"""

import math

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional

from .config import TransformerConfig
from .layers import DecoderLayer, EncoderLayer, FeedForward, GridPositions, Linear, at_positions

Conditioning = dict[str, Tensor]
"""Tensors with leading axis B, by the name they have in the exported graphs."""


class MaskedTransformer(nn.Module):
    """What base and super-resolution share: text projection, keys and values, decoder layers, logits."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.text_projection = Linear(config.text_width, width)
        self.context_norm = nn.LayerNorm(width, bias=False)
        # All layers' keys and values in one product: [k0 | v0 | k1 | v1 | …].
        self.keys_values = Linear(width, 2 * config.layers * width)
        self.tokens = nn.Embedding(config.vocab_size, width)
        self.positions = GridPositions(config.state_grid, width)
        if config.merge > 1:
            share = config.merge**2
            self.merge = Linear(share * width, width)
            self.split = Linear(width, share * width)
            self.split_mlp = FeedForward(width, 2 * width)
            self.register_buffer("to_square", square_shifts(config.grid, config.merge), persistent=False)
        self.layers = nn.ModuleList(
            DecoderLayer(width, config.heads, config.mlp_width) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(width, bias=False)
        self.head = Linear(width, config.logits_size)

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
        # int32 is what the exported attention takes: a wider mask would be cast at every step.
        conditioning["key_mask"] = torch.cat([seen, text_mask], dim=1).to(torch.int32)
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

    def _embedded(self, tokens: Tensor) -> Tensor:
        """What the states of `tokens` [G, S] hold of their tokens and places, [G, S / M^2, W]."""
        (rows, columns), side = self.config.state_grid, self.config.merge
        if side == 1:
            embedded = self.tokens(tokens.reshape(-1, rows, columns))
        else:
            # The product of an embedding and its part of `merge` is one of few: a table for each place in the square,
            # which is constant once trained, and then a look-up.
            places = tokens.reshape(-1, rows, side, columns, side).permute(2, 4, 0, 1, 3).flatten(0, 1)
            tables = [self.tokens.weight @ part for part in self.merge.weight.T.chunk(side**2)]
            embedded = functional.embedding(places[0], tables[0])
            for place in range(1, side**2):
                embedded = embedded + functional.embedding(places[place], tables[place])
        # Added to a grid and not to a list of states, [S, W], for ONNX Runtime would then make one operator of this and
        # the first norm (SkipLayerNormalization), which its CPU provider takes six times as long for.
        return (embedded + self.positions.by_row()).flatten(1, 2)

    def _first_states(self, tokens: Tensor, conditioning: Conditioning, shared: bool) -> Tensor:
        """States that enter the first layer, [G, S / M^2, W]; `shared` if rows may share grids."""
        return self._embedded(tokens)

    def _token_states(self, states: Tensor, tokens: Tensor, positions: Tensor | None) -> Tensor:
        """A state for each of `tokens` [B, S] from those of the squares, [B, S, W], or [M, W] at `positions` alone."""
        shares = self.split(states)
        if positions is None:
            embedded = self.tokens(self._squares(tokens))
            return self._from_squares(shares.unflatten(2, embedded.shape[2:]) + embedded)
        places = positions + self.to_square.index_select(0, positions % self.config.positions)
        shares = shares.reshape(-1, self.config.width).index_select(0, places)
        return shares + self.tokens(tokens.flatten().index_select(0, positions))

    def hidden(
        self,
        tokens: Tensor,
        conditioning: Conditioning,
        grids: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """A state for each token after the last layer, [B, S, W], or [M, W]; `logits` goes on from there.

        Training computes logits at the masked positions alone, so that part is apart.
        """
        states = self._first_states(tokens, conditioning, grids is not None)
        first, last = 0, len(self.layers) - 1
        merged = self.config.merge > 1
        for index, layer in enumerate(self.layers):
            states = layer(
                states,
                conditioning[f"k{index}"],
                conditioning[f"v{index}"],
                conditioning["key_mask"],
                grids if index == first else None,
                positions if index == last and not merged else None,
            )
        if merged:
            states = self._token_states(states, tokens if grids is None else tokens.index_select(0, grids), positions)
        return states

    def logits(self, states: Tensor) -> Tensor:
        """Logits [..., logits_size] of token states [..., W], each from its own state alone."""
        if self.config.merge > 1:
            states = self.split_mlp(states)
        return self.head(self.norm(states))

    def step(
        self,
        tokens: Tensor,
        conditioning: Conditioning,
        grids: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, S, logits_size] of `tokens` [B, S] i64, masked positions holding the mask id.

        With `grids` [B] i64 there are fewer grids than rows: `tokens` is [G, S], row b has grid `grids[b]`, and grid g is
        row g's own for all g < G. With `positions` [M] i64, of which position s of row b is b * S + s, logits are
        [M, logits_size].
        """
        return self.logits(self.hidden(tokens, conditioning, grids, positions))


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
        self.low_to_high = Linear(width, width)
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

    def _first_states(self, tokens: Tensor, conditioning: Conditioning, shared: bool) -> Tensor:
        low = conditioning["low"]
        if shared:
            # A grid's low-resolution states are those of the row that has its number.
            low = low.index_select(0, torch.arange(tokens.shape[0], device=tokens.device))
        if self.config.state_grid != self.config.low_grid:
            low = low.index_select(1, self.low_cell)
        return self._embedded(tokens) + low


def nearest_cells(grid: tuple[int, int], low_grid: tuple[int, int]) -> Tensor:
    """For each position of `grid`, row-major, the index of the low-resolution cell that it lies in, [S] i64."""
    rows = torch.arange(grid[0]) * low_grid[0] // grid[0]
    columns = torch.arange(grid[1]) * low_grid[1] // grid[1]
    return (rows[:, None] * low_grid[1] + columns[None, :]).reshape(-1)


def square_shifts(grid: tuple[int, int], side: int) -> Tensor:
    """What to add to a position of `grid`, row-major, to have its place in the order square by square, [S] i64."""
    rows, columns = grid
    positions = torch.arange(rows * columns)
    by_square = positions.reshape(rows // side, side, columns // side, side).transpose(1, 2).flatten()
    return by_square.argsort() - positions


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
