"""Rows decoded together are what the reference makes one at a time; likelihood knows a perfect and a blind model."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from muse_models.evaluation import sampling
from muse_models.evaluation.likelihood import masked_likelihood
from muse_models.reference.bundle import Bundle, Stage
from muse_models.reference.pipeline import Request, decode_stage

BUNDLES = Path(__file__).resolve().parents[3] / "tests" / "bundles"
PROMPTS = ("a red circle", "two blue stars above a green square", "a cat", "a red circle")
SEEDS = (1, 2, 2**64 - 1, 4)


@pytest.fixture(scope="module", params=["tiny", "tiny-null"])
def bundle(request) -> Bundle:
    return Bundle(BUNDLES / request.param)


@pytest.mark.parametrize(
    "changes",
    [{}, {"guidance_schedule": "constant"}, {"guidance": 0.0}, {"scheduler": "halton", "mask_schedule": "linear"},
     {"temperature": 0.0}, {"top_k": 3, "temperature": 1.3}, {"steps": 1}, {"steps": 100, "choice_temperature": 0.0}],
    ids=str,
)
def test_every_row_is_what_the_reference_makes_alone(bundle, changes, monkeypatch):
    monkeypatch.setattr(sampling, "BATCH", 3)
    settings = {
        name: replace(stage.defaults, **{"steps": 5, **changes}) for name, stage in bundle.stages.items()
    }
    made = sampling.generate(sampling.Generator(bundle), PROMPTS, SEEDS, settings)
    for row, (prompt, seed) in enumerate(zip(PROMPTS, SEEDS, strict=True)):
        low = None
        for name in bundle.stages:
            low = decode_stage(bundle, name, Request(prompt, seed), settings[name], low).tokens
            assert (made[name][row] == low).all(), f"{name}, row {row}"


def test_pictures_survive_the_way_through_encoder_and_decoder(bundle):
    stage = list(bundle.stages.values())[-1]
    height, width = stage.manifest["image_size"]
    pictures = np.random.default_rng(1).integers(0, 256, (sampling.BATCH + 1, height, width, 3)).astype(np.uint8)
    tokens = sampling.encode_pictures(stage, pictures)
    assert tokens.shape == (sampling.BATCH + 1, stage.positions)
    assert sampling.decode_pictures(stage, tokens).shape == pictures.shape
    assert (sampling.encode_pictures(stage, pictures[-1:]) == tokens[-1:]).all()


class _Stage:
    """A stage whose step graph knows the answer, or nothing."""

    name = "base"
    manifest = {"mask_id": 8, "codebook_size": 8, "conditioning": ["answer"]}
    masked_logits = Stage.masked_logits
    _step_inputs = frozenset({"tokens", "answer"})

    def __init__(self, tokens: np.ndarray, certainty: float) -> None:
        self._tokens = tokens
        self._logits = certainty * np.eye(9, dtype=np.float32)[tokens]
        self.condition = self.step = self

    def get_outputs(self):
        return []

    def run(self, wanted, inputs):
        if wanted == ["answer"]:
            return [np.zeros((len(inputs["text"]), 1), np.float32)]
        assert ((inputs["tokens"] == 8) | (inputs["tokens"] == self._tokens)).all(), "a token was changed"
        return [self._logits]


@pytest.mark.parametrize(("certainty", "cross_entropy"), [(50.0, 0.0), (0.0, np.log(8))])
def test_likelihood_of_a_model_that_knows_all_and_of_one_that_knows_nothing(certainty, cross_entropy):
    tokens = np.random.default_rng(3).integers(0, 8, (4, 20))
    stage = _Stage(tokens, certainty)
    generator = sampling.Generator(Bundle(BUNDLES / "tiny"))
    found = masked_likelihood(generator, stage, PROMPTS, tokens, None, (0.05, 0.5, 1.0))
    assert [point.cross_entropy for point in found] == pytest.approx([cross_entropy] * 3, abs=1e-5)
    if certainty:
        assert [point.accuracy for point in found] == [1, 1, 1]
    else:
        # The likeliest of equals is the first.
        assert found[-1].accuracy == (tokens == 0).mean()
