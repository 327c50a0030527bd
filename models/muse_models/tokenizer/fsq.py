"""Finite scalar quantisation (Mentzer et al., 2023): a codebook without learned codes.

Each of `dimensions` channels is squashed to 0..1 and rounded to `levels` values. A token is the number
whose digits in base `levels` are the channels' levels, first channel least significant. Every code is in
reach from the first step on, so that none dies.
"""

import torch
from torch import nn


class FiniteScalarQuantiser(nn.Module):
    """Codebook of `levels ** dimensions` codes."""

    def __init__(self, levels: int, dimensions: int):
        super().__init__()
        self.levels = levels
        self.dimensions = dimensions
        self.register_buffer("_place", levels ** torch.arange(dimensions), persistent=False)

    @property
    def codebook_size(self) -> int:
        return self.levels**self.dimensions

    def quantise(self, features: torch.Tensor) -> torch.Tensor:
        """`features` [B, D, h, w], unbounded → values in −1..1 on the grid; gradients pass the rounding."""
        soft = torch.sigmoid(features) * (self.levels - 1)
        hard = soft + (soft.round() - soft).detach()
        return hard * (2 / (self.levels - 1)) - 1

    def tokens(self, features: torch.Tensor) -> torch.Tensor:
        """`features` [B, D, h, w] → int64 [B, h·w]."""
        digits = (torch.sigmoid(features.float()) * (self.levels - 1)).round().to(torch.int64)
        return (digits * self._place[None, :, None, None]).sum(1).flatten(1)

    def values(self, tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """int64 [B, h·w] → values in −1..1 [B, D, h, w]."""
        digits = (tokens[:, None, :] // self._place[None, :, None]) % self.levels
        values = digits.to(torch.float32) * (2 / (self.levels - 1)) - 1
        return values.reshape(tokens.shape[0], self.dimensions, height, width)
