"""Bundles of foreign parts, from the command line to a picture, on the genuine T5 tokenizer."""

import importlib.util
import json
import tomllib
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tokenizers import Tokenizer

from muse_models.export.__main__ import main
from muse_models.export.storage import SMALLEST
from muse_models.foreign.sentencepiece import load_sentencepiece
from muse_models.foreign.weights import ForeignCheckpointError
from muse_models.reference.bundle import Bundle
from muse_models.reference.pipeline import Request, generate
from muse_models.transformer.config import TransformerConfig
from muse_models.transformer.model import build

transformers = pytest.importorskip("transformers")
muse_maskgit_pytorch = pytest.importorskip("muse_maskgit_pytorch")

CODES = 64
T5_WIDTH = 24
MANIFEST = """
[model]
name = "foreign"
version = "1"
license = "MIT"
description = "Random weights"

[text]
max_length = 24
length_buckets = [8, 24]

[weights]
text = "f16"
transformers = "int8"
tokenizers = "f32"
"""
STAGE = """
[{stage}.defaults]
steps = 3
guidance = 2.0
guidance_schedule = "linear"
temperature = 1.0
top_k = 0
choice_temperature = 4.5
mask_schedule = "cosine"
scheduler = "confidence"
"""


@pytest.fixture(scope="session")
def genuine():
    """The folder with the genuine T5 tokenizer, in both of its forms."""
    found = importlib.util.find_spec("diffsynth")
    if found is None:
        pytest.skip("the package diffsynth, which has T5's tokenizer in it, is not installed")
    folder = Path(found.submodule_search_locations[0]) / "tokenizer_configs/stable_diffusion_3/tokenizer_3"
    assert (folder / "tokenizer.json").is_file() and (folder / "spiece.model").is_file()
    return folder


@pytest.fixture(scope="session")
def t5_folder(tmp_path_factory, genuine):
    """A small random T5 v1.1 with the genuine vocabulary, as `transformers` saves it, and T5's own tokenizer file."""
    folder = tmp_path_factory.mktemp("t5")
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=32128, d_model=T5_WIDTH, d_kv=6, d_ff=40, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    transformers.T5EncoderModel(config).save_pretrained(folder)
    (folder / "spiece.model").write_bytes((genuine / "spiece.model").read_bytes())
    return folder


@pytest.fixture(scope="session")
def lucidrains_file(tmp_path_factory):
    """A whole random `Muse` as its package saves it: both transformers, and the tokenizers of both stages."""
    from muse_maskgit_pytorch import t5

    path = tmp_path_factory.mktemp("lucidrains") / "muse.pt"
    torch.manual_seed(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(t5.T5_CONFIGS, "small", {"config": transformers.T5Config(d_model=T5_WIDTH)})
        sizes = {"dim": 32, "depth": 2, "dim_head": 16, "heads": 2, "t5_name": "small", "flash": False}
        tokenizers = [
            muse_maskgit_pytorch.VQGanVAE(dim=16, layers=layers, codebook_size=CODES, use_vgg_and_gan=False)
            for layers in (3, 2)
        ]
        base = muse_maskgit_pytorch.MaskGit(
            vae=tokenizers[0], image_size=32,
            transformer=muse_maskgit_pytorch.MaskGitTransformer(num_tokens=CODES, seq_len=16, **sizes),
        )
        superres = muse_maskgit_pytorch.MaskGit(
            vae=tokenizers[1], cond_vae=tokenizers[0], cond_image_size=32, image_size=32,
            transformer=muse_maskgit_pytorch.MaskGitTransformer(num_tokens=CODES, seq_len=64, **sizes),
        )
        muse = muse_maskgit_pytorch.Muse(base=base, superres=superres)
    torch.save(muse.state_dict(), path)
    return path


def configuration(folder: Path, *stages: str) -> Path:
    path = folder / "bundle-config.toml"
    path.write_text(MANIFEST + "".join(STAGE.format(stage=stage) for stage in stages))
    return path


def export(*arguments) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="session")
def variants(tmp_path_factory, t5_folder, lucidrains_file):
    """Bundles of T5 and of lucidrains' models in all three precisions, with large weights in files of their own."""
    folder = tmp_path_factory.mktemp("both")
    config = configuration(folder, "base", "superres")
    assert 0 == export(
        "--variants", folder / "variants", "--config", config, "--text", t5_folder, "--base", lucidrains_file,
        "--superres", lucidrains_file, "--external-above", 100_000,
    )
    return folder / "variants"


@pytest.fixture(scope="session")
def both_stages(variants):
    return variants / "f16"


def test_a_bundle_of_foreign_parts_makes_a_picture(both_stages):
    bundle = Bundle(both_stages)
    assert bundle.manifest["text"]["vocab_size"] == 32100
    assert bundle.manifest["base"]["unconditional"] == bundle.manifest["superres"]["unconditional"] == "masked_text"
    picture = generate(bundle, Request("a red circle, naïve and ﬁne", seed=1))
    assert picture.shape == (3, 32, 32) and picture.std() > 0


def test_large_weights_lie_beside_their_graphs_and_are_listed(both_stages):
    listed = Bundle(both_stages).manifest["files"]
    beside = sorted(name for name in listed if name.endswith(".data"))
    assert "text_encoder.onnx.data" in beside and "base_step.onnx" in listed, beside
    for name in beside:
        model = onnx.load(both_stages / name.removesuffix(".data"), load_external_data=False)
        outside = [tensor for tensor in model.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
        assert outside
        for tensor in model.graph.initializer:
            places = {entry.key: entry.value for entry in tensor.external_data}
            assert (tensor in outside) == (np.prod(tensor.dims) >= SMALLEST), tensor.name
            if tensor in outside:
                assert places["location"] == name and int(places["offset"]) % 4096 == 0
    small = {name.removesuffix(".data") for name in beside}
    assert any(name.endswith(".onnx") and name not in small for name in listed), "some graphs are below the limit"


def test_a_foreign_text_encoder_goes_with_this_project_s_transformers(tmp_path, t5_folder, lucidrains_file):
    shape = TransformerConfig(
        grid=(4, 4), codebook_size=CODES, vocab_size=CODES + 1, logits_size=CODES, mask_id=CODES, text_width=T5_WIDTH,
        width=32, layers=1, heads=2, mlp_width=64,
    )
    own = tmp_path / "own.pt"
    torch.save({"model": build(shape).state_dict(), "config": {"model": shape.to_dict()}}, own)
    config = configuration(tmp_path, "base")
    arguments = ["--out", tmp_path / "bundle", "--config", config, "--text", t5_folder, "--base", own]
    arguments += ["--base-tokenizer", lucidrains_file]
    config.write_text(config.read_text().replace("[base.defaults]", '[base.lucidrains]\nvae_prefix = "base_maskgit.vae."\n[base.defaults]'))
    assert export(*arguments) == 0
    bundle = Bundle(tmp_path / "bundle")
    assert list(bundle.stages) == ["base"] and bundle.manifest["base"]["unconditional"] == "empty_text"
    assert generate(bundle, Request("a dog", seed=1)).shape == (3, 32, 32)


def failure(capsys, *arguments) -> str:
    capsys.readouterr()
    assert export(*arguments) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("export: "), lines
    return lines[0]


def test_parts_that_do_not_fit_are_refused_in_one_line(tmp_path, capsys, t5_folder, lucidrains_file):
    config = configuration(tmp_path, "base", "superres")
    parts = ["--out", tmp_path / "bundle", "--config", config, "--text", t5_folder]
    weights = torch.load(lucidrains_file)
    stages = ["--base", lucidrains_file, "--superres", lucidrains_file]

    assert "none.pt is not there" in failure(capsys, *parts, "--base", tmp_path / "none.pt")
    # Another text encoder than the transformer was trained with.
    other = tmp_path / "t5"
    transformers.T5EncoderModel(
        transformers.T5Config(vocab_size=32128, d_model=32, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    ).save_pretrained(other)
    message = failure(capsys, *parts[:4], "--text", other, "--tokenizer", t5_folder / "spiece.model", *stages)
    assert "text of 24 numbers a token, and the text encoder writes 32" in message
    # Super-resolution that was trained on the tokens of another tokenizer.
    foreign = tmp_path / "foreign.pt"
    name = "superres_maskgit.cond_vae.enc_dec.encoders.0.weight"
    torch.save(weights | {name: weights[name] + 1}, foreign)
    message = failure(capsys, *parts, "--base", lucidrains_file, "--superres", foreign)
    assert "tokens of another tokenizer" in message
    # A form of the unconditional input that the model does not know.
    config.write_text(config.read_text().replace("[base.defaults]", '[base]\nunconditional = "empty_text"\n\n[base.defaults]'))
    assert 'trained with "masked_text"' in failure(capsys, *parts, *stages)
    assert not (tmp_path / "bundle").exists()


def test_the_folder_of_a_refused_export_is_left_alone(tmp_path, capsys, t5_folder):
    kept = tmp_path / "bundle" / "kept"
    kept.parent.mkdir()
    kept.write_text("here")
    config = configuration(tmp_path, "base")
    failure(capsys, "--out", kept.parent, "--config", config, "--text", t5_folder, "--base", tmp_path / "none.pt")
    assert kept.read_text() == "here"


PROMPTS = (
    "", "a red circle", "  Two   RED apples ", "naïve café ﬁsh", "日本 emoji 🦊!", "don't (stop) — 3.5 km…",
    "<extra_id_0> and </s>", "x" * 40, "tab\tand\nline", "ＦＵＬＬ width", "½ ①",
)


def test_the_sentencepiece_file_gives_the_ids_of_the_genuine_tokenizer(genuine):
    expected = Tokenizer.from_file(str(genuine / "tokenizer.json"))
    found = load_sentencepiece(genuine / "spiece.model")
    assert found.get_vocab() == expected.get_vocab()
    for prompt in PROMPTS:
        assert found.encode(prompt).ids == expected.encode(prompt).ids, prompt


def test_the_genuine_tokenizer_goes_into_a_bundle_as_it_is(both_stages, genuine):
    expected = Tokenizer.from_file(str(genuine / "tokenizer.json"))
    expected.no_truncation()
    found = Bundle(both_stages).tokenizer
    for prompt in PROMPTS:
        assert found.encode(prompt).ids == expected.encode(prompt).ids, prompt


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x0b"])
def test_what_is_no_sentencepiece_model_is_refused(tmp_path, content):
    path = tmp_path / "spiece.model"
    path.write_bytes(content)
    with pytest.raises(ForeignCheckpointError, match="spiece.model is"):
        load_sentencepiece(path)


def test_variants_are_written_with_a_table(variants):
    found = json.loads((variants / "variants.json").read_text())
    assert list(found) == ["f32", "f16", "int8"]
    assert len((variants / "variants.md").read_text().splitlines()) > 15
    sizes = [sum(graph["size"] for graph in found[precision]["graphs"]) for precision in found]
    assert sizes[0] > 1.5 * sizes[1] > 2 * sizes[2], sizes
    for precision, share in (("f32", 1e-5), ("f16", 5e-3), ("int8", 0.2)):
        manifest = tomllib.loads((variants / precision / "bundle.toml").read_text())
        assert manifest["model"]["name"] == "foreign"
        for graph in found[precision]["graphs"]:
            assert graph["precision"] == precision
            # External weights are compared too: were they read from another place, nothing would agree.
            assert graph["stored"]["root_mean_square"] <= share * max(graph["stored"]["spread"], 1e-9), graph
    assert found["f32"]["sampling"]["base_tokens"] == 1
