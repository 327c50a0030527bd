"""A small image-text model, trained apart from the models that it judges.

A convolutional network maps a picture to a vector; every name of a thing has a vector of its own, and a picture shows
the thing whose vector is closest in direction. The same vector also tells colour, background and number. It learns from
rendered training scenes and from single things cut out of them, blurred, shifted and noisy as generated pictures are;
how good it is on held-out scenes is part of the report. Its weights are kept in the work directory.
"""

import hashlib
import json
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..data.colours import COLOUR_NAMES
from ..data.render import Renderer
from ..data.scene import Box, layout, random_scene
from ..training import checkpoint
from .pixels import resized
from .prompts import NAMES

SIDE = 64
"""Pictures are looked at in this size."""

WIDTH = 64
"""Length of the vector: short, so that some hundred pictures settle its covariance."""

_INDEX = {name: index for index, name in enumerate(NAMES)}
_COLOURS = (*COLOUR_NAMES, None)


@dataclass(frozen=True)
class Training:
    """How long and with what the judge learns."""

    steps: int = 2500
    batch: int = 64
    learning_rate: float = 3e-3
    seed: int = 1


class Judge(nn.Module):
    """Pictures f32 [N, 3, 64, 64] in 0…1 → vectors [N, 64]; `names` compares vectors with the things' names."""

    def __init__(self) -> None:
        super().__init__()
        widths = (32, 64, 128, 192)
        layers: list[nn.Module] = []
        before = 3
        for width in widths:
            layers += [_block(before, width, 2), _block(width, width, 1)]
            before = width
        self.trunk = nn.Sequential(*layers)
        self.vector = nn.Linear(before, WIDTH)
        self.name_vectors = nn.Parameter(torch.randn(len(NAMES), WIDTH))
        self.colour = nn.Linear(WIDTH, len(_COLOURS))
        self.background = nn.Linear(WIDTH, len(_COLOURS))
        self.number = nn.Linear(WIDTH, 4)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.vector(self.trunk(pictures * 2 - 1).mean((2, 3)))

    def names(self, vectors: Tensor) -> Tensor:
        """Similarity [N, T] of vectors with the names in `NAMES`, as logits."""
        return 16 * functional.normalize(vectors, dim=-1) @ functional.normalize(self.name_vectors, dim=-1).T

    @torch.no_grad()
    def vectors(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """uint8 RGB pictures [H, W, 3], square → f32 [N, 64]."""
        self.eval()
        small = np.stack([resized(picture, SIDE) for picture in pictures])
        parts = [self(_to_tensor(small[start : start + 64])) for start in range(0, len(small), 64)]
        return torch.cat(parts).numpy()

    @torch.no_grad()
    def similarities(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """uint8 RGB pictures [H, W, 3], square → f32 [N, T]: how much each looks like each of `NAMES`."""
        return self.names(torch.from_numpy(self.vectors(pictures))).numpy()


def _block(before: int, after: int, stride: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)
    )


def _to_tensor(pictures: np.ndarray) -> Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div_(255)


@dataclass(frozen=True)
class Example:
    """A picture uint8 [64, 64, 3] and what there is in it."""

    picture: np.ndarray
    names: tuple[int, ...]
    colour: int
    """Of the only kind of thing; -1 where there are two kinds."""
    background: int
    number: int
    """Things less one; of one kind or two."""


class Examples:
    """Examples without end, drawn from training compositions alone."""

    def __init__(self, work_dir: Path, seed: int) -> None:
        self._renderer = Renderer(work_dir)
        self._random = random.Random(f"judge/{seed}")

    def draw(self) -> Example:
        scene = random_scene(self._random)
        layout_seed = self._random.random()
        picture = self._renderer.draw(scene, random.Random(layout_seed))
        background = _COLOURS.index(scene.background)
        if self._random.random() < 0.5:
            number = sum(item.count for item in scene.items) - 1
            names = tuple(_INDEX[item.name] for item in scene.items)
            colour = _COLOURS.index(scene.items[0].colour) if len(scene.items) == 1 else -1
            return Example(resized(_moved(picture, self._random), SIDE), names, colour, background, number)
        box = self._random.choice(layout(scene, random.Random(layout_seed)))
        item = scene.items[box.item]
        crop = cut_out(picture, box, self._random)
        return Example(resized(crop, SIDE), (_INDEX[item.name],), _COLOURS.index(item.colour), background, 0)

    def batch(self, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Pictures f32 [N, 3, 64, 64]; shares of the names [N, T]; colours, backgrounds and numbers int64 [N]."""
        examples = [self.draw() for _ in range(count)]
        shares = torch.zeros(count, len(NAMES))
        for row, example in enumerate(examples):
            shares[row, list(example.names)] = 1 / len(example.names)
        rest = torch.tensor([[one.colour, one.background, one.number] for one in examples]).T
        return _to_tensor(np.stack([one.picture for one in examples])), shares, *rest


def _moved(picture: np.ndarray, rng: random.Random) -> np.ndarray:
    """The picture a few pixels further, its border repeated."""
    reach = 8
    padded = np.pad(picture, ((reach, reach), (reach, reach), (0, 0)), "edge")
    top, left = rng.randrange(2 * reach + 1), rng.randrange(2 * reach + 1)
    return padded[top : top + picture.shape[0], left : left + picture.shape[1]]


def cut_out(picture: np.ndarray, box: Box, rng: random.Random) -> np.ndarray:
    """A square around one thing, a little too large or too small and not quite centred; the border repeated beyond."""
    side = round(box.side * rng.uniform(0.85, 1.3))
    slack = box.side // 8
    top = box.top + (box.side - side) // 2 + rng.randint(-slack, slack)
    left = box.left + (box.side - side) // 2 + rng.randint(-slack, slack)
    rows = np.clip(np.arange(top, top + side), 0, picture.shape[0] - 1)
    columns = np.clip(np.arange(left, left + side), 0, picture.shape[1] - 1)
    return picture[rows[:, None], columns]


def spoilt(pictures: Tensor) -> Tensor:
    """Some of the pictures blurred, in coarser pixels, noisy, faded, or with a piece missing: [N, 3, S, S] → the same."""
    count, _, side, _ = pictures.shape
    result = pictures.clone()
    chosen = torch.rand(count) < 0.35
    result[chosen] = functional.avg_pool2d(functional.pad(result[chosen], (1, 1, 1, 1), mode="replicate"), 3, 1)
    chosen = torch.rand(count) < 0.2
    coarse = functional.avg_pool2d(result[chosen], 2)
    result[chosen] = functional.interpolate(coarse, size=side, mode="bilinear")
    contrast = 1 + 0.1 * torch.randn(count, 1, 1, 1)
    result = (result - 0.5) * contrast + 0.5 + 0.03 * torch.randn(count, 3, 1, 1)
    for row in torch.nonzero(torch.rand(count) < 0.25).flatten().tolist():
        top, left = torch.randint(0, side - 12, (2,)).tolist()
        result[row, :, top : top + 12, left : left + 12] = result[row].mean((1, 2), keepdim=True)
    return (result + 0.04 * torch.rand(count, 1, 1, 1) * torch.randn_like(result)).clamp_(0, 1)


def train(work_dir: Path, options: Training) -> Judge:
    """Trains a judge on one thread, with progress on stdout."""
    torch.manual_seed(options.seed)
    judge = Judge().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(judge.parameters(), lr=options.learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, options.learning_rate, options.steps, pct_start=0.15)
    examples = Examples(work_dir, options.seed)
    started = time.monotonic()
    judge.train()
    for step in range(options.steps):
        pictures, shares, colours, backgrounds, numbers = examples.batch(options.batch)
        vectors = judge(spoilt(pictures).contiguous(memory_format=torch.channels_last))
        by_name = functional.cross_entropy(judge.names(vectors), shares)
        loss = (
            by_name
            + 0.3 * functional.cross_entropy(judge.colour(vectors), colours, ignore_index=-1)
            + 0.3 * functional.cross_entropy(judge.background(vectors), backgrounds)
            + 0.3 * functional.cross_entropy(judge.number(vectors), numbers)
        )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 100 == 99:
            speed = (step + 1) * options.batch / (time.monotonic() - started)
            print(f"image-text model: step {step + 1}/{options.steps}, loss {loss.item():.3f}, "
                  f"names {by_name.item():.3f}, {speed:.0f} pictures/s", flush=True)
    return judge.eval()


def trained(work_dir: Path, options: Training) -> tuple[Judge, float]:
    """The judge for this catalogue and these options, and the minutes that its training took, now or before."""
    described = json.dumps([asdict(options), NAMES, _COLOURS, SIDE, WIDTH])
    path = work_dir / "evaluation" / f"judge-{hashlib.sha256(described.encode()).hexdigest()[:12]}.pt"
    saved = checkpoint.load(path)
    if saved is not None:
        judge = Judge()
        judge.load_state_dict(saved["model"])
        return judge.eval(), saved["minutes"]
    started = time.monotonic()
    judge = train(work_dir, options)
    minutes = (time.monotonic() - started) / 60
    checkpoint.save(path, {"model": judge.state_dict(), "minutes": minutes})
    return judge, minutes
