"""Feeds pictures to tokenizer training."""

from pathlib import Path

import numpy as np
import torch

from ..data.render import halve


class Pictures:
    """Random batches of one stage's pictures from `images.npy`."""

    def __init__(self, path: Path, side: int, crop: int, shift_share: float, seed: int):
        """`side` is the stage's picture size in pixels, `crop` what a batch sees of it (a multiple of 8).

        `shift_share` of the pictures are rolled by a few pixels, so that tokens also serve pictures whose
        things do not stand where the scenes put them.
        """
        self._images = np.load(path, mmap_mode="r")
        self._side = side
        self._crop = crop
        self._shift_share = shift_share
        self._random = np.random.default_rng(seed)

    def _crop_one(self, image: np.ndarray) -> np.ndarray:
        """A window on the token grid, the more likely the more there is to see in it."""
        best, best_detail = image[: self._crop, : self._crop], -1.0
        for _ in range(2):
            top, left = self._random.integers(0, (self._side - self._crop) // 8 + 1, 2) * 8
            window = image[top : top + self._crop, left : left + self._crop]
            detail = float(window[::4, ::4].std())
            if detail > best_detail:
                best, best_detail = window, detail
        return best

    def batch(self, count: int) -> torch.Tensor:
        """f32 [count, 3, crop, crop] in 0..1, channels last in memory."""
        chosen = np.sort(self._random.integers(0, len(self._images), count))
        images = self._images[chosen]
        if self._side * 2 == images.shape[1]:
            images = halve(images)
        shifted = np.flatnonzero(self._random.random(count) < self._shift_share)
        for index in shifted:
            images[index] = np.roll(images[index], self._random.integers(-4, 5, 2), (0, 1))
        if self._crop < self._side:
            images = np.stack([self._crop_one(image) for image in images])
        return to_tensor(images)


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """uint8 [N, H, W, 3] → f32 [N, 3, H, W] in 0..1, channels last in memory."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(255)
