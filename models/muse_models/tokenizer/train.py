"""Trains an image tokenizer: `python -m muse_models.tokenizer.train --config configs/tokenizer_base.toml`.

Resumes from its checkpoint. Writes `checkpoint.pt` (`model` is the averaged weights), TensorBoard
events, and reconstructions as PNG under `<work-dir>/<name>/`.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from ..data.render import halve
from ..training import checkpoint
from ..training.average import Average
from ..training.budget import Budget
from ..training.config import default_work_dir, load_config
from ..training.journal import Journal
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


def train(config: dict, work_dir: Path, minutes: float) -> None:
    """Runs or goes on with the run that `config` names, for `minutes` in all."""
    options = config["training"]
    torch.manual_seed(options["seed"])
    folder = work_dir / config["name"]
    model = ImageTokenizer.from_config(config).to(memory_format=torch.channels_last)
    average = Average(model, options["average_decay"])
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=options["learning_rate"], betas=(0.9, 0.95), weight_decay=0.01
    )
    step, seen, spent = 0, 0, 0.0
    saved = checkpoint.load(folder / "checkpoint.pt")
    if saved:
        model.load_state_dict(saved["live"])
        average.model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        step, seen, spent = saved["step"], saved["seen"], saved["spent_seconds"]
        average.updates = step
    budget = Budget(minutes, options["learning_rate"], options["warmup_minutes"], spent)
    journal = Journal(folder, config["name"])
    side = config["model"]["image_side"]
    path = work_dir / "scenes" / "images.npy"
    whole = Pictures(path, side, side, options["shift_share"], options["seed"] + step)
    cropped = Pictures(path, side, options["crop"], options["shift_share"], options["seed"] + step)
    held_out = held_out_pictures(work_dir, side, 256)

    def save() -> None:
        checkpoint.save(folder / "checkpoint.pt", {
            "model": average.model.state_dict(), "live": model.state_dict(),
            "optimiser": optimiser.state_dict(), "step": step, "seen": seen,
            "spent_seconds": budget.spent_seconds(), "config": config,
        })

    def report() -> None:
        quality, used, output = evaluate(average.model, held_out[:128])
        journal.scalars(step, {"held-out/psnr": quality, "held-out/codebook_use": used})
        rows = [row for start in (0, 16) for row in (held_out[start : start + 16], output[start : start + 16])]
        save_grid(folder / "reconstructions.png", [row.numpy() for row in rows])

    saved_at = reported_at = time.monotonic()
    while not budget.is_over():
        # Crops show more detail for the same arithmetic; whole pictures last, as in use.
        early = budget.spent_seconds() < options["crop_share"] * minutes * 60
        size = options["batch"] * (side // options["crop"]) ** 2 if early else options["batch"]
        images = (cropped if early else whole).batch(size)
        rate = budget.learning_rate()
        for group in optimiser.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16):
            output, features = model(images)
        reconstruction = reconstruction_loss(output, images)
        spread = spread_loss(features, images, side // model.grid_side)
        loss = reconstruction + options["spread_weight"] * spread
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        average.update(model)
        step += 1
        seen += len(images)
        journal.step(step, seen, budget.remaining_seconds(), {
            "reconstruction": reconstruction.item(), "spread": spread.item(), "rate": rate,
        })
        now = time.monotonic()
        if now - saved_at > 120:
            save()
            saved_at = now
        if now - reported_at > options["report_seconds"]:
            report()
            reported_at = now
    save()
    quality, used, _ = evaluate(average.model, held_out)
    report()
    journal.say(f"done: {seen} pictures, held-out PSNR {quality:.2f} dB, codebook use {used:.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--work-dir", type=Path, default=default_work_dir())
    parser.add_argument("--budget-minutes", type=float, required=True)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train(load_config(arguments.config), arguments.work_dir, arguments.budget_minutes)


if __name__ == "__main__":
    main()
