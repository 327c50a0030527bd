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
from muse_models.training.hardware import Hardware
from muse_models.training.snapshots import Snapshots, offline_average, snapshot_files
from muse_models.transformer import average, train
from muse_models.transformer.model import build
from muse_models.transformer.muon import Muon, orthogonalised
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


@pytest.mark.parametrize("shape", [BASE, SUPERRES], ids=["base", "superres"])
def test_a_run_learns_and_goes_on_where_it_stopped(work_dir, shape, capsys, monkeypatch, counted_budget):
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


@pytest.mark.parametrize(("kind", "rate"), [("muon", 1e-2), ("adamw", 1e-2), ("adafactor", 0.1)])
def test_every_optimiser_learns_and_keeps_its_state(kind, rate):
    torch.manual_seed(0)
    model, truth = torch.nn.Sequential(), torch.randn(12, 12)
    model.add_module("layers", torch.nn.ModuleList([torch.nn.Linear(12, 12)]))
    inputs = torch.randn(64, 12)

    def loss():
        return (model.layers[0](inputs) - inputs @ truth.T).square().mean()

    first, optimiser = loss().item(), TransformerOptimiser(model, kind, 0.0, (0.9, 0.96))
    for _ in range(300):
        loss().backward()
        optimiser.step(rate)
    assert loss() < 0.5 * first
    again = TransformerOptimiser(model, kind, 0.0, (0.9, 0.96))
    again.load_state_dict(optimiser.state_dict())
    assert str(again.state_dict()) == str(optimiser.state_dict())


def test_muon_makes_an_update_orthogonal():
    torch.manual_seed(0)
    for shape in ((24, 64), (64, 24), (32, 32)):
        matrix = torch.randn(shape) @ torch.diag(torch.logspace(0, -1, shape[1]))
        update = orthogonalised(matrix)
        assert update.shape == matrix.shape
        values = torch.linalg.svdvals(update)
        assert values.min() > 0.5 and values.max() < 1.3
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        assert torch.nn.functional.cosine_similarity(update.flatten(), (left @ right).flatten(), dim=0) > 0.95


def test_muon_is_pytorch_s_but_for_its_rounding():
    torch.manual_seed(0)
    start, gradients = torch.randn(16, 40), torch.randn(3, 16, 40)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    optimisers = [
        Muon([ours], weight_decay=0.1),
        torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    ]
    optimisers[0].param_groups[0]["lr"] = 0.02
    for gradient in gradients:
        for parameter, optimiser in zip((ours, theirs), optimisers, strict=True):
            parameter.grad = gradient.clone()
            optimiser.step()
    assert (ours - theirs).norm() < 0.02 * (ours - start).norm()


def test_snapshots_are_taken_in_time_and_the_oldest_go(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("muse_models.training.snapshots.time.monotonic", lambda: clock[0])
    model, snapshots = torch.nn.Linear(2, 1), Snapshots(tmp_path, 10, keep=3)
    for step in range(1, 13):
        clock[0] = step * 5.0
        with torch.no_grad():
            model.weight.fill_(step)
        snapshots.offer(step, model)
    kept = [checkpoint.load(path) for path in snapshot_files(tmp_path)]
    assert [(state["step"], state["live"]["weight"][0, 0].item()) for state in kept] == [(8, 8), (10, 10), (12, 12)]


def test_an_offline_average_keeps_its_decay_of_what_was_there():
    states = [{"weight": torch.tensor([value]), "count": torch.tensor(7)} for value in (1.0, 2.0, 4.0)]
    average_of_all = offline_average(states, 0.7)
    assert average_of_all["weight"].item() == pytest.approx(0.7 * (0.7 * 1 + 0.3 * 2) + 0.3 * 4)
    assert average_of_all["count"] == 7
    with pytest.raises(ValueError, match="no snapshots"):
        offline_average([], 0.7)


def test_the_best_average_of_a_run_is_written(work_dir, monkeypatch, capsys, counted_budget):
    monkeypatch.setattr(train, "load_tokenizer", lambda *_: image_tokenizer(BASE))
    options = OPTIONS | {"snapshot_seconds": 1e-9, "snapshots": 4}
    model = asdict(replace(BASE, width=16, mlp_width=32))
    config = {"name": "run", "model": model, "training": options, "samples": asdict(BASE_DEFAULTS)}
    train.train(config, work_dir, minutes=12)
    assert len(snapshot_files(work_dir / "run")) == 4
    figures = average.compare(config, work_dir, [0.0, 0.7], batches=2)
    # A decay of nothing leaves the last weights.
    assert figures["offline average, decay 0"] == pytest.approx(figures["last weights"])
    assert figures["offline average, decay 0.7"] != figures["last weights"]
    written = checkpoint.load(work_dir / "run" / "averaged.pt")
    assert written["step"] == 12 and min(figures, key=figures.get) in capsys.readouterr().out.splitlines()[-1]
    assert build(BASE).state_dict().keys() == written["model"].keys()


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no CUDA device"):
        Hardware.from_options({"device": "cuda"})
    with pytest.raises(ValueError, match='"f8"'):
        Hardware.from_options({"precision": "f8"})


def test_products_are_in_the_precision_that_was_asked_for():
    layer, inputs = torch.nn.Linear(4, 4), torch.randn(2, 4)
    for precision, expected in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        with Hardware.from_options({"device": "cpu", "precision": precision}).autocast():
            assert layer(inputs).dtype == expected


def test_an_unknown_optimiser_is_refused():
    with pytest.raises(ValueError, match='"sgd"'):
        TransformerOptimiser(build(BASE), "sgd", 0.0, (0.9, 0.96))
