"""The tiny bundles through the reference pipeline: golden vectors, batch invariance, faults."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from muse_models.reference import golden, golden_sampler
from muse_models.reference.bundle import Bundle, BundleError
from muse_models.reference.pipeline import Request, generate

ROOT = Path(__file__).resolve().parents[3]
TINY = ROOT / "tests" / "bundles" / "tiny"


@pytest.fixture(scope="module", params=["tiny", "tiny-null"])
def bundle(request) -> Bundle:
    return Bundle(ROOT / "tests" / "bundles" / request.param)


def test_the_golden_vectors_are_what_the_reference_makes(bundle, tmp_path, monkeypatch):
    out = tmp_path / "golden.json"
    monkeypatch.setattr("sys.argv", ["golden", "--bundle", str(bundle.path), "--out", str(out)])
    golden.main()
    committed = json.loads((ROOT / "tests" / "golden" / f"{bundle.path.name}.json").read_text())
    assert json.loads(out.read_text()) == committed


def test_the_golden_vectors_of_the_sampler_are_what_the_reference_makes(tmp_path, monkeypatch):
    out = tmp_path / "sampler.json"
    monkeypatch.setattr("sys.argv", ["golden_sampler", "--out", str(out)])
    golden_sampler.main()
    assert json.loads(out.read_text()) == json.loads((ROOT / "tests" / "golden" / "sampler.json").read_text())


@pytest.mark.parametrize("stage_name", ["base", "superres"])
def test_a_row_has_the_same_logits_alone_and_among_others(stage_name):
    bundle = Bundle(TINY)
    stage = bundle.stages[stage_name]
    random = np.random.default_rng(0)
    rows = []
    for prompt in ("a red circle", "two blue stars on a green background", "zebra", ""):
        low = random.integers(0, 37, 24) if stage_name == "superres" else None
        inputs = stage.conditioning(*bundle.embed(prompt), low)
        tokens = random.integers(0, stage.manifest["codebook_size"], (1, stage.positions))
        inputs["tokens"] = np.where(random.random(tokens.shape) < 0.5, stage.manifest["mask_id"], tokens)
        rows.append(inputs)
    together = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    alone = [stage.masked_logits(row.pop("tokens"), row) for row in rows]
    np.testing.assert_array_equal(stage.masked_logits(together.pop("tokens"), together), np.concatenate(alone))


def test_whole_grids_and_masked_positions_alone_are_the_two_forms_of_a_step():
    whole = Bundle(ROOT / "tests" / "bundles" / "tiny-null").stages["base"]
    masked = Bundle(TINY).stages["base"]
    assert [[given.name for given in stage.step.get_inputs()][:3] for stage in (whole, masked)] == [
        ["tokens", "k0", "v0"], ["tokens", "grids", "positions"],
    ]
    for stage in (whole, masked):
        tokens = np.full((2, stage.positions), stage.manifest["mask_id"])
        tokens[0, 5:] = 1
        text, mask = stage.bundle.embed("a red circle")
        conditioning = stage.conditioning(np.repeat(text, 2, axis=0), np.repeat(mask, 2, axis=0), None)
        logits = stage.masked_logits(tokens, conditioning)
        assert logits.shape == (5 + stage.positions, stage.manifest["logits_size"])
        first = {name: values[:1] for name, values in conditioning.items()}
        np.testing.assert_array_equal(stage.masked_logits(tokens[:1], first), logits[:5])


def test_an_embedding_does_not_depend_on_the_padding():
    bundle = Bundle(TINY)
    ids = bundle.tokenizer.encode("a red circle").ids
    outputs = []
    for bucket in (4, 12, 20):
        padded = np.zeros((1, bucket), np.int64)
        padded[0, : len(ids)] = ids
        mask = (np.arange(bucket) < len(ids)).astype(np.int64)[None]
        (states,) = bundle.text_encoder.run(None, {"input_ids": padded, "attention_mask": mask})
        outputs.append(states[0, : len(ids)])
    for other in outputs[1:]:
        np.testing.assert_allclose(outputs[0], other, atol=1e-5)


def test_a_whole_picture_has_the_manifest_s_size_and_is_clipped():
    bundle = Bundle(TINY)
    image = generate(bundle, Request("a red circle", seed=4))
    assert image.shape == (3, *bundle.manifest["superres"]["image_size"])
    assert image.min() >= 0 and image.max() <= 1


def test_encoding_what_was_decoded_gives_the_tokens_back():
    for stage in Bundle(TINY).stages.values():
        tokens = np.random.default_rng(1).integers(0, stage.manifest["codebook_size"], (2, stage.positions))
        (image,) = stage.decoder.run(None, {"tokens": tokens})
        np.testing.assert_array_equal(stage.encoder.run(None, {"image": image})[0], tokens)


def test_a_prompt_that_is_too_long_is_refused_and_not_cut():
    with pytest.raises(ValueError, match="the model takes 20"):
        Bundle(TINY).embed("red " * 30)


@pytest.fixture
def copy(tmp_path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "bundle"))


def test_a_flipped_byte_is_named_with_its_file(copy):
    path = copy / "base_step.onnx"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match="base_step.onnx: not the file"):
        Bundle(copy)


def test_a_missing_file_is_named(copy):
    (copy / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match="tokenizer.json: missing"):
        Bundle(copy)
