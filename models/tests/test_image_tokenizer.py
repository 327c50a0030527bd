"""The quantiser and the image tokenizers' shapes, on random weights."""

import pytest

torch = pytest.importorskip("torch")

from muse_models.tokenizer.fsq import FiniteScalarQuantiser  # noqa: E402
from muse_models.tokenizer.losses import psnr, reconstruction_loss  # noqa: E402
from muse_models.tokenizer.model import ImageTokenizer  # noqa: E402


def small() -> ImageTokenizer:
    torch.manual_seed(0)
    return ImageTokenizer(32, 4, 5, (8, 16), (1, 1), (1, 1)).eval()


def test_every_token_survives_decoding_and_encoding():
    quantiser = FiniteScalarQuantiser(4, 5)
    tokens = torch.arange(1024).reshape(16, 64)
    values = quantiser.values(tokens, 8, 8)
    assert values.min() == -1 and values.max() == 1
    features = torch.logit(((values + 1) / 2).clamp(0.01, 0.99))
    assert torch.equal(quantiser.tokens(features), tokens)


def test_quantised_features_are_the_values_of_their_tokens():
    quantiser = FiniteScalarQuantiser(4, 5)
    features = torch.randn(3, 5, 4, 4)
    expected = quantiser.values(quantiser.tokens(features), 4, 4)
    assert torch.allclose(quantiser.quantise(features), expected, atol=1e-5)


def test_gradients_pass_the_rounding():
    features = torch.zeros(1, 5, 2, 2, requires_grad=True)
    FiniteScalarQuantiser(4, 5).quantise(features).sum().backward()
    assert (features.grad > 0).all()


def test_pictures_become_a_grid_of_tokens_and_back():
    model = small()
    image = torch.rand(2, 3, 32, 32)
    tokens = model.encode(image)
    assert tokens.shape == (2, 16) and tokens.dtype == torch.int64
    decoded = model.decode(tokens)
    assert decoded.shape == image.shape
    assert decoded.min() >= 0 and decoded.max() <= 1


def test_a_picture_has_the_same_tokens_alone_and_in_a_batch():
    model = small()
    images = torch.rand(4, 3, 32, 32)
    assert torch.equal(model.encode(images)[1:2], model.encode(images[1:2]))


def test_a_perfect_reconstruction_costs_nothing():
    image = torch.rand(2, 3, 32, 32)
    assert reconstruction_loss(image, image) == 0
    assert psnr(image, image) > 79
    assert abs(psnr(image * 0, image * 0 + 0.1).item() - 20) < 1e-3
