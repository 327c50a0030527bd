"""Trains a masked transformer: `python -m muse_models.transformer.train --config configs/base.toml …`.

Which of the two it is, the configuration says: with `low_grid` it is the super-resolution model. Reads
`<work-dir>/tokens/` and the frozen text encoder. Resumes from its checkpoint. Writes `checkpoint.pt` (`model` is the
averaged weights), TensorBoard events and pictures (`samples.png`) under `<work-dir>/<name>/`.
"""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.encode import load_tokenizer
from ..reference.sampler import Settings
from ..text.encoder import T5Encoder
from ..text.pretrain import load_encoder
from ..text.vocabulary import END
from ..training.average import Average
from ..training.hardware import Hardware
from ..training.loop import Run, Task, command
from .config import TransformerConfig
from .dataset import TokenBatch, TokenShards, embed
from .loss import MaskedLoss, masked_loss
from .masking import corrupt, draw_masks, drop_text
from .model import MaskedTransformer, build
from .optimiser import TransformerOptimiser
from .samples import write_samples

BUCKETS = 4
"""Equal ranges of the mask ratio that the loss is reported by."""


def batch_loss(
    model: MaskedTransformer,
    encoder: T5Encoder,
    batch: TokenBatch,
    options: dict[str, Any],
    generator: torch.Generator,
    hardware: Hardware,
) -> MaskedLoss:
    """Loss of one batch with fresh masks, dropped texts and, for super-resolution, corrupted base tokens.

    `options` is the configuration's `[training]` table. Draws are made on the CPU, so that they are the same anywhere.
    """
    config, device = model.config, hardware.device
    text_ids = drop_text(batch.text_ids, END, options["text_drop"], generator)
    mask = draw_masks(len(text_ids), config.grid, options["rectangle_share"], generator).to(device)
    with hardware.autocast():
        text, text_mask = embed(encoder, text_ids.to(device))
        if config.is_superres:
            low = corrupt(batch.base, config.low_vocab_size, options["low_corruption"], generator)
            conditioning = model.condition(text, text_mask, low.to(device))
        else:
            conditioning = model.condition(text, text_mask)
        tokens = (batch.superres if config.is_superres else batch.base).to(device)
        return masked_loss(model, tokens, mask, conditioning, options["label_smoothing"])


def by_ratio(result: MaskedLoss) -> dict[str, float]:
    """Mean cross-entropy for each quarter of the mask ratio that has a row in the batch."""
    bucket = (result.ratio.cpu() * BUCKETS).ceil().long().clamp(1, BUCKETS) - 1
    sums = torch.zeros(BUCKETS).index_add(0, bucket, result.cross_entropy.cpu())
    counts = torch.bincount(bucket, minlength=BUCKETS)
    return {
        f"ce/{100 * index // BUCKETS}-{100 * (index + 1) // BUCKETS}": (sums[index] / counts[index]).item()
        for index in range(BUCKETS)
        if counts[index] > 0
    }


@torch.no_grad()
def evaluate(
    model: MaskedTransformer,
    encoder: T5Encoder,
    shards: TokenShards,
    options: dict[str, Any],
    hardware: Hardware,
    batches: int,
) -> dict[str, float]:
    """Cross-entropy and accuracy at masked positions of held-out pictures, the same masks every time."""
    generator = torch.Generator().manual_seed(0)
    quiet = {**options, "text_drop": 0.0, "rectangle_share": 0.0, "low_corruption": 0.0}
    size = options["batch"]
    total = {"ce": 0.0, "accuracy": 0.0}
    for start in range(0, batches * size, size):
        rows = torch.arange(start, start + size) % len(shards)
        result = batch_loss(model, encoder, shards.rows(rows.numpy()), quiet, generator, hardware)
        total["ce"] += result.cross_entropy.mean().item() / batches
        total["accuracy"] += result.correct.float().mean().item() / batches
    return {f"held-out/{name}": value for name, value in total.items()}


class TransformerTask(Task):
    """Masked tokens from captions: one step is one batch."""

    def __init__(self, run: Run, work_dir: Path) -> None:
        options = run.config["training"]
        self._options = options
        self._hardware = Hardware.from_options(options)
        device = self._hardware.device
        model = build(TransformerConfig.from_dict(run.config["model"])).to(device)
        optimiser = TransformerOptimiser(
            model, options["optimiser"], options["weight_decay"], tuple(options["betas"]), self._hardware.products
        )
        super().__init__(model, Average(model, options["average_decay"]), optimiser)
        self._encoder = load_encoder(work_dir).to(device)
        self._generator = torch.Generator().manual_seed(run.seed)
        superres = model.config.is_superres
        self._shards = TokenShards(work_dir / "tokens", run.seed, superres)
        self._held_out = TokenShards(work_dir / "tokens" / "evaluation", 0, superres)
        # The wordings of one picture stand together: take every fourth row.
        self._samples = self._held_out.rows(np.arange(0, min(48, len(self._held_out)), 4))
        self._tokenizer = load_tokenizer(work_dir, "superres" if superres else "base")
        self._figures: dict[str, float] = {}

    def step(self, rate: float, run: Run) -> tuple[int, dict[str, float]]:
        size = self._options["batch"]
        batch = self._shards.batch(size)
        result = batch_loss(self.model, self._encoder, batch, self._options, self._generator, self._hardware)
        result.loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step(rate)
        # A ratio that no row of this batch has keeps its last figure.
        self._figures |= {
            "loss": result.loss.item(), "accuracy": result.correct.float().mean().item(), **by_ratio(result)
        }
        return size, self._figures

    def report(self, run: Run, final: bool) -> None:
        model = self.average.model
        batches = 16 if final else 4
        run.journal.scalars(
            run.step, evaluate(model, self._encoder, self._held_out, self._options, self._hardware, batches)
        )
        # The sampler is NumPy and works beside the CPU.
        model, encoder = (copy.deepcopy(part).cpu() for part in (model, self._encoder))
        settings = Settings(**run.config["samples"])
        write_samples(run.folder / "samples.png", model, encoder, self._tokenizer, self._samples, settings)


def train(config: dict[str, Any], work_dir: Path, minutes: float) -> None:
    """Runs or goes on with the run that `config` names, for `minutes` in all."""
    run = Run(config, work_dir, minutes)
    run.train(TransformerTask(run, work_dir))


if __name__ == "__main__":
    command(__doc__, train)
