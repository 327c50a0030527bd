"""Trains an image tokenizer: `python -m muse_models.tokenizer.train --config configs/tokenizer_base.toml`.

Resumes from its checkpoint. Writes `checkpoint.pt` (`model` is the averaged weights), TensorBoard
events, and reconstructions as PNG under `<work-dir>/<name>/`.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.render import halve
from ..training.average import Average
from ..training.hardware import Hardware
from ..training.loop import Run, Task, command
from ..training.pictures import save_grid
from .losses import psnr, reconstruction_loss, spread_loss
from .model import ImageTokenizer
from .pictures import Pictures, to_tensor


def held_out_pictures(work_dir: Path, side: int, count: int) -> torch.Tensor:
    """f32 [count, 3, side, side] of compositions that are never trained on."""
    images = np.load(work_dir / "scenes-evaluation" / "images.npy", mmap_mode="r")[:count]
    return to_tensor(halve(images) if side * 2 == images.shape[1] else np.array(images))


@torch.no_grad()
def evaluate(model: ImageTokenizer, images: torch.Tensor) -> tuple[float, float, torch.Tensor]:
    """PSNR in dB, share of the codebook used, and the reconstructions [N, 3, H, W]."""
    outputs, used = [], set()
    for batch in images.split(32):
        tokens = model.encode(batch)
        used.update(tokens.flatten().tolist())
        outputs.append(model.decode(tokens))
    output = torch.cat(outputs)
    return psnr(output, images).item(), len(used) / model.quantiser.codebook_size, output


class TokenizerTask(Task):
    """Reconstruction of pictures through the quantiser."""

    def __init__(self, run: Run, work_dir: Path) -> None:
        options = run.config["training"]
        self._options = options
        self._hardware = Hardware.from_options(options)
        model = ImageTokenizer.from_config(run.config)
        model = model.to(self._hardware.device, memory_format=torch.channels_last)
        optimiser = torch.optim.AdamW(
            model.parameters(), lr=options["learning_rate"], betas=(0.9, 0.95), weight_decay=0.01
        )
        super().__init__(model, Average(model, options["average_decay"]), optimiser)
        side, path = run.config["model"]["image_side"], work_dir / "scenes" / "images.npy"
        self._side = side
        self._whole = Pictures(path, side, side, options["shift_share"], run.seed)
        self._cropped = Pictures(path, side, options["crop"], options["shift_share"], run.seed)
        self._held_out = held_out_pictures(work_dir, side, 256).to(self._hardware.device)

    def step(self, rate: float, run: Run) -> tuple[int, dict[str, float]]:
        options = self._options
        # Crops show more detail for the same arithmetic; whole pictures last, as in use.
        early = run.budget.spent_seconds() < options["crop_share"] * run.minutes * 60
        size = options["batch"] * (self._side // options["crop"]) ** 2 if early else options["batch"]
        images = (self._cropped if early else self._whole).batch(size).to(self._hardware.device)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        with self._hardware.autocast():
            output, features = self.model(images)
        reconstruction = reconstruction_loss(output, images)
        spread = spread_loss(features, images, self._side // self.model.grid_side)
        loss = reconstruction + options["spread_weight"] * spread
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        return size, {"reconstruction": reconstruction.item(), "spread": spread.item(), "rate": rate}

    def report(self, run: Run, final: bool) -> None:
        held_out = self._held_out if final else self._held_out[:128]
        quality, used, output = evaluate(self.average.model, held_out)
        run.journal.scalars(run.step, {"held-out/psnr": quality, "held-out/codebook_use": used})
        rows = [row for start in (0, 16) for row in (held_out[start : start + 16], output[start : start + 16])]
        save_grid(run.folder / "reconstructions.png", [row.cpu().numpy() for row in rows])


def train(config: dict[str, Any], work_dir: Path, minutes: float) -> None:
    """Runs or goes on with the run that `config` names, for `minutes` in all."""
    run = Run(config, work_dir, minutes)
    run.train(TokenizerTask(run, work_dir))


if __name__ == "__main__":
    command(__doc__, train)
