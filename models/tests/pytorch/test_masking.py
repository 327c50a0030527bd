"""What is masked, dropped and corrupted in training, and how often."""

import math

import pytest
import torch

from muse_models.transformer import masking


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_ratios_have_the_cosine_density():
    ratios = masking.cosine_ratios(200_000, generator())
    assert ratios.mean().item() == pytest.approx(2 / math.pi, abs=0.005)
    # P(r < x) = 2/pi * asin(x), from the density 2/pi * (1 - r^2)^(-1/2).
    for x in (0.1, 0.5, 0.9):
        assert (ratios < x).float().mean().item() == pytest.approx(2 / math.pi * math.asin(x), abs=0.005)


def test_scattered_masks_have_the_ratio_s_count_and_at_least_one_position():
    ratios = torch.tensor([0.0, 0.001, 0.25, 0.5, 1.0])
    masks = masking.scattered(ratios, 64, generator())
    assert masks.sum(dim=1).tolist() == [1, 1, 16, 32, 64]


def test_scattered_masks_favour_no_position():
    masks = masking.scattered(torch.full((20_000,), 0.25), 16, generator())
    assert (masks.float().mean(dim=0) - 0.25).abs().max() < 0.02


def test_rectangles_are_rectangles_inside_the_grid_of_about_the_ratio_s_area():
    ratios = masking.cosine_ratios(2000, generator())
    masks = masking.rectangles(ratios, (8, 12), generator(1)).view(-1, 8, 12)
    rows, columns = masks.any(dim=2), masks.any(dim=1)
    assert torch.equal(masks, rows[:, :, None] & columns[:, None, :])
    for sides in (rows, columns):
        borders = (sides[:, 1:].int() - sides[:, :-1].int()).abs().sum(dim=1) + sides[:, 0].int() + sides[:, -1].int()
        assert (borders == 2).all()
    area = masks.flatten(1).float().mean(dim=1)
    assert (area > 0).all()
    assert (area - ratios).abs().mean() < 0.05


def test_the_share_of_batches_with_rectangles_is_the_one_asked_for():
    draw = generator()
    batches = [masking.draw_masks(4, (8, 8), 0.15, draw).view(4, 8, 8) for _ in range(2000)]
    boxes = [torch.equal(mask, mask.any(2)[:, :, None] & mask.any(1)[:, None, :]) for mask in batches]
    assert sum(boxes) / len(boxes) == pytest.approx(0.15, abs=0.03)


def test_text_is_dropped_for_a_tenth_of_the_rows_and_kept_for_the_rest():
    text_ids = torch.full((20_000, 8), 7)
    dropped = masking.drop_text(text_ids, 1, 0.1, generator())
    empty = (dropped == torch.tensor([1, 0, 0, 0, 0, 0, 0, 0])).all(dim=1)
    assert empty.float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert (dropped[~empty] == 7).all()


def test_corruption_replaces_at_most_the_share_asked_for_and_half_of_it_on_average():
    tokens = torch.full((4000, 64), 5000)
    corrupted = masking.corrupt(tokens, 1024, 0.15, generator())
    changed = (corrupted != tokens).float()
    assert changed.mean().item() == pytest.approx(0.075, abs=0.005)
    assert corrupted[corrupted != tokens].max() < 1024
