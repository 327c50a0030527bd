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


def spread_loss(features: torch.Tensor, image: torch.Tensor, cell: int) -> torch.Tensor:
    """Zero when the quantiser's channels are spread evenly over their levels and uncorrelated.

    `features` [B, D, h, w] are the encoder's, `image` [B, 3, cell·h, cell·w]. Flat cells are left out:
    most of a picture is background, which needs few codes.
    """
    values = torch.sigmoid(features.float()).permute(0, 2, 3, 1).flatten(0, 2)
    mean = functional.avg_pool2d(image, cell)
    variance = functional.avg_pool2d(image.square(), cell) - mean.square()
    busy = (variance.mean(1).flatten() > 1e-3).float()[:, None]
    total = busy.sum().clamp_min(1)
    centre = (values * busy).sum(0) / total
    centred = (values - centre) * busy
    covariance = centred.T @ centred / total
    # Four even levels in 0..1 have variance 5/36; more levels come near 1/12.
    even = 5 / 36
    off_diagonal = covariance - torch.diag(covariance.diagonal())
    return (
        4 * (centre - 0.5).square().mean()
        + (covariance.diagonal() / even - 1).square().mean()
        + (off_diagonal / even).square().sum() / values.shape[1]
    )


def psnr(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean over pictures of the peak signal-to-noise ratio in dB; both [B, 3, H, W] in 0..1."""
    error = (output.float().clamp(0, 1) - target).square().mean((1, 2, 3)).clamp_min(1e-8)
    return (-10 * error.log10()).mean()
