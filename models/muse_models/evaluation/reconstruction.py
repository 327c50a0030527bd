"""How well the image tokenizers of a bundle give held-out scenes back, and how much of the codebook they use."""

from dataclasses import dataclass

import numpy as np

from ..reference.bundle import Stage
from .pixels import resized
from .sampling import decode_pictures, encode_pictures

_WINDOW = 11
_SIGMA = 1.5


@dataclass(frozen=True)
class Reconstruction:
    """Figures of one stage's tokenizer; PSNR in dB."""

    psnr: float
    """Mean over pictures of each picture's PSNR."""
    psnr_of_mean_error: float
    """PSNR of the squared error's mean over all pictures: never above `psnr`, and strict on the worst pictures."""
    ssim: float
    codes_used: float
    """Share of the codebook that occurs at all."""
    perplexity: float
    """exp of the entropy of the codes' frequencies; the codebook's size when all are equally common."""
    codebook_size: int
    tokens_seen: int


def psnr(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """PSNR in dB of each pair of uint8 pictures [N, H, W, 3]; capped at 99 for equal ones."""
    error = np.square(one.astype(np.float32) - other.astype(np.float32)).mean((1, 2, 3))
    return _decibel(error)


def _decibel(error: np.ndarray) -> np.ndarray:
    return np.minimum(10 * np.log10(255**2 / np.maximum(error, 1e-12)), 99)


def _blurred(pictures: np.ndarray) -> np.ndarray:
    """Gaussian means over `_WINDOW`² pixels, where the window fits: [N, H, W, C] → [N, H − 10, W − 10, C]."""
    offsets = np.arange(_WINDOW) - _WINDOW // 2
    weights = np.exp(-np.square(offsets) / (2 * _SIGMA**2)).astype(np.float32)
    weights /= weights.sum()
    height, width = (size - _WINDOW + 1 for size in pictures.shape[1:3])
    rows = sum(weight * pictures[:, at : at + height] for at, weight in enumerate(weights))
    return sum(weight * rows[:, :, at : at + width] for at, weight in enumerate(weights))


def ssim(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Structural similarity (Wang et al. 2004; 11×11 Gaussian window) of uint8 pictures [N, H, W, 3], mean of the channels."""
    a, b = one.astype(np.float32) / 255, other.astype(np.float32) / 255
    mean_a, mean_b = _blurred(a), _blurred(b)
    variance_a, variance_b = _blurred(a * a) - mean_a**2, _blurred(b * b) - mean_b**2
    covariance = _blurred(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    likeness = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    likeness /= (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
    return likeness.mean((1, 2, 3))


def at_stage_size(stage: Stage, scenes: np.ndarray) -> np.ndarray:
    """Scenes uint8 [N, S, S, 3] in the size of the stage's pictures."""
    height, width = stage.manifest["image_size"]
    if height != width:
        raise ValueError(f"the {stage.name} stage makes {width}x{height} pictures, and scenes are square")
    return np.stack([resized(scene, height) for scene in scenes])


def reconstruct(stage: Stage, scenes: np.ndarray) -> tuple[Reconstruction, np.ndarray]:
    """Figures over `scenes` uint8 [N, S, S, 3], and the reconstructions uint8 [N, H, W, 3]."""
    pictures = at_stage_size(stage, scenes)
    tokens = encode_pictures(stage, pictures)
    output = decode_pictures(stage, tokens)
    by_picture = psnr(pictures, output)
    similar = np.concatenate([ssim(pictures[at : at + 32], output[at : at + 32]) for at in range(0, len(output), 32)])
    size = stage.manifest["codebook_size"]
    frequency = np.bincount(tokens.reshape(-1), minlength=size) / tokens.size
    used = frequency[frequency > 0]
    return Reconstruction(
        psnr=float(by_picture.mean()),
        psnr_of_mean_error=float(_decibel(np.mean(255**2 / 10 ** (by_picture / 10)))),
        ssim=float(similar.mean()),
        codes_used=len(used) / size,
        perplexity=float(np.exp(-(used * np.log(used)).sum())),
        codebook_size=size,
        tokens_seen=tokens.size,
    ), output
