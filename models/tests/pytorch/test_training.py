"""A few steps of training on random data: it learns, writes its checkpoint, and goes on from it."""

import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image

from muse_models.export.tiny import BASE, BASE_DEFAULTS, IMAGE_SIZE, SUPERRES, PatchTokenizer
from muse_models.text.encoder import EncoderShape, T5Encoder
from muse_models.training import checkpoint
from muse_models.transformer import train
from muse_models.transformer.model import build
from muse_models.transformer.optimiser import TransformerOptimiser

OPTIONS = {
    "seed": 1, "batch": 8, "optimiser": "muon", "learning_rate": 1e-2, "weight_decay": 0.0, "betas": [0.9, 0.96],
    "warmup_minutes": 0.0, "average_decay": 0.9, "label_smoothing": 0.05, "text_drop": 0.1, "rectangle_share": 0.15,
    "low_corruption": 0.15,
}


@pytest.fixture
def work_dir(tmp_path):
    torch.manual_seed(0)
    shape = EncoderShape(vocabulary=40, width=24, layers=1, heads=2, head_width=8, hidden=32)
    encoder = T5Encoder(shape)
    checkpoint.save(
        tmp_path / "text" / "checkpoint.pt", {"model": encoder.state_dict(), "config": {"model": asdict(shape)}}
    )
    random = np.random.default_rng(0)
    for folder in (tmp_path / "tokens", tmp_path / "tokens" / "evaluation"):
        folder.mkdir()
        np.save(folder / "base.npy", np.tile(np.arange(24, dtype=np.int16), (40, 1)))
        np.save(folder / "superres.npy", np.tile(np.arange(96, dtype=np.int16) % 53, (40, 1)))
        text_ids = random.integers(2, 40, (40, 9)).astype(np.uint16)
        text_ids[:, -1] = 1
        np.save(folder / "text_ids.npy", text_ids)
    return tmp_path


def image_tokenizer(shape):
    tokenizer = PatchTokenizer(shape.codebook_size, 32 // shape.grid[0], IMAGE_SIZE)
    tokenizer.image_side = 32
    return tokenizer


class CountedBudget:
    """A budget of one step a minute: a test must not depend on how busy the machine is."""

    def __init__(self, minutes: float, peak: float, warmup_minutes: float, spent_seconds: float) -> None:
        self.minutes, self.peak, self.spent = minutes, peak, spent_seconds / 60

    def is_over(self) -> bool:
        return self.spent >= self.minutes

    def learning_rate(self) -> float:
        self.spent += 1
        return self.peak

    def spent_seconds(self) -> float:
        return self.spent * 60

    def remaining_seconds(self) -> float:
        return (self.minutes - self.spent) * 60


@pytest.mark.parametrize("shape", [BASE, SUPERRES], ids=["base", "superres"])
def test_a_run_learns_and_goes_on_where_it_stopped(work_dir, shape, capsys, monkeypatch):
    monkeypatch.setattr(train, "Budget", CountedBudget)
    monkeypatch.setattr(train, "load_tokenizer", lambda *_: image_tokenizer(shape))
    model = asdict(replace(shape, width=16, mlp_width=32))
    config = {"name": "run", "model": model, "training": OPTIONS, "samples": asdict(BASE_DEFAULTS)}
    train.train(config, work_dir, minutes=15)
    assert checkpoint.load(work_dir / "run" / "checkpoint.pt")["step"] == 15
    train.train(config, work_dir, minutes=40)
    second = checkpoint.load(work_dir / "run" / "checkpoint.pt")
    assert (second["step"], second["seen"], second["spent_seconds"]) == (40, 320, 2400)
    held_out = [line for line in capsys.readouterr().out.splitlines() if "held-out/ce" in line]
    first_loss, loss = (float(line.split("held-out/ce")[1].split()[0]) for line in held_out)
    assert loss < first_loss < math.log(shape.codebook_size) + 0.2
    assert loss < 0.8 * math.log(shape.codebook_size)
    # Two lines of ten pictures.
    assert Image.open(work_dir / "run" / "samples.png").size == (2 * 10 * 48, 2 * 2 * 32)


def test_muon_takes_the_matrices_of_the_layers_and_adamw_the_rest():
    model = build(SUPERRES)
    optimiser = TransformerOptimiser(model, "muon", 0.0, (0.9, 0.96))
    others, matrices = (sum(len(group["params"]) for group in part.param_groups) for part in optimiser._parts)
    assert others + matrices == len(list(model.parameters()))
    # Six matrices in each of two layers, four in the low-resolution layer.
    assert matrices == 2 * 6 + 4


def test_an_unknown_optimiser_is_refused():
    with pytest.raises(ValueError, match='"sgd"'):
        TransformerOptimiser(build(BASE), "sgd", 0.0, (0.9, 0.96))
