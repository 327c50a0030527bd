"""Pre-trains the text encoder on text alone: `python -m muse_models.text.pretrain --config configs/text.toml`.

Every token of an item's words has to tell which thing it speaks of, its colour, its count and where it
stands, and every token the background. That makes the encoder bind words to each other, which a
sentence-level objective does not. The heads are thrown away afterwards and the encoder is frozen.
Writes `<work-dir>/text/tokenizer.json` and `<work-dir>/text/checkpoint.pt`.
"""

import random
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ..data.captions import caption
from ..data.scene import random_scene
from ..training import checkpoint
from ..training.average import Average
from ..training.hardware import Hardware
from ..training.loop import Run, Task, command
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
        device = self.encoder.embedding.weight.device
        tokens = torch.from_numpy(batch.tokens).to(device)
        states = self.encoder(tokens, tokens != vocabulary.PAD)
        losses, accuracy = {}, {}
        for name, head in self.heads.items():
            labels = torch.from_numpy(batch.labels[name]).flatten().to(device)
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
    tokens = torch.from_numpy(rows).to(encoder.embedding.weight.device)
    states = encoder(tokens, tokens != vocabulary.PAD)
    circle = tokenizer.encode("circle").ids[0]
    first, second = (states[row][tokens[row] == circle][0] for row in (0, 1))
    return functional.cosine_similarity(first, second, dim=0).item()


class PretrainTask(Task):
    """What each word speaks of, asked of the encoder by heads that are thrown away."""

    def __init__(self, run: Run, work_dir: Path) -> None:
        options = run.config["training"]
        tokenizer_path = run.folder / "tokenizer.json"
        if not tokenizer_path.exists():
            vocabulary.train(work_dir, run.config["model"]["vocabulary"])
        self._tokenizer = vocabulary.load(tokenizer_path)
        # The trainer stops short of the size asked for when the text does not need it.
        run.config["model"]["vocabulary"] = self._tokenizer.get_vocab_size()
        self._batch = options["batch"]
        self._hardware = Hardware.from_options(options)
        model = Pretrainer(T5Encoder.from_config(run.config)).to(self._hardware.device)
        positions = list(model.encoder.positions.parameters())
        others = [value for value in model.parameters() if all(value is not table for table in positions)]
        # Position biases are added to scores as they are, and have further to go than the weights.
        optimiser = torch.optim.AdamW([
            {"params": others, "scale": 1.0},
            {"params": positions, "scale": options["positions_rate"], "weight_decay": 0.0},
        ], lr=options["learning_rate"], betas=(0.9, 0.98))
        super().__init__(model, Average(model, options["average_decay"]), optimiser)
        self._corpus = Corpus(work_dir, self._tokenizer, run.seed)

    def step(self, rate: float, run: Run) -> tuple[int, dict[str, float]]:
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["scale"]
        with self._hardware.autocast():
            losses, accuracy = self.model.losses(self._corpus.batch(self._batch))
        loss = sum(HEAD_WEIGHTS.get(name, 1.0) * value for name, value in losses.items())
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        return self._batch, {"loss": loss.item(), **{f"accuracy/{name}": value for name, value in accuracy.items()}}

    def report(self, run: Run, final: bool) -> None:
        accuracy = evaluate(self.average.model, self._corpus)
        run.journal.scalars(run.step, {f"held-out/{name}": value for name, value in accuracy.items()})
        similarity = swap_similarity(self.average.model.encoder, self._tokenizer)
        run.journal.say(f"cosine of a word and its swap: {similarity:.3f}")

    def result(self) -> dict[str, Any]:
        return self.average.model.encoder.state_dict()


def train(config: dict[str, Any], work_dir: Path, minutes: float) -> None:
    """Runs or goes on with pre-training, for `minutes` in all."""
    run = Run(config, work_dir, minutes)
    run.train(PretrainTask(run, work_dir))


if __name__ == "__main__":
    command(__doc__, train)
