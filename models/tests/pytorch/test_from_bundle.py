"""A bundle turned back into checkpoints: the same weights in every form of storage, or a refusal."""

import shutil

import pytest
import torch

from muse_models.export.bundle import BundleParts, StagePart, TextPart, write_bundle
from muse_models.export.tiny import BASE_DEFAULTS, SUPERRES_DEFAULTS, tiny_tokenizer
from muse_models.text.encoder import T5Encoder
from muse_models.text.pretrain import load_encoder
from muse_models.tokenizer.grow import grown
from muse_models.tokenizer.model import ImageTokenizer
from muse_models.training import checkpoint
from muse_models.training.config import load_config
from muse_models.training.from_bundle import BundleMismatch, restore_bundle
from muse_models.transformer.config import TransformerConfig
from muse_models.transformer.model import build

TEXT = """name = "text"
[model]
vocabulary = 0
width = 48
layers = 2
heads = 2
head_width = 20
hidden = 64
"""
STAGE = """name = "{name}"
[model]
grid = [{side}, {side}]
codebook_size = 32
vocab_size = 33
logits_size = 32
mask_id = 32
text_width = 48
width = 40
layers = 2
heads = 2
mlp_width = 56
{more}
"""
SUPERRES = "merge = 2\nlow_grid = [4, 4]\nlow_vocab_size = 32\nlow_layers = 1"
TOKENIZER = """name = "tokenizer_{name}"
[model]
image_side = {side}
levels = 2
dimensions = 5
channels = [24, 36]
encoder_blocks = [1, 2]
decoder_blocks = [2, 1]
"""


def lively(module):
    """Norms that are not all ones and blocks that do something, so that nothing is restored by chance."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for value in module.parameters():
            noise = torch.randn(value.shape, generator=generator)
            value.add_(noise, alpha=0.2 if value.ndim == 1 else 0.05)
    return module.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def config_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    (folder / "text.toml").write_text(TEXT)
    for name, side, more in (("base", 4, ""), ("superres", 8, SUPERRES)):
        (folder / f"{name}.toml").write_text(STAGE.format(name=name, side=side, more=more))
        (folder / f"tokenizer_{name}.toml").write_text(TOKENIZER.format(name=name, side=8 * side))
    return folder


@pytest.fixture(scope="module")
def models(config_dir):
    """What the bundles are made of; super-resolution with a decoder that was grown."""
    torch.manual_seed(0)
    text = load_config(config_dir / "text.toml")
    text["model"]["vocabulary"] = tiny_tokenizer().get_vocab_size()
    found = {"text": lively(T5Encoder.from_config(text))}
    for name in ("base", "superres"):
        config = TransformerConfig.from_dict(load_config(config_dir / f"{name}.toml")["model"])
        found[name] = lively(build(config))
        tokenizer = ImageTokenizer.from_config(load_config(config_dir / f"tokenizer_{name}.toml"))
        if name == "superres":
            tokenizer.decoder = grown(tokenizer.decoder, (32, 40), (3, 2), 5)
        found[f"tokenizer_{name}"] = lively(tokenizer)
    return found


PRECISIONS = {
    "exact": {"text": "f32", "base": "f32", "superres": "f32", "tokenizer_base": "f32", "tokenizer_superres": "f32"},
    "as shipped": {
        "text": "f16", "base": "int8", "superres": "int8", "tokenizer_base": "f16", "tokenizer_superres": "int8",
    },
}
MOST = {"f32": 1e-6, "f16": 2e-3, "int8": 2e-2}
"""Most that a weight may be off, of the largest of its tensor."""


@pytest.fixture(scope="module")
def bundle(models, tmp_path_factory):
    """Makes a bundle stored in one of `PRECISIONS`, once; tracing is what takes time here."""
    made = {}

    def make(kind):
        stored = PRECISIONS[kind]

        def stage(name, defaults):
            model, tokenizer = models[name], models[f"tokenizer_{name}"]
            images = torch.rand(2, 3, tokenizer.image_side, tokenizer.image_side)
            precisions = {"precision": stored[name], "tokenizer_precision": stored[f"tokenizer_{name}"]}
            return StagePart(model, tokenizer, images, defaults, **precisions)

        folder = tmp_path_factory.mktemp("bundles") / "small"
        write_bundle(BundleParts(
            name="small", version="1", license="Apache-2.0", description="Random weights",
            text=TextPart(models["text"], tiny_tokenizer(), 16, [8, 16], stored["text"]),
            base=stage("base", BASE_DEFAULTS), superres=stage("superres", SUPERRES_DEFAULTS),
        ), folder)
        return folder

    def find(kind):
        if kind not in made:
            made[kind] = make(kind)
        return made[kind]

    return find


@pytest.fixture(scope="module", params=PRECISIONS)
def restored(request, bundle, config_dir, tmp_path_factory):
    """How a bundle is stored, and the work directory that it was restored into."""
    work_dir = tmp_path_factory.mktemp("work")
    restore_bundle(bundle(request.param), work_dir, config_dir)
    return request.param, work_dir


def test_every_weight_comes_back(bundle, restored, models):
    kind, restored = restored
    stored, folder = PRECISIONS[kind], bundle(kind)
    for name, model in models.items():
        most = MOST[stored[name]]
        saved = checkpoint.load(restored / name / "checkpoint.pt")["model"]
        for key, value in model.state_dict().items():
            if key.endswith((".rows", ".columns")) or key == "positions.table.weight":
                continue
            assert (saved[key] - value).abs().max() <= most * value.abs().max(), (name, key)
        if name in ("base", "superres"):
            for at in ("positions", "low_positions") if name == "superres" else ("positions",):
                sums = [state[f"{at}.rows"] + state[f"{at}.columns"] for state in (saved, model.state_dict())]
                torch.testing.assert_close(*sums, atol=most, rtol=0)
    encoder = load_encoder(restored)
    bias = [part.positions(16, torch.device("cpu")) for part in (encoder, models["text"])]
    torch.testing.assert_close(*bias, atol=4 * MOST[stored["text"]], rtol=0)
    assert (restored / "text" / "tokenizer.json").read_text() == (folder / "tokenizer.json").read_text()


def test_what_is_restored_is_ready_to_be_trained_on(restored):
    _, restored = restored
    saved = checkpoint.load(restored / "superres" / "checkpoint.pt")
    assert saved["spent_seconds"] == saved["step"] == 0 and "optimiser" not in saved
    build(TransformerConfig.from_dict(saved["config"]["model"])).load_state_dict(saved["live"])
    tokenizer = checkpoint.load(restored / "tokenizer_superres" / "checkpoint.pt")
    ImageTokenizer.from_config(tokenizer["config"]).load_state_dict(tokenizer["live"])
    assert tokenizer["config"]["model"]["decoder_channels"] == [32, 40]
    assert "live" not in checkpoint.load(restored / "text" / "checkpoint.pt")


def test_nothing_is_written_over(bundle, restored, config_dir):
    kind, restored = restored
    before = (restored / "base" / "checkpoint.pt").read_bytes()
    with pytest.raises(FileExistsError, match="is there already"):
        restore_bundle(bundle(kind), restored, config_dir)
    assert (restored / "base" / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize(("kind", "file", "old", "new", "message"), [
    ("exact", "text.toml", "layers = 2", "layers = 1", "more than the configuration describes"),
    ("exact", "text.toml", "layers = 2", "layers = 3", "lacks"),
    ("as shipped", "base.toml", "mlp_width = 56", "mlp_width = 64", "has shape"),
    ("exact", "superres.toml", "logits_size = 32", "logits_size = 40", "superres: logits_size is 32 in the bundle"),
    ("as shipped", "tokenizer_base.toml", "encoder_blocks = [1, 2]", "encoder_blocks = [1, 1]", "base_encoder.onnx"),
])
def test_a_configuration_of_something_else_is_refused(bundle, config_dir, tmp_path, kind, file, old, new, message):
    configs = shutil.copytree(config_dir, tmp_path / "configs")
    (configs / file).write_text((configs / file).read_text().replace(old, new))
    with pytest.raises(BundleMismatch, match=message):
        restore_bundle(bundle(kind), tmp_path / "work", configs)
    assert not (tmp_path / "work").exists()
