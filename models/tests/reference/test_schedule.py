"""Mask schedules and the Halton order."""

import numpy as np
import pytest

from muse_models.reference import schedule


def test_the_cosine_schedule_gives_the_tables_of_the_paper_s_settings():
    assert schedule.masked_table("cosine", 256, 24) == [
        255, 253, 251, 247, 242, 236, 229, 221, 212, 203, 192, 181, 168, 155, 142, 128, 113, 97, 82, 66, 49, 33, 16, 0,
    ]
    assert schedule.masked_table("cosine", 4096, 8) == [4017, 3784, 3405, 2896, 2275, 1567, 799, 0]


@pytest.mark.parametrize("name", schedule.MASK_SCHEDULES)
@pytest.mark.parametrize("masked", [1, 2, 3, 7, 24, 64, 255])
@pytest.mark.parametrize("steps", [1, 2, 5, 12, 1000])
def test_every_step_reveals_something_and_the_last_reveals_the_rest(name, masked, steps):
    table = schedule.masked_table(name, masked, steps)
    # Rounding can make a linear schedule a step shorter where there are as many steps as positions.
    assert min(steps, masked) - 1 <= len(table) <= min(steps, masked)
    assert table[-1] == 0
    before = [masked, *table[:-1]]
    assert all(after < former for former, after in zip(before, table, strict=True))


def test_a_row_without_masked_positions_takes_no_step():
    assert schedule.masked_table("cosine", 0, 8) == []


def test_the_share_falls_from_one_to_zero_in_every_schedule():
    for share in schedule.MASK_SCHEDULES.values():
        assert share(0.0) == pytest.approx(1.0)
        assert share(1.0) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (4, 6), (8, 8), (16, 16), (5, 3)])
def test_the_halton_order_lists_every_position_once(grid):
    order = schedule.halton_order(*grid)
    assert sorted(order) == list(range(grid[0] * grid[1]))


def test_the_halton_order_begins_with_the_radical_inverses():
    # n = 1, 2, 3, 4: rows 1/2 1/4 3/4 1/8 of 8, columns 1/3 2/3 1/9 4/9 of 9.
    assert schedule.halton_order(8, 9)[:4].tolist() == [4 * 9 + 3, 2 * 9 + 6, 6 * 9 + 1, 1 * 9 + 4]


def test_the_halton_order_spreads_over_the_grid():
    first = schedule.halton_order(8, 8)[:16]
    quadrants = np.bincount((first // 8 >= 4) * 2 + (first % 8 >= 4), minlength=4)
    assert quadrants.min() >= 3
