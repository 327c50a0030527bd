"""Reconstruction losses of the image tokenizers, and their figures."""

import torch
from torch.nn import functional


def _edges(difference: torch.Tensor) -> torch.Tensor:
    across = (difference[..., :, 1:] - difference[..., :, :-1]).abs().mean()
    down = (difference[..., 1:, :] - difference[..., :-1, :]).abs().mean()
    return across + down


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 and L2 on pixels, plus L1 on pixels pooled 2× and 4× and on edges at three scales.

    Both [B, 3, H, W]. Edges keep outlines sharp; pooled pixels settle flat colours early.
    """
    difference = output.float() - target
    loss = difference.abs().mean() + 2 * difference.square().mean() + 0.5 * _edges(difference)
    for _ in range(2):
        difference = functional.avg_pool2d(difference, 2)
        loss = loss + 0.5 * difference.abs().mean() + 0.25 * _edges(difference)
    return loss


def psnr(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean over pictures of the peak signal-to-noise ratio in dB; both [B, 3, H, W] in 0..1."""
    error = (output.float().clamp(0, 1) - target).square().mean((1, 2, 3)).clamp_min(1e-8)
    return (-10 * error.log10()).mean()
