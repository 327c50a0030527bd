"""Weights set aside while a run goes on, and their average afterwards.

The paper keeps no running average: it averages saved checkpoints offline, with a decay of 0.7 from one to the next
(arXiv 2301.00704, appendix), so that other decays can be tried without training again.
"""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import checkpoint


class Snapshots:
    """Writes `snapshots/<step>.pt` every so often and keeps the latest ones."""

    def __init__(self, folder: Path, every_seconds: float, keep: int) -> None:
        self._folder = folder / "snapshots"
        self._every = every_seconds
        self._keep = keep
        self._taken_at = time.monotonic()

    @classmethod
    def from_options(cls, folder: Path, options: dict[str, Any]) -> "Snapshots":
        """Reads `snapshot_seconds` (0, and where it is not given: none) and `snapshots` of a `[training]` table."""
        return cls(folder, options.get("snapshot_seconds", 0), options.get("snapshots", 0))

    def offer(self, step: int, model: nn.Module) -> None:
        """Sets `model`'s weights aside if it is time."""
        if self._every <= 0 or time.monotonic() - self._taken_at < self._every:
            return
        self._taken_at = time.monotonic()
        checkpoint.save(self._folder / f"{step:09}.pt", {"live": model.state_dict(), "step": step})
        for old in snapshot_files(self._folder.parent)[: -self._keep]:
            old.unlink()


def snapshot_files(folder: Path) -> list[Path]:
    """The snapshots of the part in `folder`, oldest first."""
    return sorted((folder / "snapshots").glob("*.pt"))


def offline_average(states: Iterable[dict[str, Tensor]], decay: float) -> dict[str, Tensor]:
    """Exponential moving average of weights, oldest first: each step keeps `decay` of what was there.

    Raises `ValueError` when there are none.
    """
    average: dict[str, Tensor] | None = None
    for state in states:
        if average is None:
            average = {name: value.clone() for name, value in state.items()}
            continue
        for name, value in state.items():
            if value.is_floating_point():
                average[name] = torch.lerp(value, average[name], decay)
            else:
                average[name] = value
    if average is None:
        raise ValueError("no snapshots to average")
    return average
