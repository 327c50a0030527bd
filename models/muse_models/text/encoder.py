"""The T5 v1.1 encoder (Raffel et al., 2020; Shazeer, 2020).

RMS norm before each block, attention without scaling, one table of relative position biases shared by
all layers, a feed-forward gated with GELU, and no biases anywhere.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from ..attention import attend


@dataclass(frozen=True)
class EncoderShape:
    """Sizes of an encoder; the names are those of T5's published configurations in words."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    head_width: int
    hidden: int
    buckets: int = 32
    furthest: int = 128


class RootMeanSquareNorm(nn.Module):
    """T5's layer norm: no mean, no bias; [..., width]."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        scale = torch.rsqrt(states.float().square().mean(-1, keepdim=True) + 1e-6)
        return states * scale * self.weight


class RelativePositions(nn.Module):
    """Bias of each head for each distance: half of the buckets look back and half ahead."""

    def __init__(self, shape: EncoderShape):
        super().__init__()
        self.buckets = shape.buckets
        self.furthest = shape.furthest
        self.table = nn.Embedding(shape.buckets, shape.heads)
        nn.init.normal_(self.table.weight, std=0.1)
        # Half of the heads start with a view of one side only. Values and keys know nothing of position, so that
        # which of two words comes first is seen by one-sided heads alone, and small steps take long to make one.
        half = shape.buckets // 2
        with torch.no_grad():
            self.table.weight[half:, 0::4] -= 4
            self.table.weight[:half, 1::4] -= 4

    def _bucket(self, distance: torch.Tensor) -> torch.Tensor:
        half = self.buckets // 2
        exact = half // 2
        reach = distance.abs()
        scaled = torch.log(reach.clamp_min(1).float() / exact) / math.log(self.furthest / exact)
        far = (exact + (scaled * (half - exact)).long()).clamp_max(half - 1)
        return torch.where(distance > 0, half, 0) + torch.where(reach < exact, reach, far)

    def forward(self, length: int, device: torch.device) -> torch.Tensor:
        """[1, heads, length, length], to be added to the attention scores."""
        position = torch.arange(length, device=device)
        distance = position[None, :] - position[:, None]
        return self.table(self._bucket(distance)).permute(2, 0, 1)[None]


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each around a residual connection."""

    def __init__(self, shape: EncoderShape):
        super().__init__()
        inner = shape.heads * shape.head_width
        self.heads = shape.heads
        self.attention_norm = RootMeanSquareNorm(shape.width)
        self.query = nn.Linear(shape.width, inner, bias=False)
        self.key = nn.Linear(shape.width, inner, bias=False)
        self.value = nn.Linear(shape.width, inner, bias=False)
        self.output = nn.Linear(inner, shape.width, bias=False)
        self.feed_forward_norm = RootMeanSquareNorm(shape.width)
        self.gate = nn.Linear(shape.width, shape.hidden, bias=False)
        self.up = nn.Linear(shape.width, shape.hidden, bias=False)
        self.down = nn.Linear(shape.hidden, shape.width, bias=False)
        # T5 folds the attention scaling into the initialisation of the query.
        nn.init.normal_(self.query.weight, std=(shape.width * shape.head_width) ** -0.5)
        for linear in (self.key, self.value, self.gate, self.up):
            nn.init.normal_(linear.weight, std=shape.width**-0.5)
        nn.init.normal_(self.output.weight, std=inner**-0.5)
        nn.init.normal_(self.down.weight, std=shape.hidden**-0.5)

    def forward(self, states: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """`states` [B, L, width], `bias` [B, heads, L, L] → [B, L, width]."""
        normal = self.attention_norm(states)
        mixed = attend(self.query(normal), self.key(normal), self.value(normal), self.heads, bias=bias, scale=1.0)
        states = states + self.output(mixed)
        normal = self.feed_forward_norm(states)
        hidden = functional.gelu(self.gate(normal), approximate="tanh") * self.up(normal)
        return states + self.down(hidden)


class T5Encoder(nn.Module):
    """Text tokens → one vector a token."""

    def __init__(self, shape: EncoderShape):
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocabulary, shape.width)
        self.positions = RelativePositions(shape)
        self.layers = nn.ModuleList(EncoderLayer(shape) for _ in range(shape.layers))
        self.norm = RootMeanSquareNorm(shape.width)

    @classmethod
    def from_config(cls, config: dict) -> "T5Encoder":
        """Builds the encoder that a configuration's `[model]` table describes."""
        return cls(EncoderShape(**config["model"]))

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """`tokens` int64 [B, L], `mask` [B, L] with 1 (or True) at real tokens → f32 [B, L, width].

        What stands at padding is of no use and must be masked by the reader.
        """
        states = self.embedding(tokens)
        padding = torch.where(mask.bool(), 0.0, -1e9)[:, None, None, :]
        bias = self.positions(tokens.shape[1], tokens.device) + padding
        for layer in self.layers:
            states = layer(states, bias)
        return self.norm(states)
