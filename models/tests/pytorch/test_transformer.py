"""Both transformers on random weights: what a position may see, and what the loss counts."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from muse_models.attention import attend
from muse_models.export.tiny import BASE, SUPERRES
from muse_models.transformer.loss import masked_loss
from muse_models.transformer.model import build, nearest_cells

CONFIGS = {"base": BASE, "superres": SUPERRES, "superres without merging": replace(SUPERRES, merge=1)}


@pytest.fixture(params=CONFIGS)
def model(request):
    torch.manual_seed(0)
    return build(CONFIGS[request.param]).eval()


def condition(model, text, text_mask):
    config = model.config
    if not config.is_superres:
        return model.condition(text, text_mask)
    low = torch.arange(config.low_grid[0] * config.low_grid[1]) % config.low_vocab_size
    return model.condition(text, text_mask, low.expand(len(text), -1))


def example(model, batch: int = 3):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, model.config.codebook_size, (batch, model.config.positions), generator=generator)
    mask = torch.rand(tokens.shape, generator=generator) < 0.4
    text = torch.randn(batch, 9, model.config.text_width, generator=generator)
    return tokens, mask, condition(model, text, torch.ones(batch, 9, dtype=torch.long))


def test_the_loss_is_the_cross_entropy_at_masked_positions_alone(model):
    tokens, mask, conditioning = example(model)
    result = masked_loss(model, tokens, mask, conditioning, smoothing=0.0)
    logits = model.step(torch.where(mask, model.config.mask_id, tokens), conditioning)
    expected = functional.cross_entropy(logits[mask], tokens[mask])
    torch.testing.assert_close(result.loss, expected)
    assert len(result.cross_entropy) == mask.sum()
    torch.testing.assert_close(result.ratio.unique(), mask.float().mean(dim=1).unique())


def test_label_smoothing_is_pytorch_s(model):
    tokens, mask, conditioning = example(model)
    result = masked_loss(model, tokens, mask, conditioning, smoothing=0.1)
    logits = model.step(torch.where(mask, model.config.mask_id, tokens), conditioning)
    torch.testing.assert_close(result.loss, functional.cross_entropy(logits[mask], tokens[mask], label_smoothing=0.1))


def test_a_masked_token_s_identity_does_not_leak(model):
    tokens, mask, conditioning = example(model)
    other = torch.where(mask, (tokens + 1) % model.config.codebook_size, tokens)
    first = masked_loss(model, tokens, mask, conditioning, 0.0).loss
    again = masked_loss(model, torch.where(mask, tokens, tokens), mask, conditioning, 0.0).loss
    assert torch.equal(first, again)
    visible = [torch.where(mask, model.config.mask_id, grid) for grid in (tokens, other)]
    assert torch.equal(visible[0], visible[1])
    assert torch.equal(model.step(visible[0], conditioning), model.step(visible[1], conditioning))


def test_every_position_sees_every_visible_token(model):
    tokens, _, conditioning = example(model, batch=1)
    states = model.hidden(tokens, conditioning)
    changed = tokens.clone()
    changed[0, 0] = (changed[0, 0] + 1) % model.config.codebook_size
    difference = (model.hidden(changed, conditioning) - states).abs().amax(dim=2)[0]
    assert (difference > 0).all()


def test_padding_of_the_text_changes_nothing(model):
    tokens, _, _ = example(model, batch=1)
    text = torch.randn(1, 9, model.config.text_width)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0, 0, 0, 0]])
    noisy = torch.where(mask[:, :, None] == 1, text, torch.full_like(text, 30.0))
    logits = [model.step(tokens, condition(model, states, mask)) for states in (text, noisy)]
    torch.testing.assert_close(logits[0], logits[1])
    short = model.step(tokens, condition(model, text[:, :3], mask[:, :3]))
    torch.testing.assert_close(logits[0], short, atol=1e-5, rtol=1e-5)


def test_a_text_that_is_masked_as_a_whole_is_defined(model):
    tokens, _, _ = example(model, batch=2)
    text = torch.randn(2, 9, model.config.text_width)
    logits = model.step(tokens, condition(model, text, torch.zeros(2, 9, dtype=torch.long)))
    assert logits.isfinite().all()
    other = model.step(tokens, condition(model, text + 1, torch.zeros(2, 9, dtype=torch.long)))
    torch.testing.assert_close(logits, other)


def test_the_text_and_the_low_tokens_reach_the_logits(model):
    tokens, _, _ = example(model, batch=1)
    mask = torch.ones(1, 9, dtype=torch.long)
    text = torch.randn(1, 9, model.config.text_width)
    logits = model.step(tokens, condition(model, text, mask))
    assert (logits - model.step(tokens, condition(model, torch.randn_like(text), mask))).abs().max() > 1e-3
    if model.config.is_superres:
        low = torch.zeros(1, 24, dtype=torch.long)
        assert (logits - model.step(tokens, model.condition(text, mask, low))).abs().max() > 1e-3


def test_squares_hold_neighbours_and_go_back_to_their_places():
    model = build(SUPERRES)
    grid = torch.arange(96)[None]
    squares = model._squares(grid)
    assert squares[0, 0].tolist() == [0, 1, 12, 13]
    assert squares[0, 7].tolist() == [26, 27, 38, 39]
    states = squares[..., None].expand(-1, -1, -1, SUPERRES.width)
    assert torch.equal(model._from_squares(states)[0, :, 0], grid[0])


def test_a_position_lies_in_the_low_cell_that_covers_it():
    assert nearest_cells((4, 6), (2, 3)).view(4, 6).tolist() == [[0, 0, 1, 1, 2, 2]] * 2 + [[3, 3, 4, 4, 5, 5]] * 2
    assert nearest_cells((4, 6), (4, 6)).tolist() == list(range(24))


def test_attention_is_the_same_with_and_without_gradients():
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 5, 24), torch.randn(2, 7, 24), torch.randn(2, 7, 24)
    mask = torch.tensor([[1] * 7, [1, 1, 0, 0, 1, 0, 0]])
    bias = torch.randn(1, 3, 5, 7)
    for options in ({}, {"key_mask": mask}, {"bias": bias}, {"key_mask": mask, "bias": bias, "scale": 1.0}):
        plain = attend(query, key, value, 3, **options)
        with_gradient = attend(query.clone().requires_grad_(), key, value, 3, **options)
        torch.testing.assert_close(plain, with_gradient)
