"""What is masked in training: the cosine density of Muse §2.6, and rectangles.

Random parts take a `torch.Generator`, so that a run can be repeated and a test can fix its draws.
"""

import math

import torch
from torch import Tensor


def cosine_ratios(batch: int, generator: torch.Generator) -> Tensor:
    """Masking ratios in (0, 1], [batch] f32: `r = cos(pi u / 2)`, u uniform in [0, 1).

    Their density is `2 / pi * (1 - r^2)^(-1/2)` with mean 2 / pi = 0.637: mostly high ratios, as decoding starts from
    nothing, yet with every ratio met.
    """
    return torch.cos(torch.rand(batch, generator=generator) * (math.pi / 2))


def scattered(ratios: Tensor, positions: int, generator: torch.Generator) -> Tensor:
    """Masks [B, positions] bool with `ratio * positions` (rounded, at least one) scattered positions set in a row."""
    scores = torch.rand(ratios.shape[0], positions, generator=generator)
    ranks = scores.argsort(dim=1).argsort(dim=1)
    counts = (ratios * positions).round().clamp(min=1)
    return ranks < counts[:, None]


def rectangles(ratios: Tensor, grid: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Masks [B, S] bool, each one rectangle of about `ratio` of the grid's area, anywhere inside it.

    Inpainting asks for such holes, which scattered masks almost never make.
    """
    rows, columns = grid
    batch = ratios.shape[0]
    # Height and width share the ratio; an aspect from 1:2 to 2:1 in the grid's own proportions.
    aspect = torch.exp((torch.rand(batch, generator=generator) - 0.5) * math.log(4.0))
    height = (rows * (ratios * aspect).sqrt()).round().clamp(1, rows)
    width = (ratios * rows * columns / height).round().clamp(1, columns)
    top = torch.floor(torch.rand(batch, generator=generator) * (rows - height + 1))
    left = torch.floor(torch.rand(batch, generator=generator) * (columns - width + 1))
    row = torch.arange(rows)[None, :, None]
    column = torch.arange(columns)[None, None, :]
    inside_rows = (row >= top[:, None, None]) & (row < (top + height)[:, None, None])
    inside_columns = (column >= left[:, None, None]) & (column < (left + width)[:, None, None])
    return (inside_rows & inside_columns).reshape(batch, rows * columns)


def draw_masks(batch: int, grid: tuple[int, int], rectangle_share: float, generator: torch.Generator) -> Tensor:
    """Masks of a training batch, [B, S] bool: one rectangle a row in `rectangle_share` of batches, else scattered."""
    ratios = cosine_ratios(batch, generator)
    if torch.rand((), generator=generator) < rectangle_share:
        return rectangles(ratios, grid, generator)
    return scattered(ratios, grid[0] * grid[1], generator)


def corrupt(tokens: Tensor, ids: int, most: float, generator: torch.Generator) -> Tensor:
    """`tokens` [B, S] with a share of each row, uniform in 0 … `most`, replaced by ids drawn from 0 … `ids` - 1.

    Super-resolution trains so: at inference its low-resolution tokens are the base model's, faults included.
    """
    rates = torch.rand(tokens.shape[0], 1, generator=generator) * most
    replaced = torch.rand(tokens.shape, generator=generator) < rates
    random_ids = torch.randint(0, ids, tokens.shape, generator=generator)
    return torch.where(replaced, random_ids, tokens)


def drop_text(text_ids: Tensor, end_id: int, share: float, generator: torch.Generator) -> Tensor:
    """`text_ids` [B, L] with a `share` of the rows replaced by the empty prompt: the end token and padding (0).

    What is dropped is `share` of the rows: 10 % keeps 90 % of the text.
    """
    empty = torch.zeros_like(text_ids)
    empty[:, 0] = end_id
    dropped = torch.rand(text_ids.shape[0], 1, generator=generator) < share
    return torch.where(dropped, empty, text_ids)
