"""Makes a decoder larger without changing what it computes (Chen et al., 2016), so that fine-tuning starts from it."""

import torch
from torch import nn

from .model import ChannelNorm, Decoder, ResidualBlock


@torch.no_grad()
def grown(first: Decoder, channels: tuple[int, int], blocks: tuple[int, int], dimensions: int) -> Decoder:
    """A decoder of the given shape that computes what `first` does, up to rounding.

    New blocks come after the old ones and begin as the identity. New channels carry zeros at first: what reads them has
    random weights, so that they learn; what writes them begins at zero. Raises `ValueError` if `first` has more of
    anything.
    """
    second = Decoder(channels, blocks, dimensions)
    old, new = _stages(first), _stages(second)
    for before, after in zip(old, new, strict=True):
        if len(before.blocks) > len(after.blocks) or before.width > after.width:
            raise ValueError(
                f"{len(after.blocks)} blocks of {after.width} channels hold no {len(before.blocks)} of {before.width}"
            )
        for source, target in zip(before.blocks, after.blocks, strict=False):
            _copy_block(source, target)
        # Every norm's mean is over more channels, of which the new ones are zero.
        for block in after.blocks:
            block.norm.weight.mul_((before.width / after.width) ** 0.5)
    _write(old[0].writer, new[0].writer)
    _write(old[1].writer, new[1].writer)
    # What reads the coarse channels, and writes the fine ones.
    norm, last = _tail(first), _tail(second)
    last[0].weight[: old[1].width] = norm[0].weight
    last[0].weight.mul_((old[1].width / new[1].width) ** 0.5)
    last[1].weight[:, : old[1].width] = norm[1].weight
    last[1].bias.copy_(norm[1].bias)
    return second


class _Stage:
    """A resolution of a decoder: the convolution that writes its channels, and its blocks."""

    def __init__(self, writer: nn.Conv2d, blocks: list[ResidualBlock]) -> None:
        self.writer = writer
        self.blocks = blocks
        self.width = len(blocks[0].norm.weight)


def _stages(decoder: Decoder) -> tuple[_Stage, _Stage]:
    layers = list(decoder.layers)
    shuffle = next(index for index, layer in enumerate(layers) if isinstance(layer, nn.PixelShuffle))
    coarse, fine = (
        [layer for layer in part if isinstance(layer, ResidualBlock)] for part in (layers[:shuffle], layers[shuffle:])
    )
    return _Stage(layers[0], coarse), _Stage(layers[shuffle - 1], fine)


def _tail(decoder: Decoder) -> tuple[ChannelNorm, nn.Conv2d]:
    """The norm and the convolution that end a decoder."""
    norm = [layer for layer in decoder.layers if isinstance(layer, ChannelNorm)][-1]
    return norm, [layer for layer in decoder.layers if isinstance(layer, nn.Conv2d)][-1]


def _write(source: nn.Conv2d, target: nn.Conv2d) -> None:
    """Copies a convolution whose new output channels are to be zero; new input channels keep their random weights."""
    outputs, inputs = source.weight.shape[:2]
    target.weight[outputs:] = 0
    target.weight[:outputs, :inputs] = source.weight
    target.bias.zero_()
    target.bias[:outputs] = source.bias


def _copy_block(source: ResidualBlock, target: ResidualBlock) -> None:
    width = len(source.norm.weight)
    target.norm.weight[:width] = source.norm.weight
    target.first.weight[:width, :width] = source.first.weight
    target.first.bias[:width] = source.first.bias
    # The second convolution starts at zero: new hidden channels say nothing yet.
    target.second.weight[:width, :width] = source.second.weight
    target.second.bias[:width] = source.second.bias
