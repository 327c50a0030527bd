"""A small network that names what a picture shows, and the distance between pictures as it sees them.

It is this project's own and learns from the scenes alone: from 64×64 windows it tells which things are in sight, in
which colours, and on which background. What its layers answer to (an outline, an eye, a stripe) is what a viewer misses
first in a blurred picture; comparing there is the perceptual part of the decoder's fine-tuning (Zhang et al., 2018).

    python -m muse_models.tokenizer.perception --config configs/perception.toml --budget-minutes 4
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..data.build import scene_from_json
from ..data.catalogue import BY_NAME, THINGS
from ..data.colours import COLOUR_NAMES
from ..data.render import halve
from ..data.scene import Scene
from ..training import checkpoint
from ..training.average import Average
from ..training.hardware import Hardware
from ..training.loop import Run, Task, command
from .model import ChannelNorm
from .pictures import to_tensor

_THINGS = {thing.name: index for index, thing in enumerate(THINGS)}
_COLOURS = {name: index for index, name in enumerate(COLOUR_NAMES)}
LABELS = len(THINGS) + 2 * len(COLOUR_NAMES)
"""Things, colours of things, colours of backgrounds: each is in the picture or is not."""


def labels_of(scene: Scene) -> np.ndarray:
    """f32 [LABELS] of zeros and ones."""
    labels = np.zeros(LABELS, np.float32)
    for item in scene.items:
        labels[_THINGS[item.name]] = 1
        colour = item.colour or BY_NAME[item.name].natural_colour
        if colour:
            labels[len(THINGS) + _COLOURS[colour]] = 1
    if scene.background:
        labels[len(THINGS) + len(COLOUR_NAMES) + _COLOURS[scene.background]] = 1
    return labels


class Perception(nn.Module):
    """Three stages of two convolutions at a half, a quarter and an eighth of the resolution, and a head of labels."""

    def __init__(self, channels: tuple[int, int, int]) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        before = 3
        for width in channels:
            self.stages.append(nn.Sequential(
                nn.Conv2d(before, width, 4, stride=2, padding=1), ChannelNorm(width), nn.GELU(),
                nn.Conv2d(width, width, 3, padding=1), ChannelNorm(width), nn.GELU(),
            ))
            before = width
        self.head = nn.Linear(2 * before, LABELS)

    def features(self, image: Tensor) -> list[Tensor]:
        """What each stage makes of `image` [B, 3, H, W] in 0..1: [B, C, H/2, W/2] and on."""
        states, found = image * 2 - 1, []
        for stage in self.stages:
            states = stage(states)
            found.append(states)
        return found

    def forward(self, image: Tensor) -> Tensor:
        """Logits [B, LABELS]."""
        last = self.features(image)[-1]
        return self.head(torch.cat([last.mean((2, 3)), last.amax((2, 3))], dim=1))


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy over the things, those in the picture being equally right, and of each colour apart."""
    things, there = logits[:, : len(THINGS)], labels[:, : len(THINGS)]
    colours = functional.binary_cross_entropy_with_logits(
        logits[:, len(THINGS) :], labels[:, len(THINGS) :], reduction="none"
    )
    return functional.cross_entropy(things, there / there.sum(1, keepdim=True)) + colours.sum(1).mean() / 4


def perceptual_distance(first: list[Tensor], second: list[Tensor]) -> Tensor:
    """Mean over stages of the squared distance of features, each position's vector scaled to length one."""
    total = torch.zeros((), device=first[0].device)
    for here, there in zip(first, second, strict=True):
        here, there = (functional.normalize(states.float(), dim=1) for states in (here, there))
        total = total + (here - there).square().sum(1).mean()
    return total / len(first)


def load_perception(work_dir: Path) -> Perception:
    """The frozen network. Raises `FileNotFoundError` before it is trained."""
    path = work_dir / "perception" / "checkpoint.pt"
    saved = checkpoint.load(path)
    if saved is None:
        raise FileNotFoundError(path)
    model = Perception(tuple(saved["config"]["model"]["channels"]))
    model.load_state_dict(saved["model"])
    return model.requires_grad_(False).eval()


class LabelledPictures:
    """Pictures of both stages' sizes with their labels."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._images = np.load(folder / "images.npy", mmap_mode="r")
        with open(folder / "scenes.jsonl") as lines:
            self._labels = np.stack([labels_of(scene_from_json(line)) for line in lines]).astype(np.uint8)
        self._random = np.random.default_rng(seed)

    def batch(self, count: int) -> tuple[Tensor, Tensor]:
        """f32 [count, 3, 64, 64] in 0..1 and labels [count, LABELS]; rolled by up to 8 pixels, for both stages' eyes."""
        chosen = np.sort(self._random.integers(0, len(self._images), count))
        images = halve(self._images[chosen])
        for index in range(count):
            images[index] = np.roll(images[index], self._random.integers(-4, 5, 2), (0, 1))
        return to_tensor(images), torch.from_numpy(self._labels[chosen].astype(np.float32))


class PerceptionTask(Task):
    """Telling what is in a picture, label by label."""

    def __init__(self, run: Run, work_dir: Path) -> None:
        options = run.config["training"]
        self._batch = options["batch"]
        self._hardware = Hardware.from_options(options)
        model = Perception(tuple(run.config["model"]["channels"]))
        model = model.to(self._hardware.device, memory_format=torch.channels_last)
        super().__init__(
            model,
            Average(model, options["average_decay"]),
            torch.optim.AdamW(model.parameters(), lr=options["learning_rate"], weight_decay=0.01),
        )
        self._pictures = LabelledPictures(work_dir / "scenes", run.seed)
        self._held_out = LabelledPictures(work_dir / "scenes-evaluation", 0).batch(512)

    def step(self, rate: float, run: Run) -> tuple[int, dict[str, float]]:
        images, labels = (part.to(self._hardware.device) for part in self._pictures.batch(self._batch))
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        with self._hardware.autocast():
            logits = self.model(images)
        loss = label_loss(logits.float(), labels)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        return self._batch, {"loss": loss.item()}

    @torch.no_grad()
    def report(self, run: Run, final: bool) -> None:
        images, labels = (part.to(self._hardware.device) for part in self._held_out)
        logits = torch.cat([self.average.model(part) for part in images.split(64)])
        things = logits[:, : len(THINGS)].argmax(1)
        hits = labels[torch.arange(len(labels)), things].mean().item()
        run.journal.scalars(run.step, {"held-out/likeliest_thing_is_there": hits})


def train(config: dict[str, Any], work_dir: Path, minutes: float) -> None:
    """Runs or goes on with the run that `config` names, for `minutes` in all."""
    run = Run(config, work_dir, minutes)
    run.train(PerceptionTask(run, work_dir))


if __name__ == "__main__":
    command(__doc__, train)
