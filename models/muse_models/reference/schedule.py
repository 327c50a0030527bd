"""How many positions stay masked after each step, and the Halton order (Muse §2.8; MaskGIT §3.3)."""

import math

import numpy as np

MASK_SCHEDULES = {
    "cosine": lambda r: math.cos(math.pi * r / 2),
    "linear": lambda r: 1 - r,
    "arccos": lambda r: math.acos(r) * 2 / math.pi,
}
"""gamma(r): the share that is still masked when the share `r` of the steps is done."""


def masked_after(mask_schedule: str, initially: int, unknown: int, step: int, steps: int) -> int:
    """Positions masked again after `step` (from 0) of `steps`.

    Every step reveals at least one position and, while more than one is masked, leaves at least one for the next.
    `initially` is U, the number masked at the start; `unknown` is the number masked before this step.
    """
    if step == steps - 1 or unknown == 1:
        return 0
    wanted = math.floor(initially * MASK_SCHEDULES[mask_schedule]((step + 1) / steps))
    return min(max(wanted, 1), unknown - 1)


def masked_table(mask_schedule: str, initially: int, steps: int) -> list[int]:
    """Positions masked after each step of a row. Ends with 0; empty if nothing was masked."""
    steps = min(steps, initially)
    table: list[int] = []
    unknown = initially
    for step in range(steps):
        if unknown == 0:
            break
        unknown = masked_after(mask_schedule, initially, unknown, step, steps)
        table.append(unknown)
    return table


def halton_order(rows: int, columns: int) -> np.ndarray:
    """All positions of a grid, row-major indices [rows * columns] int64, in 2-D Halton order (bases 2 and 3).

    Neighbours in this order are far apart in the grid, so that what one step reveals together hardly depends on
    each other.
    """
    order: list[int] = []
    seen = set()
    n = 0
    while len(order) < rows * columns:
        n += 1
        row, column = _scaled_radical_inverse(n, 2, rows), _scaled_radical_inverse(n, 3, columns)
        position = row * columns + column
        if position not in seen:
            seen.add(position)
            order.append(position)
    return np.array(order, np.int64)


def _scaled_radical_inverse(n: int, base: int, size: int) -> int:
    """floor(size * 0.d0 d1 d2 …) where … d2 d1 d0 are the digits of `n` in `base`; in integers, hence exact."""
    reversed_digits, denominator = 0, 1
    while n > 0:
        reversed_digits = reversed_digits * base + n % base
        denominator *= base
        n //= base
    return reversed_digits * size // denominator
