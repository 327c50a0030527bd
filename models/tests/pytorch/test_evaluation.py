"""The image-text model, the standard networks' interfaces, and a whole evaluation on made-up icons."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

from muse_models.data import sprites
from muse_models.data.catalogue import THINGS
from muse_models.data.colours import COLOUR_NAMES, COLOURS
from muse_models.data.scene import Box
from muse_models.evaluation import __main__ as command
from muse_models.evaluation import judge, report, run, standard
from muse_models.evaluation.prompts import NAMES
from muse_models.reference.bundle import Bundle

ROOT = Path(__file__).resolve().parents[3]
TINY = ROOT / "tests" / "bundles" / "tiny"
DEMO = ROOT / "bundles" / "demo"
"""Scenes are square, and so are this bundle's pictures; the tiny ones' are not."""
SMALL = judge.Training(steps=2, batch=8)


@pytest.fixture
def made_up_icons(monkeypatch) -> None:
    """Icons of 8×8 pixels in place of the real ones: no network, no rasteriser."""
    rng = np.random.default_rng(1)
    natural = rng.integers(0, 256, (len(THINGS), 8, 8, 4)).astype(np.uint8)
    natural[..., 3] = 255
    tinted = np.repeat(natural[:, None], len(COLOUR_NAMES), axis=1)
    tinted[..., 2:6, 2:6, :3] = np.array(list(COLOURS.values()), np.uint8)[:, None, None]
    monkeypatch.setattr(sprites, "load", lambda work_dir: (natural, tinted))


def test_a_judge_learns_from_its_examples(made_up_icons, tmp_path):
    torch.manual_seed(0)
    examples = judge.Examples(tmp_path, seed=1)
    pictures, shares, colours, backgrounds, numbers = examples.batch(24)
    assert pictures.shape == (24, 3, judge.SIDE, judge.SIDE)
    assert shares.sum(1).allclose(torch.ones(24))
    assert colours.min() >= -1 and backgrounds.max() <= len(COLOUR_NAMES) and 0 <= numbers.min() <= numbers.max() <= 3
    model = judge.Judge()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(model.names(model(pictures)), shares)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0], losses


def test_a_trained_judge_is_kept_and_another_training_is_another_judge(made_up_icons, tmp_path):
    first, _ = judge.trained(tmp_path, SMALL)
    again, _ = judge.trained(tmp_path, SMALL)
    other, _ = judge.trained(tmp_path, judge.Training(steps=1, batch=8))
    pictures = list(np.random.default_rng(2).integers(0, 256, (3, 128, 128, 3)).astype(np.uint8))
    assert first.similarities(pictures).shape == (3, len(NAMES))
    assert (first.similarities(pictures) == again.similarities(pictures)).all()
    assert (first.similarities(pictures) != other.similarities(pictures)).any()
    assert len(list((tmp_path / "evaluation").glob("judge-*.pt"))) == 2


def test_spoilt_pictures_are_pictures_and_the_originals_stay():
    pictures = torch.rand(16, 3, judge.SIDE, judge.SIDE)
    before = pictures.clone()
    result = judge.spoilt(pictures)
    assert result.shape == pictures.shape and 0 <= result.min() and result.max() <= 1
    assert (pictures == before).all() and (result != before).any()


def test_a_thing_is_in_the_middle_of_what_is_cut_out_for_it():
    picture = np.zeros((128, 128, 3), np.uint8)
    picture[80:90, 20:30] = 255
    for seed in range(20):
        crop = judge.cut_out(picture, Box(0, 5, 65, 40), random.Random(seed))
        assert crop.shape[0] == crop.shape[1]
        rows, columns = np.nonzero(crop[..., 0])
        assert abs(rows.mean() / len(crop) - 0.5) < 0.25 and abs(columns.mean() / len(crop) - 0.5) < 0.25


class Features(nn.Module):
    def forward(self, pictures):
        return pictures.mean((2, 3)) @ torch.eye(3, 5)


class Towers(nn.Module):
    """Sees how red, green and blue a picture is, and reads three words."""

    def forward(self, pixel_values, input_ids):
        return pixel_values.mean((2, 3)), torch.eye(3)[input_ids[:, 0]]


PURE = np.zeros((3, 16, 16, 3), np.uint8)
PURE[np.arange(3), :, :, np.arange(3)] = 255
WORDS = ("red", "green", "blue")


@pytest.fixture
def tokenizer(tmp_path) -> Path:
    made = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="red"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    path = tmp_path / "tokenizer.json"
    made.save(str(path))
    return path


def onnx_file(module: nn.Module, inputs: tuple, path: Path, names: list[str], outputs: list[str]) -> Path:
    torch.onnx.export(module, inputs, path, input_names=names, output_names=outputs, dynamo=True)
    return path


@pytest.mark.parametrize("form", ["onnx", "torchscript"])
def test_features_come_from_a_users_network(form, tmp_path):
    sample = torch.rand(3, 3, 20, 20)
    if form == "onnx":
        path = onnx_file(Features(), (sample,), tmp_path / "net.onnx", ["x"], ["y"])
    else:
        path = tmp_path / "net.pt"
        torch.jit.trace(Features(), sample).save(str(path))
    found = standard.features(path, standard.Input(20, "signed"), PURE)
    assert found == pytest.approx(np.pad(2 * np.eye(3) - 1, ((0, 0), (0, 2))), abs=1e-5)


@pytest.mark.parametrize("form", ["onnx", "torchscript"])
def test_the_clip_score_of_pictures_with_their_own_texts_is_the_highest(form, tmp_path, tokenizer):
    sample = (torch.rand(3, 3, 20, 20), torch.zeros(3, 1, dtype=torch.int64))
    if form == "onnx":
        names, outputs = ["pixel_values", "input_ids"], ["image_embeds", "text_embeds"]
        path = onnx_file(Towers(), sample, tmp_path / "clip.onnx", names, outputs)
    else:
        path = tmp_path / "clip.pt"
        torch.jit.trace(Towers(), sample).save(str(path))
    how = standard.Input(20, "unit")
    assert standard.clip_score(path, tokenizer, how, PURE, WORDS) == pytest.approx(1, abs=1e-5)
    assert standard.clip_score(path, tokenizer, how, PURE, WORDS[::-1]) == pytest.approx(1 / 3, abs=1e-5)


def test_a_network_with_another_interface_is_refused_by_name(tmp_path, tokenizer):
    path = onnx_file(Features(), (torch.rand(3, 3, 20, 20),), tmp_path / "net.onnx", ["x"], ["y"])
    with pytest.raises(standard.StandardNetworkError, match="net.onnx: has no .*input_ids"):
        standard.clip_score(path, tokenizer, standard.Input(20, "clip"), PURE, WORDS)


def test_settings_are_overridden_by_name():
    defaults = Bundle(TINY).stages["base"].defaults
    changed = run.with_overrides(defaults, "base", ("base.steps=3", "superres.steps=9", "base.guidance=1.5"))
    assert (changed.steps, changed.guidance) == (3, 1.5)
    assert changed.temperature == defaults.temperature
    for wrong in ("base.speed=3", "steps=3", "base.steps"):
        with pytest.raises(ValueError, match=wrong):
            run.with_overrides(defaults, "base", (wrong,))


EXTENT = run.Extent(
    prompt_share=0.03, sweep_share=0.02, reference_scenes=40, reconstructed_scenes=8, likelihood_scenes=4, judge=SMALL,
    base_grid={"steps": (2,)}, superres_grid={"guidance": (0.0,)},
)


def test_a_report_says_what_was_measured_and_shows_it(made_up_icons, tmp_path):
    options = run.Options(DEMO, tmp_path, compare=DEMO, overrides=("base.steps=3", "superres.steps=2"), extent=EXTENT)
    results = run.evaluate(options)
    assert results.scores["wrong"]["background"].right == 0
    assert results.scores["real"]["background"].value == 1
    path = report.write(tmp_path / "out", tmp_path / "figures.json", results, "command", quick=True, minutes=1)
    text = path.read_text()
    assert Bundle(DEMO).digest in text
    assert "**not** the manifest's defaults" in text and "figures mean nothing" in text
    for image in set(text.split("](")[1:]):
        assert (path.parent / image.partition(")")[0]).is_file()
    samples = Image.open(path.parent / "images" / "evaluation" / "samples.webp")
    assert samples.size[0] > 6 * 128
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["compared"]["base"]["psnr"] == pytest.approx(figures["tokenizers"]["base"]["psnr"])
    assert figures["frechet"]["real"] < figures["frechet"]["generated"]
    assert len(figures["prompts"]) == len(results.prompts)


def test_pictures_that_are_not_square_are_refused(made_up_icons, tmp_path):
    with pytest.raises(ValueError, match="the base stage makes 48x32 pictures"):
        run.evaluate(run.Options(TINY, tmp_path, extent=EXTENT))


def test_a_bundle_that_is_not_there_is_one_line(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["evaluation", "--bundle", str(tmp_path / "none"), "--work-dir", str(tmp_path)])
    assert command.main() == 1
    assert capsys.readouterr().err.count("\n") == 1
