"""Drawing tokens, guidance, re-masking, and whole rows on made-up logits."""

import numpy as np
import pytest

from muse_models.reference import guidance, rng
from muse_models.reference.sampler import Key, Settings, decode, exponential, least_confident, sample
from muse_models.reference.schedule import halton_order

PLAIN = Settings(
    steps=6, guidance=0.0, guidance_schedule="linear", temperature=1.0, top_k=0, choice_temperature=4.5,
    mask_schedule="cosine", scheduler="confidence",
)
MASK = 11


def changed(**values) -> Settings:
    return Settings(**{**PLAIN.__dict__, **values})


def many_uniforms(count: int) -> np.ndarray:
    return rng.uniform(rng.draw(3, np.arange(count), 0, 0, "base")[:, 0])


def random_forward(seed: int = 0, size: int = 13):
    """Logits that depend on the grid, so that a wrong step shows in all later ones; those from 11 on are no tokens."""
    table = np.random.default_rng(seed).normal(size=(MASK + 1, 24, size)).astype(np.float32) * 2

    def forward(tokens: np.ndarray, conditional: bool) -> np.ndarray:
        logits = table[tokens, np.arange(24)] + np.roll(table[tokens, np.arange(24)], 1, axis=0)
        logits[:, MASK:] = 100
        logits = logits[tokens == MASK]
        return logits if conditional else -logits

    return forward


def run(settings: Settings, seed: int = 1, image_index: int = 0, initial: np.ndarray | None = None, forward=None):
    initial = np.full(24, MASK) if initial is None else initial
    key = Key(seed, image_index, "base")
    return decode(initial, (4, 6), MASK, 11, settings, key, forward or random_forward())


def test_tokens_are_drawn_with_the_probabilities_of_the_softmax():
    logits = np.log(np.array([0.5, 0.25, 0.15, 0.1], np.float32))
    count = 40_000
    tokens, log_probability = sample(np.tile(logits, (count, 1)), many_uniforms(count), 1.0, 0)
    np.testing.assert_allclose(np.bincount(tokens) / count, [0.5, 0.25, 0.15, 0.1], atol=0.01)
    np.testing.assert_allclose(log_probability, logits[tokens], atol=1e-6)


def test_a_low_temperature_sharpens_and_a_high_one_flattens():
    logits = np.tile(np.array([0.0, 1.0], np.float32), (20_000, 1))
    shares = [sample(logits, many_uniforms(20_000), temperature, 0)[0].mean() for temperature in (0.5, 1.0, 2.0)]
    assert shares == pytest.approx([1 / (1 + np.exp(-2)), 1 / (1 + np.exp(-1)), 1 / (1 + np.exp(-0.5))], abs=0.01)


def test_top_k_keeps_the_largest_and_of_equals_the_lower_index():
    logits = np.tile(np.array([1.0, 3.0, 2.0, 2.0, 2.0], np.float32), (2000, 1))
    tokens, log_probability = sample(logits, many_uniforms(2000), 1.0, 2)
    assert set(tokens) == {1, 2}
    # The probability is that of the distribution drawn from.
    likely = 1 / (1 + np.exp(-1.0))
    np.testing.assert_allclose(np.exp(log_probability), np.where(tokens == 1, likely, 1 - likely), rtol=1e-6)


def test_temperature_zero_takes_the_largest_and_of_equals_the_lower_index():
    logits = np.array([[0.0, 2.0, 2.0], [5.0, 1.0, 1.0]], np.float32)
    tokens, log_probability = sample(logits, many_uniforms(2), 0.0, 1)
    assert tokens.tolist() == [1, 0]
    expected = logits.max(axis=1) - np.log(np.exp(logits).sum(axis=1))
    np.testing.assert_allclose(log_probability, expected, atol=1e-6)


def test_the_largest_uniform_takes_the_last_token_that_has_any_weight():
    logits = np.array([[0.0, 0.0, -500.0]], np.float32)
    u = rng.uniform(np.array([0xFFFFFFFF], np.uint32))
    assert sample(logits, u, 1.0, 0)[0].tolist() == [1]


def test_equal_confidences_re_mask_exactly_the_count_and_the_earlier_positions():
    flat = np.zeros(9, np.float32)
    u = many_uniforms(9)
    assert least_confident(flat, u, np.float32(0), 4).tolist() == [0, 1, 2, 3]
    # An equal pair across the border: a test against a cut-off would take both or none.
    assert least_confident(np.array([2, 1, 1, 0], np.float32), u, np.float32(0), 2).tolist() == [3, 1]


def test_linear_guidance_rises_from_zero_to_t():
    weights = [guidance.weight(3.0, "linear", step, 4) for step in range(4)]
    assert weights == pytest.approx([0, 1, 2, 3])
    assert guidance.weight(3.0, "linear", 0, 1) == 3
    assert guidance.weight(3.0, "constant", 0, 4) == 3


def test_guidance_moves_away_from_the_unconditional_logits():
    conditional, unconditional = np.array([1.0, 2.0], np.float32), np.array([2.0, 1.0], np.float32)
    assert guidance.guided(conditional, unconditional, np.float32(2)).tolist() == [-1.0, 4.0]


def test_no_unconditional_row_is_run_where_guidance_is_zero():
    asked: list[bool] = []
    inner = random_forward()

    def forward(tokens, conditional):
        asked.append(conditional)
        return inner(tokens, conditional)

    run(changed(guidance=2.0), forward=forward)
    assert asked == [True] + 5 * [True, False]


@pytest.mark.parametrize("scheduler", ["confidence", "halton"])
@pytest.mark.parametrize("mask_schedule", ["cosine", "linear", "arccos"])
def test_a_row_ends_full_and_of_image_tokens_alone(scheduler, mask_schedule):
    row = run(changed(scheduler=scheduler, mask_schedule=mask_schedule, guidance=1.0))
    assert ((row.tokens >= 0) & (row.tokens < 11)).all()
    assert row.masked_after_step[-1] == 0


@pytest.mark.parametrize("scheduler", ["confidence", "halton"])
def test_known_positions_never_change(scheduler):
    initial = np.where(np.arange(24) % 3 == 0, 5, MASK)
    row = run(changed(scheduler=scheduler), initial=initial)
    assert (row.tokens[::3] == 5).all()
    assert row.masked_after_step == [15, 13, 11, 8, 4, 0]


def test_a_full_grid_takes_no_step():
    row = run(PLAIN, initial=np.arange(24) % 11)
    assert row.masked_after_step == []
    assert row.tokens.tolist() == (np.arange(24) % 11).tolist()


def test_more_steps_than_positions_are_lowered_to_one_a_position():
    assert run(changed(steps=1000)).masked_after_step == list(range(23, -1, -1))


def test_the_seed_and_the_image_index_make_the_picture():
    pictures = {tuple(run(PLAIN, seed, image).tokens) for seed, image in ((1, 0), (2, 0), (1, 1), (1 + 2**32, 0))}
    assert len(pictures) == 4
    assert (run(PLAIN).tokens == run(PLAIN).tokens).all()


def test_halton_reveals_the_first_positions_of_its_order():
    seen: list[np.ndarray] = []
    inner = random_forward()

    def forward(tokens, conditional):
        seen.append(np.flatnonzero(tokens != MASK))
        return inner(tokens, conditional)

    run(changed(scheduler="halton", steps=4, mask_schedule="linear"), forward=forward)
    assert [len(known) for known in seen] == [0, 6, 12, 18]
    for known in seen:
        assert set(known) == set(halton_order(4, 6)[: len(known)])


def test_the_exponential_is_within_two_units_in_the_last_place_and_ends_at_minus_87():
    x = -np.linspace(0, 87, 500_001).astype(np.float32)
    expected = np.exp(x.astype(np.float64)).astype(np.float32)
    units = np.abs(exponential(x).view(np.int32) - expected.view(np.int32))
    assert units.max() <= 2, (units.max(), x[units.argmax()])
    assert exponential(np.array([0, -87.001, -1e30, -np.inf], np.float32)).tolist() == [1, 0, 0, 0]
