"""Tells windows of true pictures from decoded ones (a patch discriminator; Isola et al., 2017), with the hinge loss."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm


class PatchDiscriminator(nn.Module):
    """[B, 3, H, W] in 0..1 → scores [B, 1, H/4, W/4], each of a window of 26 pixels: above 0 for true ones.

    Spectral normalisation keeps it from running ahead of the decoder.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            spectral_norm(nn.Conv2d(3, channels, 4, stride=2, padding=1)), nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1)), nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(2 * channels, 2 * channels, 3, padding=1)), nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(2 * channels, 1, 3, padding=1)),
        )

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image * 2 - 1)


def discriminator_loss(true: Tensor, decoded: Tensor) -> Tensor:
    """Hinge loss of the discriminator's scores."""
    return functional.relu(1 - true).mean() + functional.relu(1 + decoded).mean()


def decoder_loss(decoded: Tensor) -> Tensor:
    """What the decoder minimises: its scores, negated."""
    return -decoded.mean()


def combined_gradient(output: Tensor, reconstruction: Tensor, adversarial: Tensor, weight: float) -> Tensor:
    """Gradient of both losses with respect to `output`, the adversarial one's length `weight` times the other's.

    The ratio of two losses' gradients, and not of their values, is what keeps one from drowning the other (Esser et
    al., 2021, take it at the decoder's last layer; here it is taken at the pixels).
    """
    (first,) = torch.autograd.grad(reconstruction, output, retain_graph=True)
    (second,) = torch.autograd.grad(adversarial, output)
    return first + second * (weight * first.norm() / second.norm().clamp_min(1e-12))
