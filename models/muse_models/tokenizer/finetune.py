"""Fine-tunes a larger decoder: `python -m muse_models.tokenizer.finetune --config configs/decoder_superres.toml …`.

Encoder, codebook and transformers stay as they are (arXiv 2301.00704, appendix): only what tokens look like gets
better. The decoder begins as the tokenizer's own, grown to the configuration's shape, and learns from the pictures'
tokens by reconstruction, by the perceptual distance of `perception`, and, after a while, against a discriminator. Reads
`<work-dir>/tokens/<stage>.npy`. Resumes from its checkpoint. `checkpoint.pt` is a whole tokenizer, which the export
takes in the place of the first one; `reconstructions.png` shows pictures, the first decoder's, and this one's.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.encode import load_tokenizer
from ..data.render import halve
from ..training import checkpoint
from ..training.average import Average
from ..training.hardware import Hardware
from ..training.loop import Run, Task, command
from ..training.pictures import save_grid
from .discriminator import PatchDiscriminator, combined_gradient, decoder_loss, discriminator_loss
from .grow import grown
from .losses import psnr, reconstruction_loss
from .perception import load_perception, perceptual_distance
from .pictures import to_tensor

CELL = 8
"""Pixels a side that a token stands for."""


class TokenizedPictures:
    """Pictures of one stage beside their tokens, as `muse_models.data.encode` wrote them."""

    def __init__(self, images: Path, tokens: Path, side: int, seed: int) -> None:
        self._images = np.load(images, mmap_mode="r")
        rows = np.load(tokens, mmap_mode="r")
        # A picture's tokens stand there once for each wording.
        self._tokens = rows[:: len(rows) // len(self._images)]
        self._side = side
        self._random = np.random.default_rng(seed)

    def first(self, count: int) -> tuple[Tensor, Tensor]:
        """The first `count` pictures, whole, as `batch` gives them."""
        return self._cut(np.arange(min(count, len(self._images))), None)

    def batch(self, count: int, window: int | None) -> tuple[Tensor, Tensor]:
        """Pictures f32 [count, 3, h, w] in 0..1 and tokens int64 [count, h/8, w/8]; h = w = 8 · `window`, or whole."""
        return self._cut(np.sort(self._random.integers(0, len(self._images), count)), window)

    def _cut(self, chosen: np.ndarray, window: int | None) -> tuple[Tensor, Tensor]:
        images, grid = self._images[chosen], self._side // CELL
        if self._side * 2 == images.shape[1]:
            images = halve(images)
        tokens = self._tokens[chosen].reshape(len(chosen), grid, grid).astype(np.int64)
        if window is not None and window < grid:
            corners = [self._corner(image, window) for image in images]
            tokens = np.stack([
                row[top : top + window, left : left + window]
                for row, (top, left) in zip(tokens, corners, strict=True)
            ])
            images = np.stack([
                image[CELL * top : CELL * (top + window), CELL * left : CELL * (left + window)]
                for image, (top, left) in zip(images, corners, strict=True)
            ])
        return to_tensor(images), torch.from_numpy(tokens)

    def _corner(self, image: np.ndarray, window: int) -> tuple[int, int]:
        """Of two windows drawn at random the one with more to see, by its first token (row, column)."""
        corners = self._random.integers(0, self._side // CELL - window + 1, (2, 2))
        detail = [
            image[CELL * top : CELL * (top + window) : 4, CELL * left : CELL * (left + window) : 4].std()
            for top, left in corners
        ]
        top, left = corners[int(np.argmax(detail))]
        return int(top), int(left)


class DecoderTask(Task):
    """A decoder against pictures, `perception`, and a discriminator that learns beside it."""

    def __init__(self, run: Run, work_dir: Path) -> None:
        options, stage = run.config["training"], run.config["stage"]
        self._options = options
        self._hardware = Hardware.from_options(options)
        device = self._hardware.device
        self._first = load_tokenizer(work_dir, stage)
        first_config = checkpoint.load(work_dir / f"tokenizer_{stage}" / "checkpoint.pt")["config"]
        # What loads the checkpoint builds the tokenizer from this table.
        run.config["model"] = first_config["model"] | run.config["model"]
        model = run.config["model"]
        quantiser = self._first.quantiser
        decoder = grown(
            self._first.decoder, tuple(model["decoder_channels"]), tuple(model["decoder_blocks"]), quantiser.dimensions
        ).requires_grad_(True).to(device, memory_format=torch.channels_last)
        super().__init__(
            decoder,
            Average(decoder, options["average_decay"]),
            torch.optim.AdamW(decoder.parameters(), lr=0.0, betas=(0.9, 0.95), weight_decay=0.0),
        )
        self._first = self._first.to(device, memory_format=torch.channels_last)
        self._discriminator = PatchDiscriminator(options["discriminator_channels"])
        self._discriminator = self._discriminator.to(device, memory_format=torch.channels_last)
        self._judging = torch.optim.AdamW(self._discriminator.parameters(), lr=0.0, betas=(0.5, 0.95))
        self._perception = load_perception(work_dir).to(device, memory_format=torch.channels_last)
        side = model["image_side"]
        self._pictures = TokenizedPictures(
            work_dir / "scenes" / "images.npy", work_dir / "tokens" / f"{stage}.npy", side, run.seed
        )
        held_out = TokenizedPictures(
            work_dir / "scenes-evaluation" / "images.npy", work_dir / "tokens" / "evaluation" / f"{stage}.npy", side, 0
        )
        self._held_out = tuple(part.to(device) for part in held_out.first(options["held_out"]))

    def step(self, rate: float, run: Run) -> tuple[int, dict[str, float]]:
        options = self._options
        done = run.budget.spent_seconds() / (run.minutes * 60)
        # Windows show more detail for the same arithmetic; whole pictures last, as in use.
        grid, window = run.config["model"]["image_side"] // CELL, options["window"]
        early = done < options["window_share"] and window < grid
        size = options["batch"] * (grid // window) ** 2 if early else options["batch"]
        images, tokens = (
            part.to(self._hardware.device) for part in self._pictures.batch(size, window if early else None)
        )
        with self._hardware.autocast():
            output = self.model(self._values(tokens)).float()
            with torch.no_grad():
                seen = self._perception.features(images)
            distance = perceptual_distance(self._perception.features(output), seen)
        reconstruction = reconstruction_loss(output, images)
        loss = reconstruction + options["perceptual_weight"] * distance
        figures = {"reconstruction": reconstruction.item(), "perceptual": distance.item(), "rate": rate}
        if done < options["discriminator_from"]:
            loss.backward()
        else:
            figures |= self._judge(images, output.detach(), rate)
            if done < options["adversarial_from"]:
                loss.backward()
            else:
                adversarial = decoder_loss(self._discriminator(output))
                output.backward(combined_gradient(output, loss, adversarial, options["adversarial_weight"]))
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        _apply(self.optimiser, rate)
        return size, figures

    def _judge(self, images: Tensor, decoded: Tensor, rate: float) -> dict[str, float]:
        """One step of the discriminator."""
        self._judging.zero_grad(set_to_none=True)
        scores = self._discriminator(torch.cat([images, decoded])).chunk(2)
        loss = discriminator_loss(*scores)
        loss.backward()
        _apply(self._judging, rate * self._options["discriminator_rate"])
        return {"discriminator": loss.item()}

    def _values(self, tokens: Tensor) -> Tensor:
        """Tokens [B, h, w] as the quantiser's values [B, D, h, w]."""
        height, width = tokens.shape[1:]
        return self._first.quantiser.values(tokens.flatten(1), height, width)

    @torch.no_grad()
    def report(self, run: Run, final: bool) -> None:
        images, tokens = self._held_out
        figures, outputs = {}, []
        for name, decoder in (("first", self._first.decoder), ("tuned", self.average.model)):
            output = torch.cat([decoder(self._values(part)) for part in tokens.split(32)]).clamp(0, 1)
            pairs = zip(output.split(32), images.split(32), strict=True)
            distances = [
                perceptual_distance(self._perception.features(made), self._perception.features(true))
                for made, true in pairs
            ]
            figures[f"held-out/psnr_{name}"] = psnr(output, images).item()
            figures[f"held-out/perceptual_{name}"] = torch.stack(distances).mean().item()
            outputs.append(output)
        run.journal.scalars(run.step, figures)
        lines = [part[:12].cpu().numpy() for part in (images, *outputs)]
        save_grid(run.folder / "reconstructions.png", lines, scale=2 if images.shape[-1] <= 64 else 1)

    def result(self) -> dict[str, Any]:
        """The whole tokenizer, with the first one's encoder."""
        encoder = {f"encoder.{name}": value for name, value in self._first.encoder.state_dict().items()}
        return encoder | {f"decoder.{name}": value for name, value in self.average.model.state_dict().items()}

    def more_state(self) -> dict[str, Any]:
        return {"discriminator": self._discriminator.state_dict(), "judging": self._judging.state_dict()}

    def load_more_state(self, saved: dict[str, Any]) -> None:
        self._discriminator.load_state_dict(saved["discriminator"])
        self._judging.load_state_dict(saved["judging"])


def _apply(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


def train(config: dict[str, Any], work_dir: Path, minutes: float) -> None:
    """Runs or goes on with the run that `config` names, for `minutes` in all."""
    run = Run(config, work_dir, minutes)
    run.train(DecoderTask(run, work_dir))


if __name__ == "__main__":
    command(__doc__, train)
