"""Pre-trains the text encoder on text alone: `python -m muse_models.text.pretrain --config configs/text.toml`.

Every token of an item's words has to tell which thing it speaks of, its colour, its count and where it
stands, and every token the background. That makes the encoder bind words to each other, which a
sentence-level objective does not. The heads are thrown away afterwards and the encoder is frozen.
Writes `<work-dir>/text/tokenizer.json` and `<work-dir>/text/checkpoint.pt`.
"""

import argparse
import random
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from ..data.captions import caption
from ..data.scene import random_scene
from ..training import checkpoint
from ..training.average import Average
from ..training.budget import Budget
from ..training.config import default_work_dir, load_config
from ..training.journal import Journal
from . import vocabulary
from .corpus import HEADS, IGNORED, Corpus, LabelledBatch
from .encoder import T5Encoder


HEAD_WEIGHTS = {"subgroup": 0.2, "place": 2.0}
"""Weights other than 1 of the heads' losses: kinds of emoji are few and noisy, places come last."""


class Pretrainer(nn.Module):
    """The encoder with one linear head a question."""

    def __init__(self, encoder: T5Encoder):
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleDict({name: nn.Linear(encoder.shape.width, size) for name, size in HEADS.items()})

    def losses(self, batch: LabelledBatch) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        """Cross-entropy and accuracy of each head."""
        tokens = torch.from_numpy(batch.tokens)
        states = self.encoder(tokens, tokens != vocabulary.PAD)
        losses, accuracy = {}, {}
        for name, head in self.heads.items():
            labels = torch.from_numpy(batch.labels[name]).flatten()
            asked = labels != IGNORED
            if not asked.any():
                continue
            logits = head(states.flatten(0, 1)[asked]).float()
            losses[name] = functional.cross_entropy(logits, labels[asked])
            accuracy[name] = (logits.argmax(-1) == labels[asked]).float().mean().item()
        return losses, accuracy


def load_encoder(work_dir: Path) -> T5Encoder:
    """The frozen encoder from its checkpoint. Raises `FileNotFoundError` before it is pre-trained."""
    saved = checkpoint.load(work_dir / "text" / "checkpoint.pt")
    if saved is None:
        raise FileNotFoundError(work_dir / "text" / "checkpoint.pt")
    encoder = T5Encoder.from_config(saved["config"])
    encoder.load_state_dict(saved["model"])
    return encoder.requires_grad_(False).eval()


@torch.no_grad()
def evaluate(model: Pretrainer, corpus: Corpus, captions: int = 500) -> dict[str, float]:
    """Accuracy of each head on captions of held-out scenes."""
    rng = random.Random("held out")
    scenes = [random_scene(rng, held_out=True) for _ in range(captions)]
    batch = corpus.label([(caption(scene, rng), scene, IGNORED) for scene in scenes])
    return model.losses(batch)[1]


@torch.no_grad()
def swap_similarity(encoder: T5Encoder, tokenizer) -> float:
    """Cosine between "circle" in "a red circle to the left of a blue square" and in its swap."""
    rows = vocabulary.encode(tokenizer, [
        "a red circle to the left of a blue square", "a blue square to the left of a red circle",
    ])
    tokens = torch.from_numpy(rows)
    states = encoder(tokens, tokens != vocabulary.PAD)
    circle = tokenizer.encode("circle").ids[0]
    first, second = (states[row][tokens[row] == circle][0] for row in (0, 1))
    return functional.cosine_similarity(first, second, dim=0).item()


def train(config: dict, work_dir: Path, minutes: float) -> None:
    """Runs or goes on with pre-training, for `minutes` in all."""
    options = config["training"]
    torch.manual_seed(options["seed"])
    folder = work_dir / "text"
    if not (folder / "tokenizer.json").exists():
        vocabulary.train(work_dir, config["model"]["vocabulary"])
    tokenizer = vocabulary.load(folder / "tokenizer.json")
    # The trainer stops short of the size asked for when the text does not need it.
    config["model"]["vocabulary"] = tokenizer.get_vocab_size()
    model = Pretrainer(T5Encoder.from_config(config))
    average = Average(model, options["average_decay"])
    positions = list(model.encoder.positions.parameters())
    others = [value for value in model.parameters() if all(value is not table for table in positions)]
    # Position biases are added to scores as they are, and have further to go than the weights.
    optimiser = torch.optim.AdamW([
        {"params": others, "scale": 1.0},
        {"params": positions, "scale": options["positions_rate"], "weight_decay": 0.0},
    ], lr=options["learning_rate"], betas=(0.9, 0.98))
    step, spent = 0, 0.0
    saved = checkpoint.load(folder / "checkpoint.pt")
    if saved:
        model.load_state_dict(saved["live"])
        average.model.load_state_dict(saved["averaged"])
        optimiser.load_state_dict(saved["optimiser"])
        step, spent = saved["step"], saved["spent_seconds"]
        average.updates = step
    corpus = Corpus(work_dir, tokenizer, options["seed"] + step)
    budget = Budget(minutes, options["learning_rate"], options["warmup_minutes"], spent)
    journal = Journal(folder, "text")

    def save() -> None:
        checkpoint.save(folder / "checkpoint.pt", {
            "model": average.model.encoder.state_dict(), "averaged": average.model.state_dict(),
            "live": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step,
            "spent_seconds": budget.spent_seconds(), "config": config,
        })

    saved_at = time.monotonic()
    while not budget.is_over():
        rate = budget.learning_rate()
        for group in optimiser.param_groups:
            group["lr"] = rate * group["scale"]
        with torch.autocast("cpu", torch.bfloat16):
            losses, accuracy = model.losses(corpus.batch(options["batch"]))
        loss = sum(HEAD_WEIGHTS.get(name, 1.0) * value for name, value in losses.items())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        average.update(model)
        step += 1
        figures = {"loss": loss.item(), **{f"accuracy/{name}": value for name, value in accuracy.items()}}
        journal.step(step, step * options["batch"], budget.remaining_seconds(), figures)
        if time.monotonic() - saved_at > 60:
            save()
            saved_at = time.monotonic()
    save()
    journal.scalars(step, {f"held-out/{name}": value for name, value in evaluate(average.model, corpus).items()})
    journal.say(f"cosine of a word and its swap: {swap_similarity(average.model.encoder, tokenizer):.3f}")


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
