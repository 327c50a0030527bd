"""The larger decoder's fine-tuning on a few scenes: grown without a change, better afterwards, resumable."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image

from muse_models.data.colours import COLOURS
from muse_models.data.scene import Item, Scene
from muse_models.tokenizer import finetune, train
from muse_models.tokenizer.discriminator import PatchDiscriminator, combined_gradient, decoder_loss, discriminator_loss
from muse_models.tokenizer.finetune import TokenizedPictures
from muse_models.tokenizer.grow import grown
from muse_models.tokenizer.model import Decoder, ImageTokenizer
from muse_models.tokenizer.perception import Perception, perceptual_distance
from muse_models.training import checkpoint

MODEL = {
    "image_side": 64, "levels": 4, "dimensions": 5, "channels": [8, 16], "encoder_blocks": [1, 1],
    "decoder_blocks": [1, 1],
}


def scenes() -> list[Scene]:
    colours = list(COLOURS)[:8]
    return [Scene((Item("square", colour),), other) for colour in colours for other in colours if colour != other]


@pytest.fixture
def work_dir(tmp_path, monkeypatch):
    """Pictures of squares, with the tokens of a tokenizer that was never trained, each twice as if worded twice."""
    torch.manual_seed(0)
    tokenizer = ImageTokenizer.from_config({"model": MODEL})
    for block in tokenizer.decoder.modules():
        if hasattr(block, "second"):
            torch.nn.init.normal_(block.second.weight, std=0.05)
    checkpoint.save(
        tmp_path / "tokenizer_base" / "checkpoint.pt", {"model": tokenizer.state_dict(), "config": {"model": MODEL}}
    )
    for folder, tokens in (("scenes", "tokens"), ("scenes-evaluation", "tokens/evaluation")):
        (tmp_path / folder).mkdir()
        (tmp_path / tokens).mkdir()
        images = np.zeros((len(scenes()), 64, 64, 3), np.uint8)
        for image, scene in zip(images, scenes(), strict=True):
            image[:] = COLOURS[scene.background]
            image[16:48, 16:48] = COLOURS[scene.items[0].colour]
        np.save(tmp_path / folder / "images.npy", images)
        (tmp_path / folder / "scenes.jsonl").write_text("".join(json.dumps(asdict(scene)) + "\n" for scene in scenes()))
        with torch.no_grad():
            encoded = tokenizer.encode(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255).numpy()
        np.save(tmp_path / tokens / "base.npy", encoded.astype(np.int16).repeat(2, 0))
    monkeypatch.setattr(finetune, "load_perception", lambda _: Perception(perception_weights()))
    return tmp_path


def perception_weights() -> dict[str, torch.Tensor]:
    """Random weights under the package's names."""
    generator = torch.Generator().manual_seed(3)
    weights = {}

    def add(conv, norm, *shape):
        weights[f"{conv}.weight"] = torch.randn(shape, generator=generator) / (shape[1] * shape[2] * shape[3]) ** 0.5
        for name in ("running_mean", "running_var", "weight", "bias"):
            weights[f"{norm}.{name}"] = torch.rand(shape[0], generator=generator) + 0.5

    add("_conv_stem", "_bn0", 32, 3, 3, 3)
    shapes = ((32, 32, 16, 3), (16, 96, 24, 3), (24, 144, 24, 3), (24, 144, 40, 5), (40, 240, 40, 5))
    for index, (before, wide, after, side) in enumerate(shapes):
        at = f"_blocks.{index}"
        if before != wide:
            add(f"{at}._expand_conv", f"{at}._bn0", wide, before, 1, 1)
        add(f"{at}._depthwise_conv", f"{at}._bn1", wide, 1, side, side)
        add(f"{at}._project_conv", f"{at}._bn2", after, wide, 1, 1)
    return weights


def lively(decoder: Decoder) -> Decoder:
    """A decoder whose blocks all do something, unlike fresh ones."""
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return decoder


@pytest.mark.parametrize(
    ("channels", "blocks"), [((8, 16), (1, 2)), ((8, 16), (3, 4)), ((12, 16), (1, 2)), ((13, 24), (2, 3))]
)
def test_a_grown_decoder_computes_what_the_first_did(channels, blocks):
    torch.manual_seed(0)
    first = lively(Decoder((8, 16), (1, 2), 5))
    values = torch.randn(2, 5, 4, 4)
    second = grown(first, channels, blocks, 5)
    torch.testing.assert_close(second(values), first(values), atol=1e-4, rtol=1e-4)


def test_every_weight_of_a_grown_decoder_learns_after_a_step():
    torch.manual_seed(0)
    second = grown(lively(Decoder((8, 16), (1, 1), 5)), (12, 24), (2, 2), 5)
    optimiser = torch.optim.SGD(second.parameters(), lr=1e-2)
    # What is written as zero learns in the first step; in the second also what stands before it.
    for _ in range(2):
        optimiser.zero_grad()
        (second(torch.randn(4, 5, 4, 4)) - torch.rand(4, 3, 32, 32)).square().mean().backward()
        optimiser.step()
    still = [name for name, value in second.named_parameters() if not (value.grad.flatten(1 if value.ndim > 1 else 0)
             .abs().sum(-1) > 0).all()]
    assert not still


def test_a_decoder_does_not_shrink():
    with pytest.raises(ValueError, match="hold no 2 of 16"):
        grown(Decoder((8, 16), (1, 2), 5), (8, 16), (1, 1), 5)


def test_windows_are_cut_alike_from_pictures_and_tokens(work_dir):
    tokens = np.tile(np.arange(64, dtype=np.int16), (2 * len(scenes()), 1))
    np.save(work_dir / "tokens" / "base.npy", tokens)
    images = np.zeros((len(scenes()), 64, 64, 3), np.uint8)
    images[..., 0] = np.arange(64).reshape(8, 8).repeat(8, 0).repeat(8, 1)
    np.save(work_dir / "scenes" / "images.npy", images)
    pictures = TokenizedPictures(work_dir / "scenes" / "images.npy", work_dir / "tokens" / "base.npy", 64, 0)
    found, cells = pictures.batch(6, window=3)
    assert found.shape == (6, 3, 24, 24) and cells.shape == (6, 3, 3)
    assert torch.equal((found[:, 0, ::8, ::8] * 255).round().long(), cells)
    assert len({tuple(row.flatten().tolist()) for row in cells}) > 1
    assert pictures.batch(2, window=None)[0].shape == (2, 3, 64, 64)


def test_the_discriminator_learns_what_is_true_and_the_decoder_s_loss_points_there():
    torch.manual_seed(0)
    judge = PatchDiscriminator(8)
    optimiser = torch.optim.Adam(judge.parameters(), lr=1e-2)
    true, decoded = torch.rand(8, 3, 32, 32).round(), torch.full((8, 3, 32, 32), 0.5)
    for _ in range(60):
        optimiser.zero_grad()
        loss = discriminator_loss(judge(true), judge(decoded))
        loss.backward()
        optimiser.step()
    assert loss < 0.5
    assert decoder_loss(judge(decoded)) > decoder_loss(judge(true))


def test_the_adversarial_gradient_is_measured_by_the_other():
    output = torch.rand(2, 3, 4, 4, requires_grad=True)
    reconstruction, adversarial = (output - 1).square().mean(), 1000 * output.sum()
    (alone,) = torch.autograd.grad(reconstruction, output, retain_graph=True)
    both = combined_gradient(output, reconstruction, adversarial, 0.25)
    torch.testing.assert_close((both - alone).norm(), 0.25 * alone.norm())


def test_the_perceptual_distance_is_of_direction_and_zero_for_the_same():
    features = [torch.randn(2, 5, 4, 4), torch.randn(2, 7, 2, 2)]
    assert perceptual_distance(features, [3 * part for part in features]) < 1e-9
    assert perceptual_distance(features, [-part for part in features]) == pytest.approx(4)


def test_the_network_pads_and_folds_as_it_was_trained():
    weights = perception_weights()
    seen = Perception(weights)
    image = torch.rand(1, 3, 32, 32)
    assert [tuple(part.shape) for part in seen.features(image)] == [(1, 16, 16, 16), (1, 24, 8, 8), (1, 40, 4, 4)]
    # A stride of two over an even side pads right and below alone; then the batch norm.
    plain = torch.nn.functional.conv2d(
        torch.nn.functional.pad(image, (0, 1, 0, 1)), weights["_conv_stem.weight"], stride=2
    )
    norm = [weights[f"_bn0.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
    expected = torch.nn.functional.batch_norm(plain, *norm, eps=1e-3)
    torch.testing.assert_close(seen.stem(image), expected, atol=1e-5, rtol=1e-5)


def test_a_fine_tuned_decoder_is_better_and_goes_on_where_it_stopped(work_dir, capsys, counted_budget):
    config = {"name": "decoder", "stage": "base", "model": {"decoder_channels": [12, 16], "decoder_blocks": [2, 1]},
              "training": {
                  "seed": 1, "batch": 8, "window": 4, "window_share": 0.5, "perceptual_weight": 0.05,
                  "adversarial_weight": 0.1, "discriminator_from": 0.2, "adversarial_from": 0.5,
                  "discriminator_channels": 4, "discriminator_rate": 1.0, "learning_rate": 5e-3, "warmup_minutes": 0,
                  "average_decay": 0.8, "held_out": 40,
              }}
    finetune.train(config, work_dir, minutes=20)
    finetune.train(config, work_dir, minutes=60)
    saved = checkpoint.load(work_dir / "decoder" / "checkpoint.pt")
    assert saved["step"] == 60
    *_, line = [line for line in capsys.readouterr().out.splitlines() if "held-out/psnr_tuned" in line]
    words = line.split()
    first, tuned = (float(words[words.index(f"held-out/psnr_{name}") + 1]) for name in ("first", "tuned"))
    assert tuned > first + 2
    # A whole tokenizer, whose encoder is the first one's.
    tokenizer = ImageTokenizer.from_config(saved["config"])
    tokenizer.load_state_dict(saved["model"])
    before = checkpoint.load(work_dir / "tokenizer_base" / "checkpoint.pt")["model"]
    for name, value in before.items():
        if name.startswith("encoder."):
            assert torch.equal(value, saved["model"][name])
    assert tokenizer.decoder.layers[0].weight.shape[0] == 16 and len(tokenizer.decoder.layers) == 10
    assert Image.open(work_dir / "decoder" / "reconstructions.png").size == (2 * 12 * 64, 2 * 3 * 64)


def test_a_tokenizer_learns_and_goes_on_where_it_stopped(work_dir, capsys, counted_budget):
    config = {"name": "first", "model": MODEL, "training": {
        "seed": 1, "batch": 4, "crop": 32, "crop_share": 0.5, "shift_share": 0.1, "spread_weight": 0.02,
        "learning_rate": 5e-3, "warmup_minutes": 0, "average_decay": 0.8,
    }}
    train.train(config, work_dir, minutes=10)
    train.train(config, work_dir, minutes=60)
    saved = checkpoint.load(work_dir / "first" / "checkpoint.pt")
    # Four windows for one picture in the first half of each run's minutes; the clock ticks before a step.
    assert saved["step"] == 60 and saved["seen"] == (4 * 16 + 6 * 4) + (19 * 16 + 31 * 4)
    quality = [
        float(line.split("held-out/psnr")[1].split()[0])
        for line in capsys.readouterr().out.splitlines() if "held-out/psnr" in line
    ]
    assert len(quality) == 2 and quality[1] > quality[0] + 2
    ImageTokenizer.from_config(saved["config"]).load_state_dict(saved["model"])
