"""Trains a masked transformer: `python -m muse_models.transformer.train --config configs/base.toml …`.

Which of the two it is, the configuration says: with `low_grid` it is the super-resolution model. Reads
`<work-dir>/tokens/` and the frozen text encoder. Resumes from its checkpoint. Writes `checkpoint.pt` (`model` is the
averaged weights), TensorBoard events and pictures (`samples.png`) under `<work-dir>/<name>/`.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from ..data.encode import load_tokenizer
from ..reference.sampler import Settings
from ..text.encoder import T5Encoder
from ..text.pretrain import load_encoder
from ..text.vocabulary import END
from ..training import checkpoint
from ..training.average import Average
from ..training.budget import Budget
from ..training.config import default_work_dir, load_config
from ..training.journal import Journal
from .config import TransformerConfig
from .dataset import TokenBatch, TokenShards, embed
from .loss import MaskedLoss, masked_loss
from .masking import corrupt, draw_masks, drop_text
from .model import MaskedTransformer, build
from .optimiser import TransformerOptimiser
from .samples import write_samples

SAVE_SECONDS = 120
REPORT_SECONDS = 300
BUCKETS = 4
"""Equal ranges of the mask ratio that the loss is reported by."""


def batch_loss(
    model: MaskedTransformer, encoder: T5Encoder, batch: TokenBatch, options: dict, generator: torch.Generator
) -> MaskedLoss:
    """Loss of one batch with fresh masks, dropped texts and, for super-resolution, corrupted base tokens.

    `options` is the configuration's `[training]` table.
    """
    config = model.config
    text_ids = drop_text(batch.text_ids, END, options["text_drop"], generator)
    mask = draw_masks(len(text_ids), config.grid, options["rectangle_share"], generator)
    with torch.autocast("cpu", torch.bfloat16):
        text, text_mask = embed(encoder, text_ids)
        if config.is_superres:
            low = corrupt(batch.base, config.low_vocab_size, options["low_corruption"], generator)
            conditioning = model.condition(text, text_mask, low)
        else:
            conditioning = model.condition(text, text_mask)
        tokens = batch.superres if config.is_superres else batch.base
        return masked_loss(model, tokens, mask, conditioning, options["label_smoothing"])


def by_ratio(result: MaskedLoss) -> dict[str, float]:
    """Mean cross-entropy for each quarter of the mask ratio that has a row in the batch."""
    bucket = (result.ratio * BUCKETS).ceil().long().clamp(1, BUCKETS) - 1
    sums = torch.zeros(BUCKETS).index_add(0, bucket, result.cross_entropy)
    counts = torch.bincount(bucket, minlength=BUCKETS)
    return {
        f"ce/{100 * index // BUCKETS}-{100 * (index + 1) // BUCKETS}": (sums[index] / counts[index]).item()
        for index in range(BUCKETS)
        if counts[index] > 0
    }


@torch.no_grad()
def evaluate(
    model: MaskedTransformer, encoder: T5Encoder, shards: TokenShards, options: dict, batches: int
) -> dict[str, float]:
    """Cross-entropy and accuracy at masked positions of held-out pictures, the same masks every time."""
    generator = torch.Generator().manual_seed(0)
    quiet = {**options, "text_drop": 0.0, "rectangle_share": 0.0, "low_corruption": 0.0}
    size = options["batch"]
    total = {"ce": 0.0, "accuracy": 0.0}
    for start in range(0, batches * size, size):
        rows = torch.arange(start, start + size) % len(shards)
        result = batch_loss(model, encoder, shards.rows(rows.numpy()), quiet, generator)
        total["ce"] += result.cross_entropy.mean().item() / batches
        total["accuracy"] += result.correct.float().mean().item() / batches
    return {f"held-out/{name}": value for name, value in total.items()}


def train(config: dict, work_dir: Path, minutes: float) -> None:
    """Runs or goes on with the run that `config` names, for `minutes` in all."""
    options = config["training"]
    torch.manual_seed(options["seed"])
    folder = work_dir / config["name"]
    encoder = load_encoder(work_dir)
    model = build(TransformerConfig.from_dict(config["model"]))
    average = Average(model, options["average_decay"])
    optimiser = TransformerOptimiser(
        model, options["optimiser"], options["weight_decay"], tuple(options["betas"])
    )
    step, seen, spent = 0, 0, 0.0
    saved = checkpoint.load(folder / "checkpoint.pt")
    if saved:
        model.load_state_dict(saved["live"])
        average.model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        step, seen, spent = saved["step"], saved["seen"], saved["spent_seconds"]
        average.updates = step
    # Another seed after a restart, so that the same batches do not come again.
    generator = torch.Generator().manual_seed(options["seed"] + step)
    shards = TokenShards(work_dir / "tokens", options["seed"] + step, model.config.is_superres)
    held_out = TokenShards(work_dir / "tokens" / "evaluation", 0, model.config.is_superres)
    # The wordings of one picture stand together: take every fourth row.
    samples = held_out.rows(np.arange(0, min(48, len(held_out)), 4))
    tokenizer = load_tokenizer(work_dir, "superres" if model.config.is_superres else "base")
    budget = Budget(minutes, options["learning_rate"], options["warmup_minutes"], spent)
    journal = Journal(folder, config["name"])

    def save() -> None:
        checkpoint.save(folder / "checkpoint.pt", {
            "model": average.model.state_dict(), "live": model.state_dict(),
            "optimiser": optimiser.state_dict(), "step": step, "seen": seen,
            "spent_seconds": budget.spent_seconds(), "config": config,
        })

    def report(batches: int) -> None:
        journal.scalars(step, evaluate(average.model, encoder, held_out, options, batches))
        write_samples(folder / "samples.png", average.model, encoder, tokenizer, samples, Settings(**config["samples"]))

    figures: dict[str, float] = {}
    saved_at = reported_at = time.monotonic()
    while not budget.is_over():
        result = batch_loss(model, encoder, shards.batch(options["batch"]), options, generator)
        result.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step(budget.learning_rate())
        average.update(model)
        step += 1
        seen += options["batch"]
        # A ratio that no row of this batch has keeps its last figure.
        figures |= {"loss": result.loss.item(), "accuracy": result.correct.float().mean().item(), **by_ratio(result)}
        journal.step(step, seen, budget.remaining_seconds(), figures)
        now = time.monotonic()
        if now - saved_at > SAVE_SECONDS:
            save()
            saved_at = now
        if now - reported_at > REPORT_SECONDS:
            report(batches=4)
            reported_at = now
    save()
    report(batches=16)


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
