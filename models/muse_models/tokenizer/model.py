"""The tokenizer's encoder and decoder.

Pixels are folded 4×4 into channels first, so that all convolutions work at a quarter of the resolution
or less. Normalisation is per pixel, over channels: what stands elsewhere in the picture then does not
change a region's tokens beyond the convolutions' reach.
"""

import torch
from torch import nn
from torch.nn import functional

from .fsq import FiniteScalarQuantiser

STEM = 4
"""Pixels a side that the stem folds into channels."""


class ChannelNorm(nn.Module):
    """RMS normalisation over channels of [B, C, h, w]."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        mean_square = features.square().mean(1, keepdim=True)
        return features * torch.rsqrt(mean_square + 1e-5) * self.weight[None, :, None, None]


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice; the second convolution starts at zero."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        hidden = functional.silu(self.first(functional.silu(self.norm(features))))
        return features + self.second(hidden)


class Encoder(nn.Module):
    """[B, 3, H, W] in 0..1 → unbounded features [B, D, H/8, W/8]."""

    def __init__(self, channels: tuple[int, int], blocks: tuple[int, int], dimensions: int):
        super().__init__()
        fine, coarse = channels
        self.layers = nn.Sequential(
            nn.PixelUnshuffle(STEM),
            nn.Conv2d(3 * STEM * STEM, fine, 3, padding=1),
            *(ResidualBlock(fine) for _ in range(blocks[0])),
            nn.Conv2d(fine, coarse, 2, stride=2),
            *(ResidualBlock(coarse) for _ in range(blocks[1])),
            ChannelNorm(coarse),
            nn.Conv2d(coarse, dimensions, 1),
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layers(image * 2 - 1)


class Decoder(nn.Module):
    """Quantised values [B, D, h, w] in −1..1 → [B, 3, 8h, 8w], about 0..1 and not clipped."""

    def __init__(self, channels: tuple[int, int], blocks: tuple[int, int], dimensions: int):
        super().__init__()
        fine, coarse = channels
        self.layers = nn.Sequential(
            nn.Conv2d(dimensions, coarse, 3, padding=1),
            *(ResidualBlock(coarse) for _ in range(blocks[1])),
            nn.Conv2d(coarse, 4 * fine, 1),
            nn.PixelShuffle(2),
            *(ResidualBlock(fine) for _ in range(blocks[0])),
            ChannelNorm(fine),
            nn.SiLU(),
            nn.Conv2d(fine, 3 * STEM * STEM, 3, padding=1),
            nn.PixelShuffle(STEM),
        )

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.layers(values) * 0.5 + 0.5


class ImageTokenizer(nn.Module):
    """Both halves with the quantiser between them; `encode` and `decode` are what is exported."""

    def __init__(
        self,
        image_side: int,
        levels: int,
        dimensions: int,
        channels: tuple[int, int],
        encoder_blocks: tuple[int, int],
        decoder_blocks: tuple[int, int],
        decoder_channels: tuple[int, int] | None = None,
    ):
        """`decoder_channels` where the decoder is wider than the encoder, whose `channels` it has otherwise."""
        super().__init__()
        self.image_side = image_side
        self.grid_side = image_side // (2 * STEM)
        self.quantiser = FiniteScalarQuantiser(levels, dimensions)
        self.encoder = Encoder(channels, encoder_blocks, dimensions)
        self.decoder = Decoder(decoder_channels or channels, decoder_blocks, dimensions)

    @classmethod
    def from_config(cls, config: dict) -> "ImageTokenizer":
        """Builds the model that a configuration's `[model]` table describes."""
        model = config["model"]
        return cls(
            model["image_side"], model["levels"], model["dimensions"], tuple(model["channels"]),
            tuple(model["encoder_blocks"]), tuple(model["decoder_blocks"]),
            tuple(model["decoder_channels"]) if "decoder_channels" in model else None,
        )

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the reconstruction [B, 3, H, W] and the encoder's features [B, D, h, w]."""
        features = self.encoder(image)
        return self.decoder(self.quantiser.quantise(features)), features

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] in 0..1 → tokens int64 [B, h·w]."""
        return self.quantiser.tokens(self.encoder(image))

    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens int64 [B, h·w] of a whole grid → [B, 3, H, W], clipped to 0..1."""
        values = self.quantiser.values(tokens, self.grid_side, self.grid_side)
        return self.decoder(values).clamp(0, 1)
